"""Untrusted text in files, environments and file names never reaches a terminal unescaped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from rich.console import Console

from pgcli.config import load_config, override
from pgcli.errors import PgcliError, Problem
from pgcli.experiment.run import Request, run_experiment
from pgcli.records import Notice
from pgcli.report.display import LiveDisplay, TrainingView
from pgcli.report.text import columns
from pgcli.runs import checkpoints
from pgcli.system.streams import printable

TITLE = "\x1b]0;X\x07\x9b2J\u202e"  # a title for the terminal, a screen cleared, a text from right to left
HOSTILE = f"{TITLE}\ud800\x00"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")
SMALL = (
    *("env.num_envs=2", "rollout.episodes=2", "env.max_episode_steps=10", "training.env_steps=null"),
    *("training.iterations=2", "evaluation.episodes=2", "evaluation.stop_at_return=null"),
)


def test_control_characters_are_escaped_and_other_text_is_unchanged() -> None:
    assert printable(HOSTILE) == r"\x1b]0;X\x07\x9b2J\u202e\ud800\x00"
    assert printable("\udcff\u2066\u200f\ufeff\U000e0041\r") == r"\udcff\u2066\u200f\ufeff\U000e0041\r"
    plain = "é 中 👩\u200d🚀 می\u200cخواهم\tx\ny"
    assert printable(plain) == plain


def test_an_error_is_always_one_line() -> None:
    assert str(PgcliError("a\nhint: b", "c\nd")).splitlines() == [r"error: a\nhint: b", r"hint: c\nd"]
    assert len(str(Problem("a\nb", "c\nd")).splitlines()) == 1


# Each of these poisons one file of a run.


def poisoned(value: Any, key: str = "") -> Any:
    """Put hostile text into every text and every key of JSON data, except where it would end all reading."""
    if isinstance(value, dict):
        return {name: poisoned(one, name) for name, one in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [*(poisoned(one) for one in value), HOSTILE]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def in_json(name: str) -> Callable[[Path], None]:
    def poison(run: Path) -> None:
        data = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(poisoned(data)))

    return poison


def in_reason(run: Path) -> None:
    status = {"status": "finished", "iteration": 2, "reason": f"used up {HOSTILE}"}
    (run / "status.json").write_text(json.dumps(status))


def in_yaml(old: str, new: str) -> Callable[[Path], None]:
    def poison(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new))

    return poison


def in_cells(name: str) -> Callable[[Path], None]:
    def poison(run: Path) -> None:
        head, *rows = (run / name).read_text().splitlines()
        cells = [[*row.split(",")[:-1], TITLE] for row in rows]
        (run / name).write_text("\n".join([head, *map(",".join, cells)]) + "\n")

    return poison


def in_head(run: Path) -> None:
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text.replace("entropy", TITLE, 1))


def in_checkpoint(**env: Any) -> Callable[[Path], None]:
    """Write a checkpoint that is valid, with digests of its own, and names a hostile environment."""

    def poison(run: Path) -> None:
        last = sorted((run / "checkpoints").glob("*.safetensors"))[-1]
        found = checkpoints.load(last)
        config = json.loads(json.dumps(found.config))
        config["env"] |= env
        last.unlink()
        checkpoints.save(run / "checkpoints", checkpoints.Checkpoint(config, found.counters, found.tensors))

    return poison


def in_checkpoint_text(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.safetensors"):
        file.write_bytes(file.read_bytes().replace(b"format", b"\x1b]0;X\x07"[:6]))


ESCAPED = r"\e]0;X\a\x9b2J\u202e"  # of a YAML text in double quotes
POISONS: dict[str, Callable[[Path], None]] = {
    "run.json": in_json("run.json"),
    "status.json": in_json("status.json"),
    "a reason": in_reason,
    "best.json": in_json("checkpoints/best.json"),
    "latest.json": in_json("checkpoints/latest.json"),
    "an id": in_yaml("id: CartPole-v1", f'id: "{ESCAPED}"'),
    "a name": in_yaml("name: cartpole", f'name: "{ESCAPED}"'),
    "a kwarg": in_yaml("kwargs: {}", f'kwargs: {{"{ESCAPED}": "{ESCAPED}"}}'),
    "a wrapper": in_yaml("wrappers: []", f'wrappers: ["{ESCAPED}"]'),
    "a key": in_yaml("name: cartpole", f'name: cartpole\n"{ESCAPED}": 1'),
    "cells of episodes": in_cells("episodes.csv"),
    "cells of evaluations": in_cells("evaluations.csv"),
    "cells of metrics": in_cells("metrics.csv"),
    "a head": in_head,
    "the id of a checkpoint": in_checkpoint(id=f"{TITLE}:Id-v0"),
    "a kwarg of a checkpoint": in_checkpoint(kwargs={TITLE: TITLE}),
    "a wrapper of a checkpoint": in_checkpoint(wrappers=[{"name": TITLE, "kwargs": {}}]),
    "the bytes of a checkpoint": in_checkpoint_text,
}
COMMANDS = (
    *(["show"], ["show", "whole"], ["verify", "--trust"], ["plot", "-o", "curve.svg"]),
    *(["plot", "whole", "--show"], ["eval", "--episodes", "1"], ["resume", "training.iterations=3", "--quiet"]),
    ["eval", "--replay", "0:0", "--trust"],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole"
    run_experiment(Request(override(load_config("cartpole"), [*SMALL]), path, ["train"]))
    return path


@pytest.mark.parametrize("kind", POISONS)
def test_no_command_prints_hostile_text_unescaped(kind: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "whole")
    for command, *options in COMMANDS:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        POISONS[kind](tmp_path / "run")
        done = answered(command, "run", *options, cwd=tmp_path)
        assert not RAW.search(done), f"{command} {options}: {done!r}"
        assert "Traceback" not in done, f"{command} {options}: {done}"
    if (figure := tmp_path / "curve.svg").exists():
        assert not RAW.search(figure.read_text())


def answered(*words: str, cwd: Path) -> str:
    """Return the output of a command, for any exit code."""
    from command_line import Command

    done = Command(*words, cwd=cwd).finished()
    assert done.returncode != 1, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", [["show"], ["plot", "-o", "x.png"], ["eval"], ["verify"], ["train"], ["resume"]])
def test_names_of_files_and_arguments_are_shown_with_escapes(command: list[str], whole: Path, tmp_path: Path) -> None:
    name = f"run{TITLE}"
    shutil.copytree(whole, tmp_path / name)
    for word in (name, f"none{TITLE}", f"--none{TITLE}", f"{name}/metrics.csv"):
        assert not RAW.search(answered(command[0], word, *command[1:], cwd=tmp_path))


def test_an_environment_and_its_exception_are_shown_with_escapes(tmp_path: Path) -> None:
    done = pgcli(
        *("train", "cartpole", *SMALL, "env.id=worlds:Raising", "--run-dir", "run"),
        cwd=tmp_path,
        code=3,
        PYTHONPATH=str(Path(__file__).parent),
    )
    assert not RAW.search(done.stdout + done.stderr)
    program = next((tmp_path / "run/crash").glob("*.py"))
    compile(program.read_text(), str(program), "exec")
    assert not RAW.search(program.read_text())
    assert not RAW.search(json.loads((tmp_path / "run/status.json").read_text())["reason"])


def test_a_coloured_table_keeps_its_own_styles_and_escapes_others() -> None:
    lines = "\n".join(columns([("a", "b"), (f"[red]{TITLE}[/]", "wrong")], {"wrong": "bold red"}))
    assert "\x1b[1;31mwrong\x1b[0m" in lines
    assert "[red]" in lines
    assert r"\x1b]0;X\x07" in lines
    assert not RAW.search(re.sub(r"\x1b\[[0-9;]*m", "", lines))


def test_a_live_display_shows_names_and_notices_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = override(load_config("cartpole"), ["name=x"]).model_copy(update={"name": f"x{TITLE}"})
    display = LiveDisplay(TrainingView([settings]))
    display.show(Notice(f"[/nobody] {TITLE}"))
    console = Console(width=100, force_terminal=True)
    with console.capture() as captured:
        console.print(display)
    display.close()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", captured.get())
    assert "[/nobody]" in shown
    assert not RAW.search(shown.replace("\n", ""))
