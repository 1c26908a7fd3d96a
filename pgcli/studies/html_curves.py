"""The charts of an HTML report: curves of runs as `pgcli plot` draws them, in groups with one legend."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pgcli.errors import ConfigError, RunDirectoryError
from pgcli.records import GRADIENTS, STOPPED_BY
from pgcli.report.curves import Drawing, Line, caption, read_lines, x_label
from pgcli.report.html.charts import Chart, curve_chart, draw, points_for, series_of
from pgcli.report.html.page import Group
from pgcli.report.plots import common_threshold
from pgcli.runs.tables import more_of, read_header

MOST_LINES = 40  # of a chart
_MOST_REPORTED = 4  # charts of columns that the environment reports
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
    compared = _read(paths, f"evaluation.{column}", stat, notes, labels)
    more = (_read(paths, f"evaluation.{name}", stat, [], labels) for name in _reported(paths) if name != column)
    main = [read for read in (compared, *more) if read is not None]
    labels = labels or {run.path: line.label for lines, _ in main[:1] for line in lines for run in line.runs}
    training = [read for name in _OF_TRAINING if (read := _read(paths, name, stat, [], labels)) and _varies(read[0])]
    if not (main or training):
        return []
    points = points_for(sum(len(lines) for lines, _ in (*main, *training)))
    if main and len(main[0][0]) == 1 and column == "return_mean":  # one curve: both kinds in one chart
        returns = next((read for read in training if read[1].y == column), None)
        first = _both(main[0], returns, points)
        rest = [curve_chart(*read, points, {}) for read in (*main[1:], *training) if read is not returns]
        legend = [(one.number, one.label) for one in first.series]
        return [Group(legend, [first], notes=notes), *([Group([], [], rest)] if rest else [])]
    numbers: dict[str, int] = {}
    charts = [curve_chart(*read, points, numbers) for read in (*main, *training)]
    legend = [(number, label) for label, number in numbers.items()]
    return [Group(legend, charts[: len(main[:1])], charts[len(main[:1]) :], notes)]


def gradient_group(paths: Sequence[Path], labels: Mapping[Path, str]) -> Group | None:
    """Return the curves of measured gradients by label and estimator, or None."""

    def name(line: Line) -> str:
        own = labels.get(line.runs[0].path, line.label)
        estimator = line.runs[0].settings.get("estimator", "")
        return estimator if len(set(labels.values())) <= 1 else f"{own}: {estimator}"

    reads = [read for y in _OF_GRADIENTS if (read := _read(paths, y, "mean", [], name)) is not None]
    points = points_for(4 * sum(len(lines) for lines, _ in reads))
    numbers: dict[str, int] = {}
    charts = [curve_chart(*read, points, numbers) for read in reads]
    return Group([(number, label) for label, number in numbers.items()], [], charts) if charts else None


def _reported(paths: Sequence[Path]) -> list[str]:
    """Return the columns of evaluations that environments report, such as `is_success`."""
    try:
        header = read_header(paths[0] / "evaluations.csv")
    except RunDirectoryError:
        return []
    return [name for name in more_of("evaluations", header) or () if name != STOPPED_BY.name][:_MOST_REPORTED]


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
            lines, drawing = _read_drawable(paths, y, stat, notes)
        except (ConfigError, RunDirectoryError):
            return None
    texts = [str(warning.message) for warning in caught]
    notes += [f"{text[0].upper()}{text[1:]}." for text in texts]
    if len(lines) > MOST_LINES:
        notes.append(f"The charts have the first {MOST_LINES} of {len(lines)} curves.")
    if labels is not None:
        rename = labels if callable(labels) else lambda line: labels.get(line.runs[0].path, line.label)
        lines = [replace(line, label=rename(line)) for line in lines]
    return lines[:MOST_LINES], drawing


def _read_drawable(paths: Sequence[Path], y: str, stat: str, notes: list[str]) -> Read:
    """Read the curves of all runs, or of those that can be read. Raises: ConfigError, RunDirectoryError."""
    try:
        return read_lines(paths, "env_steps", y, stat, "ci95", 1)
    except (ConfigError, RunDirectoryError) as error:
        if len(paths) == 1:
            raise
        first = error
    readable = []
    for path in paths:
        try:
            readable.append((path, read_lines([path], "env_steps", y, stat, "ci95", 1))[0])
        except (ConfigError, RunDirectoryError) as error:
            notes.append(f"Not drawn: {error.message}.")
    if not readable or len(readable) == len(paths):
        raise first
    return read_lines(readable, "env_steps", y, stat, "ci95", 1)


def _varies(lines: Sequence[Line]) -> bool:
    values = np.concatenate([line.curve.center for line in lines])
    return bool(np.ptp(values) > 0)


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
