"""The sentences of a comparison: conclusions about pairs, and their limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pgcli.report.scores import FEW_SEEDS, MOST_SEEDS, Difference
from pgcli.report.statistics import Array
from pgcli.report.text import same_decimals, short
from pgcli.studies.page import RETURN, quantity
from pgcli.studies.summaries import RunSummary

UNEQUAL = 0.05  # relative difference in env steps that a note reports
MOSTLY_EVALUATION = 0.5  # share of the variance over seeds for a note about evaluation episodes


def conclusion(a: str, b: str, difference: Difference, look: int = 1, column: str = RETURN) -> str:
    """Describe what a pair's difference shows, or how many fresh seeds would show it."""
    d, n = difference, difference.n
    mean = "mean" if column == RETURN else f"mean `{quantity(column)}`"
    count = f"{n}" if n == d.k else f"{n} and {d.k}"
    kind = "paired" if d.paired else "unpaired"
    seeds = f"{count} {kind} seeds" if look == 1 else f"{count} fresh {kind} seeds, look {look}"
    higher, lower = (a, b) if d.mean >= 0 else (b, a)
    if min(n, d.k) == 1:
        return f"`{a}` and `{b}`: one seed has no spread, so nothing is shown."
    if d.deviation == 0:
        same = f"the same {quantity(column)}" if d.mean == 0 else f"`{higher}` above by the same {short(abs(d.mean))}"
        return f"`{a}` and `{b}`: {same} on each of {count} seeds. Without spread, nothing is shown."
    if not d.alike:
        return _probability_claim(a, b, d, seeds, mean, "" if column == RETURN else f" in `{quantity(column)}`")
    low, high = (d.low, d.high) if d.mean >= 0 else (-d.high, -d.low)
    size, *edges = same_decimals(abs(d.mean), low, high)
    interval = " to ".join(edges)
    each = "" if d.paired else " of each"
    if d.shown:
        return f"The {mean} of `{higher}` is above that of `{lower}` by {size} ({interval}; {seeds}): shown."
    return (
        f"The {mean} of `{higher}` is above that of `{lower}` by {size} ({interval}): not shown with {seeds}. "
        f"{seed_range(d.seeds_needed, *d.seeds_range)} fresh seeds{each} would show it. Another look "
        "counts only fresh seeds, so that all looks together have at most 5 % false positives."
    )


def _probability_claim(a: str, b: str, d: Difference, seeds: str, mean: str, of: str) -> str:
    """Describe P(a > b) if standard deviations differ, because a mean could hide rare failures."""
    size, *spreads = same_decimals(abs(d.mean), *d.deviations)
    unlike = f"their standard deviations differ ({spreads[0]} and {spreads[1]})"
    if math.isnan(d.improvement_low):
        higher, lower = (a, b) if d.mean >= 0 else (b, a)
        few = f"not shown with {seeds}, because {unlike} and a rare failure may be missing"
        more = f"At least {d.seeds_range[0]} fresh seeds could show that one ends above the other"
        return f"The {mean} of `{higher}` is above that of `{lower}` by {size}: {few}. {more}."
    ahead = d.improvement >= 0.5
    higher, lower = (a, b) if ahead else (b, a)
    p, low, high = (
        (d.improvement, d.improvement_low, d.improvement_high)
        if ahead
        else (1 - d.improvement, 1 - d.improvement_high, 1 - d.improvement_low)
    )
    interval = f"({low:.2f} to {high:.2f}; {seeds})"
    claim = f"A run of `{higher}` ends above one of `{lower}`{of} with P = {p:.2f} {interval}"
    shown = "shown" if d.shown else f"not shown; at least {d.seeds_range[0]} fresh seeds could show it"
    return f"{claim}: {shown}. No claim about means: {unlike}."


def seed_range(needed: int | None, low: int | None, high: int | None) -> str:
    """Format a number of seeds with its range: `About 8 (5 to 41)`, `More than 10,000 (74 or more)`."""
    about = f"More than {MOST_SEEDS:,}" if needed is None else f"About {needed:,}"
    if low is None:
        return about
    return f"{about} ({low:,} {'or more' if high is None else f'to {high:,}'})"


def notes(runs: Mapping[str, Sequence[RunSummary]], scores: Mapping[str, Array], column: str) -> Iterator[str]:
    """Yield the limits of the conclusions: unfinished runs, unequal budgets, few seeds or episodes."""
    if column != RETURN:
        yield f"Higher values of `{column}` are assumed to be better."
    for label, one in runs.items():
        for run, score in zip(one, scores[label].tolist(), strict=True):
            if run.finished and not len(run.values):
                none = f"`{label}`, seed {run.seed}: no evaluation has a number in `{column}`"
                yield f"{none}. Its score is {short(score)}, the lowest of all evaluations."
            elif not run.finished:
                why = f": {run.reason}" if run.reason else ""
                ended = f"`{label}`, seed {run.seed}: {run.status} at iteration {run.iterations}{why}"
                rule = "its last evaluation" if len(run.values) else "the lowest of all evaluations"
                yield f"{ended}. Its score is {short(score)}, {rule}."
    trained = [[run.steps for run in one if run.finished] for one in runs.values()]
    used = [float(np.mean(steps)) for steps in trained if steps]
    if used and max(used) > (1 + UNEQUAL) * min(used):
        steps = f"{min(used):,.0f} to {max(used):,.0f} env steps"
        yield (
            f"The variants used {steps} on average, because runs end with a whole iteration. A larger budget or fewer "
            "episodes per iteration reduce the difference."
        )
    for label, one in runs.items():
        if stopped := sum(run.stopped for run in one):
            yield f"`{label}`: {stopped} of {len(one)} runs stopped early. They count with their last evaluation."
    versions = {run.versions for one in runs.values() for run in one if run.versions}
    if len(versions) > 1:
        yield f"The runs were made with different versions: {'; '.join(sorted(versions))}."
    seeds = min(map(len, runs.values()))
    if seeds == 1:
        yield "One seed has no spread: there are no intervals."
        return
    if seeds < FEW_SEEDS:
        yield (
            f"{seeds} seeds are few: with probability {100 * 0.8**seeds:.0f} %, they miss a failure in 1 of "
            "5 seeds. Their intervals assume approximately normal values."
        )
    for label, one in runs.items():
        noise = float(np.mean([run.error**2 for run in one]))
        if noise > MOSTLY_EVALUATION * scores[label].var(ddof=1) > 0:
            yield (
                f"`{label}`: most of its spread over seeds comes from the evaluation episodes. A larger "
                "evaluation.episodes gives narrower intervals."
            )
