"""Progress displays: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from pgcli.config import Config
from pgcli.config.schema import DEFAULT_ITERATIONS
from pgcli.records import Evaluation, Iteration, Notice, Record, Sample, brief
from pgcli.report.text import duration, mean_and_error, percent, short
from pgcli.system.streams import print_message, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

PLAIN_INTERVAL = 1.0  # seconds between plain lines
LIVE_INTERVAL = 0.1  # minimum seconds between refreshes
LABEL_WIDTH = len("evaluation")
OF_POLICY = ("entropy", "grad_norm", "approx_kl", "step_kl", "clip_fraction")
OF_VALUE = ("explained_variance", "value_loss")
LIVE_SHARE = 0.01  # maximum share of the run time for refreshing
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", " .:-=+*#"  # from low to high


# ------------------------------------------------------------------------------------------------------------- displays


class View(Protocol):
    """The content of a display."""

    @property
    def last_line(self) -> str:
        """The last line of a plain display; empty for the line of the last record."""

    @property
    def last_notices(self) -> Sequence[str]:
        """Notices that a live display prints at its end."""

    def add(self, record: Record, run: int) -> str:
        """Add a record; return its line for a plain display, or an empty string."""

    def draw(self, width: int, bars: str, closed: bool) -> Iterator[Table]:
        """Draw the current state for a live display; `closed` for the last time."""


def make_display(view: View, quiet: bool) -> Display:
    """Choose a display for a view: none if `quiet`, live in a terminal, plain lines elsewhere."""
    if quiet:
        return Display()
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
    return LiveDisplay(view) if sys.stderr is not None and sys.stderr.isatty() and not dumb else PlainDisplay(view)


class Display:
    """Receives the records of numbered runs, and shows nothing."""

    def show(self, record: Record, run: int = 0) -> None:
        """Add a record of run number `run`, and show it if it is time."""

    def close(self) -> None:
        """Show the last state and restore the terminal."""


class PlainDisplay(Display):
    """Prints at most one line per second to stderr; prints notices at once."""

    def __init__(self, view: View) -> None:
        self._view, self._pending, self._printed = view, "", float("-inf")

    def show(self, record: Record, run: int = 0) -> None:
        """Print the record's line if it is time for one."""
        line = self._view.add(record, run)
        if not line:
            return
        if isinstance(record, Notice):
            self._print()  # the pending line
            self._printed = float("-inf")
        self._pending = line
        if time.perf_counter() - self._printed >= PLAIN_INTERVAL:
            self._print()

    def close(self) -> None:
        """Print the last line if it is not printed yet."""
        self._pending = self._view.last_line or self._pending
        self._print()

    def _print(self) -> None:
        if self._pending:
            print_message(self._pending)
        self._pending, self._printed = "", time.perf_counter()


class LiveDisplay(Display):
    """Draws on stderr, in at most 1 % of the run time. A closed terminal does not stop the run."""

    def __init__(self, view: View) -> None:
        from rich.console import Console
        from rich.live import Live

        self._view, self._closed = view, False
        self._live = Live(self, console=Console(stderr=True), auto_refresh=False)
        self._next, self._open = 0.0, True
        self._draw(partial(self._live.start, refresh=True))

    def show(self, record: Record, run: int = 0) -> None:
        """Add a record, and draw if it is time."""
        self._view.add(record, run)
        now = time.perf_counter()
        if now >= self._next:
            self._draw(self._live.refresh)
            cost = time.perf_counter() - now
            self._next = now + max(LIVE_INTERVAL, cost / LIVE_SHARE)

    def close(self) -> None:
        """Draw the last state and show the cursor."""
        self._closed = True
        self._draw(self._live.refresh)
        self._draw(self._live.stop)
        for text in self._view.last_notices:
            note = printable(f"note: {text}")
            self._draw(partial(self._live.console.print, note, markup=False, highlight=False))

    def _draw(self, draw: Callable[[], None]) -> None:
        if self._open:
            try:
                draw()
            except OSError:
                self._open = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for drawn in self._view.draw(options.max_width, ASCII_BARS if options.ascii_only else BARS, self._closed):
            for segment in console.render(drawn, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))


# ------------------------------------------------------------------------------------------------ the runs of `train`


@dataclass
class RunProgress:
    """The progress of one run."""

    config: Config
    started: float = field(default_factory=time.perf_counter)
    first_progress: float | None = None
    iteration: Iteration | None = None
    returns: Sample | None = None  # of the last iteration in which episodes ended
    last: Evaluation | None = None
    best: Evaluation | None = None
    history: list[float] = field(default_factory=list)
    steps: int = 0
    notices: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # collect, update, evaluate

    def add(self, record: Record) -> None:
        """Add a record."""
        if isinstance(record, Notice):
            self.notices.append(record.text)
            return
        if isinstance(record, Evaluation):
            self.last = record
            self.seconds[2] += record.seconds
            if not record.stopped_by and (self.best is None or record.returns.mean > self.best.returns.mean):
                self.best = record
            return
        if self.first_progress is None:
            self.first_progress = record.progress
        self.iteration = record
        if record.returns is not None:
            self.returns = record.returns
            self.history.append(record.returns.mean)
        self.steps += record.steps
        self.seconds[0] += record.timing.collect
        self.seconds[1] += record.timing.update

    @property
    def progress(self) -> float:
        """Share of the used budget."""
        return min(self.iteration.progress, 1.0) if self.iteration else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left, from the speed of this session."""
        done = self.progress - (self.first_progress or 0.0)
        return (time.perf_counter() - self.started) * (1 - self.progress) / done if done > 0 else None

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second of collecting and updating."""
        return self.steps / max(self.seconds[0] + self.seconds[1], 1e-9)

    @property
    def split(self) -> str:
        """Shares of the elapsed time."""
        total = max(sum(self.seconds), 1e-9)
        shares = zip(("collect", "update", "evaluate"), self.seconds, strict=True)
        return " · ".join(f"{name} {percent(part / total)}" for name, part in shares)

    @property
    def count(self) -> str:
        """Number of iterations, and their limit if the budget has one."""
        made = self.iteration.iteration + 1 if self.iteration else 0
        budget = self.config.training
        unlimited = budget.iterations is budget.env_steps is budget.seconds is None
        limit = DEFAULT_ITERATIONS if unlimited else budget.iterations
        return f"{made}/{limit}" if limit else f"{made}"

    @property
    def returns_text(self) -> str:
        """The returns of the last iteration in which episodes ended."""
        return mean_and_error(self.returns) if self.returns else "no finished episode yet"


class TrainingView:
    """The runs of one config: a panel for one run, a row each for several runs."""

    last_line = ""
    last_notices = ()

    def __init__(self, configs: Sequence[Config]) -> None:
        self.runs = [RunProgress(config) for config in configs]

    def add(self, record: Record, run: int) -> str:
        """Add a record; return its line for a plain display."""
        progress = self.runs[run]
        progress.add(record)
        seed = f"seed {progress.config.seed}  " if len(self.runs) > 1 else ""
        return seed + _line(record, progress)

    def draw(self, width: int, bars: str, closed: bool) -> Iterator[Table]:
        """Draw the panel and notices of one run, or the rows of several runs."""
        if len(self.runs) > 1:
            yield _rows(self.runs, width, bars)
            return
        yield _panel(self.runs[0], width, bars, closed)
        if self.runs[0].notices:
            yield _notices(self.runs[0].notices)


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """Draw `values`, averaged to at most `width` bars, scaled from their minimum to their maximum."""
    if not values or width < 1:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((mean - low) * scale)] for mean in means)


def _line(record: Record, run: RunProgress) -> str:
    if isinstance(record, Notice):
        return f"note: {record.text}"
    if isinstance(record, Evaluation):
        return (
            f"evaluation at iteration {record.iteration}: return {mean_and_error(record.returns)} "
            f"({record.returns.n} {'fresh ' if record.stopped_by else ''}episodes, {record.mode})"
        )
    counts = f"iteration {run.count}  env steps {record.env_steps:,}  return {run.returns_text}"
    metrics = brief(record.update, *OF_POLICY) + brief(record.update, *OF_VALUE)[:1]
    return "  ".join([counts, *metrics, f"{run.steps_per_second:,.0f} steps/s"])


def _panel(run: RunProgress, width: int, bars: str, closed: bool) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    config, record = run.config, run.iteration
    algorithm = config.algorithm
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=LABEL_WIDTH)
    grid.add_column(overflow="fold")  # a narrow terminal shows all, on more lines
    title = Text(config.name, style="bold")
    parts = [config.env.id, algorithm.returns, f"baseline {algorithm.baseline}"]
    if algorithm.objective != "policy_gradient":
        parts.append(algorithm.objective)
    title.append(f"  {' · '.join(parts)}", style="not bold dim")
    grid.add_row(f"seed {config.seed}", title)

    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        Text(run.count),
        ProgressBar(total=1.0, completed=run.progress, width=max(width - 60, 10)),
        Text(percent(run.progress)),
        Text("" if closed else f"{duration(run.remaining)} left", style="dim"),
    )
    grid.add_row("iteration", bar)
    if record is not None:
        text = Text(f"{run.returns_text:<17}", style="bold cyan")
        text.append(sparkline(run.history, width - 36, bars), style="not bold cyan")
        grid.add_row("return", text)
    if run.last is not None and run.best is not None:
        text = Text(f"{mean_and_error(run.last.returns):<17}", style="bold green")
        text.append(
            f"at {run.last.iteration} · best {short(run.best.returns.mean)} at {run.best.iteration}",
            style="not bold green",
        )
        grid.add_row("evaluation", text)
    if record is not None:
        grid.add_row("update", " · ".join(brief(record.update, *OF_POLICY)))
        if record.update.value_loss is not None:
            grid.add_row("value", " · ".join(brief(record.update, *OF_VALUE)))
        grid.add_row("env steps", f"{record.env_steps:,} · {run.steps_per_second:,.0f}/s · {run.split}")
    return grid


def _notices(notices: Sequence[str]) -> Table:
    """Draw notices with wrapped lines."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=LABEL_WIDTH)
    grid.add_column(overflow="fold")
    for notice in notices:
        grid.add_row("note", Text(printable(notice)))  # without Rich's markup
    return grid


def _rows(runs: Sequence[RunProgress], width: int, bars: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for run in runs:
        returns = mean_and_error(run.returns) if run.returns else "running" if run.iteration else "waiting"
        evaluation = f"evaluation {mean_and_error(run.last.returns)}" if run.last else ""
        grid.add_row(
            Text(f"seed {run.config.seed}", style="dim"),
            Text(f"{percent(run.progress):>5}"),
            Text(returns, style="bold cyan"),
            Text(sparkline(run.history, max(width - 65, 8), bars), style="cyan"),
            Text(evaluation, style="green"),
        )
    return grid


# ---------------------------------------------------------------------------------------------- the runs of `compare`


class ComparisonView:
    """The variants of a comparison, a row each. `labels`: variant of each run; `reused`: existing runs."""

    def __init__(self, labels: Sequence[str], reused: int) -> None:
        self.labels, self.reused = list(labels), reused
        self.progress = [0.0] * len(labels)
        self.returns: list[float | None] = [None] * len(labels)
        self.last_notices: list[str] = []

    def add(self, record: Record, run: int) -> str:
        """Add a record; return the line of its variant, or a new notice."""
        if isinstance(record, Notice):
            if record.text in self.last_notices:  # all runs have the same notices
                return ""
            self.last_notices.append(record.text)
            return f"note: {record.text}"
        if isinstance(record, Iteration):
            self.progress[run] = min(record.progress, 1.0)
        else:
            self.returns[run] = record.returns.mean
        latest = self.returns[run]
        return f"{self.last_line}  {self.labels[run]}" + ("" if latest is None else f": evaluation {short(latest)}")

    @property
    def last_line(self) -> str:
        """Number of finished runs, and share of the work done."""
        done, total = sum(share >= 1 for share in self.progress), len(self.labels)
        reused = f", {self.reused} reused" if self.reused else ""
        return f"{done} of {total} runs, {percent(fmean(self.progress))}{reused}"

    def draw(self, width: int, bars: str, closed: bool) -> Iterator[Table]:
        """Draw the progress and the mean of the latest evaluations of each variant."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for label in dict.fromkeys(self.labels):
            runs = [run for run, other in enumerate(self.labels) if other == label]
            share = fmean(self.progress[run] for run in runs)
            known = [value for run in runs if (value := self.returns[run]) is not None]
            table.add_row(
                Text(label, style="bold"),
                ProgressBar(total=1.0, completed=share, width=16),
                f"{percent(share):>5}",
                Text(f"evaluation {short(fmean(known))}" if known else "waiting", style="green"),
            )
        table.caption, table.caption_justify = self.last_line, "left"
        yield table
