"""What a user sees while the runs of a comparison are trained: a line for each arm. It only consumes records."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from pgcli.records import Evaluation, Iteration, Notice, Record
from pgcli.report.display import LIVE_INTERVAL, PLAIN_INTERVAL, Display, SilentDisplay
from pgcli.report.text import short

if TYPE_CHECKING:
    from rich.table import Table


class Grid:
    """How far the runs are: `labels` has the arm of each, `there` counts those that needed no training."""

    def __init__(self, labels: Sequence[str], there: int) -> None:
        self.labels, self.there = list(labels), there
        self.progress = [0.0] * len(labels)
        self.returns: list[float | None] = [None] * len(labels)
        self.notices: list[str] = []

    def add(self, record: Record, run: int) -> None:
        """Take note of a record of run number `run`."""
        if isinstance(record, Iteration):
            self.progress[run] = min(record.progress, 1.0)
        elif isinstance(record, Evaluation):
            self.returns[run] = record.returns.mean
        elif record.text not in self.notices:  # every run of an environment has the same to tell
            self.notices.append(record.text)

    @property
    def summary(self) -> str:
        """Say how much is done, over all."""
        done, all_ = sum(share >= 1 for share in self.progress), len(self.labels)
        reused = f", {self.there} there already" if self.there else ""
        return f"{done} of {all_} runs, {100 * fmean(self.progress):.0f} %{reused}"

    def rows(self) -> list[tuple[str, float, str]]:
        """Give for each arm its label, the share that is done and the mean of its latest evaluations."""
        rows = []
        for label in dict.fromkeys(self.labels):
            runs = [run for run, other in enumerate(self.labels) if other == label]
            known = [value for run in runs if (value := self.returns[run]) is not None]
            told = f"evaluation {short(fmean(known))}" if known else "waiting"
            rows.append((label, fmean(self.progress[run] for run in runs), told))
        return rows


class PlainGridDisplay:
    """One line on stderr, at most one a second; a closed stderr ends the lines, not the training."""

    def __init__(self, labels: Sequence[str], there: int) -> None:
        self._grid, self._printed, self._open = Grid(labels, there), float("-inf"), True

    def show(self, record: Record, run: int = 0) -> None:
        """Print where the comparison is if it is time to."""
        known = len(self._grid.notices)
        self._grid.add(record, run)
        if isinstance(record, Notice):
            for text in self._grid.notices[known:]:
                self._print(f"note: {text}")
        elif time.perf_counter() - self._printed >= PLAIN_INTERVAL:
            self._printed = time.perf_counter()
            told = self._grid.returns[run]
            latest = "" if told is None else f": evaluation {short(told)}"
            self._print(f"{self._grid.summary}  {self._grid.labels[run]}{latest}")

    def close(self) -> None:
        """Print the last state."""
        self._print(self._grid.summary)

    def _print(self, text: str) -> None:
        if self._open:
            try:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):
                self._open = False


class LiveGridDisplay:
    """A line for each arm, drawn again in place; a closed terminal ends it alone."""

    def __init__(self, labels: Sequence[str], there: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._grid, self._next, self._open = Grid(labels, there), 0.0, True
        self._live = Live(console=Console(stderr=True), auto_refresh=False)
        self._draw(start=True)

    def show(self, record: Record, run: int = 0) -> None:
        """Take note, and draw if it is time."""
        self._grid.add(record, run)
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + LIVE_INTERVAL
            self._draw()

    def close(self) -> None:
        """Draw the last state, give the cursor back, and tell what there is to note."""
        self._draw(stop=True)
        for text in self._grid.notices if self._open else []:
            self._live.console.print(f"note: {text}", markup=False, highlight=False)

    def _draw(self, start: bool = False, stop: bool = False) -> None:
        if self._open:
            try:
                if start:
                    self._live.start()
                self._live.update(self._table(), refresh=True)
                if stop:
                    self._live.stop()
            except OSError:
                self._open = False

    def _table(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for label, share, told in self._grid.rows():
            percent = f"{100 * share:3.0f} %"
            bar = ProgressBar(total=1.0, completed=share, width=16)
            table.add_row(Text(label, style="bold"), bar, percent, Text(told, style="green"))
        table.caption = self._grid.summary
        table.caption_justify = "left"
        return table


def make_grid_display(labels: Sequence[str], there: int, quiet: bool) -> Display:
    """Choose the display that fits: none, live in a terminal, plain lines elsewhere."""
    from pgcli.report.display import _is_dumb

    if quiet:
        return SilentDisplay()
    if sys.stderr is not None and sys.stderr.isatty() and not _is_dumb():
        return LiveGridDisplay(labels, there)
    return PlainGridDisplay(labels, there)
