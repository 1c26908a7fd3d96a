"""Results as text for a terminal: numbers, tables, findings."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pgcli.errors import counted
from pgcli.system.streams import printable

if TYPE_CHECKING:
    from pgcli.experiment.recorder import Outcome
    from pgcli.records import Sample

WIDTH = 80  # columns
LEAST_TEXT = 20  # columns of a text beside its label


@dataclass(frozen=True)
class Finding:
    """A result of an inspection: the evidence, its iteration, and the key that changes it."""

    level: Literal["ok", "note", "warning", "failed"]
    text: str
    iteration: int | None = None
    key: str = ""
    name: str = ""

    def select(self, *names: str) -> dict[str, Any]:
        """Return the named fields, in this order."""
        return {name: getattr(self, name) for name in names}


def table(
    rows: Iterable[tuple[str, str]],
    start: int,
    *,
    indent: int = 0,
    width: int | None = WIDTH,
    break_on_hyphens: bool = True,
) -> list[str]:
    """Format rows of a label and a text.

    Labels begin in column `indent`, texts in column `start`.

    Texts are wrapped to `width` columns, or to those of a narrower terminal; with None, they are not wrapped.
    """
    lines = []
    width = width and max(_fitting(width), start + LEAST_TEXT)
    for label, text in rows:
        first = f"{' ' * indent}{label:<{start - indent}}"
        if width is None:
            lines.append(first + text)
            continue
        lines += textwrap.wrap(
            text, width, initial_indent=first, subsequent_indent=" " * start, break_on_hyphens=break_on_hyphens
        ) or [first.rstrip()]
    return lines


def _fitting(width: int) -> int:
    """Return the width, or that of stdout's terminal if it is narrower."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return min(width, shutil.get_terminal_size((width, 24)).columns) if is_terminal else width


def columns(rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None) -> list[str]:
    """Format rows as left-aligned columns, two spaces apart.

    The first row is the header.

    With `styles`, the header is bold, and a last cell that is a key of `styles` has that Rich style.
    """
    if styles is None:
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows[1:]:
        cells = [Text(printable(cell)) for cell in row]  # without Rich's markup
        cells[-1].style = styles.get(row[-1], "")
        drawn.add_row(*cells)
    console = Console(width=_fitting(WIDTH + 20), force_terminal=True)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n").splitlines()


def finite(value: Any) -> Any:
    """Replace infinities and nan, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_and_error(sample: Sample) -> str:
    """Format `mean ± standard error`, or the mean of a single value. Small values have three decimals."""
    small = abs(sample.mean) < 10 and sample.standard_error is not None and sample.standard_error < 0.1
    digits = 3 if small else 1
    error = "" if sample.standard_error is None else f" ± {sample.standard_error:.{digits}f}"
    return f"{sample.mean:.{digits}f}{error}"


def same_decimals(*values: float) -> list[str]:
    """Format values that belong together with one decimal, three below 2, or more if all are tiny."""
    largest = max(map(abs, values))
    digits = 1 if largest >= 2 else max(3, 1 - math.floor(math.log10(largest))) if largest > 0 else 3
    return [f"{value:.{digits}f}" for value in values]


def short(value: float) -> str:
    """Format a return, or another number of an evaluation."""
    return same_decimals(value)[0]


def percent(share: float) -> str:
    """Format a share as a whole percentage: `28 %`."""
    return f"{share:.0%}".replace("%", " %")


def duration(seconds: float | None) -> str:
    """Format a duration: `42 s`, `3:07 min`, `2:05:00 h`; `…` if unknown."""
    if seconds is None:
        return "…"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def outcome_text(outcome: Outcome) -> str:
    """Describe the end of a run, as `pgcli train` prints it."""
    last = outcome.last
    if last is None:
        return f"{outcome.path}: {outcome.reason}"
    best = "" if outcome.best is None else f"; best {short(outcome.best[0])} at iteration {outcome.best[1]}"
    return (
        f"{outcome.path}: {outcome.reason}\n"
        f"  {counted(last.iteration, 'iteration')}, {last.env_steps:,} env steps, {duration(outcome.seconds)}\n"
        f"  return {mean_and_error(last.returns)} ({counted(last.returns.n, 'episode')}, {last.mode}){best}"
    )
