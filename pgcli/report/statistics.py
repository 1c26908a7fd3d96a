"""Curves over runs: a common grid, a statistic at each of its points, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from pgcli.config.choices import Band, Stat

Array = NDArray[np.float64]

MAX_POINTS = 1000  # more than a figure has pixels for
RESAMPLES = 10_000
_BLOCK = 4_000_000  # resampled numbers held at once: 32 MB


@dataclass(frozen=True)
class Curve:
    """One run's curve, all [P]: x increases strictly, y is finite.

    `standard_error` is that of each y over the episodes it averages, nan where unknown; None if y is no such average.
    `final`: training is over, so that the last value goes on to hold.
    """

    x: Array
    y: Array
    standard_error: Array | None = None
    final: bool = False


@dataclass(frozen=True)
class Aggregate:
    """Several curves as one, all [P]: `n` curves count at x; low and high are nan where there is no interval."""

    x: Array
    n: NDArray[np.int64]
    center: Array
    low: Array
    high: Array
    carried: bool  # a finished run's last value was used beyond its last point
    interpolated: bool
    thinned: bool


def trailing_mean(values: Array, window: int) -> Array:
    """Average each value with the `window` - 1 before it; the first ones with as many as there are."""
    return _trailing_sum(values, window) / _window_sizes(len(values), window)


def smoothed(curve: Curve, window: int) -> Curve:
    """Replace each value by its trailing mean. Points average different episodes, so their errors add up squared."""
    if window == 1:
        return curve
    error = curve.standard_error
    if error is not None:
        error = np.sqrt(_trailing_sum(error**2, window)) / _window_sizes(len(error), window)
    return Curve(curve.x, trailing_mean(curve.y, window), error, curve.final)


def aggregate(curves: Sequence[Curve], stat: Stat, band: Band) -> Aggregate:
    """Draw one curve through several, on the union of their x.

    It begins where all of them have begun. Between its points a curve is a straight line; after its last one it
    counts with its last value if it is final. A single curve's band is its own standard error, whichever is asked.
    """
    every_x = np.unique(np.concatenate([curve.x for curve in curves]))
    begun = every_x >= max(curve.x[0] for curve in curves)  # a mean over fewer would jump as others join
    every_x = every_x[begun] if begun.any() else every_x
    grid = _thin(every_x)
    values = np.stack([_values_at(curve, grid) for curve in curves], axis=1)  # [P, curves]
    counts = ~np.isnan(values)
    n = counts.sum(1)
    center, low, high = (np.full(len(grid), np.nan) for _ in range(3))
    for count in np.unique(n).tolist():
        rows = n == count
        samples = values[rows][counts[rows]].reshape(-1, count)
        center[rows] = _statistic(samples, stat)
        if count > 1:
            low[rows], high[rows] = _interval(samples, stat, band)
    if len(curves) == 1 and band != "none" and curves[0].standard_error is not None:
        error = np.interp(grid, curves[0].x, curves[0].standard_error)
        low, high = center - error, center + error
    return Aggregate(
        grid,
        n,
        center,
        low,
        high,
        carried=any(curve.final and curve.x[-1] < grid[-1] for curve in curves),
        interpolated=any(_between_points(curve, grid) for curve in curves),
        thinned=len(grid) < len(every_x),
    )


def bootstrap_interval(samples: Array, stat: Stat) -> tuple[Array, Array]:
    """Compute the 95 % percentile bootstrap interval of `stat` over the columns of each row.

    Every row sees the same resamples, so that a row's interval depends on nothing but that row.
    Args: samples, [P, n]. Returns: low and high, [P]. Source: Efron & Tibshirani (1993), section 13.3.
    """
    from scipy import stats

    rows = max(1, _BLOCK // (RESAMPLES * samples.shape[1]))
    intervals = [
        stats.bootstrap(
            (samples[start : start + rows],),
            lambda x, axis: _statistic(x, stat, axis),
            n_resamples=RESAMPLES,
            vectorized=True,
            axis=-1,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        for start in range(0, len(samples), rows)
    ]
    return (
        np.concatenate([interval.low for interval in intervals]),
        np.concatenate([interval.high for interval in intervals]),
    )


def _statistic(samples: Array, stat: Stat, axis: int = -1) -> Array:
    match stat:
        case "mean":
            value: Any = samples.mean(axis=axis)
        case "median":
            value = np.median(samples, axis=axis)
        case "iqm":
            from scipy import stats

            value = stats.trim_mean(samples, 0.25, axis=axis)
        case _:
            assert_never(stat)
    return np.asarray(value)


def _interval(samples: Array, stat: Stat, band: Band) -> tuple[Array, Array]:
    match band:
        case "ci95":
            return bootstrap_interval(samples, stat)
        case "standard_error":
            error = samples.std(axis=1, ddof=1) / math.sqrt(samples.shape[1])
            return samples.mean(1) - error, samples.mean(1) + error
        case "none":
            nothing = np.full(len(samples), np.nan)
            return nothing, nothing
        case _:
            assert_never(band)


def _values_at(curve: Curve, grid: Array) -> Array:
    """Give y at each x of the grid, nan where the curve does not count; exact at the curve's own points."""
    last = curve.y[-1] if curve.final else np.nan
    return np.interp(grid, curve.x, curve.y, left=np.nan, right=last)


def _between_points(curve: Curve, grid: Array) -> bool:
    inside = grid[(grid > curve.x[0]) & (grid < curve.x[-1])]
    return not np.isin(inside, curve.x).all()


def _thin(grid: Array) -> Array:
    if len(grid) <= MAX_POINTS:
        return grid
    return grid[np.linspace(0, len(grid) - 1, MAX_POINTS).round().astype(np.int64)]


def _trailing_sum(values: Array, window: int) -> Array:
    return np.convolve(values, np.ones(min(window, len(values))))[: len(values)]


def _window_sizes(length: int, window: int) -> Array:
    sizes: Array = np.minimum(np.arange(1.0, length + 1), window)
    return sizes
