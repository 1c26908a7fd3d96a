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
from pgcli.report.text import columns, short
from pgcli.runs.files import storage, write_whole
from pgcli.studies.comparison import check_folder
from pgcli.studies.page import as_csv, estimate, header, quantity, table_row
from pgcli.system.streams import printable

Row = dict[str, Any]
Scores = dict[str, list[Array]]  # of each variant: its normalised scores on each task
TABLES = ("arms", "pairs", "tasks", "profile")
POINTS = 101


def write_suite(
    folder: Path,
    name: str,
    results: Mapping[str, Row],
    known: Mapping[str, tuple[float, float]],
    command: Sequence[str],
) -> Row:
    """Aggregate the comparisons of all tasks; write report.md, tables and the figure of the profiles.

    A score is (value - random) / (reference - random). Where the suite gives no numbers, random is the mean of the
    untrained policies, and reference the best variant's IQM.
    Raises: UsageError if no variant is better than the untrained policies of a task without given numbers.
    """
    check_folder(folder)
    tasks = [_task(task, result, known.get(task)) for task, result in results.items()]
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
            task | {"arm": label, "seeds": len(one[at]), **_interval("score", [one[at]], interquartile_mean)}
            for at, task in enumerate(tasks)
            for label, one in scores.items()
        ],
        "profile": list(_profile(scores)),
    }
    from pgcli.studies.figures import draw_profiles  # imports matplotlib

    with storage(folder):
        write_whole(folder / "report.md", printable(markdown(result)).encode())
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
        raise UsageError(
            f"{task}: no variant ends above the untrained policies ({short(random)}), so scores have no scale",
            f"give it in the suite, for example `scores: {{{task}: [{short(random)}, …]}}`",
        )
    return {"task": task, "random": random, "reference": reference, "measured": known is None}


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
    thresholds = np.linspace(min(0.0, float(every.min())), max(1.0, float(every.max())), POINTS)
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
    rows += [(one["arm"], estimate(one, "iqm"), estimate(one, "mean")) for one in result["arms"]]
    lines = [result["directory"], *columns(rows)]
    return "\n".join([*lines, *(_sentence(pair).replace("`", "") for pair in result["pairs"])])


def _sentence(pair: Row) -> str:
    return f"P(`{pair['a']}` > `{pair['b']}`) over tasks and seeds: {estimate(pair, 'improvement')}"


def markdown(result: Row) -> str:
    """Return the report of a suite."""
    labels = [one["arm"] for one in result["arms"]]
    lines = [f"# {result['name']}: {len(labels)} variants on {result['arms'][0]['tasks']} tasks", ""]
    lines += ["```", result["command"], "```", "", "## Over all tasks and seeds", ""]
    lines += header("variant", "runs", "IQM [95 %]", "mean over tasks [95 %]")
    for one in result["arms"]:
        lines.append(table_row(f"`{one['arm']}`", str(one["runs"]), estimate(one, "iqm"), estimate(one, "mean")))
    lines += ["", *(f"- {_sentence(pair)}" for pair in result["pairs"])]
    lines += ["", "![Performance profiles](profiles.png)", "", "## By task", ""]
    lines += header("task", "0 is", "1 is", *(f"`{label}`" for label in labels))
    for task in dict.fromkeys(row["task"] for row in result["tasks"]):
        rows = [row for row in result["tasks"] if row["task"] == task]
        ends = [short(rows[0][end]) + (" (measured)" if rows[0]["measured"] else "") for end in ("random", "reference")]
        lines.append(table_row(f"`{task}`", *ends, *(estimate(row, "score") for row in rows)))
    lines += ["", _METHOD]
    return "\n".join(lines)


_METHOD = """\
Scores are (value - random) / (reference - random). Measured, *random* is the mean of the untrained policies, and
*reference* the best variant's IQM on that task. Intervals are percentile bootstraps over the runs of each task
(Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice), too narrow for few seeds.
They describe these tasks and claim nothing about others. The report in the folder of a task has tested differences.
"""
