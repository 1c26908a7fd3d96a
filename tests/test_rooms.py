"""The house: imports point down only, and the light rooms stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from pgcli.config import choices
from pgcli.estimators import objectives

PACKAGE = Path(__file__).parent.parent / "pgcli"

# From the ground to the roof. A room may import its own floor's ground and everything below, never above.
FLOORS = (
    ("errors",),
    ("config", "records", "seeding", "system"),
    ("estimators",),
    ("policies",),
    ("environments",),
    ("sampling",),
    ("algorithm",),
    ("training",),
    ("runs",),
    ("experiment",),
    ("report",),
    ("inspection",),
    ("studies",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module
            else []
        )
        rooms |= {name.split(".")[1] for name in names if name.startswith("pgcli.")}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # the door: it opens `load` for notebooks, lazily
    upward = {other for other in imported_rooms(path) - {room} if FLOOR[other] >= FLOOR[room]}
    assert not upward, f"{room} stands below or beside {upward}"


def test_estimators_import_nothing_of_pgcli_but_themselves() -> None:
    for path in (PACKAGE / "estimators").glob("*.py"):
        assert imported_rooms(path) <= {"estimators"}


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["init", "--list"],
        ["init", "--schema"],
        ["train", "no-such-config"],
        ["train", "cartpole", "algorithm.gama=1"],
        ["doctor", "cartpole", "algorithm.gama=1"],
        ["compare", "cartpole", "algorithm.gama=1,2", "training.env_steps=100"],
        ["check", "--help"],
        ["check", "cartpole", "algorithm.gama=1"],
        ["check", "no-such-file.py:reinforce"],
    ],
    ids=" ".join,
)
def test_light_commands_import_no_torch_gymnasium_or_matplotlib(command: list[str]) -> None:
    program = (
        "import sys, pgcli.__main__ as m; sys.argv = ['pgcli', *sys.argv[1:]]; m._run(); "
        "heavy = {'torch', 'gymnasium', 'matplotlib', 'numpy', 'scipy', 'PIL'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_estimators_declare_the_averages_of_a_config() -> None:
    assert get_args(objectives.Average) == get_args(choices.Average)


def test_importing_pgcli_and_the_choices_is_instant_and_load_is_there() -> None:
    program = (
        "import sys, pgcli, pgcli.config.choices; "
        "assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules); assert callable(pgcli.load)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
