"""Observations: parts of a space, packed arrays, and the policy's encoding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
_WHOLE = frozenset({int, np.int64})
MAX_ROW_BYTES = 2**31 - 1  # of a packed observation, numpy's limit
ACTION_MASK = "action_mask"  # the entry of a Dict that marks the permitted actions


@dataclass(frozen=True)
class Leaf:
    """A part of an observation that is not a Dict or Tuple, and its place in packed observations."""

    path: tuple[Key, ...]
    space: Plain
    dtype: np.dtype[Any]  # of its stored numbers
    columns: slice | None  # its bytes in a packed row; None if the observation is this part alone
    range: tuple[Any, Any] | None  # the least and the largest value; None for a Box, whose bounds are not enforced

    @property
    def name(self) -> str:
        """The name of this part in messages."""
        return f"observation[{']['.join(map(repr, self.path))}]" if self.path else "observation"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of this part."""
        return self.space.shape or ()

    @property
    def size(self) -> int:
        """The number of entries of this part."""
        return math.prod(self.shape)

    def of(self, obs: Any) -> Any:
        """Return this part of an observation. Raises: ValueError: if it is missing."""
        try:
            for key in self.path:
                obs = obs[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.name} is missing") from None
        return obs

    def unpack(self, obs: Any) -> Any:
        """Return this part of packed observations [M, …] as a view [M, size]."""
        if self.columns is None:
            return obs.reshape(len(obs), self.size)
        part = obs[:, self.columns]
        if self.dtype == np.uint8 or not self.size:
            return part
        return part.view(self.dtype if isinstance(part, np.ndarray) else torch_type(self.dtype))


class Layout:
    """The array form of observations: unchanged, or one row of bytes for Dict and Tuple.

    Each part keeps its own type, so an image takes one byte per pixel even next to real numbers.

    Raises: EnvironmentFailure: for an unsupported part.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space, self.nested = space, not isinstance(space, Plain)
        self.leaves, fields, offset, alignment = list[Leaf](), list[tuple[Any, ...]](), 0, 1
        for path, part in _walk(space, (), []):
            dtype = _stored_type(part) if self.nested else _own_type(part)
            offset += -offset % dtype.itemsize
            columns = slice(offset, offset + math.prod(part.shape or ()) * dtype.itemsize)
            self.leaves.append(
                Leaf(
                    path,
                    part,
                    dtype,
                    columns if self.nested else None,
                    None if isinstance(part, spaces.Box) else _bounds(part),
                )
            )
            fields.append((dtype, part.shape or (), offset))
            offset, alignment = columns.stop, max(alignment, dtype.itemsize)
        if not self.leaves:
            raise EnvironmentFailure(
                f"the observation space {space} has no parts", "use a Box of shape [0] for an empty observation"
            )
        self._row = _row_type(fields, offset + -offset % alignment) if self.nested else np.dtype(np.void)
        self.shape = (self._row.itemsize,) if self.nested else self.leaves[0].shape
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if self.nested else self.leaves[0].dtype
        self._real = [leaf for leaf in self.leaves if leaf.dtype.kind == "f"]

    @property
    def action_mask(self) -> Leaf | None:
        """The action mask, if there is one."""
        return next((leaf for leaf in self.leaves if leaf.path == (ACTION_MASK,)), None)

    def pack(self, obs: Any, *, batch: bool = False) -> Array:
        """Convert an observation to an array `[*shape]`, or a batch of N to `[N, *shape]`.

        Raises: ValueError: if a part does not fit the space.
        """
        if not self.nested:
            return _fitting(obs, self.leaves[0], batch)
        parts = [_fitting(leaf.of(obs), leaf, batch) for leaf in self.leaves]
        rows = np.zeros(len(parts[0]) if batch else 1, self._row)
        for name, part in zip(self._row.names or (), parts, strict=True):
            rows[name] = part
        packed: Array = rows.view(np.uint8)
        return packed.reshape(len(rows), -1) if batch else packed

    def real_parts(self, obs: Array) -> list[Array]:
        """Return the real numbers of packed observations [N, …], which may be infinite or nan."""
        return [leaf.unpack(obs) for leaf in self._real]

    def converted(self, obs: Array) -> Array:
        """Convert a checkpoint's rows [N, …]; old versions used one type for all parts."""
        sizes = [leaf.size for leaf in self.leaves]
        is_todays = obs.dtype == self.dtype and obs.shape[1:] == self.shape
        if not self.nested or is_todays or obs.shape[1:] != (sum(sizes),):
            return obs
        rows = np.zeros((len(obs), *self.shape), self.dtype)
        for leaf, part in zip(self.leaves, np.split(obs, np.cumsum(sizes)[:-1], 1), strict=True):
            leaf.unpack(rows)[:] = part
        return rows


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
                f"the observation space is a {kind}{at}, which is not supported; "
                "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these",
                "remove it: {name: FilterObservation, kwargs: {filter_keys: ["
                f"{', '.join(map(str, siblings))}]}}}} under env.wrappers"
                if len(path) == 1 and siblings
                else "convert it to numbers with your own wrapper: `module:Class` under env.wrappers",
            )


def _row_type(fields: list[tuple[Any, ...]], size: int) -> np.dtype[Any]:
    """Return the type of a row of `size` bytes; fields: type, shape, first byte per part."""
    if size > MAX_ROW_BYTES:
        raise EnvironmentFailure(
            f"an observation takes {size / 1e9:,.1f} GB", "the limit is 2 GB: reduce the observation with a wrapper"
        )
    return np.dtype(
        {
            "names": [str(number) for number in range(len(fields))],
            "formats": [(dtype, shape) for dtype, shape, _ in fields],
            "offsets": [offset for *_, offset in fields],
            "itemsize": size,
        }
    )


def _stored_type(space: Plain) -> np.dtype[Any]:
    """Return the stored type of a part; for counts the smallest that fits all values."""
    found = _own_type(space)
    match space:
        case spaces.MultiBinary():
            return np.dtype(np.uint8)
        case spaces.Discrete() | spaces.MultiDiscrete():
            low, high = _bounds(space)
            smallest = np.result_type(
                np.min_scalar_type(int(np.min(low, initial=0))), np.min_scalar_type(int(np.max(high, initial=0)))
            )
            return smallest if smallest.kind in "iu" else found
    return found


def _own_type(space: Plain) -> np.dtype[Any]:
    """Return the type of a space; float64 for longer types, which torch lacks."""
    dtype = np.dtype(space.dtype)
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype


def torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the type of tensors that share memory with arrays of `dtype`."""
    return torch.from_numpy(np.zeros(0, dtype)).dtype


def _bounds(space: Plain) -> tuple[Any, Any]:
    """Return the least and the largest value of a space, or of each entry."""
    match space:
        case spaces.Discrete():
            return int(space.start), int(space.start) + int(space.n) - 1
        case spaces.MultiDiscrete():
            return np.asarray(space.start), space.start + (space.nvec - 1)
        case spaces.MultiBinary():
            return np.int8(0), np.int8(1)
    return space.low, space.high


def _fitting(value: Any, leaf: Leaf, batch: bool) -> Array:
    """Convert a part to its stored type; round real numbers to the precision of their space.

    Raises: ValueError: if it does not fit the space, or if the conversion changes a whole number.
    """
    if type(value) in _WHOLE and isinstance(leaf.space, spaces.Discrete):  # the usual case, in a tenth of the time
        low, high = leaf.range or (0, -1)
        if low <= value <= high:
            return np.asarray(value, leaf.dtype)
    array, shape = np.asarray(value), leaf.space.shape or ()
    if array.shape[int(batch) :] != shape or array.ndim != len(shape) + batch:
        raise ValueError(f"an {leaf.name} of shape {array.shape} in a space of {shape}")
    if leaf.range is None and array.dtype == leaf.dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an {leaf.name} of type {array.dtype} in a space of {leaf.space.dtype}")
    with np.errstate(invalid="ignore", over="ignore"):
        fitting = array.astype(leaf.dtype, copy=False)
    if leaf.range is not None:
        outside = (array < leaf.range[0]) | (array > leaf.range[1])
        if array.dtype.kind == "f":
            outside |= fitting != array
    elif leaf.dtype.kind == "f":
        outside = np.isfinite(array) & ~np.isfinite(fitting)
    else:
        outside = fitting != array
    if outside.any():
        space = leaf.space.dtype if leaf.range is None else _shortened(leaf.space)
        raise ValueError(f"an {leaf.name} of {array[outside].flat[0]} in a space of {space}")
    return fitting


def _shortened(space: Plain) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:80]} …"


# ------------------------------------------------------------------------------------------------------- the encoding

SMALLEST_SIDE = 5  # pixels: a Box with a shorter side is not an image
LARGEST_PIXEL = 255.0  # larger bounds say nothing about the values of an image


class Encoder:
    """Encodes observations as `size` numbers, images and an action mask.

    Numbers: Discrete and MultiDiscrete one-hot, MultiBinary and Box flattened, bytes divided by their largest bound.
    Images: Boxes of rank 3 or 4, and of rank 2 if they are bytes, with sides of 5 pixels or more, unless `images` is
    False. Each channel is divided by its bound if the bounds of all channels define the scale of the values.
    """

    def __init__(self, space: spaces.Space[Any], *, images: bool = True) -> None:
        self.layout = Layout(space)
        self.mask = self.layout.action_mask if len(self.layout.leaves) > 1 else None
        read = [leaf for leaf in self.layout.leaves if leaf is not self.mask]
        found = [ImagePart.of(leaf) if images else None for leaf in read]
        self.numbers = list[_Numbers]()
        for leaf, image in zip(read, found, strict=True):
            if image is None:
                self.numbers.append(_Numbers(leaf, sum(part.size for part in self.numbers)))
        self.images = [image for image in found if image is not None]
        self.size = sum(part.size for part in self.numbers)
        self.has_long = any(part.is_long for part in self.numbers)
        self.actions = None if self.mask is None else self.mask.size

    def in_torch(self, obs: Tensor, dtype: torch.dtype, origin: Tensor | None = None) -> Tensor:
        """Return the numbers `[M, size]` of observations `[M, …]`; 64-bit integers minus `origin`."""
        parts = [part.in_torch(part.leaf.unpack(obs), dtype, origin) for part in self.numbers]
        return parts[0] if len(parts) == 1 else torch.cat([obs.new_zeros(len(obs), 0, dtype=dtype), *parts], 1)

    def in_numpy(self, obs: Array, dtype: Any = np.float32, origin: Array | None = None) -> Array:
        """Return the numbers `[N, size]` of observations `[N, …]`; 64-bit integers minus `origin`."""
        parts = [part.in_numpy(part.leaf.unpack(obs), dtype, origin) for part in self.numbers]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((len(obs), 0), dtype), *parts], 1)

    def origin_of(self, obs: Tensor) -> Tensor:
        """Return the 64-bit integers of the first of observations `[M, …]`, `[size]`; 0 for other numbers."""
        parts = [
            part.leaf.unpack(obs[:1])[0].long() if part.is_long else torch.zeros(part.size) for part in self.numbers
        ]
        return torch.cat(parts).long()

    def permitted(self, obs: Any) -> Any:
        """Return the action masks of observations `[M, …]`: bool `[M, actions]`."""
        assert self.mask is not None
        return self.mask.unpack(obs) != 0


class _Numbers:
    """The numbers of one leaf, the same in torch and in numpy."""

    def __init__(self, leaf: Leaf, start: int) -> None:
        self.leaf, space, self.size = leaf, leaf.space, leaf.size
        self.is_long = isinstance(space, spaces.Box) and leaf.dtype.kind in "iu" and leaf.dtype.itemsize == 8
        self.columns = slice(start, start + leaf.size)  # of a long part, among all numbers
        self.divisor = 1.0
        if isinstance(space, spaces.Box) and space.dtype == np.uint8:
            self.divisor = max(float(space.high.max(initial=0)), 1.0)
        self.first: Array | None = None  # the column of each entry's first value in a one-hot row
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
            self.size = int(counts.sum())
            self.first = np.cumsum(counts) - counts - np.ravel(space.start)

    def in_torch(self, x: Tensor, dtype: torch.dtype, origin: Tensor | None) -> Tensor:
        if self.is_long and origin is not None:
            x = x.long() - origin[self.columns]  # exact, where float64 has no digits left
        if self.first is None:
            return x.to(dtype) if self.divisor == 1 else x.to(dtype) / self.divisor
        places = x.long() + torch.from_numpy(self.first).to(x.device)
        return torch.zeros(len(x), self.size, dtype=dtype, device=x.device).scatter_(1, places, 1)

    def in_numpy(self, x: Array, dtype: Any, origin: Array | None) -> Array:
        if self.is_long and origin is not None:
            x = x.astype(np.int64) - origin[self.columns]
        if self.first is None:
            numbers = x.astype(dtype, copy=False)
            return numbers if self.divisor == 1 else numbers / numbers.dtype.type(self.divisor)
        encoded = np.zeros((len(x), self.size), dtype)
        np.put_along_axis(encoded, x.astype(np.int64, copy=False) + self.first, 1, 1)
        return encoded


@dataclass(frozen=True)
class ImagePart:
    """The image of one leaf: stacked frames become channels, and channels come first."""

    leaf: Leaf
    stored: tuple[int, ...]  # the shape of the leaf: frames × the axes of a frame
    channels_last: bool
    divisors: tuple[float, ...] = ()  # of each channel; () if the bounds do not define the scale

    @staticmethod
    def of(leaf: Leaf) -> ImagePart | None:
        """Return the image of a leaf, or None if the leaf is not an image.

        Height and width are two equal sides; otherwise the channels are the shorter end.
        """
        space, shape = leaf.space, leaf.shape
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
        image = ImagePart(leaf, (frames, *frame), channels_last)
        return replace(image, divisors=_divisors(*(image.by_channel(bound) for bound in (space.low, space.high))))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        frames, first, middle, last = self.stored
        return (frames * last, first, middle) if self.channels_last else (frames * first, middle, last)

    @property
    def is_wide(self) -> bool:
        """Whether float32 cannot represent all values of its type."""
        return not np.can_cast(self.leaf.dtype, np.float32)

    def by_channel(self, values: Array) -> Array:
        """Return the values of one image, [channels, pixels]."""
        frames = values.reshape(self.stored)
        frames = frames.transpose(0, 3, 1, 2) if self.channels_last else frames
        return frames.reshape(self.shape[0], -1)

    def in_torch(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the images of observations [M, …], [M, channels, height, width]."""
        image: Tensor = self.leaf.unpack(obs).reshape(len(obs), *self.stored)
        if self.channels_last:
            image = image.permute(0, 1, 4, 2, 3)
        # Convolutions are a third faster with channels last; bytes are permuted before they become floats.
        # The result is a copy, so that it can be scaled in place: allocation costs more than the arithmetic.
        image = image.reshape(len(obs), *self.shape).contiguous(memory_format=torch.channels_last).to(dtype, copy=True)
        if len(set(self.divisors)) > 1:
            return image.div_(torch.tensor(self.divisors, dtype=dtype, device=image.device)[:, None, None])
        divisor = next(iter(self.divisors), 1.0)
        return image if divisor == 1 else image.div_(divisor)


def _divisors(low: Array, high: Array) -> tuple[float, ...]:
    """Return the largest absolute value of each channel, at least 1, from bounds [channels, pixels].

    Returns: () if the bounds do not define the scale: unknown, beyond 255, below 1/255, or a narrow range far from 0.
    Otherwise tile codes, depths in millimetres and temperatures would be scaled to nearly nothing.
    """
    low, high = low.min(1).astype(np.float64), high.max(1).astype(np.float64)  # nan remains nan
    largest = np.maximum(np.abs(low), np.abs(high))
    tells = (largest >= 1 / LARGEST_PIXEL) & (largest <= LARGEST_PIXEL) & (high - low >= largest / 2)
    tells |= largest == 0
    return tuple(np.maximum(largest, 1.0).tolist()) if tells.all() else ()
