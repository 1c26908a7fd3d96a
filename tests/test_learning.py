"""Shipped configs learn what the tables say: one seed of each, to its end or, where that takes long, to an evaluation.

Another CPU has other last bits, so that its seeds are other draws from the same distribution. Of normal returns, one
draw in 60 is outside of the bounds of ten others; a test fails if two seeds are.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pytest
from command_line import pgcli

DOCS = Path(__file__).parent.parent / "docs"
SECONDS = 15  # of CPU time for a whole training
EARLY_SECONDS = 40  # for the first part of a longer one
TRIED = (0, 1)  # seeds


def table(name: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of a table of docs/ by config."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (DOCS / name).open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["config"], []).append(row)
    return rows


def bounds(seeds: Sequence[float], returns: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the range of some seeds with half its width on each side.

    The lower bound is at least halfway to the best untrained policy or, if that is not below the range, to the worst.
    The upper bound is at most the best return that was ever found, such as the largest possible one.
    """
    low, high, untrained = min(seeds), max(seeds), returns[0]
    margin = (high - low) / 2
    way = low - (max(untrained) if low > max(untrained) else min(untrained))
    below = min(margin, way / 2) if way > 0 else margin
    return low - below, min(high + margin, max(high, *map(max, returns)))


def evaluations(config: str, column: str) -> list[tuple[float, ...]]:
    """Return the values of all seeds for each evaluation that all seeds have."""
    return list(zip(*([float(value) for value in row[column].split()] for row in CURVES[config]), strict=False))


def early(config: str, seconds: float) -> int | None:
    """Return the first evaluation that shows learning, else the last one that a seed reaches in EARLY_SECONDS."""
    returns, steps = evaluations(config, "returns"), evaluations(config, "env_steps")
    reached = [k for k in range(1, len(steps) - 1) if seconds * median(steps[k]) / median(steps[-1]) <= EARLY_SECONDS]
    visible = [k for k in reached if 1.5 * min(returns[k]) - 0.5 * max(returns[k]) > max(returns[0])]
    return min(visible, default=max(reached, default=None))


ROWS, CURVES = table("results.csv"), table("curves.csv")
TIMES = {
    config: max((float(row["cpu_seconds"]) for row in rows if row["cpu_seconds"]), default=math.inf)
    for config, rows in ROWS.items()
}
QUICK = sorted(config for config in CURVES if TIMES[config] <= SECONDS)
EARLY = {config: early(config, TIMES[config]) for config in sorted(CURVES) if config not in QUICK}


def check(low: float, high: float, tried: Callable[[int], tuple[float, float]]) -> None:
    """Raise AssertionError if no tried seed has a return within bounds, up to four of its standard errors."""
    found = []
    for seed in TRIED:
        mean, error = tried(seed)
        if low - 4 * error <= mean <= high + 4 * error:
            return
        found.append(f"{mean:.5g} ± {error:.3g}")
    raise AssertionError(f"{' and '.join(found)} are not between {low:.5g} and {high:.5g}")


@pytest.mark.slow("trains a shipped config to its end")
@pytest.mark.parametrize("config", QUICK)
def test_the_final_policy_of_a_shipped_config_is_in_the_range_of_the_table(config: str, tmp_path: Path) -> None:
    returns = [float(row["sampled"]) for row in ROWS[config]]

    def final(seed: int) -> tuple[float, float]:
        run = f"seed-{seed}"
        pgcli("train", config, f"seed={seed}", "--run-dir", run, "--quiet", cwd=tmp_path, timeout=900)
        done = pgcli("eval", run, "--seed", "1000", "--json", cwd=tmp_path, timeout=900)
        found = json.loads(done.stdout)
        return found["mean_return"], found["standard_error"]

    check(*bounds(returns, evaluations(config, "returns")), final)


@pytest.mark.slow("trains the first part of a shipped config")
@pytest.mark.parametrize(("config", "number"), [(config, k) for config, k in EARLY.items() if k])
def test_an_evaluation_during_a_long_training_is_in_the_range_of_the_table(
    config: str, number: int, tmp_path: Path
) -> None:
    """A rule of `evaluation` ends the run: the budget, and with it all schedules, are those of the whole training."""

    def evaluated(seed: int) -> tuple[float, float]:
        words = [f"seed={seed}", "evaluation.stop_at_return=-1e9", f"evaluation.stop_evaluations={number + 1}"]
        pgcli("train", config, *words, "--run-dir", f"seed-{seed}", "--quiet", cwd=tmp_path, timeout=900)
        with (tmp_path / f"seed-{seed}/evaluations.csv").open(newline="") as file:
            row = list(csv.DictReader(file))[number]
        return float(row["return_mean"]), float(row["return_standard_error"])

    returns = evaluations(config, "returns")
    check(*bounds(returns[number], returns), evaluated)
