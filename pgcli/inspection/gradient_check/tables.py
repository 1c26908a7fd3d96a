"""The verdicts of a gradient check, written for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgcli.report.text import columns, table

COLOURS = {"unbiased": "green", "biased by design": "yellow", "wrong": "bold red"}
LEGEND = (
    "bias: the relative error of E[g] along ∇J, with its 95 % interval where episodes are sampled; elsewhere it is "
    "exact, over every batch. cosine: between E[g] and ∇J. variance: of one estimate of N trajectories."
)


def check_text(result: dict[str, Any], terminal: bool) -> str:
    """Write a check for people: with colours on a terminal, plain in a pipe."""
    styles = COLOURS if terminal else None
    if "cells" in result:
        cells = [("returns", "baseline", "objective", "ratios", "bias", "cosine", "verdict")]
        cells += (
            (*(cell[key] for key in cells[0][:4]), *_range(cell["problems"]), cell["verdict"])
            for cell in result["cells"]
        )
        refused = f"{result['refused']} more cells are rejected by the rules of a config."
        return "\n".join([*columns(cells, styles), *_labelled("", [refused])])
    problems = [("problem", "N", "bias", "cosine", "variance", "verdict")]
    problems += (
        (
            *(one["problem"], str(one["columns"]), _bias(one)),
            *(_number(one["cosine"], ".4f"), _number(one["variance"], ".3g"), one["verdict"]),
        )
        for one in result["problems"]
    )
    about = "; ".join(f"{one['problem']}: {one['about']}" for one in result["problems"])
    lines = [result["estimator"], *(columns(problems, styles) if result["problems"] else ())]
    if result["reasons"]:
        lines += [f"{result['verdict']}:", *_labelled("  - ", result["reasons"])]
    elif result["verdict"] == "unbiased":
        what = "unbiased: in expectation it is the gradient of the discounted return"
        lines += _labelled("", [f"right: {result['summary']}" if "summary" in result else what])
    lines += _labelled("note: ", result.get("notes", ()))
    found = [f"{one['smallest_error']:.2g} ({one['problem']})" for one in result["problems"] if one["smallest_error"]]
    if found:
        lines += _labelled("power: ", [f"the check finds relative errors of E[g] above {', '.join(found)}"])
    errors = [f"{one['error']:.2g} ({one['problem']})" for one in result.get("natural_gradient", ())]
    if errors:
        text = f"(F + λ I)⁻¹ ∇J has a relative error of {', '.join(errors)} with cg_iterations of the config"
        lines += _labelled("natural gradient: ", [text])
    lines += _labelled("left out: ", result.get("left_out", ()))
    return "\n".join([*lines, *(_labelled("", [f"{about}.", LEGEND]) if result["problems"] else ())])


def _labelled(label: str, texts: Sequence[str]) -> list[str]:
    return table([(label, text) for text in texts], len(label))


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
