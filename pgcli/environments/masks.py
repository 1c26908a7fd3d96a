"""Action masks: the actions that an environment permits, as part of the observation."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.environments.failures import InvalidOutput
from pgcli.policies.observations import ACTION_MASK, Layout

Array = NDArray[Any]
_IGNORE = "`policy.action_mask: none` ignores the mask"
_METHOD = "action_masks"  # of environments that return the mask when called


def choices(action_space: spaces.Space[Any]) -> list[int]:
    """Return the number of choices for each part of an action; [] for a space without action masks."""
    match action_space:
        case spaces.Discrete():
            return [int(action_space.n)]
        case spaces.MultiDiscrete():
            return [int(n) for n in action_space.nvec.flat]
    return []


def reported_mask(env: gym.Env[Any, Any], info: dict[str, Any]) -> Any:
    """Return `info["action_mask"]`, or the method or property `action_masks`; None without a mask."""
    if ACTION_MASK in info:
        return info[ACTION_MASK]
    reported = env.get_wrapper_attr(_METHOD) if env.has_wrapper_attr(_METHOD) else None
    return reported() if callable(reported) else reported


def reported_anyhow(env: gym.Env[Any, Any], info: dict[str, Any], action_space: spaces.Space[Any]) -> tuple[Any, str]:
    """Return the mask that an environment reports after a reset, or None and a reason."""
    method = env.get_wrapper_attr(_METHOD) if ACTION_MASK not in info and env.has_wrapper_attr(_METHOD) else None
    if callable(method) and (required := _required(method)):
        return None, f"its method `{_METHOD}` requires {', '.join(required)}"
    try:
        mask = reported_mask(env, info)
    except NotImplementedError:
        return None, f"its method `{_METHOD}` is not implemented"
    if mask is not None and not choices(action_space):
        return None, f"{type(action_space).__name__} actions have no choices to mask"
    return mask, ""


def _required(method: Any) -> list[str]:
    """Return the names of a method's required arguments."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [f"`{one.name}`" for one in parameters if one.default is one.empty and one.kind not in optional]


def read_mask(mask: Any, action_space: spaces.Space[Any]) -> Array:
    """Return a mask, an array or a tuple of arrays, as one row of zeros and ones. Raises: InvalidOutput."""
    size = sum(choices(action_space))
    if mask is None:
        raise InvalidOutput("no action mask", f"every info must contain `action_mask`; {_IGNORE}")
    parts = mask if isinstance(mask, tuple | list) else (mask,)
    row = np.concatenate([np.asarray(part).ravel() for part in parts]) if parts else np.zeros(0, int)
    if row.shape != (size,):
        message = f"an action mask of {len(row)} entries for {size} actions"
        raise InvalidOutput(message, f"it needs one entry per action; {_IGNORE}")
    if row.dtype.kind not in "biuf" or not np.isin(row, (0, 1)).all():
        message = f"an action mask with entries other than 0 and 1: {row.tolist()}"
        raise InvalidOutput(message, f"use 1 for permitted and 0 for forbidden actions; {_IGNORE}")
    return row.astype(np.int8)


def draw(action_space: spaces.Space[Any], mask: Array | None, random: np.random.Generator) -> Any:
    """Draw an action for the environment from those that the row `mask` permits."""
    if mask is None:
        action_space.seed(int(random.integers(2**31)))
        return action_space.sample()
    parts = np.split(mask, np.cumsum(choices(action_space))[:-1])
    drawn = np.array([random.choice(np.flatnonzero(part)) for part in parts])
    if isinstance(action_space, spaces.MultiDiscrete):
        return (drawn.reshape(action_space.nvec.shape) + action_space.start).astype(action_space.dtype)
    assert isinstance(action_space, spaces.Discrete)
    return drawn[0] + action_space.start


class MaskedObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Adds the action mask to the observation, as an entry of a Dict."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        inner = env.observation_space
        self._is_dict = isinstance(inner, spaces.Dict)
        entries = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {"observation": inner}
        mask = spaces.MultiBinary(sum(choices(env.action_space)))
        self.observation_space = spaces.Dict(entries | {ACTION_MASK: mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._masked(obs, reported_mask(self.env, info)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Execute an action. After the last step of an episode, a missing mask permits every action."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        mask = reported_mask(self.env, info)
        if (terminated or truncated) and mask is None:
            mask = np.ones(sum(choices(self.action_space)), np.int8)
        return self._masked(obs, mask), reward, terminated, truncated, info

    def _masked(self, obs: Any, mask: Any) -> dict[str, Any]:
        row = read_mask(mask, self.action_space)
        return {**(obs if self._is_dict else {"observation": obs}), ACTION_MASK: row}


class MaskColumns:
    """The action masks in packed observations `[N, …]`, if they have a mask that fits the actions."""

    def __init__(self, layout: Layout, action_space: spaces.Space[Any], *, used: bool = True) -> None:
        ends = np.cumsum([0, *choices(action_space)]).tolist()
        mask = layout.action_mask if used else None
        self._mask = mask if mask is not None and len(ends) > 1 and ends[-1] == mask.size else None
        self._parts = [slice(*part) for part in pairwise(ends)] if self._mask else []

    def of(self, obs: Array) -> Array | None:
        """Return the masks `[N, actions]` of packed observations, as a view; None without a mask."""
        return None if self._mask is None else self._mask.unpack(obs)

    def permits(self, obs: Array) -> Array | None:
        """Return whether every part of an action has a choice, bool [N]; None without mask."""
        mask = self.of(obs)
        if mask is None:
            return None
        return np.all([mask[:, part].any(1) for part in self._parts], axis=0)  # type: ignore[no-any-return]

    def permit_all(self, obs: Array) -> None:
        """Permit every action in packed observations `[N, …]`, in place."""
        mask = self.of(obs)
        if mask is not None:
            mask[:] = 1
