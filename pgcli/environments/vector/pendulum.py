"""Pendulum in numpy: a pole on a motor, to be swung up and held.

Source: Gymnasium, `classic_control/pendulum.py`.
"""

from __future__ import annotations

import numpy as np

from pgcli.environments.vector.form import Array, Form, square
from pgcli.environments.vector.streams import Streams


class Pendulum(Form):
    """The state is θ and θ̇; θ = 0 is upright."""

    draws = 2

    def reset(self, random: Streams) -> Array:
        """Return any angle, with a velocity of at most 1."""
        return np.array([random.uniform(-np.pi, np.pi), random.uniform(-1.0, 1.0)])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Integrate one step; the cost is θ² + 0.1 θ̇² + 0.001 u², with θ between -π and π."""
        env, (theta, velocity) = self._env, state
        u = np.minimum(np.maximum(actions[:, 0], -env.max_torque), env.max_torque)
        angle = (theta + np.pi) % (2 * np.pi) - np.pi
        costs = square(angle) + 0.1 * square(velocity) + 0.001 * square(u)
        gravity, torque = 3 * env.g / (2 * env.l) * np.sin(theta), 3.0 / (env.m * env.l**2) * u
        velocity = velocity + (gravity + torque) * env.dt
        velocity = np.minimum(np.maximum(velocity, -env.max_speed), env.max_speed)
        return np.array([theta + velocity * env.dt, velocity]), -costs, np.zeros(len(u), bool)

    def observe(self, state: Array) -> Array:
        """Return cos θ, sin θ and θ̇."""
        theta, velocity = state
        return np.array([np.cos(theta), np.sin(theta), velocity], np.float32).T.copy()
