"""One writer per run directory."""

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
    """Hold `folder` for this process. The system lets go when the process ends, however it ends.

    Raises: RunInUse, which names the holder; RunDirectoryError where the file system has no locks, as some of clusters.
    On systems without flock (Windows) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / ".lock", "a+", opener=lambda path, flags: os.open(path, flags, FILE_MODE)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunInUse(f"{folder} is in use by {_holder(file.read())}", "wait for it, or stop it") from None
        except OSError as error:
            what = f"{folder}: cannot be locked: {error.strerror}"
            raise RunDirectoryError(what, "its file system has no locks; --run-dir names a folder on another") from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        file.flush()
        yield


def is_held(folder: Path) -> bool | None:
    """Say whether a process writes the run in `folder`, without writing anything; None where that cannot be known."""
    try:
        import fcntl

        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return None
    return False


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
