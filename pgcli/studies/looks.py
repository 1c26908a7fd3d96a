"""The looks at a pair of variants: which runs are tested, and whether they are paired.

A look tests only runs that no earlier look at the pair has used. looks.csv in the folder of a comparison lists them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgcli.errors import RunDirectoryError
from pgcli.report.scores import fresh_seeds
from pgcli.studies.page import RETURN

Row = dict[str, Any]  # of looks.csv: column, digests a and b of the variants, number of the look, their seeds


@dataclass(frozen=True)
class Look:
    """A look at a pair: its number, and positions of runs of a and of b.

    There are positions of the described and of the tested runs.

    `unpaired` is the reason why the runs are not paired; "" if they are. `row` is the row of a new look.
    """

    number: int
    described: tuple[list[int], list[int]]
    tested: tuple[list[int], list[int]]
    unpaired: str
    row: Row | None


def look_at(
    seeds: tuple[Sequence[int], Sequence[int]],
    digests: tuple[str, str],
    column: str,
    earlier: Sequence[Row],
    *,
    same_starts: bool = True,
) -> Look:
    """Return the next look at a pair, from the seeds of its runs and all earlier looks.

    Runs are paired by seed if both variants have the same start states for a seed, and share at least half of the
    seeds of the one with fewer runs. Then only shared seeds are compared.
    """
    common = set(seeds[0]) & set(seeds[1])
    unpaired = ""
    if not same_starts:
        unpaired = "their episodes begin with other reset seeds"
    elif any(len(set(one)) < len(one) for one in seeds):
        unpaired = "a seed occurs twice"
    elif 2 * len(common) < min(map(len, seeds)):
        unpaired = f"they share {len(common) or 'no'} seed{'' if len(common) == 1 else 's'}"
    a, b = ([at for at, seed in enumerate(one) if unpaired or seed in common] for one in seeds)
    if not unpaired:
        b = [list(seeds[1]).index(seeds[0][at]) for at in a]
    runs = [*((0, seeds[0][at]) for at in a), *((1, seeds[1][at]) for at in b)]
    used = [_used(row, digests) for row in earlier if row["column"] == column and {row["a"], row["b"]} == set(digests)]
    number, found = fresh_seeds(runs, used)
    fresh = set(found)
    tested = [at for at in a if (0, seeds[0][at]) in fresh], [at for at in b if (1, seeds[1][at]) in fresh]
    if not unpaired:
        both = {seeds[0][at] for at in tested[0]} & {seeds[1][at] for at in tested[1]}
        tested = [at for at in a if seeds[0][at] in both], [at for at in b if seeds[1][at] in both]
    if not all(tested):
        return Look(min(number, len(used)), (a, b), ([], []), unpaired, None)
    names = dict(zip("ab", digests, strict=True))
    listed = {"seeds": [seeds[0][at] for at in a], "seeds_b": [seeds[1][at] for at in b]}
    row = {"column": column, **names, "look": number, **listed} if number > len(used) else None
    return Look(number, (a, b), tested, unpaired, row)


def _used(row: Row, digests: tuple[str, str]) -> list[tuple[int, int]]:
    """Return the runs of an earlier look as pairs of variant, 0 or 1, and seed."""
    first = 0 if row["a"] == digests[0] else 1
    return [*((first, seed) for seed in row["seeds"]), *((1 - first, seed) for seed in row["seeds_b"])]


def read_looks(path: Path) -> list[Row]:
    """Read the looks of earlier reports."""
    if not path.exists():
        return []
    hint = "it lists earlier looks; without it, compare fresh seeds in another folder (-o)"
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {
                "column": row.get("column", RETURN),  # earlier versions compared returns of the same seeds
                "a": row["a"],
                "b": row["b"],
                "look": int(row["look"]),
                "seeds": [int(x) for x in row["seeds"].split()],
                "seeds_b": [int(x) for x in (row.get("seeds_b") or row["seeds"]).split()],
            }
            for row in rows
        ]
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise RunDirectoryError(f"{path}: damaged: {error}", hint) from None
