"""The tables of a run: the one writer and the one reader of its CSV files.

A table has a header and one row per record, in the order of the iterations. records.py declares the columns. Rows are
appended, so a crash may leave half a line, or zeros, at the end; a resumed run truncates the file there.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.config import Config
from pgcli.errors import RunDirectoryError, UsageError, closest, typed
from pgcli.records import COLUMNS, STOPPED_BY, TABLES, Cell, Evaluation, Iteration, columns
from pgcli.runs.files import BINARY, FILE_MODE, naming, open_file, write_all, write_whole

Array = NDArray[np.float64]
Words = NDArray[np.object_]  # of str
_BLOCK = 2**23  # bytes read at once


def tables_of(config: Config) -> list[str]:
    """Return the names of the tables that a run with this config writes."""
    return [name for name in TABLES if name != "gradients" or config.diagnostics.every is not None]


def header_of(name: str, more: Sequence[str] = ()) -> list[str]:
    """Return the names of a table's columns: its own, then `more`."""
    return [column.name for column in columns(name, more)]


def more_of(name: str, header: Sequence[str]) -> list[str] | None:
    """Return the columns of a header beyond the table's own; None if it is no header of this table."""
    own = header_of(name)
    return list(header[len(own) :]) if list(header[: len(own)]) == own else None


def check_info_names(config: Config) -> None:
    """Raise UsageError for a name of `logging.info` or `evaluation.stop_at` that cannot be a column."""
    known = {name: header_of(name, [STOPPED_BY.name]) for name in ("metrics", "evaluations", "episodes")}
    for name in config.logging.info or ():
        if any(name in header for header in known.values()):
            raise UsageError(f"logging.info: `{name}` is a column already", "leave it out")
    numbers = [name for name in known["evaluations"] if not COLUMNS[name].metric.text]
    for name in config.evaluation.stop_at:
        if name not in (*numbers, *config.info_names):
            close = closest(name, (*numbers, *config.info_names))
            hint = f"did you mean `{close}`?" if close else f"`logging.info: [{name}]` makes a column of what info has"
            raise UsageError(f"evaluation.stop_at: evaluations.csv has no column `{name}`", hint)


# ------------------------------------------------------------------------------------------------------------- writing


def rows_of(
    record: Iteration | Evaluation, more: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[list[Cell]]]:
    """Return the rows that a record adds to each table; the row of metrics.csv, which completes it, is the last.

    Args: more: by table, the columns after its own.
    """
    of: dict[str, list[Any]]
    if isinstance(record, Evaluation):
        of = {"evaluations": [record]}
    else:
        gradients = [(record, estimate) for estimate in record.update.gradients]
        episodes = [(record, episode) for episode in record.episodes]
        of = {"gradients": gradients, "episodes": episodes, "timing": [record], "metrics": [record]}
    shown = {name: columns(name, (more or {}).get(name, ())) for name in of}
    return {name: [[column.value(one) for column in shown[name]] for one in ones] for name, ones in of.items()}


def as_csv(rows: Iterable[Sequence[Cell]]) -> str:
    """Write rows as lines of CSV: floats by `repr`, which reads back exactly, and None as an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class TableWriter:
    """Appends rows to a CSV file, which gets a header if it is new."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        with naming(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, FILE_MODE)
        self._synced = False
        if os.fstat(self._descriptor).st_size == 0:
            self.append([header])

    def append(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Add rows. The operating system has them when this returns, so that they survive the end of the process."""
        with naming(self.path):
            self._synced = False
            write_all(self._descriptor, as_csv(rows).encode())
            if not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "was deleted while the run was writing it")

    def sync(self) -> None:
        """Make the rows survive a power loss."""
        if not self._synced:
            with naming(self.path):
                os.fsync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        """Close the file."""
        with naming(self.path):
            os.close(self._descriptor)


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Table:
    """Columns of a CSV file, each [rows]: numbers, nan where a cell is empty, and words."""

    path: Path
    header: list[str] = field(default_factory=list)
    rows: int = 0
    numbers: dict[str, Array] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)
    cut: bool = False  # the last line has no end, and was left out

    def __getitem__(self, name: str) -> Array:
        """Return a column of numbers, all nan if the file lacks it."""
        return self.numbers.get(name, np.full(self.rows, np.nan))

    def pick(self, rows: NDArray[Any]) -> Table:
        """Return the rows of a mask or of indices."""
        numbers = {name: column[rows] for name, column in self.numbers.items()}
        words = {name: column[rows] for name, column in self.words.items()}
        return replace(self, rows=len(np.arange(self.rows)[rows]), numbers=numbers, words=words)


class _Damage(Exception):
    """A line of a table, counted from the first one of its block, is damaged."""

    def __init__(self, line: int, what: str) -> None:
        self.line, self.what = line, what


def read_table(
    path: Path,
    names: Collection[str] | None = COLUMNS.keys(),
    *,
    whole: bool = False,
    skip_damage: bool = False,
    as_text: bool = False,
) -> Table:
    """Read columns of a table. A last line without its end is still being written, and left out.

    Args:
        path: the CSV file.
        names: the columns to read besides `iteration`, as far as the file has them; None: all.
        whole: the run has ended, so half a line is damage, too.
        skip_damage: leave out damaged lines, and read a word instead of a number as an empty cell.
        as_text: read all columns of the file, as words.
    Raises: RunDirectoryError if the file is missing or has no header, or, without `skip_damage`, if a line has zeros,
        another number of cells than the header, or a word instead of a number; it names the line.
    """
    hint = f"`pgcli verify {typed(path.parent)}` says what else is wrong with the run"
    line, rest = 1, b""
    parts: dict[str, list[NDArray[Any]]] = {}
    try:
        with open_file(path) as file:
            head = file.readline()
            whole_head = head.endswith(b"\n")
            header = (
                head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").strip().split(",") if whole_head else []
            )
            if "iteration" not in header:
                if skip_damage or not (whole or whole_head):
                    return Table(path, header)
                raise RunDirectoryError(f"{path}: does not begin with the names of its columns", hint)
            wanted = {*header} if as_text or names is None else {"iteration", *names}
            texts = {
                name: as_text or (name in COLUMNS and COLUMNS[name].metric.text) for name in header if name in wanted
            }
            parts = {name: [] for name in texts}
            while block := file.read(_BLOCK):
                lines, end, rest = (rest + block).rpartition(b"\n")
                for name, part in _columns_of(lines, header, texts, skip_damage) if end else ():
                    parts[name].append(part)
                line += lines.count(b"\n") + bool(end)
            if rest and whole:
                raise _Damage(0, "is cut short")
    except _Damage as damage:
        raise RunDirectoryError(f"{path}: damaged: line {line + 1 + damage.line} {damage.what}", hint) from None
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: is missing", hint) from None
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None
    found = {name: np.concatenate(part) if part else np.empty(0) for name, part in parts.items()}
    return Table(
        path,
        header,
        len(found["iteration"]),
        {name: column.astype(np.float64) for name, column in found.items() if not texts[name]},
        {name: column.astype(object) for name, column in found.items() if texts[name]},
        cut=bool(rest),
    )


def _columns_of(
    lines: bytes, header: list[str], texts: dict[str, bool], skip_damage: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield columns of whole lines, words or numbers. Raises: _Damage, without `skip_damage`."""
    try:
        _check_cells(lines, len(header))
    except _Damage:
        if not skip_damage:
            raise
        commas = len(header) - 1
        lines = b"\n".join(line for line in lines.split(b"\n") if line.count(b",") == commas and b"\0" not in line)
        if not lines:
            return
    try:
        text = lines.decode(errors="replace" if skip_damage else "strict")
    except UnicodeDecodeError as error:
        raise _Damage(lines.count(b"\n", 0, error.start), "is not UTF-8") from None
    cells = text.replace("\n", ",").split(",")
    for place, name in enumerate(header):
        if name in texts and header.index(name) == place:
            column = cells[place :: len(header)]
            yield name, np.array(column, object) if texts[name] else _numbers(column, skip_damage)


def _check_cells(lines: bytes, width: int) -> None:
    """Raise _Damage unless each line has `width` cells and no zeros."""
    if (zero := lines.find(b"\0")) >= 0:
        raise _Damage(lines.count(b"\n", 0, zero), "has zeros")
    text = np.frombuffer(lines + b"\n", np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    commas = np.searchsorted(np.flatnonzero(text == ord(",")), ends)  # so many before each line's end
    counts = np.diff(commas, prepend=0) + 1
    if wrong := np.flatnonzero(counts != width).tolist():
        raise _Damage(wrong[0], f"has {counts[wrong[0]]} cells instead of {width}")


def _numbers(cells: list[str], skip_damage: bool) -> Array:
    """Turn cells into numbers, empty ones into nan."""
    if not any(cells):
        return np.full(len(cells), np.nan)
    try:
        return np.fromiter((float(cell) if cell else np.nan for cell in cells), np.float64, len(cells))
    except ValueError:
        values = np.full(len(cells), np.nan)
    for number, cell in enumerate(cells):
        try:
            values[number] = float(cell) if cell else np.nan
        except ValueError:
            if not skip_damage:
                raise _Damage(number, f"has `{cell[:20]}` for a number") from None
    return values


def first_difference(a: Path, b: Path) -> dict[str, Any]:
    """Find the first line in which two tables differ: its iteration, and the cells of the columns that differ in it.

    Raises: OSError.
    """
    none: dict[str, Any] = {"same": False, "why": "", "iteration": None, "columns": {}}
    with open_file(a) as one, open_file(b) as other:
        header = one.readline()
        if header != other.readline():
            return none | {"why": "they have other columns"}
        for number, (x, y) in enumerate(itertools.zip_longest(one, other), 2):
            if x == y:
                continue
            cells = [(line or b"").decode(errors="replace").rstrip("\n").split(",") for line in (header, x, y)]
            iteration = _iteration(x or y)
            if x is None or y is None:
                return none | {"why": f"{a if x is None else b} ends here", "iteration": iteration}
            columns = {name: [left, right] for name, left, right in zip(*cells, strict=False) if left != right}
            return none | {"why": f"they part in line {number}", "iteration": iteration, "columns": columns}
    return none | {"same": True}


# ---------------------------------------------------------------------------------------------------------- truncating


def has_rows(path: Path) -> bool:
    """Return whether a table has more than a header."""
    if not path.exists():
        return False
    with open_file(path) as file:
        return bool(file.readline() and file.readline())


def lengths_before(folder: Path, iteration: int, episodes: int) -> dict[Path, int]:
    """Return how many bytes of each table of a run led to the state after `iteration` updates and `episodes` episodes.

    Raises: RunDirectoryError if a table has other columns, is damaged, or lacks rows.
    """
    lengths = {}
    for name in TABLES:
        path = folder / f"{name}.csv"
        rows, lengths[path] = length_before(path, header_of(name), iteration)
        expected = {"metrics": iteration, "episodes": episodes}.get(name, rows)
        if rows != expected or (name == "evaluations" and not rows and iteration):
            raise RunDirectoryError(
                f"{path}: has {rows} whole rows, and the checkpoint needs {expected or 1}",
                "without them the run cannot go on; --overwrite moves it aside and starts anew",
            )
    return lengths


def read_header(path: Path) -> list[str]:
    """Return the names of a table's columns; none if it is missing or has no whole header."""
    if not path.exists():
        return []
    with open_file(path) as file:
        head = file.readline()
    return head.decode(errors="replace").rstrip("\n").split(",") if head.endswith(b"\n") else []


def set_columns(path: Path, header: Sequence[str]) -> None:
    """Rewrite a table, if it exists, with other columns: new ones are empty."""
    if path.exists():
        with naming(path):
            rows = list(csv.DictReader(path.read_text().splitlines()))
            write_whole(path, as_csv([header, *([row.get(name, "") for name in header] for row in rows)]).encode())


def length_before(path: Path, header: Sequence[str], iteration: int) -> tuple[int, int]:
    """Return how many whole rows before `iteration` a table begins with, and how many bytes that is.

    Raises: RunDirectoryError if it does not begin with the columns of `header`, or has more such rows after damaged
        ones, which no crash leaves.
    """
    if not path.exists():
        return 0, 0
    with open_file(path) as file:
        head = file.readline()
        whole = head.endswith(b"\n")
        if whole and head.decode(errors="replace").rstrip("\n").split(",")[: len(header)] != list(header):
            raise RunDirectoryError(
                f"{path}: has other columns than this version of pgcli writes",
                "go on with the version that began the run, or train into another --run-dir",
            )
        rows, end = 0, len(head) if whole else 0
        for number, line in enumerate(file, 2):
            is_whole = line.endswith(b"\n") and line.count(b",") == head.count(b",") and b"\0" not in line
            before = is_whole and (found := _iteration(line)) is not None and found < iteration
            if before and not whole:
                raise RunDirectoryError(f"{path}: damaged before line {number}")
            whole = whole and before
            if whole:
                rows, end = rows + 1, end + len(line)
    return rows, end


def truncate(path: Path, size: int) -> None:
    """Cut a file, if it exists, to `size` bytes, so that this survives a power loss."""
    if path.exists():
        with naming(path):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _iteration(line: bytes) -> int | None:
    first = line.partition(b",")[0]
    return int(first) if first.isdigit() and len(first) < 19 else None
