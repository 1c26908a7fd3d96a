"""Learning curves as files: a matplotlib figure, or its numbers as CSV."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgcli.errors import ConfigError, Problem, RunDirectoryError
from pgcli.records import Cell
from pgcli.report.appearance import Appearance
from pgcli.report.curves import (
    Drawing,
    Line,
    caption,
    is_logarithmic,
    legend,
    read_lines,
    smallest_shown,
    thousands,
    x_label,
    y_label,
)
from pgcli.report.statistics import Array
from pgcli.runs.information import read_information
from pgcli.runs.outputs import CURVE_COLUMNS, check_output, write_output
from pgcli.runs.tables import as_csv
from pgcli.system.streams import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DEFAULT = Appearance()
# Okabe & Ito (2008), distinct for common kinds of colour blindness; without yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = (  # as many as colours: lengths of strokes and gaps, in line widths
    *("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))),
    *((0, (2.5, 1.5)), (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5)), (0, (11, 2))),
)
_MARKERS = "os^DvPX"
_FEW_POINTS = 15  # a line with at most this many has markers
_HANDLE = 10  # letters that a label's line needs in the legend
_LOWEST = 0.6  # inches, of the curves
_WIDTH, _HEIGHT = 6.4, 4.0  # inches; higher by default if the legend and the caption are long
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
    "svg.fonttype": "none",  # text stays text
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
    appearance: Appearance = _DEFAULT,
) -> Path:
    """Draw the learning curves of run directories, or of folders of them, and return the file.

    Runs that differ only in their seed are one line. The suffix of `output` selects the format: .png, .svg, .pdf, or
    .csv for the numbers. The default `output` is `plots/<y>.png` in the only folder given, or in the current folder.
    Figures of pgcli are replaced; other files only with `overwrite`.

    `appearance` changes how a figure looks; of a CSV file, only the labels.

    Raises: ConfigError for a bad option or column; RunDirectoryError if a file cannot be read or written, or no run has
        a number to draw.
    """
    lines, drawing = read_lines(run_dirs, x, y, stat, band, smooth, output, appearance)
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
        content = _as_figure(lines, drawing, appearance, output.suffix.lower()[1:])
    write_output(output, content, overwrite=overwrite)
    return output


def figure(run_dirs: Sequence[Path], x: str, y: str, suffix: str) -> bytes:
    """Return a figure of learning curves without writing a file. Raises: RunDirectoryError, as `plot`."""
    lines, drawing = read_lines(run_dirs, x, y, "mean", "ci95", 1, None, _DEFAULT)
    return _as_figure(lines, drawing, _DEFAULT, suffix)


def _as_csv(lines: Sequence[Line]) -> str:
    rows: list[list[Cell]] = [[*CURVE_COLUMNS]]
    for line in lines:
        c = line.curve
        for x, n, *values in zip(*(a.tolist() for a in (c.x, c.n, c.center, c.low, c.high)), strict=True):
            rows.append([line.label, f"{x:.15g}", n, *(None if math.isnan(value) else value for value in values)])
    return as_csv(rows)


def _as_figure(lines: Sequence[Line], drawing: Drawing, appearance: Appearance, suffix: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    width, height = appearance.size or (_WIDTH, 0.0)
    title, text = appearance.title, ""
    labels = [_wrapped(label, max(_letters(width) - _HANDLE, 10)) for label in legend(lines)]
    if appearance.caption:
        text = _wrapped(caption(lines, drawing), 20 * width)
    height = height or max(_HEIGHT, 2.8 + 0.17 * "\n".join(labels).count("\n") + 0.11 * text.count("\n"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        draw_curves(axes, lines, labels, is_logarithmic(lines, drawing))
        _draw_axes(axes, lines, drawing, appearance)
        axes.set_xlabel(plain(x_label(drawing)))
        axes.set_ylabel(_wrapped(y_label(lines, drawing), 10 * height))
        if appearance.has_legend(len(lines)):
            _draw_legend(axes, labels, title, width)
        elif title != "":
            axes.set_title(_wrapped(lines[0].label if title is None else title, 12 * width), loc="left")
        if text:
            figure.supxlabel(text, fontsize=6.5, color="0.35", x=0.01, ha="left")
        return _saved(figure, suffix)


def _wrapped(text: str, letters: float) -> str:
    """Break a text into lines, but not between a number and its unit or its label."""
    tied = re.sub(r"(?<=\d) (?=[%(])", "\xa0", plain(text))
    return textwrap.fill(tied, int(letters)).replace("\xa0", " ")


def _saved(figure: Figure, suffix: str) -> bytes:
    """Return the content of a figure's file.

    Raises: ConfigError if its texts leave no room for the curves.
    """
    stream = io.BytesIO()
    metadata: dict[str, Any] = {  # the marks that `check_output` looks for
        "png": {"Software": "pgcli"},
        "svg": {"Date": None, "Creator": "pgcli"},
        "pdf": {"CreationDate": None, "Creator": "pgcli"},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an emoji becomes a box
        warnings.filterwarnings("error", message="constrained_layout not applied")
        width, height = figure.get_size_inches()
        try:
            figure.savefig(stream, format=suffix, dpi=200, metadata=metadata[suffix])
            room = height * figure.axes[0].get_position().height
        except UserWarning:
            room = 0.0
    if room < _LOWEST:
        what = f"{width:g}x{height:g} inches leave no room for the curves"
        raise ConfigError([Problem("--size", what, "choose a larger --size, or add --no-caption")])
    return stream.getvalue()


def draw_curves(axes: Axes, lines: Sequence[Line], labels: Sequence[str], log: bool) -> None:
    """Draw lines and bands.

    Colours, dashes and markers differ, so that lines are distinct in grey print.
    """
    for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
        c, color = line.curve, COLORS[number % len(COLORS)]
        center = np.where(c.center > 0, c.center, np.nan) if log else c.center
        marked = np.flatnonzero(with_markers(center)).tolist()
        axes.plot(
            c.x,
            center,
            linestyle=DASHES[(number + number // len(COLORS)) % len(DASHES)],
            marker=_MARKERS[number % len(_MARKERS)] if marked else "",
            markevery=marked,
            markersize=4,
            color=color,
            linewidth=1.5,
            label=label,
        )
        axes.fill_between(c.x, c.low, c.high, color=color, alpha=0.2, linewidth=0)


def with_markers(center: Array) -> NDArray[np.bool_]:
    """Return which points get a marker.

    These are all points of a short line, and those without a neighbour, which draw no line.
    """
    drawn = np.isfinite(center)
    if len(center) <= _FEW_POINTS:
        return drawn
    around = np.pad(drawn, 1)
    return np.asarray(drawn & ~around[:-2] & ~around[2:])


def _letters(width: float) -> int:
    """Return the number of letters of a legend that fit beside each other in a figure."""
    return int(15 * (width - 0.6))


def _draw_legend(axes: Axes, labels: Sequence[str], title: str | None, width: float) -> None:
    """Draw the legend and the title above the axes, where they hide no curve."""
    columns = _letters(width) // (max(map(len, labels)) + _HANDLE)
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        handlelength=3.2,
        ncols=min(max(columns, 1), len(labels)),
        title=_wrapped(title or "", 12 * width),
        title_fontsize=10,
        alignment="left",
    )


def _draw_axes(axes: Axes, lines: Sequence[Line], drawing: Drawing, appearance: Appearance) -> None:
    """Draw the reward threshold; set the scales and the ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    plain_numbers = FuncFormatter(lambda value, _: thousands(float(f"{value:.6g}")))
    log = is_logarithmic(lines, drawing)
    smallest = [smallest_shown(lines)] if log else []
    threshold = common_threshold(lines) if appearance.threshold and drawing.is_return else None
    if threshold is not None and _is_near(threshold, axes, smallest):
        _draw_threshold(axes, threshold)
        smallest += [threshold / 1.2]
    if log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(smallest))
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter(plain_numbers)
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.01)
    ticks = max(2, min(6, int(1.6 * (appearance.size or (_WIDTH,))[0])))  # their labels must not overlap
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10], integer=drawing.x != "seconds"))
    axes.xaxis.set_major_formatter(plain_numbers)


def _is_near(threshold: float, axes: Axes, smallest: Sequence[float]) -> bool:
    """Return whether the threshold is near enough to leave the curves their shape.

    `smallest` is the lower end of a logarithmic axis.
    """
    low, high = axes.get_ylim()
    if smallest:
        return smallest[0] / 10 <= threshold <= 10 * high
    return low - (high - low) <= threshold <= high + 2 * (high - low)


def _draw_threshold(axes: Axes, threshold: float) -> None:
    axes.axhline(threshold, color="0.5", linewidth=0.8, zorder=1)
    axes.annotate(
        f"solved: {threshold:g}",
        (0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(2, -3),
        textcoords="offset points",
        va="top",
        fontsize=7,
        color="0.35",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )


def common_threshold(lines: Sequence[Line]) -> float | None:
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
