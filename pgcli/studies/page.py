"""The results of a comparison as Markdown, CSV and terminal text."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pgcli.report.scores import LIKELY, MOST_SEEDS, POWER
from pgcli.report.text import WIDTH, columns, duration, same_decimals, short

TABLES = ("arms", "pairs", "runs", "settings", "profile", "gradients", "looks")
RETURN = "return_mean"  # the column of evaluations.csv that is compared by default
Result = dict[str, Any]  # of `pgcli.studies.comparison.write_report`, or one row of its tables

_METHOD = """\
- **IQM**: the mean of the middle half of the seeds (Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the
  Statistical Precipice). Its interval is that of a trimmed mean (Tukey & McLaughlin 1963). That of a mean is Student's.
- **Differences** are paired where both variants have the same seeds and start states. The interval is the mean ±
  Student's t quantile times s / √n, with α divided by {pairs} (Bonferroni). Unpaired, it is Welch's.
  *Shown*: the interval excludes 0.
- **Unequal spreads**: if the standard deviations of a and b differ (F test at 5 %), rare failures can make equal means
  look different. The claim is then about P(a > b). It needs at least the number of seeds in the table, even if every
  run of a is above every run of b.
- **Looks**: the first look at a pair has at most 4 % false positives, each later one a fifth of the one before. A look
  tests only seeds that no earlier look in this folder has used. So all looks together have at most 5 %.
- **Fresh seeds to show it**: the smallest number for which the next look's t test has {power:.0f} % power, if the
  observed difference and spread are the true ones (Colas et al. 2018, How Many Random Seeds?). In parentheses: the same
  at the ends of an {likely:.0f} % interval of the effect.
- **P(a > b)**: the probability that a run of a ends above one of b, a tie counting half: Mann & Whitney's U / n². Its
  interval is Brunner & Munzel's on the logit scale, from 5 seeds on.
- **Episodes**: the part of the standard error that comes from the evaluation's episodes. More seeds and more
  `evaluation.episodes` make it smaller.
- **Performance profile**: the share of seeds that end above each value, with its pointwise 95 % Clopper-Pearson band.
- Every run counts with its last evaluation, also if it diverged or failed. No run is skipped. Without an evaluation it
  counts with the lowest one, because higher values are assumed to be better.
"""


def quantity(column: str) -> str:
    """Return the name of the compared number: `return` for return_mean, `is_success` for is_success."""
    return column.removesuffix("_mean")


def as_csv(rows: Sequence[Result]) -> str:
    """Format rows as CSV; non-finite values are empty cells."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""  # of NumPy's as well
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def comparison_text(result: Result) -> str:
    """Return the report's folder and main numbers as text, in 80 columns unless variant names are longer."""
    goal, pairs = result["threshold"], result["pairs"]
    head = ("variant", f"final {quantity(result['column'])}: IQM [95 %]", "mean")
    rows = [(*head, *(() if goal is None else (f"reached {goal:g}", "median steps")))]
    for variant in result["arms"]:
        reached = (
            () if goal is None else (f"{variant['reached']} of {variant['seeds']}", _steps(variant["steps_median"]))
        )
        rows.append((variant["arm"], estimate(variant, "iqm"), short(variant["mean"]), *reached))
    lines = columns(rows) if max(map(len, columns(rows))) <= WIDTH else _below_labels(rows)
    for text in (*result["notes"], *(pair["sentence"] for pair in pairs)):
        lines += textwrap.wrap(text.replace("`", ""), WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([result["directory"], *lines])


def _below_labels(rows: Sequence[Sequence[str]]) -> list[str]:
    """Put each label on its own line, if there is no room for the numbers beside it."""
    numbers = columns([row[1:] for row in rows])
    labels = [row[0] for row in rows]
    return [
        f"  {numbers[0]}",
        *(line for pair in zip(labels[1:], numbers[1:], strict=True) for line in (pair[0], f"  {pair[1]}")),
    ]


def markdown(result: Result) -> str:
    """Return the report: conclusions, their numbers, the method."""
    sections = (
        *(_head, _conclusions, _final_returns, _differences, _sample_efficiency, _gradients, _settings, _wall_time),
        _method,
    )
    texts = ["\n".join(section(result)) for section in sections]
    return "\n\n".join(text for text in texts if text) + "\n"


def _head(result: Result) -> Iterator[str]:
    labels = [f"`{variant['arm']}`" for variant in result["arms"]]
    seeds = sorted(result["seeds"])
    listed = ", ".join(map(str, seeds))
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        listed = f"{seeds[0]} to {seeds[-1]}"
    steps = "" if result["env_steps"] is None else f", {result['env_steps']:,} env steps for every run"
    yield f"# {result['name']}: {' · '.join(labels) if len(labels) < 4 else f'{len(labels)} variants'}"
    yield ""
    yield (
        f"{result['env']}, {'seed' if len(seeds) == 1 else 'seeds'} {listed}{steps}. "
        f"Compared is `{result['column']}` of each run's **final** evaluation"
    )
    yield f"({result['evaluation']}): no best checkpoint, no best seed."
    yield from ("", "```", result["command"], "```")


def _conclusions(result: Result) -> Iterator[str]:
    pairs = result["pairs"]
    yield f"## What is shown: {sum(pair['shown'] for pair in pairs)} of {len(pairs)}"
    yield ""
    yield from (f"- {pair['sentence']}" for pair in pairs)
    for note in result["notes"]:
        yield from ("", f"> **Note.** {note}")


def _final_returns(result: Result) -> Iterator[str]:
    yield from (f"## Final {quantity(result['column'])}", "")
    yield from header("variant", "runs", "IQM [95 %]", "mean [95 %]", "standard error (episodes)", "over seeds")
    for variant in result["arms"]:
        bad = ", ".join(f"{variant[how]} {how}" for how in ("diverged", "failed") if variant[how])
        yield table_row(
            f"`{variant['arm']}`",
            f"{variant['seeds']} ({bad})" if bad else f"{variant['seeds']}",
            estimate(variant, "iqm"),
            estimate(variant, "mean"),
            _errors(variant["standard_error"], variant["evaluation_standard_error"]),
            " to ".join(same_decimals(variant["min"], variant["max"])),
        )
    yield from ("", "![Final values: every seed, interquartile means, performance profiles](returns.png)")


def _differences(result: Result) -> Iterator[str]:
    yield from ("## Differences", "")
    yield from header("a - b", "mean", "interval", "a above b", "P(a > b) [95 %]", "shown", "fresh seeds to show it")
    for pair in result["pairs"]:
        low, high = pair["difference_low"], pair["difference_high"]
        edges = "" if math.isnan(low) else " to ".join(same_decimals(low, high))
        yield table_row(
            f"`{pair['a']}` - `{pair['b']}`",
            short(pair["difference"]),
            edges and f"{edges} ({100 * pair['confidence']:.4g} %)",
            "unpaired"
            if pair["unpaired"]
            else f"on {pair['wins']} of {pair['seeds']}" + (f", equal on {pair['ties']}" if pair["ties"] else ""),
            estimate(pair, "improvement"),
            f"{pair['claim']}: yes" if pair["shown"] else "no",
            _seeds(pair["seeds_needed"], pair["seeds_needed_low"], pair["seeds_needed_high"]),
        )
    yield from ("", "![Differences with their intervals](differences.png)")


def _sample_efficiency(result: Result) -> Iterator[str]:
    goal, rule = result["threshold"], result["threshold_rule"]
    yield from ("## Sample efficiency", "")
    if goal is None:
        yield f"No threshold: {rule}."
    else:
        yield f"Env steps to the first evaluation with `{result['column']}` of at least {goal:g}: {rule}."
        yield from ("A run that does not reach it counts as later than all others.", "")
        yield from header("variant", "reached", "median env steps [95 %]")
        for variant in result["arms"]:
            steps, low, high = (variant[f"steps_{x}"] for x in ("median", "low", "high"))
            edges = "" if math.isnan(low) or low == high else f" [{_steps(low)}, {_steps(high)}]"
            yield table_row(f"`{variant['arm']}`", f"{variant['reached']} of {variant['seeds']}", _steps(steps) + edges)
    yield from ("", "![Learning curves](curves.png)")


def _gradients(result: Result) -> Iterator[str]:
    if not result["gradients"]:
        return
    yield from ("## Gradients", "")
    yield "Over measurements and seeds: the mean variance, and the ratio of means Σ(|g|² - v) / Σv, with 95 % intervals"
    yield from ("over seeds. Each variant measures at its own parameters.", "")
    yield from header("variant", "estimator", "seeds", "gradient variance", "signal-to-noise ratio")
    for row in result["gradients"]:
        cells = []
        for x in ("gradient_variance", "snr"):
            value, low, high = row[x], row[f"{x}_low"], row[f"{x}_high"]
            edges = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
            cells.append("" if math.isnan(value) else f"{value:.3g}{edges}")
        yield table_row(f"`{row['arm']}`", row["estimator"], str(row["seeds"]), *cells)


def _settings(result: Result) -> Iterator[str]:
    if not result["settings"]:
        return
    labels = [variant["arm"] for variant in result["arms"]]
    values = {(row["key"], row["arm"]): row["value"] for row in result["settings"]}
    yield from ("## Settings that differ", "", *header("key", *(f"`{label}`" for label in labels)))
    for key in dict.fromkeys(key for key, _ in values):
        yield table_row(f"`{key}`", *(f"`{values[key, label]}`" for label in labels))


def _wall_time(result: Result) -> Iterator[str]:
    yield from ("## Wall time", "", "Measured on the machine that trained the runs, including its other load.", "")
    rate_head = "steps per second of collecting and updating (median)"
    yield from header("variant", "env steps (mean)", "time of a run (median)", rate_head)
    for variant in result["arms"]:
        seconds, rate = variant["seconds_median"], variant["steps_per_second_median"]
        yield table_row(
            f"`{variant['arm']}`",
            f"{variant['env_steps_mean']:,.0f}",
            "" if math.isnan(seconds) else duration(seconds),
            "" if math.isnan(rate) else f"{rate:,.0f}",
        )


def _method(result: Result) -> Iterator[str]:
    pairs = len(result["pairs"])
    count = "1 pair" if pairs == 1 else f"{pairs} pairs"
    yield from ("## Method", "")
    yield _METHOD.format(pairs=count, power=100 * POWER, likely=100 * LIKELY)
    yield "Tables: " + ", ".join(f"[{name}.csv]({name}.csv)" for name in TABLES if result[name]) + "."


# Cells


def header(*names: str) -> tuple[str, str]:
    """Return the first two lines of a Markdown table."""
    return table_row(*names), "|---|" + "--:|" * (len(names) - 1)


def table_row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"


def estimate(row: Result, name: str) -> str:
    """Format a number with its interval."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return short(value) if math.isnan(low) else "{} [{}, {}]".format(*same_decimals(value, low, high))


def _errors(error: float, of_episodes: float) -> str:
    if math.isnan(error):
        return ""
    return short(error) if math.isnan(of_episodes) else "{} ({})".format(*same_decimals(error, of_episodes))


def _seeds(needed: int | None, low: int | None, high: int | None) -> str:
    """Format a number of seeds with its range in parentheses, or its lower end if it is unknown."""
    if needed is None:
        return "" if low is None else f"{low:,} or more"
    first = f"> {MOST_SEEDS:,}" if low is None else f"{low:,}"
    return f"{needed:,} ({first} {'or more' if high is None else f'to {high:,}'})"


def _steps(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "not reached"
