"""One writer per run directory."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgcli.errors import RunInUse


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. The system lets go when the process ends, however it ends.

    Raises: RunInUse, which names the holder. On systems without flock (Windows) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunInUse(f"{folder} is in use by {_holder(file.read())}", "wait for it, or stop it") from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
