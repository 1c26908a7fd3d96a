"""The appearance of plots: labels, title, size, caption, threshold, axes, dashes and markers."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from PIL import Image
from test_curves import gradients, write_run

from pgcli.errors import ConfigError
from pgcli.report.appearance import Appearance, parse_size
from pgcli.report.curves import caption, read_lines
from pgcli.report.plots import plot
from pgcli.report.terminal_plots import log_ticks, show

DRAWN = ("env_steps", "evaluation.return_mean", "mean", "ci95", 1)


def folder_of(tmp_path: Path, lines: int = 2, points: int = 4) -> Path:
    """Write a run of each line, which rises to 480."""
    for k in range(lines):
        values = [1 + k + 478 * step / (points - 1) for step in range(points)]
        write_run(tmp_path / f"runs/{k:02}", values, name=f"variant-{k}")
    return tmp_path / "runs"


def svg(folder: Path, **options: Any) -> str:
    """Return the figure of a folder as SVG."""
    file = plot([folder], *DRAWN, folder.parent / "a.svg", overwrite=True, appearance=Appearance(**options))
    return file.read_text()


def texts(picture: str) -> list[str]:
    return re.findall(r"<text.*?>(.*?)</text>", picture)


def strokes(picture: str) -> list[tuple[str, str]]:
    """Return colour and dashes of each curve; curves are 1.5 points wide."""
    styles = re.findall(r'clip-path="[^"]+" style="([^"]*stroke-width: 1\.5[^"]*)"', picture)
    parts = [dict(re.findall(r"([\w-]+): ([^;]+)", style)) for style in styles]
    return [(part["stroke"], part.get("stroke-dasharray", "")) for part in parts]


def test_text_of_a_figure_can_be_edited(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    words = texts(svg(folder))
    assert {"variant-0", "variant-1", "environment steps", "solved: 475"} <= set(words)
    document = plot([folder], *DRAWN, tmp_path / "a.pdf").read_bytes()
    assert b"/Subtype /Type0" in document
    assert b"/Type3" not in document


def test_a_figure_has_the_users_labels_title_and_size(tmp_path: Path) -> None:
    folder_of(tmp_path)
    options = ("--label", "a $5 policy", "--label", "α = 0.1", "--title", "Two policies", "--size", "3.3x2.5")
    pgcli("plot", "runs", *options, "-o", "a.svg", cwd=tmp_path)
    picture = (tmp_path / "a.svg").read_text()
    assert {"a $5 policy", "α = 0.1", "Two policies"} <= set(texts(picture))
    assert "variant" not in picture
    assert f'width="{3.3 * 72:g}pt" height="{2.5 * 72:g}pt"' in picture
    pgcli("plot", "runs", "--size", "3.3x2.5", "-o", "a.png", cwd=tmp_path)
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (660, 500)
    pgcli("plot", "runs", *options[:4], "-o", "a.csv", cwd=tmp_path)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"a $5 policy", "α = 0.1"}


def test_one_line_is_named_in_the_title_or_below_the_users_title(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, lines=1)
    assert "variant-0" in texts(svg(folder))
    assert "variant-0" not in texts(svg(folder, title=""))
    assert "own" in texts(svg(folder, labels=["own"]))
    assert {"own", "Title"} <= set(texts(svg(folder, labels=["own"], title="Title")))


def test_caption_and_threshold_can_be_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path)
    for options, absent, present in (
        (["--no-caption"], "Band", "solved"),
        (["--no-threshold"], "solved", "Band"),
    ):
        pgcli("plot", "runs", *options, "-o", "a.svg", cwd=tmp_path)
        words = " ".join(texts((tmp_path / "a.svg").read_text()))
        assert absent not in words
        assert present in words


def test_lines_differ_by_colour_and_by_dashes(tmp_path: Path) -> None:
    styles = strokes(svg(folder_of(tmp_path, lines=10)))
    assert len({dashes for _, dashes in styles[:7]}) == 7
    assert len({color for color, _ in styles[:7]}) == 7
    assert len(set(styles)) == len(styles) == 10


@pytest.mark.parametrize(("points", "marked"), [(2, True), (15, True), (16, False), (200, False)])
def test_a_curve_of_few_points_has_markers(points: int, marked: bool, tmp_path: Path) -> None:
    picture = svg(folder_of(tmp_path, lines=1, points=points), caption=False)
    markers = re.findall(r'<g clip-path="[^"]+">(.*?)</g>', picture, re.DOTALL)
    assert [one.count("<use") for one in markers[1:]] == ([points] if marked else []), "after the band"


def test_a_logarithmic_axis_counts_the_points_that_it_cannot_show(tmp_path: Path) -> None:
    values = [-1.0, 0.0, 1.0, -2.0, *(10.0**k for k in range(3)), *[5.0] * 13]
    write_run(tmp_path / "runs/a", values, name="a")
    write_run(tmp_path / "runs/b", [3.0] * 20, name="b")
    done = pgcli("plot", "runs", "--log", "-o", "a.svg", cwd=tmp_path)
    assert done.stderr.splitlines() == ["warning: --log: 3 points at or below 0: not drawn"]
    picture = (tmp_path / "a.svg").read_text()
    words = " ".join(texts(picture))
    assert "a: 3 of 20 points at or below 0: not drawn." in words
    assert "A band that reaches 0 ends at the edge of the figure." in words
    assert "b: " not in words
    line = re.findall(r'<path d="([^"]+)" clip-path="[^"]+" style="[^"]*stroke-width: 1\.5', picture)[0]
    assert line.count("M ") > 1, "a gap where points are missing"
    markers = re.findall(r'<g clip-path="[^"]+">(.*?)</g>', picture, re.DOTALL)
    markers = [one for one in markers if "fill-opacity" not in one]  # without bands
    assert [one.count("<use") for one in markers] == [1], "the point without a neighbour"
    negative = write_run(tmp_path / "negative", [-3.0, -2.0], name="negative")
    done = pgcli("plot", negative, "--log", "-o", "b.svg", cwd=tmp_path, code=2)
    assert "has no value above 0" in done.stderr


def test_a_column_that_spans_powers_of_ten_has_a_logarithmic_axis_by_default(tmp_path: Path) -> None:
    gradients(tmp_path / "run", [(2, 0.001), (2, 1)])
    for options, logarithmic in (([], True), (["--no-log"], False)):
        pgcli("plot", "run", "-y", "gradient_variance", *options, "-o", "a.svg", cwd=tmp_path)
        words = texts((tmp_path / "a.svg").read_text())
        assert ({"0.001", "0.01", "0.1", "1"} <= set(words)) is logarithmic


@pytest.mark.parametrize("size", ["", "6", "6x", "x4", "6x4x2", "0x4", "-3x4", "1x1", "41x4", "nanxinf", "1e1x4", "a"])
def test_a_bad_size_is_reported_in_one_sentence(size: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_size(size)
    rule = f"error: --size: `{size}` is not WIDTHxHEIGHT in inches, each from 2 to 40"
    assert str(error.value).split("\n")[0] == rule


@pytest.mark.parametrize(
    ("text", "size"), [("6.4x4", (6.4, 4)), ("2x40", (2, 40)), (" 3.X2.5 ", (3, 2.5)), ("6 × 4", (6, 4))]
)
def test_a_size_is_width_and_height(text: str, size: tuple[float, float]) -> None:
    assert parse_size(text) == size


def test_a_figure_without_room_for_curves_is_rejected_and_the_default_grows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, lines=30)
    for size in ((2.0, 2.0), (3.3, 2.5), (6.4, 2.0)):
        with pytest.raises(ConfigError, match="leave no room for the curves"):
            svg(folder, size=size)
    picture = svg(folder)
    height = re.search(r'height="([\d.]+)pt"', picture)
    assert height
    assert float(height[1]) > 4 * 72


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a"], "1 label for 2 lines"),
        (["a", "b", "c"], "3 labels for 2 lines"),
        (["a", "a "], "the same label"),
        (["a", " "], "has none"),
    ],
)
def test_each_line_needs_a_label_of_its_own(labels: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        svg(folder_of(tmp_path), labels=labels)
    assert "`variant-0`, `variant-1`" in str(error.value)


@pytest.mark.parametrize(
    ("options", "rejected"),
    [
        (["-o", "a.csv", "--title", "T", "--size", "4x4"], ["--title", "--size"]),
        (["-o", "a.csv", "--no-caption", "--no-threshold", "--log"], ["--no-caption", "--log", "--no-threshold"]),
        (["-o", "a.csv", "--no-log"], ["--log"]),
        (["--show", "--size", "4x4", "--no-threshold", "--title", "T"], ["--size", "--no-threshold"]),
        (["--show", "-o", "a.csv", "--title", "T", "--size", "4x4"], ["--size"]),
        (["--show", "-o", "a.svg", "--title", "T", "--size", "4x4", "--no-threshold", "--log"], []),
    ],
)
def test_an_option_without_an_effect_is_rejected(options: list[str], rejected: list[str], tmp_path: Path) -> None:
    folder_of(tmp_path)
    done = pgcli("plot", "runs", *options, cwd=tmp_path, code=2 if rejected else 0)
    assert re.findall(r"^error: (--[\w-]+): has no effect on", done.stderr, re.MULTILINE) == rejected


def test_a_caption_has_the_number_of_runs_of_each_line_if_they_differ(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"runs/many/{seed}", [1, 2], seed=seed, name="many")
    write_run(tmp_path / "runs/one", [1, 2], name="one")
    words = caption(*read_lines([tmp_path / "runs"], *DRAWN))
    assert "Lines: mean over n runs, n = 3 (many), 1 (one)." in words
    assert "Single runs: band: ± one standard error over 100 evaluation episodes." in words


def test_the_terminal_shows_labels_title_and_a_logarithmic_axis(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    appearance = Appearance(labels=["first", "second"], title="Two policies", caption=False, log=True)
    picture = show([folder], *DRAWN, width=80, color=False, ascii_only=True, appearance=appearance)
    rows = picture.split("\n")
    assert rows[0].strip() == "Two policies: mean return of 100 evaluation episodes"
    assert rows[-2:] == ["* first", "x second"]
    assert [row[:3].strip() for row in rows if row[3:4] == "+" and row[:3].strip()] == ["100", "10", "1"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 500, [1, 10, 100]),
        (1, 30, [1, 2, 5, 10, 20]),
        (1e-9, 1e3, [1e-9, 1e-6, 1e-3, 1, 1e3]),
        (3, 4, [3, 4]),
    ],
)
def test_logarithmic_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high, 6) == pytest.approx(expected)
