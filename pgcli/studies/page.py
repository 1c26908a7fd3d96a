"""A comparison written down: the Markdown page, its tables as CSV, JSON, and the few lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pgcli.report.scores import MOST_SEEDS, POWER, RESAMPLES
from pgcli.report.text import WIDTH, columns, duration, short

TABLES = ("arms", "pairs", "runs", "profile", "gradients")
Result = dict[str, Any]  # of `pgcli.report.comparison.report`

_METHOD = """\
- **IQM**: the mean of the middle half of the seeds; its interval is the percentile bootstrap over seeds, {resamples:,}
  resamples (Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice). With few seeds
  such an interval is too narrow.
- **Differences** are paired: the same seed, and so the same start states, in either arm. Mean ± Student's t quantile
  times s / √n, at {percent} for each of {pairs} (Bonferroni), so that 95 % holds for all of them together. *Shown*: the
  interval excludes 0.
- **Seeds that would show it**: the fewest for which such a t test has {power:.0f} % power, if the observed difference
  and its spread are the true ones (Colas et al. 2018, How Many Random Seeds?). The observed ones are uncertain too.
- **P(a > b)**: that a run of a ends above one of b, a tie counting half: Mann & Whitney's U / n², bootstrapped over
  seeds.
- **Performance profile**: the share of seeds that end above each return, with its pointwise 95 % bootstrap band.
- A run that diverged or failed counts with the lower of its untrained and its last evaluation. None is left out.
"""


def as_csv(rows: Sequence[Result]) -> str:
    """Write rows as a table; what is not finite is left empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""  # of NumPy's as well
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def comparison_text(result: Result) -> str:
    """Write the report's folder and its main numbers for people, in 80 columns where the arms' names allow."""
    goal, pairs = result["threshold"], result["pairs"]
    rows = [("arm", "final return: IQM [95 %]", *(() if goal is None else (f"reached {goal:g}", "steps to it")))]
    for arm in result["arms"]:
        reached = (f"{arm['reached']} of {arm['seeds']}", _steps(arm["steps_median"]))
        rows.append((arm["arm"], _iqm(arm), *(() if goal is None else reached)))
    lines = columns(rows) if max(map(len, columns(rows))) <= WIDTH else _below_labels(rows)
    for text in (*result["notes"], *(pair["sentence"] for pair in pairs)):
        lines += textwrap.wrap(text.replace("`", ""), WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([result["directory"], *lines])


def _below_labels(rows: Sequence[Sequence[str]]) -> list[str]:
    """Give each label a line of its own, where it leaves no room for the numbers."""
    numbers = columns([row[1:] for row in rows])
    labels = [row[0] for row in rows]
    return [
        f"  {numbers[0]}",
        *(line for pair in zip(labels[1:], numbers[1:], strict=True) for line in (pair[0], f"  {pair[1]}")),
    ]


def markdown(result: Result) -> str:
    """Write the report: first what is shown, then the numbers behind it, last how they are reckoned."""
    sections = (_head, _shown, _final_returns, _differences, _sample_efficiency, _gradients, _wall_time, _method)
    written = ["\n".join(section(result)) for section in sections]
    return "\n\n".join(text for text in written if text) + "\n"


def _head(result: Result) -> Iterator[str]:
    labels = [f"`{arm['arm']}`" for arm in result["arms"]]
    arms = " · ".join(labels) if len(labels) < 4 else f"{len(labels)} arms"
    budget = f"{result['env_steps']:,} env steps for every run"
    yield f"# {result['name']}: {arms}"
    yield ""
    yield f"{result['env']}, {_seeds(result['seeds'])}, {budget}. Returns are those of each run's **final** evaluation"
    yield f"({result['evaluation']}, undiscounted): no best checkpoint, no best seed."
    yield from ("", "```", result["command"], "```")


def _shown(result: Result) -> Iterator[str]:
    pairs = result["pairs"]
    yield f"## What is shown: {sum(pair['shown'] for pair in pairs)} of {len(pairs)}"
    yield ""
    yield from (f"- {pair['sentence']}" for pair in pairs)
    if any(pair["seeds_needed"] for pair in pairs):
        yield from ("", "How many seeds would show a difference supposes that it and its spread are as observed.")
    for note in result["notes"]:
        yield from ("", f"> **Note.** {note}")


def _final_returns(result: Result) -> Iterator[str]:
    yield from ("## Final return", "")
    head = ("arm", "runs", "IQM [95 %]", "mean ± standard error", "over seeds")
    yield from _table(
        head,
        (
            (
                f"`{arm['arm']}`",
                _count(arm),
                _iqm(arm),
                short(arm["mean"]) if arm["seeds"] == 1 else " ± ".join(alike(arm["mean"], arm["standard_error"])),
                " to ".join(alike(arm["min"], arm["max"])),
            )
            for arm in result["arms"]
        ),
    )
    yield from ("", "![Final returns: every seed, interquartile means, performance profiles](returns.png)")


def _differences(result: Result) -> Iterator[str]:
    yield from ("## Differences", "")
    interval = f"interval, {_percent(result['confidence'])} each"
    head = ("a - b", "mean", interval, "a above b", "P(a > b) [95 %]", "shown", "seeds that would show it")
    yield from _table(head, map(_difference, result["pairs"]))
    yield from ("", "![Paired differences with their intervals](differences.png)")


def _difference(pair: Result) -> Sequence[str]:
    low, high, ties = pair["difference_low"], pair["difference_high"], pair["ties"]
    many = f"> {MOST_SEEDS:,}" if pair["deviation"] > 0 else ""
    return (
        f"`{pair['a']}` - `{pair['b']}`",
        short(pair["difference"]),
        "" if math.isnan(low) else " to ".join(alike(low, high)),
        f"on {pair['wins']} of {pair['seeds']}" + (f", equal on {ties}" if ties else ""),
        _interval(pair["improvement"], pair["improvement_low"], pair["improvement_high"]),
        "yes" if pair["shown"] else "no",
        many if pair["seeds_needed"] is None else f"{pair['seeds_needed']:,}",
    )


def _sample_efficiency(result: Result) -> Iterator[str]:
    goal, rule = result["threshold"], result["threshold_rule"]
    yield from ("## Sample efficiency", "")
    if goal is None:
        yield f"No threshold: {rule}."
    else:
        yield f"Env steps to the first evaluation with a return of {goal:g}: {rule}."
        yield from ("A run that does not reach it counts as later than all that do.", "")
        yield from _table(
            ("arm", "reached", "median env steps [95 %]"),
            (
                (f"`{arm['arm']}`", f"{arm['reached']} of {arm['seeds']}", _steps_interval(arm))
                for arm in result["arms"]
            ),
        )
    yield from ("", "![Learning curves](curves.png)")


def _gradients(result: Result) -> Iterator[str]:
    if not result["gradients"]:
        return
    yield from ("## Gradients", "")
    yield "Each run's median over its measurements; over seeds the IQM with its 95 % interval. Every arm measures at"
    yield from ("the parameters that it has learned itself.", "")
    yield from _table(
        ("arm", "estimator", "seeds", "gradient variance", "signal-to-noise ratio"),
        map(_gradient, result["gradients"]),
    )


def _gradient(row: Result) -> Sequence[str]:
    measured = (_significant(row[x], row[f"{x}_low"], row[f"{x}_high"]) for x in ("gradient_variance", "snr"))
    return (f"`{row['arm']}`", row["estimator"], str(row["seeds"]), *measured)


def _wall_time(result: Result) -> Iterator[str]:
    yield from ("## Wall time", "", "On the machine that trained them, with whatever else it did.", "")
    yield from _table(
        ("arm", "env steps (mean)", "time of a run (median)", "steps per second of collecting and updating (median)"),
        (
            (
                f"`{arm['arm']}`",
                f"{arm['env_steps_mean']:,.0f}",
                "" if math.isnan(arm["seconds_median"]) else duration(arm["seconds_median"]),
                "" if math.isnan(arm["steps_per_second_median"]) else f"{arm['steps_per_second_median']:,.0f}",
            )
            for arm in result["arms"]
        ),
    )


def _method(result: Result) -> Iterator[str]:
    pairs = len(result["pairs"])
    count = "1 pair" if pairs == 1 else f"{pairs} pairs"
    yield from ("## How this is reckoned", "")
    yield _METHOD.format(resamples=RESAMPLES, pairs=count, percent=_percent(result["confidence"]), power=100 * POWER)
    yield "Tables: " + ", ".join(f"[{name}.csv]({name}.csv)" for name in TABLES if result[name]) + "."


# --------------------------------------------------------------------------------------------------- cells and words


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---|" + "--:|" * (len(head) - 1)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{len(seeds)} paired seeds ({f'{seeds[0]} to {seeds[-1]}' if whole else ', '.join(map(str, seeds))})"


def _count(arm: Result) -> str:
    bad = [f"{arm[how]} {how}" for how in ("diverged", "failed") if arm[how]]
    return f"{arm['seeds']}" + (f" ({', '.join(bad)})" if bad else "")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _iqm(arm: Result) -> str:
    return _interval(arm["iqm"], arm["iqm_low"], arm["iqm_high"])


def alike(*values: float) -> list[str]:
    """Write returns that are read together, all with one decimal, or with three where all are small."""
    digits = 3 if max(map(abs, values)) < 2 else 1
    return [f"{value:.{digits}f}" for value in values]


def _interval(value: float, low: float, high: float) -> str:
    return short(value) if math.isnan(low) else "{} [{}, {}]".format(*alike(value, low, high))


def _steps(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "not reached"


def _steps_interval(arm: Result) -> str:
    text = _steps(arm["steps_median"])
    low, high = arm["steps_low"], arm["steps_high"]
    if math.isnan(low) or low == high:
        return text
    return f"{text} [{_steps(low)}, {_steps(high)}]"


def _significant(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3g}" if math.isnan(low) else f"{value:.3g} [{low:.3g}, {high:.3g}]"
