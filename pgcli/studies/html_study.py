"""The content of an HTML report about a comparison or a suite, from report.json and the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.config.names import folder_name
from pgcli.errors import PgcliError, RunDirectoryError, counted
from pgcli.report.html.charts import Series, draw, points_for
from pgcli.report.html.page import Group, Section, Table
from pgcli.report.text import duration, short
from pgcli.runs.files import read_json
from pgcli.runs.information import read_information
from pgcli.studies import page, suite_report
from pgcli.studies.html_curves import curve_groups, gradient_group
from pgcli.studies.html_runs import Content, Films, config_content, repeat_command, summaries

_MAY_BE_NULL = ("threshold", "env_steps", "seeds_needed", "seeds_needed_low", "seeds_needed_high")
_HINT = "send the `pgcli compare` of this folder again: existing runs are not trained again"


def study_content(folder: Path, output: Path) -> tuple[str, Content]:
    """Return the template and the content of the report about a study. Raises: RunDirectoryError."""
    file = folder / page.RESULT
    try:
        result = _with_nan(read_json(file))
        contents = suite_content if "tasks" in result else comparison_content
        return contents(result, folder, Films(output))
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise RunDirectoryError(f"{file}: damaged, or of another version of pgcli: {error}", _HINT) from error


def _with_nan(value: Any, key: str = "") -> Any:
    """Replace null by nan, as in the result that was written, except where null has a meaning."""
    if isinstance(value, dict):
        return {name: _with_nan(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_nan(one) for one in value]
    return math.nan if value is None and key not in _MAY_BE_NULL else value


def comparison_content(result: Content, folder: Path, films: Films) -> tuple[str, Content]:
    """Return the template and the content of the report about a comparison."""
    runs = _runs_of(result, folder)
    labels = {path: label for label, paths in runs.items() for path in paths}
    existing = [path for path in labels if path.is_dir()]
    column = result["column"]
    group = gradient_group(existing, labels) if result["gradients"] else None
    gradients = {
        "about": " ".join(page.GRADIENTS),
        "table": Table.of("Gradient variance", page.gradient_rows(result["gradients"]), (0, 1)),
        "group": group,
    }
    variants = [
        Section(one["arm"], f"variant-{n}", _variant(one["arm"], runs[one["arm"]], result, films))
        for n, one in enumerate(result["arms"], 1)
    ]
    parts = {
        "conclusions": "What is shown",
        "curves": "Learning curves",
        "values": f"Final {page.quantity(column)}",
        "differences": "Differences",
        **({"gradients": "Gradient variance"} if result["gradients"] else {}),
    }
    return "study.html.j2", {
        "kind": "Comparison",
        "title": page.title(result).replace("`", ""),
        "lede": " ".join(page.about(result)),
        "tiles": [],
        "contents": [*(Section(title, anchor) for anchor, title in parts.items()), *variants],
        "titles": parts,
        "shown": f"{sum(bool(pair['shown']) for pair in result['pairs'])} of {len(result['pairs'])}",
        "pairs": [(bool(pair["shown"]), str(pair["sentence"])) for pair in result["pairs"]],
        "notes": [str(note) for note in result["notes"]],
        "final": Table.of("Final values by variant", page.final_rows(result)),
        "profile": _profile(result, f"{page.quantity(column)} τ", "Share of seeds above τ"),
        "settings": Table.of("Settings that differ", page.settings_rows(result), range(99))
        if result["settings"]
        else None,
        "curves": curve_groups(existing, labels, column, "iqm"),
        "efficiency": page.efficiency_texts(result),
        "steps": None
        if result["threshold"] is None
        else Table.of("Steps to the threshold", page.efficiency_rows(result)),
        "differences": Table.of("Differences between variants", page.difference_rows(result), (0, 2)),
        "gradients": gradients if result["gradients"] else None,
        "times": Table.of("Time, on the machine that trained the runs", page.time_rows(result)),
        "variants": variants,
        "method": _bullets(page.method_text(len(result["pairs"]))),
        **_circumstances(result, existing),
    }


def _runs_of(result: Content, folder: Path) -> dict[str, list[Path]]:
    """Return the run directories of each variant, also if the folder of the study was moved."""
    home = Path(result["directory"])
    runs: dict[str, list[Path]] = {one["arm"]: [] for one in result["arms"]}
    for row in result["runs"]:
        path = Path(row["run"])
        runs[row["arm"]].append(folder / path.relative_to(home) if path.is_relative_to(home) else path)
    return runs


def _variant(label: str, paths: Sequence[Path], result: Content, films: Films) -> Content:
    """Return the section of a variant: its runs, their findings, its config, and how to repeat it."""
    rows = [row for row in result["runs"] if row["arm"] == label]
    found = {path: one for path, one in summaries(paths) if not isinstance(one, PgcliError)}
    seeds = {path: row["seed"] for path, row in zip(paths, rows, strict=True)}
    first = next(iter(found.values()), None)
    missing = [str(path) for path in paths if path not in found]
    return {
        "runs": _runs_table(rows, result),
        "missing": f"Not readable: {', '.join(missing)}." if missing else "",
        "findings": list(_findings({seeds[path]: one["findings"] for path, one in found.items()})),
        "checked": f"No problems in {counted(len(found), 'run')}." if found else "",
        "films": [film for path in paths for film in films.of(path)][:1],
        "config": None if first is None else config_content(first),
        "repeat": repeat_command(next(iter(found))) if found else "",
    }


def _runs_table(rows: Sequence[Mapping[str, Any]], result: Content) -> Table:
    name = page.quantity(result["column"])
    goal = [] if result["threshold"] is None else [f"steps to {result['threshold']:g}"]
    cells = [
        [
            str(row["seed"]),
            str(row["status"]),
            *(_short(row[key]) for key in (f"final_{name}", "best_evaluation", "first_evaluation")),
            *(f"{x:,.0f}" if math.isfinite(x) else "not reached" for x in (row["steps_to_threshold"],) if goal),
            f"{row['env_steps']:,}",
            duration(row["seconds"]) if math.isfinite(row["seconds"]) else "",
        ]
        for row in rows
    ]
    head = ["seed", "status", f"final {name}", "best", "untrained", *goal, "env steps", "time"]
    return Table("Runs of the variant", head, cells, (0, 1))


def _short(value: float) -> str:
    return short(value) if math.isfinite(value) else ""


def _findings(by_seed: Mapping[int, Sequence[Content]]) -> list[Content]:
    """Return the findings of several runs: each kind once, with its number of runs and the first text."""
    kinds: dict[str, list[tuple[int, Content]]] = {}
    for seed, found in by_seed.items():
        for one in found:
            kinds.setdefault(one["name"], []).append((seed, one))
    return [
        same[0][1]
        | {"iteration": None, "text": f"{len(same)} of {len(by_seed)} runs, here seed {same[0][0]}: {_at(same[0][1])}"}
        for same in kinds.values()
    ]


def _at(finding: Content) -> str:
    return finding["text"] if finding["iteration"] is None else f"iteration {finding['iteration']}: {finding['text']}"


def _profile(result: Content, x_name: str, title: str) -> Group:
    """Return the chart of the performance profiles."""
    labels = [one["arm"] for one in result["arms"]]
    series = []
    for number, label in enumerate(labels):
        points = [row for row in result["profile"] if row["arm"] == label]
        names = ("threshold", "share", "share_low", "share_high")
        columns = [np.array([float(row[name]) for row in points]) for name in names]
        series.append(Series(number, label, *columns))
    chart = draw(series, title, x_name, points_for(3 * len(series)), steps=True)
    return Group(list(enumerate(labels)), [chart])


def suite_content(result: Content, folder: Path, films: Films) -> tuple[str, Content]:
    """Return the template and the content of the report about a suite, with the comparison on each task."""
    names = list(dict.fromkeys(row["task"] for row in result["tasks"]))
    tasks = []
    for number, name in enumerate(names, 1):
        home = folder / folder_name(name)
        one = _with_nan(read_json(home / page.RESULT))
        tasks.append((Section(name, f"task-{number}"), one, home))
    labels = [one["arm"] for one in result["arms"]]
    variants = [
        Section(
            label,
            f"variant-{n}",
            {"tasks": [_on_task(task.title, label, one, home, films) for task, one, home in tasks]},
        )
        for n, label in enumerate(labels, 1)
    ]
    overall = [Section("Over all tasks", "overall"), Section("By task", "tasks")]
    return "suite.html.j2", {
        "kind": "Suite",
        "title": suite_report.title(result),
        "lede": f"{', '.join(f'`{label}`' for label in labels)} on {', '.join(names)}.",
        "tiles": [],
        "contents": [*overall, *(task for task, *_ in tasks), *variants],
        "final": Table.of("Normalised scores over all tasks and seeds", suite_report.overall_rows(result)),
        "pairs": Table.of(
            "Probability that a run of the row ends above one of the column", suite_report.pair_rows(result)
        ),
        "profile": _profile(
            result, "normalised score τ: 0 is random, 1 the reference", "Share of runs above τ, mean over tasks"
        ),
        "by_task": Table.of("Normalised scores by task", suite_report.task_rows(result)),
        "tasks": [Section(task.title, task.anchor, _task(one, home)) for task, one, home in tasks],
        "variants": variants,
        "method": suite_report.method(result),
        **_circumstances(
            result, [path for _, one, home in tasks for runs in _runs_of(one, home).values() for path in runs]
        ),
    }


def _task(result: Content, folder: Path) -> Content:
    labels = {path: label for label, paths in _runs_of(result, folder).items() for path in paths}
    return {
        "lede": " ".join(page.about(result)),
        "pairs": [(bool(pair["shown"]), str(pair["sentence"])) for pair in result["pairs"]],
        "final": Table.of("Final values by variant", page.final_rows(result)),
        "curves": [
            Group(group.legend, group.main) for group in curve_groups(list(labels), labels, result["column"], "iqm")[:1]
        ],
    }


def _on_task(task: str, label: str, result: Content, folder: Path, films: Films) -> Content:
    return {"title": task, **_variant(label, _runs_of(result, folder)[label], result, films)}


def _bullets(text: str) -> list[str]:
    """Return the items of a Markdown list."""
    return [" ".join(item.split()) for item in text.removeprefix("- ").split("\n- ")]


def _circumstances(result: Content, runs: Sequence[Path]) -> Content:
    """Return the command that repeats a study, and the versions of its first run."""
    found: dict[str, Any] = {}
    for path in runs[:1]:
        try:
            information = read_information(path)
        except PgcliError:
            continue
        found = {"pgcli": information.get("pgcli"), **information.get("versions", {})}
    return {
        "command": str(result["command"]),
        "versions": ", ".join(f"{name} {version}" for name, version in found.items() if version),
    }
