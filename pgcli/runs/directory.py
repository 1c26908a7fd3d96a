"""One run on disk: config.yaml, tables, run.json, status.json, checkpoints."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from pgcli import __version__
from pgcli.config import Config, to_yaml
from pgcli.errors import CheckpointError, RunDirectoryError, UsageError
from pgcli.records import Evaluation, GradientEstimate, Iteration
from pgcli.runs import checkpoints
from pgcli.runs.files import (
    Cell,
    Table,
    check_columns,
    make_folder,
    open_file,
    read_json,
    remove_temporary,
    rows_before,
    storage,
    sync_folder,
    truncate,
    write_json,
    write_whole,
)

METRICS = (
    "iteration,env_steps,episodes,return_mean,return_standard_error,return_standard_deviation,return_min,"
    "return_max,length_mean,discounted_return_mean,policy_loss,value_loss,entropy,approx_kl,clip_fraction,"
    "effective_sample_size,explained_variance,grad_norm,learning_rate,update_epochs,clip_range,entropy_coef,"
    "zero_variance_groups,return_scale,action_standard_deviation,action_clip_fraction"
).split(",")
TIMING = "iteration,elapsed_seconds,collect_seconds,update_seconds,evaluate_seconds,steps_per_second".split(",")
EVALUATIONS = (
    "iteration,env_steps,mode,evaluation_episodes,return_mean,return_standard_error,return_standard_deviation,"
    "length_mean,return_median,return_min,return_max,discounted_return_mean"
).split(",")
EPISODES = "iteration,episode,return,discounted_return,length,ended".split(",")
GRADIENTS = ["iteration", "env_steps", *(field.name for field in fields(GradientEstimate))]

TABLES = {"metrics": METRICS, "timing": TIMING, "evaluations": EVALUATIONS, "episodes": EPISODES}
ALL_TABLES = TABLES | {"gradients": GRADIENTS}  # which is there only if it was asked for


class RunDirectory:
    """Writes a run's records. The caller holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best: tuple[float, int] | None = None  # the best evaluation so far: mean return, iteration
        self._tables: dict[str, Table] = {}

    @property
    def status(self) -> dict[str, Any]:
        """What status.json says; empty if the run never wrote one."""
        path = self.path / "status.json"
        return read_json(path) if path.exists() else {}

    @property
    def is_new(self) -> bool:
        """Whether nothing has been learned here yet."""
        return not (_has_rows(self.path / "metrics.csv") or checkpoints.list_checkpoints(self.checkpoints))

    def start(self, config: Config, command: list[str], reward_threshold: float | None) -> None:
        """Write what a new run begins with."""
        write_whole(self.path / "config.yaml", _config_text(config, self.path))  # first: it says that a run is here
        make_folder(self.checkpoints)
        for name in ALL_TABLES:
            (self.path / f"{name}.csv").unlink(missing_ok=True)  # half a header, or another version's
        self._remove_temporary()
        write_json(self.path / "run.json", _circumstances(config, command, reward_threshold))
        self.set_status("running")
        self.open_tables(config)

    def restart(
        self, config: Config, command: list[str], overrides: list[str], exact: bool, counters: dict[str, int]
    ) -> None:
        """Cut the run back to the state after `counters["iteration"]` updates and make ready to go on.

        Raises: RunDirectoryError if the tables have other columns or do not hold what led there.
        """
        iteration = counters["iteration"]
        ends = self._check_tables(iteration, counters["episodes"])
        here = self.checkpoints / checkpoints.file_name(iteration)
        checkpoints.point(self.checkpoints / "latest.json", here, checkpoints.digest_of(here))
        for path in checkpoints.list_checkpoints(self.checkpoints):  # which nothing points to any more
            if checkpoints.iteration_of(path) > iteration:
                path.unlink()
        sync_folder(self.checkpoints)
        self._remove_temporary()
        for name, end in ends.items():
            truncate(self.path / f"{name}.csv", end)
        run = read_json(self.path / "run.json")
        run["exact"] = bool(run.get("exact", True)) and exact
        run.setdefault("resumes", []).append({"iteration": iteration, "command": command, "overrides": overrides})
        write_json(self.path / "run.json", run)
        write_whole(self.path / "config.yaml", _config_text(config, self.path))
        self.set_status("running")
        self.open_tables(config)
        for number, mean_return in _column(self.path / "evaluations.csv", "return_mean"):
            self._judge(mean_return, number)
        self._point_to_best()

    def _check_tables(self, iteration: int, episodes: int) -> dict[str, int]:
        """Say how many bytes of each table led to `iteration`."""
        ends = {}
        for name, columns in ALL_TABLES.items():
            path = self.path / f"{name}.csv"
            check_columns(path, columns)
            rows, ends[name] = rows_before(path, iteration)
            expected = {"metrics": iteration, "episodes": episodes}.get(name, rows)
            if rows != expected or (name == "evaluations" and not rows and iteration):
                raise RunDirectoryError(
                    f"{path}: has {rows} whole rows, and the checkpoint needs {expected or 1}",
                    "without them the run cannot go on; --overwrite moves it aside and starts anew",
                )
        return ends

    def open_tables(self, config: Config) -> None:
        """Open the tables for appending."""
        for name, columns in tables_of(config).items():
            self._tables[name] = Table(self.path / f"{name}.csv", columns)
        sync_folder(self.path)

    def add_iteration(self, record: Iteration) -> None:
        """Append an iteration to metrics.csv, timing.csv and episodes.csv, and what was measured in it."""
        timing = record.timing
        if record.update.gradients:
            self._tables["gradients"].append(gradient_rows(record))
        self._tables["episodes"].append(episode_rows(record))
        parts = (timing.collect, timing.update, timing.evaluate)
        rate = record.steps / max(timing.collect + timing.update, 1e-9)
        self._tables["timing"].append([(record.iteration, timing.elapsed, *parts, rate)])
        self._tables["metrics"].append([metrics_row(record)])

    def add_evaluation(self, record: Evaluation) -> bool:
        """Append an evaluation to evaluations.csv; say whether it is the best so far."""
        self._tables["evaluations"].append([evaluation_row(record)])
        return self._judge(record.returns.mean, record.iteration)

    def save(self, checkpoint: checkpoints.Checkpoint, *, best: bool, keep: int, every: int | None) -> None:
        """Write a checkpoint once the rows that lead to it are safe, then delete those no longer kept."""
        for table in self._tables.values():
            table.sync()
        path = self.checkpoints / checkpoints.file_name(checkpoint.counters["iteration"])
        latest = self.checkpoints / "latest.json"
        if not path.exists():
            checkpoints.save(self.checkpoints, checkpoint)
        elif not latest.exists() or read_json(latest).get("file") != path.name:
            checkpoints.point(latest, path, checkpoints.digest_of(path))
        if best:
            checkpoints.point(self.checkpoints / "best.json", path, checkpoints.digest_of(path))
        self._delete_old(path, keep, every)

    def add_reproduction(self, name: str, program: str) -> Path:
        """Write a program in which a fault of the environment happens again, and say where."""
        folder = self.path / "crash"
        make_folder(folder)
        write_whole(folder / f"{name}.py", program.encode())
        return folder / f"{name}.py"

    def mark_inexact(self) -> None:
        """Say in run.json that the run is not what it would have been without an interruption."""
        write_json(self.path / "run.json", read_json(self.path / "run.json") | {"exact": False})

    def set_status(self, status: str, **more: object) -> None:
        """Write status.json."""
        write_json(self.path / "status.json", {"status": status, **more})

    def close(self) -> None:
        """Close the tables."""
        for table in self._tables.values():
            table.close()

    def _judge(self, mean_return: float, iteration: int) -> bool:
        if self.best is None or mean_return > self.best[0]:
            self.best = (mean_return, iteration)
            return True
        return False

    def _point_to_best(self) -> None:
        """Let best.json name what is there: going on from an earlier checkpoint, a run may lose its best."""
        best = self.checkpoints / "best.json"
        path = self.checkpoints / checkpoints.file_name(self.best[1]) if self.best else None
        if path is None or not path.exists():
            best.unlink(missing_ok=True)
        elif not best.exists() or read_json(best).get("file") != path.name:
            checkpoints.point(best, path, checkpoints.digest_of(path))

    def _remove_temporary(self) -> None:
        for folder in (self.path, self.checkpoints, self.path / "crash"):
            remove_temporary(folder)

    def _delete_old(self, newest: Path, keep: int, every: int | None) -> None:
        """Keep the newest `keep` of the regular ones, the newest of all, and the best."""
        files = checkpoints.list_checkpoints(self.checkpoints)
        regular = [
            path for path in files if path == newest or checkpoints.iteration_of(path) % (every or sys.maxsize) == 0
        ]
        kept = {newest, *regular[-keep:]}
        if self.best is not None:
            kept.add(self.checkpoints / checkpoints.file_name(self.best[1]))
        for path in files:
            if path not in kept:
                path.unlink()


def tables_of(config: Config) -> dict[str, list[str]]:
    """Name the tables that a run with this config writes, and their columns."""
    return TABLES if config.diagnostics.every is None else ALL_TABLES


def metrics_row(record: Iteration) -> list[Cell]:
    """Give the row of metrics.csv of an iteration."""
    returns = record.returns
    values: dict[str, Cell] = {
        "iteration": record.iteration,
        "env_steps": record.env_steps,
        "episodes": record.episode_count,
        "length_mean": record.length_mean,
        "discounted_return_mean": record.discounted_return_mean,
    } | vars(record.update)
    if returns is not None:
        values |= {
            "return_mean": returns.mean,
            "return_standard_error": returns.standard_error,
            "return_standard_deviation": returns.standard_deviation,
            "return_min": returns.min,
            "return_max": returns.max,
        }
    return [values.get(column) for column in METRICS]


def episode_rows(record: Iteration) -> list[tuple[Cell, ...]]:
    """Give the rows of episodes.csv of an iteration."""
    return [
        (record.iteration, e.episode, e.episode_return, e.discounted_return, e.length, e.ended) for e in record.episodes
    ]


def gradient_rows(record: Iteration) -> list[tuple[Cell, ...]]:
    """Give the rows of gradients.csv of an iteration."""
    return [(record.iteration, record.env_steps, *vars(estimate).values()) for estimate in record.update.gradients]


def evaluation_row(record: Evaluation) -> tuple[Cell, ...]:
    """Give the row of evaluations.csv of an evaluation."""
    returns = record.returns
    return (
        *(record.iteration, record.env_steps, record.mode, returns.n),
        *(returns.mean, returns.standard_error, returns.standard_deviation, record.length_mean),
        *(returns.median, returns.min, returns.max, record.discounted_return_mean),
    )


def elapsed_seconds(path: Path, iteration: int) -> float:
    """Read from timing.csv how many seconds the first `iteration` iterations took; 0 if it does not say."""
    rows = _column(path / "timing.csv", "elapsed_seconds")
    return max((seconds for number, seconds in rows if number < iteration), default=0.0)


def move_aside(path: Path) -> Path:
    """Rename a run directory to `NAME~1` (`~2`, …); nothing is deleted. Of a link, the link is renamed."""
    if Path.cwd().is_relative_to(path.resolve()):
        raise RunDirectoryError(f"{path}: is the folder that you are in", "move it aside from outside")
    path = path if path.is_symlink() else path.resolve()
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}~{number}")):
        number += 1
    path.rename(aside)
    sync_folder(path.parent)
    return aside


def is_run(path: Path) -> bool:
    """Say whether a folder holds a run."""
    return any((path / name).exists() for name in ("config.yaml", "metrics.csv", "checkpoints"))


def find_checkpoint(path: Path, which: str = "latest") -> Path:
    """Find the checkpoint that a user means: a file, or the latest, best or N-th one of a run directory.

    Raises: CheckpointError if there is none, or if it is damaged.
    """
    with storage(path):
        if path.is_dir():
            return _find_in(path, which)
        if not path.is_file():
            what = "neither a file nor a folder" if path.exists() else "no such file or run directory"
            raise CheckpointError(f"{path}: {what}")
    if which != "latest":
        raise UsageError(f"{path}: is one checkpoint; --which chooses among those of a run directory")
    return path


def _find_in(path: Path, which: str) -> Path:
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    files = checkpoints.list_checkpoints(folder)
    if which.isdigit():
        kept = {str(checkpoints.iteration_of(file)): file for file in files}
        if (found := kept.get(which.lstrip("0") or "0")) is None:
            hint = f"kept: {', '.join(kept)}" if kept else ""
            raise CheckpointError(f"{path}: keeps no checkpoint of iteration {which}", hint)
        return found
    if which not in ("latest", "best"):
        raise CheckpointError(f"`{which}` is no checkpoint", "use latest, best, or the number of an iteration")
    if (folder / f"{which}.json").exists():
        return checkpoints.follow(folder / f"{which}.json")
    if not files:
        runs = sorted(run for run in path.iterdir() if is_run(run))
        hint = f"name one of its runs: {runs[0]}" if runs else "name a run directory that `pgcli train` made"
        raise CheckpointError(f"{path}: has no checkpoint", hint)
    if which == "best":
        raise CheckpointError(f"{path}: has no best checkpoint", "--which latest is there")
    return files[-1]  # the pointer is a help, and each checkpoint proves itself


def _has_rows(path: Path) -> bool:
    if not path.exists():
        return False
    with open_file(path) as file:
        return bool(file.readline() and file.readline())


def _column(path: Path, column: str) -> list[tuple[int, float]]:
    """Read a column of a table: (iteration, value) of each row."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, ["iteration", column])
            first, place = header.index("iteration"), header.index(column)
            return [(int(row[first]), float(row[place])) for row in rows if row]
    except (ValueError, IndexError, csv.Error):
        raise RunDirectoryError(f"{path}: damaged: `{column}` of some row is no number") from None


def _config_text(config: Config, path: Path) -> bytes:
    name = f"{path.name}/config.yaml" if path.name.isprintable() else "config.yaml"  # a comment ends with its line
    return f"# pgcli train {name} repeats this run\n{to_yaml(config)}".encode()


def _circumstances(config: Config, command: list[str], reward_threshold: float | None) -> dict[str, Any]:
    return {
        "pgcli": __version__,
        "command": command,
        "seed": config.seed,
        "env": config.env.id,
        "reward_threshold": reward_threshold,
        "exact": True,
        "versions": versions(),
        "git_commit": _git_commit(),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def versions() -> dict[str, str]:
    """Name the versions that the bytes of a run depend on."""
    import gymnasium
    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "numpy": numpy.__version__,
    }


def _git_commit() -> str | None:
    """Name the commit of the folder that training was started in, if it is under git."""
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
