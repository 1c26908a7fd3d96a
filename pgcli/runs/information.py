"""Read and validate config.yaml, run.json and status.json of a run.

They may come from other machines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pgcli.config import Config, load_config
from pgcli.errors import ConfigError, RunDirectoryError, UsageError, closest, typed
from pgcli.runs.files import read_json, storage

_LONGEST_NOTE = 1000
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Json(BaseModel):
    """A JSON object: unknown keys are kept; earlier versions lack some keys."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Repository(_Json):
    repository: str
    commit: str | None = None
    dirty: bool | None = None
    diff: str = ""
    note: str = ""


class _Resume(_Json):
    iteration: _Count
    command: list[str] = []
    overrides: list[str]
    git: list[_Repository] = []


class _WarmStart(_Json):
    source: str
    checkpoint: str
    sha256: str
    iteration: _Count


class _Information(_Json):
    pgcli: str | None = None
    reward_threshold: float | None = None
    exact: bool = True
    versions: dict[str, str | None] = {}
    resumes: list[_Resume] = []
    git_commit: str | None = None
    tags: list[str] = []
    note: str = ""
    user_code: dict[str, str] = {}
    warm_start: _WarmStart | None = None
    git: list[_Repository] = []


class _Status(_Json):
    status: str
    iteration: _Count | None = None
    reason: str | None = None
    digests: dict[str, str] = {}
    sha256: str = ""


@dataclass(frozen=True)
class Labels:
    """The tags and the note that a user gives a run, for `pgcli ls`. They do not affect its results."""

    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class WarmStart:
    """The checkpoint from which a run took its first weights. All paths are absolute."""

    source: str  # as the user named it: a run directory or a checkpoint
    checkpoint: str
    sha256: str
    iteration: int

    def __str__(self) -> str:
        return f"{self.checkpoint} (sha256 {self.sha256[:12]})"


def check_labels(tags: Sequence[str], note: str) -> Labels:
    """Return the labels. Raises: UsageError for an empty tag, one with spaces or commas, or a long text."""
    for tag in tags:
        if not re.fullmatch(r"[^\s,=<>!]{1,60}", tag):
            raise UsageError(f"--tag {tag!r}: not a tag", "use a word of at most 60 characters without `,=<>!`")
    if len(note) > _LONGEST_NOTE:
        raise UsageError(f"--note: {len(note):,} characters", f"use at most {_LONGEST_NOTE:,}")
    return Labels(tuple(dict.fromkeys(tags)), note)


def with_labels(run: dict[str, Any], labels: Labels | None) -> dict[str, Any]:
    """Return the content of run.json with labels added: new tags, and a new note if there is one."""
    labels = labels or Labels()
    tags = list(dict.fromkeys([*run.get("tags", []), *labels.tags]))
    note = labels.note or run.get("note", "")
    return run | ({"tags": tags} if tags else {}) | ({"note": note} if note else {})


def with_code(run: dict[str, Any], code: dict[str, Any]) -> dict[str, Any]:
    """Return the content of run.json of a resumed run, with the code of its last resume.

    `git` stays that of the start. The resume has its own if it differs; earlier resumes keep no diff.
    """
    *earlier, last = run["resumes"]
    known = next((one["git"] for one in reversed(earlier) if one.get("git")), run.get("git"))
    found = code.get("git", known)
    if found != known:
        for repository in (one for resume in earlier for one in resume.get("git", [])):
            repository["diff"] = ""
        last["git"] = found
    return run | {"user_code": code.get("user_code", run.get("user_code", {}))}


def read_information(path: Path) -> dict[str, Any]:
    """Read run.json of the run in `path`. Raises: RunDirectoryError with the file and the key."""
    return _read(path / "run.json", _Information)


def recorded_start(path: Path) -> WarmStart | None:
    """Return the checkpoint from which the run in `path` started; None for new weights or without a run."""
    if not (path / "run.json").exists():
        return None
    found = read_information(path).get("warm_start")
    return found and WarmStart(*(found[one.name] for one in fields(WarmStart)))


def read_status(path: Path) -> dict[str, Any]:
    """Read status.json of the run in `path`. Raises: RunDirectoryError with the file and the key."""
    return _read(path / "status.json", _Status)


def stored_config(path: Path) -> Config:
    """Read the config of the run in `path`. Raises: RunDirectoryError, ConfigError."""
    with storage(path):
        if not (path / "config.yaml").is_file():
            is_run = any((path / name).exists() for name in ("metrics.csv", "checkpoints"))
            what = "has no config.yaml" if is_run else "not a run directory"
            raise RunDirectoryError(f"{path}: {what}", find_run_hint(path))
    return load_config(str(path / "config.yaml"))


def config_of_run(path: Path) -> Config:
    """Read the config of a run that does not continue.

    Raises: RunDirectoryError, also for an invalid config.
    """
    try:
        return stored_config(path)
    except ConfigError as error:
        hint = "another version of pgcli wrote it, or it was edited"
        raise RunDirectoryError(f"{path}/config.yaml: not a valid config: {error.message}", hint) from None


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
    levels = ("", "*/", "*/*/", "runs/*/*/", "*/runs/*/*/")  # the last ones: of a comparison, of a suite
    files = (file for level in levels for file in sorted(found.glob(f"{level}config.yaml")))
    run = next(files, Path()).parent
    if run in (Path(), path):
        return "`pgcli train` prints the run directory that it writes"
    return f"name one of its runs: {typed(run)}" if found == path else f"did you mean `{typed(run)}`?"


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
