"""Statements about learning in README and the lesson: directions over a few seeds, not digits."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import pytest
from command_line import pgcli


def final_return(folder: Path, *command: str, seeds: str) -> float:
    """Train a config with some seeds; return the mean over seeds of their last evaluations."""
    runs = folder / " ".join(command).replace("/", "-")
    options = ("--seeds", seeds, "--run-dir", runs, "--quiet")
    pgcli("train", *command, "evaluation.stop_at_return=null", *options, cwd=folder, timeout=900)
    last = []
    for table in sorted(runs.glob("seed-*/evaluations.csv")):
        with table.open(newline="") as file:
            last.append(float(list(csv.DictReader(file))[-1]["return_mean"]))
    return fmean(last)


@pytest.mark.slow("20 trainings of 30,000 steps")
def test_readme_runs_with_a_baseline_end_higher(tmp_path: Path) -> None:
    command = ("cartpole", "algorithm.standardize=none", "training.env_steps=30000", "evaluation.every=null")
    baseline, none = (
        final_return(tmp_path, *command, f"algorithm.baseline={name}", seeds="0-9") for name in ("mean", "none")
    )
    assert baseline > none + 30


@pytest.mark.slow("8 trainings of 40,000 steps")
def test_readme_ppo_needs_fewer_steps_than_rloo(tmp_path: Path) -> None:
    command = ("training.env_steps=40000", "evaluation.every=null")
    ppo, rloo = (final_return(tmp_path, f"cartpole/{name}", *command, seeds="0-3") for name in ("ppo", "rloo"))
    assert ppo > rloo + 30


@pytest.mark.slow("6 trainings of 30 iterations")
def test_the_exercise_as_posed_learns_little_and_the_solution_passes_100(tmp_path: Path) -> None:
    posed, solved = (
        final_return(tmp_path, name, "evaluation.every=null", seeds="0-2") for name in ("tutorial", "tutorial-solved")
    )
    assert posed < 100 < solved
    assert solved > 3 * posed


@pytest.mark.slow("8 trainings of 30,000 steps")
def test_without_the_weight_of_the_discount_a_policy_learns_faster(tmp_path: Path) -> None:
    command = ("lesson/discount", "training.env_steps=30000", "evaluation.every=null")
    without, weighted = (
        final_return(tmp_path, *command, f"algorithm.discount_weighting={name}", seeds="0-3")
        for name in ("false", "true")
    )
    assert without > 1.3 * weighted


@pytest.mark.slow("a training of 15 iterations")
def test_a_baseline_matters_most_for_groups(tmp_path: Path) -> None:
    grpo, others, none = (
        mean_of("snr", tmp_path, "lesson/groups", table="gradients", estimator=estimator)
        for estimator in ("total+group+group", "total+leave_one_out", "total+none")
    )
    assert min(grpo, others) > none + 0.5


def mean_of(column: str, folder: Path, *command: str, table: str = "metrics", estimator: str = "") -> float:
    """Train, unless the run exists, and return the mean of a column over the rows that have a value."""
    run = folder / " ".join(command).replace("/", "-")
    if not run.exists():
        pgcli("train", *command, "--run-dir", run, "--quiet", cwd=folder)
    with (run / f"{table}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("estimator", "") == estimator]
    return fmean(float(row[column]) for row in rows if row[column])


@pytest.mark.slow("a training of 40 iterations")
def test_reward_to_go_and_baselines_remove_most_of_the_variance(tmp_path: Path) -> None:
    total, rloo, to_go, mean = (
        mean_of("gradient_variance", tmp_path, "lesson/variance", table="gradients", estimator=estimator)
        for estimator in ("total+none", "total+leave_one_out", "reward_to_go+none", "reward_to_go+mean")
    )
    assert mean < 0.6 * to_go < 0.3 * total
    assert rloo < 0.4 * total


@pytest.mark.slow("two trainings of 32,000 steps")
def test_larger_steps_leave_a_smaller_effective_sample_size(tmp_path: Path) -> None:
    def effective_sample_size(*overrides: str) -> float:
        return mean_of("effective_sample_size", tmp_path, "lesson/reuse", *overrides)

    assert effective_sample_size("optimizer.learning_rate=0.01") < effective_sample_size() - 100


@pytest.mark.slow("two trainings of 5,000 steps")
def test_the_clip_keeps_updates_small(tmp_path: Path) -> None:
    command = ("lesson/clip", "training.env_steps=5000")
    clipped = mean_of("approx_kl", tmp_path, *command)
    assert clipped < 0.1 * mean_of("approx_kl", tmp_path, *command, "algorithm.objective=importance_sampling")
