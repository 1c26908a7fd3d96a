"""One writer per run directory: a lock of the operating system on the file `.lock`, which names its holder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgcli.errors import RunDirectoryError, RunInUse
from pgcli.runs.files import FILE_MODE


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process. The system unlocks it when the process ends, also when it is killed.

    Raises: RunInUse, which names the holder; RunDirectoryError on a file system without locks, as some clusters have.
    """
    from filelock import lock_descriptor  # `show` needs it only for a run that may be running

    with open(folder / ".lock", "a+", opener=lambda path, flags: os.open(path, flags, FILE_MODE)) as file:
        try:
            is_mine = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            what = f"{folder}: cannot be locked: {error.strerror}"
            raise RunDirectoryError(what, "its file system has no locks; --run-dir names a folder on another") from None
        if not is_mine:
            file.seek(1)
            raise RunInUse(f"{folder} is in use by {_holder(file.read())}", "wait for it, or stop it")
        file.truncate(0)
        file.write(" " + json.dumps({"pid": os.getpid(), "host": platform.node()}))  # Windows lets no one read byte 0
        file.flush()
        yield


def is_held(folder: Path) -> bool | None:
    """Return whether a process writes the run in `folder`, without writing anything; None where that is unknown."""
    from filelock import lock_descriptor

    try:
        with open(folder / ".lock", "rb") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
