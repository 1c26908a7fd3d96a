"""Read and validate run.json and status.json, which may come from other machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pgcli.errors import RunDirectoryError, closest, typed
from pgcli.runs.files import read_json

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Json(BaseModel):
    """A JSON object: unknown keys are kept; earlier versions lack some keys."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Resume(_Json):
    iteration: _Count
    command: list[str] = []
    overrides: list[str]


class _Information(_Json):
    pgcli: str | None = None
    reward_threshold: float | None = None
    exact: bool = True
    versions: dict[str, str | None] = {}
    resumes: list[_Resume] = []
    git_commit: str | None = None
    user_code: dict[str, str] = {}


class _Status(_Json):
    status: str
    iteration: _Count | None = None
    reason: str | None = None
    digests: dict[str, str] = {}
    sha256: str = ""


def read_information(path: Path) -> dict[str, Any]:
    """Read run.json of the run in `path`. Raises: RunDirectoryError with the file and the key."""
    return _read(path / "run.json", _Information)


def read_status(path: Path) -> dict[str, Any]:
    """Read status.json of the run in `path`. Raises: RunDirectoryError with the file and the key."""
    return _read(path / "status.json", _Status)


def find_run_hint(path: Path) -> str:
    """Return the hint for a path that is no run: the first run in it, or the most similar run directory."""
    found = Path(path.anchor)
    for part in path.relative_to(found).parts:
        name: str | None = part
        if not (found / part).is_dir():
            try:
                name = closest(part, sorted(child.name for child in found.iterdir() if child.is_dir()))
            except OSError:
                name = None
        if name is None:
            return "`pgcli train` prints the run directory that it writes"
        found /= name
    runs = [file.parent for pattern in ("", "*/", "*/*/") for file in sorted(found.glob(f"{pattern}config.yaml"))]
    if not runs or runs[0] == path:
        return "`pgcli train` prints the run directory that it writes"
    return f"name one of its runs: {typed(runs[0])}" if found == path else f"did you mean `{typed(runs[0])}`?"


def _read(file: Path, kind: type[_Json]) -> dict[str, Any]:
    hint = f"`pgcli verify {typed(file.parent)}` checks the other files of the run"
    try:
        data = read_json(file)
        kind.model_validate(data)
    except RunDirectoryError as error:
        error.hint = error.hint or hint
        raise
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        found, (rule, *_) = json.dumps(first["input"]), first["msg"].lower().split(" or instance of")
        shown = found if len(found) <= 40 else f"{found[:40]}…"
        raise RunDirectoryError(f"{file}: `{key}` is {shown}: {rule}", hint) from None
    return data
