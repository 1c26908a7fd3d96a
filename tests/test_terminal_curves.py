"""Curves in the terminal: correct at any width, without colour, Unicode or matplotlib."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgcli.errors import ConfigError, UsageError
from pgcli.report.terminal_plots import show, ticks
from pgcli.system.packages import install_command

HEADER = "iteration,env_steps,mode,evaluation_episodes,return_mean,return_standard_error"


def run(folder: Path, name: str, values: list[float]) -> Path:
    path = folder / name
    path.mkdir()
    rows = [f"{n},{1000 * n},sampled,9,{value},0.5" for n, value in enumerate(values)]
    (path / "evaluations.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (path / "metrics.csv").write_text("iteration,env_steps,return_mean\n0,1000,1.0\n")
    (path / "config.yaml").write_text(f"name: {name}\nseed: 0\n")
    return path


def drawn(*paths: Path, width: int = 80, color: bool = False, ascii_only: bool = False) -> str:
    return show(
        paths, "env_steps", "evaluation.return_mean", "mean", "ci95", 1, width=width, color=color, ascii_only=ascii_only
    )


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [1, 40, 57, 80, 120, 200, 999])
def test_a_picture_is_as_wide_as_the_terminal_from_40_to_200_columns(width: int, color: bool, tmp_path: Path) -> None:
    paths = [run(tmp_path, name, [1.0 * k * step for k in range(9)]) for name, step in (("a" * 60, 1), ("b", 20))]
    text = re.sub(r"\x1b\[[0-9;]*m", "", drawn(*paths, width=width, color=color))
    assert max(map(len, text.split("\n"))) == min(max(width, 40), 200)
    assert "b" in text
    assert "Band: ± one standard error" in " ".join(text.split())


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right(tmp_path: Path) -> None:
    text = drawn(run(tmp_path, "up", [float(k) for k in range(9)]), ascii_only=True)
    assert text.isascii()
    inside = [row.partition("|")[2] or row.partition("+")[2] for row in text.split("\n")[2:19]]
    places = [row.index("*") for row in inside if "*" in row]
    assert len(places) > 10
    assert places == sorted(places, reverse=True)
    assert places[0] > 60
    assert places[-1] < 10


def test_lines_are_marked_by_letters_or_by_colours(tmp_path: Path) -> None:
    paths = [run(tmp_path, "first", [0.0, 1.0]), run(tmp_path, "second", [5.0, 6.0])]
    text = drawn(*paths)
    assert "\x1b" not in text
    rows = text.split("\n")
    assert "* first" in rows
    assert "x second" in rows
    upper, lower = "".join(rows[2:8]), "".join(rows[14:18])
    assert "x" in upper
    assert "*" not in upper
    assert "*" in lower
    assert "x" not in lower
    assert {"\x1b[38;5;4m", "\x1b[38;5;1m"} <= set(re.findall(r"\x1b\[[0-9;]+m", drawn(*paths, color=True)))


def test_one_point_and_a_flat_line_are_drawn(tmp_path: Path) -> None:
    assert "*" in drawn(run(tmp_path, "point", [3.0]), ascii_only=True)
    assert "*" in drawn(run(tmp_path, "flat", [3.0, 3.0, 3.0]), ascii_only=True)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 100, 6, [0, 20, 40, 60, 80, 100]),
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3, 498, 6, [0, 100, 200, 300, 400]),
        (0, 50_000, 3, [0, 20_000, 40_000]),
        (2, 2, 4, [2]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, count: int, expected: list[float]) -> None:
    assert ticks(low, high, count) == pytest.approx(expected)


def test_a_mistake_is_reported_as_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(tmp_path, "run", [1.0, 2.0])
    with pytest.raises(ConfigError, match="no column"):
        show([path], "env_steps", "evaluation.retrn", "mean", "ci95", 1, width=80, color=False, ascii_only=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        drawn(path)
    assert install_command("terminal") in caught.value.hint


def test_a_pipe_gets_no_escapes_no_file_and_no_matplotlib(tmp_path: Path) -> None:
    path = run(tmp_path, "run", [1.0, 2.0])
    program = (
        "import sys, pgcli.__main__ as m; sys.argv = ['pgcli', 'plot', sys.argv[1], '--show']; "
        "code = m._run(); sys.exit(code or ('matplotlib' in sys.modules or 'torch' in sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"COLUMNS": "60"}, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    assert max(map(len, done.stdout.decode().split("\n"))) == 60
    assert not (path / "plots").exists()
