"""What observations are made of: the leaves of a space, and the one array that holds them all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.errors import EnvironmentFailure

Array = NDArray[Any]
Plain = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
Key = str | int
ACTION_MASK = "action_mask"  # the entry of a Dict that says which actions are permitted


@dataclass(frozen=True)
class Leaf:
    """A part of an observation that is no Dict or Tuple, and where its numbers stand in the array."""

    path: tuple[Key, ...]
    space: Plain
    numbers: slice

    @property
    def name(self) -> str:
        """Say which part this is, for messages."""
        return f"observation[{']['.join(map(repr, self.path))}]" if self.path else "observation"


class Layout:
    """How an observation of `space` is held: as it is, or the leaves of a Dict or Tuple in one row of numbers.

    The row is of the smallest type that holds every leaf exactly: bytes for images and small counts, float32 for
    those beside real numbers.

    Raises: EnvironmentFailure for a leaf that no network here reads.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.leaves, total = list[Leaf](), 0
        for path, leaf in _walk(space, (), []):
            size = math.prod(_shape(leaf))
            self.leaves.append(Leaf(path, leaf, slice(total, total + size)))
            total += size
        self.nested = not isinstance(space, Plain)
        self.shape = (total,) if self.nested else _shape(self.leaves[0].space)
        self.dtype: np.dtype[Any] = (
            np.result_type(*(_smallest_type(leaf.space) for leaf in self.leaves))
            if self.nested
            else np.dtype(self.leaves[0].space.dtype)
        )

    def pack(self, obs: Any, *, batch: bool = False) -> Array:  # noqa: ANN401 - whatever the environment gives
        """Give an observation as an array `[*shape]`; a `batch`, each leaf with N in front, as `[N, *shape]`.

        Raises: ValueError that says what does not fit the space.
        """
        if not self.nested:
            return _fitting(obs, self.leaves[0], batch)
        parts = []
        for leaf in self.leaves:
            part = obs
            for key in leaf.path:
                try:
                    part = part[key]
                except (KeyError, IndexError, TypeError):
                    raise ValueError(f"there is no {leaf.name}") from None
            array = _fitting(part, leaf, batch)
            parts.append(array.reshape(*array.shape[: int(batch)], leaf.numbers.stop - leaf.numbers.start))
        return np.concatenate(parts, axis=-1, dtype=self.dtype, casting="unsafe")  # each value fits: see _smallest_type


def _walk(
    space: spaces.Space[Any], path: tuple[Key, ...], siblings: list[Key]
) -> Iterator[tuple[tuple[Key, ...], Plain]]:
    match space:
        case spaces.Box() | spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            yield path, space
        case spaces.Dict():
            for key, child in space.spaces.items():
                yield from _walk(child, (*path, key), [other for other in space.spaces if other != key])
        case spaces.Tuple():
            for number, child in enumerate(space.spaces):
                yield from _walk(child, (*path, number), [])
        case _:
            kind, at = type(space).__name__, f" at {list(path)}" if path else ""
            raise EnvironmentFailure(
                f"the observation space is a {kind}{at}, and no network here reads one; "
                "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of these are read",
                "leave it out: {name: FilterObservation, kwargs: {filter_keys: ["
                f"{', '.join(map(str, siblings))}]}}}} under env.wrappers"
                if len(path) == 1 and siblings
                else "turn it into numbers with a wrapper of your own: `module:Class` under env.wrappers",
            )


def _shape(space: Plain) -> tuple[int, ...]:
    return space.shape or ()


def _smallest_type(space: Plain) -> np.dtype[Any]:
    """Give the smallest type that holds every value of `space`."""
    match space:
        case spaces.Discrete():
            return np.result_type(np.min_scalar_type(space.start), np.min_scalar_type(space.start + space.n - 1))
        case spaces.MultiDiscrete():
            last = int((space.start + space.nvec - 1).max())
            return np.result_type(np.min_scalar_type(int(space.start.min())), np.min_scalar_type(last))
    return np.dtype(np.uint8) if isinstance(space, spaces.MultiBinary) else np.dtype(space.dtype)


def _fitting(value: Any, leaf: Leaf, batch: bool) -> Array:  # noqa: ANN401 - whatever the environment gives
    """Give a leaf as an array of its space's type, in which it must have the same values."""
    array, space, shape = np.asarray(value), leaf.space, _shape(leaf.space)
    if array.shape[int(batch) :] != shape or array.ndim != len(shape) + batch:
        raise ValueError(f"an {leaf.name} of shape {array.shape} in a space of {shape}")
    if array.dtype == space.dtype:
        return array
    fitting = array.astype(space.dtype) if array.dtype.kind in "biuf" else array
    if fitting.dtype != space.dtype or not (
        np.can_cast(array.dtype, space.dtype, "same_kind") or np.array_equal(fitting, array)
    ):
        raise ValueError(f"an {leaf.name} of type {array.dtype} in a space of {space.dtype}")
    return fitting
