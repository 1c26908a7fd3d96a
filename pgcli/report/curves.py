"""Learning curves: find runs in folders, read them, and group them into lines of a plot."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from pgcli.config import flat
from pgcli.config.choices import Band, Stat, XAxis
from pgcli.config.messages import dotted
from pgcli.config.order import orders_of
from pgcli.config.yaml import parse, read_bytes
from pgcli.errors import ConfigError, Problem, RunDirectoryError, closest, counted
from pgcli.records import COLUMNS, GRADIENTS, axis
from pgcli.report.appearance import Appearance
from pgcli.report.statistics import (
    GRADIENT_RATIOS,
    RESAMPLES,
    Aggregate,
    Array,
    Curve,
    aggregate,
    gradient_ratio,
    smoothed,
)
from pgcli.runs.information import find_run_hint, read_status
from pgcli.runs.tables import Table, read_table
from pgcli.system.streams import printable

_FORMATS = (".png", ".svg", ".pdf", ".csv")
_STATISTICS = {"mean": "mean", "iqm": "interquartile mean", "median": "median"}
_METHODS = {"mean": "Student's t", "iqm": "Tukey-McLaughlin, of a trimmed mean", "median": "order statistics"}
_UNITS = {"env_steps": "steps", "iteration": "iterations", "episodes": "episodes", "seconds": "s"}
_MOMENTS = ("snr", "gradient_variance", "trajectory_variance")
_FEW_RUNS = 5  # with fewer runs, the caption has a warning
_RARE = 0.2  # share of failing runs in the example of the caption
_DEFAULT = Appearance()
_RETURNS = {"return_mean", "return_median", "return_min", "return_max"}  # in the unit of a reward threshold
_TABLES = {"evaluation.": "evaluations.csv", "gradients.": "gradients.csv", "": "metrics.csv"}  # by the prefix of y


@dataclass(frozen=True)
class Drawing:
    """The axes, statistic, band and smoothing of a plot.

    `log` is the scale of the y axis, None: that of the column.
    """

    x: XAxis
    y: str
    stat: Stat
    band: Band
    smooth: int
    log: bool | None = None

    @property
    def prefix(self) -> str:
        """The prefix of y on the command line, which names its table."""
        return next(prefix for prefix in _TABLES if self.y.startswith(prefix))

    @property
    def column(self) -> str:
        """The name of y in its table."""
        return self.y.removeprefix(self.prefix)

    @property
    def of_evaluations(self) -> bool:
        """Whether y is in evaluations.csv."""
        return self.prefix == "evaluation."

    @property
    def is_return(self) -> bool:
        """Whether y has the unit of a reward threshold."""
        return self.column in _RETURNS

    @property
    def of_gradients(self) -> bool:
        """Whether y is in gradients.csv, which has a row for each estimator."""
        return self.prefix == "gradients."


@dataclass(frozen=True)
class RunCurve:
    """The curve of one run.

    `settings` is the config as `{dotted key: text}`, `episodes` the number of evaluation episodes, `ending` the status,
    or "stopped" if a stopping rule ended the run.
    """

    path: Path
    settings: dict[str, str]
    curve: Curve
    episodes: int | None
    ending: str

    @property
    def experiment(self) -> frozenset[tuple[str, str]]:
        """The config without the seed. Runs with the same experiment form one line."""
        return _experiment(self.settings)


@dataclass(frozen=True)
class Line:
    """One line of the plot, its runs, and the number of other runs without a number to draw."""

    label: str
    runs: list[RunCurve]
    curve: Aggregate
    left_out: int = 0

    @property
    def label_and_runs(self) -> str:
        """The label with the number of runs, if lines have different numbers of runs."""
        return f"{self.label} ({counted(len(self.runs), 'run')})"


def legend(lines: Sequence[Line]) -> list[str]:
    """Label the lines, with their numbers of runs if these differ."""
    equal = len({len(line.runs) for line in lines}) == 1
    return [line.label if equal else line.label_and_runs for line in lines]


def read_lines(
    run_dirs: Sequence[Path],
    x: str,
    y: str,
    stat: str,
    band: str,
    smooth: int,
    output: Path | None = None,
    appearance: Appearance = _DEFAULT,
) -> tuple[list[Line], Drawing]:
    """Read the lines of a plot. Raises: ConfigError for a bad option or column, RunDirectoryError."""
    drawing = replace(_checked(x, y, stat, band, smooth, output), log=appearance.log)
    runs, without = _drawable(find_runs(run_dirs), drawing)
    lines = _labelled(draw_lines(_without_copies(runs, drawing), without, drawing), appearance.labels)
    _check_scale(lines, drawing)
    return lines, drawing


def _labelled(lines: Sequence[Line], labels: Sequence[str]) -> list[Line]:
    """Replace the labels of lines by the user's. Raises: ConfigError unless each line has its own."""
    if not labels:
        return list(lines)
    hint = "give one --label per line, in this order: " + ", ".join(f"`{line.label}`" for line in lines)
    if len(labels) != len(lines):
        counts = f"{counted(len(labels), 'label')} for {counted(len(lines), 'line')}"
        raise ConfigError([Problem("--label", counts, hint)])
    if len({label.strip() for label in labels} - {""}) < len(labels):
        raise ConfigError([Problem("--label", "two lines have the same label, or one has none", hint)])
    return [replace(line, label=printable(label)) for line, label in zip(lines, labels, strict=True)]


def _check_scale(lines: Sequence[Line], drawing: Drawing) -> None:
    """Report points that a logarithmic axis cannot show. Raises: ConfigError if there are no others."""
    missing = sum(not_positive(line) for line in lines) if drawing.log else 0
    if missing == sum(len(line.curve.x) for line in lines):
        raise ConfigError([Problem("--log", f"`{drawing.y}` has no value above 0", "leave --log out")])
    if missing:
        warnings.warn(f"--log: {counted(missing, 'point')} at or below 0: not drawn", stacklevel=2)


def not_positive(line: Line) -> int:
    """Count the points of a line that a logarithmic axis cannot show."""
    return int((line.curve.center <= 0).sum())


def is_logarithmic(lines: Sequence[Line], drawing: Drawing) -> bool:
    """Return whether the y axis is logarithmic.

    It is if requested, or if the column spans powers of ten and is positive.
    """
    if drawing.log is not None:
        return drawing.log
    declared = drawing.column in COLUMNS and COLUMNS[drawing.column].metric.logarithmic
    return declared and not any(map(not_positive, lines))


def smallest_shown(lines: Sequence[Line]) -> float:
    """Return the lower end of a logarithmic axis.

    The axis shows all lines, and at most a decade of the bands below them.
    """
    center = np.concatenate([line.curve.center for line in lines])
    both = np.concatenate([center, *(line.curve.low for line in lines)])
    return max(float(center[center > 0].min()) / 10, float(both[both > 0].min()) / 1.2)


def _checked(x: str, y: str, stat: str, band: str, smooth: int, output: Path | None) -> Drawing:
    problems = []
    for option, value, choices in (
        ("-x", x, get_args(XAxis)),
        ("--stat", stat, get_args(Stat)),
        ("--band", band, get_args(Band)),
        ("-o", output.suffix.lower() if output else ".png", _FORMATS),
    ):
        if value not in choices:
            problems.append(
                Problem(option, f"unsupported value `{value}`; use {', '.join(choices)}", _did_you_mean(value, choices))
            )
    if smooth < 1:
        problems.append(Problem("--smooth", f"a window of {smooth} points", "use 1 or more; 1 is no smoothing"))
    if band == "standard_error" and stat in ("iqm", "median"):
        reason = f"standard_error is defined for a mean, not for the {_STATISTICS[stat]}"
        problems.append(Problem("--band", reason, "use --band ci95 or --stat mean"))
    if y.removeprefix("gradients.") in GRADIENT_RATIOS and stat in ("iqm", "median"):
        reason = f"`{y}` is a ratio, which must be averaged as a ratio of means"
        problems.append(Problem("--stat", reason, "use --stat mean"))
    if problems:
        raise ConfigError(problems)
    if y in {column.name for column in GRADIENTS[2:]}:  # in no other table
        y = f"gradients.{y}"
    return Drawing(cast(XAxis, x), y, cast(Stat, stat), cast(Band, band), smooth)


def _did_you_mean(value: str, choices: Collection[str]) -> str:
    close = closest(value, choices)
    return f"did you mean `{close}`?" if close else f"use one of {', '.join(choices)}"


# From folders to runs


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Find all run directories in folders, except those moved aside (`NAME~1`)."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "a file, not a run directory" if folder.exists() else "no such directory"
            raise RunDirectoryError(f"{folder}: {what}", find_run_hint(folder))
        below = _runs_below(folder, set())
        if not below:
            missing = [name for name in ("config.yaml", "metrics.csv") if not (folder / name).is_file()]
            raise RunDirectoryError(
                f"{folder}: contains no run" if len(missing) == 2 else f"{folder}: has no {missing[0]}",
                "a run directory has config.yaml and metrics.csv",
            )
        found |= {os.path.realpath(run): run for run in below}
    return list(found.values())


def _runs_below(folder: Path, seen: set[str]) -> list[Path]:
    if os.path.realpath(folder) in seen:  # a link to a folder above
        return []
    seen.add(os.path.realpath(folder))
    try:
        if all((folder / name).is_file() for name in ("config.yaml", "metrics.csv")):
            return [folder]
        inside = sorted(
            child
            for child in folder.iterdir()
            if not child.name.startswith(".") and "~" not in child.name and child.is_dir()
        )
    except OSError as error:
        raise RunDirectoryError(f"{folder}: cannot be read: {error.strerror}") from None
    return [run for child in inside for run in _runs_below(child, seen)]


class _NothingToDraw(RunDirectoryError):
    """A run has no number in the requested column."""


def _drawable(paths: Sequence[Path], drawing: Drawing) -> tuple[list[RunCurve], list[dict[str, str]]]:
    """Read the curves of all runs.

    Warn about runs without a number, and return their configs.

    Raises: RunDirectoryError if no run has a number.
    """
    runs: list[RunCurve] = []
    empty: list[_NothingToDraw] = []
    without: list[dict[str, str]] = []
    for path in paths:
        try:
            table = _read(path, drawing)
        except _NothingToDraw as error:
            empty.append(error)
            without.append(_settings(path / "config.yaml"))
            continue
        for estimator in dict.fromkeys(table.words.get("estimator", ())) or (None,):
            try:
                runs.append(_run_curve(path, table, drawing, estimator))
            except _NothingToDraw as error:
                empty.append(error)
                without.append(_settings(path / "config.yaml"))
    if not runs:
        raise empty[0]
    for nothing in empty:
        warnings.warn(f"skipped: {nothing.message}", stacklevel=2)
    return runs, without


def _without_copies(runs: Sequence[RunCurve], drawing: Drawing) -> list[RunCurve]:
    """Skip copies of a run, with a warning: the same config, seed and table.

    A table that is the beginning of another one belongs to an unfinished copy. Runs with different numbers count.
    """
    content = {run.path: (run.path / _TABLES[drawing.prefix]).read_bytes() for run in runs}
    kept: dict[frozenset[tuple[str, str]], list[RunCurve]] = {}
    for run in sorted(runs, key=lambda run: -len(content[run.path])):  # the first of equal runs is kept
        same = kept.setdefault(frozenset(run.settings.items()), [])
        original = next((one for one in same if content[one.path].startswith(content[run.path])), None)
        if original is not None:
            warnings.warn(f"skipped: {run.path} is a copy of {original.path}", stacklevel=2)
            continue
        if same:
            text = f"{run.path} and {same[0].path} have the same config and seed but different numbers: both count"
            warnings.warn(text, stacklevel=2)
        same.append(run)
    chosen = [id(run) for group in kept.values() for run in group]
    return [run for run in runs if id(run) in chosen]


def _read(path: Path, drawing: Drawing) -> Table:
    """Read the table of y, which may be incomplete or damaged by a crash."""
    file = path / _TABLES[drawing.prefix]
    if drawing.of_gradients and not file.is_file():
        raise _NothingToDraw(
            f"{path}: has no gradients.csv", "set diagnostics.every to measure gradients during training"
        )
    columns = {drawing.column, "env_steps", "episodes", "return_standard_error", "evaluation_episodes"}
    if drawing.of_gradients:
        columns |= {"estimator", *_MOMENTS}
    table = read_table(file, columns, skip_damage=True)
    if "iteration" not in table.header:
        raise _NothingToDraw(f"{file}: empty or damaged: no column `iteration`")
    if drawing.column not in table.header:
        names = [drawing.prefix + name for name in table.header]
        hint = _did_you_mean(drawing.y, names)
        raise ConfigError([Problem("-y", f"{file} has no column `{drawing.column}`", hint)])
    return table


def _run_curve(path: Path, table: Table, drawing: Drawing, estimator: str | None) -> RunCurve:
    """Extract the curve of one run, or of one of its estimators, from its table."""
    settings = _settings(path / "config.yaml")
    if estimator is not None:
        settings["estimator"] = estimator
        table = table.pick(table.words["estimator"] == estimator)
    table = _last_of_each_iteration(table)
    x, y, weights = _x_values(path, table, drawing), table[drawing.column], np.ones(table.rows)
    if is_ratio := drawing.of_gradients and drawing.column in GRADIENT_RATIOS:
        y, weights = gradient_ratio(drawing.column, *(table[name] for name in _MOMENTS))
    drawn = np.isfinite(y) & np.isfinite(weights) & np.isfinite(x)
    if not drawn.any():
        raise _NothingToDraw(f"{table.path}: no number in column `{drawing.column}`")
    error = table["return_standard_error"][drawn] if drawing.column == "return_mean" else None
    curve = Curve(x[drawn], y[drawn], error, weights[drawn] if is_ratio else None)
    count = table["evaluation_episodes"][drawn][-1]
    episodes = int(count) if drawing.of_evaluations and np.isfinite(count) else None
    return RunCurve(path, settings, smoothed(curve, drawing.smooth), episodes, _ending(path))


def _last_of_each_iteration(table: Table) -> Table:
    """Sort rows by iteration; keep the last row of each iteration.

    After a stop, the evaluation on new episodes replaces the one that triggered the stop.
    """
    rows = np.flatnonzero(np.isfinite(table["iteration"]))[::-1]
    return table.pick(rows[np.unique(table["iteration"][rows], return_index=True)[1]])


def _x_values(path: Path, table: Table, drawing: Drawing) -> Array:
    """Return x of each row; an evaluation has x of the previous iteration, and 0 before the first."""
    if drawing.x in table.numbers:
        return table[drawing.x]
    file, column = ("timing.csv", "elapsed_seconds") if drawing.x == "seconds" else ("metrics.csv", "episodes")
    other = _last_of_each_iteration(read_table(path / file, {column}, skip_damage=True))
    at = dict(zip(other["iteration"].tolist(), other[column].tolist(), strict=True))
    if drawing.of_evaluations:
        at = {iteration + 1: value for iteration, value in at.items()} | {0.0: 0.0}
    return np.array([at.get(iteration, math.nan) for iteration in table["iteration"].tolist()])


def _settings(path: Path) -> dict[str, str]:
    try:
        data = parse(read_bytes(path), str(path)).data
    except ConfigError as error:
        raise RunDirectoryError(f"{path}: not a config: {error.message}") from None
    if not isinstance(data, dict):
        return {}
    orders = {f"order of {dotted(path)}": keys for path, keys in orders_of(data) or []}
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in (flat(data) | orders).items()
    }


def _experiment(settings: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in settings.items() if item[0] != "seed")


def _ending(path: Path) -> str:
    """Return the status of the run in `path`; "stopped" if a stopping rule ended it."""
    if not (path / "status.json").exists():
        return "unknown"
    status = read_status(path)
    reason = status.get("reason") or ""
    by_rule = reason.startswith(("stopped early", "reached a return"))  # the latter in earlier versions
    return "stopped" if by_rule and status["status"] == "finished" else str(status["status"])


# From runs to lines


def draw_lines(runs: Sequence[RunCurve], without: Sequence[dict[str, str]], drawing: Drawing) -> list[Line]:
    """Group runs that differ only in their seed. `without` are the configs of runs without a number."""
    groups: dict[frozenset[tuple[str, str]], list[RunCurve]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    left_out = [_experiment(settings) for settings in without]
    labels = _labels([group[0].settings for group in groups.values()])
    lines = [
        Line(label, group, aggregate([run.curve for run in group], drawing.stat, drawing.band), left_out.count(key))
        for label, (key, group) in zip(labels, groups.items(), strict=True)
    ]
    drawn = [line for line in lines if len(line.curve.x)]
    if not drawn:
        raise _NothingToDraw(f"`{drawing.y}`: the noise exceeds the signal everywhere", "use --smooth, or more seeds")
    return drawn


def _labels(settings: Sequence[dict[str, str]]) -> list[str]:
    """Label experiments by name; if names are equal, add the keys that differ."""
    labels = []
    for one in settings:
        twins = [other for other in settings if other.get("name") == one.get("name")]
        keys = [key for key in one if key != "seed" and len({twin.get(key) for twin in twins}) > 1]
        method = [
            key
            for key in keys
            if not key.startswith(("training.", "evaluation.", "checkpoint.", "sampling.", "diagnostics."))
        ]
        if len({tuple(twin.get(key) for key in method) for twin in twins}) == len(twins):
            keys = method  # these distinguish them
        name = one.get("name", "run")
        values = ", ".join(f"{key.rpartition('.')[2]} {one[key]}" for key in keys)
        labels.append(shortened(printable(f"{name}: {values}" if values else name), 70))
    return labels


def caption(lines: Sequence[Line], drawing: Drawing) -> str:
    """Describe lines and bands: method, number of runs or episodes, and runs that ended early."""
    several, single = ([line for line in lines if (len(line.runs) > 1) == more] for more in (True, False))
    sentences = [*(_of_several(lines, drawing) if several else ()), *_of_single(single, drawing, bool(several))]
    for line in lines:
        label = f"{shortened(line.label, 40)}: " if len(lines) > 1 else ""
        sentences += _endings(line, drawing, label)
        if drawing.log and (missing := not_positive(line)):
            sentences.append(f"{label}{missing} of {counted(len(line.curve.x), 'point')} at or below 0: not drawn.")
    if any(run.curve.x[-1] < line.curve.x[-1] for line in lines for run in line.runs):
        sentences.append("After its end, a run keeps its last value.")
    pairs = [(line.curve.x, run.curve.x) for line in lines for run in line.runs]
    if any(not np.isin(x[x <= own[-1]], own).all() for x, own in pairs):
        sentences.append("Runs are interpolated linearly, which narrows the band of noisy runs.")
    if is_logarithmic(lines, drawing) and any((line.curve.low <= 0).any() for line in lines):
        sentences.append("A band that reaches 0 ends at the edge of the figure.")
    if drawing.smooth > 1:
        sentences.append(f"Each run smoothed over {drawing.smooth} points.")
    return printable(" ".join(sentences))


def _of_several(lines: Sequence[Line], drawing: Drawing) -> Iterator[str]:
    """Describe lines of which at least one is of several runs."""
    sizes = [len(line.runs) for line in lines]
    ratio = drawing.of_gradients and drawing.column in GRADIENT_RATIOS
    statistic, method = (
        ("ratio of means", "Student's t") if ratio else (_STATISTICS[drawing.stat], _METHODS[drawing.stat])
    )
    if len(lines) == 1:
        yield f"Line: {statistic} over {sizes[0]} runs."
    elif len(set(sizes)) == 1:
        yield f"Lines: {statistic} over {sizes[0]} runs each."
    else:
        each = ", ".join(f"{size} ({shortened(line.label, 40)})" for size, line in zip(sizes, lines, strict=True))
        yield f"Lines: {statistic} over n runs, n = {each}."
    match drawing.band:
        case "ci95":
            yield f"Band: 95 % interval ({method})."
            if drawing.stat == "median" and any(1 < size < 6 for size in sizes):
                yield "The median of fewer than 6 runs has no interval."
        case "bootstrap":
            yield f"Band: 95 % bootstrap interval ({RESAMPLES:,} resamples of runs), too narrow for few runs."
        case "standard_error":
            yield "Band: ± one standard error over runs."
    fewest = min(size for size in sizes if size > 1)
    if fewest < _FEW_RUNS:
        missed = f"{100 * (1 - _RARE) ** fewest:.0f} %"
        yield f"{fewest} runs are few: with probability {missed}, they miss a failure that occurs in 1 of 5 runs."


def _of_single(lines: Sequence[Line], drawing: Drawing, others: bool) -> Iterator[str]:
    if not lines or (drawing.band == "none" and others):
        return
    one = "One run" if len(lines) == 1 else "One run each"
    if drawing.band == "none":
        yield f"{one}."
        return
    episodes = {line.runs[0].episodes for line in lines}
    number = f"{episodes.pop()}" if len(episodes) == 1 and None not in episodes else "its"
    of = f"{number} evaluation episodes" if drawing.of_evaluations else "an iteration's episodes"
    known = drawing.column == "return_mean"
    band = f"band: ± one standard error over {of}." if known else "no band: one run has no spread."
    yield f"Single runs: {band}" if others else f"{one}. {band[0].upper() + band[1:]}"
    without = sum(int(np.isnan(line.curve.low).sum()) for line in lines)
    if known and without:
        points = counted(sum(len(line.curve.low) for line in lines), "point")
        yield f"No band at {without} of {points}: one episode has no standard error."


def _endings(line: Line, drawing: Drawing, label: str) -> Iterator[str]:
    """Count the runs of a line that ended before their budget, and where."""
    count = len(line.runs)
    for ending in dict.fromkeys(run.ending for run in line.runs if run.ending != "finished"):
        ends = sorted(float(run.curve.x[-1]) for run in line.runs if run.ending == ending)
        where = " to ".join(dict.fromkeys(_rounded(x) for x in (ends[0], ends[-1])))
        now, before = ("is", "was") if len(ends) == 1 else ("are", "were")
        verbs = {"interrupted": f"{before} interrupted", "running": f"{now} running", "unknown": f"{now} unfinished"}
        verb = verbs.get(ending, ending)
        yield f"{label}{len(ends)} of {count} {verb} at {where} {_UNITS[drawing.x]}."
    if line.left_out:
        yield f"{label}{line.left_out} of {count + line.left_out} without a number: skipped."


def _rounded(x: float) -> str:
    """Format a number with three digits: 12 k, 1.25 M."""
    text = thousands(float(f"{x:.3g}"))
    return f"{text[:-1]} {text[-1]}" if text[-1].isalpha() else text


def x_label(drawing: Drawing) -> str:
    """Label the x axis."""
    return axis("elapsed_seconds" if drawing.x == "seconds" else drawing.x)


def y_label(lines: Sequence[Line], drawing: Drawing) -> str:
    """Label the y axis."""
    name = printable(axis(drawing.column))
    if not drawing.of_evaluations:
        return name
    counts = {run.episodes for line in lines for run in line.runs}
    known = len(counts) == 1 and None not in counts
    return f"{name} of {counts.pop()} evaluation episodes" if known else f"{name} of evaluations"


def thousands(value: float) -> str:
    """Format a number of an axis: 25k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e13:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def shortened(text: str, width: int) -> str:
    """Shorten a text to a width."""
    return text if len(text) <= width else text[: width - 1] + "…"
