"""Worlds whose constructors take arguments in the ways of environments that nobody here wrote."""

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
