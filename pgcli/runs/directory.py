"""The run directory: config.yaml, tables, run.json, status.json, checkpoints."""

from __future__ import annotations

import os
import platform
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pgcli import __version__
from pgcli.config import Config, to_yaml
from pgcli.errors import CheckpointError, RunDirectoryError, UsageError
from pgcli.records import TABLES, Evaluation, Iteration
from pgcli.runs import checkpoints
from pgcli.runs.checkpoint_folder import CheckpointFolder
from pgcli.runs.digests import DIGESTS, digests_of, sealed
from pgcli.runs.files import Folder, opened, read_json, storage
from pgcli.runs.information import (
    Labels,
    WarmStart,
    find_run_hint,
    read_information,
    read_status,
    with_code,
    with_labels,
)
from pgcli.runs.tables import RunTables, has_rows, lengths_before, more_of, read_header, read_table
from pgcli.system.packages import versions

_FOLDERS = ("checkpoints", "crash", "tensorboard", "wandb", "mlflow")  # that a run writes


class RunDirectory:
    """Writes the records of a run to its folder, which the caller has locked.

    All writes are relative to the open folder, and fail if the path no longer names it.
    """

    def __init__(self, folder: Folder) -> None:
        self.path = folder.path
        self.best: tuple[float, int] | None = None  # the best evaluation so far: mean return, iteration
        self.iterations = 0  # rows of metrics.csv
        self._folder, self._tables, self._checkpoints = folder, RunTables(folder), CheckpointFolder(folder)

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json; empty if it does not exist."""
        return read_status(self.path) if (self.path / "status.json").exists() else {}

    @property
    def is_new(self) -> bool:
        """Whether the run has no iteration and no checkpoint."""
        return not (has_rows(self.path / "metrics.csv") or checkpoints.list_checkpoints(self.path / "checkpoints"))

    def start(
        self,
        config: Config,
        command: list[str],
        reward_threshold: float | None,
        labels: Labels | None = None,
        code: dict[str, Any] | None = None,
        warm_start: WarmStart | None = None,
    ) -> None:
        """Write the initial files of a run. run.json is first, because it marks the folder as pgcli's."""
        check_owner(self.path)
        self._folder.check()
        run = _circumstances(config, command, reward_threshold) | (code or {})
        if warm_start is not None:
            run["warm_start"] = asdict(warm_start)
        self._checkpoints.results = _results(run)
        self._folder.write_json("run.json", with_labels(run, labels))
        self._folder.write("config.yaml", _config_text(config, self.path, run))
        self._remove_temporary()
        for name in TABLES:
            self._folder.delete(f"{name}.csv")  # may be incomplete, or of another version
        self.set_status("running")
        self._tables.open(config, config.logging.info or ())

    def restart(
        self,
        config: Config,
        command: list[str],
        overrides: list[str],
        exact: bool,
        counters: dict[str, int],
        reward_threshold: float | None,
        labels: Labels | None = None,
        code: dict[str, Any] | None = None,
    ) -> None:
        """Reset the run to its state after `counters["iteration"]` updates, and open it for appending.

        Raises: RunDirectoryError if the tables have other columns, or lack rows that led to that state.
        """
        check_owner(self.path)
        self.iterations = iteration = counters["iteration"]
        lengths = lengths_before(self.path, iteration, counters["episodes"])
        run, was_finished = read_information(self.path), self.status.get("status") == "finished"
        self.set_status("running")  # first, because it has digests of files that change now
        self._checkpoints.rewind(iteration)
        self._remove_temporary()
        for path, length in lengths.items():
            if path.exists():
                self._folder.truncate(path.name, length)
        run["exact"] = bool(run.get("exact", True)) and exact
        run["reward_threshold"] = reward_threshold  # of the evaluation environment, which may change
        resume = {"iteration": iteration, "command": command, "overrides": overrides}
        extends = {"extends": True} if was_finished else {}  # keeps the checkpoint of the former end
        run.setdefault("resumes", []).append(resume | extends)
        self._checkpoints.results = _results(run)
        self._folder.write_json("run.json", with_labels(with_code(run, code or {}), labels))
        self._folder.write("config.yaml", _config_text(config, self.path, run))
        self._tables.open(config, more_of("episodes", read_header(self.path / "episodes.csv")) or ())
        self.best = _best_evaluation(self.path / "evaluations.csv")
        self._checkpoints.point_to_best(self._best_iteration)

    def add_iteration(self, record: Iteration) -> None:
        """Append the rows of an iteration to their tables."""
        self._folder.check()
        self._tables.append(record)
        self.iterations = record.iteration + 1

    def add_evaluation(self, record: Evaluation) -> bool:
        """Append an evaluation; return whether it is the best so far, which none after a stop is."""
        self._folder.check()
        self._tables.append(record)
        is_best = not record.stopped_by and (self.best is None or record.returns.mean > self.best[0])
        if is_best:
            self.best = (record.returns.mean, record.iteration)
        return is_best

    def save(self, checkpoint: checkpoints.Checkpoint, *, best: bool, keep: int, every: int | None) -> None:
        """Write a checkpoint after syncing the tables, then delete old checkpoints."""
        self._folder.check()
        self._tables.sync()
        self._checkpoints.save(checkpoint, is_best=best, best=self._best_iteration, keep=keep, every=every)

    def add_reproduction(self, name: str, program: str) -> Path:
        """Write a program that reproduces a fault of the environment, and return its path."""
        self._folder.check()
        with closing(self._folder.subfolder("crash")) as folder:
            folder.write(f"{name}.py", program.encode())
        return self.path / "crash" / f"{name}.py"

    def mark_inexact(self) -> None:
        """Record in run.json that the run differs from an uninterrupted run."""
        self._folder.check()
        self._folder.write_json("run.json", read_information(self.path) | {"exact": False})

    def set_status(self, status: str, **more: object) -> None:
        """Write status.json; after the end of the run, include the digests of its files."""
        found: dict[str, Any] = {"status": status, **more}
        if status == "running":
            self._folder.check()
            self._folder.write_json("status.json", found)
            return
        try:
            self._tables.sync()
            self._folder.check()
            found[DIGESTS] = digests_of(self.path)
        except (OSError, RunDirectoryError):  # for example, the folder was moved
            if status == "finished":
                raise
        self._folder.write("status.json", sealed(found))

    def close(self) -> None:
        """Close the tables and the folder of the checkpoints."""
        self._tables.close()
        self._checkpoints.close()

    @property
    def _best_iteration(self) -> int | None:
        return self.best[1] if self.best else None

    def _remove_temporary(self) -> None:
        self._folder.remove_temporary()
        self._checkpoints.remove_temporary()
        if (self.path / "crash").is_dir():
            with closing(self._folder.subfolder("crash")) as crash:
                crash.remove_temporary()


def check_owner(path: Path) -> None:
    """Raise RunDirectoryError if a folder has files with the names of run files that pgcli did not write.

    pgcli wrote them if run.json, which is written first, names its version, or if there is a checkpoint.
    """
    if checkpoints.list_checkpoints(path / "checkpoints"):
        return
    with suppress(RunDirectoryError):
        if "pgcli" in read_json(path / "run.json"):
            return
    names = ("config.yaml", "run.json", "status.json", *(f"{name}.csv" for name in TABLES), *_FOLDERS)
    if found := [name for name in names if os.path.lexists(path / name)]:
        raise RunDirectoryError(
            f"{path}: contains {', '.join(found)}, which pgcli did not write",
            "choose another --run-dir; nothing was changed",
        )


def _results(run: dict[str, Any]) -> set[int]:
    """Return the iterations of former ends of the run; and 0, for a warm start."""
    ends = {one["iteration"] for one in run.get("resumes", []) if one.get("extends")}
    return ends | {0} if run.get("warm_start") else ends


def _best_evaluation(file: Path) -> tuple[float, int] | None:
    """Return the mean return and the iteration of the first best evaluation."""
    table = read_table(file, ("return_mean",))
    returns = table["return_mean"]
    if np.isnan(returns).any():
        raise RunDirectoryError(f"{file}: damaged: a `return_mean` is not a number")
    at = int(returns.argmax()) if table.rows else 0
    return (float(returns[at]), int(table["iteration"][at])) if table.rows else None


def elapsed_seconds(path: Path, iteration: int) -> float:
    """Return the seconds of the first `iteration` iterations, from timing.csv; 0 without rows."""
    timing = read_table(path / "timing.csv", ("elapsed_seconds",))
    before = timing["elapsed_seconds"][timing["iteration"] < iteration]
    return float(np.nanmax(before, initial=0.0))


def earlier_evaluations(path: Path, iteration: int) -> list[dict[str, float]]:
    """Return the numbers of the evaluations before `iteration`, by column."""
    table = read_table(path / "evaluations.csv", None)
    table = table.pick(table["iteration"] < iteration)
    rows = zip(*(column.tolist() for column in table.numbers.values()), strict=True)
    return [dict(zip(table.numbers, row, strict=True)) for row in rows]


def move_aside(path: Path) -> Path:
    """Rename a run directory to `NAME~1` (`~2`, …). Deletes nothing; renames a link itself."""
    if Path.cwd().is_relative_to(path.resolve()):
        raise RunDirectoryError(f"{path}: is the current folder", "run the command from another folder")
    path = path if path.is_symlink() else path.resolve()
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}~{number}")):
        number += 1
    path.rename(aside)
    with opened(path.parent) as folder:
        folder.sync()
    return aside


def is_run(path: Path) -> bool:
    """Return whether a folder contains a run."""
    return any((path / name).exists() for name in ("config.yaml", "metrics.csv", "checkpoints"))


def find_checkpoint(path: Path, which: str = "latest") -> Path:
    """Find a checkpoint: a file, or the latest, best or N-th checkpoint of a run directory.

    Raises: CheckpointError if there is none, or if it is damaged.
    """
    with storage(path):
        if path.is_dir():
            return _find_in(path, which)
        if not path.is_file():
            what = "neither a file nor a folder" if path.exists() else "no such file or run directory"
            raise CheckpointError(f"{path}: {what}", find_run_hint(path))
    if which != "latest":
        raise UsageError(f"{path}: --which needs a run directory, not a checkpoint file", "remove --which")
    return path


def _find_in(path: Path, which: str) -> Path:
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    files = checkpoints.list_checkpoints(folder)
    if which.isdigit():
        kept = {str(checkpoints.iteration_of(file)): file for file in files}
        if (found := kept.get(which.lstrip("0") or "0")) is None:
            hint = f"existing checkpoints: {', '.join(kept)}" if kept else ""
            raise CheckpointError(f"{path}: no checkpoint for iteration {which}", hint)
        return found
    if which not in ("latest", "best"):
        raise CheckpointError(f"unknown checkpoint `{which}`", "use latest, best, or an iteration number")
    if (folder / f"{which}.json").exists():
        return checkpoints.follow(folder / f"{which}.json")
    if not files:
        raise CheckpointError(f"{path}: has no checkpoint", find_run_hint(path))
    if which == "best":
        raise CheckpointError(f"{path}: has no best checkpoint", "use --which latest")
    return files[-1]  # the pointer is optional: each checkpoint has its own checksum


def _config_text(config: Config, path: Path, run: dict[str, Any]) -> bytes:
    folder = f"{path.name}/" if path.name.isprintable() else ""  # a comment must stay on one line
    start = f" --from {folder}checkpoints/{checkpoints.file_name(0)}" if run.get("warm_start") else ""
    return f"# pgcli train {folder}config.yaml{start} repeats this run\n{to_yaml(config)}".encode()


def _circumstances(config: Config, command: list[str], reward_threshold: float | None) -> dict[str, Any]:
    return {
        "pgcli": __version__,
        "command": command,
        "seed": config.seed,
        "env": config.env.id,
        "reward_threshold": reward_threshold,
        "exact": True,
        "versions": versions(),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }
