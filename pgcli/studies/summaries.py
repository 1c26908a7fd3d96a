"""The results of runs that a comparison needs, from their tables and status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgcli.report.statistics import Array
from pgcli.runs.information import read_information, read_status
from pgcli.runs.tables import Table, read_table
from pgcli.studies.page import RETURN


@dataclass(frozen=True)
class RunSummary:
    """The results of one run; `env_steps` and `values` [E] are its evaluations, of the compared column."""

    seed: int
    path: Path
    status: str
    reason: str
    env_steps: Array
    values: Array
    error: float  # standard error of the last evaluation; nan unless the values are mean returns
    steps: int  # trained
    iterations: int
    seconds: float
    steps_per_second: float
    threshold: float | None  # registered with the environment
    versions: str
    gradients: dict[str, tuple[float, float]]  # estimator: means of v and of |g|² - v over its measurements

    @property
    def finished(self) -> bool:
        """Whether the run completed its budget."""
        return self.status == "finished"

    @property
    def stopped(self) -> bool:
        """Whether a stopping rule ended the run before its budget."""
        return self.finished and self.reason.startswith(("stopped early", "reached a return"))  # the latter: earlier


def read_run(path: Path, seed: int, column: str = RETURN) -> RunSummary:
    """Read the results of a run in any state; of its evaluations, those with a number in `column`."""
    status = read_status(path) if (path / "status.json").exists() else {}
    state = str(status.get("status", "not started"))
    ended = state == "finished"
    evaluations = _read(path / "evaluations.csv", ("env_steps", column, "return_standard_error"), ended)
    evaluations = evaluations.pick(np.isfinite(evaluations[column]))
    metrics = _read(path / "metrics.csv", ("env_steps",), ended)
    timing = _read(path / "timing.csv", ("elapsed_seconds", "collect_seconds", "update_seconds"), ended)
    information = read_information(path) if (path / "run.json").exists() else {}
    value = information.get("reward_threshold")
    steps = int(metrics["env_steps"][-1]) if metrics.rows else 0
    worked = float(np.nansum(timing["collect_seconds"]) + np.nansum(timing["update_seconds"]))
    versions = {"pgcli": information.get("pgcli")} | dict(information.get("versions") or {})
    return RunSummary(
        seed,
        path,
        state,
        str(status.get("reason", "")),
        evaluations["env_steps"],
        evaluations[column],
        float(evaluations["return_standard_error"][-1]) if evaluations.rows and column == RETURN else math.nan,
        steps,
        metrics.rows,
        float(timing["elapsed_seconds"][-1]) if timing.rows else math.nan,
        steps / worked if worked else math.nan,
        float(value) if isinstance(value, int | float) else None,
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        _gradients(path / "gradients.csv", ended),
    )


def _read(path: Path, columns: Sequence[str], ended: bool) -> Table:
    """Read a table; an unfinished run may lack it."""
    return read_table(path, columns, whole=ended) if ended or path.exists() else Table(path)


def _gradients(path: Path, ended: bool) -> dict[str, tuple[float, float]]:
    if not path.exists():
        return {}
    table = read_table(path, ("estimator", "gradient_variance", "snr"), whole=ended)
    names = table.words.get("estimator", np.full(table.rows, "gradient"))
    signal = table["snr"] * table["gradient_variance"]
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = (names == name) & np.isfinite(signal)
        if rows.any():
            found[name] = float(table["gradient_variance"][rows].mean()), float(signal[rows].mean())
    return found
