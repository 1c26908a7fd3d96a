"""Environments that are easy for a policy that uses observations, memory and masks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]
EPISODE_STEPS = 8


class Identity(gym.Env[Any, Any]):
    """Shows the right action; the reward is 1 minus the error of the action. Spaces are set by name.

    Other parts of the observation are random.
    """

    def __init__(self, observation: str = "discrete", action: str = "discrete") -> None:
        self.observation_space, self.show = OBSERVATIONS[observation]
        self.action_space, self.lacks = ACTIONS[action]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward, self.t = 1 - self.lacks(action, self.wanted), self.t + 1
        return self._next(), reward, self.t == EPISODE_STEPS, False, {}

    def _next(self) -> Any:
        self.wanted = int(self.np_random.integers(4))
        obs = self.show(self.wanted, self.np_random)
        assert self.observation_space.contains(obs), f"{obs!r} is not in {self.observation_space}"
        return obs


def _bits(wanted: int) -> Array:
    return np.array([wanted // 2, wanted % 2], np.int8)


def _image(shape: tuple[int, ...], channels_last: bool) -> tuple[spaces.Space[Any], Any]:
    """A noisy picture with one bright quarter."""

    def show(wanted: int, random: np.random.Generator) -> Array:
        picture = random.integers(0, 100, shape, np.uint8)
        height, width = (s // 2 for s in (shape[-3:-1] if channels_last else shape[-2:]))
        rows, columns = (
            slice(wanted // 2 * height, (wanted // 2 + 1) * height),
            slice(wanted % 2 * width, (wanted % 2 + 1) * width),
        )
        picture[(..., rows, columns, slice(None)) if channels_last else (..., rows, columns)] += 150
        return picture

    return spaces.Box(0, 255, shape, np.uint8), show


OBSERVATIONS: dict[str, tuple[spaces.Space[Any], Any]] = {
    "discrete": (spaces.Discrete(4), lambda w, r: w),
    "discrete from -2": (spaces.Discrete(4, start=-2), lambda w, r: np.int64(w - 2)),
    "multi-discrete": (
        spaces.MultiDiscrete(np.array([[5, 2], [2, 3]])),
        lambda w, r: np.array([[r.integers(5), w // 2], [w % 2, 1]]),
    ),
    "multi-binary": (spaces.MultiBinary((2, 2)), lambda w, r: np.array([_bits(w), r.integers(0, 2, 2, np.int8)])),
    "box": (spaces.Box(-1, 1, (2,)), lambda w, r: (2 * _bits(w) - 1).astype(np.float32)),
    "0-d box": (spaces.Box(0, 3, ()), lambda w, r: np.array(w, np.float32)),
    "unbounded float64 table": (
        spaces.Box(np.array([[-np.inf], [0]]), np.array([[np.inf], [np.inf]]), dtype=np.float64),
        lambda w, r: np.array([[w // 2], [w % 2]], np.float64),
    ),
    "integers": (spaces.Box(-3, 3, (2,), np.int16), lambda w, r: _bits(w).astype(np.int16)),
    "booleans": (spaces.Box(0, 1, (2,), np.bool_), lambda w, r: _bits(w).astype(np.bool_)),
    "dict": (
        spaces.Dict({"noise": spaces.Box(-1, 1, (2,)), "goal": spaces.Dict({"bits": spaces.MultiBinary(2)})}),
        lambda w, r: {"noise": r.uniform(-1, 1, 2).astype(np.float32), "goal": {"bits": _bits(w)}},
    ),
    "tuple": (
        spaces.Tuple((spaces.Discrete(32), spaces.Tuple((spaces.Discrete(2, start=1), spaces.Discrete(2))))),
        lambda w, r: (int(r.integers(32)), (np.int64(1 + w // 2), np.int64(w % 2))),
    ),
    "image, channels last": _image((12, 12, 3), channels_last=True),
    "image, channels first": _image((2, 10, 14), channels_last=False),
    "image, 2-d": _image((9, 9), channels_last=False),
    "stacked images": _image((2, 8, 8, 3), channels_last=True),
    "large image": _image((36, 36, 1), channels_last=True),
    "image in a dict": (
        spaces.Dict({"camera": _image((8, 8, 3), channels_last=True)[0], "direction": spaces.Discrete(4)}),
        lambda w, r: {"camera": _image((8, 8, 3), channels_last=True)[1](w, r), "direction": np.int64(r.integers(4))},
    ),
}

ACTIONS: dict[str, tuple[spaces.Space[Any], Any]] = {
    "discrete": (spaces.Discrete(4), lambda a, w: float(a != w)),
    "discrete from -2": (spaces.Discrete(4, start=-2), lambda a, w: float(a + 2 != w)),
    "multi-discrete": (spaces.MultiDiscrete([2, 2]), lambda a, w: float(np.abs(a - _bits(w)).sum())),
    "2-d multi-discrete from 3": (
        spaces.MultiDiscrete(np.array([[2], [2]]), start=np.array([[3], [3]])),
        lambda a, w: float(np.abs(a.ravel() - 3 - _bits(w)).sum()),
    ),
    "multi-binary": (spaces.MultiBinary(2), lambda a, w: float(np.abs(a - _bits(w)).sum())),
    "box": (spaces.Box(-1, 1, (2,)), lambda a, w: float(np.abs(a - (2 * _bits(w) - 1)).sum())),
    "2-d box of unequal bounds": (
        spaces.Box(np.array([[-2], [0]]), np.array([[2], [1]]), dtype=np.float64),
        lambda a, w: float(np.abs(a.ravel() - _bits(w)).sum()),
    ),
    "half-bounded box": (
        spaces.Box(np.array([0, -np.inf]), np.array([np.inf, 1]), dtype=np.float64),
        lambda a, w: float(np.abs(a - _bits(w)).sum()),
    ),
    "unbounded box": (spaces.Box(-np.inf, np.inf, (2,)), lambda a, w: float(np.abs(a - _bits(w)).sum())),
    "0-d box": (spaces.Box(-1, 4, ()), lambda a, w: float(abs(a - w))),
}


class Recall(gym.Env[Array, np.int64]):
    """Shows one of two cues at the reset and nothing afterwards; the last action must be the cue. Reward 1 or 0."""

    def __init__(self, delay: int = 4) -> None:
        self.observation_space, self.action_space, self.delay = spaces.Box(-1, 1, (2,)), spaces.Discrete(2), delay

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 1], np.float32), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == self.delay
        return np.zeros(2, np.float32), float(over and action == self.cue), over, False, {}


class Permitted(gym.Env[Any, Any]):
    """Pays 1 for the highest permitted action, which changes at every step; others are errors."""

    def __init__(self, where: str = "info", factors: int = 1) -> None:
        self.where, self.factors, self.n = where, factors, 6
        vector = spaces.Box(-1, 1, (2,))
        mask = spaces.Box(0, 1, (self.n * factors,), np.int8)
        self.observation_space = vector if where == "info" else spaces.Dict({"action_mask": mask, "obs": vector})
        self.action_space = spaces.Discrete(self.n) if factors == 1 else spaces.MultiDiscrete([self.n] * factors)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._next()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chosen, self.t = np.ravel(action), self.t + 1
        assert all(mask[a] for mask, a in zip(self.mask, chosen, strict=True)), f"{action} is forbidden"
        reward = np.mean([a == np.flatnonzero(mask)[-1] for mask, a in zip(self.mask, chosen, strict=True)])
        obs, info = self._next()
        return obs, float(reward), self.t == EPISODE_STEPS, False, info

    def _next(self) -> tuple[Any, dict[str, Any]]:
        self.mask = self.np_random.integers(0, 2, (self.factors, self.n), np.int8)
        self.mask[:, self.np_random.integers(self.n)] = 1
        obs, mask = np.zeros(2, np.float32), self.mask.ravel()
        if self.where == "obs":
            return {"obs": obs, "action_mask": mask}, {}
        return obs, {"action_mask": mask if self.factors == 1 else tuple(self.mask)}


gym.register("Identity-v0", entry_point="tasks:Identity")
gym.register("Recall-v0", entry_point="tasks:Recall")
gym.register("Permitted-v0", entry_point="tasks:Permitted")
