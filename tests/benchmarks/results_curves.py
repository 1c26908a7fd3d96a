"""docs/curves.csv: the evaluations during the training of each row of results.csv; docs/images/curves.png from it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from results_page import PUBLISHED, TARGETS, Row, environment

from pgcli.report.curves import Line, thousands
from pgcli.report.plots import COLORS, STYLE, draw_curves
from pgcli.report.statistics import Curve, aggregate, value_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DATA = Path(__file__).parent.parent.parent / "docs/curves.csv"
FIGURE = DATA.with_name("images") / "curves.png"
KEY = ["config", "seed", "settings", "arithmetic"]  # as in results.csv
COLUMNS = [*KEY, "env_steps", "returns"]  # the last two: a number per evaluation
COLUMNS_OF_PANELS, WIDTH, HEIGHT = 3, 10.5, 2.9  # inches, HEIGHT of a row


def read() -> list[dict[str, str]]:
    """Return the existing curves."""
    if not DATA.exists():
        return []
    with DATA.open(newline="") as file:
        return list(csv.DictReader(file))


def write(curves: Iterable[Row]) -> None:
    """Write the curves."""
    with DATA.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curves)


def curves_of(rows: Sequence[Row], known: Sequence[Row], place: Path) -> list[Row]:
    """Return the curves of a config's rows: the known ones, or those of the runs in a folder.

    If the folder lacks a run, all known curves are kept, also if the rows are newer.
    """
    wanted = [tuple(row[name] for name in KEY) for row in rows]
    own = [curve for curve in known if tuple(curve[name] for name in KEY) in wanted]
    runs = [place / f"seed-{row['seed']}" for row in rows]
    if len(own) == len(rows) or not all((run / "evaluations.csv").is_file() for run in runs):
        return list(known)
    return [{name: row[name] for name in KEY} | evaluations(run) for row, run in zip(rows, runs, strict=True)]


def evaluations(run: Path) -> dict[str, str]:
    """Return the env steps and mean returns of a run's evaluations."""
    with (run / "evaluations.csv").open(newline="") as file:
        points = {row["env_steps"]: f"{float(row['return_mean']):.5g}" for row in csv.DictReader(file)}
    return {"env_steps": " ".join(points), "returns": " ".join(points.values())}


def line(config: str, curves: Sequence[Row]) -> Line:
    """Return the interquartile mean over seeds, with the lowest and the highest seed."""
    seeds = [Curve(*(np.array(one[name].split(), dtype=float) for name in ("env_steps", "returns"))) for one in curves]
    middle = aggregate(seeds, "iqm", "none")
    values = np.stack([value_at(seed.x, seed.y, middle.x) for seed in seeds])
    return Line(config, [], replace(middle, low=values.min(0), high=values.max(0)))


def panels(curves: Sequence[Row]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the environment, the title and the configs of each panel, at most as many as there are colors."""
    configs = list(dict.fromkeys(curve["config"] for curve in curves))
    for task in TARGETS:
        own = [config for config in configs if environment(config) == task]
        count = -(-len(own) // len(COLORS))
        for number in range(count):
            title = f"{task.rpartition(':')[2]}{f' ({number + 1} of {count})' if count > 1 else ''}"
            yield task, title, own[number * len(own) // count : (number + 1) * len(own) // count]


def source(curves: Sequence[Row], stale: Collection[str]) -> str:
    """Return the digest of everything that the figure shows."""
    shown = [[curve[name] for name in ("config", "env_steps", "returns")] for curve in curves]
    marked = [curve["config"] for curve in curves if curve["config"] in stale]
    levels = {task: [target, PUBLISHED.get(task)] for task, (target, _) in TARGETS.items()}
    return hashlib.sha256(json.dumps([shown, marked, levels]).encode()).hexdigest()[:12]


def draw(curves: Sequence[Row], stale: Collection[str]) -> bytes:
    """Draw a panel for each environment. The file's comment is its `source`."""
    import matplotlib
    from matplotlib.figure import Figure

    every = list(panels(curves))
    rows = -(-len(every) // COLUMNS_OF_PANELS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT * rows), layout="constrained", facecolor="white")
        grid = figure.subplots(rows, COLUMNS_OF_PANELS, squeeze=False)
        for axes, (task, title, configs) in zip(grid.flat, every, strict=False):
            axes.set_title(title, loc="left")
            draw_panel(axes, task, {name: [one for one in curves if one["config"] == name] for name in configs}, stale)
        for axes in grid.flat[len(every) :]:
            axes.set_axis_off()
        figure.supxlabel("environment steps", fontsize=9)
        figure.supylabel("mean return of an evaluation", fontsize=9)
        stream = io.BytesIO()
        metadata = {"Software": "pgcli", "Comment": source(curves, stale)}
        figure.savefig(stream, format="png", dpi=130, metadata=metadata)
    return stream.getvalue()


def draw_panel(axes: Axes, task: str, curves: dict[str, list[Row]], stale: Collection[str]) -> None:
    """Draw the configs of one environment, the target and a published result."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lines = [line(config, own) for config, own in curves.items()]
    draw_curves(axes, lines, [f"{config}{' *' if config in stale else ''}" for config in curves], log=False)
    for (text, level), style in ((("target", TARGETS[task][0]), "dashed"), (PUBLISHED.get(task, ("", None)), "dotted")):
        if level is not None:
            axes.axhline(level, color="0.35", linewidth=1, linestyle=style, zorder=1, label=f"{text}: {level:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(float(f"{value:.6g}"))))
    axes.margins(x=0.01)
    axes.legend(fontsize=6.5, handlelength=3, loc="best", framealpha=0.8, edgecolor="none")
