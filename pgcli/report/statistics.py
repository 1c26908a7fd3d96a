"""Statistics over runs: means, medians, their intervals, and learning curves.

Intervals are of samples [..., n], over the last axis: n runs that differ only in their seed. `tests/uncertainty.py`
measures how often they contain the true value; docs/compare.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.config.choices import Band, Stat

Array = NDArray[np.float64]
Interval = tuple[Array, Array]  # low and high; nan without an interval
Statistic = Callable[..., Any]  # of samples [..., n_i], over the last axis (`axis=-1`): to [...]

MAX_POINTS = 1000  # of a curve, about the pixels of a figure
CONFIDENCE = 0.95
RESAMPLES = 10_000
TRIMMED = 0.25  # of the values, on each side of an interquartile mean
_BLOCK = 4_000_000  # resampled numbers in memory at once: 32 MB


# Intervals


def interquartile_mean(*tasks: Array, axis: int = -1) -> Array:
    """Average the middle half of the scores of all runs on all tasks: a 25 % trimmed mean.

    Of N scores, ⌊N / 4⌋ are cut off on each side. Source: Agarwal et al. (2021), section 4.3.
    Args: the scores of each task, [..., n]. Returns: [...].
    """
    from scipy import stats

    return np.asarray(stats.trim_mean(np.concatenate(tasks, axis), TRIMMED, axis=axis))


STATISTICS: dict[Stat, Statistic] = {"mean": np.mean, "iqm": interquartile_mean, "median": np.median}


def mean_interval(samples: Array, confidence: float = CONFIDENCE) -> Interval:
    """Compute Student's interval of a mean: x̄ ± t(n - 1) s / √n, exact for normal values.

    Source: Student (1908), The Probable Error of a Mean.
    """
    n = samples.shape[-1]
    if n < 2:
        return _no_interval(samples)
    half = _student(confidence, n - 1) * samples.std(-1, ddof=1) / math.sqrt(n)
    return samples.mean(-1) - half, samples.mean(-1) + half


def trimmed_mean_interval(samples: Array, confidence: float = CONFIDENCE) -> Interval:
    """Compute the interval of an interquartile mean from the Winsorized standard deviation s_w.

        IQM ± t(h - 1) e,   e = max( s_w / (½ √n), s_w √((n - 1) / (h (h - 1))) ),   h = n - 2 ⌊n / 4⌋

    Winsorizing replaces the values that the mean trims by the nearest remaining one. The first form is that of scipy's
    `trimmed_mean_ci`. It covers 92.5 % where n is a multiple of 4; there the second one, Yuen's, is wider. Below 4
    values nothing is trimmed, and the interval is Student's.
    Source: Tukey & McLaughlin (1963); Yuen (1974), The two-sample trimmed t for unequal population variances.
    """
    n = samples.shape[-1]
    cut = int(TRIMMED * n)
    if cut == 0:
        return mean_interval(samples)
    kept = np.sort(samples, -1)[..., cut : n - cut]
    h = kept.shape[-1]
    winsorized = np.pad(kept, [(0, 0)] * (samples.ndim - 1) + [(cut, cut)], mode="edge").std(-1, ddof=1)
    half = _student(confidence, h - 1) * winsorized * max(2 / math.sqrt(n), math.sqrt((n - 1) / (h * (h - 1))))
    return kept.mean(-1) - half, kept.mean(-1) + half


def median_interval(samples: Array, confidence: float = CONFIDENCE) -> Interval:
    """Compute the interval of a median from the k-th smallest to the k-th largest value.

    k is the largest number for which 1 - 2 P(Binomial(n, ½) < k) reaches the confidence, for any distribution. Below
    6 values, not even the smallest and the largest reach 95 %: there is no interval. Infinite values, of runs that do
    not reach a threshold, keep their meaning. Source: David & Nagaraja (2003), Order Statistics, section 7.1.
    """
    from scipy import stats

    n = samples.shape[-1]
    rank = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)) if n else 0  # P(< rank) is smaller, P(≤ rank) is not
    if rank == 0:
        return _no_interval(samples)
    ordered = np.sort(samples, -1)
    return ordered[..., rank - 1], ordered[..., n - rank]


INTERVALS: dict[Stat, Callable[[Array], Interval]] = {
    "mean": mean_interval,
    "iqm": trimmed_mean_interval,
    "median": median_interval,
}


def bootstrap_interval(
    samples: Sequence[Array],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    paired: bool = False,
) -> Interval:
    """Compute the percentile bootstrap interval of a statistic of independent samples.

    It is too narrow for few values.

    Each sample is resampled on its own: one sample per task is the stratified bootstrap over runs. With `paired`, the
    same values are drawn of each. All rows see the same resamples, so a row's interval depends on that row alone.
    Args: samples, each [n_i] or [P, n_i].
    Returns: low and high, [] or [P]; nan if a sample has one value, which shows no spread.
    Source: Efron & Tibshirani (1993), section 13.3; Agarwal et al. (2021), section 4.1.
    """
    shape, size = samples[0].shape[:-1], sum(sample.shape[-1] for sample in samples)
    if min(sample.shape[-1] for sample in samples) < 2:
        return _no_interval(samples[0])
    from scipy import stats

    tables = [np.atleast_2d(sample) for sample in samples]
    rows = max(1, _BLOCK // (resamples * size))
    intervals = [
        stats.bootstrap(
            [table[start : start + rows] for table in tables],
            statistic,
            n_resamples=resamples,
            batch=max(1, _BLOCK // size),
            vectorized=True,
            paired=paired,
            axis=-1,
            confidence_level=confidence,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        for start in range(0, len(tables[0]), rows)
    ]
    low, high = (np.concatenate(edges).reshape(shape) for edges in zip(*intervals, strict=True))
    return low, high


def _student(confidence: float, degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def _no_interval(samples: Array) -> Interval:
    return np.full(samples.shape[:-1], np.nan), np.full(samples.shape[:-1], np.nan)


# Ratios of means


def ratio_of_means(values: Array, weights: Array, axis: int = -1) -> Array:
    """Compute Σ y / Σ w, which a mean of ratios y / w overstates where w is noisy.

    nan unless Σ w is positive.
    """
    total = weights.sum(axis)
    return np.asarray(np.where(total > 0, values.sum(axis) / np.where(total > 0, total, 1), np.nan))


def ratio_interval(values: Array, weights: Array) -> Interval:
    """Compute Student's interval of Σ y / Σ w from its linear terms (y - r w) / w̄.

    It is that of a mean where w = 1.

    Source: Cochran (1977), Sampling Techniques, section 6.3.
    """
    low, high = mean_interval(_linear_terms(values, weights))
    ratio = ratio_of_means(values, weights)
    return ratio + low, ratio + high


def _linear_terms(values: Array, weights: Array) -> Array:
    ratio = ratio_of_means(values, weights)[..., None]
    return np.asarray((values - ratio * weights) / weights.mean(-1, keepdims=True))


def gradient_ratio(name: str, snr: Array, variance: Array, trajectory_variance: Array) -> tuple[Array, Array]:
    """Return y and w of a column of gradients.csv that averages as Σ y / Σ w.

    The column is `snr` or `trajectories_for_snr_1`.

    |g|² - v and v are unbiased, their ratio is not: over measurements or runs, the signal-to-noise ratio is
    Σ (|g|² - v) / Σ v, and the trajectories for a ratio of 1 are Σ N v / Σ (|g|² - v).
    Args: the columns snr, gradient_variance v and trajectory_variance N v of gradients.csv.
    """
    signal = snr * variance
    return (signal, variance) if name == "snr" else (trajectory_variance, signal)


GRADIENT_RATIOS = ("snr", "trajectories_for_snr_1")


# Learning curves


@dataclass(frozen=True)
class Curve:
    """One run's curve, all [P]: x increases strictly, y is finite.

    `standard_error` is that of each y over the episodes it averages, nan where unknown; None if y is no such average.
    With `weights`, the curve is the ratio y / weights, and curves average as Σ y / Σ weights.
    """

    x: Array
    y: Array
    standard_error: Array | None = None
    weights: Array | None = None


@dataclass(frozen=True)
class Aggregate:
    """An aggregate of several curves, all [P]; `n` is the number of curves at x.

    Without an interval, low and high are nan.
    """

    x: Array
    n: NDArray[np.int64]
    center: Array
    low: Array
    high: Array


def value_at(x: Array, y: Array, at: Array | float) -> Array:
    """Interpolate a run's values linearly at other x.

    Beyond its points, repeat the last value.

    All runs keep their last value, also if they diverged, stopped or were interrupted. So a mean is never over
    survivors only. Curves and scores follow this rule. Returns: nan before the first point.
    """
    return np.asarray(np.interp(at, x, y, left=np.nan))


def smoothed(curve: Curve, window: int) -> Curve:
    """Average each value with the `window` - 1 values before it, or as many as exist.

    Points average different episodes, so the squares of their standard errors add up.
    """
    if window == 1:
        return curve
    length = len(curve.y)
    ones, sizes = np.ones(min(window, length)), np.minimum(np.arange(1.0, length + 1), window)

    def averaged(y: Array) -> Array:
        return np.asarray(np.convolve(y, ones)[:length] / sizes)

    error = curve.standard_error
    return replace(
        curve,
        y=averaged(curve.y),
        standard_error=None if error is None else np.sqrt(np.convolve(error**2, ones)[:length]) / sizes,
        weights=None if curve.weights is None else averaged(curve.weights),
    )


def aggregate(curves: Sequence[Curve], stat: Stat, band: Band) -> Aggregate:
    """Aggregate curves on the union of their x, from where all have begun (see `value_at`).

    A single curve's band is its own standard error for every `band` but none.
    """
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = grid[grid >= max(curve.x[0] for curve in curves)]  # a mean over fewer curves would jump
    if len(grid) > MAX_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_POINTS).round().astype(np.int64)]
    values = np.stack([value_at(curve.x, curve.y, grid) for curve in curves], axis=1)  # [P, curves]
    if curves[0].weights is not None:
        weights = np.stack([value_at(c.x, c.weights, grid) for c in curves if c.weights is not None], axis=1)
        center = ratio_of_means(values, weights)
        known = np.isfinite(center)
        grid, values, weights, center = grid[known], values[known], weights[known], center[known]
        low, high = _ratio_band(values, weights, band)
    else:  # a single run does not import scipy
        center = STATISTICS[stat](values, axis=-1) if len(curves) > 1 else values[:, 0]
        low, high = _band(values, stat, band)
    if len(curves) == 1 and band != "none" and curves[0].standard_error is not None:
        error = np.interp(grid, curves[0].x, curves[0].standard_error)
        low, high = center - error, center + error
    return Aggregate(grid, np.full(len(grid), len(curves)), center, low, high)


def _band(values: Array, stat: Stat, band: Band) -> Interval:
    n = values.shape[-1]
    if band == "none" or n == 1:
        return _no_interval(values)
    if band == "ci95":
        return INTERVALS[stat](values)
    if band == "bootstrap":
        return bootstrap_interval([values], STATISTICS[stat])
    error = values.std(-1, ddof=1) / math.sqrt(n)
    return values.mean(-1) - error, values.mean(-1) + error


def _ratio_band(values: Array, weights: Array, band: Band) -> Interval:
    if band == "ci95":
        return ratio_interval(values, weights)
    if band == "bootstrap":
        return bootstrap_interval([values, weights], ratio_of_means, paired=True)
    low, high = _band(_linear_terms(values, weights), "mean", band)
    ratio = ratio_of_means(values, weights)
    return ratio + low, ratio + high
