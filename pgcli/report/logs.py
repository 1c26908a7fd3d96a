"""Logs for TensorBoard and Weights & Biases: the rows of metrics, timing and evaluations.

The step of a point is the number of env steps, as in other libraries. Each session rewrites its files: first the rows
of the tables, then each new record. So a resumed run has each point exactly once, also after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from pgcli.config import Config
from pgcli.errors import PgcliError
from pgcli.experiment.run import Request
from pgcli.records import OPTIONAL, Evaluation, Iteration, LogEntry, Notice, Record, more_columns
from pgcli.runs.tables import header_of, read_table, rows_of
from pgcli.system.leaving import remove_folder, temporary_folder

FILMED_STEPS = 500  # maximum length of the filmed episode
_PREFIXES = {"metrics": "metrics", "timing": "timing", "evaluations": "evaluation"}  # by table


class Log(Protocol):
    """The files of one tool. The constructor takes the config and the run directory."""

    def add(self, entry: LogEntry) -> None:
        """Write the numbers of a record."""

    def picture(self, name: str, file: Path, env_steps: int) -> None:
        """Write a .png or an animated .gif."""

    def close(self) -> None:
        """Complete the files."""


LogKind = Callable[[Config, Path], Log]


@contextmanager
def logged(request: Request, watch: Callable[[Record], None]) -> Iterator[Callable[[Record], None]]:
    """Yield a `watch` that also passes each record to the tools enabled in `logging`.

    If a tool fails, its log ends with a notice, and training continues.
    """
    kinds: dict[str, LogKind] = {}
    if request.config.logging.tensorboard:
        from pgcli.report.tensorboard import TensorBoard

        kinds["TensorBoard"] = TensorBoard
    if request.config.logging.wandb:
        from pgcli.report.wandb import WandB

        kinds["WandB"] = WandB
    if not kinds:
        yield watch
        return
    logs = _Logs(request.config, request.folder / request.path, kinds, lambda text: watch(Notice(text)))

    def watch_and_log(record: Record) -> None:
        logs.show(record)
        watch(record)

    finished = False
    try:
        yield watch_and_log
        finished = True
    finally:
        logs.close(finished)


class _Logs:
    """The logs of one run, by the name of their tool."""

    def __init__(self, config: Config, path: Path, kinds: dict[str, LogKind], notify: Callable[[str], None]) -> None:
        self._config, self._path, self._notify = config, path, notify
        self._waiting = kinds  # until the first record, which shows where the run continues
        self._logs: dict[str, Log] = {}
        self._env_steps = 0  # of the last record

    def show(self, record: Record) -> None:
        """Write the numbers of a record."""
        if isinstance(record, Notice):
            return
        for name, kind in self._waiting.items():
            with self._or_without(name):
                log = kind(self._config, self._path)
                for entry in past_entries(self._path, record.iteration):
                    log.add(entry)
                self._logs[name] = log
        self._waiting = {}
        for name, log in list(self._logs.items()):
            with self._or_without(name):
                log.add(_entry_of(record))
        self._env_steps = record.env_steps

    def close(self, finished: bool) -> None:
        """Add the learning curve and a film of the last policy, if the run has finished."""
        folder = temporary_folder()
        pictures = list(self._pictures(Path(folder))) if finished and self._logs else []
        for name, log in list(self._logs.items()):
            with self._or_without(name):
                for file in pictures:
                    log.picture(file.stem, file, self._env_steps)
                log.close()
        remove_folder(folder)

    def _pictures(self, folder: Path) -> Iterator[Path]:
        from pgcli.experiment.load import load
        from pgcli.report.plots import plot
        from pgcli.report.video import film

        with suppress(PgcliError):  # nothing to draw yet
            column = "evaluation.return_mean"
            yield plot([self._path], "env_steps", column, "mean", "ci95", 1, folder / "learning_curve.png")
        with suppress(PgcliError):  # an environment that renders no frames
            agent = load(self._path, trust=True)
            film(agent, folder / "film.gif", self._config.evaluation.mode, self._config.seed, FILMED_STEPS)
            yield folder / "film.gif"

    @contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._logs.pop(name, None)
            what = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.filename:
                what = f"{error.filename}: {error.strerror}"
            self._notify(f"{name} failed; training continues without it: {what}")


def past_entries(path: Path, iteration: int) -> Iterator[LogEntry]:
    """Yield the table rows before `iteration`.

    An evaluation precedes the iteration of its number.
    """
    entries: dict[tuple[int, bool], dict[str, float]] = {}  # by iteration, and whether they are of its end
    steps: dict[tuple[int, bool], int] = {}
    for name, prefix in _PREFIXES.items():
        table = read_table(path / f"{name}.csv", None)
        for row, number in enumerate(table["iteration"].astype(int).tolist()):
            key = (number, name != "evaluations")
            values = entries.setdefault(key, {})
            if "env_steps" in table.numbers:
                steps[key] = int(table["env_steps"][row])
            numbers = ((column, float(cells[row])) for column, cells in table.numbers.items())
            values |= {f"{prefix}/{column}": x for column, x in numbers if column != "iteration" and not np.isnan(x)}
    elapsed = {number: values.get("timing/elapsed_seconds", 0.0) for (number, end), values in entries.items() if end}
    ended = max(elapsed.values(), default=0.0)
    for (number, is_iteration), values in sorted(entries.items(), key=lambda entry: entry[0]):
        if number < iteration and (number, is_iteration) in steps:
            at = elapsed.get(number if is_iteration else number - 1, 0.0) - ended
            yield LogEntry(number, steps[number, is_iteration], values, at)


def _entry_of(record: Iteration | Evaluation) -> LogEntry:
    more = more_columns(list(record.info), stops=False, metrics=list(OPTIONAL))
    values = {
        f"{_PREFIXES[name]}/{column}": float(cell)
        for name, rows in rows_of(record, more).items()
        if name in _PREFIXES
        for column, cell in zip(header_of(name, more.get(name, ())), rows[0], strict=True)
        if column != "iteration" and isinstance(cell, int | float)
    }
    return LogEntry(record.iteration, record.env_steps, values)
