"""The figures of a comparison: final values with their profile, paired differences, learning curves."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgcli.report.curves import shortened
from pgcli.report.plots import COLORS, DASHES, STYLE, plain, plot
from pgcli.runs.files import write_whole
from pgcli.studies.page import quantity

MOST_PAIRS = 40  # as many as fit on a page
_MARKS = {"complete": ("o", COLORS[0], COLORS[0]), "pruned": ("o", "0.45", "white"), "failed": ("x", COLORS[1], "none")}


def draw(folder: Path, result: dict[str, Any], runs: Sequence[Path]) -> None:
    """Write returns.png, differences.png and curves.png into `folder`."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an emoji becomes a box
        write_whole(folder / "returns.png", _png(_returns(result)))
        write_whole(folder / "differences.png", _png(_differences(result)))
        y = f"evaluation.{result['column']}"
        plot(runs, "env_steps", y, "iqm", "ci95", 1, folder / "curves.png", overwrite=True)


def _returns(result: dict[str, Any]) -> Figure:
    """Draw final values and IQM of each variant with its interval, and performance profiles."""
    variants, name = result["arms"], plain(quantity(result["column"]))
    figure = Figure(figsize=(9.6, max(2.6, 1.2 + 0.42 * len(variants))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, variant in enumerate(variants):
        color = COLORS[row % len(COLORS)]
        finals = [run[f"final_{quantity(result['column'])}"] for run in result["runs"] if run["arm"] == variant["arm"]]
        left.plot(finals, [row + 0.18] * len(finals), "o", color=color, alpha=0.45, markersize=4, markeredgewidth=0)
        low, high = variant["iqm_low"], variant["iqm_high"]
        if not math.isnan(low):
            left.plot([low, high], [row, row], color=color, linewidth=3, solid_capstyle="butt")
        left.plot([variant["iqm"]], [row], "|", color="black", markersize=11, markeredgewidth=1.5)
        _profile(right, result, variant["arm"], color)
    if result["threshold"] is not None:
        low, high = left.get_xlim()
        if low - (high - low) / 2 <= result["threshold"] <= high + (high - low) / 2:
            for axes in (left, right):
                axes.axvline(result["threshold"], color="0.4", linestyle="--", linewidth=1, zorder=1)
    left.set_yticks(range(len(variants)), [_label(variant["arm"]) for variant in variants])
    left.set_ylim(len(variants) - 0.5, -0.6)
    left.set_xlabel(f"final {name}: seeds, interquartile mean, its 95 % interval")
    right.set_xlabel(f"{name} τ")
    right.set_ylabel("share of seeds above τ")
    right.set_ylim(-0.03, 1.03)
    return figure


def draw_profiles(file: Path, result: dict[str, Any]) -> None:
    """Draw the performance profiles of a suite; the legend begins with the highest IQM."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for row, variant in sorted(enumerate(result["arms"]), key=lambda one: -one[1]["iqm"]):
            _profile(axes, result, variant["arm"], COLORS[row % len(COLORS)], DASHES[row % len(DASHES)])
        axes.axvline(1, color="0.4", linestyle="--", linewidth=0.8, zorder=1)
        axes.set_xlabel("normalised score τ: 0 is a random policy, 1 the reference")
        axes.set_ylabel("share of runs above τ, mean over tasks")
        axes.set_ylim(-0.03, 1.03)
        figure.legend(loc="outside right upper", frameon=False, handlelength=3)
        write_whole(file, _png(figure))


def draw_search(folder: Path, result: dict[str, Any]) -> None:
    """Write history.png, the values of all trials, and importance.png, if it is known."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_whole(folder / "history.png", _png(_history(result)))
        if result["importance"]:
            write_whole(folder / "importance.png", _png(_importance(result)))
        else:
            (folder / "importance.png").unlink(missing_ok=True)  # of fewer trials


def _history(result: dict[str, Any]) -> Figure:
    """Draw the value of each trial by number, and the best value so far."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    of = {state: [row for row in result["trials"] if row["state"] == state] for state in _MARKS}
    complete = of["complete"]
    best = [max(row["value"] for row in complete[: at + 1]) for at in range(len(complete))]
    numbers, last = [row["trial"] for row in complete], result["trials"][-1]["trial"]
    axes.step([*numbers, last], [*best, best[-1]], where="post", color="0.5", linewidth=1, label="best so far")
    for state, (mark, color, face) in _MARKS.items():
        x, y = [row["trial"] for row in of[state]], [row["value"] for row in of[state]]
        where: dict[str, Any] = {}
        if state == "failed":  # without a value: at the lower edge
            y, where = [0.03] * len(x), {"transform": axes.get_xaxis_transform()}
        if x:
            axes.plot(x, y, mark, color=color, markerfacecolor=face, markersize=5, label=f"{state}: {len(x)}", **where)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    seeds = len(result["seeds"])
    axes.set_ylabel(
        f"final {plain(quantity(result['column']))}, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}"
    )
    axes.legend()
    return figure


def _importance(result: dict[str, Any]) -> Figure:
    """Draw the importance of each key as a bar."""
    shares = sorted(result["importance"].items(), key=lambda one: one[1])
    figure = Figure(figsize=(6.4, 1.1 + 0.4 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([_label(key) for key, _ in shares], [share for _, share in shares], color=COLORS[0], height=0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"importance for the best values of {plain(quantity(result['column']))} (PED-ANOVA, sum 1)")
    return figure


def _profile(axes: Axes, result: dict[str, Any], label: str, color: str, dashes: Any = "solid") -> None:
    points = [point for point in result["profile"] if point["arm"] == label]
    x = [point["threshold"] for point in points]
    style: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": 1.5, "where": "post"}
    axes.step(x, [point["share"] for point in points], label=_label(label), **style)
    low, high = ([point[edge] for point in points] for edge in ("share_low", "share_high"))
    axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0, step="post")


def _differences(result: dict[str, Any]) -> Figure:
    """Draw the mean difference of each pair with its interval; filled if it is shown."""
    pairs = result["pairs"][:MOST_PAIRS]
    figure = Figure(figsize=(8.0, max(1.9, 1.0 + 0.44 * len(pairs))), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.4", linewidth=1, zorder=1)
    for row, pair in enumerate(pairs):
        color = "#0072B2" if pair["shown"] else "0.45"
        low, high = pair["difference_low"], pair["difference_high"]
        if not math.isnan(low):
            axes.plot([low, high], [row, row], color=color, linewidth=2)
        axes.plot([pair["difference"]], [row], "o", color=color, markerfacecolor=color if pair["shown"] else "white")
    labels = [f"{_label(pair['a'])}\n− {_label(pair['b'])}" for pair in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=7.5)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlabel(f"difference of the final {plain(quantity(result['column']))}")
    more = f" The first {MOST_PAIRS} of {len(result['pairs'])} pairs." if len(result["pairs"]) > MOST_PAIRS else ""
    levels = sorted({f"{100 * pair['confidence']:.4g} %" for pair in pairs})
    seeds = sorted({pair["seeds"] for pair in pairs})
    kinds = dict.fromkeys("unpaired: Welch's t" if pair["unpaired"] else "paired: Student's t" for pair in pairs)
    method = " or ".join(kinds)
    caption = (
        f"Mean over {' or '.join(map(str, seeds))} seeds, with its interval ({method}, {' or '.join(levels)}); "
        f"filled: the difference is shown.{more}"
    )
    figure.supxlabel(caption, fontsize=6.5, color="0.35", x=0.01, ha="left")
    return figure


def _label(text: str, width: int = 45) -> str:
    return plain(shortened(text, width))


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()
