"""The verdicts of the oracle, written for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80
COLOURS = {"unbiased": "green", "biased by design": "yellow", "wrong": "bold red"}
LEGEND = (
    "bias: how much too long E[g] is along ∇J, as a share of it; in brackets its 95 % interval where episodes are "
    "sampled, elsewhere every batch is told. cosine: between E[g] and ∇J. variance: of one estimate of N trajectories."
)
Row = Sequence[str]


def table(result: dict[str, Any], terminal: bool) -> str:
    """Write a check for people: with colours on a terminal, plain in a pipe."""
    if "cells" in result:
        columns = ["returns", "baseline", "objective", "bias", "cosine", "verdict"]
        rows = [
            [cell["returns"], cell["baseline"], cell["objective"], *_range(cell["problems"]), cell["verdict"]]
            for cell in result["cells"]
        ]
        refused = f"{result['refused']} more cells are refused by the rules of a config."
        return "\n".join([*_grid(columns, rows, terminal), *_wrapped([refused])])
    columns = ["problem", "N", "bias", "cosine", "variance", "verdict"]
    rows = [
        [
            *(one["problem"], str(one["columns"]), _bias(one)),
            *(_number(one["cosine"], ".4f"), _number(one["variance"], ".3g"), one["verdict"]),
        ]
        for one in result["problems"]
    ]
    about = "; ".join(f"{one['problem']}: {one['about']}" for one in result["problems"])
    lines = [result["estimator"], *(_grid(columns, rows, terminal) if rows else ())]
    if result["reasons"]:
        lines += [f"{result['verdict']}:", *_wrapped(result["reasons"], "  - ")]
    elif result["verdict"] == "unbiased":
        what = "unbiased: in expectation it is the gradient of the discounted return"
        lines += _wrapped([f"right: {result['summary']}" if "summary" in result else what])
    lines += _wrapped(result.get("notes", ()), "note: ")
    lines += _wrapped(result.get("left_out", ()), "left out: ")
    return "\n".join([*lines, *(_wrapped([f"{about}.", LEGEND]) if rows else ())])


def _range(problems: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Write the smallest and the largest bias, and the smallest cosine."""
    biases = [one["bias"] for one in problems if one["bias"] is not None]
    cosines = [one["cosine"] for one in problems if one["cosine"] is not None]
    low, high = (f"{round(extreme(biases, default=0.0), 3) + 0.0:+.3f}" for extreme in (min, max))
    return (low if low == high else f"{low} to {high}"), f"{min(cosines, default=0.0):.4f}"


def _bias(one: dict[str, Any]) -> str:
    if one["bias"] is None:
        return "∇J = 0"
    bias = f"{one['bias'] + 0.0:+.4f}".replace("-0.0000", "+0.0000")
    return bias if one["exact"] else f"{one['bias']:+.3f} [{one['bias_low']:+.3f}, {one['bias_high']:+.3f}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _wrapped(texts: Sequence[str], first: str = "") -> list[str]:
    after = " " * len(first)
    return [
        line for text in texts for line in textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=after)
    ]


def _grid(columns: Row, rows: Sequence[Row], terminal: bool) -> list[str]:
    if not terminal:
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        lines = [columns, *rows]
        return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    drawn = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*row[:-1], Text(row[-1], style=COLOURS.get(row[-1], "")))
    console = Console(width=WIDTH + 20, force_terminal=True)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n").splitlines()
