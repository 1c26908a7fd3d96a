"""Files that are whole or absent, and tables that grow by a row and can be cut back."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pgcli.errors import RunDirectoryError

TEMPORARY = ".writing-"
FILE_MODE, FOLDER_MODE = 0o664, 0o775  # at most, whatever the umask: nobody else writes into a run
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNABLE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)  # to open a folder, or to sync one
_BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Tell what the system says of a file (disk full, read-only, vanished) as a RunDirectoryError."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in _FULL:
            home = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
            hint = f"{shutil.disk_usage(home).free:,} bytes are free there; what was saved before stands"
        raise RunDirectoryError(f"{error.filename or path}: {error.strerror or error}", hint) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError speak of `path`: a descriptor has no name, and a temporary one tells a user nothing."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading. What is no regular file, such as a FIFO, is an OSError and not a wait."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or deleted in `folder` survive a power loss, where the system can."""
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
    """Make a folder, and those above it, so that they survive a power loss."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(FOLDER_MODE, exist_ok=True)
        sync_folder(path.parent)


def write_whole(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `content` to `path` so that a reader, after any crash, finds all of it or what was there before.

    The temporary name begins with a dot: no reader matches it. With `replace=False`, `path` must be a new name.
    Raises: OSError; FileExistsError for a name that is not new.
    """
    if not replace and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with _naming(path):
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        try:
            try:
                _write(descriptor, content)
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
    """Delete what a process that was killed had not finished writing. The caller holds the lock of the run."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as JSON for people and programs, whole or not at all."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode(errors="backslashreplace"))  # of a name that is no UTF-8: JSON's own escape


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise RunDirectoryError if the file is missing or something else."""
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


Cell = str | int | float | None


def as_csv(rows: Iterable[Sequence[Cell]]) -> str:
    """Write rows as the lines of a table: floats so that they read back exactly, nothing for None."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        ["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    return text.getvalue()


class Table:
    """A CSV file whose first column is the iteration, in order."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        with _naming(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY, FILE_MODE)
        self._synced = False
        if os.fstat(self._descriptor).st_size == 0:
            self.append([columns])

    def append(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Add rows; they are in the hands of the operating system when this returns."""
        with _naming(self.path):
            self._synced = False
            _write(self._descriptor, as_csv(rows).encode())
            if not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "was deleted while the run was writing it")

    def sync(self) -> None:
        """Make the rows survive a power loss."""
        if not self._synced:
            with _naming(self.path):
                os.fsync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        """Close the file."""
        with _naming(self.path):
            os.close(self._descriptor)


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise RunDirectoryError if a table is there, begins with a whole line, and that line names other columns."""
    if not path.exists():
        return
    with open_file(path) as file:
        line = file.readline()
    if line.endswith(b"\n") and line.decode(errors="replace") != f"{','.join(columns)}\n":
        raise RunDirectoryError(
            f"{path}: has other columns than this version of pgcli writes",
            "go on with the version that began the run, or train into another --run-dir",
        )


def rows_before(path: Path, iteration: int) -> tuple[int, int]:
    """Count the whole rows before `iteration` with which a table begins, and the bytes up to their end.

    Raises: RunDirectoryError if more of them come after something else, which no crash leaves.
    """
    if not path.exists():
        return 0, 0
    with open_file(path) as file:
        header = file.readline()
        whole = header.endswith(b"\n")
        rows, end = 0, len(header) if whole else 0
        for number, line in enumerate(file, 2):
            before = _is_before(line, iteration, header.count(b","))
            if before and not whole:
                raise RunDirectoryError(f"{path}: damaged before line {number}")
            whole = whole and before
            if whole:
                rows, end = rows + 1, end + len(line)
    return rows, end


def truncate(path: Path, size: int) -> None:
    """Cut a file, if it is there, to `size` bytes, durably."""
    if path.exists():
        with _naming(path):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _is_before(line: bytes, iteration: int, commas: int) -> bool:
    first, whole = line.partition(b",")[0], line.endswith(b"\n") and line.count(b",") == commas and b"\0" not in line
    return whole and first.isdigit() and len(first) < 19 and int(first) < iteration


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
