"""Statistics of comparisons, tested against rliable, power tables and hand-computed cases."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pgcli.report import scores as scores_module
from pgcli.report.scores import (
    Difference,
    fresh_seeds,
    improvement_interval,
    look_alpha,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    seeds_needed,
    steps_to,
    unpaired_difference,
)
from pgcli.report.statistics import (
    INTERVALS,
    Array,
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    median_interval,
    ratio_interval,
    ratio_of_means,
    trimmed_mean_interval,
)

RANDOM = np.random.default_rng(7)
SCORES = {
    "one task": (RANDOM.normal(100, 20, (10, 1)), RANDOM.normal(115, 30, (10, 1))),
    "three tasks": (RANDOM.normal(0, 1, (7, 3)), RANDOM.normal(0.4, 2, (9, 3))),
    "ties": (RANDOM.integers(0, 4, (8, 2)).astype(float), RANDOM.integers(0, 4, (8, 2)).astype(float)),
}


@pytest.fixture(scope="module")
def rliable() -> Any:
    """Return rliable's library and metrics, which need `arch.bootstrap` only: the rest of arch 7 breaks on pandas 3."""
    spec = importlib.util.find_spec("arch")
    assert spec is not None
    package = ModuleType("arch")
    package.__path__ = list(spec.submodule_search_locations or [])
    package.__spec__ = spec  # a second set-up in this process finds it again
    before = sys.modules.get("arch")
    sys.modules["arch"] = package
    try:
        from rliable import library, metrics
    finally:
        if before is not None:
            sys.modules["arch"] = before
    return library, metrics


@pytest.mark.parametrize("kind", SCORES)
def test_the_interquartile_mean_and_its_interval_match_rliable(kind: str, rliable: Any) -> None:
    library, metrics = rliable
    np.random.seed(0)
    for scores in SCORES[kind]:
        assert interquartile_mean(*scores.T) == pytest.approx(metrics.aggregate_iqm(scores), abs=1e-12)
        _, intervals = library.get_interval_estimates(
            {"arm": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=4000
        )
        low, high = bootstrap_interval([*scores.T], interquartile_mean)
        assert [low, high] == pytest.approx(intervals["arm"][:, 0], abs=float(0.04 * (high - low)))


@pytest.mark.parametrize("kind", SCORES)
def test_the_probability_of_improvement_and_its_interval_match_rliable(kind: str, rliable: Any) -> None:
    library, metrics = rliable
    x, y = SCORES[kind]
    np.random.seed(0)
    tasks = [*x.T, *y.T]
    assert probability_of_improvement(*tasks) == pytest.approx(metrics.probability_of_improvement(x, y), abs=1e-12)
    _, intervals = library.get_interval_estimates(
        {"pair": [x, y]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=1000
    )
    low, high = bootstrap_interval(tasks, probability_of_improvement)
    assert [low, high] == pytest.approx(intervals["pair"][:, 0], abs=0.1 * float(high - low))


@pytest.mark.parametrize("kind", SCORES)
def test_the_performance_profile_matches_rliable(kind: str, rliable: Any) -> None:
    library, _ = rliable
    scores = SCORES[kind][0]
    thresholds = np.append(np.linspace(scores.min(), scores.max(), 9), scores[0])  # a score itself is not above itself
    theirs, _ = library.create_performance_profile({"arm": scores}, thresholds, reps=10)
    assert performance_profile(scores.ravel(), thresholds)[0] == pytest.approx(theirs["arm"], abs=1e-12)


def test_the_interval_of_two_runs_follows_from_their_four_resamples() -> None:
    scores = np.array([[0.0], [10.0]])
    means = sorted(np.mean(pair) for pair in product((0, 10), repeat=2))
    low, high = bootstrap_interval([*scores.T], interquartile_mean, confidence=0.4)
    assert [low, high] == [means[1], means[2]]  # the extremes have a quarter each, and 30 % are cut off
    assert np.isnan(bootstrap_interval([*scores[:1].T], interquartile_mean)).all()


def test_runs_are_resampled_within_each_task_only() -> None:
    scores = np.array([[0.0, 100.0], [0.0, 100.0]])
    low, high = bootstrap_interval([*scores.T], interquartile_mean)
    assert low == high == 50


def test_the_paired_interval_is_student_s_at_a_level_corrected_for_all_comparisons() -> None:
    x, y = SCORES["one task"][0][:, 0], SCORES["one task"][1][:, 0]
    found = paired_difference(x, y)
    theirs = stats.ttest_rel(x, y).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high])
    corrected, wide = paired_difference(x, y, comparisons=5), stats.ttest_rel(x, y).confidence_interval(0.99)
    assert corrected.confidence == pytest.approx(0.99)
    assert [corrected.low, corrected.high] == pytest.approx([wide.low, wide.high])
    assert found.wins == (x > y).sum()


def test_a_difference_is_shown_when_its_interval_excludes_zero() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert paired_difference(x, x - np.array([1, 1, 1, 1, 1.5])).shown
    assert paired_difference(x - np.array([1, 1, 1, 1, 1.5]), x).shown
    assert not paired_difference(x, x + np.array([2, -1, 1, -1, 1.5])).shown
    assert not paired_difference(x, x - 1).shown  # no spread, so no interval
    assert not paired_difference(x[:1], x[1:2]).shown
    with pytest.raises(ValueError, match="per seed"):
        paired_difference(x, x[1:])


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (-0.8, 15), (1.0, 10)])
def test_the_number_of_seeds_for_an_effect_matches_tables(effect: float, seeds: int) -> None:
    """The result of G*Power for a two-sided paired t test at 5 % with 80 % power."""
    assert seeds_needed(effect, 0.05) == seeds


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_number_of_unpaired_seeds_for_an_effect_matches_tables(effect: float, seeds: int) -> None:
    """The result of G*Power for each group of a two-sided two-sample t test at 5 % with 80 % power."""
    assert seeds_needed(effect, 0.05, samples=2) == seeds


def test_an_unpaired_difference_has_welchs_interval() -> None:
    x, y = SCORES["one task"][0][:, 0], SCORES["one task"][1][:7, 0]
    found = unpaired_difference(x, y, comparisons=5)
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.99)
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high])
    assert (found.n, found.k, found.paired, found.wins) == (10, 7, False, None)
    turned = unpaired_difference(y, x, comparisons=5)
    assert [turned.low, turned.high] == pytest.approx([-found.high, -found.low])
    like = stats.ttest_ind(x, x[::-1] + 3, equal_var=False)  # of one size and spread, that is Student's
    same = unpaired_difference(x, x[::-1] + 3, next_confidence=0.95)
    assert same.low == pytest.approx(like.confidence_interval(0.95).low)
    assert same.seeds_needed == seeds_needed(3 / float(x.std(ddof=1)), 0.05, samples=2)
    assert math.isnan(unpaired_difference(x, y[:1]).low)
    assert not unpaired_difference(np.ones(3), np.zeros(4)).shown  # without spread
    with pytest.raises(ValueError, match="both variants"):
        unpaired_difference(x, y[:0])


def test_more_comparisons_need_more_seeds_and_no_effect_needs_too_many() -> None:
    assert (seeds_needed(0.5, 0.01) or 0) > 34
    assert seeds_needed(0.0, 0.05) is None
    assert seeds_needed(0.01, 0.05) is None
    assert seeds_needed(1e6, 0.05) == 2


def test_the_power_is_the_share_of_simulated_tests_that_show_the_effect() -> None:
    n = seeds_needed(0.8, 0.05)
    assert n is not None
    draws = np.random.default_rng(0).normal(0.8, 1, (4000, n))
    share = np.mean(np.asarray(stats.ttest_1samp(draws, 0, axis=1).pvalue) < 0.05)
    assert share == pytest.approx(0.82, abs=0.03)


def test_a_run_that_does_not_reach_the_threshold_counts_as_later_than_all() -> None:
    assert steps_to(5, np.array([0.0, 10, 20, 30]), np.array([1.0, 6, 4, 7])) == 10
    assert steps_to(8, np.array([0.0, 10]), np.array([1.0, 6])) == math.inf
    low, high = median_interval(np.array([3.0, 1, 2, math.inf, 4, math.inf]))
    assert [low, high] == [1, math.inf]


def test_a_range_of_seeds_contains_the_number_that_a_true_effect_needs_in_four_of_five_pilots() -> None:
    true = seeds_needed(1.0, 0.05)
    assert true is not None
    pilots = np.random.default_rng(2).normal(1.0, 1, (100, 8))
    ranges = [paired_difference(pilot, np.zeros(8) + 1e-9 * pilot, next_confidence=0.95) for pilot in pilots]
    assert all(one.claim == "probability" for one in ranges)  # a variant without a spread is unlike the other
    ranges = [paired_difference(3 * pilot, 2 * pilot, next_confidence=0.95) for pilot in pilots]
    inside = [one.seeds_range[0] <= true <= (one.seeds_range[1] or math.inf) for one in ranges if one.seeds_range[0]]
    assert len(inside) == 100
    assert 70 <= sum(inside) <= 90


# Intervals


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 10, 13])
def test_the_interval_of_a_mean_matches_scipys_t_test(n: int) -> None:
    values = RANDOM.normal(size=n)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("n", [5, 6, 7, 9, 10, 11, 13])
def test_the_interval_of_a_trimmed_mean_matches_scipy(n: int) -> None:
    values = RANDOM.normal(size=n)
    theirs = stats.mstats.trimmed_mean_ci(values, limits=(0.25, 0.25))
    assert trimmed_mean_interval(values) == pytest.approx(tuple(theirs))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_untrimmed_mean_has_the_interval_of_a_mean(n: int) -> None:
    values = RANDOM.normal(size=n)
    np.testing.assert_allclose(trimmed_mean_interval(values), mean_interval(values))


@pytest.mark.parametrize("n", [4, 8, 12])
def test_the_interval_of_a_trimmed_mean_of_few_values_is_yuens(n: int) -> None:
    values = RANDOM.normal(size=n)
    low, high = trimmed_mean_interval(values)
    theirs = stats.ttest_ind(values, np.zeros(1000) + 1e-9 * RANDOM.normal(size=1000), trim=0.25, equal_var=False)
    centre, half = float(interquartile_mean(values)), float(high - low) / 2
    assert (low + high) / 2 == pytest.approx(centre)
    assert half == pytest.approx(abs(centre / theirs.statistic) * stats.t.ppf(0.975, n // 2 - 1), rel=1e-3)
    assert half > (stats.mstats.trimmed_mean_ci(values, limits=(0.25, 0.25))[1] - centre)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6)])
def test_the_interval_of_a_median_has_the_ranks_of_the_tables(n: int, rank: int) -> None:
    """Those of David & Nagaraja, and the sum of binomial probabilities that they come from."""
    values = RANDOM.permutation(np.arange(1.0, n + 1))
    assert list(median_interval(values)) == [rank, n + 1 - rank]
    inside = sum(math.comb(n, k) for k in range(rank, n - rank + 1)) / 2**n
    next_ = sum(math.comb(n, k) for k in range(rank + 1, n - rank)) / 2**n
    assert next_ < 0.95 <= inside


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_than_six_values_have_no_interval_of_their_median(n: int) -> None:
    assert np.isnan(median_interval(np.arange(float(n)))).all()


@pytest.mark.parametrize("n", [3, 4, 5, 8, 10])
@pytest.mark.parametrize("stat", ["mean", "iqm", "median"])
def test_an_interval_covers_normal_values(stat: Any, n: int) -> None:
    low, high = INTERVALS[stat](np.random.default_rng(n).normal(size=(4000, n)))
    covered = float(np.mean((low <= 0) & (high >= 0)))
    assert covered > 0.92 or (stat == "median" and n < 6)  # .93, less three standard errors of 4,000 data sets
    assert (covered == 0) == (stat == "median" and n < 6)


def test_a_ratio_of_means_has_the_interval_of_a_mean_where_its_denominator_is_one() -> None:
    values, ones = RANDOM.normal(size=9), np.ones(9)
    assert ratio_interval(values, ones) == pytest.approx(mean_interval(values))
    assert ratio_of_means(values, ones) == pytest.approx(values.mean())
    assert np.isnan(ratio_of_means(values, -ones))


def test_a_ratio_of_means_and_its_interval_are_right_where_a_mean_of_ratios_is_not() -> None:
    """|g|² - v of 1 ± 2 and v of 1 ± 0.5, which share a cause: the true ratio is 1."""
    draw = np.random.default_rng(5)
    v = draw.gamma(4, 0.25, (3000, 10))
    signal = 1 + 2 * (v - 1) + draw.normal(size=v.shape)
    assert abs(np.mean(signal / v) - 1) > 0.2
    low, high = ratio_interval(signal, v)
    assert np.mean((low <= 1) & (high >= 1)) > 0.92
    assert ratio_of_means(signal.ravel(), v.ravel()) == pytest.approx(1, abs=0.02)


# P(x > y)


def test_the_interval_of_an_improvement_follows_from_scipy_s_brunner_munzel_test() -> None:
    x, y = SCORES["one task"][0][:, 0], SCORES["one task"][1][:, 0] - 10
    p = float(probability_of_improvement(x, y))
    error = abs((p - 0.5) / stats.brunnermunzel(x, y).statistic) / (p * (1 - p))
    low, high = improvement_interval(x, y)
    logit = [math.log(edge / (1 - edge)) for edge in (low, p, high)]
    assert logit[2] - logit[1] == pytest.approx(logit[1] - logit[0])
    degrees = (logit[2] - logit[1]) / error
    assert stats.t.ppf(0.975, 18) - 1e-9 <= degrees <= stats.t.ppf(0.975, 9) + 1e-9  # Welch's, from 9 to 18


@pytest.mark.parametrize("shift", [0.0, 0.707, 1.406])
@pytest.mark.parametrize("n", [5, 10])
def test_the_interval_of_an_improvement_covers_at_few_seeds_too(n: int, shift: float) -> None:
    draw, truth = np.random.default_rng(3), float(stats.norm.cdf(shift))
    inside = 0
    for x, y in draw.normal(size=(400, 2, n)):
        low, high = improvement_interval(x + math.sqrt(2) * shift, y)
        inside += low <= truth <= high
    assert inside > 0.92 * 400


def test_improvement_in_all_seeds_does_not_prove_certain_improvement() -> None:
    above, below = np.arange(10.0) + 20, np.arange(10.0)
    low, high = improvement_interval(above, below)
    assert [low, high] == pytest.approx([0.025**0.1, 1])
    assert list(improvement_interval(below, above)) == pytest.approx([0, 1 - low])
    assert improvement_interval(above[:5], below[:5])[0] < 0.5
    assert np.isnan(improvement_interval(above[:4], below)).all()


# What may be shown


FAILS = "a variant with 20 % failing seeds at a ceiling"


def drawn(shape: str, draw: np.random.Generator, n: int) -> Array:
    """Draw n scores; variants of the same comparison have the same mean."""
    if shape == FAILS:  # its mean is 420
        return np.where(draw.random(n) < 0.2, 100 + 20 * draw.normal(size=n), 500.0)
    return draw.normal(420, {"steady": 5.0, "wide": 150.0}[shape], n)


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("difference", [paired_difference, unpaired_difference], ids=["paired", "unpaired"])
@pytest.mark.parametrize(
    "shapes", [("steady", "steady"), (FAILS, FAILS), (FAILS, "steady"), ("wide", "steady")], ids=str
)
def test_equal_means_are_rarely_shown_to_differ_for_any_shapes(
    shapes: tuple[str, str], difference: Callable[[Array, Array], Difference], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "seeds_needed", lambda *_: None)  # takes most of the time
    monkeypatch.setattr(scores_module, "_likely_seeds", lambda *_: (None, None))
    draw = np.random.default_rng(n)
    found = [difference(drawn(shapes[0], draw, n), drawn(shapes[1], draw, n)) for _ in range(400)]
    assert sum(one.shown and one.claim == "mean" for one in found) < 0.075 * 400
    if shapes[0] == FAILS and shapes[1] == "steady":  # Student's t alone shows a difference in 52 % at n = 3
        assert sum(one.claim == "probability" for one in found) > 0.99 * 400


def test_unlike_spreads_are_judged_by_the_probability_of_an_improvement() -> None:
    steady, wide = np.array([20.0, 21, 22, 23, 24, 25]), np.array([80.0, 150, 250, 100, 300, 200])
    found = paired_difference(wide, steady)
    assert (found.claim, found.shown, found.improvement) == ("probability", True, 1)
    assert (found.seeds_needed, found.seeds_range) == (None, (6, None))  # ½^6 < 0.05 / 2 < ½^5
    few = paired_difference(wide[:4], steady[:4])
    assert (few.claim, few.shown) == ("probability", False)


def test_all_looks_together_spend_five_percent() -> None:
    assert look_alpha(1) == pytest.approx(0.04)
    assert sum(look_alpha(k) for k in range(1, 60)) == pytest.approx(0.05)


def test_a_look_counts_the_seeds_that_no_earlier_one_has_used() -> None:
    assert fresh_seeds([0, 1, 2], []) == (1, [0, 1, 2])
    assert fresh_seeds([2, 1, 0], [[0, 1, 2]]) == (1, [2, 1, 0])  # that look again
    assert fresh_seeds([0, 1, 2, 3, 4], [[0, 1, 2]]) == (2, [3, 4])
    assert fresh_seeds([0, 1, 2, 3, 4], [[0, 1, 2], [0, 1, 2, 3, 4], [9]]) == (2, [3, 4])
    assert fresh_seeds([0, 1], [[0, 1, 2]]) == (1, [])  # nothing fresh


def test_a_second_look_keeps_the_error_rate_at_five_percent() -> None:
    """20,000 pairs without a difference: 5 seeds, then the fresh ones that the first look names, at most 100."""
    draw, runs = np.random.default_rng(11), 20_000
    first = draw.normal(size=(runs, 5))
    shown = excludes_zero(mean_interval(first, 1 - look_alpha(1)))
    effects = np.abs(first.mean(1) / first.std(1, ddof=1))
    grid = np.linspace(0.1, 4, 40)
    needed = np.array([min(seeds_needed(float(effect), look_alpha(2)) or 100, 100) for effect in grid])
    named = needed[np.clip(np.searchsorted(grid, effects), 0, len(grid) - 1)]
    for n in np.unique(named):
        rows = np.flatnonzero(named == n)
        shown[rows] |= excludes_zero(mean_interval(draw.normal(size=(len(rows), n)), 1 - look_alpha(2)))
    assert shown.mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def excludes_zero(interval: tuple[Array, Array]) -> Any:
    return (interval[0] > 0) | (interval[1] < 0)


@pytest.mark.parametrize("n", [4, 10])
def test_the_band_of_a_profile_covers_a_share(n: int) -> None:
    thresholds = np.array([0.0])
    bands = [performance_profile(scores, thresholds) for scores in np.random.default_rng(n).normal(size=(1000, n))]
    assert np.mean([low[0] <= 0.5 <= high[0] for _, low, high in bands]) > 0.93
    share, low, high = performance_profile(np.arange(10.0), np.array([-1.0, 4.5, 9.0]))
    exact = stats.binomtest(5, 10).proportion_ci()
    assert share.tolist() == [1, 0.5, 0]
    assert [low[1], high[1]] == pytest.approx([exact.low, exact.high])
    assert [high[0], low[2]] == [1, 0]
