"""Write and read the tables of a run, its CSV files.

A table has a header and one row per record, ordered by iteration. records.py declares the columns. Rows are appended,
so a crash may leave an incomplete line, or zeros, at the end; resuming truncates the file there. Tables are read in
blocks of lines: only the requested columns need memory.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pgcli.config import Config
from pgcli.errors import RunDirectoryError, UsageError, closest, typed
from pgcli.records import COLUMNS, OPTIONAL, STOPPED_BY, TABLES, Cell, Evaluation, Iteration, columns, more_columns
from pgcli.runs.files import Folder, naming, open_file, write_all
from pgcli.system.turns import sync_file

Array = NDArray[np.float64]
Words = NDArray[np.object_]  # of str
_BLOCK = 2**19  # bytes read at once
_MAX_HEADER = 2**16  # bytes of the names of the columns
_MAX_LINE = 2**22  # bytes of a line
_MAX_SKIPPED = 2**28  # bytes of a damaged line
_MAX_DIGITS = 15  # of an integer that float64 represents exactly


def tables_of(config: Config) -> list[str]:
    """Return the names of the tables that a run with this config writes."""
    return [name for name in TABLES if name != "gradients" or config.diagnostics.every is not None]


def optional_metrics(config: Config) -> list[str]:
    """Return the optional columns of metrics.csv that a run with this config has."""
    optimizer = config.optimizer
    present = {
        "kl_coef": config.algorithm.has_adaptive_kl,
        "step_kl": optimizer.name == "natural",
        "backtracks": optimizer.line_search,
        "rejected_steps": optimizer.name == "natural",
    }
    return [name for name in OPTIONAL if present[name]]


def header_of(name: str, more: Sequence[str] = ()) -> list[str]:
    """Return the names of a table's columns: its own, then `more`."""
    return [column.name for column in columns(name, more)]


def more_of(name: str, header: Sequence[str]) -> list[str] | None:
    """Return the additional columns of a header; None if it is not a header of this table."""
    own = header_of(name)
    return list(header[len(own) :]) if list(header[: len(own)]) == own else None


def check_info_names(config: Config) -> None:
    """Raise UsageError for a name of `logging.info` or `evaluation.stop_at` that cannot be a column."""
    known = {name: header_of(name, [STOPPED_BY.name, *OPTIONAL]) for name in ("metrics", "evaluations", "episodes")}
    for name in config.logging.info or ():
        if any(name in header for header in known.values()):
            raise UsageError(f"logging.info: the column `{name}` already exists", "remove it")
    numbers = [name for name in known["evaluations"] if not COLUMNS[name].metric.text]
    for name in config.evaluation.stop_at:
        if name not in (*numbers, *config.info_names):
            close = closest(name, (*numbers, *config.info_names))
            hint = f"did you mean `{close}`?" if close else f"`logging.info: [{name}]` adds a column from info"
            raise UsageError(f"evaluation.stop_at: evaluations.csv has no column `{name}`", hint)


# ------------------------------------------------------------------------------------------------------------- writing


def rows_of(
    record: Iteration | Evaluation, more: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[list[Cell]]]:
    """Return the rows that a record adds to each table; metrics.csv is last, to complete the record.

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
    """Format rows as CSV: floats by `repr`, which is exact, and None as an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class TableWriter:
    """Appends rows to a CSV file; writes the header of a new file."""

    def __init__(self, folder: Folder, name: str, header: Sequence[str]) -> None:
        self._folder, self._name, self.path = folder, name, folder.path / name
        self._descriptor = folder.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._synced = False
        if os.fstat(self._descriptor).st_size == 0:
            self.append([header])

    def append(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Add rows and pass them to the operating system, so that they survive a kill."""
        self._synced = False
        try:
            write_all(self._descriptor, as_csv(rows).encode())
            if not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "was deleted during the run")
        except OSError as error:
            error.filename = str(self.path)
            raise

    def sync(self) -> None:
        """Make the rows survive a power loss. Raises: OSError if the file was replaced."""
        if not self._synced:
            with naming(self.path):
                if not self._folder.holds(self._name, self._descriptor):
                    raise FileNotFoundError(errno.ENOENT, "was deleted or replaced during the run")
                sync_file(self._descriptor)
            self._synced = True

    def close(self) -> None:
        """Close the file."""
        with naming(self.path):
            os.close(self._descriptor)


class RunTables:
    """The tables of a run, open for appending."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._open: dict[str, TableWriter] = {}

    def open(self, config: Config, info: Sequence[str]) -> None:
        """Open the tables, with a column for each name in `info`."""
        metrics = optional_metrics(config)
        self._config, self._more = config, more_columns(info, stops=config.evaluation.stops, metrics=metrics)
        for name in tables_of(config):
            file, header = f"{name}.csv", header_of(name, self._more.get(name, ()))
            if read_header(self._folder.path / file) not in ([], header):
                set_columns(self._folder, file, header)
            self._open[name] = TableWriter(self._folder, file, header)
        self._folder.sync()

    def append(self, record: Iteration | Evaluation) -> None:
        """Append the rows of a record.

        The first evaluation shows which of the default names of `logging.info` the environment reports.
        """
        config, is_first = self._config, isinstance(record, Evaluation) and record.iteration == 0
        if is_first and record.info and config.logging.info is None:
            self.close()
            self.open(config, [name for name in config.info_names if name in record.info])
        for name, rows in rows_of(record, self._more).items():
            if rows:
                self._open[name].append(rows)

    def sync(self) -> None:
        """Make all rows survive a power loss."""
        for table in self._open.values():
            table.sync()

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Table:
    """Columns of a CSV file, each [rows]: numbers, nan where a cell is empty, and words."""

    path: Path
    header: list[str] = field(default_factory=list)
    rows: int = 0
    numbers: dict[str, Array] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)
    cut: bool = False  # the last line is incomplete, and was skipped

    def __getitem__(self, name: str) -> Array:
        """Return a column of numbers; all nan if the file lacks it."""
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


class TableFile:
    """A table, read once in blocks of whole lines.

    Attributes: header, the names of the columns, empty if the first line has no end; line, the number of whole lines
    before the block; cut, whether the last line has no end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.readline(_MAX_HEADER)
        self.head = head if head.endswith(b"\n") else b""
        self.header = self.head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").strip().split(",")
        self.line, self.cut = 1, bool(head) and not self.head

    def blocks(self, *, skip_damage: bool = False) -> Iterator[bytes]:
        """Yield whole lines, at least one at a time, without the last line end. Raises: _Damage."""
        rest, skipped = b"", 0
        while block := self._file.read(_BLOCK):
            if skipped:  # within a line that is too long
                _, end, block = block.partition(b"\n")
                skipped = 0 if end else skipped + _BLOCK
                if skipped > _MAX_SKIPPED:
                    break
            lines, end, rest = (rest + block).rpartition(b"\n")
            if end:
                yield lines
                self.line += lines.count(b"\n") + 1
            if len(rest) > _MAX_LINE:
                if not skip_damage:
                    raise _Damage(0, f"is longer than {_MAX_LINE // 2**20} MiB")
                rest, skipped = b"", len(rest)
        self.cut = self.cut or bool(rest or skipped)

    def columns(self, names: Collection[str]) -> dict[str, bool]:
        """Return the columns among these and `iteration`, in order, and whether they are words."""
        wanted = {"iteration", *names}
        return {name: name in COLUMNS and COLUMNS[name].metric.text for name in self.header if name in wanted}

    def read(self, texts: dict[str, bool], *, skip_damage: bool = False) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield columns block by block: words where `texts` is true, otherwise numbers. Raises: _Damage."""
        for lines in self.blocks(skip_damage=skip_damage):
            if block := dict(_columns_of(lines, self.header, texts, skip_damage)):
                yield block


@contextmanager
def table_file(path: Path) -> Iterator[TableFile]:
    """Open a table. Errors name the file and the damaged line. Raises: RunDirectoryError."""
    hint = f"`pgcli verify {typed(path.parent)}` checks the other files of the run"
    found = None
    try:
        with open_file(path) as file:
            found = TableFile(file)
            yield found
    except _Damage as damage:
        line = (found.line if found else 0) + 1 + damage.line
        raise RunDirectoryError(f"{path}: damaged: line {line} {damage.what}", hint) from None
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: is missing", hint) from None
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None


def read_table(
    path: Path, names: Collection[str] | None = COLUMNS.keys(), *, whole: bool = False, skip_damage: bool = False
) -> Table:
    """Read columns of a table. Skip an incomplete last line, which may still be written.

    Args:
        path: the CSV file.
        names: the columns to read in addition to `iteration`, if the file has them; None: all.
        whole: the run has ended, so an incomplete line is damage.
        skip_damage: skip damaged lines, and read a word instead of a number as an empty cell.
    Raises: RunDirectoryError if the file is missing or has no header, or, without `skip_damage`, if a line has zeros,
        another number of cells than the header, or a word instead of a number; it names the line.
    """
    with table_file(path) as file:
        if "iteration" not in file.header:
            if skip_damage or not (whole or file.head):
                return Table(path, file.header if file.head else [])
            hint = f"`pgcli verify {typed(path.parent)}` checks the other files of the run"
            raise RunDirectoryError(f"{path}: has no header with the column names", hint)
        texts = file.columns(file.header if names is None else names)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in texts}
        for block in file.read(texts, skip_damage=skip_damage):
            for name, part in block.items():
                parts[name].append(part)
        if file.cut and whole:
            raise _Damage(0, "is incomplete")
    found = {name: _joined(parts.pop(name), object if text else np.float64) for name, text in texts.items()}
    return Table(
        path,
        file.header,
        len(found["iteration"]),
        {name: column for name, column in found.items() if not texts[name]},
        {name: column for name, column in found.items() if texts[name]},
        cut=file.cut,
    )


def _joined(parts: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
    """Concatenate parts, and free each part after copying it, to save memory."""
    whole, end = np.empty(sum(map(len, parts)), kind), 0
    for number, part in enumerate(parts):
        whole[end : end + len(part)] = part
        end += len(part)
        parts[number] = part[:0].copy()
    return whole


def _columns_of(
    lines: bytes, header: list[str], texts: dict[str, bool], skip_damage: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield columns of whole lines, words or numbers. Raises: _Damage, without `skip_damage`."""
    try:
        block = Cells(lines, len(header))
    except _Damage:
        if not skip_damage:
            raise
        commas = len(header) - 1
        lines = b"\n".join(line for line in lines.split(b"\n") if line.count(b",") == commas and b"\0" not in line)
        if not lines:
            return
        block = Cells(lines, len(header), skip_damage=True)
    for place, name in enumerate(header):
        if name in texts and header.index(name) == place:
            column = block.words(place) if texts[name] else block.numbers(place, skip_damage)
            if name == "iteration" and not skip_damage and not (fine := (column >= 0) & (column % 1 == 0)).all():
                raise _Damage(int(np.argmin(fine)), f"has `{column[np.argmin(fine)]}` instead of an iteration")
            yield name, column


class Cells:
    """The cells of whole lines; `ends` [rows, columns] are the positions after each cell."""

    def __init__(self, lines: bytes, width: int, *, skip_damage: bool = False) -> None:
        """Find the cells. Raises: _Damage unless each line has `width` cells, no zeros, and is UTF-8."""
        if (zero := lines.find(b"\0")) >= 0:
            raise _Damage(lines.count(b"\n", 0, zero), "has zeros")
        if not (lines.isascii() or skip_damage):
            try:
                lines.decode()
            except UnicodeDecodeError as error:
                raise _Damage(lines.count(b"\n", 0, error.start), "is not UTF-8") from None
        self.text = np.frombuffer(lines + b"\n", np.uint8)
        is_end = self.text == ord("\n")
        places = np.flatnonzero(is_end | (self.text == ord(",")))
        found = is_end[places]
        if len(places) % width or not found[width - 1 :: width].all() or found.sum() * width != len(places):
            counts = np.diff(np.flatnonzero(found), prepend=-1)
            wrong = np.flatnonzero(counts != width).tolist()[0]
            raise _Damage(wrong, f"has {counts[wrong]} cells instead of {width}")
        self.ends = places.reshape(-1, width)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The positions of the first bytes of the cells, [rows, columns]."""
        return np.concatenate(([0], self.ends.reshape(-1)[:-1] + 1)).reshape(self.ends.shape)

    def _column(self, place: int) -> bytes:
        """Return the cells of a column, with a comma after each."""
        change = np.zeros(len(self.text) + 1, np.int8)
        change[self.starts[:, place]] += 1
        change[self.ends[:, place] + 1] -= 1
        inside = np.cumsum(change[:-1], dtype=np.int8).view(np.bool_)
        return self.text[inside].tobytes().replace(b"\n", b",")

    def words(self, place: int) -> Words:
        """Return a column as text; equal words are one object."""
        seen: dict[bytes, str] = {}
        cells = self._column(place).split(b",")[:-1]
        words = [seen.get(cell) or seen.setdefault(cell, cell.decode(errors="replace")) for cell in cells]
        return np.array(words, object)

    def numbers(self, place: int, skip_damage: bool = False) -> Array:
        """Return a column as numbers, nan where a cell is empty. Raises: _Damage, without `skip_damage`."""
        if (counts := self._counts(place)) is not None:
            return counts
        column = self._column(place)
        if (self.ends > self.starts)[:, place].all():
            with suppress(ValueError, DeprecationWarning), warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # of older versions of numpy, for a word
                values: Array = np.fromstring(column, np.float64, sep=",")  # the same as `float`, three times faster
                if len(values) == len(self.ends):
                    return values
        cells = column.split(b",")[:-1]
        values = np.full(len(cells), np.nan)
        for number, cell in enumerate(cells):
            try:
                values[number] = float(cell) if cell else np.nan
            except ValueError:
                if not skip_damage:
                    what = cell[:20].decode(errors="replace")
                    raise _Damage(number, f"has `{what}` instead of a number") from None
        return values

    def _counts(self, place: int) -> Array | None:
        """Return a column of integers or empty cells; None for other columns."""
        starts, ends = self.starts[:, place], self.ends[:, place]
        if (
            (ends - starts > 2).all()
            and (self.text[ends - 1] == ord("0")).all()
            and (self.text[ends - 2] == ord(".")).all()
        ):
            ends = ends - 2  # whole numbers as `repr` of a float writes them
        longest = int((ends - starts).max())
        if longest == 0:
            return np.full(len(starts), np.nan)
        if longest > _MAX_DIGITS or (ends == starts).any():
            return None
        values, shortest = np.zeros(len(starts), np.int64), int((ends - starts).min())
        for digit in range(longest):
            at = starts + digit
            digits = self.text[at if digit < shortest else np.minimum(at, ends)] - np.uint8(ord("0"))
            if digit < shortest:
                values = 10 * values + digits
            else:
                inside = at < ends
                digits[~inside] = 0
                values = np.where(inside, 10 * values + digits, values)
            if (digits > 9).any():
                return None
        return values.astype(np.float64)


def first_difference(a: Path, b: Path) -> dict[str, Any]:
    """Find the first different line of two tables: its iteration, and the different cells.

    Raises: OSError.
    """
    none: dict[str, Any] = {"same": False, "why": "", "iteration": None, "columns": {}}
    with open_file(a) as one, open_file(b) as other:
        header = one.readline(_MAX_LINE)
        if header != other.readline(_MAX_LINE):
            return none | {"why": "the columns differ"}
        for number, (x, y) in enumerate(itertools.zip_longest(_lines(one), _lines(other)), 2):
            if x == y:
                continue
            cells = [(line or b"").decode(errors="replace").rstrip("\n").split(",") for line in (header, x, y)]
            iteration = _iteration(x or y)
            if x is None or y is None:
                return none | {"why": f"{a if x is None else b} ends here", "iteration": iteration}
            columns = {name: [left, right] for name, left, right in zip(*cells, strict=False) if left != right}
            return none | {"why": f"line {number} differs", "iteration": iteration, "columns": columns}
    return none | {"same": True}


# ---------------------------------------------------------------------------------------------------------- truncating


def has_rows(path: Path) -> bool:
    """Return whether a table has more than a header."""
    if not path.exists():
        return False
    with open_file(path) as file:
        return bool(file.readline(_MAX_LINE).endswith(b"\n") and file.readline(1))


def lengths_before(folder: Path, iteration: int, episodes: int) -> dict[Path, int]:
    """Return the size in bytes of each table at the state after `iteration` updates.

    Raises: RunDirectoryError if a table has other columns, is damaged, or lacks rows.
    """
    lengths = {}
    for name in TABLES:
        path = folder / f"{name}.csv"
        rows, lengths[path] = length_before(path, header_of(name), iteration)
        expected = {"metrics": iteration, "episodes": episodes}.get(name, rows)
        if rows != expected or (name == "evaluations" and not rows and iteration):
            raise RunDirectoryError(
                f"{path}: has {rows} complete rows, but the checkpoint needs {expected or 1}",
                "the run cannot be resumed; --overwrite moves it aside and starts a new one",
            )
    return lengths


def read_header(path: Path) -> list[str]:
    """Return the names of a table's columns; [] if it is missing or has no complete header."""
    if not path.exists():
        return []
    with open_file(path) as file:
        found = TableFile(file)
    return found.header if found.head else []


def set_columns(folder: Folder, name: str, header: Sequence[str]) -> None:
    """Rewrite a table with other columns; new columns are empty."""
    with open_file(folder.path / name) as file:
        rows = list(csv.DictReader(file.read().decode().splitlines()))
    folder.write(name, as_csv([header, *([row.get(one, "") for one in header] for row in rows)]).encode())


def length_before(path: Path, header: Sequence[str], iteration: int) -> tuple[int, int]:
    """Return the number of complete rows before `iteration`, and their size in bytes.

    Raises: RunDirectoryError if the table does not begin with the columns of `header`, or has complete rows after
        damaged ones, which a crash does not cause.
    """
    if not path.exists():
        return 0, 0
    with open_file(path) as file:
        head = file.readline(_MAX_LINE)
        whole = head.endswith(b"\n")
        if whole and head.decode(errors="replace").rstrip("\n").split(",")[: len(header)] != list(header):
            raise RunDirectoryError(
                f"{path}: its columns differ from those of this version of pgcli",
                "continue with the version that started the run, or train in another --run-dir",
            )
        rows, end = 0, len(head) if whole else 0
        for number, line in enumerate(_lines(file), 2):
            is_whole = line.endswith(b"\n") and line.count(b",") == head.count(b",") and b"\0" not in line
            before = is_whole and (found := _iteration(line)) is not None and found < iteration
            if before and not whole:
                raise RunDirectoryError(f"{path}: damaged before line {number}")
            whole = whole and before
            if whole:
                rows, end = rows + 1, end + len(line)
    return rows, end


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, until one is too long for a row."""
    while line := file.readline(_MAX_LINE):
        yield line
        if len(line) == _MAX_LINE:
            return


def _iteration(line: bytes) -> int | None:
    first = line.partition(b",")[0]
    return int(first) if first.isdigit() and len(first) < 19 else None
