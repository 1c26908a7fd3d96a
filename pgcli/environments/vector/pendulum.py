"""Pendulum in numpy: a pole on a motor, to be swung up and held.

Source: Gymnasium, `classic_control/pendulum.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form, operands, square
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout


class Pendulum(Form):
    """The state is cos θ, sin θ, θ̇ and θ; θ = 0 is upright."""

    draws = 2

    def __init__(self, env: Any, layout: Layout) -> None:
        """Compute the constants of the equations."""
        self._pi, self._turn = operands(np.pi, 2 * np.pi)
        self._gravity, self._dt, self._speed_cost = operands(3 * env.g / (2 * env.l), env.dt, 0.1)
        self._max_speed, self._min_speed = operands(env.max_speed, -env.max_speed)
        self._torque, self._max_torque, self._min_torque, self._torque_cost = operands(
            3.0 / (env.m * env.l**2), env.max_torque, -env.max_torque, 0.001, dtype=np.float32
        )

    def reset(self, random: Streams) -> Array:
        """Return any angle, with a velocity of at most 1."""
        return _state(random.uniform(-np.pi, np.pi), random.uniform(-1.0, 1.0))

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Integrate one step; the cost is θ² + 0.1 θ̇² + 0.001 u², with θ between -π and π."""
        _, sin, velocity, theta = state
        u = np.minimum(np.maximum(actions[:, 0], self._min_torque), self._max_torque)
        angle = (theta + self._pi) % self._turn - self._pi
        costs = square(angle) + self._speed_cost * square(velocity) + self._torque_cost * square(u)
        velocity = velocity + (self._gravity * sin + self._torque * u) * self._dt
        velocity = np.minimum(np.maximum(velocity, self._min_speed), self._max_speed)
        return _state(theta + velocity * self._dt, velocity), -costs, np.zeros(len(u), bool)

    def observe(self, state: Array) -> Array:
        """Return cos θ, sin θ and θ̇."""
        return state[:3].T.astype(np.float32, order="C")


def _state(theta: Array, velocity: Array) -> Array:
    return np.array([np.cos(theta), np.sin(theta), velocity, theta])
