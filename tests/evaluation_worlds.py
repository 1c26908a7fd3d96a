"""Worlds and wrappers that show which environment was evaluated, and what it reported."""

from __future__ import annotations

from typing import Any, ClassVar

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


class CurriculumVector(VectorEnv[Any, Any, Any]):
    """The vector form of Curriculum: all columns have one level."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int = 1, bonus: float = 0.0, render_mode: str | None = None) -> None:
        self.num_envs, self.bonus, self.level = num_envs, bonus, np.array([-1.0])
        self.single_observation_space, self.single_action_space = OBS, ACTIONS
        self.observation_space, self.action_space = (batch_space(space, num_envs) for space in (OBS, ACTIONS))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.level = np.zeros(1), self.level + 1
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        if self.t[0] == 3:
            self.t, self.level = np.zeros(1), self.level + 1
            never = np.zeros(self.num_envs, bool)
            return np.zeros((self.num_envs, 1), np.float32), np.zeros(self.num_envs), never, never, {}
        self.t = self.t + 1
        over, rewards = np.full(self.num_envs, self.t[0] == 3), np.full(self.num_envs, self.level[0] + self.bonus)
        return np.zeros((self.num_envs, 1), np.float32), rewards, over, np.zeros(self.num_envs, bool), {}


gym.register(
    "CurriculumVector-v0", "evaluation_worlds:Curriculum", vector_entry_point="evaluation_worlds:CurriculumVector"
)


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
