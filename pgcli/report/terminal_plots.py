"""Learning curves in the terminal, drawn by plotext without matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgcli.report.curves import Drawing, Line, caption, legend, read_lines, shortened, thousands, x_label, y_label
from pgcli.system.packages import require

NARROWEST, WIDEST = 40, 200  # columns
_COLORS = (4, 1, 2, 5, 6, 3)  # terminal palette: blue, red, green, magenta, cyan, yellow
_LETTERS = "*x+o#%@&"  # markers of lines without colour


def show(
    run_dirs: Sequence[Path],
    x: str,
    y: str,
    stat: str,
    band: str,
    smooth: int,
    *,
    width: int,
    color: bool,
    ascii_only: bool,
) -> str:
    """Draw the learning curves of run directories in `width` columns, limited to 40 to 200.

    Raises: UsageError without the extra; ConfigError for a bad option or column; RunDirectoryError.
    """
    require("plotext", "terminal", "--show", ", or write a file with -o")
    lines, drawing = read_lines(run_dirs, x, y, stat, band, smooth)
    width = min(max(width, NARROWEST), WIDEST)
    picture = _drawn(lines, drawing, width, color, ascii_only)
    text = f"{picture}\n{textwrap.fill(caption(lines, drawing), width)}"
    return "".join(_in_ascii(letter) for letter in text) if ascii_only else text


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return at most `count` multiples of 1, 2 or 5 times a power of ten between two numbers."""
    if not low < high:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < count:
            break
    return [number * step for number in range(first, last + 1)]


def _drawn(lines: Sequence[Line], drawing: Drawing, width: int, color: bool, ascii_only: bool) -> str:
    from plotext import figure, terminal

    terminal.limit(False, False)  # the width is given
    figure.clear()
    figure.theme("colorless")  # background and axes have the terminal's colours
    figure.plot_size(width, min(max(width // 4, 12), 30))
    labels, below = legend(lines), list[str]()  # the legend, below the picture
    letters = ascii_only or (len(lines) > 1 and not color)
    for number, line in enumerate(lines):
        curve, paint = line.curve, _COLORS[number % len(_COLORS)] if color else None
        marker = _marker(_LETTERS[number % len(_LETTERS)] if letters else "hd", paint)
        for edge in (curve.low, curve.high):
            there = np.isfinite(edge)
            if there.any():
                dots = figure.signal(curve.x[there].tolist(), edge[there].tolist(), marker=_marker(".", paint))
                figure.draw(dots)
        figure.draw(figure.signal(curve.x.tolist(), curve.center.tolist(), marker=marker).lines())
        symbol = _LETTERS[number % len(_LETTERS)] if letters else "▚"
        symbol = symbol if paint is None else f"\x1b[38;5;{paint}m{symbol}\x1b[0m"
        below.append(f"{symbol} {shortened(labels[number], width - 2)}")
    xs = np.concatenate([line.curve.x for line in lines])
    ys = np.concatenate([part for line in lines for part in (line.curve.center, line.curve.low, line.curve.high)])
    ys = ys[np.isfinite(ys)]
    for axis, values, count in (("x", xs, max(width // 16, 3)), ("y", ys, 6)):
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = low - 1, high + 1
        marks = ticks(low, high, count)
        figure.ruler(axis).lim(low, high)
        figure.ruler(axis).ticks(marks, [thousands(float(f"{mark:.6g}")) for mark in marks])
    name = lines[0].label if len(lines) == 1 else f"{len(lines)} experiments"
    figure.title(shortened(f"{name}: {y_label(lines, drawing)}", width - 2))
    figure.label(x_label(drawing), "x")
    text: str = figure.build().string(colorless=not color)
    rows = [row.rstrip() for row in text.rstrip("\n").split("\n")]
    return "\n".join([*rows, *(below if len(lines) > 1 else [])])


def _marker(symbol: str, color: int | None) -> object:
    import plotext

    return symbol if color is None else plotext.marker(symbol, color)


def _in_ascii(letter: str) -> str:
    """Replace a character that a terminal without Unicode cannot show."""
    if letter.isascii():
        return letter
    return {"─": "-", "│": "|", "…": "~", "±": "+-"}.get(letter, "+" if "\u2500" <= letter <= "\u257f" else "?")
