"""Config changes of a resumed run, and whether its results equal those of one long run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgcli.config import Config, to_data
from pgcli.config.order import differences
from pgcli.errors import RunDirectoryError

# Keys that a resumed run may change. HARMLESS: with the same bytes as one long run.
CHANGEABLE = ("training.", "optimizer.", "evaluation.", "checkpoint.", "sampling.", "diagnostics.")
BUDGETS = ("training.iterations", "training.env_steps", "training.seconds")
STOPPING = ("evaluation.stop_at", "evaluation.stop_evaluations", "evaluation.patience")  # and stop_at_return
HARMLESS = (*BUDGETS, "evaluation.every", *STOPPING, "checkpoint.", "sampling.", "diagnostics.")


def changes_of(config: Config, stored: Config, path: Path) -> list[str]:
    """Return the changes from `stored` to `config`, as `key=value`.

    Raises: RunDirectoryError: if a key differs that a run must keep.
    """
    changes = differences(result_config(stored), result_config(config))
    refused = [key for key in sorted(changes) if not key.startswith(CHANGEABLE)]
    if refused:
        raise RunDirectoryError(
            f"{path}: the run has another {', '.join(refused)}",
            "a run cannot change these; use another --run-dir, or --overwrite this one",
        )
    return [f"{key}={after}" for key, (_, after) in sorted(changes.items())]


def is_exact(config: Config, changes: list[str]) -> bool:
    """Return whether a run continues as if it had had these changes from the start."""
    rescheduled = not has_constant_schedules(config) and any(change.startswith(BUDGETS) for change in changes)
    return all(change.startswith(HARMLESS) for change in changes) and not rescheduled


def has_constant_schedules(config: Config) -> bool:
    """Return whether no schedule depends on the used share of the budget."""
    algorithm = config.algorithm
    schedules = {config.optimizer.schedule, algorithm.clip_range_schedule, algorithm.entropy_coef_schedule}
    return schedules == {"constant"}


def result_config(config: Config) -> dict[str, Any]:
    """Return the config as plain data without logging, which does not affect a checkpoint.

    `logging.info` stays, because it adds columns to the tables.
    """
    data = {key: value for key, value in to_data(config).items() if key != "logging"}
    return data if config.logging.info is None else data | {"logging": {"info": config.logging.info}}
