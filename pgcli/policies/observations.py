"""Observations: the parts of a space, the array that stores them, and the encoding that a policy reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from pgcli.errors import EnvironmentFailure

Array = NDArray[Any]
Plain = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
Key = str | int
ACTION_MASK = "action_mask"  # the entry of a Dict that marks the permitted actions


@dataclass(frozen=True)
class Leaf:
    """A part of an observation that is not a Dict or Tuple, and the columns of its numbers in the array."""

    path: tuple[Key, ...]
    space: Plain
    numbers: slice

    @property
    def name(self) -> str:
        """The name of this part in messages."""
        return f"observation[{']['.join(map(repr, self.path))}]" if self.path else "observation"

    def of(self, obs: Any) -> Any:
        """Return this part of an observation. Raises: ValueError: if it is missing."""
        try:
            for key in self.path:
                obs = obs[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"there is no {self.name}") from None
        return obs


class Layout:
    """The array form of observations of `space`: unchanged, or the leaves of a Dict or Tuple in one row of numbers.

    The row has the smallest type that represents every leaf exactly: bytes for images and small counts, float32 for
    those beside real numbers.

    Raises: EnvironmentFailure: for a leaf that no network can read.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.leaves, total = list[Leaf](), 0
        for path, leaf in _walk(space, (), []):
            size = math.prod(_shape(leaf))
            self.leaves.append(Leaf(path, leaf, slice(total, total + size)))
            total += size
        self.nested = not isinstance(space, Plain)
        if not self.leaves:
            raise EnvironmentFailure(
                f"the observation space {space} has no parts", "a Box of shape [0] is one of nothing"
            )
        self.shape = (total,) if self.nested else _shape(self.leaves[0].space)
        self.dtype: np.dtype[Any] = np.dtype(self.leaves[0].space.dtype)
        if self.nested:
            self.dtype = np.result_type(*(_smallest_type(leaf.space) for leaf in self.leaves))

    @property
    def action_mask(self) -> slice | None:
        """The columns of the action mask, if there is one."""
        return next((leaf.numbers for leaf in self.leaves if leaf.path == (ACTION_MASK,)), None)

    def pack(self, obs: Any, *, batch: bool = False) -> Array:
        """Convert an observation to an array `[*shape]`; a `batch`, each leaf with N in front, to `[N, *shape]`.

        Raises: ValueError: if a part does not fit the space.
        """
        if not self.nested:
            return _fitting(obs, self.leaves[0], batch)
        parts = []
        for leaf in self.leaves:
            array = _fitting(leaf.of(obs), leaf, batch)
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
    """Return the smallest type that represents every value of `space`."""
    match space:
        case spaces.Discrete():
            return np.result_type(np.min_scalar_type(space.start), np.min_scalar_type(space.start + space.n - 1))
        case spaces.MultiDiscrete():
            last = int((space.start + space.nvec - 1).max())
            return np.result_type(np.min_scalar_type(int(space.start.min())), np.min_scalar_type(last))
    return np.dtype(np.uint8) if isinstance(space, spaces.MultiBinary) else np.dtype(space.dtype)


def _fitting(value: Any, leaf: Leaf, batch: bool) -> Array:
    """Convert a leaf to its space's type. Raises: ValueError: if that changes its values or it does not fit."""
    array, space, shape = np.asarray(value), leaf.space, _shape(leaf.space)
    if array.shape[int(batch) :] != shape or array.ndim != len(shape) + batch:
        raise ValueError(f"an {leaf.name} of shape {array.shape} in a space of {shape}")
    if array.dtype == space.dtype and isinstance(space, spaces.Box):
        return array
    fitting = array.astype(space.dtype) if array.dtype.kind in "biuf" else array
    if fitting.dtype != space.dtype or not (
        np.can_cast(array.dtype, space.dtype, "same_kind") or np.array_equal(fitting, array)
    ):
        raise ValueError(f"an {leaf.name} of type {array.dtype} in a space of {space.dtype}")
    if not isinstance(space, spaces.Box) and not space.contains(fitting if fitting.ndim else fitting[()]) and not batch:
        raise ValueError(f"an {leaf.name} of {array.tolist()} in {space}")
    return fitting


# ------------------------------------------------------------------------------------------------------- the encoding

SMALLEST_SIDE = 5  # pixels: a Box with a shorter side is not an image


class Encoder:
    """Encodes arrays of observations as `size` numbers, images `[channels, height, width]` and an action mask.

    Numbers: Discrete and MultiDiscrete one-hot, MultiBinary and Box flattened. Images: Boxes of rank 3 or 4, and of
    rank 2 if they are bytes, with sides of 5 pixels or more, unless `images` is False. Bytes are divided by their
    largest value, and so are other images with bounds beyond 1.
    """

    def __init__(self, space: spaces.Space[Any], *, images: bool = True) -> None:
        self.layout = Layout(space)
        self.mask = self.layout.action_mask if len(self.layout.leaves) > 1 else None
        read = [leaf for leaf in self.layout.leaves if leaf.numbers != self.mask]
        pictures = [_Image.of(leaf) if images else None for leaf in read]
        self.numbers = [_Numbers(leaf) for leaf, picture in zip(read, pictures, strict=True) if picture is None]
        self.image_leaves = [picture for picture in pictures if picture is not None]
        self.size = sum(part.size for part in self.numbers)
        self.images = [picture.shape for picture in self.image_leaves]
        self.actions = None if self.mask is None else self.mask.stop - self.mask.start

    def in_torch(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the numbers `[M, size]` of observations `[M, …]`."""
        rows = obs.reshape(len(obs), -1)
        parts = [part.in_torch(rows[:, part.leaf.numbers], dtype) for part in self.numbers]
        return parts[0] if len(parts) == 1 else torch.cat([rows.new_zeros(len(rows), 0, dtype=dtype), *parts], 1)

    def in_numpy(self, obs: Array) -> Array:
        """Return the numbers `[N, size]` of observations `[N, …]`."""
        rows = obs.reshape(len(obs), -1)
        parts = [part.in_numpy(rows[:, part.leaf.numbers]) for part in self.numbers]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((len(rows), 0), np.float32), *parts], 1)

    def pictures(self, obs: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Return the images of observations `[M, …]`, each `[M, channels, height, width]`."""
        rows = obs.reshape(len(obs), -1)
        return [picture.in_torch(rows[:, picture.leaf.numbers], dtype) for picture in self.image_leaves]

    def permitted(self, obs: Any) -> Any:
        """Return the action masks of observations `[M, …]`: bool `[M, actions]`."""
        return obs[:, self.mask] != 0


class _Numbers:
    """The numbers of one leaf, the same in torch and in numpy."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, space = leaf, leaf.space
        self.size = leaf.numbers.stop - leaf.numbers.start
        self.divisor = _largest(space) if isinstance(space, spaces.Box) and space.dtype == np.uint8 else 1.0
        self.first: Array | None = None  # the column of each entry's first value in a one-hot row
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
            self.size = int(counts.sum())
            self.first = np.cumsum(counts) - counts - np.ravel(space.start)

    def in_torch(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.first is None:
            return x.to(dtype) if self.divisor == 1 else x.to(dtype) / self.divisor
        places = x.long() + torch.from_numpy(self.first).to(x.device)
        return torch.zeros(len(x), self.size, dtype=dtype, device=x.device).scatter_(1, places, 1)

    def in_numpy(self, x: Array) -> Array:
        if self.first is None:
            numbers = x.astype(np.float32, copy=False)
            return numbers if self.divisor == 1 else numbers / np.float32(self.divisor)
        encoded = np.zeros((len(x), self.size), np.float32)
        np.put_along_axis(encoded, x.astype(np.int64, copy=False) + self.first, 1, 1)
        return encoded


def is_image(leaf: Leaf) -> bool:
    """Return whether a leaf is read as an image."""
    return _Image.of(leaf) is not None


@dataclass(frozen=True)
class _Image:
    """The image of one leaf: stacked frames become channels, and channels come first."""

    leaf: Leaf
    stored: tuple[int, ...]  # the shape of the leaf: frames × the axes of a frame
    channels_last: bool
    divisor: float

    @staticmethod
    def of(leaf: Leaf) -> _Image | None:
        """Return the image of a leaf, None if it is not one.

        Height and width are the two sides that are equal; otherwise the channels are the shorter end.
        """
        space, shape = leaf.space, _shape(leaf.space)
        if (
            not isinstance(space, spaces.Box)
            or not 2 <= len(shape) <= 4
            or (len(shape) == 2 and space.dtype != np.uint8)
        ):
            return None
        frames, frame = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape if len(shape) == 3 else (1, *shape))
        first, middle, last = frame
        channels_last = first == middle if (first == middle) != (middle == last) else last < first
        sides = frame[:2] if channels_last else frame[1:]
        if min(sides) < SMALLEST_SIDE:
            return None
        return _Image(leaf, (frames, *frame), channels_last, _largest(space))

    @property
    def shape(self) -> tuple[int, int, int]:
        frames, first, middle, last = self.stored
        return (frames * last, first, middle) if self.channels_last else (frames * first, middle, last)

    def in_torch(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        image = x.reshape(len(x), *self.stored)
        if self.channels_last:
            image = image.permute(0, 1, 4, 2, 3)
        # Convolutions are a third faster with channels last; bytes are permuted before they become floats.
        # The result is a copy, so that it can be scaled in place: allocation costs more than the arithmetic.
        image = image.reshape(len(x), *self.shape).contiguous(memory_format=torch.channels_last).to(dtype, copy=True)
        return image if self.divisor == 1 else image.div_(self.divisor)


def _largest(space: spaces.Box) -> float:
    """Return the largest absolute value within the bounds; 1 if that is smaller, or if the space is unbounded."""
    bound = float(max(abs(space.low.min(initial=0)), abs(space.high.max(initial=0))))
    return bound if 1 < bound < math.inf else 1.0
