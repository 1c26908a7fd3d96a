"""How sure a comparison is: scores of several runs on one or more tasks, aggregated and held against each other.

Scores are [n, m]: n runs on each of m tasks, in the units of the return; a comparison on one environment has m = 1.
Source of the aggregates: Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 50_000  # as Agarwal et al. take
CONFIDENCE = 0.95
POWER = 0.8  # Cohen (1988): the usual chance of seeing an effect that is there
MOST_SEEDS = 10_000
_BLOCK = 4_000_000  # resampled numbers held at once: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; low and high are nan where one run shows no spread."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Paired differences d_i = x_i - y_i of two arms, one for each of n seeds, and what they show."""

    n: int
    mean: float
    deviation: float  # of the d_i, with n - 1; nan for one seed
    low: float  # the interval of the mean at `confidence`
    high: float
    confidence: float
    wins: int  # seeds on which x is above y
    ties: int
    seeds_needed: int | None  # that would show a difference like this one; None: not to be reckoned

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0; never where the differences have no spread to reckon with."""
        return self.deviation > 0 and (self.low > 0 or self.high < 0)


def interquartile_mean(scores: Array) -> Array:
    """Average the middle half of the scores of all runs on all tasks: a quarter is cut off at either end.

    ⌊0.25 n m⌋ scores are cut off on each side, as by a 25 % trimmed mean.
    Source: Agarwal et al. (2021), section 4.3. Args: [..., n, m]. Returns: [...].
    """
    pooled = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = pooled.shape[-1] // 4
    middle: Array = pooled[..., cut : pooled.shape[-1] - cut].mean(-1)
    return middle


def stratified_interval(
    scores: Array, statistic: Callable[[Array], Array], confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> tuple[Array, Array]:
    """Compute the percentile bootstrap interval of a statistic, runs drawn anew within each task.

    Source: Agarwal et al. (2021), section 4.1: runs are the random part, the tasks are given.
    Args: scores [n, m]; statistic maps [R, n, m] to [R] or [R, k]. Returns: low and high, of shape [] or [k];
    nan if n = 1.
    """
    n, m = scores.shape
    random = np.random.default_rng(0)  # the same interval again from the same scores
    block = max(1, _BLOCK // scores.size)
    drawn = [
        statistic(np.take_along_axis(scores[None], random.integers(n, size=(size, n, m)), axis=1))
        for size in _blocks(resamples, block)
    ]
    return _percentiles(np.concatenate(drawn), confidence if n > 1 else math.nan)


def probability_of_improvement(x: Array, y: Array) -> float:
    """Estimate P(X > Y) + P(X = Y) / 2 of one run of each arm, averaged over tasks: U / (n k), Mann & Whitney's U.

    Source: Agarwal et al. (2021), section 4.3. Args: x [n, m], y [k, m]. Returns: in [0, 1]; 0.5 is no difference.
    """
    return float(np.mean(_above(x, y)))


def improvement_interval(x: Array, y: Array, confidence: float = CONFIDENCE, resamples: int = RESAMPLES) -> Estimate:
    """Give the probability of improvement with its stratified bootstrap interval, the arms drawn independently.

    A resample's U / (n k) is wᵀ M v / (n k): M [n, k] says which run of x is above which of y, w and v how often each
    was drawn. Source: as `probability_of_improvement`.
    """
    (n, m), k = x.shape, len(y)
    random, above = np.random.default_rng(0), _above(x, y)
    drawn = []
    for size in _blocks(resamples, max(1, _BLOCK // (n + k))):
        total = np.zeros(size)
        for task in range(m):
            w = random.multinomial(n, np.full(n, 1 / n), size)
            v = random.multinomial(k, np.full(k, 1 / k), size)
            total += ((w @ above[task]) * v).sum(1) / (n * k)
        drawn.append(total / m)
    low, high = _percentiles(np.concatenate(drawn), confidence if min(n, k) > 1 else math.nan)
    return Estimate(float(above.mean()), float(low), float(high))


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Compute the share of runs, over all tasks, with a score above each threshold.

    Source: Agarwal et al. (2021), section 4.2: the run-score distribution. Args: scores [..., n, m], thresholds [k].
    Returns: [..., k] in [0, 1].
    """
    pooled = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    shares: Array = (pooled[..., None, :] > thresholds[:, None]).mean(-1)
    return shares


def paired_difference(x: Array, y: Array, comparisons: int = 1, confidence: float = CONFIDENCE) -> Difference:
    """Compute the mean of d_i = x_i - y_i over seeds, with Student's interval, and how many seeds would show it.

        d̄ ± t(1 - α / 2, n - 1) s / √n,   α = (1 - confidence) / comparisons

    Bonferroni's α lets all the intervals of a table hold at once. Student's t allows for few seeds, where a bootstrap
    interval is too narrow; it supposes d̄ to be about normal.
    Source: Student (1908); Colas et al. (2018), How Many Random Seeds?, sections 3 and 5.
    Args: x and y, [n], by the same seeds. Raises: ValueError if their shapes differ.
    """
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError("paired differences need one score of either arm for every seed")
    from scipy import stats

    d = x - y
    n, mean = len(d), float(d.mean())
    deviation = float(d.std(ddof=1)) if n > 1 else math.nan
    level = 1 - (1 - confidence) / comparisons
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n) if n > 1 else math.nan
    needed = seeds_needed(mean / deviation, 1 - level) if n > 1 and deviation > 0 else None
    return Difference(
        n, mean, deviation, mean - half, mean + half, level, int((d > 0).sum()), int((d == 0).sum()), needed
    )


def seeds_needed(effect: float, alpha: float, power: float = POWER) -> int | None:
    """Find the fewest paired seeds with which a t test shows a true effect d̄ / s with the given power.

    The power of n seeds is P(|T| > t(1 - α / 2, n - 1)), T noncentral t with n - 1 degrees of freedom and noncentrality
    effect √n. Source: Cohen (1988), section 2.3; Colas et al. (2018), section 4.
    Returns: None if it is more than 10,000.
    """
    low, high = 2, MOST_SEEDS
    if abs(effect) < 1e-9 or _power(effect, high, alpha) < power:
        return None
    while low < high:  # the power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, alpha) >= power else (middle + 1, high)
    return low


def _power(effect: float, n: int, alpha: float) -> float:
    from scipy import special, stats

    edge, shift = float(stats.t.ppf(1 - alpha / 2, n - 1)), abs(effect) * math.sqrt(n)
    below = float(special.nctdtr(n - 1, shift, edge))  # the other tail, P(T < -edge), is below α / 2
    return 1.0 - below if math.isfinite(below) else 1.0  # so far out that the series gives up


def steps_to(threshold: float, env_steps: Array, returns: Array) -> float:
    """Give the env steps of the first evaluation whose mean return reaches the threshold, inf if none does."""
    reached = np.flatnonzero(returns >= threshold)
    return float(env_steps[reached[0]]) if len(reached) else math.inf


def median_interval(values: Array) -> Estimate:
    """Compute the median over runs with its bootstrap interval; inf is a run that has not got there, later than all.

    Between two middle values the later one is taken, and an interval's end is a value that a resample had, so that
    inf has a meaning. Args: [n].
    """
    middle = np.sort(values)[len(values) // 2]
    random = np.random.default_rng(0)
    drawn = np.sort(values[random.integers(len(values), size=(10_000, len(values)))], axis=1)[:, len(values) // 2]
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf") if len(values) > 1 else (math.nan, math.nan)
    return Estimate(float(middle), float(low), float(high))


def _above(x: Array, y: Array) -> Array:
    """Say of every pair of runs, [m, n, k], whether x is above y: 1, 1/2 for a tie, 0."""
    a, b = x.T[:, :, None], y.T[:, None, :]
    return np.asarray((a > b) + 0.5 * (a == b), np.float64)


def _blocks(total: int, block: int) -> list[int]:
    return [min(block, total - start) for start in range(0, total, block)]


def _percentiles(drawn: Array, confidence: float) -> tuple[Any, Any]:
    if math.isnan(confidence):
        nothing = np.full(drawn.shape[1:], np.nan)
        return nothing, nothing
    low, high = np.percentile(drawn, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)
    return low, high
