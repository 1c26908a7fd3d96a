"""TensorBoard and Weights & Biases: the rows of the tables once more, in the files of other tools.

They only consume records, as the display does. A session writes its files anew, from the rows that the tables have
kept and from then on row by row: so there is no point twice, none of what a resumed run has cut away, and none missing.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pgcli.config import Config, flat, to_data
from pgcli.errors import PgcliError
from pgcli.experiment.run import Request
from pgcli.records import Evaluation, Iteration, Notice, Record
from pgcli.runs.tables import header_of, rows_of

FILMED_STEPS = 500  # of the last policy's episode, at most


@dataclass(frozen=True)
class Row:
    """Numbers of one row of a table, by `table/column`; `elapsed` is in seconds since the run began."""

    iteration: int
    values: dict[str, float]
    elapsed: float


class Log(Protocol):
    """One tool's files."""

    def add(self, row: Row) -> None:
        """Write a row."""

    def picture(self, name: str, file: Path, iteration: int) -> None:
        """Write a .png, or a .gif that moves."""

    def close(self) -> None:
        """Make the files whole."""


@contextmanager
def logged(request: Request, watch: Callable[[Record], None]) -> Iterator[Callable[[Record], None]]:
    """Give a `watch` that shows every record to what `logging` asks for as well.

    A tool that fails ends its own log, which is told, and never the training.
    """
    logging = request.config.logging
    wanted = [kind for kind, on in ((TensorBoard, logging.tensorboard), (WandB, logging.wandb)) if on]
    if not wanted:
        yield watch
        return
    logs = _Logs(request.config, request.folder / request.path, wanted, lambda text: watch(Notice(text)))

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
    def __init__(self, config: Config, path: Path, kinds: list[type[Any]], tell: Callable[[str], None]) -> None:
        self._config, self._path, self._tell = config, path, tell
        self._waiting: list[type[Any]] = kinds  # for the first record, which says from where the run goes on
        self._logs: list[Log] = []
        self._last = 0

    def show(self, record: Record) -> None:
        """Write what a record has for the tables."""
        if isinstance(record, Notice):
            return
        for kind in self._waiting:
            with self._or_told(kind):
                log = kind(self._config, self._path)
                for row in past_rows(self._path, record.iteration):
                    log.add(row)
                self._logs.append(log)
        self._waiting = []
        row = _row_of(record)
        for log in list(self._logs):
            with self._or_told(log):
                log.add(row)
        self._last = record.iteration + isinstance(record, Iteration)

    def close(self, finished: bool) -> None:
        """Add the learning curve and a film of the last policy, if the run came to its end."""
        with tempfile.TemporaryDirectory() as folder:
            pictures = list(self._pictures(Path(folder))) if finished and self._logs else []
            for log in list(self._logs):
                with self._or_told(log):
                    for file in pictures:
                        log.picture(file.stem, file, self._last)
                    log.close()

    def _pictures(self, folder: Path) -> Iterator[Path]:
        from pgcli.experiment.load import load
        from pgcli.report.plots import plot
        from pgcli.report.video import film

        with suppress(PgcliError):  # nothing to draw yet
            column = "evaluation.return_mean"
            yield plot([self._path], "env_steps", column, "mean", "ci95", 1, folder / "learning_curve.png")
        with suppress(PgcliError):  # an environment without pictures
            agent = load(self._path, trust=True)
            film(agent, folder / "film.gif", self._config.evaluation.mode, self._config.seed, FILMED_STEPS)
            yield folder / "film.gif"

    @contextmanager
    def _or_told(self, log: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if log in self._logs:
                self._logs.remove(log)
            name = (log if isinstance(log, type) else type(log)).__name__
            self._tell(f"{name} failed, and the training goes on without it: {type(error).__name__}: {error}")


def past_rows(path: Path, iteration: int) -> Iterator[Row]:
    """Give the rows of the tables before `iteration`, an evaluation before the iteration that follows it."""
    tables = {name: _read(path / f"{name}.csv") for name in ("metrics", "timing", "evaluations")}
    elapsed, ended = dict[int, float](), 0.0
    for row in tables["timing"]:
        elapsed[int(row["iteration"])] = ended = float(row["elapsed_seconds"])
    timing = {row["iteration"]: row for row in tables["timing"]}
    rows = [
        *((int(row["iteration"]), 0, _numbers("evaluation", row)) for row in tables["evaluations"]),
        *(
            (int(row["iteration"]), 1, _numbers("metrics", row) | _numbers("timing", timing.get(row["iteration"], {})))
            for row in tables["metrics"]
        ),
    ]
    for number, kind, values in sorted(rows, key=lambda row: row[:2]):
        if number < iteration:
            yield Row(number, values, elapsed.get(number if kind else number - 1, 0.0) - ended)


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _row_of(record: Iteration | Evaluation) -> Row:
    rows = {name: dict(zip(header_of(name), rows[0], strict=True)) for name, rows in rows_of(record).items() if rows}
    if isinstance(record, Evaluation):
        return Row(record.iteration, _numbers("evaluation", rows["evaluations"]), 0.0)
    return Row(record.iteration, _numbers("metrics", rows["metrics"]) | _numbers("timing", rows["timing"]), 0.0)


def _numbers(table: str, row: dict[str, Any]) -> dict[str, float]:
    """Keep what is a number: no empty cell, no word."""
    found = {}
    for column, cell in row.items():
        with suppress(TypeError, ValueError):
            if column != "iteration":
                found[f"{table}/{column}"] = float(cell)
    return found


class TensorBoard:
    """Event files: scalars with the iteration as their step, hyper-parameters, the learning curve, a film."""

    def __init__(self, config: Config, path: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2, summary_pb2
        folder = path / "tensorboard"
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer = EventFileWriter(str(folder), flush_secs=5)
        self._opened = time.time()
        # a TensorBoard that is open on the folder forgets what it knows of it
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(wall_time=self._opened, step=0, session_log=start))
        told = {key: str(value) if isinstance(value, list) else value for key, value in flat(to_data(config)).items()}
        settings = {key: value for key, value in told.items() if isinstance(value, bool | int | float | str)}
        metrics = [summary_v2.Metric("evaluation/return_mean"), summary_v2.Metric("metrics/return_mean")]
        names = [summary_v2.HParam(name) for name in settings]
        self._write(summary_v2.hparams_config_pb(hparams=names, metrics=metrics), 0)
        self._write(summary_v2.hparams_pb(settings, trial_id=f"{path.parent.name}/{path.name}"), 0)

    def add(self, row: Row) -> None:
        """Write a row."""
        value = self._summary.Summary.Value
        values = [value(tag=tag, simple_value=number) for tag, number in row.values.items()]
        self._write(self._summary.Summary(value=values), row.iteration, row.elapsed)

    def picture(self, name: str, file: Path, iteration: int) -> None:
        """Write a .png, or a .gif that moves."""
        from PIL import Image

        with Image.open(file) as shown:
            width, height = shown.size
        image = self._summary.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes()
        )
        value = self._summary.Summary.Value(tag=name, image=image)
        self._write(self._summary.Summary(value=[value]), iteration)

    def close(self) -> None:
        """Make the files whole."""
        self._writer.close()

    def _write(self, summary: Any, step: int, ago: float = 0.0) -> None:
        now = self._opened + ago if ago else time.time()
        self._writer.add_event(self._event.Event(wall_time=now, step=step, summary=summary))


class WandB:
    """An offline run: nothing is sent, and nothing is asked."""

    def __init__(self, config: Config, path: Path) -> None:
        import wandb

        shutil.rmtree(path / "wandb", ignore_errors=True)
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
        )
        name = f"{config.name}/seed-{config.seed}"
        os.environ.setdefault("WANDB_CACHE_DIR", str(path / "wandb" / "cache"))
        self._wandb = wandb
        self._run = wandb.init(
            mode="offline", dir=path, project="pgcli", name=name, config=to_data(config), settings=quiet
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def add(self, row: Row) -> None:
        """Write a row."""
        self._run.log({"iteration": row.iteration} | row.values)

    def picture(self, name: str, file: Path, iteration: int) -> None:
        """Write a .png, or a .gif that moves."""
        moves = file.suffix == ".gif"
        shown = self._wandb.Video(str(file), format="gif") if moves else self._wandb.Image(str(file))
        self._run.log({"iteration": iteration, name: shown})

    def close(self) -> None:
        """Make the files whole."""
        self._run.finish()
