"""The report of `pgcli compare`: results of each variant and each pair with intervals, and conclusions.

In the tables, whose columns users' scripts read, a variant is called an arm.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.config import Config
from pgcli.errors import RunDirectoryError
from pgcli.report.statistics import (
    CONFIDENCE,
    MOST_SEEDS,
    SCORE_RESAMPLES,
    Array,
    Difference,
    bootstrap_interval,
    interquartile_mean,
    median_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    steps_to,
)
from pgcli.report.text import short
from pgcli.runs.files import make_folder, read_json, storage, write_whole
from pgcli.runs.tables import Table, read_table
from pgcli.studies.page import TABLES, as_csv, markdown, same_decimals
from pgcli.system.streams import printable

PROFILE_POINTS = 101
UNEQUAL = 0.05  # relative difference in env steps from which a note reports it
FEW_SEEDS = 5  # below which a note reports what the intervals assume
SHARE_OF_GAIN = 0.9  # of the improvement over the untrained policies; the threshold if the environment has none


@dataclass(frozen=True)
class RunSummary:
    """The results of one run; `env_steps` and `returns` [E] are its evaluations."""

    seed: int
    path: Path
    status: str
    reason: str
    env_steps: Array
    returns: Array
    steps: int  # trained
    iterations: int
    seconds: float
    steps_per_second: float
    threshold: float | None  # registered with the environment
    versions: str
    gradients: dict[str, tuple[float, float]]  # estimator: median variance, median signal-to-noise ratio

    @property
    def finished(self) -> bool:
        """Whether the run used its whole budget."""
        return self.status == "finished"


def write_report(
    folder: Path,
    config: Config,
    paths: Mapping[str, Mapping[int, Path]],
    threshold: float | None,
    command: Sequence[str],
) -> dict[str, Any]:
    """Compare runs by their final evaluations, and write report.md, figures and tables into `folder`.

    The score of a run is the mean return of its last evaluation. A run that diverged or failed did not use its budget:
    its score is the lower one of its first evaluation, of the untrained policy, and its last. Without any evaluation it
    is the lowest evaluation of the whole comparison. No run is left out.
    Args: config, of any variant, for the shared settings; paths, the run directories by variant and seed, with the same
    seeds for each variant.
    Raises: RunDirectoryError if a run is unreadable or no run has an evaluation.
    """
    runs = {label: [read_run(path, seed) for seed, path in one.items()] for label, one in paths.items()}
    result = analyze(runs, threshold) | {
        "directory": str(folder),
        "name": config.name,
        "command": f"pgcli {shlex.join(command)}",
        "env": config.env.id,
        "seeds": list(next(iter(paths.values()))),
        "env_steps": config.training.env_steps,
        "evaluation": f"{config.evaluation.episodes} episodes, {config.evaluation.mode}",
    }
    from pgcli.studies.figures import draw  # imports matplotlib

    with storage(folder):
        make_folder(folder)
        for name in TABLES:
            path = folder / f"{name}.csv"
            if result[name]:
                write_whole(path, printable(as_csv(result[name])).encode())
            else:
                path.unlink(missing_ok=True)  # of an earlier report
        draw(folder, result, [run.path for one in runs.values() for run in one if len(run.returns)])
        write_whole(folder / "report.md", printable(markdown(result)).encode())
    return result


# Reading


def read_run(path: Path, seed: int) -> RunSummary:
    """Read the results of a run in any state."""
    status = read_json(path / "status.json") if (path / "status.json").exists() else {}
    told = str(status.get("status", "not started"))
    ended = told == "finished"
    evaluations = _read(path / "evaluations.csv", ("env_steps", "return_mean"), ended)
    metrics = _read(path / "metrics.csv", ("env_steps",), ended)
    timing = _read(path / "timing.csv", ("elapsed_seconds", "collect_seconds", "update_seconds"), ended)
    information = read_json(path / "run.json") if (path / "run.json").exists() else {}
    value = information.get("reward_threshold")
    steps = int(metrics["env_steps"][-1]) if metrics.rows else 0
    worked = float(np.nansum(timing["collect_seconds"]) + np.nansum(timing["update_seconds"]))
    versions = {"pgcli": information.get("pgcli")} | dict(information.get("versions") or {})
    return RunSummary(
        seed,
        path,
        told,
        str(status.get("reason", "")),
        evaluations["env_steps"],
        evaluations["return_mean"],
        steps,
        metrics.rows,
        float(timing["elapsed_seconds"][-1]) if timing.rows else math.nan,
        steps / worked if worked else math.nan,
        float(value) if isinstance(value, int | float) else None,
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        _gradients(path / "gradients.csv", ended),
    )


def _read(path: Path, columns: Sequence[str], ended: bool) -> Table:
    """Read a table; of a run that did not finish it may be missing."""
    return read_table(path, columns, whole=ended) if ended or path.exists() else Table(path)


def _gradients(path: Path, ended: bool) -> dict[str, tuple[float, float]]:
    if not path.exists():
        return {}
    table = read_table(path, ("estimator", "gradient_variance", "snr"), whole=ended)
    names = table.words.get("estimator", np.full(table.rows, "gradient"))
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        values = [table[column][rows] for column in ("gradient_variance", "snr")]
        variance, ratio = (
            float(np.median(one[np.isfinite(one)])) if np.isfinite(one).any() else math.nan for one in values
        )
        found[name] = (variance, ratio)
    return found


# Tables


def analyze(runs: dict[str, list[RunSummary]], threshold: float | None = None) -> dict[str, Any]:
    """Compute all tables of a comparison from its runs by variant, each in the order of the same seeds."""
    every = [run for one in runs.values() for run in one]
    lowest = min((float(run.returns.min()) for run in every if len(run.returns)), default=math.nan)
    if math.isnan(lowest):
        raise RunDirectoryError(
            f"{every[0].path.parent}: not one run has an evaluation", every[0].reason or "see what the runs told"
        )
    scores = {label: np.array([_score(run, lowest) for run in one]) for label, one in runs.items()}
    goal, rule = _threshold(runs, scores, threshold)
    couples = list(combinations(runs, 2))
    return {
        "threshold": goal,
        "threshold_rule": rule,
        "confidence": 1 - (1 - CONFIDENCE) / len(couples),
        "arms": [_variant_row(label, one, scores[label], goal) for label, one in runs.items()],
        "pairs": [_pair_row(a, b, scores[a], scores[b], len(couples)) for a, b in couples],
        "runs": [
            _run_row(label, run, score, goal)
            for label, one in runs.items()
            for run, score in zip(one, scores[label].tolist(), strict=True)
        ],
        "profile": list(_profile_rows(scores)),
        "gradients": list(_gradient_rows(runs)),
        "notes": list(_notes(runs, scores)),
    }


def _score(run: RunSummary, lowest: float) -> float:
    if not len(run.returns):
        return lowest
    return float(run.returns[-1] if run.finished else min(run.returns[0], run.returns[-1]))


def _threshold(
    runs: dict[str, list[RunSummary]], scores: dict[str, Array], wanted: float | None
) -> tuple[float | None, str]:
    """Return the return that counts as reached, None without one, and the rule that chose it."""
    if wanted is not None:
        return wanted, "as asked for by --threshold"
    evaluated = [run for one in runs.values() for run in one if len(run.returns)]
    registered = {run.threshold for run in evaluated}
    if len(registered) == 1 and (known := registered.pop()) is not None:
        return known, "the environment's reward threshold"
    start = float(np.mean([run.returns[0] for run in evaluated]))
    best = max(float(interquartile_mean(one)) for one in scores.values())
    if best <= start:
        return None, "none: the environment has no reward threshold, and no arm ends above the untrained policies"
    goal = start + SHARE_OF_GAIN * (best - start)
    way = f"from the untrained policies' mean {short(start)} to the best arm's {short(best)}"
    rule = f"{100 * SHARE_OF_GAIN:.0f} % of the way {way}, for the environment has no reward threshold"
    return goal, rule


def _iqm(name: str, scores: Array) -> dict[str, float]:
    """Return the interquartile mean and its interval as columns; nan without any score."""
    low, high = bootstrap_interval([scores], interquartile_mean, SCORE_RESAMPLES)
    value = interquartile_mean(scores) if len(scores) else math.nan
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _steps_to(goal: float | None, run: RunSummary) -> float:
    return math.nan if goal is None else steps_to(goal, run.env_steps, run.returns)


def _finite_median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _variant_row(label: str, runs: list[RunSummary], scores: Array, goal: float | None) -> dict[str, Any]:
    times = np.array([_steps_to(goal, run) for run in runs])
    median, low, high = median_interval(times)
    return {
        "arm": label,
        "seeds": len(runs),
        "finished": sum(run.finished for run in runs),
        "diverged": sum(run.status == "diverged" for run in runs),
        "failed": sum(run.status not in ("finished", "diverged") for run in runs),
        **_iqm("iqm", scores),
        "mean": float(scores.mean()),
        "standard_error": float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan,
        "min": float(scores.min()),
        "max": float(scores.max()),
        "reached": int(np.isfinite(times).sum()),
        "steps_median": median,
        "steps_low": low,
        "steps_high": high,
        "env_steps_mean": float(np.mean([run.steps for run in runs])),
        "seconds_median": _finite_median([run.seconds for run in runs]),
        "steps_per_second_median": _finite_median([run.steps_per_second for run in runs]),
    }


def _pair_row(a: str, b: str, x: Array, y: Array, pairs: int) -> dict[str, Any]:
    difference = paired_difference(x, y, pairs)
    low, high = bootstrap_interval([x, y], probability_of_improvement)
    varied = len(x) > 1 and x.std() > 0 and y.std() > 0
    return {
        "a": a,
        "b": b,
        "seeds": difference.n,
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "confidence": difference.confidence,
        "deviation": difference.deviation,
        "correlation": float(np.corrcoef(x, y)[0, 1]) if varied else math.nan,
        "wins": difference.wins,
        "ties": difference.ties,
        "improvement": float(probability_of_improvement(x, y)),
        "improvement_low": float(low),
        "improvement_high": float(high),
        "shown": difference.shown,
        "seeds_needed": difference.seeds_needed,
        "sentence": conclusion(a, b, difference),
    }


def conclusion(a: str, b: str, difference: Difference) -> str:
    """Write what a pair's difference shows, or how many seeds would show it."""
    d, n = difference, difference.n
    higher, lower = (a, b) if d.mean >= 0 else (b, a)
    if n == 1:
        return f"`{a}` and `{b}`: one seed shows no spread, so that nothing is shown."
    if d.deviation == 0:
        same = "the same return" if d.mean == 0 else f"`{higher}` above by the same {short(abs(d.mean))}"
        return f"`{a}` and `{b}`: {same} on each of {n} seeds, without a spread to reckon with: nothing is shown."
    low, high = (d.low, d.high) if d.mean >= 0 else (-d.high, -d.low)
    size, *edges = same_decimals(abs(d.mean), low, high)
    interval = " to ".join(edges)
    if d.shown:
        return f"`{higher}` is above `{lower}` by {size} ({interval}; {n} paired seeds): shown."
    more = f"about {d.seeds_needed:,}" if d.seeds_needed else f"more than {MOST_SEEDS:,}"
    missing = f"not shown with {n} paired seeds; {more} would show it"
    return f"`{higher}` above `{lower}` by {size} ({interval}): {missing}."


def _run_row(label: str, run: RunSummary, score: float, goal: float | None) -> dict[str, Any]:
    return {
        "arm": label,
        "seed": run.seed,
        "status": run.status,
        "final_return": score,
        "last_evaluation": float(run.returns[-1]) if len(run.returns) else math.nan,
        "best_evaluation": float(run.returns.max()) if len(run.returns) else math.nan,
        "steps_to_threshold": _steps_to(goal, run),
        "env_steps": run.steps,
        "iterations": run.iterations,
        "seconds": run.seconds,
        "run": str(run.path),
    }


def _profile_rows(scores: dict[str, Array]) -> Iterator[dict[str, Any]]:
    every = np.concatenate(list(scores.values()))
    low, high = float(every.min()), float(every.max())
    margin = 0.02 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, PROFILE_POINTS)
    for label, one in scores.items():
        columns = (column.tolist() for column in (thresholds, *performance_profile(one, thresholds)))
        for x, share, low, high in zip(*columns, strict=True):
            yield {"arm": label, "threshold": x, "share": share, "share_low": low, "share_high": high}


def _gradient_rows(runs: dict[str, list[RunSummary]]) -> Iterator[dict[str, Any]]:
    for label, one in runs.items():
        for name in dict.fromkeys(name for run in one for name in run.gradients):
            found = np.array([run.gradients[name] for run in one if name in run.gradients])
            row: dict[str, Any] = {"arm": label, "estimator": name, "seeds": len(found)}
            for column, values in zip(("gradient_variance", "snr"), found.T, strict=True):
                row |= _iqm(column, values[np.isfinite(values)])
            yield row


def _notes(runs: dict[str, list[RunSummary]], scores: dict[str, Array]) -> Iterator[str]:
    """Write what limits the conclusions: unfinished runs, unequal budgets or versions, few seeds."""
    for label, one in runs.items():
        for run, score in zip(one, scores[label].tolist(), strict=True):
            if not run.finished:
                why = f": {run.reason}" if run.reason else ""
                ended = f"`{label}`, seed {run.seed}: {run.status} at iteration {run.iterations}{why}"
                rule = "the lower of its first and its last evaluation" if len(run.returns) else "the lowest of all"
                yield f"{ended}. It counts with {short(score)}, {rule}."
    trained = [[run.steps for run in one if run.finished] for one in runs.values()]
    used = [float(np.mean(steps)) for steps in trained if steps]
    if used and max(used) > (1 + UNEQUAL) * min(used):
        steps = f"{min(used):,.0f} to {max(used):,.0f} env steps"
        yield (
            f"A run ends with a whole iteration: on average the arms used {steps}. A larger budget, or fewer episodes "
            "in an iteration, makes that matter less."
        )
    versions = {run.versions for one in runs.values() for run in one if run.versions}
    if len(versions) > 1:
        yield f"The runs were made with different versions: {'; '.join(sorted(versions))}."
    seeds = len(next(iter(runs.values())))
    if seeds == 1:
        yield "One seed shows no spread: there are no intervals."
    elif seeds < FEW_SEEDS:
        yield f"With {seeds} seeds, intervals suppose differences that are about normal. More seeds are better."
