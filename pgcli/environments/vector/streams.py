"""The random generators of N reset seeds, built together.

They equal those that Gymnasium builds one by one, bit for bit.

Gymnasium seeds an environment with `np.random.Generator(np.random.PCG64(seed))`, which takes 10 µs a column. Here the
two algorithms run on arrays. A 128-bit number is a pair of uint64 arrays, its high and its low half.

Source: O'Neill (2014), "PCG: a family of simple fast space-efficient statistically good algorithms for random number
generation", HMC-CS-2014-0905 (PCG64: a 128-bit linear congruential generator with the output XSL-RR).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.seeding import sequence_words

Array = NDArray[Any]
Wide = tuple[Array, Array]

_MULTIPLIER = 2549297995355413924 << 64 | 4865540595714422341
MOST_DRAWS = 32
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_ROTATION, _WORD = np.uint64(58), np.uint64(64)
_ONE, _SHIFT = np.uint64(1), np.uint64(63)
_ONE_MORE = np.array(1)
_MANY = 256  # columns
_UNUSED, _STEP = np.uint64(11), 2.0**-53  # of a number in [0, 1)


class Streams:
    """One stream of random numbers per column. A draw takes the next number of each column."""

    def __init__(self, seeds: Array, draws: int, *, narrow: bool = False) -> None:
        """Seed the streams.

        Args:
            seeds: uint64 [N].
            draws: 64-bit numbers that are computed together, at most 32.
            narrow: divide each into two 32-bit numbers, for `choice`; otherwise numbers are in [0, 1).
        """
        words = sequence_words([seeds & _LOW, seeds >> _HALF], 8).astype(np.uint64)
        state_high, state_low, high, low = (words[n] | words[n + 1] << _HALF for n in range(0, 8, 2))
        increment = (high << _ONE | low >> _SHIFT, low << _ONE | _ONE)
        state = _advanced(_sum((state_high, state_low), increment), increment, 1)
        self._draws, self._parts = draws, 1 + narrow
        # A row per column: its generator, which is state and increment, then its next numbers.
        self._rows = np.empty((len(seeds), 4 + draws * self._parts), np.uint64)
        self._rows[:, :4] = np.transpose([*state, *increment])
        self._numbers = self._rows.reshape(-1).view(np.uint64 if narrow else np.float64)
        self._first = np.arange(4, self._rows.size, self._rows.shape[1])  # the place of each column's first number
        self._at, self._most = np.zeros(len(seeds), np.int64), 0  # numbers of a row that were drawn; a bound of it
        self._columns: Array | None = None  # that draw; None: all
        self._fill()

    def random(self) -> Array:
        """Draw a number in [0, 1) for each column, as `Generator.random` does."""
        return self._next(self._columns)

    def uniform(self, low: float, high: float) -> Array:
        """Draw a number in [low, high) for each column, as `Generator.uniform` does."""
        return low + (high - low) * self.random()

    def choice(self, count: int, where: Array | None = None) -> Array:
        """Draw an index below `count` for each column, or at some of its places, as `Generator.choice` does.

        Source: Lemire (2019), "Fast random integer generation in an interval".
        """
        columns = self._columns if where is None else where if self._columns is None else self._columns[where]
        products = self._next(columns) * np.uint64(count)
        lowest = np.uint64(2**32 % count)  # a product with a smaller low half is rejected: once in 2^32 / count draws
        while len(rejected := ((products & _LOW) < lowest).nonzero()[0]):
            products[rejected] = self._next(rejected if columns is None else columns[rejected]) * np.uint64(count)
        return (products >> _HALF).view(np.int64)

    @contextmanager
    def only(self, columns: Array) -> Iterator[None]:
        """Draw for some columns only."""
        self._columns = columns
        try:
            yield
        finally:
            self._columns = None

    def replace(self, columns: Array, others: Streams, places: Array) -> None:
        """Replace the streams of some columns by those at some places of others of the same kind."""
        self._at[columns], self._most = others._at[places], max(self._most, others._most)
        self._rows[columns] = others._rows[places]

    def _next(self, columns: Array | None) -> Array:
        """Return the next numbers of some columns, or of all."""
        if self._most >= self._draws * self._parts:
            self._most = int(self._at.max())
            if self._most >= self._draws * self._parts:
                high, low, *increment = self._rows[:, :4].T
                self._rows[:, :2] = np.transpose(_advanced((high, low), tuple(increment), self._at // self._parts))
                self._at %= self._parts
                self._fill()
        self._most += 1
        if columns is None:
            drawn: Array = self._numbers.take(self._first + self._at)
            self._at += _ONE_MORE
        else:
            at = self._at[columns]
            drawn = self._numbers.take(self._first[columns] + at)
            self._at[columns] = at + _ONE_MORE
        return drawn

    def _fill(self) -> None:
        """Compute the next numbers of all columns."""
        self._most = self._parts - 1
        high, low, *increment = self._rows[:, :4].T.copy()
        first = self._draws if len(high) < _MANY else 1  # few columns: the number of operations decides, not their size
        states = np.array(_advanced((high, low), (increment[0], increment[1]), np.arange(1, first + 1)[:, None]))
        while (count := states.shape[1]) < self._draws:  # as many follow, each `count` steps after one of these
            more = _advanced((states[0], states[1]), (increment[0], increment[1]), count)
            states = np.concatenate((states, more), 1)
        high, low = states[:, : self._draws]
        mixed, rotation = high ^ low, high >> _ROTATION
        numbers: Array = mixed >> rotation | mixed << ((_WORD - rotation) & _SHIFT)
        if self._parts == 2:  # the low half comes first
            self._rows[:, 4::2], self._rows[:, 5::2] = (numbers & _LOW).T, (numbers >> _HALF).T
        else:
            self._rows[:, 4:] = ((numbers >> _UNUSED) * _STEP).T.view(np.uint64)


def _advanced(state: Wide, increment: Wide, steps: int | Array) -> Wide:
    """Return the states after some steps x ← a x + c, which are a^n x + (1 + a + … + a^(n - 1)) c."""
    power_high, power_low, sum_high, sum_low = (one[steps] for one in _powers(MOST_DRAWS + 2))
    return _sum(_product(state, (power_high, power_low)), _product(increment, (sum_high, sum_low)))


@cache
def _powers(count: int) -> tuple[Array, Array, Array, Array]:
    """Return a^n and 1 + a + … + a^(n - 1) for n < count, in halves."""
    power, total, rows = 1, 0, []
    for _ in range(count):
        rows.append([power >> 64, power & 2**64 - 1, total >> 64, total & 2**64 - 1])
        power, total = power * _MULTIPLIER % 2**128, (total + power) % 2**128
    high, low, sum_high, sum_low = np.array(rows, np.uint64).T
    return high, low, sum_high, sum_low


def _sum(x: Wide, y: Wide) -> Wide:
    low = x[1] + y[1]
    return x[0] + y[0] + (low < y[1]), low


def _product(x: Wide, y: Wide) -> Wide:
    """Return x y modulo 2^128."""
    (x1, x0), (y1, y0) = (x[1] >> _HALF, x[1] & _LOW), (y[1] >> _HALF, y[1] & _LOW)
    middle = x1 * y0 + (x0 * y0 >> _HALF)
    other = x0 * y1 + (middle & _LOW)
    high = x1 * y1 + (middle >> _HALF) + (other >> _HALF)
    return high + x[0] * y[1] + x[1] * y[0], x[1] * y[1]
