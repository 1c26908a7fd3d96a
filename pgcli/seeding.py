"""Random streams, derived from (seed, purpose, indices).

No generator state is ever saved.

    SeedSequence(seed, spawn_key=(purpose, iteration, …))

So an iteration is a pure function of its initial policy, and no purpose affects another.
Source: NumPy, "Parallel random number generation", section SeedSequence spawning.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Purpose(IntEnum):
    """The use of a random stream. Results depend on the numbers: add new ones, never change one."""

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


_WORD = 2**32 - 1


class DerivedSeeds(Sequence[int]):
    """The derived seeds of N columns: one on access, or all of them together in `array`."""

    def __init__(self, seed: int | Array, purpose: Purpose, *indices: int | Array) -> None:
        """Keep the arguments of `derived_seed`: one of each, or one per column.

        Args: seed: a number, or objects [N].
        """
        self._seed, self._purpose, self._indices = seed, purpose, indices

    def __len__(self) -> int:
        return max(map(np.size, self._indices))

    def __getitem__(self, column: Any) -> Any:
        seed = self._seed if isinstance(self._seed, int) else self._seed[column]
        indices = (int(one[column]) if isinstance(one, np.ndarray) else one for one in self._indices)
        return derived_seed(seed, self._purpose, *indices)

    def array(self) -> Array:
        """Return all seeds, uint64 [N]."""
        indices = np.array(np.broadcast_arrays(*self._indices))
        if np.any(self._seed >= 2**128) or indices.max(initial=0) >= 2**32:  # numpy takes more words for such a number
            return np.array(list(self), np.uint64)
        own = [self._seed >> shift & _WORD for shift in (0, 32, 64, 96)]
        low, high = sequence_words([*own, int(self._purpose), *indices], 2).astype(np.uint64)
        seeds: Array = (low | high << np.uint64(32)) >> np.uint64(1)
        return seeds

    @property
    def last(self) -> Array:
        """The last index of each column, [N]."""
        return np.asarray(self._indices[-1])

    def ahead(self, count: int) -> Array:
        """Return the seeds of the next `count` last indices of each column, uint64 [N count]."""
        seed = np.repeat(self._seed, count) if isinstance(self._seed, np.ndarray) else self._seed
        others = [np.repeat(one, count) if isinstance(one, np.ndarray) else one for one in self._indices[:-1]]
        return DerivedSeeds(seed, self._purpose, *others, np.add.outer(self.last, np.arange(count)).ravel()).array()

    def equals_but_for_last(self, other: DerivedSeeds) -> bool:
        """Return whether all arguments equal those of `other`, except the last index."""
        own, others = ((one._seed, one._purpose, *one._indices[:-1]) for one in (self, other))
        return all(one is like or np.array_equal(one, like) for one, like in zip(own, others, strict=True))


def sequence_words(entropy: Sequence[int | Array], count: int) -> Array:
    """Return the first words of N seed sequences, uint32 [count, N], computed together.

    The words of a column are those of `np.random.SeedSequence(entropy).generate_state(count)`, whose pool has four
    words. Further entropy, such as a spawn key, is mixed into all four.

    Args: entropy: numbers below 2^32, each one number or one per column, [N].
    Source: O'Neill (2015), "Developing a seed_seq alternative"; NumPy, `SeedSequence`.
    """
    words = np.array(np.broadcast_arrays(*entropy), np.uint32).reshape(len(entropy), -1)
    pool = np.zeros((4, words.shape[1]), np.uint32)
    pool[: len(words)] = words[:4]
    constants = _hash_constants(0x43B0D7E5, 0x931E8875, 17 + 4 * max(len(words) - 4, 0))
    pool, at = _hashed(pool, constants[:5]), 4
    for source in range(4):
        others = [number for number in range(4) if number != source]
        pool[others] = _mixed(pool[others], _hashed(pool[source], constants[at : at + 4]))
        at += 3
    for word in words[4:]:
        pool, at = _mixed(pool, _hashed(word, constants[at : at + 5])), at + 4
    return _hashed(pool[np.arange(count) % 4], _hash_constants(0x8B51F9DD, 0x58F38DED, count + 1))


@cache
def _hash_constants(first: int, multiplier: int, count: int) -> Array:
    """Return x, x a, x a², … modulo 2^32, [count, 1]."""
    return np.array([[first * pow(multiplier, n, 2**32) % 2**32] for n in range(count)], np.uint32)


def _hashed(words: Array, constants: Array) -> Array:
    """Hash words; row k of the result uses constants k and k + 1."""
    words = (words ^ constants[:-1]) * constants[1:]
    hashed: Array = words ^ words >> np.uint32(16)
    return hashed


def _mixed(x: Array, y: Array) -> Array:
    mixed: Array = np.uint32(0xCA01F9DD) * x - np.uint32(0x4973F715) * y
    mixed ^= mixed >> np.uint32(16)
    return mixed
