"""The tables of a run, column by column: fast for a million rows, strict about damage."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.errors import RunDirectoryError, typed
from pgcli.runs.files import open_file

Array = NDArray[np.float64]
Words = NDArray[np.bytes_]
_BLOCK = 2**23  # bytes read at once


@dataclass(frozen=True)
class Columns:
    """Columns of a CSV file, [rows]: numbers, nan where a cell is empty; and words, as bytes."""

    path: Path
    rows: int
    numbers: dict[str, Array]
    words: dict[str, Words]

    def __getitem__(self, name: str) -> Array:
        """Give a column of numbers, all nan if the file has no such column."""
        return self.numbers.get(name, np.full(self.rows, np.nan))


def read_columns(path: Path, numbers: Collection[str], words: Collection[str] = (), *, whole: bool = False) -> Columns:
    """Read some columns of a table of a run. A last line without its end is still being written, and left out.

    With `whole`, the run has ended, and such a line is damage. A column that the file lacks is left out.
    Raises: RunDirectoryError for a file that is missing or empty, and for a line that has not as many cells as the
    first or no number where one should be; it names the line.
    """
    run, line = path.parent, 1
    hint = f"`pgcli verify {typed(run)}` says what else is wrong with the run"
    try:
        with open_file(path) as file:
            head = file.readline()
            header = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").strip().split(",")
            if not head.endswith(b"\n") or "iteration" not in header:
                if whole or head.endswith(b"\n"):
                    raise RunDirectoryError(f"{path}: does not begin with the names of its columns", hint)
                return Columns(path, 0, {}, {})
            places = {name: header.index(name) for name in header if name in {*numbers, *words}}
            parts: dict[str, list[NDArray[Any]]] = {name: [] for name in places}
            rest = b""
            while block := file.read(_BLOCK):
                lines, end, rest = (rest + block).rpartition(b"\n")
                if end:
                    _check_cells(lines, len(header), path, line, hint)
                    cells = lines.replace(b"\n", b",").split(b",")
                    for name, place in places.items():
                        column = cells[place :: len(header)]
                        part = np.array(column, "S") if name in words else _floats(column, path, line, hint)
                        parts[name].append(part)
                    line += lines.count(b"\n") + 1
            if rest and whole:
                raise RunDirectoryError(f"{path}: damaged: line {line + 1} is cut short", hint)
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: is missing", hint) from None
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None
    found = {name: np.concatenate(part) if part else np.empty(0) for name, part in parts.items()}
    return Columns(
        path,
        line - 1,
        {name: column.astype(np.float64) for name, column in found.items() if name not in words},
        {name: column.astype("S") for name, column in found.items() if name in words},
    )


def _check_cells(lines: bytes, width: int, path: Path, line: int, hint: str) -> None:
    """Raise RunDirectoryError unless every one of the lines has `width` cells."""
    text = np.frombuffer(lines + b"\n", np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    commas = np.searchsorted(np.flatnonzero(text == ord(",")), ends)  # so many before each line's end
    counts = np.diff(commas, prepend=0) + 1
    if wrong := np.flatnonzero(counts != width).tolist():
        where = f"line {line + 1 + wrong[0]} has {counts[wrong[0]]} cells instead of {width}"
        raise RunDirectoryError(f"{path}: damaged: {where}", hint)


def _floats(cells: list[bytes], path: Path, line: int, hint: str) -> Array:
    """Turn cells into numbers; an empty one is nan."""
    if not any(cells):
        return np.full(len(cells), np.nan)
    try:
        return np.fromiter((float(cell) if cell else np.nan for cell in cells), np.float64, len(cells))
    except ValueError:
        number, cell = next((n, cell) for n, cell in enumerate(cells, line + 1) if cell and not _is_number(cell))
        shown = cell[:20].decode(errors="replace")
        raise RunDirectoryError(f"{path}: damaged: line {number} has `{shown}` for a number", hint) from None


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
