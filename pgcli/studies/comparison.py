"""What `pgcli compare` reports of the runs of its arms: numbers with intervals, and sentences that they bear out."""

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
from pgcli.report.scores import (
    CONFIDENCE,
    MOST_SEEDS,
    Array,
    Difference,
    Estimate,
    improvement_interval,
    interquartile_mean,
    median_interval,
    paired_difference,
    performance_profile,
    steps_to,
    stratified_interval,
)
from pgcli.report.text import short
from pgcli.runs.columns import Columns, read_columns
from pgcli.runs.files import make_folder, read_json, storage, write_whole
from pgcli.studies.page import TABLES, alike, as_csv, markdown

PROFILE_POINTS = 101
UNEQUAL = 0.05  # of the env steps, beyond which the reader is told
FEW_SEEDS = 5  # below which the reader is told what the intervals rest on
SHARE_OF_GAIN = 0.9  # of what was learned, where no return is registered as solving the environment


@dataclass(frozen=True)
class Run:
    """What a comparison reads of one run; `env_steps` and `returns` [E] are its evaluations."""

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
        """Whether it used its whole budget."""
        return self.status == "finished"


def report(
    folder: Path,
    config: Config,
    paths: Mapping[str, Mapping[int, Path]],
    threshold: float | None,
    command: Sequence[str],
) -> dict[str, Any]:
    """Compare runs by their final evaluations, and write report.md, figures and tables into `folder`.

    A run counts with the mean return of its last evaluation. One that diverged or failed did not use its budget: it
    counts with the lower one of its first evaluation, of the untrained policy, and its last; without any evaluation,
    with the lowest of the whole comparison. None is left out.
    Args: config, of any arm: what all have in common; paths, the run directories by arm and seed, the seeds the same.
    Raises: RunDirectoryError for a run that cannot be read, or if not one evaluation is there.
    """
    runs = {label: [read_run(path, seed) for seed, path in one.items()] for label, one in paths.items()}
    result = examine(runs, threshold) | {
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
                write_whole(path, as_csv(result[name]).encode())
            else:
                path.unlink(missing_ok=True)  # of an earlier report
        draw(folder, result, [run.path for one in runs.values() for run in one if len(run.returns)])
        write_whole(folder / "report.md", markdown(result).encode())
    return result


# ------------------------------------------------------------------------------------------------------------- reading


def read_run(path: Path, seed: int) -> Run:
    """Read one run, however it ended."""
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
    return Run(
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


def _read(path: Path, columns: Sequence[str], ended: bool) -> Columns:
    """Read a table; of a run that did not finish it may be missing."""
    if not ended and not path.exists():
        return Columns(path, 0, {}, {})
    return read_columns(path, columns, whole=ended)


def _gradients(path: Path, ended: bool) -> dict[str, tuple[float, float]]:
    if not path.exists():
        return {}
    table = read_columns(path, ("gradient_variance", "snr"), ("estimator",), whole=ended)
    names = table.words.get("estimator", np.full(table.rows, b"gradient"))
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        values = [table[column][rows] for column in ("gradient_variance", "snr")]
        variance, ratio = (
            float(np.median(one[np.isfinite(one)])) if np.isfinite(one).any() else math.nan for one in values
        )
        found[name.decode(errors="replace")] = (variance, ratio)
    return found


# ----------------------------------------------------------------------------------------------------------- reckoning


def examine(runs: dict[str, list[Run]], threshold: float | None = None) -> dict[str, Any]:
    """Reckon all tables of a comparison from its runs, those of each arm in the order of the same seeds."""
    every = [run for one in runs.values() for run in one]
    lowest = min((float(run.returns.min()) for run in every if len(run.returns)), default=math.nan)
    if math.isnan(lowest):
        raise RunDirectoryError(
            f"{every[0].path.parent}: not one run has an evaluation", every[0].reason or "see what the runs told"
        )
    scores = {label: np.array([_counted(run, lowest) for run in one]) for label, one in runs.items()}
    goal, rule = _threshold(runs, scores, threshold)
    arms = [_arm(label, one, scores[label], goal) for label, one in runs.items()]
    couples = list(combinations(runs, 2))
    pairs = [_pair(a, b, scores[a], scores[b], len(couples)) for a, b in couples]
    return {
        "threshold": goal,
        "threshold_rule": rule,
        "confidence": 1 - (1 - CONFIDENCE) / len(couples),
        "arms": arms,
        "pairs": pairs,
        "runs": [
            _row(label, run, score, goal)
            for label in runs
            for run, score in zip(runs[label], scores[label], strict=True)
        ],
        "profile": list(_profile(scores)),
        "gradients": list(_gradient_rows(runs)),
        "notes": list(_notes(runs, scores)),
    }


def _counted(run: Run, lowest: float) -> float:
    if not len(run.returns):
        return lowest
    return float(run.returns[-1] if run.finished else min(run.returns[0], run.returns[-1]))


def _threshold(runs: dict[str, list[Run]], scores: dict[str, Array], wanted: float | None) -> tuple[float | None, str]:
    """Choose the return whose first reaching is timed, and say by what rule."""
    if wanted is not None:
        return wanted, "as asked for by --threshold"
    registered = {run.threshold for one in runs.values() for run in one if len(run.returns)}
    if len(registered) == 1 and (known := registered.pop()) is not None:
        return known, "the environment's reward threshold"
    start = float(np.mean([run.returns[0] for one in runs.values() for run in one if len(run.returns)]))
    best = max(float(interquartile_mean(one[:, None])) for one in scores.values())
    if best <= start:
        return None, "none: the environment has no reward threshold, and no arm ends above the untrained policies"
    goal = start + SHARE_OF_GAIN * (best - start)
    way = f"from the untrained policies' mean {short(start)} to the best arm's {short(best)}"
    rule = f"{100 * SHARE_OF_GAIN:.0f} % of the way {way}, for the environment has no reward threshold"
    return goal, rule


def _arm(label: str, runs: list[Run], scores: Array, goal: float | None) -> dict[str, Any]:
    matrix = scores[:, None]
    low, high = stratified_interval(matrix, interquartile_mean)
    times = np.array([math.inf if goal is None else _time_to(run, goal) for run in runs])
    steps = Estimate(math.nan, math.nan, math.nan) if goal is None else median_interval(times)
    seconds = np.array([run.seconds for run in runs])
    rates = np.array([run.steps_per_second for run in runs])
    return {
        "arm": label,
        "seeds": len(runs),
        "finished": sum(run.finished for run in runs),
        "diverged": sum(run.status == "diverged" for run in runs),
        "failed": sum(run.status not in ("finished", "diverged") for run in runs),
        "iqm": float(interquartile_mean(matrix)),
        "iqm_low": float(low),
        "iqm_high": float(high),
        "mean": float(scores.mean()),
        "standard_error": float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan,
        "min": float(scores.min()),
        "max": float(scores.max()),
        "reached": 0 if goal is None else int(np.isfinite(times).sum()),
        "steps_median": steps.value,
        "steps_low": steps.low,
        "steps_high": steps.high,
        "env_steps_mean": float(np.mean([run.steps for run in runs])),
        "seconds_median": float(np.nanmedian(seconds)) if np.isfinite(seconds).any() else math.nan,
        "steps_per_second_median": float(np.nanmedian(rates)) if np.isfinite(rates).any() else math.nan,
    }


def _time_to(run: Run, goal: float) -> float:
    return steps_to(goal, run.env_steps, run.returns)


def _pair(a: str, b: str, x: Array, y: Array, pairs: int) -> dict[str, Any]:
    difference = paired_difference(x, y, pairs)
    improvement = improvement_interval(x[:, None], y[:, None])
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
        "improvement": improvement.value,
        "improvement_low": improvement.low,
        "improvement_high": improvement.high,
        "shown": difference.shown,
        "seeds_needed": difference.seeds_needed,
        "sentence": sentence(a, b, difference),
    }


def sentence(a: str, b: str, difference: Difference) -> str:
    """Say of a pair what is shown, what is not, and how many seeds would show it."""
    d, n = difference, difference.n
    higher, lower = (a, b) if d.mean >= 0 else (b, a)
    if n == 1:
        return f"`{a}` and `{b}`: one seed shows no spread, so that nothing is shown."
    if d.deviation == 0:
        same = "the same return" if d.mean == 0 else f"`{higher}` above by the same {short(abs(d.mean))}"
        return f"`{a}` and `{b}`: {same} on each of {n} seeds, without a spread to reckon with: nothing is shown."
    low, high = (d.low, d.high) if d.mean >= 0 else (-d.high, -d.low)
    size, *edges = alike(abs(d.mean), low, high)
    interval = " to ".join(edges)
    if d.shown:
        return f"`{higher}` is above `{lower}` by {size} ({interval}; {n} paired seeds): shown."
    more = f"about {d.seeds_needed:,}" if d.seeds_needed else f"more than {MOST_SEEDS:,}"
    missing = f"not shown with {n} paired seeds; {more} would show it"
    return f"`{higher}` above `{lower}` by {size} ({interval}): {missing}."


def _row(label: str, run: Run, score: float, goal: float | None) -> dict[str, Any]:
    return {
        "arm": label,
        "seed": run.seed,
        "status": run.status,
        "final_return": float(score),
        "last_evaluation": float(run.returns[-1]) if len(run.returns) else math.nan,
        "best_evaluation": float(run.returns.max()) if len(run.returns) else math.nan,
        "steps_to_threshold": math.nan if goal is None else _time_to(run, goal),
        "env_steps": run.steps,
        "iterations": run.iterations,
        "seconds": run.seconds,
        "run": str(run.path),
    }


def _profile(scores: dict[str, Array]) -> Iterator[dict[str, Any]]:
    low, high = (float(edge(np.concatenate(list(scores.values())))) for edge in (np.min, np.max))
    margin = 0.02 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, PROFILE_POINTS)
    for label, one in scores.items():
        shares = performance_profile(one[:, None], thresholds)
        lows, highs = stratified_interval(one[:, None], lambda x: performance_profile(x, thresholds), resamples=2_000)
        for row in zip(thresholds, shares, lows, highs, strict=True):
            yield {"arm": label} | dict(
                zip(("threshold", "share", "share_low", "share_high"), map(float, row), strict=True)
            )


def _gradient_rows(runs: dict[str, list[Run]]) -> Iterator[dict[str, Any]]:
    for label, one in runs.items():
        for name in dict.fromkeys(name for run in one for name in run.gradients):
            found = np.array([run.gradients[name] for run in one if name in run.gradients])
            row: dict[str, Any] = {"arm": label, "estimator": name, "seeds": len(found)}
            for column, values in zip(("gradient_variance", "snr"), found.T, strict=True):
                matrix = values[np.isfinite(values)][:, None]
                edges = stratified_interval(matrix, interquartile_mean) if len(matrix) else (math.nan, math.nan)
                row[column] = float(interquartile_mean(matrix)) if len(matrix) else math.nan
                row[f"{column}_low"], row[f"{column}_high"] = map(float, edges)
            yield row


def _notes(runs: dict[str, list[Run]], scores: dict[str, Array]) -> Iterator[str]:
    """Say what a reader must know of single runs."""
    for label, one in runs.items():
        for run, score in zip(one, scores[label], strict=True):
            if not run.finished:
                why = f": {run.reason}" if run.reason else ""
                ended = f"`{label}`, seed {run.seed}: {run.status} at iteration {run.iterations}{why}"
                rule = "the lower of its first and its last evaluation" if len(run.returns) else "the lowest of all"
                yield f"{ended}. It counts with {short(float(score))}, {rule}."
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
