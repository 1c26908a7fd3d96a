"""The values that environments return: read, checked, and converted to arrays and plain numbers."""

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


def read_info(info: Any, names: Sequence[str]) -> list[float]:
    """Return the numbers and booleans of an info under `names`, [K]; nan without one."""
    return [_number(_entry(info, name)[0]) for name in names]


def read_vector_info(info: Any, names: Sequence[str], num_envs: int) -> Array:
    """Return the numbers and booleans of a vector form's info under `names`, [N, K]; nan without one.

    A mask `_name` beside an entry says which columns have it. Where columns ended and were reset in the same step,
    `final_info` has their info, as one mapping of arrays or one info for each column.
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
    """Return the entry of an info, and the mask beside it; `a.b` is the entry b of the mapping a."""
    if not isinstance(info, Mapping):
        return None, None
    if name in info or "." not in name:
        return info.get(name), info.get(f"_{name}")
    first, _, rest = name.partition(".")
    return _entry(info.get(first), rest)


def _number(value: Any) -> float:
    """Return a finite number or a boolean, or the only entry of an array, as a float; nan for anything else."""
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
