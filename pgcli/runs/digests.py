"""Digests of a run's files: written to status.json at the end of the run, checked by `pgcli verify`.

A digest has sha256 and size. For a table it also has the number of rows and three sums over the cells, which locate
a single changed cell. With h(c) a hash of cell number c, counted row by row, they are Σ h, Σ c h and Σ c² h, mod 2^64.
One change adds d, c d and c² d: their ratio is c, and the third sum distinguishes one change from several.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.errors import RunDirectoryError, counted
from pgcli.records import TABLES
from pgcli.runs.files import json_bytes, open_file
from pgcli.runs.tables import Cells, table_file

DIGESTS, ITSELF = "digests", "sha256"  # the keys of status.json
_MODULUS = 2**64
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; 2^64 divided by the golden ratio


def own_files(path: Path) -> list[str]:
    """Return the names of the files written by a run, except status.json and logs of other tools."""
    names = ["config.yaml", "run.json", *(f"{name}.csv" for name in TABLES)]
    patterns = ("checkpoints/*.json", "checkpoints/iteration-*.safetensors", "crash/*.py")
    found = [path / name for name in names] + [file for pattern in patterns for file in sorted(path.glob(pattern))]
    return [file.relative_to(path).as_posix() for file in found if file.is_file()]


def digests_of(path: Path) -> dict[str, str]:
    """Return the digests of a run's files by their names. Raises: OSError, RunDirectoryError."""
    return {name: _digest(path / name) for name in own_files(path)}


def sealed(status: dict[str, Any]) -> bytes:
    """Return the content of status.json with its own digest."""
    return json_bytes({**status, ITSELF: hashlib.sha256(json_bytes(status)).hexdigest()})


def is_sealed(content: bytes, status: dict[str, Any]) -> bool:
    """Return whether `content` matches the digest in `status`, which was read from it."""
    return content == sealed({key: value for key, value in status.items() if key != ITSELF})


def changed_files(path: Path, digests: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for each file that changed since the run wrote it."""
    for name, digest in digests.items():
        file = path / name
        if ".." in file.parts or not file.is_relative_to(path):
            yield f"status.json: has a digest of {name}, which is outside the run directory"
            continue
        if name.startswith("checkpoints/") and not file.exists():
            continue  # may be deleted to free space
        try:
            if _sha256(file, digest.split()[1:2]) != digest.partition(" ")[0]:
                yield _what_changed(file, name, digest)
        except OSError as error:
            yield f"{name}: {error.strerror}"


def _what_changed(file: Path, name: str, digest: str) -> str:
    """Describe how a file changed; for a single changed cell of a table, with row and column."""
    if not name.endswith(".csv"):
        return f"{name}: changed since the run wrote it"
    try:
        rows, *sums = (int(word, 16) for word in digest.split()[2:])
        with table_file(file) as table:
            found = sum(lines.count(b"\n") + 1 for lines in table.blocks())
        if found != rows:
            return f"{name}: has {counted(found, 'row')}, but the run wrote {rows:,}"
        now = _sums(file)[1]
    except (RunDirectoryError, ValueError) as error:
        return getattr(error, "message", f"{name}: changed since the run wrote it")
    if sums == now:
        return f"{name}: its header or line ends changed since the run wrote it"
    return _located(file, name, sums, now)


def _located(file: Path, name: str, sums: list[int], now: list[int]) -> str:
    with table_file(file) as table:
        width = len(table.header)
        cell = _single_change(*((x - y) % _MODULUS for x, y in zip(now, sums, strict=True)))
        if cell is not None:
            row, column = divmod(cell, width)
            for lines in table.blocks():
                rows = lines.split(b"\n")
                if row < table.line - 1 + len(rows):
                    cells = rows[row - table.line + 1].decode(errors="replace").split(",")
                    return (
                        f"{name}: line {row + 2} (iteration {cells[0]}): {table.header[column]} is "
                        f"{cells[column] or 'empty'}, but the run wrote another value"
                    )
    return f"{name}: several values changed since the run wrote it"


def _single_change(d: int, first: int, second: int) -> int | None:
    """Solve first = c d and second = c² d mod 2^64 for the cell number c; None without a solution."""
    if d == 0:
        return None
    shift = (d & -d).bit_length() - 1
    modulus = _MODULUS >> shift
    c = (first >> shift) * pow(d >> shift, -1, modulus) % modulus
    return c if (c * d - first) % _MODULUS == 0 == (c * c * d - second) % _MODULUS else None


def _digest(file: Path) -> str:
    digest = f"{_sha256(file)} {file.stat().st_size:x}"
    if file.suffix != ".csv":
        return digest
    rows, sums = _sums(file)
    return " ".join([digest, f"{rows:x}", *(f"{one:016x}" for one in sums)])


def _sha256(file: Path, size: Sequence[str] = ()) -> str:
    """Return the sha256 of a file, or "" without reading it if its size is not `size` (hexadecimal)."""
    with open_file(file) as content:
        if size and f"{os.fstat(content.fileno()).st_size:x}" != size[0]:
            return ""
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sums(file: Path) -> tuple[int, list[int]]:
    """Return the number of rows of a table, and the three sums over its cells. Raises: RunDirectoryError."""
    count, sums = 0, [0, 0, 0]
    with table_file(file) as table:
        width = len(table.header)
        for lines in table.blocks():
            block = Cells(lines, width)
            hashes = _hashes(block)
            number = np.arange(count, count + len(hashes), dtype=np.uint64)
            for power in range(3):
                sums[power] = (sums[power] + int(hashes.sum())) % _MODULUS
                hashes = hashes * number
            count += len(number)
    return count // max(width, 1), sums


def _hashes(block: Cells) -> NDArray[np.uint64]:
    """Return Σ (byte + 1) f^k over the bytes k of each cell, mod 2^64, from cumulative sums."""
    size = len(block.text)
    powers, inverses = _powers(_FACTOR, size), _powers(pow(_FACTOR, -1, _MODULUS), size)
    before = np.zeros(size + 1, np.uint64)
    np.cumsum((block.text.astype(np.uint64) + 1) * powers, out=before[1:])
    starts, ends = block.starts.reshape(-1), block.ends.reshape(-1)
    return (before[ends] - before[starts]) * inverses[starts]


_POWERS: dict[int, NDArray[np.uint64]] = {}


def _powers(factor: int, count: int) -> NDArray[np.uint64]:
    """Return the first powers of a factor, mod 2^64."""
    if factor not in _POWERS or len(_POWERS[factor]) < count:
        factors = np.full(count, factor, np.uint64)
        factors[0] = 1
        _POWERS[factor] = np.cumprod(factors)
    return _POWERS[factor][:count]
