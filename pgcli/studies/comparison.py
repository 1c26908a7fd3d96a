"""The report of `pgcli compare`: results of variants and pairs with intervals, and conclusions.

The CSV tables and JSON keep the column name `arm` for a variant, because scripts read them.
"""

from __future__ import annotations

import csv
import math
import os
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
    FEW_SEEDS,
    MOST_SEEDS,
    Difference,
    fresh_seeds,
    improvement_interval,
    look_alpha,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    steps_to,
)
from pgcli.report.statistics import (
    Array,
    interquartile_mean,
    mean_interval,
    median_interval,
    ratio_interval,
    ratio_of_means,
    trimmed_mean_interval,
    value_at,
)
from pgcli.report.text import same_decimals, short
from pgcli.runs.files import make_folder, storage, write_whole
from pgcli.runs.information import read_information, read_status
from pgcli.runs.outputs import is_ours
from pgcli.runs.tables import Table, read_table
from pgcli.studies.page import RETURN, TABLES, as_csv, markdown, quantity
from pgcli.system.streams import printable

FIGURES = ("returns", "differences", "curves")
PROFILE_POINTS = 101
UNEQUAL = 0.05  # relative difference in env steps that a note reports
MOSTLY_EVALUATION = 0.5  # share of the variance over seeds for a note about evaluation episodes
_NO_NUMBER = "`logging.info` names the entries of info that evaluations average"
SHARE_OF_GAIN = 0.9  # of the improvement over untrained policies; default threshold if the environment has none


@dataclass(frozen=True)
class RunSummary:
    """The results of one run; `env_steps` and `values` [E] are its evaluations, of the compared column."""

    seed: int
    path: Path
    status: str
    reason: str
    env_steps: Array
    values: Array
    error: float  # standard error of the last evaluation; nan unless the values are mean returns
    steps: int  # trained
    iterations: int
    seconds: float
    steps_per_second: float
    threshold: float | None  # registered with the environment
    versions: str
    gradients: dict[str, tuple[float, float]]  # estimator: means of v and of |g|² - v over its measurements

    @property
    def finished(self) -> bool:
        """Whether the run completed its budget."""
        return self.status == "finished"


def write_report(
    folder: Path,
    config: Config,
    paths: Mapping[str, Mapping[int, Path]],
    threshold: float | None,
    command: Sequence[str],
    column: str = RETURN,
) -> dict[str, Any]:
    """Compare runs by their final evaluations, and write report.md, figures and tables into `folder`.

    The score of a run is the value of `column` in its last evaluation, also if it diverged or failed, as in a learning
    curve. Without an evaluation, it is the lowest evaluation of the comparison. No run is skipped. looks.csv lists the
    looks at each pair in this folder's reports, with their seeds.
    Args: config, of any variant, for the shared settings; paths, the run directories by variant and seed, with the same
    seeds for each variant.
    Raises: RunDirectoryError if a run is unreadable or no run has a number in the column.
    """
    runs = {label: [read_run(path, seed, column) for seed, path in one.items()] for label, one in paths.items()}
    result = analyze(runs, threshold, read_looks(folder / "looks.csv"), column) | {
        "directory": str(folder),
        "name": config.name,
        "command": f"pgcli {shlex.join(command)}",
        "env": config.env.id,
        "seeds": list(next(iter(paths.values()))),
        "env_steps": config.training.env_steps,
        "evaluation": f"{config.evaluation.episodes} episodes, {config.evaluation.mode}",
    }
    from pgcli.studies.figures import draw  # imports matplotlib

    check_folder(folder)
    with storage(folder):
        make_folder(folder)
        # first, because it marks the other files as pgcli's
        write_whole(folder / "report.md", printable(markdown(result)).encode())
        for name in TABLES:
            path = folder / f"{name}.csv"
            if result[name]:
                write_whole(path, printable(as_csv(result[name])).encode())
            else:
                path.unlink(missing_ok=True)  # of an earlier report
        draw(folder, result, [run.path for one in runs.values() for run in one if len(run.values)])
    return result


def check_folder(folder: Path) -> None:
    """Raise RunDirectoryError if a folder has files with the names of a report that pgcli did not write."""
    names = ["report.md", *(f"{name}.csv" for name in TABLES), *(f"{name}.png" for name in FIGURES)]
    found = [name for name in names if os.path.lexists(folder / name)]
    with storage(folder):
        if found and not ("report.md" in found and is_ours(folder / "report.md")):
            raise RunDirectoryError(
                f"{folder}: contains {', '.join(found)}, which pgcli did not write", "choose another folder with -o"
            )


# Reading


def read_run(path: Path, seed: int, column: str = RETURN) -> RunSummary:
    """Read the results of a run in any state; of its evaluations, those with a number in `column`."""
    status = read_status(path) if (path / "status.json").exists() else {}
    state = str(status.get("status", "not started"))
    ended = state == "finished"
    evaluations = _read(path / "evaluations.csv", ("env_steps", column, "return_standard_error"), ended)
    evaluations = evaluations.pick(np.isfinite(evaluations[column]))
    metrics = _read(path / "metrics.csv", ("env_steps",), ended)
    timing = _read(path / "timing.csv", ("elapsed_seconds", "collect_seconds", "update_seconds"), ended)
    information = read_information(path) if (path / "run.json").exists() else {}
    value = information.get("reward_threshold")
    steps = int(metrics["env_steps"][-1]) if metrics.rows else 0
    worked = float(np.nansum(timing["collect_seconds"]) + np.nansum(timing["update_seconds"]))
    versions = {"pgcli": information.get("pgcli")} | dict(information.get("versions") or {})
    return RunSummary(
        seed,
        path,
        state,
        str(status.get("reason", "")),
        evaluations["env_steps"],
        evaluations[column],
        float(evaluations["return_standard_error"][-1]) if evaluations.rows and column == RETURN else math.nan,
        steps,
        metrics.rows,
        float(timing["elapsed_seconds"][-1]) if timing.rows else math.nan,
        steps / worked if worked else math.nan,
        float(value) if isinstance(value, int | float) else None,
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        _gradients(path / "gradients.csv", ended),
    )


def _read(path: Path, columns: Sequence[str], ended: bool) -> Table:
    """Read a table; an unfinished run may lack it."""
    return read_table(path, columns, whole=ended) if ended or path.exists() else Table(path)


def _gradients(path: Path, ended: bool) -> dict[str, tuple[float, float]]:
    if not path.exists():
        return {}
    table = read_table(path, ("estimator", "gradient_variance", "snr"), whole=ended)
    names = table.words.get("estimator", np.full(table.rows, "gradient"))
    signal = table["snr"] * table["gradient_variance"]
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = (names == name) & np.isfinite(signal)
        if rows.any():
            found[name] = float(table["gradient_variance"][rows].mean()), float(signal[rows].mean())
    return found


def read_looks(path: Path) -> list[dict[str, Any]]:
    """Read the looks of earlier reports: the column, digests of a and b, number, seeds."""
    if not path.exists():
        return []
    hint = "it lists earlier looks; without it, compare fresh seeds in another folder (-o)"
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {
                "column": row.get("column", RETURN),  # earlier versions compared returns only
                "a": row["a"],
                "b": row["b"],
                "look": int(row["look"]),
                "seeds": [int(x) for x in row["seeds"].split()],
            }
            for row in rows
        ]
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise RunDirectoryError(f"{path}: damaged: {error}", hint) from None


# Tables


def analyze(
    runs: dict[str, list[RunSummary]],
    threshold: float | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    column: str = RETURN,
) -> dict[str, Any]:
    """Compute all tables of a comparison from its runs by variant, in the same order of seeds.

    A pair is tested on the seeds that no earlier look at it has used.
    Args: earlier, the rows of looks.csv.
    """
    every = [run for one in runs.values() for run in one]
    lowest = min((float(run.values.min()) for run in every if len(run.values)), default=math.nan)
    if math.isnan(lowest):
        what = "an evaluation" if column == RETURN else f"a number in column `{column}`"
        hint = every[0].reason or ("see the messages of the runs" if column == RETURN else _NO_NUMBER)
        raise RunDirectoryError(f"{every[0].path.parent}: no run has {what}", hint)
    scores = {label: np.array([_score(run, lowest) for run in one]) for label, one in runs.items()}
    goal, rule = _threshold(runs, scores, threshold, column)
    pairs, looks = _pairs(runs, scores, list(earlier), column)
    return {
        "column": column,
        "threshold": goal,
        "threshold_rule": rule,
        "arms": [_variant_row(label, one, scores[label], goal) for label, one in runs.items()],
        "pairs": pairs,
        "runs": [
            _run_row(label, run, score, goal, column)
            for label, one in runs.items()
            for run, score in zip(one, scores[label].tolist(), strict=True)
        ],
        "profile": list(_profile_rows(scores)),
        "gradients": list(_gradient_rows(runs)),
        "looks": looks,
        "notes": list(_notes(runs, scores, column)),
    }


def _score(run: RunSummary, lowest: float) -> float:
    """Return the value of a run at the end of the budget."""
    return float(value_at(run.env_steps, run.values, math.inf)) if len(run.values) else lowest


def _threshold(
    runs: dict[str, list[RunSummary]], scores: dict[str, Array], wanted: float | None, column: str
) -> tuple[float | None, str]:
    """Return the threshold, or None, and the rule that chose it."""
    if wanted is not None:
        return wanted, "set by --threshold"
    evaluated = [run for one in runs.values() for run in one if len(run.values)]
    registered = {run.threshold if column == RETURN else None for run in evaluated}
    if len(registered) == 1 and (known := registered.pop()) is not None:
        return known, "the environment's reward threshold"
    start = float(np.mean([run.values[0] for run in evaluated]))
    best = max(float(interquartile_mean(one)) for one in scores.values())
    if best <= start:
        return None, "none is registered, and no variant ends above the untrained policies"
    goal = start + SHARE_OF_GAIN * (best - start)
    way = f"from the mean of untrained policies, {short(start)}, to the best variant's IQM, {short(best)}"
    why = "the environment has no reward threshold" if column == RETURN else "only returns have a registered threshold"
    return goal, f"{100 * SHARE_OF_GAIN:.0f} % of the way {way}, because {why}"


def _columns(name: str, value: Any, interval: tuple[Any, Any]) -> dict[str, float]:
    """Return a number and its interval as columns."""
    return {name: float(value), f"{name}_low": float(interval[0]), f"{name}_high": float(interval[1])}


def _steps_to(goal: float | None, run: RunSummary) -> float:
    return math.nan if goal is None else steps_to(goal, run.env_steps, run.values)


def _finite_median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _variant_row(label: str, runs: list[RunSummary], scores: Array, goal: float | None) -> dict[str, Any]:
    times, errors = np.array([_steps_to(goal, run) for run in runs]), np.array([run.error for run in runs])
    return {
        "arm": label,
        "seeds": len(runs),
        "finished": sum(run.finished for run in runs),
        "diverged": sum(run.status == "diverged" for run in runs),
        "failed": sum(run.status not in ("finished", "diverged") for run in runs),
        **_columns("iqm", interquartile_mean(scores), trimmed_mean_interval(scores)),
        **_columns("mean", scores.mean(), mean_interval(scores)),
        "standard_error": float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan,
        "evaluation_standard_error": float(np.sqrt(np.square(errors).sum()) / len(runs)),  # part of standard_error
        "min": float(scores.min()),
        "max": float(scores.max()),
        "reached": int(np.isfinite(times).sum()),
        "steps_median": float(np.median(times)),
        **dict(zip(("steps_low", "steps_high"), map(float, median_interval(times)), strict=True)),
        "env_steps_mean": float(np.mean([run.steps for run in runs])),
        "seconds_median": _finite_median([run.seconds for run in runs]),
        "steps_per_second_median": _finite_median([run.steps_per_second for run in runs]),
    }


def _pairs(
    runs: dict[str, list[RunSummary]], scores: dict[str, Array], looks: list[dict[str, Any]], column: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Test each pair of variants; return the rows of pairs and of all looks, including new ones."""
    rows, couples = [], list(combinations(runs, 2))
    seeds = [run.seed for run in next(iter(runs.values()))]
    for a, b in couples:
        names = [runs[label][0].path.parent.name.rpartition("-")[2] for label in (a, b)]  # digests of their configs
        earlier = [one["seeds"] for one in looks if {one["a"], one["b"]} == set(names) and one["column"] == column]
        look, fresh = fresh_seeds(seeds, earlier)
        if fresh and look > len(earlier):
            looks = [*looks, {"column": column, "a": names[0], "b": names[1], "look": look, "seeds": seeds}]
        tested = [seeds.index(seed) for seed in fresh]
        rows.append(_pair_row(a, b, scores[a], scores[b], tested, look, len(couples), column))
    return rows, looks


def _pair_row(
    a: str, b: str, x: Array, y: Array, fresh: list[int], look: int, pairs: int, column: str
) -> dict[str, Any]:
    tested = fresh or list(range(len(x)))  # without fresh seeds, the numbers describe all seeds and test nothing
    confidence, later = 1 - look_alpha(look), 1 - look_alpha(look + 1)
    difference = paired_difference(x[tested], y[tested], pairs, confidence, later)
    varied = len(x) > 1 and x.std() > 0 and y.std() > 0
    sentence = conclusion(a, b, difference, look, column)
    if not fresh:
        sentence = f"`{a}` and `{b}`: earlier looks used all these seeds; only fresh seeds are tested."
    return {
        "a": a,
        "b": b,
        "look": look,
        "seeds": len(fresh),
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "confidence": difference.confidence,
        "deviation": difference.deviation,
        "correlation": float(np.corrcoef(x, y)[0, 1]) if varied else math.nan,
        "wins": difference.wins,
        "ties": difference.ties,
        **_columns("improvement", probability_of_improvement(x, y), improvement_interval(x, y)),
        "claim": difference.claim,
        "shown": difference.shown and bool(fresh),
        "seeds_needed": difference.seeds_needed,
        "seeds_needed_low": difference.seeds_range[0],
        "seeds_needed_high": difference.seeds_range[1],
        "sentence": sentence,
    }


def conclusion(a: str, b: str, difference: Difference, look: int = 1, column: str = RETURN) -> str:
    """Describe what a pair's difference shows, or how many fresh seeds would show it."""
    d, n = difference, difference.n
    mean = "mean" if column == RETURN else f"mean `{quantity(column)}`"
    seeds = f"{n} paired seeds" if look == 1 else f"{n} fresh paired seeds, look {look}"
    higher, lower = (a, b) if d.mean >= 0 else (b, a)
    if n == 1:
        return f"`{a}` and `{b}`: one seed has no spread, so nothing is shown."
    if d.deviation == 0:
        same = f"the same {quantity(column)}" if d.mean == 0 else f"`{higher}` above by the same {short(abs(d.mean))}"
        return f"`{a}` and `{b}`: {same} on each of {n} seeds. Without spread, nothing is shown."
    if not d.alike:
        return _probability_claim(a, b, d, seeds, mean, "" if column == RETURN else f" in `{quantity(column)}`")
    low, high = (d.low, d.high) if d.mean >= 0 else (-d.high, -d.low)
    size, *edges = same_decimals(abs(d.mean), low, high)
    interval = " to ".join(edges)
    if d.shown:
        return f"The {mean} of `{higher}` is above that of `{lower}` by {size} ({interval}; {seeds}): shown."
    return (
        f"The {mean} of `{higher}` is above that of `{lower}` by {size} ({interval}): not shown with {seeds}. "
        f"About {seed_range(d.seeds_needed, *d.seeds_range)} fresh seeds would show it. Another look "
        "counts only fresh seeds, so that all looks together have at most 5 % false positives."
    )


def _probability_claim(a: str, b: str, d: Difference, seeds: str, mean: str, of: str) -> str:
    """Describe P(a > b) if standard deviations differ, because a mean could hide rare failures."""
    size, *spreads = same_decimals(abs(d.mean), *d.deviations)
    unlike = f"their standard deviations differ ({spreads[0]} and {spreads[1]})"
    if math.isnan(d.improvement_low):
        higher, lower = (a, b) if d.mean >= 0 else (b, a)
        few = f"not shown with {seeds}, because {unlike} and a rare failure may be missing"
        more = f"At least {d.seeds_range[0]} fresh seeds could show that one ends above the other"
        return f"The {mean} of `{higher}` is above that of `{lower}` by {size}: {few}. {more}."
    ahead = d.improvement >= 0.5
    higher, lower = (a, b) if ahead else (b, a)
    p, low, high = (
        (d.improvement, d.improvement_low, d.improvement_high)
        if ahead
        else (1 - d.improvement, 1 - d.improvement_high, 1 - d.improvement_low)
    )
    interval = f"({low:.2f} to {high:.2f}; {seeds})"
    claim = f"A run of `{higher}` ends above one of `{lower}`{of} with P = {p:.2f} {interval}"
    shown = "shown" if d.shown else f"not shown; at least {d.seeds_range[0]} fresh seeds could show it"
    return f"{claim}: {shown}. No claim about means: {unlike}."


def seed_range(needed: int | None, low: int | None, high: int | None) -> str:
    """Format a number of seeds with its range: `8 (5 to 41)`, `8 (5 or more)`."""
    most = f"more than {MOST_SEEDS:,}"
    first = most if low is None else f"{low:,}"
    return f"{most if needed is None else f'{needed:,}'} ({first} {'or more' if high is None else f'to {high:,}'})"


def _run_row(label: str, run: RunSummary, score: float, goal: float | None, column: str) -> dict[str, Any]:
    return {
        "arm": label,
        "seed": run.seed,
        "status": run.status,
        f"final_{quantity(column)}": score,
        "last_evaluation": float(run.values[-1]) if len(run.values) else math.nan,
        "best_evaluation": float(run.values.max()) if len(run.values) else math.nan,
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
            variance, signal = found.T
            row |= _columns("gradient_variance", variance.mean(), mean_interval(variance))
            yield row | _columns("snr", ratio_of_means(signal, variance), ratio_interval(signal, variance))


def _notes(runs: dict[str, list[RunSummary]], scores: dict[str, Array], column: str) -> Iterator[str]:
    """Yield the limits of the conclusions: unfinished runs, unequal budgets, few seeds or episodes."""
    if column != RETURN:
        yield f"Higher values of `{column}` are assumed to be better."
    for label, one in runs.items():
        for run, score in zip(one, scores[label].tolist(), strict=True):
            if run.finished and not len(run.values):
                none = f"`{label}`, seed {run.seed}: no evaluation has a number in `{column}`"
                yield f"{none}. Its score is {short(score)}, the lowest of all evaluations."
            elif not run.finished:
                why = f": {run.reason}" if run.reason else ""
                ended = f"`{label}`, seed {run.seed}: {run.status} at iteration {run.iterations}{why}"
                rule = "its last evaluation" if len(run.values) else "the lowest of all evaluations"
                yield f"{ended}. Its score is {short(score)}, {rule}."
    trained = [[run.steps for run in one if run.finished] for one in runs.values()]
    used = [float(np.mean(steps)) for steps in trained if steps]
    if used and max(used) > (1 + UNEQUAL) * min(used):
        steps = f"{min(used):,.0f} to {max(used):,.0f} env steps"
        yield (
            f"The variants used {steps} on average, because runs end with a whole iteration. A larger budget or fewer "
            "episodes per iteration reduce the difference."
        )
    versions = {run.versions for one in runs.values() for run in one if run.versions}
    if len(versions) > 1:
        yield f"The runs were made with different versions: {'; '.join(sorted(versions))}."
    seeds = len(next(iter(runs.values())))
    if seeds == 1:
        yield "One seed has no spread: there are no intervals."
        return
    if seeds < FEW_SEEDS:
        yield (
            f"{seeds} seeds are few: with probability {100 * 0.8**seeds:.0f} %, they miss a failure in 1 of "
            "5 seeds. Their intervals assume approximately normal values."
        )
    for label, one in runs.items():
        noise = float(np.mean([run.error**2 for run in one]))
        if noise > MOSTLY_EVALUATION * scores[label].var(ddof=1) > 0:
            yield (
                f"`{label}`: most of its spread over seeds comes from the evaluation episodes. A larger "
                "evaluation.episodes gives narrower intervals."
            )
