"""Both mountain cars in numpy: a car in a valley whose motor is too weak to drive straight up.

Source: Gymnasium, `classic_control/mountain_car.py` and `continuous_mountain_car.py`; Moore (1990).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.streams import Streams


class MountainCar(Form):
    """The state is position and velocity; the action pushes left, not at all or right."""

    def reset(self, random: Streams) -> Array:
        """Return a position in the valley, at rest."""
        position = random.uniform(-0.6, -0.4)
        return np.array([position, np.zeros(len(position))])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Execute one step of reward -1; the goal is terminal."""
        env, (position, velocity) = self._env, state
        velocity = velocity + ((actions - 1) * env.force + np.cos(3 * position) * -env.gravity)
        state, over = _moved(env, position, velocity)
        return state, np.full(len(over), -1.0), over

    def observe(self, state: Array) -> Array:
        """Return position and velocity."""
        return state[:2].T.astype(np.float32, order="C")


class ContinuousMountainCar(MountainCar):
    """As `MountainCar`, with a real force.

    Gymnasium computes an episode's first step in float64 and later ones in float32, so the state has a third row: 1
    before the first step, then 0.
    """

    def reset(self, random: Streams) -> Array:
        """Return a position in the valley, at rest."""
        first = super().reset(random)
        return np.concatenate((first, np.ones_like(first[:1])))

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Execute one step; its reward is 100 at the goal, minus a tenth of the squared action."""
        action = actions[:, 0]
        after = np.zeros_like(state)
        after[:2], over = self._moved(state[:2].astype(np.float32), action)
        if len(first := state[2].nonzero()[0]):
            moved, over[first] = self._moved(state[:2, first], action[first])
            after[:2, first] = moved.astype(np.float32)
        return after, 100.0 * over - np.square(action, dtype=np.float64) * 0.1, over

    def _moved(self, state: Array, action: Array) -> tuple[Array, Array]:
        env, (position, velocity) = self._env, state
        slope = 0.0025 * np.cos(3 * position, dtype=np.float64)
        push = action * env.power - slope.astype(action.dtype)
        if (outside := np.abs(action) > env.max_action).any():  # a bound is a Python number, which is float64
            bound = np.where(action > 0, env.max_action, env.min_action)
            push = np.where(outside, (bound * env.power - slope).astype(state.dtype), push)
        return _moved(env, position, velocity + push.astype(state.dtype, copy=False))


def _moved(env: Any, position: Array, velocity: Array) -> tuple[Array, Array]:
    """Return the state after a step with this velocity, and whether it is at the goal."""
    velocity = np.minimum(np.maximum(velocity, -env.max_speed), env.max_speed)
    position = np.minimum(np.maximum(position + velocity, env.min_position), env.max_position)
    np.maximum(velocity, 0, out=velocity, where=position == env.min_position)  # the wall on the left
    return np.array([position, velocity]), (position >= env.goal_position) & (velocity >= env.goal_velocity)
