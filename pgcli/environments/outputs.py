"""The values that environments return: read, checked, and converted to arrays and plain numbers."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgcli.environments.failures import InvalidOutput
from pgcli.policies.observations import Layout

Array = NDArray[Any]
NUMBER_TYPES = frozenset({float, int, np.float64, np.float32, np.int64})
FLAG_TYPES = frozenset({bool, np.bool_})


class Step(NamedTuple):
    """The result of one step of N columns. Entries of columns that were not running are arbitrary."""

    obs: Array  # [N, …], packed as the layout says
    rewards: Array  # [N]
    terminated: Array  # bool [N]
    truncated: Array  # bool [N]


def pack_observation(layout: Layout, obs: Any, *, batch: bool = False) -> Array:
    """Return an observation as one array of its layout, `[*shape]`, or a batch of them, `[N, *shape]`.

    Raises: InvalidOutput: if the observation is not in its space.
    """
    try:
        return layout.pack(obs, batch=batch)
    except ValueError as error:
        raise InvalidOutput(str(error), "make it what observation_space says") from error


def read_reward(reward: Any) -> float:
    """Return a reward of any real type, or of an array with one entry, as a float.

    Raises: InvalidOutput.
    """
    if isinstance(reward, Real):
        return float(reward)
    try:
        array = np.asarray(reward)
    except Exception:  # numpy cannot convert it
        array = np.asarray(None)
    if array.size > 1 and array.dtype.kind in "biuf":
        raise InvalidOutput(
            f"a reward of shape {array.shape} where one number is wanted",
            "of several objectives, mo-gymnasium makes one: {name: mo_gymnasium.wrappers:LinearReward, "
            "kwargs: {weight: [0.5, 0.5]}} under env.wrappers",
        )
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise InvalidOutput(f"a reward that is no number: {_shortened(reward)}", "the second value of step is a float")
    return float(array.item())


def read_flag(value: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as a bool; 0, 1 and arrays with one of these are accepted.

    Raises: InvalidOutput.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu" or array.item() not in (0, 1):
        hint = "step gives (obs, reward, terminated, truncated, info)"
        raise InvalidOutput(f"a `{name}` that is neither true nor false: {_shortened(value)}", hint)
    return bool(array.item())


def is_finite(values: Array) -> bool:
    """Return whether all values are finite.

    A finite sum of squares proves it in a quarter of the time; only an overflow of that sum needs the full test.
    """
    if values.dtype.kind != "f":
        return True
    flat = values.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())


def non_finite_rows(layout: Layout, obs: Array) -> Array:
    """Return the indices of the packed observations [N, …] with a number that is not finite."""
    parts = layout.real_parts(obs)
    if all(map(is_finite, parts)):
        return np.zeros(0, int)
    return np.flatnonzero(~np.all([np.isfinite(part).all(1) for part in parts], axis=0))


def _shortened(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]} …"
