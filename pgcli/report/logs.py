"""Logs for TensorBoard, Weights & Biases and MLflow: the rows of metrics, timing and evaluations.

The step of a point is the number of env steps, as in other libraries. Each session gives a log the rows of the tables
first, then each new record. A log of files begins anew, and one on a server skips the points that it has. So a resumed
run has each point exactly once, also after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from pgcli.config import Config
from pgcli.errors import PgcliError
from pgcli.experiment.run import Request
from pgcli.records import OPTIONAL, Evaluation, Iteration, LogEntry, Notice, Record, more_columns
from pgcli.runs.tables import header_of, read_table, rows_of
from pgcli.system.leaving import remove_folder, temporary_folder
from pgcli.system.streams import without_passwords

FILMED_STEPS = 500  # maximum length of the filmed episode
_CLASSES = {  # by key of `logging`: module and class, imported only if the key is set
    "tensorboard": ("pgcli.report.tensorboard", "TensorBoard"),
    "wandb": ("pgcli.report.wandb", "WandB"),
    "mlflow": ("pgcli.report.mlflow", "MLflow"),
}
_LONGEST = 300  # characters of an error
_PREFIXES = {"metrics": "metrics", "timing": "timing", "evaluations": "evaluation"}  # by table
_REPEATED = "timing/iteration"  # that of the metrics


class Log(Protocol):
    """The log of one tool. Its constructor takes the config, the run directory and the next iteration."""

    def add(self, entry: LogEntry) -> None:
        """Write the numbers of a record."""

    def picture(self, name: str, file: Path, env_steps: int) -> None:
        """Write a .png or an animated .gif."""

    def close(self, finished: bool) -> None:
        """Complete the log of a session, at the end of the run if it has finished."""


LogKind = Callable[[Config, Path, int], Log]


@contextmanager
def logged(request: Request, watch: Callable[[Record], None]) -> Iterator[Callable[[Record], None]]:
    """Yield a `watch` that also passes each record to the tools enabled in `logging`.

    If a tool fails, its log ends with a notice, and training continues.
    """
    found = (_CLASSES[name] for name in request.config.logging.tools)
    kinds: dict[str, LogKind] = {name: getattr(import_module(module), name) for module, name in found}
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
                log = kind(self._config, self._path, record.iteration)
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
                log.close(finished)
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
            line = without_passwords(" ".join(what.split()))
            shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
            self._notify(f"{name} failed; training continues without it: {shown}")


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
            numbers = ((f"{prefix}/{column}", float(cells[row])) for column, cells in table.numbers.items())
            values |= {tag: x for tag, x in numbers if tag != _REPEATED and not np.isnan(x)}
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
        if f"{_PREFIXES[name]}/{column}" != _REPEATED and isinstance(cell, int | float)
    }
    return LogEntry(record.iteration, record.env_steps, values)
