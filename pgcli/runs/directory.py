"""One run on disk: config.yaml, tables, run.json, status.json, checkpoints."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pgcli import __version__
from pgcli.config import Config, to_yaml
from pgcli.errors import CheckpointError, RunDirectoryError, UsageError
from pgcli.records import Evaluation, Iteration
from pgcli.runs import checkpoints
from pgcli.runs.files import Cell, Table, check_columns, cut_table, read_json, write_json, write_whole

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

TABLES = {"metrics": METRICS, "timing": TIMING, "evaluations": EVALUATIONS, "episodes": EPISODES}


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
        self.checkpoints.mkdir(exist_ok=True)
        self.cut(0)
        write_json(self.path / "run.json", _circumstances(config, command, reward_threshold))
        self.set_status("running")
        self.open_tables()

    def restart(
        self, config: Config, command: list[str], overrides: list[str], exact: bool, counters: dict[str, int]
    ) -> None:
        """Cut the run back to the state after `counters["iteration"]` updates and make ready to go on.

        Raises: RunDirectoryError if the tables have other columns or do not reach that far.
        """
        iteration = counters["iteration"]
        for name, columns in TABLES.items():
            check_columns(self.path / f"{name}.csv", columns)
        rows = self.cut(iteration)
        expected = {"metrics": iteration, "episodes": counters["episodes"], "evaluations": min(iteration, 1)}
        for name, least in expected.items():
            if rows[name] < least:
                raise RunDirectoryError(
                    f"{self.path / f'{name}.csv'}: has {rows[name]} whole rows, and the checkpoint needs {least}",
                    "without them the run cannot go on; --overwrite moves it aside and starts anew",
                )
        for path in checkpoints.list_checkpoints(self.checkpoints):
            if checkpoints.iteration_of(path) > iteration:
                path.unlink()
        run = read_json(self.path / "run.json")
        run["exact"] = bool(run.get("exact", True)) and exact
        run.setdefault("resumes", []).append({"iteration": iteration, "command": command, "overrides": overrides})
        write_json(self.path / "run.json", run)
        write_whole(self.path / "config.yaml", _config_text(config, self.path))
        self.set_status("running")
        self.open_tables()
        for row in _rows(self.path / "evaluations.csv"):
            self._judge(float(row["return_mean"]), int(row["iteration"]))

    def cut(self, iteration: int) -> dict[str, int]:
        """Cut every table back to the rows before `iteration`; return how many rows each has left."""
        return {name: cut_table(self.path / f"{name}.csv", iteration) for name in TABLES}

    def open_tables(self) -> None:
        """Open the tables for appending."""
        for name, columns in TABLES.items():
            self._tables[name] = Table(self.path / f"{name}.csv", columns)

    def add_iteration(self, record: Iteration) -> None:
        """Append an iteration to metrics.csv, timing.csv and episodes.csv."""
        timing = record.timing
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
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{name}.py", program.encode())
        return folder / f"{name}.py"

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
    rows = _rows(path / "timing.csv")
    return max((float(row["elapsed_seconds"]) for row in rows if int(row["iteration"]) < iteration), default=0.0)


def move_aside(path: Path) -> Path:
    """Rename a run directory to `NAME~1` (`~2`, …); nothing is deleted."""
    path = path.resolve()
    if Path.cwd().is_relative_to(path):
        raise RunDirectoryError(f"{path}: is the folder that you are in", "move it aside from outside")
    number = 1
    while (aside := path.with_name(f"{path.name}~{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def is_run(path: Path) -> bool:
    """Say whether a folder holds a run."""
    return any((path / name).exists() for name in ("config.yaml", "metrics.csv", "checkpoints"))


def find_checkpoint(path: Path, which: str = "latest") -> Path:
    """Find the checkpoint that a user means: a file, or the latest, best or N-th one of a run directory.

    Raises: CheckpointError if there is none, or if it is damaged.
    """
    if path.is_file():
        if which != "latest":
            raise UsageError(f"{path}: is one checkpoint; --which chooses among those of a run directory")
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or run directory")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if which.isdigit():
        found = folder / checkpoints.file_name(int(which))
        if not found.exists():
            kept = [str(checkpoints.iteration_of(file)) for file in checkpoints.list_checkpoints(folder)]
            raise CheckpointError(f"{path}: keeps no checkpoint of iteration {which}", f"kept: {', '.join(kept)}")
        return found
    if which not in ("latest", "best"):
        raise CheckpointError(f"`{which}` is no checkpoint", "use latest, best, or the number of an iteration")
    files = checkpoints.list_checkpoints(folder)
    if which == "latest" and files and not (folder / "latest.json").exists():
        return files[-1]  # the pointer is a help, and each checkpoint proves itself
    if not (folder / f"{which}.json").exists():
        runs = sorted(run.name for run in path.iterdir() if is_run(run))
        hint = f"name one of its runs: {path / runs[0]}" if runs else "name a run directory that `pgcli train` made"
        raise CheckpointError(f"{path}: has no checkpoint", hint)
    return checkpoints.follow(folder / f"{which}.json")


def _has_rows(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return bool(file.readline() and file.readline())


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _config_text(config: Config, path: Path) -> bytes:
    return f"# pgcli train {path.name}/config.yaml repeats this run\n{to_yaml(config)}".encode()


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
