"""Files that are whole or absent after any crash, and errors that name the file."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pgcli.errors import RunDirectoryError
from pgcli.system.limits import limit_of

TEMPORARY = ".writing-"
FILE_MODE, FOLDER_MODE = 0o664, 0o775  # at most, under any umask: nobody else writes into a run
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNABLE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)  # to open or to sync a folder
BINARY = getattr(os, "OBINARY", 0)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, read-only, file vanished) into a RunDirectoryError that names the file."""
    try:
        yield
    except OSError as error:
        if limit := limit_of(error):
            raise RunDirectoryError(*limit) from error
        hint = ""
        if error.errno in _FULL:
            home = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
            hint = f"{shutil.disk_usage(home).free:,} bytes are free there; what was saved before stands"
        raise RunDirectoryError(f"{error.filename or path}: {error.strerror or error}", hint) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError: a descriptor has no name, and a temporary name means nothing to a user."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raises: OSError, without waiting, for one that is not regular, such as a FIFO."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def sync_folder(folder: Path) -> None:
    """Make creations, renames and deletions in `folder` survive a power loss, where the system can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise


def make_folder(path: Path) -> None:
    """Make a folder and its parents, so that they survive a power loss."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(FOLDER_MODE, exist_ok=True)
        sync_folder(path.parent)


def write_whole(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `content` to `path`. After any crash, the file has either all of it or its old content.

    The temporary name begins with a dot: no reader matches it.
    Raises: OSError; FileExistsError if `path` exists, with `replace=False`.
    """
    if not replace and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with naming(path):
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        try:
            try:
                write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if Path(temporary).read_bytes() != content:
                raise OSError(errno.EIO, "the file does not hold what was written")
            os.chmod(temporary, FILE_MODE & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Delete the unfinished files of a killed process. The caller holds the lock of the run."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as indented JSON, whole or not at all."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode(errors="backslashreplace"))  # JSON's own escape for a name that is not UTF-8


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: RunDirectoryError if the file is missing or holds something else."""
    try:
        with open_file(path) as file:
            data = json.loads(file.read())
    except OSError as error:
        raise RunDirectoryError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RunDirectoryError(f"{path}: not JSON") from None
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path}: not a JSON object")
    return data


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, however little the system takes at once."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
