"""Compare the scores of two variants: differences, profiles, repeated looks.

A score is the final return of one run; scores of one task are [n], one for each of n runs.
Source of the aggregates: Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from pgcli.report.statistics import CONFIDENCE, Array

POWER = 0.8  # Cohen (1988): the usual probability of detecting an existing effect
MOST_SEEDS = 10_000
FEW_SEEDS = 5  # minimum for an interval of P(x > y)
SPENT = 0.8  # share of the remaining false positives that each look spends
UNLIKE = 0.05  # significance level at which two standard deviations differ
S = TypeVar("S")  # a seed, or a run
LIKELY = 0.8  # confidence of the range of seeds that would show a difference


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


def improvement_interval(x: Array, y: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute Brunner & Munzel's interval of P(X > Y) + P(X = Y) / 2.

    It is computed on the logit scale, for unlike distributions too.

    With p_i the share of y below x_i, and q_j that of x above y_j, Var[p̂] is estimated by s²(p) / n + s²(q) / k, with
    Welch's degrees of freedom. Scores that hardly overlap show too little variance: it is at least p̂ (1 - p̂) / (n k).
    Where all x are above all y, the lower limit is the p for which p^min(n, k) = (1 - confidence) / 2: with a smaller
    P(X > Y), that is rarer for any two distributions.
    Args: x [n] and y [k]. Returns: nan below 5 scores, which support no interval.
    Source: Brunner & Munzel (2000); Konietschke et al. (2012), on the logit scale.
    """
    from scipy import special, stats

    n, k = len(x), len(y)
    if min(n, k) < FEW_SEEDS:
        return math.nan, math.nan
    above = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    p, parts = float(above.mean()), (above.mean(1).var(ddof=1) / n, above.mean(0).var(ddof=1) / k)
    apart = float(((1 - confidence) / 2) ** (1 / min(n, k)))
    if p in (0, 1):
        return (apart, 1.0) if p else (0.0, 1 - apart)
    variance = sum(parts)
    degrees = variance**2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (k - 1)) if variance else min(n, k) - 1
    error = math.sqrt(max(variance, p * (1 - p) / (n * k))) / (p * (1 - p))
    half, logit = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error, math.log(p / (1 - p))
    return float(special.expit(logit - half)), float(special.expit(logit + half))


def performance_profile(scores: Array, thresholds: Array) -> tuple[Array, Array, Array]:
    """Compute the share of runs with a score above each threshold.

    Its 95 % interval is that of a binomial share.

    Source: Agarwal et al. (2021), section 4.2: the run-score distribution; Clopper & Pearson (1934) for the interval.
    Args: scores [n], thresholds [k]. Returns: share, low and high, [k] in [0, 1].
    """
    from scipy import stats

    n, tail = len(scores), (1 - CONFIDENCE) / 2
    above = (scores > thresholds[:, None]).sum(-1)
    low = stats.beta.ppf(tail, np.maximum(above, 0.5), n - above + 1)
    high = stats.beta.isf(tail, above + 1, np.maximum(n - above, 0.5))
    return above / n, np.where(above > 0, low, 0.0), np.where(above < n, high, 1.0)


def steps_to(threshold: float, env_steps: Array, returns: Array) -> float:
    """Return the env steps of the first evaluation that reaches the threshold.

    The result is inf if none does.
    """
    reached = np.flatnonzero(returns >= threshold)
    return float(env_steps[reached[0]]) if len(reached) else math.inf


# Repeated looks


def look_alpha(look: int, alpha: float = 1 - CONFIDENCE) -> float:
    """Return α · 0.8 · 0.2^(look - 1): the false positives that a look may have.

    `look` is its number, from 1.

    All looks together have at most α, however many there are, if each tests seeds that no earlier one has used.
    The first one costs little: t(0.98, n - 1) is 6 % to 13 % above t(0.975, n - 1) for 10 to 3 seeds.
    Source: Lan & DeMets (1983), Discrete sequential boundaries, on spending α.
    """
    return alpha * SPENT * (1 - SPENT) ** (look - 1)


def fresh_seeds(seeds: Sequence[S], earlier: Sequence[Sequence[S]]) -> tuple[int, list[S]]:
    """Return the number of a look at these seeds, and the seeds that no earlier look has used.

    Looking at the same seeds again is the same look. A look without a fresh seed is not a new look.
    """
    used = set[S]()
    for number, one in enumerate(earlier, 1):
        if set(one) == set(seeds):
            return number, [seed for seed in seeds if seed not in used]
        used |= set(one)
    fresh = [seed for seed in seeds if seed not in used]
    return len(earlier) + bool(fresh), fresh


# Differences


@dataclass(frozen=True)
class Difference:
    """The difference of the means of two variants, from n runs of x and k of y, and what it shows.

    Paired, its runs have the same seeds, and d_i = x_i - y_i. Unpaired, they are independent.
    """

    n: int
    k: int
    paired: bool
    mean: float
    deviation: float  # standard deviation of the d_i; unpaired, of a run: √((s_x² + s_y²) / 2); nan for one run
    low: float  # the interval of the mean at `confidence`
    high: float
    confidence: float
    wins: int | None  # seeds on which x is above y; None if unpaired
    ties: int | None
    deviations: tuple[float, float]  # of x and of y
    alike: bool  # those do not differ
    improvement: float  # P(x > y)
    improvement_low: float  # its interval at `confidence`; nan below 5 seeds
    improvement_high: float
    seeds_needed: int | None  # fresh ones, to show a difference like this one; None: more than MOST_SEEDS, or unknown
    seeds_range: tuple[int | None, int | None]  # for an 80 % interval of the effect, or the fewest possible

    @property
    def claim(self) -> str:
        """The claim of `shown`: about the `mean`, or about the `probability` if the deviations differ."""
        return "mean" if self.alike else "probability"

    @property
    def shown(self) -> bool:
        """Whether the interval of the claim excludes equality. False if the differences have no spread."""
        if not self.deviation > 0:
            return False
        if self.alike:
            return self.low > 0 or self.high < 0
        return self.improvement_low > 0.5 or self.improvement_high < 0.5


def paired_difference(
    x: Array, y: Array, comparisons: int = 1, confidence: float = CONFIDENCE, next_confidence: float | None = None
) -> Difference:
    """Compute the mean of d_i = x_i - y_i with Student's interval, and the seeds needed to show it.

        d̄ ± t(1 - α / 2, n - 1) s / √n,   α = (1 - confidence) / comparisons

    Bonferroni's α lets all the intervals of a table hold at once. Student's t assumes that d̄ is about normal, which a
    rare failure of one variant breaks: with 3 seeds, equal means are then shown to differ in half of all studies. So
    where the standard deviations of x and y differ (F test), the claim is about P(x > y), which needs no such
    assumption.
    Args: x and y, [n], of the same seeds; next_confidence, of the test of the seeds that would show the difference.
    Raises: ValueError if their shapes differ.
    Source: Student (1908); Colas et al. (2018), How Many Random Seeds?, sections 3 and 5.
    """
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError("paired differences need one score of each variant per seed")
    d, n = x - y, len(x)
    deviation = float(d.std(ddof=1)) if n > 1 else math.nan
    spread = _Spread(float(d.mean()), deviation, deviation / math.sqrt(n), n - 1)
    alphas = (1 - confidence) / comparisons, (1 - (next_confidence or confidence)) / comparisons
    return replace(_difference(x, y, spread, *alphas), wins=int((d > 0).sum()), ties=int((d == 0).sum()))


def unpaired_difference(
    x: Array, y: Array, comparisons: int = 1, confidence: float = CONFIDENCE, next_confidence: float | None = None
) -> Difference:
    """Compute x̄ - ȳ of independent runs with Welch's interval.

    Also compute the seeds of each variant that would show it.

        x̄ - ȳ ± t(1 - α / 2, ν) e,   e² = u + v,   u = s_x² / n,   v = s_y² / k
        ν = e⁴ / (u² / (n - 1) + v² / (k - 1))

    Args: x [n] and y [k]; the others as in `paired_difference`. Source: Welch (1947).
    """
    if x.ndim != 1 or y.ndim != 1 or not (len(x) and len(y)):
        raise ValueError("a difference needs scores of both variants")
    n, k, mean = len(x), len(y), float(x.mean() - y.mean())
    spread = _Spread(mean, math.nan, math.nan, min(n, k) - 1, samples=2)
    if min(n, k) > 1:
        u, v = float(x.var(ddof=1)) / n, float(y.var(ddof=1)) / k
        degrees = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (k - 1)) if u + v else min(n, k) - 1
        spread = _Spread(mean, math.sqrt((n * u + k * v) / 2), math.sqrt(u + v), degrees, samples=2)
    alphas = (1 - confidence) / comparisons, (1 - (next_confidence or confidence)) / comparisons
    return _difference(x, y, spread, *alphas)


class _Spread(NamedTuple):
    """A difference of means, with its standard error and degrees of freedom.

    `deviation` is the standard deviation that it is measured in.
    """

    mean: float
    deviation: float
    error: float
    degrees: float
    samples: int = 1  # 2 if unpaired


def _difference(x: Array, y: Array, spread: _Spread, alpha: float, later: float) -> Difference:
    """Compute the interval at level α, and the seeds that show the difference at level `later`."""
    needed: int | None = None
    likely: tuple[int | None, int | None] = (None, None)
    deviations, alike, half = (math.nan, math.nan), True, math.nan
    if spread.degrees > 0:
        from scipy import stats

        deviations, alike = (float(x.std(ddof=1)), float(y.std(ddof=1))), _alike(x, y)
        half = float(stats.t.ppf(1 - alpha / 2, spread.degrees)) * spread.error
    if not alike:
        likely = max(FEW_SEEDS, 1 + math.floor(math.log(later / 2, 0.5))), None  # if all x are above all y
    elif spread.deviation > 0:
        needed = seeds_needed(spread.mean / spread.deviation, later, POWER, spread.samples)
        likely = _likely_seeds(spread, later)
    improvement = improvement_interval(x, y, 1 - alpha)
    return Difference(
        n=len(x),
        k=len(y),
        paired=spread.samples == 1,
        mean=spread.mean,
        deviation=spread.deviation,
        low=spread.mean - half,
        high=spread.mean + half,
        confidence=1 - alpha,
        wins=None,
        ties=None,
        deviations=deviations,
        alike=alike,
        improvement=float(probability_of_improvement(x, y)),
        improvement_low=improvement[0],
        improvement_high=improvement[1],
        seeds_needed=needed,
        seeds_range=likely,
    )


def _alike(x: Array, y: Array) -> bool:
    """Return whether a two-sided F test finds no difference of two standard deviations."""
    from scipy import stats

    small, large = sorted((x, y), key=lambda one: float(one.std(ddof=1)))
    low, high = float(small.std(ddof=1)), float(large.std(ddof=1))
    return high == 0 or (low > 0 and 2 * float(stats.f.sf((high / low) ** 2, len(large) - 1, len(small) - 1)) > UNLIKE)


def seeds_needed(effect: float, alpha: float, power: float = POWER, samples: int = 1) -> int | None:
    """Find the fewest seeds with which a t test shows a true effect d̄ / s with the given power.

    The power of n seeds is P(T > t(1 - α / 2, ν)), T noncentral t with ν = n - 1 degrees of freedom and noncentrality
    |effect| √n; for two independent `samples` of n seeds each, ν = 2 (n - 1) and |effect| √(n / 2). The other tail has
    less than α / 2 and is left out.
    Returns: None if it is more than 10,000. Source: Cohen (1988), sections 2.2 and 2.3; Colas et al. (2018), section 4.
    """
    from scipy import stats

    def power_of(n: int) -> float:
        degrees, shift = samples * (n - 1), min(abs(effect) * math.sqrt(n / samples), 1e6)  # scipy: nan for 1e12
        return float(stats.nct.sf(stats.t.isf(alpha / 2, degrees), degrees, shift))

    needed = 2 + bisect_left(range(2, MOST_SEEDS + 1), power, key=power_of)  # the power grows with n
    return needed if needed <= MOST_SEEDS else None


def _likely_seeds(spread: _Spread, alpha: float) -> tuple[int | None, int | None]:
    """Return `seeds_needed` of the largest and of the smallest likely effect.

    These are the ends of an 80 % interval around the observed effect.

    The interval inverts the noncentral t distribution of the difference over its standard error. Where it has effects
    of either sign, no number of seeds is enough for the smallest: None. Source: Cumming & Finch (2001), section 4.
    """
    from scipy import optimize, stats

    t = min(abs(spread.mean) / spread.error, 1e3)

    def above(shift: float, quantile: float) -> float:
        probability = float(stats.nct.cdf(t, spread.degrees, shift))
        return (float(shift < t) if math.isnan(probability) else probability) - quantile  # nan: far from t

    def needed(quantile: float) -> int | None:
        shift = float(optimize.brentq(above, -10 - t, 10 + 4 * t, (quantile,), xtol=1e-3))
        effect = shift * spread.error / spread.deviation
        return seeds_needed(effect, alpha, POWER, spread.samples) if effect > 0 else None

    return needed((1 - LIKELY) / 2), needed((1 + LIKELY) / 2)
