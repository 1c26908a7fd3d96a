"""Both mountain cars in numpy: a car in a valley whose motor is too weak to drive straight up.

Source: Gymnasium, `classic_control/mountain_car.py` and `continuous_mountain_car.py`; Moore (1990).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form, operands
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout

_ZERO, _TENTH, _SLOPE, _THREE = operands(0.0, 0.1, 0.0025, 3)
_ONE = np.array(1)


class MountainCar(Form):
    """The state is position and velocity; the action pushes left, not at all or right."""

    def __init__(self, env: Any, layout: Layout) -> None:
        """Compute the constants of the equations."""
        self._force, self._gravity = operands(env.force, -env.gravity)
        self._valley = _Valley(env, np.float64)

    def reset(self, random: Streams) -> Array:
        """Return a position in the valley, at rest."""
        position = random.uniform(-0.6, -0.4)
        return np.array([position, np.zeros(len(position))])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Execute one step of reward -1; the goal is terminal."""
        position, velocity = state
        velocity = velocity + ((actions - _ONE) * self._force + np.cos(_THREE * position) * self._gravity)
        *moved, over = self._valley.moved(position, velocity)
        return np.array(moved), np.full(len(over), -1.0), over

    def observe(self, state: Array) -> Array:
        """Return position and velocity."""
        return state[:2].T.astype(np.float32, order="C")


class ContinuousMountainCar(MountainCar):
    """As `MountainCar`, with a real force.

    Gymnasium computes an episode's first step in float64 and later ones in float32, so the state has a third row: 1
    before the first step, then 0.
    """

    def __init__(self, env: Any, layout: Layout) -> None:
        """Compute the constants of the equations."""
        self._env, self._first, self._later = env, _Valley(env, np.float64), _Valley(env, np.float32)
        self._power, self._most = operands(env.power, env.max_action, dtype=np.float32)

    def reset(self, random: Streams) -> Array:
        """Return a position in the valley, at rest."""
        first = super().reset(random)
        return np.concatenate((first, np.ones_like(first[:1])))

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Execute one step; its reward is 100 at the goal, minus a tenth of the squared action."""
        action, after = actions[:, 0], np.zeros(state.shape)
        after[0], after[1], over = self._moved(self._later, state[:2].astype(np.float32), action)
        if len(first := state[2].nonzero()[0]):
            *moved, over[first] = self._moved(self._first, state[:2, first], action[first])
            after[:2, first] = np.array(moved, np.float32)
        rewards = _ZERO - np.square(action.astype(np.float64)) * _TENTH
        if len(goal := over.nonzero()[0]):
            rewards[goal] += 100.0
        return after, rewards, over

    def _moved(self, valley: _Valley, state: Array, action: Array) -> tuple[Array, Array, Array]:
        position, velocity = state
        slope = _SLOPE * np.cos((valley.three * position).astype(np.float64))
        push = action * self._power - slope.astype(np.float32)
        if len(outside := (np.abs(action) > self._most).nonzero()[0]):  # a bound is a Python number, which is float64
            bound = np.where(action[outside] > 0, self._env.max_action, self._env.min_action)
            push = push.astype(state.dtype)
            push[outside] = bound * self._env.power - slope[outside]
        return valley.moved(position, velocity + push)


class _Valley:
    """The bounds of the valley, in the type that Gymnasium computes in."""

    def __init__(self, env: Any, dtype: type) -> None:
        self._left, self._right, self._min_speed, self._max_speed, self._goal, self._goal_speed, self.three = operands(
            *(env.min_position, env.max_position, -env.max_speed, env.max_speed),
            *(env.goal_position, env.goal_velocity, 3),
            dtype=dtype,
        )

    def moved(self, position: Array, velocity: Array) -> tuple[Array, Array, Array]:
        """Return position and velocity after a step with this velocity, and whether the car is at the goal."""
        velocity = np.minimum(np.maximum(velocity, self._min_speed), self._max_speed)
        position = np.minimum(np.maximum(position + velocity, self._left), self._right)
        if len(wall := (position == self._left).nonzero()[0]):
            velocity[wall] = np.maximum(velocity[wall], 0)
        return position, velocity, (position >= self._goal) & (velocity >= self._goal_speed)
