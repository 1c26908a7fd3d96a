"""The charts of an HTML report: curves of runs as `pgcli plot` draws them, in groups with one legend."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pgcli.errors import ConfigError, RunDirectoryError
from pgcli.records import GRADIENTS
from pgcli.report.curves import Drawing, Line, caption, read_lines, x_label
from pgcli.report.html.charts import Chart, curve_chart, draw, points_for, series_of
from pgcli.report.html.page import Group
from pgcli.report.plots import common_threshold
from pgcli.runs.tables import more_of, read_header

MOST_LINES = 40  # of a chart
_OF_TRAINING = (
    *("return_mean", "length_mean", "entropy", "action_standard_deviation", "approx_kl", "step_kl", "clip_fraction"),
    *("explained_variance", "value_loss", "grad_norm", "effective_sample_size", "learning_rate", "kl_coef"),
)
_OF_GRADIENTS = ("gradients.gradient_variance", "gradients.snr", "gradients.variance_removed")
Read = tuple[list[Line], Drawing]


def curve_groups(
    paths: Sequence[Path], labels: Mapping[Path, str] | None = None, column: str = "return_mean", stat: str = "mean"
) -> list[Group]:
    """Return the learning curves of runs, and the metrics of their training.

    Args: labels: of the line of each run, by the run's path; None: those of `pgcli plot`.
    """
    notes: list[str] = []
    main = [
        read
        for name in (column, *_reported(paths))
        if (read := _read(paths, f"evaluation.{name}", stat, notes, labels)) is not None
    ]
    labels = labels or {run.path: line.label for lines, _ in main[:1] for line in lines for run in line.runs}
    training = [read for name in _OF_TRAINING if (read := _read(paths, name, stat, [], labels)) and _varies(read[0])]
    if not (main or training):
        return []
    points = points_for(sum(len(lines) for lines, _ in (*main, *training)))
    if len(main) == 1 and len(main[0][0]) == 1 and column == "return_mean":  # one curve: both kinds in one chart
        returns = next((read for read in training if read[1].y == column), None)
        rest = [read for read in training if read is not returns]
        first = _both(main[0], returns, points)
        return [Group(_legend([first]), [first], notes=notes), *_small(rest, points)]
    numbers: dict[str, int] = {}
    wide = [_chart(read, points, numbers) for read in main]
    small = [_chart(read, points, numbers) for read in training]
    return [Group([(number, label) for label, number in numbers.items()], wide, small, notes)]


def gradient_group(paths: Sequence[Path], labels: Mapping[Path, str]) -> Group | None:
    """Return the curves of measured gradients by label and estimator, or None."""

    def name(line: Line) -> str:
        own = labels.get(line.runs[0].path, line.label)
        estimator = line.runs[0].settings.get("estimator", "")
        return estimator if len(set(labels.values())) <= 1 else f"{own}: {estimator}"

    reads = [read for y in _OF_GRADIENTS if (read := _read(paths, y, "mean", [], name)) is not None]
    points = points_for(4 * sum(len(lines) for lines, _ in reads))
    numbers: dict[str, int] = {}
    charts = [_chart(read, points, numbers) for read in reads]
    return Group([(number, label) for label, number in numbers.items()], [], charts) if charts else None


def _reported(paths: Sequence[Path]) -> list[str]:
    """Return the columns of evaluations that environments report, such as `is_success`."""
    headers = [read_header(file) for path in paths[:1] if (file := path / "evaluations.csv").is_file()]
    return [name for header in headers for name in more_of("evaluations", header) or () if name != "stopped_by"][:4]


def _read(
    paths: Sequence[Path],
    y: str,
    stat: str,
    notes: list[str],
    labels: Mapping[Path, str] | Callable[[Line], str] | None,
) -> Read | None:
    """Read the curves of a column, and add notes about skipped runs; None if there are none."""
    if y.removeprefix("gradients.") in {column.name for column in GRADIENTS}:
        stat = "mean"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            lines, drawing = read_lines(paths, "env_steps", y, stat, "ci95", 1)
        except (ConfigError, RunDirectoryError):
            return None
    notes += [str(warning.message).capitalize() for warning in caught]
    if len(lines) > MOST_LINES:
        notes.append(f"The charts have the first {MOST_LINES} of {len(lines)} curves.")
    if labels is not None:
        rename = labels if callable(labels) else lambda line: labels.get(line.runs[0].path, line.label)
        lines = [replace(line, label=rename(line)) for line in lines]
    return lines[:MOST_LINES], drawing


def _varies(lines: Sequence[Line]) -> bool:
    values = np.concatenate([line.curve.center for line in lines])
    return bool(np.ptp(values) > 0)


def _chart(read: Read, points: int, numbers: dict[str, int]) -> Chart:
    return curve_chart(*read, points, numbers)


def _small(reads: Sequence[Read], points: int) -> list[Group]:
    return [Group([], [], [_chart(read, points, {}) for read in reads])] if reads else []


def _both(evaluations: Read, rollouts: Read | None, points: int) -> Chart:
    """Return the chart of one curve of evaluations, with the returns of the same runs during training."""
    lines, drawing = evaluations
    if rollouts is None or len(rollouts[0]) != 1:
        return curve_chart(lines, drawing, points, {})
    series = [series_of(0, "evaluation", lines[0].curve), series_of(1, "training", rollouts[0][0].curve)]
    goal = common_threshold(lines)
    return draw(
        series,
        "Mean return",
        x_label(drawing),
        points,
        text=f"Evaluation: {caption(lines, drawing)} Training: {caption(*rollouts)}",
        rule=None if goal is None else (goal, f"solved: {goal:g}"),
    )


def _legend(charts: Sequence[Chart]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((one.number, one.label) for chart in charts for one in chart.series))
