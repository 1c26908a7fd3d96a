"""Environments and wrappers that show which environment was evaluated and its reports."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Array = NDArray[Any]
OBS, ACTIONS = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)


class Curriculum(gym.Env[Array, np.int64]):
    """Three steps, each of which pays the number of episodes that this instance played before, plus `bonus`."""

    def __init__(self, bonus: float = 0.0) -> None:
        self.observation_space, self.action_space, self.bonus, self.level = OBS, ACTIONS, bonus, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.level = 0, self.level + 1
        return np.zeros(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), self.level + self.bonus, self.t == 3, False, {}


class Hundred(gym.RewardWrapper[Any, Any]):
    """Pays 100 more for each step."""

    def reward(self, reward: Any) -> Any:
        return reward + 100.0


class Wider(gym.ObservationWrapper[Array, Any, Any]):
    """Declares other bounds."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-2, 2, (1,), np.float32)

    def observation(self, observation: Any) -> Any:
        return observation


class Reporting(gym.Env[Array, np.int64]):
    """Two to four steps; reports whether the length is even, and values that are not numbers."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = OBS, ACTIONS

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.t, self.length = 0, 2 + seed % 3
        return np.zeros(1, np.float32), {"is_success": True, "steps": -1}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        info: dict[str, Any] = {
            "is_success": self.length % 2 == 0,
            "steps": np.int8(self.t),
            "nested": {"half": np.array([self.t / 2])},
        }
        info |= {"text": "no number", "nothing": None, "infinite": np.inf, "list": [1, 2]}
        return np.zeros(1, np.float32), 1.0, self.t == self.length, False, info


class ReportingVector(VectorEnv[Any, Any, Any]):
    """A vector form in which column n ends after 2 + n steps; it reports n in the step that ends an episode."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_envs: int = 1, render_mode: str | None = None) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBS, ACTIONS
        self.observation_space, self.action_space = (batch_space(space, num_envs) for space in (OBS, ACTIONS))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.over = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        numbers, never = np.arange(self.num_envs), np.zeros(self.num_envs, bool)
        rewards, self.steps = np.where(self.over, 0.0, 1.0), np.where(self.over, 0, self.steps + 1)
        self.over = self.steps == 2 + numbers
        info = {"score": np.where(self.over, numbers, -1), "_score": self.over}
        return np.zeros((self.num_envs, 1), np.float32), rewards, self.over.copy(), never, info


gym.register(
    "ReportingVector-v0", "evaluation_worlds:Reporting", vector_entry_point="evaluation_worlds:ReportingVector"
)
