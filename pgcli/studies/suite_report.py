"""The report of a suite: normalised scores of variants over all tasks and seeds."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.errors import UsageError
from pgcli.report.scores import probability_of_improvement
from pgcli.report.statistics import Array, bootstrap_interval, interquartile_mean
from pgcli.report.text import columns, finite, short
from pgcli.runs.files import json_bytes, storage, write_whole
from pgcli.studies.comparison import check_folder
from pgcli.studies.page import RESULT, Rows, as_csv, estimate, quantity, table
from pgcli.system.streams import printable

Row = dict[str, Any]
Scores = dict[str, list[Array]]  # of each variant: its normalised scores on each task
TABLES = ("arms", "pairs", "tasks", "profile")
POINTS = 101
LOWEST = -0.5  # threshold of a profile: one policy far below random would take most of the figure


def write_suite(
    folder: Path,
    name: str,
    results: Mapping[str, Row],
    known: Mapping[str, tuple[float, float]],
    command: Sequence[str],
) -> Row:
    """Aggregate the comparisons of all tasks; write report.md, tables and the figure of the profiles.

    A score is (value - random) / (reference - random). `known` are the two returns of a task. Without them, and for
    other columns than the return, random is the mean of the untrained policies, and reference the best variant's IQM.
    Raises: UsageError if no variant is better than the untrained policies of a task without known returns.
    """
    check_folder(folder)
    tasks = [
        _task(task, result, known.get(task) if result["column"] == "return_mean" else None)
        for task, result in results.items()
    ]
    labels = [variant["arm"] for variant in next(iter(results.values()))["arms"]]
    scores: Scores = {label: [] for label in labels}
    for task, result in zip(tasks, results.values(), strict=True):
        values = f"final_{quantity(result['column'])}"
        for label in labels:
            found = np.array([run[values] for run in result["runs"] if run["arm"] == label])
            scores[label].append((found - task["random"]) / (task["reference"] - task["random"]))
    result = {
        "name": name,
        "directory": str(folder),
        "command": f"pgcli {shlex.join(command)}",
        "column": next(iter(results.values()))["column"],
        "arms": [_variant(label, one) for label, one in scores.items()],
        "pairs": [
            {"a": a, "b": b} | _interval("improvement", [*scores[a], *scores[b]], probability_of_improvement)
            for a, b in combinations(labels, 2)
        ],
        "tasks": [
            task
            | {"arm": label, "seeds": len(one[at]), **_interval("score", [one[at]], interquartile_mean)}
            | {f"final{end}": variant[f"iqm{end}"] for end in ("", "_low", "_high")}
            for at, (task, on_task) in enumerate(zip(tasks, results.values(), strict=True))
            for (label, one), variant in zip(scores.items(), on_task["arms"], strict=True)
        ],
        "profile": list(_profile(scores)),
    }
    from pgcli.studies.figures import draw_profiles  # imports matplotlib

    with storage(folder):
        write_whole(folder / "report.md", printable(markdown(result)).encode())
        write_whole(folder / RESULT, json_bytes(finite(result)))
        for table in TABLES:
            write_whole(folder / f"{table}.csv", printable(as_csv(result[table])).encode())
        draw_profiles(folder / "profiles.png", result)
    return result


def _task(task: str, result: Row, known: tuple[float, float] | None) -> Row:
    if known is not None:
        random, reference = known
    else:
        firsts = [run["first_evaluation"] for run in result["runs"] if math.isfinite(run["first_evaluation"])]
        random, reference = float(np.mean(firsts)), max(variant["iqm"] for variant in result["arms"])
    if reference <= random:
        scale = f"give it in the suite, for example `scores: {{{task}: [{short(random)}, …]}}`"
        raise UsageError(
            f"{task}: no variant ends above the untrained policies ({short(random)}), so scores have no scale",
            scale if result["column"] == "return_mean" else f"leave {task} out, or compare `-y return_mean`",
        )
    return {
        "task": task,
        "env_steps": result["env_steps"],
        "random": random,
        "reference": reference,
        "measured": known is None,
    }


def _interval(name: str, samples: Sequence[Array], statistic: Any) -> Row:
    low, high = bootstrap_interval(samples, statistic)
    value = float(statistic(*samples, axis=-1))
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _mean(*tasks: Array, axis: int = -1) -> Array:
    """Return the mean over tasks of the means over their runs."""
    return np.asarray(np.mean([task.mean(axis) for task in tasks], axis=0))


def _variant(label: str, tasks: Sequence[Array]) -> Row:
    runs = sum(map(len, tasks))
    return {"arm": label, "tasks": len(tasks), "runs": runs} | {
        **_interval("iqm", tasks, interquartile_mean),
        **_interval("mean", tasks, _mean),
    }


def _profile(scores: Scores) -> Iterator[Row]:
    every = np.concatenate([task for one in scores.values() for task in one])
    lowest = max(LOWEST, min(0.0, float(every.min())))
    thresholds = np.linspace(lowest, max(1.0, float(every.max())), POINTS)
    for label, tasks in scores.items():
        above = [(task > thresholds[:, None]).astype(np.float64) for task in tasks]
        low, high = bootstrap_interval(above, _mean, 2000)
        for x, share, *edges in zip(
            thresholds.tolist(), _mean(*above).tolist(), low.tolist(), high.tolist(), strict=True
        ):
            yield {"arm": label, "threshold": x, "share": share, "share_low": edges[0], "share_high": edges[1]}


def suite_text(result: Row) -> str:
    """Return the folder and the main numbers as text."""
    rows = [("variant", "normalised score: IQM [95 %]", "mean over tasks [95 %]")]
    rows += [(one["arm"], _score(one, "iqm"), _score(one, "mean")) for one in result["arms"]]
    pairs = [("P(a > b) over tasks and seeds [95 %]", "")]
    pairs += [(f"{pair['a']} > {pair['b']}", _score(pair, "improvement")) for pair in result["pairs"]]
    return "\n".join([result["directory"], *columns(rows), *columns(pairs)])


def markdown(result: Row) -> str:
    """Return the report of a suite."""
    lines = [f"# {title(result)}", "", "```", result["command"], "```", "", "## Over all tasks and seeds", ""]
    lines += [*table(overall_rows(result)), "", *table(pair_rows(result))]
    lines += ["", "![Performance profiles](profiles.png)", "", "## By task", "", *table(task_rows(result))]
    lines += ["", f"Final {_quantity(result)}, IQM over seeds [95 %]:", "", *table(final_rows(result)), ""]
    return "\n".join([*lines, *method(result)])


def title(result: Row) -> str:
    """Return the title of a suite."""
    return f"{result['name']}: {len(result['arms'])} variants on {result['arms'][0]['tasks']} tasks"


def overall_rows(result: Row) -> Rows:
    """Return the scores of each variant over all tasks and seeds."""
    head = ["variant", "runs", "score: IQM [95 %]", "mean over tasks [95 %]"]
    rows = ([f"`{x['arm']}`", str(x["runs"]), _score(x, "iqm"), _score(x, "mean")] for x in result["arms"])
    return [head, *rows]


def pair_rows(result: Row) -> Rows:
    """Return P(row > column) over tasks and seeds: a row and a column for each variant, each pair once."""
    labels = [one["arm"] for one in result["arms"]]
    found = {(pair["a"], pair["b"]): _score(pair, "improvement") for pair in result["pairs"]}
    rows = [[f"`{a}`", *(found.get((a, b), "") for b in labels[1:])] for a in labels[:-1]]
    return [["P(row > column) [95 %]", *(f"`{label}`" for label in labels[1:])], *rows]


def task_rows(result: Row) -> Rows:
    """Return budget and scale of each task, and the scores of the variants on it."""
    out = [["task", "env steps", "seeds", "0 is", "1 is", *(f"`{one['arm']}`" for one in result["arms"])]]
    for task, rows in _by_task(result).items():
        first = rows[0]
        ends = [short(first[end]) + (" (measured)" if first["measured"] else "") for end in ("random", "reference")]
        steps = f"{first['env_steps']:,}" if first.get("env_steps") else ""  # missing in earlier versions
        out.append([f"`{task}`", steps, str(first["seeds"]), *ends, *(_score(row, "score") for row in rows)])
    return out


def final_rows(result: Row) -> Rows:
    """Return the final values of the variants on each task, as they were before normalisation."""
    head = ["task", *(f"`{one['arm']}`" for one in result["arms"])]
    cells = {
        task: [estimate(row, "final") for row in rows if "final" in row] for task, rows in _by_task(result).items()
    }
    return [head, *([f"`{task}`", *row] for task, row in cells.items() if row)]


def _by_task(result: Row) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["task"] for row in result["tasks"])
    return {name: [row for row in result["tasks"] if row["task"] == name] for name in names}


def _quantity(result: Row) -> str:
    return f"`{quantity(result['column'])}`" if quantity(result["column"]) != "return" else "return"


def _score(row: Row, name: str) -> str:
    """Format a score or a probability with its interval; one seed has none."""
    if math.isnan(row[f"{name}_low"]):
        return f"{row[name]:z.2f}"
    return "{} [{}, {}]".format(*(f"{row[f'{name}{end}']:z.2f}" for end in ("", "_low", "_high")))


def method(result: Row) -> list[str]:
    """Return how the numbers of a suite are computed, in paragraphs."""
    measured = [task for task, rows in _by_task(result).items() if rows[0]["measured"]]
    scale = [f"Of {', '.join(measured)}, random is {_MEASURED}"] if measured else []
    return [_SCORES, *scale, _INTERVALS]


_SCORES = "A score is (value - random) / (reference - random): 0 is *0 is* of the table, 1 is *1 is*."
_MEASURED = "the mean of the untrained policies, and reference the best variant's IQM."
_INTERVALS = """\
IQM is the mean of the middle half of the runs of all tasks. Intervals are percentile bootstraps over the runs of each
task (Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice), too narrow for few
seeds; intervals of final values are those of a trimmed mean. They describe these tasks and claim nothing about others.
The report in the folder of a task has tested differences.
"""
