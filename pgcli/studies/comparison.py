"""The report of `pgcli compare`: results of variants and pairs with intervals, and conclusions.

The CSV tables and JSON keep the column name `arm` for a variant, because scripts read them.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.errors import RunDirectoryError, counted
from pgcli.report.scores import (
    improvement_interval,
    look_alpha,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    steps_to,
    unpaired_difference,
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
from pgcli.report.text import finite, short
from pgcli.runs.files import json_bytes, make_folder, storage, write_whole
from pgcli.runs.outputs import is_ours
from pgcli.studies.existing import check_budget
from pgcli.studies.looks import Look, look_at, read_looks
from pgcli.studies.page import RESULT, RETURN, TABLES, as_csv, markdown, quantity
from pgcli.studies.sentences import conclusion, notes
from pgcli.studies.summaries import RunSummary, read_run
from pgcli.studies.variants import Comparison, Variant, digest, settings_table
from pgcli.system.streams import printable

FIGURES = ("returns", "differences", "curves")
PROFILE_POINTS = 101
_NO_NUMBER = "`logging.info` names the entries of info that evaluations average"
SHARE_OF_GAIN = 0.9  # of the improvement over untrained policies; default threshold if the environment has none


def write_report(
    comparison: Comparison, threshold: float | None, command: Sequence[str], column: str = RETURN
) -> dict[str, Any]:
    """Compare runs by their final evaluations, and write the report into the folder.

    It is report.md, report.json, figures and tables.

    The score of a run is the value of `column` in its last evaluation, also if it diverged or failed, as in a learning
    curve. Without an evaluation, it is the lowest evaluation of the comparison. No run is skipped. looks.csv lists the
    looks at each pair in this folder's reports, with their seeds.
    Raises: RunDirectoryError if a run is unreadable or no run has a number in the column; UsageError if existing runs
        have unequal budgets.
    """
    folder, variants = comparison.folder, comparison.variants
    runs = {one.label: [read_run(path, seed, column) for seed, path in one.runs] for one in variants}
    if comparison.exists:
        check_budget(comparison, runs)
    config = variants[0].config
    result = analyze(runs, threshold, read_looks(folder / "looks.csv"), column, variants) | {
        "directory": str(folder),
        "name": config.name,
        "command": f"pgcli {shlex.join(command)}",
        "env": config.evaluation_env.id,
        "seeds": comparison.seeds,
        "env_steps": comparison.env_steps,
        "evaluation": f"{counted(config.evaluation.episodes, 'episode')}, {config.evaluation.mode}",
        "settings": settings_table(variants),
    }
    from pgcli.studies.figures import draw  # imports matplotlib

    check_folder(folder)
    with storage(folder):
        make_folder(folder)
        # first, because it marks the other files as pgcli's
        write_whole(folder / "report.md", printable(markdown(result)).encode())
        write_whole(folder / RESULT, json_bytes(finite(result)))
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
    names = ["report.md", RESULT, *(f"{name}.csv" for name in TABLES), *(f"{name}.png" for name in FIGURES)]
    found = [name for name in names if os.path.lexists(folder / name)]
    with storage(folder):
        if found and not ("report.md" in found and is_ours(folder / "report.md")):
            raise RunDirectoryError(
                f"{folder}: contains {', '.join(found)}, which pgcli did not write", "choose another folder with -o"
            )


# Tables


def analyze(
    runs: dict[str, list[RunSummary]],
    threshold: float | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    column: str = RETURN,
    variants: Sequence[Variant] = (),
) -> dict[str, Any]:
    """Compute all tables of a comparison from its runs by variant.

    Args: earlier, the rows of looks.csv; variants, for their digests and start states, or else all have the same.
    """
    every = [run for one in runs.values() for run in one]
    lowest = min((float(run.values.min()) for run in every if len(run.values)), default=math.nan)
    if math.isnan(lowest):
        what = "an evaluation" if column == RETURN else f"a number in column `{column}`"
        hint = every[0].reason or ("see the messages of the runs" if column == RETURN else _NO_NUMBER)
        raise RunDirectoryError(f"{every[0].path.parent}: no run has {what}", hint)
    scores = {label: np.array([_score(run, lowest) for run in one]) for label, one in runs.items()}
    goal, rule = _threshold(runs, scores, threshold, column)
    pairs, looks = _pairs(runs, scores, list(earlier), column, {one.label: one for one in variants})
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
        "gradients": list(measured_gradients(runs)),
        "looks": looks,
        "notes": [*_unpaired_notes(pairs), *notes(runs, scores, column)],
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
    runs: dict[str, list[RunSummary]],
    scores: dict[str, Array],
    looks: list[dict[str, Any]],
    column: str,
    variants: Mapping[str, Variant],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Test each pair of variants; return the rows of pairs and of all looks, including new ones."""
    rows, couples = [], list(combinations(runs, 2))
    digests = {label: digest(variants[label].config) if variants else label for label in runs}
    starts = {label: variants[label].start_states if variants else None for label in runs}
    for a, b in couples:
        seeds = [run.seed for run in runs[a]], [run.seed for run in runs[b]]
        look = look_at(seeds, (digests[a], digests[b]), column, looks, same_starts=starts[a] == starts[b])
        if look.row is not None:
            looks = [*looks, look.row]
        rows.append(_pair_row(a, b, scores[a], scores[b], look, len(couples), column))
    return rows, looks


def _pair_row(a: str, b: str, x: Array, y: Array, look: Look, pairs: int, column: str) -> dict[str, Any]:
    fresh = all(look.tested)
    at_a, at_b = look.tested if fresh else look.described  # without fresh runs, the numbers test nothing
    confidence, later = 1 - look_alpha(look.number), 1 - look_alpha(look.number + 1)
    compute = unpaired_difference if look.unpaired else paired_difference
    difference = compute(x[at_a], y[at_b], pairs, confidence, later)
    x, y = x[look.described[0]], y[look.described[1]]
    varied = not look.unpaired and len(x) > 1 and x.std() > 0 and y.std() > 0
    sentence = conclusion(a, b, difference, look.number, column)
    if not fresh:
        sentence = f"`{a}` and `{b}`: earlier looks used all these seeds; only fresh seeds are tested."
    return {
        "a": a,
        "b": b,
        "look": look.number,
        "seeds": len(look.tested[0]),
        "seeds_b": len(look.tested[1]),
        "unpaired": look.unpaired,
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
        "shown": difference.shown and fresh,
        "seeds_needed": difference.seeds_needed,
        "seeds_needed_low": difference.seeds_range[0],
        "seeds_needed_high": difference.seeds_range[1],
        "sentence": sentence,
    }


def _unpaired_notes(pairs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield which pairs are not paired, by reason."""
    for why in dict.fromkeys(pair["unpaired"] for pair in pairs if pair["unpaired"]):
        found = [f"`{pair['a']}` and `{pair['b']}`" for pair in pairs if pair["unpaired"] == why]
        names = "All pairs" if len(found) == len(pairs) > 1 else ", ".join(found)
        yield f"{names}: unpaired, because {why}. The intervals are Welch's, of independent runs."


def _run_row(label: str, run: RunSummary, score: float, goal: float | None, column: str) -> dict[str, Any]:
    return {
        "arm": label,
        "seed": run.seed,
        "status": run.status,
        f"final_{quantity(column)}": score,
        "first_evaluation": float(run.values[0]) if len(run.values) else math.nan,
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


def measured_gradients(runs: dict[str, list[RunSummary]]) -> Iterator[dict[str, Any]]:
    """Yield the gradient variance of each variant and estimator over its runs."""
    for label, one in runs.items():
        for name in dict.fromkeys(name for run in one for name in run.gradients):
            found = np.array([run.gradients[name] for run in one if name in run.gradients])
            row: dict[str, Any] = {"arm": label, "estimator": name, "seeds": len(found)}
            variance, signal = found.T
            row |= _columns("gradient_variance", variance.mean(), mean_interval(variance))
            yield row | _columns("snr", ratio_of_means(signal, variance), ratio_interval(signal, variance))
