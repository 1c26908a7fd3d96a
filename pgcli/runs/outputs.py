"""Output files: written atomically, and never over inputs, runs or files of other programs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pgcli.errors import RunDirectoryError, typed
from pgcli.records import TABLES
from pgcli.runs.files import make_folder, open_file, storage, write_whole

CURVE_COLUMNS = ("label", "x", "n", "center", "low", "high")
# Marks near the beginning or end of files written by pgcli, by suffix.
_MARKS = {
    ".png": b"Software\0pgcli",
    ".svg": b"<dc:title>pgcli</dc:title>",
    ".pdf": b"/Creator (pgcli)",
    ".csv": ",".join(CURVE_COLUMNS).encode(),
    ".gif": b"pgcli",
    ".mp4": b"pgcli",
    ".onnx": b"pgcli_version",
    ".html": b'<meta name="generator" content="pgcli">',
    ".htm": b'<meta name="generator" content="pgcli">',
    ".md": b"```\npgcli ",
}
_NEAR = 2**16  # bytes
_OF_A_RUN = {"config.yaml", "run.json", "status.json", ".lock", *(f"{name}.csv" for name in TABLES)}


def write_output(path: Path, content: bytes, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Write an output file and its parent folders. Raises: RunDirectoryError."""
    check_output(path, inputs=inputs, overwrite=overwrite)
    try:
        make_folder(path.parent)
        write_whole(path, content)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be written: {error.strerror}", "choose another file") from None


def check_output(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raise RunDirectoryError if writing to `path` would destroy data.

    These are inputs of the command, files of a run, and, without `overwrite`, files that pgcli did not write.
    """
    with storage(path):
        if not os.path.lexists(path):
            _check_run(path)
            return
        mode = path.lstat().st_mode
        if any(one.exists() and path.exists() and path.samefile(one) for one in inputs):
            raise RunDirectoryError(f"{path}: is an input of this command", "choose another file")
        _check_run(path)
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise RunDirectoryError(f"{path}: is {what}", "choose another file")
        if not (overwrite or is_ours(path)):
            raise RunDirectoryError(
                f"{path}: already exists, and pgcli did not write it", "choose another file, or add --overwrite"
            )


def is_ours(path: Path) -> bool:
    """Return whether pgcli wrote a regular file, by a mark in it."""
    mark = _MARKS.get(path.suffix.lower())
    if mark is None or path.is_symlink():
        return False
    with open_file(path) as file:
        begin = file.read(_NEAR)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _NEAR))
        return begin.startswith(mark) if path.suffix.lower() == ".csv" else mark in begin or mark in file.read(_NEAR)


def _check_run(path: Path) -> None:
    """Raise RunDirectoryError for the name of a run's own file, or if a link leads out of a run."""
    for above in path.absolute().parents:
        inside = ".." not in path.absolute().relative_to(above).parts and (above / "run.json").exists()
        if inside and not path.parent.resolve().is_relative_to(above.resolve()):
            what = f"{path}: a link in this path leads out of the run {typed(above)}"
            raise RunDirectoryError(what, "replace the link by a folder, or choose a file outside the run")
    folder = path.parent
    run = folder.parent if folder.name in ("checkpoints", "crash") else folder
    if (path.name in _OF_A_RUN or run != folder) and (run / "run.json").exists():
        raise RunDirectoryError(f"{path}: is a file of the run {typed(run)}", "choose a file outside the run")
