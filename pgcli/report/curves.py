"""Learning curves of run directories, as a figure or as the numbers in it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import textwrap
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from pgcli.config import flat
from pgcli.config.choices import Band, Stat, XAxis
from pgcli.config.yaml import parse, read_bytes
from pgcli.errors import ConfigError, Problem, RunDirectoryError, closest
from pgcli.records import GradientEstimate
from pgcli.report.statistics import RESAMPLES, Aggregate, Array, Curve, aggregate, smoothed
from pgcli.runs.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FORMATS = (".png", ".svg", ".pdf", ".csv")
_RETURNS = {"return_mean", "return_median", "return_min", "return_max"}  # what a reward threshold is about
NAMES = {
    "return_mean": "mean return",
    "return_standard_error": "standard error of the mean return",
    "return_standard_deviation": "standard deviation of the return",
    "return_min": "smallest return",
    "return_max": "largest return",
    "return_median": "median return",
    "length_mean": "mean length in steps",
    "discounted_return_mean": "mean discounted return",
    "entropy": "entropy of the policy (nats)",
    "approx_kl": "approximate KL divergence (nats)",
    "grad_norm": "gradient norm",
    "gradient_norm": "norm of the gradient estimate",
    "gradient_variance": "variance of the gradient estimate",
    "trajectory_variance": "variance of one trajectory's gradient",
    "snr": "signal-to-noise ratio of the gradient",
    "trajectories_for_snr_1": "trajectories for a signal-to-noise ratio of 1",
    "variance_removed": "share of the variance that the baseline removes",
    "cosine": "cosine with the gradient that was taken",
    "env_steps": "environment steps",
    "seconds": "seconds of training",
}
# Of gradients.csv; they go over powers of ten, and are drawn so where all of them are positive.
_LOGARITHMIC = {"gradient_norm", "gradient_variance", "trajectory_variance", "snr", "trajectories_for_snr_1"}
_STATISTICS = {"mean": "mean", "iqm": "interquartile mean", "median": "median"}
# Okabe & Ito (2008), told apart with every common kind of colour vision; without yellow, which fades on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.hashsalt": "pgcli",  # the same ids every time
}


@dataclass(frozen=True)
class Drawing:
    """What is drawn against what, and how."""

    x: XAxis
    y: str
    stat: Stat
    band: Band
    smooth: int

    @property
    def of_evaluations(self) -> bool:
        """Whether y is of evaluations.csv rather than of metrics.csv."""
        return self.y.startswith("evaluation.")

    @property
    def of_gradients(self) -> bool:
        """Whether y is of gradients.csv, which has a row for each estimator."""
        return self.y.startswith("gradients.")

    @property
    def file(self) -> str:
        """The file that has y."""
        return "evaluations.csv" if self.of_evaluations else "gradients.csv" if self.of_gradients else "metrics.csv"

    @property
    def prefix(self) -> str:
        """What a column of that file is called by on the command line."""
        return "evaluation." if self.of_evaluations else "gradients." if self.of_gradients else ""

    @property
    def column(self) -> str:
        """The name of y in that file."""
        return self.y.removeprefix(self.prefix)


@dataclass(frozen=True)
class Table:
    """Columns of a CSV file, [rows], by iteration; nan is an empty cell, inf a number that is not finite."""

    path: Path
    header: list[str]
    columns: dict[str, Array]

    def __getitem__(self, column: str) -> Array:
        """Give a column, empty cells throughout if the file lacks it."""
        return self.columns.get(column, np.full(len(self.columns["iteration"]), np.nan))


@dataclass(frozen=True)
class Run:
    """One run directory: its config flattened to `{dotted key: text}`, its curve, and the episodes behind a point."""

    path: Path
    settings: dict[str, str]
    curve: Curve
    episodes: int | None

    @property
    def experiment(self) -> frozenset[tuple[str, str]]:
        """The config without the seed: what runs of one line share."""
        return frozenset(item for item in self.settings.items() if item[0] != "seed")


@dataclass(frozen=True)
class Line:
    """One line of the figure and the runs behind it."""

    label: str
    runs: list[Run]
    curve: Aggregate


def plot(run_dirs: Sequence[Path], x: str, y: str, stat: str, band: str, smooth: int, output: Path | None) -> Path:
    """Draw the learning curves of run directories, or of folders of them, and give the file written.

    Runs that differ only in their seed are one line. The suffix of `output` says what is written: .png, .svg, .pdf,
    or .csv for the numbers that would be drawn. Without it: `plots/<y>.png` in the one folder given, or here.

    Raises: ConfigError for a bad option or column, RunDirectoryError for what cannot be read, drawn or written.
    """
    lines, drawing = read_lines(run_dirs, x, y, stat, band, smooth, output)
    if output is None:
        output = (run_dirs[0] if len(run_dirs) == 1 else Path()) / "plots" / f"{y}.png"
    if output.suffix.lower() == ".csv":
        content = _as_csv(lines).encode()
    else:
        content = _as_figure(lines, drawing, output.suffix.lower()[1:])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(content)
    except OSError as error:
        raise RunDirectoryError(f"{output}: cannot be written: {error.strerror}", "name another file with -o") from None
    return output


def read_lines(
    run_dirs: Sequence[Path], x: str, y: str, stat: str, band: str, smooth: int, output: Path | None = None
) -> tuple[list[Line], Drawing]:
    """Give what `plot` would draw. Raises: ConfigError, RunDirectoryError."""
    drawing = _checked(x, y, stat, band, smooth, output)
    return draw_lines(_drawable(find_runs(run_dirs), drawing), drawing), drawing


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
                Problem(option, f"`{value}` is none of {', '.join(choices)}", _did_you_mean(value, choices))
            )
    if smooth < 1:
        problems.append(Problem("--smooth", f"a window of {smooth} points", "1 is no smoothing"))
    if band == "standard_error" and stat in ("iqm", "median"):
        reason = f"standard_error is that of a mean, and the line would be the {_STATISTICS[stat]}"
        problems.append(Problem("--band", reason, "use --band ci95 or --stat mean"))
    if problems:
        raise ConfigError(problems)
    if y in {field.name for field in fields(GradientEstimate)}:  # in no other file
        y = f"gradients.{y}"
    return Drawing(cast(XAxis, x), y, cast(Stat, stat), cast(Band, band), smooth)


def _did_you_mean(value: str, choices: Collection[str]) -> str:
    close = closest(value, choices)
    return f"did you mean `{close}`?" if close else f"there are {', '.join(choices)}"


# From folders to runs


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Find run directories: those given, and all below a folder that is none; moved-aside ones (`~`) are not runs."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "is a file, not a run directory" if folder.exists() else "no such directory"
            raise RunDirectoryError(f"{folder}: {what}", "`pgcli train` prints the run directory that it writes")
        below = _runs_below(folder, set())
        if not below:
            missing = [name for name in ("config.yaml", "metrics.csv") if not (folder / name).is_file()]
            raise RunDirectoryError(
                f"{folder}: no run in it" if len(missing) == 2 else f"{folder}: has no {missing[0]}",
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


def read_table(path: Path, wanted: Collection[str], estimator: str | None = None) -> Table:
    """Read columns of a CSV file that may still be written, or was when the machine died.

    A last line without its end is dropped, as is one with NULs or too few cells; of rows with the same iteration
    the last one counts. With `estimator`, only its rows are read.
    """
    rows: list[list[float]] = []
    try:
        with path.open("rb") as file:
            header = _cells(file.readline().removeprefix(b"\xef\xbb\xbf"))
            names = ["iteration", *sorted(set(header) & set(wanted) - {"iteration"})]
            places = [header.index(name) for name in names] if "iteration" in header else []
            for line in file:
                cells = line.lstrip(b"\0").rstrip(b"\r").split(b",")
                if estimator is not None and estimator.encode() not in cells:
                    continue
                if line.endswith(b"\n") and b"\0" not in cells[-1] and len(cells) == len(header) and places:
                    rows.append([_number(cells[place]) for place in places])
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None
    values = np.array(rows, np.float64).reshape(-1, len(names))
    values = values[np.isfinite(values[:, 0])]
    _, last = np.unique(values[::-1, 0], return_index=True)
    return Table(path, header, dict(zip(names, values[::-1][last].T, strict=True)))


def _cells(line: bytes) -> list[str]:
    return line.decode(errors="replace").strip().split(",") if line.endswith(b"\n") else []


def _number(cell: bytes) -> float:
    try:
        value = float(cell)
    except ValueError:  # empty, or a word
        return math.nan
    return value if math.isfinite(value) else math.inf


class _NothingToDraw(RunDirectoryError):
    """A run that has no number in the column asked for."""


def _drawable(paths: Sequence[Path], drawing: Drawing) -> list[Run]:
    """Read the runs, leaving out, with a warning, those that have nothing to draw yet; one at least must have."""
    runs, empty = [], []
    for path in paths:
        for estimator in _estimators(path) if drawing.of_gradients else (None,):
            try:
                runs.append(read_run(path, drawing, estimator))
            except _NothingToDraw as error:
                empty.append(error)
    if not runs:
        raise empty[0]
    for nothing in empty:
        warnings.warn(f"left out: {nothing.message}", stacklevel=2)
    return runs


def _estimators(path: Path) -> list[str | None]:
    """Name the estimators of gradients.csv in their order; None where there is none of either."""
    try:
        header, *lines = (path / "gradients.csv").read_bytes().splitlines()
    except (OSError, ValueError):  # which `read_run` tells of
        return [None]
    place = header.split(b",").index(b"estimator") if b"estimator" in header.split(b",") else 0
    names = [line.split(b",")[place] for line in lines if line.count(b",") == header.count(b",")]
    return [name.decode(errors="replace") for name in dict.fromkeys(names)] or [None]


def read_run(path: Path, drawing: Drawing, estimator: str | None = None) -> Run:
    """Read what `drawing` needs of one run directory; of gradients.csv, of one estimator in it."""
    settings = _settings(path / "config.yaml") | ({} if estimator is None else {"estimator": estimator})
    if drawing.of_gradients and not (path / drawing.file).is_file():
        raise _NothingToDraw(f"{path}: has no gradients.csv", "a run with `diagnostics.every` writes it")
    wanted = {drawing.column, "env_steps", "episodes", "return_standard_error", "evaluation_episodes"}
    table = read_table(path / drawing.file, wanted, estimator)
    if "iteration" not in table.header:
        raise _NothingToDraw(f"{table.path}: is empty or damaged: it has no column `iteration`")
    if drawing.column not in table.columns:
        columns = [drawing.prefix + name for name in table.header]
        raise ConfigError(
            [Problem("-y", f"{table.path} has no column `{drawing.column}`", _did_you_mean(drawing.y, columns))]
        )
    x, y = _x_values(path, table, drawing), table[drawing.column]
    there = np.isfinite(y) & np.isfinite(x)
    if not there.any():
        raise _NothingToDraw(f"{table.path}: has no number in column `{drawing.column}`")
    error = table["return_standard_error"][there] if drawing.column == "return_mean" else None
    curve = Curve(x[there], y[there], error, final=_status(path / "status.json") == "finished")
    counts = table["evaluation_episodes"][there]
    episodes = int(counts[-1]) if drawing.of_evaluations and np.isfinite(counts[-1]) else None
    return Run(path, settings, smoothed(curve, drawing.smooth), episodes)


def _x_values(path: Path, table: Table, drawing: Drawing) -> Array:
    """Give x of each row; an evaluation's is that of the iteration before it, 0 before the first."""
    if drawing.x in table.columns:
        return table[drawing.x]
    file, column = ("timing.csv", "elapsed_seconds") if drawing.x == "seconds" else ("metrics.csv", "episodes")
    other = read_table(path / file, {column})
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
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in flat(data).items()
    }


def _status(path: Path) -> str:
    try:
        return str(read_json(path).get("status"))
    except RunDirectoryError:
        return "unknown"


# From runs to lines


def draw_lines(runs: Sequence[Run], drawing: Drawing) -> list[Line]:
    """Group the runs that differ only in their seed, in the order in which they were given."""
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    members = list(groups.values())
    labels = _labels([group[0].settings for group in members])
    return [
        Line(label, group, aggregate([run.curve for run in group], drawing.stat, drawing.band))
        for label, group in zip(labels, members, strict=True)
    ]


def _labels(settings: Sequence[dict[str, str]]) -> list[str]:
    """Tell experiments apart: by their names, and where those are the same by the keys that differ."""
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
            keys = method  # enough to tell them apart, and what a reader looks for
        name = one.get("name", "run")
        values = ", ".join(f"{key.rpartition('.')[2]} {one[key]}" for key in keys)
        labels.append(shortened(f"{name}: {values}" if values else name, 70))
    return labels


def caption(lines: Sequence[Line], drawing: Drawing) -> str:
    """Say what the lines and the bands are, and over how many runs or episodes."""
    sizes = [len(line.runs) for line in lines]
    number = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    sentences = []
    if max(sizes) > 1:
        sentences.append(f"Line: {_STATISTICS[drawing.stat]} over {number} runs.")
        sentences += {
            "ci95": [f"Band: its 95 % bootstrap interval ({RESAMPLES:,} resamples of runs)."],
            "standard_error": ["Band: ± one standard error of it over runs."],
            "none": [],
        }[drawing.band]
    if min(sizes) == 1:
        one = "One run." if max(sizes) == 1 else "Where there is one run,"
        episodes = {line.runs[0].episodes for line in lines if len(line.runs) == 1}
        number = f"{episodes.pop()}" if len(episodes) == 1 and None not in episodes else "its"
        of = f"{number} evaluation episodes" if drawing.of_evaluations else "an iteration's episodes"
        if drawing.band != "none":
            known = drawing.column == "return_mean"
            band = f"band: ± one standard error over {of}." if known else "no band: one run shows no spread."
            sentences.append(f"{one} {band[0].upper() + band[1:] if max(sizes) == 1 else band}")
        elif max(sizes) == 1:
            sentences.append(one)
    if any(line.curve.carried for line in lines):
        sentences.append("A finished run keeps its last value.")
    if drawing.smooth > 1:
        sentences.append(f"Each run smoothed over {drawing.smooth} points.")
    return " ".join(sentences)


def _as_csv(lines: Sequence[Line]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "x", "n", "center", "low", "high"])
    for line in lines:
        c = line.curve
        for x, n, *values in zip(*(a.tolist() for a in (c.x, c.n, c.center, c.low, c.high)), strict=True):
            table.writerow(
                [line.label, f"{x:.15g}", n, *("" if math.isnan(value) else repr(value) for value in values)]
            )
    return text.getvalue()


# From lines to a figure


def _as_figure(lines: Sequence[Line], drawing: Drawing, suffix: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            color = _COLORS[number % len(_COLORS)]
            style = _LINE_STYLES[number // len(_COLORS) % len(_LINE_STYLES)]
            c = line.curve
            dot = "o" if len(c.x) == 1 else ""  # a single point draws no line
            axes.plot(c.x, c.center, style, marker=dot, color=color, linewidth=1.5, label=_plain(line.label))
            axes.fill_between(c.x, c.low, c.high, color=color, alpha=0.2, linewidth=0)
        threshold = _threshold(lines) if drawing.column in _RETURNS else None
        if threshold is not None:
            _draw_threshold(axes, threshold)
        if drawing.of_gradients and drawing.column in _LOGARITHMIC and _positive(lines):
            axes.set_yscale("log")
        axes.margins(x=0.01)
        axes.set_xlabel(NAMES.get(drawing.x, drawing.x))
        axes.set_ylabel(y_label(lines, drawing))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=drawing.x != "seconds"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
        if len(lines) > 1:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)  # hides no curve
        else:
            axes.set_title(_plain(lines[0].label), loc="left")
        figure.supxlabel(
            _plain(textwrap.fill(caption(lines, drawing), 130)), fontsize=6.5, color="0.35", x=0.01, ha="left"
        )
        stream = io.BytesIO()
        metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an emoji becomes a box
            figure.savefig(stream, format=suffix, dpi=200, metadata=metadata[suffix])
    return stream.getvalue()


def _positive(lines: Sequence[Line]) -> bool:
    drawn = [values[np.isfinite(values)] for line in lines for values in (line.curve.center, line.curve.low)]
    return all(bool((values > 0).all()) for values in drawn)


def _draw_threshold(axes: Axes, threshold: float) -> None:
    """Draw the reward threshold where it is near enough not to flatten the curves."""
    low, high = axes.get_ylim()
    if low - (high - low) <= threshold <= high + 2 * (high - low):
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"solved: {threshold:g}",
            (1, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color="0.35",
        )


def _threshold(lines: Sequence[Line]) -> float | None:
    """Give the reward threshold that all the runs share."""
    found = {_run_threshold(run) for line in lines for run in line.runs}
    return found.pop() if len(found) == 1 else None


def _run_threshold(run: Run) -> float | None:
    try:
        value = read_json(run.path / "run.json").get("reward_threshold")
    except RunDirectoryError:
        return None
    return float(value) if isinstance(value, int | float) else None


def y_label(lines: Sequence[Line], drawing: Drawing) -> str:
    """Say what y is."""
    name = NAMES.get(drawing.column, drawing.column.replace("_", " "))
    if not drawing.of_evaluations:
        return name
    counts = {run.episodes for line in lines for run in line.runs}
    known = len(counts) == 1 and None not in counts
    return f"{name} of {counts.pop()} evaluation episodes" if known else f"{name} of evaluations"


def thousands(value: float) -> str:
    """Write a number of an axis: 25k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _plain(text: str) -> str:
    """Keep matplotlib from reading mathematics into a user's words."""
    return text.replace("$", r"\$")


def shortened(text: str, width: int) -> str:
    """Cut a text to a width."""
    return text if len(text) <= width else text[: width - 1] + "…"
