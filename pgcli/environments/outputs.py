"""Check the values that environments return, and convert them to arrays and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

    obs: Array  # [N, …], packed by the layout
    rewards: Array  # [N]
    terminated: Array  # bool [N]
    truncated: Array  # bool [N]


def pack_observation(layout: Layout, obs: Any, *, batch: bool = False) -> Array:
    """Pack an observation to an array `[*shape]`, or a batch to `[N, *shape]`.

    Raises: InvalidOutput: if the observation is not in its space.
    """
    try:
        return layout.pack(obs, batch=batch)
    except ValueError as error:
        raise InvalidOutput(str(error), "return observations that observation_space contains") from error


def read_reward(reward: Any) -> float:
    """Return a reward of any real type, or of an array with one entry, as a float. Raises: InvalidOutput."""
    if isinstance(reward, Real):
        return float(reward)
    try:
        array = np.asarray(reward)
    except Exception:  # numpy cannot convert it
        array = np.asarray(None)
    if array.size > 1 and array.dtype.kind in "biuf":
        raise InvalidOutput(
            f"a reward of shape {array.shape} instead of one number",
            "for several objectives, add mo-gymnasium's wrapper {name: mo_gymnasium.wrappers:LinearReward, "
            "kwargs: {weight: [0.5, 0.5]}} under env.wrappers",
        )
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise InvalidOutput(
            f"a reward that is not a number: {_shortened(reward)}", "the second value of `step` must be a float"
        )
    return float(array.item())


def read_flag(value: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as a bool; also accept 0, 1 and arrays with one entry.

    Raises: InvalidOutput.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu" or array.item() not in (0, 1):
        hint = "`step` must return (obs, reward, terminated, truncated, info)"
        raise InvalidOutput(f"a `{name}` that is neither true nor false: {_shortened(value)}", hint)
    return bool(array.item())


def read_info(info: Any, names: Sequence[str]) -> list[float]:
    """Return the numbers and booleans of an info under `names`, [K]; nan without one."""
    return [_number(_entry(info, name)[0]) for name in names]


def read_vector_info(info: Any, names: Sequence[str], num_envs: int) -> Array:
    """Return the numbers and booleans of a vector form's info under `names`, [N, K]; nan without one.

    A mask `_name` marks the columns that have the entry `name`. For columns that ended and were reset in the same
    step, `final_info` has their info, as one mapping of arrays or one info per column.
    """
    values = _columns(info, names, num_envs)
    final = _entry(info, "final_info")[0]
    if isinstance(final, Mapping):
        last, ended = _columns(final, names, num_envs), np.ones(num_envs, bool)
    elif isinstance(final, Sequence | np.ndarray) and len(final) == num_envs:
        last = np.array([read_info(one, names) for one in final]).reshape(num_envs, len(names))
        ended = np.array([isinstance(one, Mapping) for one in final])
    else:
        return values
    mask = np.asarray(info.get("_final_info", ended), bool)
    return np.where(mask[:, None], last, values) if mask.shape == (num_envs,) else values


def _columns(info: Any, names: Sequence[str], num_envs: int) -> Array:
    values = np.full((num_envs, len(names)), np.nan)
    for number, name in enumerate(names):
        entry, mask = _entry(info, name)
        if isinstance(entry, Sequence | np.ndarray) and np.ndim(entry) and len(entry) == num_envs:
            values[:, number] = [_number(one) for one in entry]
        elif entry is not None:
            values[:, number] = _number(entry)
        if mask is not None and np.shape(mask) == (num_envs,):
            values[~np.asarray(mask, bool), number] = np.nan
    return values


def _entry(info: Any, name: str) -> tuple[Any, Any]:
    """Return an entry of an info and its mask; `a.b` is the entry b of the mapping a."""
    if not isinstance(info, Mapping):
        return None, None
    if name in info or "." not in name:
        return info.get(name), info.get(f"_{name}")
    first, _, rest = name.partition(".")
    return _entry(info.get(first), rest)


def _number(value: Any) -> float:
    """Return a finite number, boolean or one-entry array as a float, else nan."""
    if value is None:
        return math.nan
    try:
        array = np.asarray(value)
        number = float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else math.nan
    except Exception:  # numpy cannot convert it
        return math.nan
    return number if math.isfinite(number) else math.nan


def is_finite(values: Array) -> bool:
    """Return whether all values are finite.

    A finite sum of squares proves it in a quarter of the time; the full test runs only if the sum is not finite.
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
