"""What a user sees while training: a live panel in a terminal, plain lines elsewhere. It only consumes records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from pgcli.config import Config
from pgcli.config.schema import DEFAULT_ITERATIONS
from pgcli.records import Evaluation, Iteration, Notice, Record, Sample, Update, brief

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

PLAIN_INTERVAL = 1.0  # seconds between plain lines
LIVE_INTERVAL = 0.1  # seconds between refreshes, at least
LABEL_WIDTH = len("evaluation")
LIVE_SHARE = 0.01  # of the run time that refreshing may take, at most


class Display(Protocol):
    """Shows the records of one run, or of several under their numbers."""

    def show(self, record: Record, run: int = 0) -> None:
        """Take note of a record of run number `run`."""

    def close(self) -> None:
        """Show the last state and leave the terminal as it was."""


@dataclass
class View:
    """What there is to say of one run so far."""

    config: Config
    started: float = field(default_factory=time.perf_counter)
    first_progress: float | None = None
    iteration: Iteration | None = None
    returns: Sample | None = None  # of the last iteration in which episodes ended
    last: Evaluation | None = None
    best: Evaluation | None = None
    history: list[float] = field(default_factory=list)
    steps: int = 0
    closed: bool = False
    notices: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # collect, update, evaluate

    def add(self, record: Record) -> None:
        """Take note of a record."""
        if isinstance(record, Notice):
            self.notices.append(record.text)
            return
        if isinstance(record, Evaluation):
            self.last = record
            self.seconds[2] += record.seconds
            if self.best is None or record.returns.mean > self.best.returns.mean:
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
        """Share of the budget that is used."""
        return min(self.iteration.progress, 1.0) if self.iteration else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds left, if the rest goes on as this session's part did."""
        done = self.progress - (self.first_progress or 0.0)
        return (time.perf_counter() - self.started) * (1 - self.progress) / done if done > 0 else None

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second of collecting and updating."""
        return self.steps / max(self.seconds[0] + self.seconds[1], 1e-9)

    @property
    def split(self) -> str:
        """Shares of the time so far."""
        total = max(sum(self.seconds), 1e-9)
        shares = zip(("collect", "update", "evaluate"), self.seconds, strict=True)
        return " · ".join(f"{name} {part / total:.0%}".replace("%", " %") for name, part in shares)

    @property
    def count(self) -> str:
        """Iterations made, of how many if the budget says so."""
        made = self.iteration.iteration + 1 if self.iteration else 0
        budget = self.config.training
        unlimited = budget.iterations is budget.env_steps is budget.seconds is None
        limit = DEFAULT_ITERATIONS if unlimited else budget.iterations
        return f"{made}/{limit}" if limit else f"{made}"


def mean_and_error(sample: Sample) -> str:
    """Write `mean ± standard error`, or the mean alone where one value has no error; small ones with three decimals."""
    small = abs(sample.mean) < 10 and sample.standard_error is not None and sample.standard_error < 0.1
    digits = 3 if small else 1
    error = "" if sample.standard_error is None else f" ± {sample.standard_error:.{digits}f}"
    return f"{sample.mean:.{digits}f}{error}"


def short(value: float) -> str:
    """Write a return alone."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"


def sparkline(values: Sequence[float], width: int, levels: str = "▁▂▃▄▅▆▇█") -> str:
    """Draw `values` in at most `width` characters, from their lowest to their highest; each the mean of its share."""
    if not values or width < 1:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((mean - low) * scale)] for mean in means)


def duration(seconds: float | None) -> str:
    """Write a time for people: `42 s`, `3:07 min`, `2:05:00 h`."""
    if seconds is None:
        return "…"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


class SilentDisplay:
    """Shows nothing."""

    def show(self, record: Record, run: int = 0) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainDisplay:
    """One line per record on stderr, at most one a second; a closed stderr ends the lines, not the training."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self._views = [View(config) for config in configs]
        self._printed = float("-inf")
        self._open = True
        self._pending = ""

    def show(self, record: Record, run: int = 0) -> None:
        """Print the record's line if it is time for one."""
        view = self._views[run]
        view.add(record)
        if isinstance(record, Notice):
            self._print()  # what was to come first
            self._printed = float("-inf")
        seed = f"seed {view.config.seed}  " if len(self._views) > 1 else ""
        self._pending = seed + _plain_line(record, view)
        if time.perf_counter() - self._printed >= PLAIN_INTERVAL:
            self._print()

    def close(self) -> None:
        """Print the last line if it is still to come."""
        self._print()

    def _print(self) -> None:
        if self._pending and self._open:
            try:
                sys.stderr.write(self._pending + "\n")
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):
                self._open = False
        self._pending, self._printed = "", time.perf_counter()


def _returns(view: View) -> str:
    """Write the returns of the last iteration in which episodes ended."""
    return mean_and_error(view.returns) if view.returns else "no episode has ended yet"


def _of_policy(update: Update) -> list[str]:
    """Describe what an update did to the policy."""
    return brief(update, "entropy", "grad_norm", "approx_kl", "clip_fraction")


def _of_value(update: Update) -> list[str]:
    """Describe how good the value function is."""
    return brief(update, "explained_variance", "value_loss")


def _plain_line(record: Record, view: View) -> str:
    if isinstance(record, Notice):
        return f"note: {record.text}"
    if isinstance(record, Evaluation):
        return (
            f"evaluation at iteration {record.iteration}: return {mean_and_error(record.returns)} "
            f"({record.returns.n} episodes, {record.mode})"
        )
    return (
        f"iteration {view.count}  env steps {record.env_steps:,}  return {_returns(view)}  "
        f"{'  '.join(_of_policy(record.update) + _of_value(record.update)[:1])}  {view.steps_per_second:,.0f} steps/s"
    )


class LiveDisplay:
    """A panel that is drawn again as often as a hundredth of the run time allows; a closed terminal ends it alone."""

    def __init__(self, configs: Sequence[Config]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._views = [View(config) for config in configs]
        self._live = Live(self, console=Console(stderr=True), auto_refresh=False)
        self._next, self._open = 0.0, True
        self._draw(lambda: self._live.start(refresh=True))

    def show(self, record: Record, run: int = 0) -> None:
        """Take note, and draw if it is time."""
        self._views[run].add(record)
        now = time.perf_counter()
        if now >= self._next:
            self._draw(self._live.refresh)
            cost = time.perf_counter() - now
            self._next = now + max(LIVE_INTERVAL, cost / LIVE_SHARE)

    def close(self) -> None:
        """Draw the last state and give the cursor back."""
        for view in self._views:
            view.closed = True
        self._draw(self._live.refresh)
        self._draw(self._live.stop)

    def _draw(self, draw: Callable[[], None]) -> None:
        if self._open:
            try:
                draw()
            except OSError:
                self._open = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        levels = " .:-=+*#" if options.ascii_only else "▁▂▃▄▅▆▇█"
        if len(self._views) == 1:
            yield _panel(self._views[0], options.max_width, levels)
            if self._views[0].notices:
                yield _notes(self._views[0])
        else:
            yield _list(self._views, options.max_width, levels)


def _panel(view: View, width: int, levels: str) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    config, record = view.config, view.iteration
    algorithm = config.algorithm
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=LABEL_WIDTH)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    title = Text(config.name, style="bold")
    parts = [config.env.id, algorithm.returns, f"baseline {algorithm.baseline}"]
    if algorithm.objective != "policy_gradient":
        parts.append(algorithm.objective)
    title.append(f"  {' · '.join(parts)}", style="not bold dim")
    grid.add_row(f"seed {config.seed}", title)

    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        Text(view.count),
        ProgressBar(total=1.0, completed=view.progress, width=max(width - 60, 10)),
        Text(f"{view.progress:.0%}".replace("%", " %")),
        Text("" if view.closed else f"{duration(view.remaining)} left", style="dim"),
    )
    grid.add_row("iteration", bar)
    if record is not None:
        text = Text(f"{_returns(view):<17}", style="bold cyan")
        text.append(sparkline(view.history, width - 36, levels), style="not bold cyan")
        grid.add_row("return", text)
    if view.last is not None and view.best is not None:
        text = Text(f"{mean_and_error(view.last.returns):<17}", style="bold green")
        text.append(
            f"at {view.last.iteration} · best {short(view.best.returns.mean)} at {view.best.iteration}",
            style="not bold green",
        )
        grid.add_row("evaluation", text)
    if record is not None:
        grid.add_row("update", " · ".join(_of_policy(record.update)))
        if record.update.value_loss is not None:
            grid.add_row("value", " · ".join(_of_value(record.update)))
        grid.add_row("env steps", f"{record.env_steps:,} · {view.steps_per_second:,.0f}/s · {view.split}")
    return grid


def _notes(view: View) -> Table:
    """Give each notice as many lines as it needs."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=LABEL_WIDTH)
    grid.add_column(overflow="fold")
    for notice in view.notices:
        grid.add_row("note", notice)
    return grid


def _list(views: Sequence[View], width: int, levels: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for view in views:
        returns = mean_and_error(view.returns) if view.returns else "running" if view.iteration else "waiting"
        evaluation = f"evaluation {mean_and_error(view.last.returns)}" if view.last else ""
        grid.add_row(
            Text(f"seed {view.config.seed}", style="dim"),
            Text(f"{view.progress:4.0%}".replace("%", " %")),
            Text(returns, style="bold cyan"),
            Text(sparkline(view.history, max(width - 65, 8), levels), style="cyan"),
            Text(evaluation, style="green"),
        )
    return grid


def make_display(configs: Sequence[Config], quiet: bool) -> Display:
    """Choose the display that fits: none, live in a terminal, plain lines elsewhere."""
    if quiet:
        return SilentDisplay()
    if sys.stderr is not None and sys.stderr.isatty() and not _is_dumb():
        return LiveDisplay(configs)
    return PlainDisplay(configs)


def _is_dumb() -> bool:
    import os

    return os.environ.get("TERM", "") in ("dumb", "unknown")
