"""The statistics of a comparison, against rliable's, tables of power, and cases that can be counted by hand."""

from __future__ import annotations

import importlib.util
import math
import sys
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pgcli.report.statistics import (
    bootstrap_interval,
    interquartile_mean,
    median_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    seeds_needed,
    steps_to,
)

RANDOM = np.random.default_rng(7)
SCORES = {
    "one task": (RANDOM.normal(100, 20, (10, 1)), RANDOM.normal(115, 30, (10, 1))),
    "three tasks": (RANDOM.normal(0, 1, (7, 3)), RANDOM.normal(0.4, 2, (9, 3))),
    "ties": (RANDOM.integers(0, 4, (8, 2)).astype(float), RANDOM.integers(0, 4, (8, 2)).astype(float)),
}


@pytest.fixture(scope="module")
def rliable() -> Any:
    """Give rliable's library and metrics, which need `arch.bootstrap` only: the rest of arch 7 breaks on pandas 3."""
    spec = importlib.util.find_spec("arch")
    assert spec is not None
    package = ModuleType("arch")
    package.__path__ = list(spec.submodule_search_locations or [])
    before = sys.modules.get("arch")
    sys.modules["arch"] = package
    try:
        from rliable import library, metrics
    finally:
        if before is not None:
            sys.modules["arch"] = before
    return library, metrics


@pytest.mark.parametrize("kind", SCORES)
def test_the_interquartile_mean_and_its_interval_are_those_of_rliable(kind: str, rliable: Any) -> None:
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
def test_the_probability_of_improvement_and_its_interval_are_those_of_rliable(kind: str, rliable: Any) -> None:
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
def test_the_performance_profile_is_that_of_rliable(kind: str, rliable: Any) -> None:
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


def test_runs_are_drawn_anew_within_each_task_and_never_across_tasks() -> None:
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
    with pytest.raises(ValueError, match="every seed"):
        paired_difference(x, x[1:])


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (-0.8, 15), (1.0, 10)])
def test_the_seeds_that_would_show_an_effect_are_those_of_the_tables(effect: float, seeds: int) -> None:
    """What G*Power gives for a two-sided paired t test at 5 % with 80 % power."""
    assert seeds_needed(effect, 0.05) == seeds


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
    assert median_interval(np.array([3.0, 1.0, math.inf])) == (3, 1, math.inf)
    assert median_interval(np.array([3.0, math.inf, math.inf]))[0] == math.inf
    assert median_interval(np.array([5.0, 5, 5])) == (5, 5, 5)
    assert median_interval(np.array([1.0, 2, math.inf, math.inf])) == (math.inf, 1, math.inf)  # the later of the middle


def test_the_interval_of_a_median_is_that_of_all_its_resamples() -> None:
    values = np.array([4.0, 1, 9, 16, 25, 36])
    medians = np.sort(np.array(list(product(values, repeat=6))), axis=1)[:, 3]
    low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    assert median_interval(values) == (16, low, high)
