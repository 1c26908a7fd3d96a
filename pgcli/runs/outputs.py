"""Files that a user asks for: written whole or not at all, and never over an input, a run or another program's file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pgcli.errors import RunDirectoryError, typed
from pgcli.records import TABLES
from pgcli.runs.files import make_folder, open_file, storage, write_whole

CURVE_COLUMNS = ("label", "x", "n", "center", "low", "high")
# What files of pgcli have near their begin or end, by suffix.
_MARKS = {
    ".png": b"Software\0pgcli",
    ".svg": b"<dc:title>pgcli</dc:title>",
    ".pdf": b"/Creator (pgcli)",
    ".csv": ",".join(CURVE_COLUMNS).encode(),
    ".gif": b"pgcli",
    ".mp4": b"pgcli",
    ".onnx": b"pgcli_version",
    ".md": b"```\npgcli ",
}
_NEAR = 2**16  # bytes
_OF_A_RUN = {"config.yaml", "run.json", "status.json", ".lock", *(f"{name}.csv" for name in TABLES)}


def write_output(path: Path, content: bytes, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Write a file that a user asked for, and the folders above it. Raises: RunDirectoryError."""
    check_output(path, inputs=inputs, overwrite=overwrite)
    try:
        make_folder(path.parent)
        write_whole(path, content)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be written: {error.strerror}", "name another file") from None


def check_output(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raise RunDirectoryError if writing to `path` would destroy something that pgcli cannot write again.

    That is an input of the command, a file of a run, or, without `overwrite`, a file that pgcli did not make.
    """
    with storage(path):
        if not os.path.lexists(path):
            _check_run(path)
            return
        mode = path.lstat().st_mode
        if any(one.exists() and path.exists() and path.samefile(one) for one in inputs):
            raise RunDirectoryError(f"{path}: is an input of this command", "name another file")
        _check_run(path)
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise RunDirectoryError(f"{path}: is {what}", "name another file")
        if not (overwrite or is_ours(path)):
            raise RunDirectoryError(
                f"{path}: is there already, and pgcli did not make it", "name another file, or add --overwrite"
            )


def is_ours(path: Path) -> bool:
    """Return whether pgcli made a regular file, by a mark in it."""
    mark = _MARKS.get(path.suffix.lower())
    if mark is None or path.is_symlink():
        return False
    with open_file(path) as file:
        begin = file.read(_NEAR)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _NEAR))
        return begin.startswith(mark) if path.suffix.lower() == ".csv" else mark in begin or mark in file.read(_NEAR)


def _check_run(path: Path) -> None:
    """Raise RunDirectoryError for a name that a run has in its folder."""
    folder = path.parent
    run = folder.parent if folder.name in ("checkpoints", "crash") else folder
    if (path.name in _OF_A_RUN or run != folder) and (run / "run.json").exists():
        raise RunDirectoryError(f"{path}: is a file of the run {typed(run)}", "name a file outside the run")
