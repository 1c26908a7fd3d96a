"""The architecture: imports point down only, few modules are top level, light commands import little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from pgcli import estimators
from pgcli.config import choices
from pgcli.estimators import baselines, objectives, ratios, returns, trajectories

PACKAGE = Path(__file__).parent.parent / "pgcli"

# From bottom to top. A module may import its own package and those of lower floors.
FLOORS = (
    ("errors",),
    ("records", "seeding", "system"),
    ("config",),
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
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def files_of(package: str) -> list[Path]:
    module = PACKAGE / f"{package}.py"
    return [module] if module.exists() else sorted((PACKAGE / package).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    modules = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("pgcli.") and module != "pgcli.__version__"}


@pytest.mark.parametrize("package", FLOOR)
def test_imports_point_down(package: str) -> None:
    for path in files_of(package):
        upward = {other for other in imported_packages(path) - {package} if FLOOR[other] >= FLOOR[package]}
        assert not upward, f"{path} imports {upward}"


def test_every_module_has_a_layer_and_few_are_top_level() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__"} == FLOOR.keys()
    assert len(list(PACKAGE.glob("*.py"))) <= 5


def test_functions_and_classes_are_short_and_the_algorithm_fits_on_a_screen() -> None:
    kinds = {ast.ClassDef: 160, ast.FunctionDef: 70, ast.AsyncFunctionDef: 70}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= kinds[type(node)], f"{path}: `{node.name}` has {lines} lines"
    assert len((PACKAGE / "algorithm" / "policy_gradient.py").read_text().splitlines()) <= 140


def test_few_lines_suppress_the_linter() -> None:
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines() if "# noqa" in line]
    assert len(lines) <= 15, lines


def test_estimators_import_no_other_part_of_pgcli() -> None:
    for path in (PACKAGE / "estimators").glob("*.py"):
        assert imported_packages(path) <= {"estimators"}


def test_the_estimators_list_every_public_function_with_a_sentence() -> None:
    public = {
        name
        for module in (baselines, objectives, ratios, returns, trajectories)
        for name, member in vars(module).items()
        if not name.startswith("_") and getattr(member, "__module__", "") == module.__name__
    }
    assert set(estimators.__all__) == public
    assert set(re.findall(r"^    (\w+): .+\.$", str(estimators.__doc__), re.MULTILINE)) == public


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


def test_the_estimators_declare_the_averages_and_ratios_of_a_config() -> None:
    assert get_args(objectives.Average) == get_args(choices.Average)
    assert get_args(ratios.Ratios) == get_args(choices.Ratios)


def test_importing_pgcli_is_fast_and_load_is_available() -> None:
    program = (
        "import sys, pgcli, pgcli.config.choices; "
        "assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules); assert callable(pgcli.load)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
