"""Environments whose constructors take arguments like third-party environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]
ZERO = np.zeros(1, np.float32)


class Steps(gym.Env[Array, np.int64]):
    """An episode of `length` steps with a constant observation, each of which pays 1."""

    length = 4

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return ZERO, {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return ZERO, self.pays(action), self.t >= self.length, False, {}

    def pays(self, action: np.int64) -> float:
        return 1.0


class Moves(Steps):
    """Action i pays the i-th of the moves, in the order of the config."""

    def __init__(self, moves: dict[str, Any] | None = None, **others: float) -> None:
        super().__init__()
        self.rewards = [float(value) for value in (moves or others).values()]

    def pays(self, action: np.int64) -> float:
        return self.rewards[int(action)]


class Repaid(gym.RewardWrapper[Any, Any]):
    """Multiplies rewards by the first of `factors`."""

    def __init__(self, env: gym.Env[Any, Any], **factors: float) -> None:
        super().__init__(env)
        self.factor = next(iter(factors.values()))

    def reward(self, reward: Any) -> float:
        return self.factor * float(reward)


class Popper(Steps):
    """Removes entries from its arguments, and adds others."""

    def __init__(self, config: dict[str, Any] | None = None, sizes: list[int] | None = None) -> None:
        super().__init__()
        config = config if config is not None else {}
        self.length = config.pop("length", 2)
        config.setdefault("count", []).append(1)
        for sizes_of in (sizes, config.get("sizes")):
            if sizes_of:
                sizes_of.append(sizes_of.pop(0) + 1)


class PoppingWrapper(gym.RewardWrapper[Any, Any]):
    """Removes its factor from its arguments."""

    def __init__(self, env: gym.Env[Any, Any], options: dict[str, Any]) -> None:
        super().__init__(env)
        self.factor = options.pop("factor", 1.0)

    def reward(self, reward: Any) -> float:
        return float(reward) * float(self.factor)


class Goal(Steps):
    """Pays at the goal, which it compares as the type of a Python program."""

    def __init__(self, goal: tuple[int, int] = (0, 0), areas: Any = ((1, 1),), push: Any = None) -> None:
        super().__init__()
        self.goal, self.areas = goal, set(areas)
        if push is not None and not isinstance(push["at"], tuple):
            raise TypeError("push.at is no tuple")

    def pays(self, action: np.int64) -> float:
        return float(self.goal == (2, 3)) + float((2, 3) in self.areas)


class NeedsRenderMode(Steps):
    """Requires `render_mode` in one of several ways, named by `kind`."""

    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, render_mode: str | None) -> None:
        super().__init__()
        self.render_mode = render_mode


class ChecksRenderMode(NeedsRenderMode):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        assert render_mode in self.metadata["render_modes"]


class ReadsRenderMode(NeedsRenderMode):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(kwargs["render_mode"])


class OpensWindow(NeedsRenderMode):
    def __init__(self, render_mode: str | None = "human") -> None:
        super().__init__(render_mode)
        assert render_mode != "human", "there is no screen"


def make_steps(length: int = 3) -> gym.Env[Any, Any]:
    """Return an environment from a function."""
    env = Steps()
    env.length = length
    return gym.wrappers.TimeLimit(env, 2)


def make_nothing() -> None:
    """Return an object that is not an environment."""


class MaskProperty(Steps):
    """Permits action 1 only, as a property."""

    def pays(self, action: np.int64) -> float:
        return float(action)

    @property
    def action_masks(self) -> list[bool]:
        return [False, True]


class MaskArguments(Steps):
    """Its mask depends on an argument that only its author knows."""

    def action_masks(self, obs: Array, *, strict: bool) -> Array:
        return np.array([True, False])


class MaskMissing(Steps):
    """Leaves its mask to a subclass."""

    def action_masks(self) -> Array:
        raise NotImplementedError


class MaskOfSteps(Steps):
    """Has its mask in the info of steps only."""

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {"action_mask": np.ones(2, np.int8)}


class MaskedBox(Steps):
    """Reports a mask beside real-valued actions: in its info, by a method, or in its observation."""

    def __init__(self, where: str = "info") -> None:
        super().__init__()
        self.where, self.action_space = where, spaces.Box(-1, 1, (2,), np.float32)  # type: ignore[assignment]
        if where == "obs":
            parts = {"x": spaces.Box(-1, 1, (1,), np.float32), "action_mask": spaces.MultiBinary(2)}
            self.observation_space = spaces.Dict(parts)  # type: ignore[assignment]
        if where == "method":
            self.action_masks = lambda: np.ones(2)

    def seen(self, obs: Array) -> Any:
        return {"x": obs, "action_mask": np.ones(2, np.int8)} if self.where == "obs" else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = super().reset(seed=seed)
        return self.seen(obs), {"action_mask": np.ones(2, np.int8)} if self.where == "info" else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        return self.seen(obs), *rest

    def pays(self, action: Any) -> float:
        return 1.0
