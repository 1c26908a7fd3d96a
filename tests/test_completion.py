"""Shell completion, called like bash and zsh."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = (
    "import sys; sys.argv = ['pgcli', *sys.argv[1:]]; import pgcli.__main__ as m; code = m._run(); "
    "heavy = {'torch', 'gymnasium', 'matplotlib', 'numpy'} & set(sys.modules); "
    "sys.exit(f'imported {heavy}' if heavy else code)"
)


def pgcli(cwd: Path, *arguments: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("_PGCLI", "_TYPER", "COMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_bash(cwd: Path, *words: str) -> list[str]:
    """Call completion like bash, which also splits at `=`."""
    line = " ".join(("pgcli", *words))
    given = {"_PGCLI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    return pgcli(cwd, **given).split()


def in_zsh(cwd: Path, line: str) -> str:
    return pgcli(cwd, _PGCLI_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=f"pgcli {line}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("runs/cartpole/seed-0", "runs/cartpole/empty", "carts"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv"):
        (tmp_path / "runs/cartpole/seed-0" / name).touch()
    (tmp_path / "cartmine.yaml").touch()
    (tmp_path / "cart.txt").touch()
    return tmp_path


def test_configs_are_offered_by_name_and_by_file(home: Path) -> None:
    offered = in_bash(home, "train", "cart")
    assert {"cartpole", "cartpole/ppo", "cartmine.yaml", "carts/"} <= set(offered)
    assert "cart.txt" not in offered
    assert "tutorial" not in offered
    assert "cartpole/ppo" in in_bash(home, "init", "cartpole/p")
    assert "suites/classic" in in_bash(home, "compare", "suites/c")


def test_keys_are_offered_and_then_their_values(home: Path) -> None:
    assert in_bash(home, "train", "cartpole", "algorithm.g") == [
        *("algorithm.gamma=", "algorithm.gae_lambda=", "algorithm.group_size=", "algorithm.group_mean=")
    ]
    assert in_bash(home, "train", "cartpole", "algorithm.gam") == ["algorithm.gamma=0.99"]
    assert "env.id=" in in_bash(home, "train", "cartpole", "seed", "=", "1", "")
    objectives = ["policy_gradient", "importance_sampling", "clip"]
    assert in_bash(home, "train", "cartpole", "algorithm.objective", "=") == objectives
    assert in_bash(home, "train", "cartpole", "algorithm.objective", "=", "c") == ["clip"]
    assert in_bash(home, "resume", "runs/x", "logging.tensorboard", "=", "") == ["false", "true"]
    assert "algorithm.objective=clip" in in_zsh(home, "train cartpole algorithm.objective=c")
    assert in_bash(home, "train", "cartpole", "policy.hidden_sizes", "=", "") == ["\\[64,\\", "64\\]"]


def test_runs_are_offered_and_folders_on_the_way_to_them(home: Path) -> None:
    assert in_bash(home, "plot", "ru") == ["runs/"]
    assert in_bash(home, "plot", "runs/cartpole/") == ["runs/cartpole/empty/", "runs/cartpole/seed-0"]
    assert in_bash(home, "eval", "runs/cartpole/se") == ["runs/cartpole/seed-0"]
    assert in_bash(home, "verify", "nowhere/") == []


def test_commands_and_options_are_offered(home: Path) -> None:
    assert "export" in in_bash(home, "ex")
    assert "--replay" in in_bash(home, "eval", "x", "--re")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown_and_asks_as_the_tests_do(shell: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("_PGCLI", "_TYPER"))}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "--show-completion", shell],
        env=environment | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    script = done.stdout
    assert done.returncode == 0, done.stderr
    assert "_PGCLI_COMPLETE" in script
    if shell == "bash" and shutil.which("bash"):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


HOSTILE = (
    *(
        "runs$(id>PWNED)",
        "runs`id>PWNED`",
        "runs;id>PWNED",
        "runs'; id>PWNED; '",
        'runs"; id>PWNED; "',
        "runs|id>PWNED",
    ),
    *("runs\\$(id>PWNED)", "runs  two", "runs:x", "runs${IFS}x", "runs&", "runs!!", "runs~", "runsé", "runs(#q)"),
)
NOT_OFFERED = ("runs\nid>PWNED", "runs\x1b]0;X\x07", "runs\u202ex")  # of several lines, or unprintable


@pytest.fixture
def shell_home(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a shell: with `pgcli`, its completion scripts, and hostile names."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/pgcli"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{LIGHT}" "$@"\n')
    command.chmod(0o755)
    for name in (*HOSTILE, *NOT_OFFERED):
        (tmp_path / "work" / name).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("_PGCLI", "_TYPER"))}
    environment |= {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    return environment | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


def in_shell(shell: str, script: str, environment: dict[str, str]) -> str:
    """Install the completion of a shell, and run a script in it."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    home = Path(environment["HOME"])
    install: list[str | Path] = [home / "bin/pgcli", "--install-completion", shell]
    subprocess.run(install, env=environment, check=True, capture_output=True)
    options = ["-f", "-c"] if shell == "zsh" else ["-c"]
    command = [shell, *options, script]
    done = subprocess.run(
        command, cwd=home / "work", env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert not list(home.rglob("PWNED")), "a name was executed"
    return done.stdout


# bash inserts a word as it is: what the shell makes of it must be the name.
BASH = """
. ~/.bash_completions/pgcli.sh; COMP_WORDS=(pgcli eval runs); COMP_CWORD=2; _pgcli_completion pgcli
for word in "${COMPREPLY[@]}"; do eval "printf '%s\\n' $word"; done
"""
# zsh evaluates what it gets, and quotes what `_describe` passes on when it inserts it.
ZSH = """
compdef() { }; _describe() { print -rl -- "${(@P)2}" }
. ~/.zfunc/_pgcli; words=(pgcli eval runs); CURRENT=3; _pgcli_completion
"""


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("zsh", ZSH), ("fish", 'complete -C "pgcli eval runs"')])
def test_a_name_that_attacks_a_shell_is_offered_and_not_executed(
    shell: str, script: str, shell_home: dict[str, str]
) -> None:
    lines = in_shell(shell, script, shell_home).splitlines()
    if shell == "zsh":  # name:meaning, with a backslash before colons and backslashes
        words = [re.sub(r"\\(.)", r"\1", line.removesuffix(":folder")) for line in lines]
    else:
        words = [line.partition("\t")[0] for line in lines]
    assert sorted(words) == sorted(f"{name}/" for name in HOSTILE)


def test_a_name_that_looks_like_an_option_is_offered_as_a_path(home: Path) -> None:
    (home / "--trust").mkdir()
    assert "./--trust/" in in_bash(home, "plot", "")
    assert "--trust/" not in in_bash(home, "plot", "")


def test_bash_itself_completes_a_value_once_the_script_is_installed(shell_home: dict[str, str]) -> None:
    script = (
        ". ~/.bash_completions/pgcli.sh; COMP_WORDS=(pgcli train cartpole algorithm.objective = cl); COMP_CWORD=5; "
        "_pgcli_completion pgcli; echo ${COMPREPLY[*]}"
    )
    assert in_shell("bash", script, shell_home) == "clip\n"
