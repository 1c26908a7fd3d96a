"""Random streams, derived from (seed, purpose, indices).

No generator state is ever saved.

    SeedSequence(seed, spawn_key=(purpose, iteration, …))

So an iteration is a pure function of its initial policy, and no purpose affects another.
Source: NumPy, "Parallel random number generation", section SeedSequence spawning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np


class Purpose(IntEnum):
    """The use of a random stream.

    Results depend on the numbers: add new ones, never change one.
    """

    INIT = 0
    RESET = 1
    ACT = 2
    MINIBATCH = 3
    EVALUATION_RESET = 4  # evaluations during training
    EVALUATION_ACT = 5
    TEST_RESET = 6  # `pgcli eval`
    TEST_ACT = 7
    VIDEO = 8
    VALUE_MINIBATCH = 9
    AFTER_STOP_RESET = 12  # the evaluation on fresh episodes after early stopping
    AFTER_STOP_ACT = 13


def _sequence(seed: int, purpose: Purpose, indices: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *indices))


def generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """Return the random stream of `purpose` at `indices`."""
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, indices)))


def derived_seed(seed: int, purpose: Purpose, *indices: int) -> int:
    """Return a 63-bit seed, e.g. of one `env.reset`: 100,000 seeds collide with probability 5e-10."""
    return int(_sequence(seed, purpose, indices).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Seeds(Sequence[int]):
    """One seed per column, derived on access: a vector form reads only the first."""

    def __init__(self, columns: Sequence[int], seed_of: Callable[[int], int]) -> None:
        self._columns, self._seed_of = columns, seed_of

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: Any) -> Any:
        return self._seed_of(self._columns[index])
