"""Acrobot in numpy: two links with a motor in the joint between them, to be swung up.

Source: Gymnasium, `classic_control/acrobot.py`; Sutton and Barto (2018), section 11.3 of the first edition.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form, operands, square
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout

_LINE, _ONE, _TWO, _QUARTER, _HALF_TURN, _TURN = operands(-1.0, 1.0, 2.0, np.pi / 2, np.pi, 2 * np.pi)


class Acrobot(Form):
    """The state is θ1, θ2 and their velocities; at rest, both links hang down."""

    draws = 4

    def __init__(self, env: Any, layout: Layout) -> None:
        """Compute the constants of the equations."""
        m1, m2, l1, lc1, lc2 = (
            getattr(env, f"LINK_{name}") for name in ("MASS_1", "MASS_2", "LENGTH_1", "COM_POS_1", "COM_POS_2")
        )
        g, moment = 9.8, env.LINK_MOI
        self._torques = np.array(env.AVAIL_TORQUE, np.float64)
        self._limits = np.array([[env.MAX_VEL_1], [env.MAX_VEL_2]])
        self._half, self._step, self._sixth = operands(env.dt / 2.0, env.dt, env.dt / 6.0)
        self._moment, self._m2, self._lever = operands(moment, m2, l1 * lc2)
        self._inertia1, self._lengths, self._twice_lever = operands(m1 * lc1**2, l1**2 + lc2**2, 2 * l1 * lc2)
        self._squared_lc2, self._inertia2 = operands(lc2**2, m2 * lc2**2 + moment)
        self._coupling, self._twice_coupling = operands(m2 * l1 * lc2, 2 * m2 * l1 * lc2)
        self._weight1, self._weight2 = operands((m1 * lc1 + m2 * l1) * g, m2 * lc2 * g)

    def reset(self, random: Streams) -> Array:
        """Return states within 0.1 of the rest, in float32."""
        return np.array([random.uniform(-0.1, 0.1) for _ in range(4)]).astype(np.float32)

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Integrate one step of the Runge-Kutta method; a tip above the line is terminal."""
        y, torque = state.astype(np.float64), self._torques.take(actions)
        k1 = self._derivative(y, torque)
        k2 = self._derivative(y + self._half * k1, torque)
        k3 = self._derivative(y + self._half * k2, torque)
        k4 = self._derivative(y + self._step * k3, torque)
        y = y + self._sixth * (k1 + _TWO * k2 + _TWO * k3 + k4)
        y[:2] = _wrapped(y[:2])
        y[2:] = np.minimum(np.maximum(y[2:], -self._limits), self._limits)
        over = np.cos(y[0]) + np.cos(y[1] + y[0]) < _LINE
        return y, over - _ONE, over

    def observe(self, state: Array) -> Array:
        """Return the cosine and the sine of both angles, and the velocities."""
        obs = np.empty((state.shape[1], 6), np.float32)
        obs[:, 0:4:2], obs[:, 1:4:2], obs[:, 4:] = np.cos(state[:2]).T, np.sin(state[:2]).T, state[2:].T
        return obs

    def _derivative(self, y: Array, torque: Array) -> Array:
        theta1, theta2, velocity1, velocity2 = y
        cos2, sin2 = np.cos(theta2), np.sin(theta2)
        squared1, squared2 = square(y[2:])
        d1 = self._inertia1 + self._m2 * (self._lengths + self._twice_lever * cos2) + self._moment + self._moment
        d2 = self._m2 * (self._squared_lc2 + self._lever * cos2) + self._moment
        phi2 = self._weight2 * np.cos(theta1 + theta2 - _QUARTER)
        coriolis = self._coupling * squared2 * sin2 + self._twice_coupling * velocity2 * velocity1 * sin2
        phi1 = self._weight1 * np.cos(theta1 - _QUARTER) - coriolis + phi2
        acceleration2 = (torque + d2 / d1 * phi1 - self._coupling * squared1 * sin2 - phi2) / (
            self._inertia2 - square(d2) / d1
        )
        return np.array([velocity1, velocity2, -(d2 * acceleration2 + phi1) / d1, acceleration2])


def _wrapped(angles: Array) -> Array:
    """Return angles between -π and π; whole turns are subtracted one by one, as each subtraction rounds."""
    while (over := angles > _HALF_TURN).any():
        angles = np.where(over, angles - _TURN, angles)
    while (under := angles < -_HALF_TURN).any():
        angles = np.where(under, angles + _TURN, angles)
    return angles
