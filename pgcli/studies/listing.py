"""`pgcli ls`: the runs in folders, with their state and results."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.config import flat
from pgcli.config.yaml import parse, read_bytes
from pgcli.errors import ConfigError, RunDirectoryError, UsageError, closest
from pgcli.report.curves import find_runs
from pgcli.report.text import columns, duration, short
from pgcli.runs.information import read_information, read_status
from pgcli.runs.lock import is_held
from pgcli.runs.tables import read_table
from pgcli.studies.page import RETURN

Row = dict[str, Any]
SHOWN = ("run", "status", "iteration", "env_steps", "return", "best", "seconds", "tags", "note")
_COLUMNS = (*SHOWN, "seed", "name", "reason")  # of a row; keys of its config may follow
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def list_runs(folders: Sequence[Path], where: Sequence[str] = (), sort: str = "run") -> list[Row]:
    """Return the runs in folders that meet all conditions, sorted by a column or a config key.

    Numbers are sorted from the largest, and texts from A to Z; runs without a value are last. A damaged run is listed,
    with the damage as its reason.
    Args: where: conditions such as `status=finished`, `return>=400`, `tags=baseline` or `optimizer.learning_rate=0.01`.
    Raises: UsageError for an unknown column, RunDirectoryError for a folder without runs.
    """
    rows = [_row(path) for path in find_runs(folders)]
    names = [*_COLUMNS, *dict.fromkeys(key for row in rows for key in row["config"])]
    conditions = [_condition(text, names) for text in where]
    _check_name(sort, names)
    kept = [row for row in rows if all(condition(row) for condition in conditions)]
    return sorted(kept, key=lambda row: _order(_value(row, sort)))


def _row(path: Path) -> Row:
    row: Row = dict.fromkeys(_COLUMNS) | {"run": str(path), "status": "damaged", "tags": [], "note": "", "config": {}}
    try:
        config = parse(read_bytes(path / "config.yaml"), str(path / "config.yaml")).data
        if not isinstance(config, dict):
            raise RunDirectoryError(f"{path}/config.yaml: not a config")
        row |= {"config": flat(config), "seed": config.get("seed"), "name": config.get("name")}
        status = read_status(path)
        information = read_information(path)
        row |= {name: information[name] for name in ("tags", "note") if name in information}
        evaluations = read_table(path / "evaluations.csv", (RETURN,))
        metrics = read_table(path / "metrics.csv", ("env_steps",))
        timing = read_table(path / "timing.csv", ("elapsed_seconds",))
    except (ConfigError, RunDirectoryError, OSError) as error:
        return row | {"reason": str(error).partition("\n")[0].removeprefix("error: ")}
    returns = evaluations[RETURN][np.isfinite(evaluations[RETURN])].tolist()
    is_killed = status["status"] == "running" and is_held(path) is False
    return row | {
        "status": "killed" if is_killed else status["status"],
        "reason": status.get("reason"),
        "iteration": metrics.rows,
        "env_steps": int(metrics["env_steps"][-1]) if metrics.rows else 0,
        "return": returns[-1] if returns else None,
        "best": max(returns, default=None),
        "seconds": float(timing["elapsed_seconds"][-1]) if timing.rows else None,
    }


def _value(row: Row, name: str) -> Any:
    return row[name] if name in _COLUMNS else row["config"].get(name)


def _check_name(name: str, names: Sequence[str]) -> None:
    if name not in names:
        close = closest(name, names)
        hint = f"did you mean `{close}`?" if close else f"use {', '.join(_COLUMNS)}, or a config key"
        raise UsageError(f"runs have no column `{name}`", hint)


def _condition(text: str, names: Sequence[str]) -> Callable[[Row], bool]:
    """Parse a condition. Raises: UsageError."""
    found = re.match(r"([^<>=!]+)(<=|>=|!=|=|<|>)(.*)$", text, re.DOTALL)
    if found is None:
        raise UsageError(
            f"--where {text}: not a condition", "for example --where status=finished --where 'return>=400'"
        )
    name, sign, wanted = found[1].strip(), found[2], found[3].strip()
    _check_name(name, names)
    number = _number(wanted)
    if number is None and sign not in ("=", "!="):
        raise UsageError(f"--where {text}: `{wanted}` is not a number", "use = or != for text")

    def holds(row: Row) -> bool:
        value = _value(row, name)
        if isinstance(value, list) and sign in ("=", "!="):  # of tags: has this one
            return (wanted in map(str, value)) == (sign == "=")
        if number is not None and isinstance(value, int | float) and not isinstance(value, bool):
            return _COMPARE[sign](value, number)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return sign in ("=", "!=") and _COMPARE[sign](shown, wanted)

    return holds


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _order(value: Any) -> tuple[int, float, str]:
    """Return a key that sorts numbers from the largest, then texts from A to Z, then runs without a value."""
    if isinstance(value, int | float) and not math.isnan(value):
        return 0, -value, ""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
    return (1, 0.0, text) if text else (2, 0.0, "")


def listing_text(rows: Sequence[Row], more: Sequence[str] = ()) -> str:
    """Format runs as a table, with the additional columns or keys `more`.

    Columns without a value are left out.
    """
    names = [
        name for name in dict.fromkeys((*SHOWN, *more)) if any(_value(row, name) not in (None, "", []) for row in rows)
    ]
    cells = [[_cell(name, _value(row, name)) for name in names] for row in rows]
    return "\n".join(columns([[name.replace("_", " ") if name in _COLUMNS else name for name in names], *cells]))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return duration(value)
    if name in ("return", "best"):
        return short(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else " ".join(str(value).split())
