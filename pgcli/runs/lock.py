"""One writer per run directory: an operating-system lock on `.lock`, which names its process."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgcli.errors import RunDirectoryError, RunInUse
from pgcli.runs.files import Folder, NotRegular, open_file, opened, storage, write_all

_MAX_BYTES = 4096  # of a lock file: a process and a host
_BEGIN = b'{"pid"'


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[Folder]:
    """Lock the folder `path` for this process, and yield the open folder. `wait` for another process.

    The system unlocks the folder when the process ends, also when it is killed.
    Raises: RunInUse with the locking process; RunDirectoryError for a `.lock` that pgcli did not write, or a file
    system without locks, as on some clusters.
    """
    with storage(path), opened(path) as folder:
        descriptor = folder.open(".lock", os.O_RDWR | os.O_CREAT)
        try:
            _take(descriptor, path, wait=wait)
            _check_own(_content(descriptor), path)
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            holder = {"pid": os.getpid(), "host": platform.node()}
            write_all(descriptor, f" {json.dumps(holder)}".encode())  # Windows does not let others read byte 0
            yield folder
        finally:
            os.close(descriptor)


@contextmanager
def lock_to_read(path: Path) -> Iterator[None]:
    """Prevent other processes from writing the run in `path`, without writing anything.

    Raises: RunInUse, RunDirectoryError.
    """
    with storage(path):
        if (path / ".lock").is_symlink():
            raise NotRegular(path / ".lock", "is a link, not a regular file")
        try:
            file = open_file(path / ".lock")
        except FileNotFoundError:  # the run was copied here
            yield
            return
        with file:
            _take(file.fileno(), path)
            yield


def is_held(folder: Path) -> bool | None:
    """Return whether a process is writing the run in `folder`; None if unknown. Writes nothing."""
    from filelock import lock_descriptor

    try:
        with open_file(folder / ".lock") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _take(descriptor: int, path: Path, *, wait: bool = False) -> None:
    """Lock an open file; raise RunInUse with the process that locks it, or `wait` for that process."""
    from filelock import lock_descriptor  # `show` needs it only for a run that may be running

    try:
        is_mine = lock_descriptor(descriptor, blocking=wait)
    except OSError as error:
        what = f"{path}: cannot be locked: {error.strerror}"
        raise RunDirectoryError(what, "its file system does not support locks; choose a --run-dir on another") from None
    if not is_mine:
        raise RunInUse(f"{path} is in use by {_holder(_content(descriptor, 1))}", "wait until it ends, or stop it")


def _content(descriptor: int, start: int = 0) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, _MAX_BYTES)


def _check_own(content: bytes, path: Path) -> None:
    """Raise RunDirectoryError for a lock file of another program; a power loss may truncate ours."""
    text = content.strip(b" \0\n")
    if not (text.startswith(_BEGIN) or _BEGIN.startswith(text)):
        raise RunDirectoryError(
            f"{path}/.lock: pgcli did not write this file", "delete it, or choose another --run-dir"
        )


def _holder(content: bytes) -> str:
    """Return the process named in a lock file, if it still runs; readers do not write their names."""
    try:
        holder = json.loads(content)
        pid, host = int(holder["pid"]), str(holder["host"])
        if os.name == "posix" and host == platform.node():
            os.kill(pid, 0)
    except (ValueError, KeyError, TypeError, OverflowError, ProcessLookupError):
        return "another process"
    except PermissionError:  # of another user
        pass
    return f"process {pid} on {ascii(host[:80])[1:-1]}"
