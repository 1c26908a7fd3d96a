"""Learning curves in the terminal, drawn by plotext without matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgcli.report.appearance import Appearance
from pgcli.report.curves import (
    Drawing,
    Line,
    caption,
    is_logarithmic,
    legend,
    read_lines,
    shortened,
    smallest_shown,
    thousands,
    x_label,
    y_label,
)
from pgcli.report.statistics import Array
from pgcli.system.packages import require
from pgcli.system.streams import printable

_DEFAULT = Appearance()
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
    appearance: Appearance = _DEFAULT,
) -> str:
    """Draw the learning curves of run directories in `width` columns, limited to 40 to 200.

    Of `appearance`, labels, title, caption and the logarithmic axis have an effect.

    Raises: UsageError without the extra; ConfigError for a bad option or column; RunDirectoryError.
    """
    require("plotext", "terminal", "--show", ", or write a file with -o")
    lines, drawing = read_lines(run_dirs, x, y, stat, band, smooth, None, appearance)
    width = min(max(width, NARROWEST), WIDEST)
    text = _drawn(lines, drawing, appearance, width, color, ascii_only)
    if appearance.caption:
        text += f"\n{textwrap.fill(caption(lines, drawing), width)}"
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


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten between two positive numbers.

    Their multiples by 2 and 5 are included if at most `count` marks result.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    marks = [mark for mark in fine if low <= mark <= high]
    if len(marks) > count:
        tens = [10.0**power for power in powers if low <= 10.0**power <= high]
        marks = tens[:: math.ceil(len(tens) / count)]
    return marks or [low, high]


def _drawn(
    lines: Sequence[Line], drawing: Drawing, appearance: Appearance, width: int, color: bool, ascii_only: bool
) -> str:
    from plotext import figure, terminal

    terminal.limit(False, False)  # the width is given
    figure.clear()
    figure.theme("colorless")  # background and axes have the terminal's colours
    figure.plot_size(width, min(max(width // 4, 12), 30))
    labels, below = legend(lines), list[str]()  # the legend, below the picture
    letters = ascii_only or (len(lines) > 1 and not color)
    log = is_logarithmic(lines, drawing)
    for number, line in enumerate(lines):
        curve, paint = line.curve, _COLORS[number % len(_COLORS)] if color else None
        marker = _marker(_LETTERS[number % len(_LETTERS)] if letters else "hd", paint)
        for edge in (curve.low, curve.high):
            x, y = _on_scale(curve.x, edge, log)
            if x:
                figure.draw(figure.signal(x, y, marker=_marker(".", paint)))
        x, y = _on_scale(curve.x, curve.center, log)
        if x:
            figure.draw(figure.signal(x, y, marker=marker).lines())
        symbol = _LETTERS[number % len(_LETTERS)] if letters else "▚"
        symbol = symbol if paint is None else f"\x1b[38;5;{paint}m{symbol}\x1b[0m"
        below.append(f"{symbol} {shortened(labels[number], width - 2)}")
    xs = np.concatenate([line.curve.x for line in lines])
    ys = np.concatenate([part for line in lines for part in (line.curve.center, line.curve.low, line.curve.high)])
    ys = ys[np.isfinite(ys)]
    _draw_ruler("x", float(xs.min()), float(xs.max()), max(width // 16, 3), log=False)
    _draw_ruler("y", smallest_shown(lines) if log else float(ys.min()), float(ys.max()), 6, log=log)
    name = lines[0].label if len(lines) == 1 else f"{len(lines)} experiments"
    names = [name if appearance.title is None else printable(appearance.title), y_label(lines, drawing)]
    figure.title(shortened(": ".join(filter(None, names)), width - 2))
    figure.label(x_label(drawing), "x")
    text: str = figure.build().string(colorless=not color)
    rows = [row.rstrip() for row in text.rstrip("\n").split("\n")]
    return "\n".join([*rows, *(below if appearance.has_legend(len(lines)) else [])])


def _on_scale(x: Array, y: Array, log: bool) -> tuple[list[float], list[float]]:
    """Return the points that an axis can show; y of a logarithmic axis is its power of ten."""
    shown = np.isfinite(y) & (y > 0 if log else True)
    return x[shown].tolist(), (np.log10(y[shown]) if log else y[shown]).tolist()


def _draw_ruler(axis: str, low: float, high: float, count: int, log: bool) -> None:
    from plotext import figure

    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    marks = log_ticks(low, high, count) if log else ticks(low, high, count)
    names = [thousands(float(f"{mark:.6g}")) for mark in marks]
    if log:
        low, high, marks = math.log10(low), math.log10(high), [math.log10(mark) for mark in marks]
    figure.ruler(axis).lim(low, high)
    figure.ruler(axis).ticks(marks, names)


def _marker(symbol: str, color: int | None) -> object:
    import plotext

    return symbol if color is None else plotext.marker(symbol, color)


def _in_ascii(letter: str) -> str:
    """Replace a character that a terminal without Unicode cannot show."""
    if letter.isascii():
        return letter
    return {"─": "-", "│": "|", "…": "~", "±": "+-"}.get(letter, "+" if "\u2500" <= letter <= "\u257f" else "?")
