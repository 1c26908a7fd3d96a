"""Learning curves as files: a matplotlib figure, or its numbers as CSV."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgcli.errors import RunDirectoryError
from pgcli.records import COLUMNS, Cell
from pgcli.report.curves import Drawing, Line, caption, legend, read_lines, thousands, x_label, y_label
from pgcli.runs.information import read_information
from pgcli.runs.outputs import CURVE_COLUMNS, check_output, write_output
from pgcli.runs.tables import as_csv
from pgcli.system.streams import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RETURNS = {"return_mean", "return_median", "return_min", "return_max"}  # in the unit of a reward threshold
# Okabe & Ito (2008), distinct for common kinds of colour blindness; without yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # TrueType: publishers reject Type 3
    "svg.hashsalt": "pgcli",  # reproducible ids
}


def plot(
    run_dirs: Sequence[Path],
    x: str,
    y: str,
    stat: str,
    band: str,
    smooth: int,
    output: Path | None,
    *,
    overwrite: bool = False,
) -> Path:
    """Draw the learning curves of run directories, or of folders of them, and return the file.

    Runs that differ only in their seed are one line. The suffix of `output` selects the format: .png, .svg, .pdf, or
    .csv for the numbers. The default `output` is `plots/<y>.png` in the only folder given, or in the current folder.
    Figures of pgcli are replaced; other files only with `overwrite`.

    Raises: ConfigError for a bad option or column; RunDirectoryError if a file cannot be read or written, or no run has
        a number to draw.
    """
    lines, drawing = read_lines(run_dirs, x, y, stat, band, smooth, output)
    if output is None:
        folder = (run_dirs[0] if len(run_dirs) == 1 else Path()) / "plots"
        if folder.is_symlink():
            raise RunDirectoryError(f"{folder}: is a link, not a folder", "choose a file with -o")
        output = folder / f"{y}.png"
        overwrite = overwrite or (len(run_dirs) == 1 and not output.is_symlink())  # a folder of pgcli
    check_output(output, overwrite=overwrite)
    if output.suffix.lower() == ".csv":
        content = _as_csv(lines).encode()
    else:
        content = _as_figure(lines, drawing, output.suffix.lower()[1:])
    write_output(output, content, overwrite=overwrite)
    return output


def _as_csv(lines: Sequence[Line]) -> str:
    rows: list[list[Cell]] = [[*CURVE_COLUMNS]]
    for line in lines:
        c = line.curve
        for x, n, *values in zip(*(a.tolist() for a in (c.x, c.n, c.center, c.low, c.high)), strict=True):
            rows.append([line.label, f"{x:.15g}", n, *(None if math.isnan(value) else value for value in values)])
    return as_csv(rows)


def _as_figure(lines: Sequence[Line], drawing: Drawing, suffix: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for number, (line, label) in enumerate(zip(lines, legend(lines), strict=True)):
            color = COLORS[number % len(COLORS)]
            style = _LINE_STYLES[number // len(COLORS) % len(_LINE_STYLES)]
            c = line.curve
            dot = "o" if len(c.x) == 1 else ""  # a single point draws no line
            axes.plot(c.x, c.center, style, marker=dot, color=color, linewidth=1.5, label=plain(label))
            axes.fill_between(c.x, c.low, c.high, color=color, alpha=0.2, linewidth=0)
        threshold = _threshold(lines) if drawing.column in _RETURNS else None
        if threshold is not None:
            _draw_threshold(axes, threshold)
        if drawing.column in COLUMNS and COLUMNS[drawing.column].metric.logarithmic and _positive(lines):
            axes.set_yscale("log")
        axes.margins(x=0.01)
        axes.set_xlabel(plain(x_label(drawing)))
        axes.set_ylabel(plain(y_label(lines, drawing)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=drawing.x != "seconds"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
        if len(lines) > 1:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)  # hides no curve
        else:
            axes.set_title(plain(lines[0].label), loc="left")
        figure.supxlabel(
            plain(textwrap.fill(caption(lines, drawing), 130)), fontsize=6.5, color="0.35", x=0.01, ha="left"
        )
        stream = io.BytesIO()
        metadata: dict[str, Any] = {  # the marks that `check_output` looks for
            "png": {"Software": "pgcli"},
            "svg": {"Date": None, "Creator": "pgcli"},
            "pdf": {"CreationDate": None, "Creator": "pgcli"},
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an emoji becomes a box
            figure.savefig(stream, format=suffix, dpi=200, metadata=metadata[suffix])
    return stream.getvalue()


def _positive(lines: Sequence[Line]) -> bool:
    drawn = (values[np.isfinite(values)] for line in lines for values in (line.curve.center, line.curve.low))
    return all((values > 0).all() for values in drawn)


def _draw_threshold(axes: Axes, threshold: float) -> None:
    """Draw the reward threshold, unless it is so far away that it would flatten the curves."""
    low, high = axes.get_ylim()
    if low - (high - low) <= threshold <= high + 2 * (high - low):
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"solved: {threshold:g}",
            (1, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color="0.35",
        )


def _threshold(lines: Sequence[Line]) -> float | None:
    """Return the reward threshold, if it is the same for all runs."""
    found = {_threshold_of(run.path) for line in lines for run in line.runs}
    return found.pop() if len(found) == 1 else None


def _threshold_of(path: Path) -> float | None:
    if not (path / "run.json").exists():
        return None
    value = read_information(path).get("reward_threshold")
    return None if value is None else float(value)


def plain(text: str) -> str:
    """Escape unprintable characters, and the dollar sign, which starts a formula in matplotlib."""
    return printable(text).replace("$", r"\$")
