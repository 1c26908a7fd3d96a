"""What a vector form in numpy defines: the equations of one environment, for all columns at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout

Array = NDArray[Any]


class Form:
    """Functions of a state, an array [K, N] with one column per environment.

    They compute in the types of Gymnasium's own environment and in its order, so results are equal to the bit. Any
    columns can be stepped or observed together.
    """

    dtype: type = np.float64  # of the state; a first state may have a shorter type, in which it is observed
    draws = 1  # random numbers to compute together: all of a reset, or those of many steps if steps are random
    narrow = False  # whether they have 32 bits
    is_random = False  # whether steps are random

    def __init__(self, env: Any, layout: Layout) -> None:
        """Read the constants of Gymnasium's environment."""
        self._env = env

    def reset(self, random: Streams) -> Array:
        """Return the first state of each column."""
        raise NotImplementedError

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Return the next state, the rewards [N] and whether the state is terminal, bool [N]."""
        raise NotImplementedError

    def observe(self, state: Array) -> Array:
        """Return the observations, packed, [N, …]."""
        raise NotImplementedError

    def info(self, name: str) -> Array | None:
        """Return an entry of the infos of the columns of the last step; None without it."""
        return None


def operands(*numbers: float, dtype: type = np.float64) -> list[Array]:
    """Return constants as arrays without axes.

    An operation of 64 columns takes 0.2 µs with one, and 0.6 with a Python number, which numpy converts each time.
    """
    return [np.array(number, dtype) for number in numbers]


_TWO = np.array(2.0)
_BELOW_FLOAT32 = np.array(2**29 - 1)  # the bits of a float64 that a float32 does not have
_FIRST_NEAR, _NEAR = np.array(2**21 - 2**28), np.array(2**22)


def square(x: Array) -> Array:
    """Return x² as `x**2` of one number computes it: with the C library's `pow`.

    In one of a thousand numbers, `pow` rounds differently than x x and than `x**2` of an array. `float_power` calls it
    for float64. For float32, they differ only near the middle between two numbers (by at most 0.002 of their distance).
    """
    squared: Array
    if x.dtype != np.float32:
        squared = np.float_power(x, _TWO)
        return squared
    exact = np.square(x.astype(np.float64))
    squared = exact.astype(np.float32)
    for number in ((exact.view(np.int64) + _FIRST_NEAR & _BELOW_FLOAT32) < _NEAR).nonzero()[0]:
        squared[number] = x[number] ** 2
    return squared
