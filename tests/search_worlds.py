"""Worlds whose best learning rate is known, for searches."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]


class Target(gym.Env[Array, Array]):
    """One step, which pays -(a - 2)².

    For a Gaussian policy with mean μ the gradient of the return is -2(μ - 2), so one step of gradient ascent with
    learning rate 0.5 ends at the best mean, 2, from every μ; with a rate above 1 it ends farther away than it began.
    `fails_above`: the action that raises an error.
    """

    def __init__(self, fails_above: float = np.inf) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.fails_above = fails_above

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if action[0] > self.fails_above:
            raise RuntimeError("the spring is broken")
        return np.zeros(1, np.float32), -float((action[0] - 2) ** 2), True, False, {}
