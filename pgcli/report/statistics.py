"""Statistics over runs: learning curves on a common grid, aggregated scores, and the intervals of both.

A score is the final return of one run; scores of one task are [n], one for each of n runs.
Source of the aggregates: Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.config.choices import Band, Stat

Array = NDArray[np.float64]
Statistic = Callable[..., Any]  # of samples [..., n_i], over the last axis (`axis=-1`): to [...]

MAX_POINTS = 1000  # of a curve; a figure has no more pixels
CONFIDENCE = 0.95
RESAMPLES = 10_000
SCORE_RESAMPLES = 50_000  # as Agarwal et al.
PROFILE_RESAMPLES = 2_000
POWER = 0.8  # Cohen (1988): the usual probability of detecting an existing effect
MOST_SEEDS = 10_000
_BLOCK = 4_000_000  # resampled numbers in memory at once: 32 MB


# Intervals


def bootstrap_interval(
    samples: Sequence[Array], statistic: Statistic, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[Array, Array]:
    """Compute the percentile bootstrap interval of a statistic of independent samples.

    Each sample is resampled on its own: one sample per task is the stratified bootstrap over runs. All rows see the
    same resamples, so a row's interval depends on that row alone.
    Args: samples, each [n_i] or [P, n_i].
    Returns: low and high, [] or [P]; nan if a sample has one value, which shows no spread.
    Source: Efron & Tibshirani (1993), section 13.3; Agarwal et al. (2021), section 4.1.
    """
    shape, size = samples[0].shape[:-1], sum(sample.shape[-1] for sample in samples)
    if min(sample.shape[-1] for sample in samples) < 2:
        return np.full(shape, np.nan), np.full(shape, np.nan)
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
            axis=-1,
            confidence_level=confidence,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        for start in range(0, len(tables[0]), rows)
    ]
    low, high = (np.concatenate(edges).reshape(shape) for edges in zip(*intervals, strict=True))
    return low, high


def median_interval(values: Array) -> tuple[float, float, float]:
    """Compute the median over runs with its exact 95 % percentile bootstrap interval.

    The median is the value of rank k = ⌊n / 2⌋ + 1, the upper one of two middle values. A resample's median is at most
    the value of rank j if k of its n draws are: P(Binomial(n, j / n) ≥ k). All results are values of the sample, so
    that inf, a run that does not reach a threshold, keeps its meaning.
    Args: [n]. Returns: median, low, high; the last two are nan if n = 1.
    Source: Efron (1979), Bootstrap Methods: Another Look at the Jackknife, section 3.
    """
    n, ordered = len(values), np.sort(values)
    if n == 1:
        return float(ordered[0]), math.nan, math.nan
    from scipy import stats

    at_most = stats.binom.sf(n // 2, n, np.arange(1, n + 1) / n)
    low, high = ordered[np.searchsorted(at_most, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])]
    return float(ordered[n // 2]), float(low), float(high)


# Scores


def interquartile_mean(*tasks: Array, axis: int = -1) -> Array:
    """Average the middle half of the scores of all runs on all tasks: a 25 % trimmed mean.

    Of N scores, ⌊N / 4⌋ are cut off on each side. Source: Agarwal et al. (2021), section 4.3.
    Args: the scores of each task, [..., n]. Returns: [...].
    """
    from scipy import stats

    return np.asarray(stats.trim_mean(np.concatenate(tasks, axis), 0.25, axis=axis))


STATISTICS: dict[Stat, Statistic] = {"mean": np.mean, "iqm": interquartile_mean, "median": np.median}


def probability_of_improvement(*tasks: Array, axis: int = -1) -> Array:
    """Estimate P(X > Y) + P(X = Y) / 2 of one run of each of two variants, averaged over tasks.

    It is U / (n k) with Mann & Whitney's U. Source: Agarwal et al. (2021), section 4.3.
    Args: the scores of x on each task, [..., n], then those of y, [..., k]. Returns: [...] in [0, 1].
    """
    from scipy import stats

    half = len(tasks) // 2
    shares = [  # "exact" would enumerate orders for p-values, which are not used
        stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic / (x.shape[axis] * y.shape[axis])
        for x, y in zip(tasks[:half], tasks[half:], strict=True)
    ]
    return np.asarray(np.mean(shares, axis=0))


def performance_profile(scores: Array, thresholds: Array) -> tuple[Array, Array, Array]:
    """Compute the share of runs with a score above each threshold, with its 95 % bootstrap interval.

    Source: Agarwal et al. (2021), section 4.2: the run-score distribution. Args: scores [n], thresholds [k].
    Returns: share, low and high, [k] in [0, 1].
    """
    above = np.asarray(scores > thresholds[:, None], np.float64)
    return above.mean(-1), *bootstrap_interval([above], np.mean, PROFILE_RESAMPLES)


def steps_to(threshold: float, env_steps: Array, returns: Array) -> float:
    """Return the env steps of the first evaluation whose mean return reaches the threshold, inf if none does."""
    reached = np.flatnonzero(returns >= threshold)
    return float(env_steps[reached[0]]) if len(reached) else math.inf


# Paired differences


@dataclass(frozen=True)
class Difference:
    """Paired differences d_i = x_i - y_i of two variants, one for each of n seeds, and what they show."""

    n: int
    mean: float
    deviation: float  # standard deviation of the d_i, with n - 1; nan for one seed
    low: float  # the interval of the mean at `confidence`
    high: float
    confidence: float
    wins: int  # seeds on which x is above y
    ties: int
    seeds_needed: int | None  # to show a difference like this one; None: more than MOST_SEEDS, or unknown

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0; never where the differences have no spread."""
        return self.deviation > 0 and (self.low > 0 or self.high < 0)


def paired_difference(x: Array, y: Array, comparisons: int = 1, confidence: float = CONFIDENCE) -> Difference:
    """Compute the mean of d_i = x_i - y_i over seeds, with Student's interval, and how many seeds would show it.

        d̄ ± t(1 - α / 2, n - 1) s / √n,   α = (1 - confidence) / comparisons

    Bonferroni's α lets all the intervals of a table hold at once. Student's t accounts for few seeds, where a bootstrap
    interval is too narrow; it assumes that d̄ is about normal.
    Args: x and y, [n], of the same seeds. Raises: ValueError if their shapes differ.
    Source: Student (1908); Colas et al. (2018), How Many Random Seeds?, sections 3 and 5.
    """
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError("a paired difference needs one score of each variant for every seed")
    from scipy import stats

    d, n, level = x - y, len(x), 1 - (1 - confidence) / comparisons
    mean, deviation, half, needed = float(d.mean()), math.nan, math.nan, None
    if n > 1:
        deviation = float(d.std(ddof=1))
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
        needed = seeds_needed(mean / deviation, 1 - level) if deviation > 0 else None
    wins, ties = int((d > 0).sum()), int((d == 0).sum())
    return Difference(n, mean, deviation, mean - half, mean + half, level, wins, ties, needed)


def seeds_needed(effect: float, alpha: float, power: float = POWER) -> int | None:
    """Find the fewest paired seeds with which a t test shows a true effect d̄ / s with the given power.

    The power of n seeds is P(T > t(1 - α / 2, n - 1)), T noncentral t with n - 1 degrees of freedom and noncentrality
    |effect| √n; the other tail has less than α / 2 and is left out.
    Returns: None if it is more than 10,000. Source: Cohen (1988), section 2.3; Colas et al. (2018), section 4.
    """
    from scipy import stats

    def power_of(n: int) -> float:
        shift = min(abs(effect) * math.sqrt(n), 1e6)  # scipy returns nan for 1e12
        return float(stats.nct.sf(stats.t.isf(alpha / 2, n - 1), n - 1, shift))

    needed = 2 + bisect_left(range(2, MOST_SEEDS + 1), power, key=power_of)  # the power grows with n
    return needed if needed <= MOST_SEEDS else None


# Learning curves


@dataclass(frozen=True)
class Curve:
    """One run's curve, all [P]: x increases strictly, y is finite.

    `standard_error` is that of each y over the episodes it averages, nan where unknown; None if y is no such average.
    `final`: training is over, so the last value also counts at every later x.
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


def smoothed(curve: Curve, window: int) -> Curve:
    """Average each value with the `window` - 1 before it, the first ones with as many as there are.

    Points average different episodes, so the squares of their standard errors add up.
    """
    if window == 1:
        return curve
    length = len(curve.y)
    ones, sizes = np.ones(min(window, length)), np.minimum(np.arange(1.0, length + 1), window)
    error = curve.standard_error
    if error is not None:
        error = np.sqrt(np.convolve(error**2, ones)[:length]) / sizes
    return Curve(curve.x, np.convolve(curve.y, ones)[:length] / sizes, error, curve.final)


def aggregate(curves: Sequence[Curve], stat: Stat, band: Band) -> Aggregate:
    """Compute one curve from several, on the union of their x.

    It begins where all of them have begun. Between its points a curve is a straight line; after its last one it
    counts with its last value if it is final. A single curve's band is its own standard error for every `band` but
    none.
    """
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    begun = grid >= max(curve.x[0] for curve in curves)  # a mean over fewer would jump as others join
    grid = grid[begun] if begun.any() else grid
    if len(grid) > MAX_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_POINTS).round().astype(np.int64)]
    lines = [  # exact at each curve's own points; nan where it does not count
        np.interp(grid, curve.x, curve.y, left=np.nan, right=curve.y[-1] if curve.final else np.nan) for curve in curves
    ]
    values = np.stack(lines, axis=1)  # [P, curves]
    counts = ~np.isnan(values)
    n = counts.sum(1)
    center, low, high = (np.full(len(grid), np.nan) for _ in range(3))
    for count in np.unique(n).tolist():
        rows = n == count
        samples = values[rows][counts[rows]].reshape(-1, count)
        center[rows] = STATISTICS[stat](samples, axis=-1) if count > 1 else samples[:, 0]  # one run loads no scipy
        if band == "ci95":
            low[rows], high[rows] = bootstrap_interval([samples], STATISTICS[stat])
        elif band == "standard_error" and count > 1:
            error = samples.std(axis=1, ddof=1) / math.sqrt(count)
            low[rows], high[rows] = samples.mean(1) - error, samples.mean(1) + error
    if len(curves) == 1 and band != "none" and curves[0].standard_error is not None:
        error = np.interp(grid, curves[0].x, curves[0].standard_error)
        low, high = center - error, center + error
    carried = any(curve.final and curve.x[-1] < grid[-1] for curve in curves)
    return Aggregate(grid, n, center, low, high, carried)
