"""Files that are whole or absent, and tables that grow by a row and can be cut back."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgcli.errors import RunDirectoryError


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Tell what the system says of a file (disk full, read-only, vanished) as a RunDirectoryError."""
    try:
        yield
    except OSError as error:
        home = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        free = f"{shutil.disk_usage(home).free:,} bytes are free there; what was saved before stands"
        message = f"{error.filename or path}: {error.strerror or error}"
        raise RunDirectoryError(message, free if full else "") from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power loss, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `content` to `path` so that a reader, after any crash, finds all of it or what was there before.

    The temporary name begins with a dot: no reader matches it. With `replace=False`, `path` must be a new name.
    Raises: OSError; FileExistsError for a name that is not new.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        written = Path(temporary).read_bytes()
        if hashlib.sha256(written).digest() != hashlib.sha256(content).digest():
            raise OSError(5, "the file does not hold what was written", str(path))
        if replace:
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        else:
            os.chmod(temporary, 0o666 & ~_umask())
            os.link(temporary, path)
            os.unlink(temporary)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as JSON for people and programs, whole or not at all."""
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise RunDirectoryError if the file is missing or something else."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise RunDirectoryError(f"{path}: {error.strerror}") from None
    except ValueError:
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
        self._file = open(path, "ab")  # noqa: SIM115 - open for the whole run
        if self._file.tell() == 0:
            self.append([columns])

    def append(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Add rows; they are in the hands of the operating system when this returns."""
        self._file.write(as_csv(rows).encode())
        self._file.flush()

    def sync(self) -> None:
        """Make the rows survive a power loss."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise RunDirectoryError if a table is there, begins with a whole line, and that line names other columns."""
    if not path.exists():
        return
    with path.open("rb") as file:
        line = file.readline()
    if line.endswith(b"\n") and line.decode(errors="replace") != f"{','.join(columns)}\n":
        raise RunDirectoryError(
            f"{path}: has other columns than this version of pgcli writes",
            "go on with the version that began the run, or train into another --run-dir",
        )


def cut_table(path: Path, iteration: int) -> int:
    """Cut a table back to the rows before `iteration`, and half a line with them; return how many rows remain."""
    if not path.exists():
        return 0
    rows, end = -1, 0  # the header is no row
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or (rows >= 0 and not _is_before(line, iteration)):
                break
            rows += 1
            end += len(line)
        file.truncate(end)
        os.fsync(file.fileno())
    return max(rows, 0)


def _is_before(line: bytes, iteration: int) -> bool:
    first = line.partition(b",")[0]
    return first.isdigit() and int(first) < iteration


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
