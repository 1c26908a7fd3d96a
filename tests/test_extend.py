"""docs/extend.md: its files are written, its changes of pgcli applied to a copy, and its commands run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, pgcli, whole

PAGE = (ROOT / "docs/extend.md").read_text()
PARTS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
INSIDE = "A cell of the grid"


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """Return the name in the first line of each block of a language, and the block."""
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [(block.partition("\n")[0].removeprefix("# "), block) for block in found]


def commands(text: str) -> list[str]:
    return re.findall(r"^\$ (.+)$", text, re.MULTILINE)


def apply(change: str, text: str) -> str:
    """Apply a diff without line numbers: its context and removed lines occur once."""
    lines = [line or " " for line in change.splitlines()]
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of the page."""
    path = tmp_path_factory.mktemp("extend")
    for name, block in [*blocks(PAGE, "python"), *blocks(PAGE, "yaml")]:
        (path / name).write_text(block)
    return path


def test_the_commands_on_own_files_run(folder: Path) -> None:
    lines = [line for name, part in PARTS.items() if name != INSIDE for line in commands(part)]
    assert len(lines) >= 9
    outputs = {}
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "pgcli":
            outputs[line] = pgcli(*arguments, cwd=folder).stdout
        else:
            assert program == "python"
            command = [sys.executable, *arguments]
            done = subprocess.run(
                command, cwd=folder, env=whole({}), capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            outputs[line] = done.stdout
    assert "unbiased" in outputs["pgcli check my.py:rloo"]
    assert "env steps" in outputs["python follow.py runs/corridor/seed-0"]
    assert re.match(r"-\d+\.\d in evaluation ", outputs["python my_pgcli.py best runs/corridor/seed-0"])


@pytest.mark.slow("two gradient checks in a copy of pgcli")
def test_the_changes_inside_pgcli_apply_and_its_commands_run(tmp_path: Path) -> None:
    for name in ("pgcli", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, block in blocks(PARTS[INSIDE], "diff"):
        file = tmp_path / name
        file.write_text(apply(block.partition("\n")[2], file.read_text()))
    exact, by_steps, train = commands(PARTS[INSIDE])
    for command, expected in ((exact, "unbiased"), (by_steps, "biased by design"), (train, "runs/median")):
        done = pgcli(*shlex.split(command)[1:], cwd=tmp_path, real_process=True, timeout=300, PYTHONPATH=str(tmp_path))
        assert expected in done.stdout, command
