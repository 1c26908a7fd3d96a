"""Charts of an HTML page: curves with bands as SVG paths, and their values.

The script of the page shows the values at the pointer, or at the place that the arrow keys select.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pgcli.report.curves import Drawing, Line, caption, is_logarithmic, thousands, x_label, y_label
from pgcli.report.plots import common_threshold, with_markers
from pgcli.report.statistics import Aggregate, Array

SIDE = 1000  # units of a chart's viewBox in both directions; it is stretched to its place in the page
MOST_POINTS = 500  # of a series
FEWEST_POINTS = 30
PAGE_POINTS = 12_000  # of all charts of a page: about 70 bytes each
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """One curve of a chart.

    `number` selects its colour and dashes, the same in all charts of a group. The band is nan where there is none.
    """

    number: int
    label: str
    x: Array
    center: Array
    low: Array
    high: Array

    def thinned(self, points: int) -> Series:
        """Return at most this many points, evenly spaced, with both ends."""
        if len(self.x) <= points:
            return self
        kept = np.linspace(0, len(self.x) - 1, points).round().astype(np.int64)
        arrays = {name: getattr(self, name)[kept] for name in ("x", "center", "low", "high")}
        return replace(self, **arrays)


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: its position in percent, and its label."""

    at: str
    label: str


@dataclass(frozen=True)
class Drawn:
    """A series as SVG: its line, its band, and the points that get a marker, in percent."""

    number: int
    label: str
    line: str
    band: str
    markers: list[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A chart for the templates: texts, ticks, drawn series, and `data` for the script.

    `rule` is a horizontal line with its label, such as a reward threshold.
    """

    title: str
    caption: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Drawn]
    rule: Tick | None
    data: dict[str, Any]

    @property
    def summary(self) -> str:
        """The chart in words, for readers who do not see it."""
        ends = ", ".join(f"{one['label']} ends at {one['y'][-1]:.4g}" for one in self.data["series"][:10])
        return f"{self.title} over {self.x_label}. {ends}."


@dataclass(frozen=True)
class _Scale:
    """The range of an axis, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False

    def place(self, values: Array) -> Array:
        """Return positions from 0 to 1; values that a logarithmic axis cannot show are at its lower end."""
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        return (values - low) / (high - low)

    def ticks(self, *, down: bool) -> list[Tick]:
        """Return the ticks within the range; `down` if positions begin at the upper end."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        locator = LogLocator(numticks=_TICKS + 1) if self.log else MaxNLocator(_TICKS, steps=[1, 2, 2.5, 5, 10])
        values = np.asarray(locator.tick_values(self.low, self.high), dtype=np.float64)
        values = values[(values >= self.low) & (values <= self.high)]
        return [
            Tick(_percent(1 - at if down else at), thousands(float(f"{value:.6g}")))
            for value, at in zip(values.tolist(), self.place(values).tolist(), strict=True)
        ]


def points_for(series: int) -> int:
    """Return the number of points of each of the series of a page."""
    return max(FEWEST_POINTS, min(MOST_POINTS, PAGE_POINTS // max(series, 1)))


def curve_chart(lines: Sequence[Line], drawing: Drawing, points: int, numbers: dict[str, int]) -> Chart:
    """Return the chart of the curves that `pgcli plot` draws.

    `numbers` has the number of each label in its group; new labels are added.
    """
    name = y_label(lines, drawing)
    threshold = common_threshold(lines) if drawing.is_return else None
    where = " in training" if drawing.is_return and not drawing.of_evaluations else ""
    return draw(
        [series_of(numbers.setdefault(line.label, len(numbers)), line.label, line.curve) for line in lines],
        f"{name[0].upper()}{name[1:]}{where}",
        x_label(drawing),
        points,
        text=caption(lines, drawing),
        log=is_logarithmic(lines, drawing),
        rule=None if threshold is None else (threshold, f"solved: {threshold:g}"),
    )


def series_of(number: int, label: str, curve: Aggregate) -> Series:
    """Return an aggregate of runs as a series."""
    return Series(number, label, curve.x, curve.center, curve.low, curve.high)


def draw(
    series: Sequence[Series],
    title: str,
    x_name: str,
    points: int,
    *,
    text: str = "",
    log: bool = False,
    rule: tuple[float, str] | None = None,
    steps: bool = False,
) -> Chart:
    """Return a chart of at least one series, each with at least one point.

    `steps` draws a value as constant until the next x.
    """
    thinned = [one.thinned(points) for one in series]
    if any(len(one.x) > points for one in series):
        text = f"{text} Drawn are {points} points of each long curve.".strip()
    x = _Scale(*_widened(float(min(one.x[0] for one in thinned)), float(max(one.x[-1] for one in thinned)), 0))
    y = _y_scale(thinned, log, rule)
    line = None
    if rule is not None and y.low <= rule[0] <= y.high:
        line = Tick(_percent(1 - float(y.place(np.array([rule[0]]))[0])), rule[1])
    return Chart(
        title,
        text,
        x_name,
        x.ticks(down=False),
        y.ticks(down=True),
        [_drawn(one, x, y, steps) for one in thinned],
        line,
        {
            "title": title,
            "x": [x.low, x.high],
            "y": [y.low, y.high],
            "log": log,
            "series": [
                {"number": one.number, "label": one.label}
                | {name: _numbers(values) for name, values in (("x", one.x), ("y", one.center))}
                | {name: _numbers(getattr(one, name)) for name in ("low", "high") if np.isfinite(one.low).any()}
                for one in thinned
            ],
        },
    )


def _y_scale(series: Sequence[Series], log: bool, rule: tuple[float, str] | None) -> _Scale:
    """Return the range of all curves and of their bands, as far as these leave the curves their shape."""
    centers = np.concatenate([one.center for one in series])
    bands = np.concatenate([edge for one in series for edge in (one.low, one.high)])
    bands = bands[np.isfinite(bands)]
    if log:
        positive = centers[centers > 0]
        low, high = float(positive.min()), float(positive.max())
        low = min([low, *bands[bands > low / 10].tolist()])
        high = max([high, *bands[bands < 10 * high].tolist()])
        return _Scale(low / 1.2, high * 1.2, log=True)
    low, high = float(centers.min()), float(centers.max())
    span = high - low
    if len(bands):
        room = span / 2 or math.inf
        low, high = max(low - room, min(low, float(bands.min()))), min(high + room, max(high, float(bands.max())))
    if rule is not None and low - span <= rule[0] <= high + 2 * span:
        low, high = min(low, rule[0]), max(high, rule[0])
    return _Scale(*_widened(low, high, 0.04))


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Return the range with a margin; a range without width gets one."""
    margin = share * (high - low) if high > low else 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _drawn(one: Series, x: _Scale, y: _Scale, steps: bool) -> Drawn:
    across, up = x.place(one.x), 1 - y.place(one.center)
    line = " ".join(_polylines(across, up, steps))
    band = " ".join(_bands(across, 1 - y.place(one.low), 1 - y.place(one.high), steps))
    dots = np.flatnonzero(np.zeros(0) if steps else with_markers(one.center))
    return Drawn(one.number, one.label, line, band, [(_percent(across[i]), _percent(up[i])) for i in dots.tolist()])


def _polylines(x: Array, y: Array, steps: bool) -> Iterator[str]:
    for part in _finite_parts(y):
        yield f"M{_path(*_corners(x[part], y[part], steps))}"


def _bands(x: Array, low: Array, high: Array, steps: bool) -> Iterator[str]:
    for part in _finite_parts(low + high):
        across, lower = _corners(x[part], low[part], steps)
        _, upper = _corners(x[part], high[part], steps)
        yield f"M{_path(across, upper)}L{_path(across[::-1], lower[::-1])}Z"


def _finite_parts(values: Array) -> list[slice]:
    """Return the slices of neighbouring finite values."""
    edges = np.flatnonzero(np.diff(np.pad(np.isfinite(values), 1).astype(np.int8)))
    return [slice(start, stop) for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def _corners(x: Array, y: Array, steps: bool) -> tuple[Array, Array]:
    """Return the points of a curve, or the corners of a stairway."""
    return (np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]) if steps else (x, y)


def _path(x: Array, y: Array) -> str:
    """Return coordinates of a path; those far outside are cut, because renderers limit numbers."""
    across, up = (np.clip(SIDE * values, -9 * SIDE, 9 * SIDE).round(1) for values in (x, y))
    return " ".join(f"{a:g},{b:g}" for a, b in zip(across.tolist(), up.tolist(), strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _numbers(values: Array) -> list[float | int | None]:
    """Return values with six digits; None for no number."""
    rounded = [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]
