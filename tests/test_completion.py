"""What Tab offers, asked for as bash and zsh do."""

from __future__ import annotations

import os
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
    """Ask as bash does, which splits at `=`, too."""
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


def test_bash_itself_completes_a_value_once_the_script_is_installed(tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/pgcli"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{LIGHT}" "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("_PGCLI", "_TYPER"))}
    environment |= {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    subprocess.run([command, "--install-completion", "bash"], env=environment, check=True, capture_output=True)
    script = (
        ". ~/.bash_completions/pgcli.sh; COMP_WORDS=(pgcli train cartpole algorithm.objective = cl); COMP_CWORD=5; "
        "_pgcli_completion pgcli; echo ${COMPREPLY[*]}"
    )
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "clip\n", done.stderr
