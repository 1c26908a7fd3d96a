"""Acrobot in numpy: two links with a motor in the joint between them, to be swung up.

Source: Gymnasium, `classic_control/acrobot.py`; Sutton and Barto (2018), section 11.3 of the first edition.
"""

from __future__ import annotations

import numpy as np

from pgcli.environments.vector.form import Array, Form, square
from pgcli.environments.vector.streams import Streams


class Acrobot(Form):
    """The state is θ1, θ2 and their velocities; at rest, both links hang down."""

    draws = 4

    def reset(self, random: Streams) -> Array:
        """Return states within 0.1 of the rest, in float32."""
        return np.array([random.uniform(-0.1, 0.1) for _ in range(4)]).astype(np.float32)

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Integrate one step of the Runge-Kutta method; a tip above the line is terminal."""
        env, y = self._env, state.astype(np.float64)
        torque = np.array(env.AVAIL_TORQUE)[actions]
        k1 = self._derivative(y, torque)
        k2 = self._derivative(y + env.dt / 2.0 * k1, torque)
        k3 = self._derivative(y + env.dt / 2.0 * k2, torque)
        k4 = self._derivative(y + env.dt * k3, torque)
        y = y + env.dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        y[:2] = _wrapped(y[:2])
        limits = np.array([[env.MAX_VEL_1], [env.MAX_VEL_2]])
        y[2:] = np.minimum(np.maximum(y[2:], -limits), limits)
        over = -np.cos(y[0]) - np.cos(y[1] + y[0]) > 1.0
        return y, over - 1.0, over

    def observe(self, state: Array) -> Array:
        """Return the cosine and the sine of both angles, and the velocities."""
        cos, sin = np.cos(state[:2]), np.sin(state[:2])
        return np.array([cos[0], sin[0], cos[1], sin[1], *state[2:]], np.float32).T.copy()

    def _derivative(self, y: Array, torque: Array) -> Array:
        env, g = self._env, 9.8
        m1, m2, l1 = env.LINK_MASS_1, env.LINK_MASS_2, env.LINK_LENGTH_1
        lc1, lc2, moment = env.LINK_COM_POS_1, env.LINK_COM_POS_2, env.LINK_MOI
        theta1, theta2, velocity1, velocity2 = y
        cos2, sin2 = np.cos(theta2), np.sin(theta2)
        squared1, squared2 = square(y[2:])
        d1 = m1 * lc1**2 + m2 * (l1**2 + lc2**2 + 2 * l1 * lc2 * cos2) + moment + moment
        d2 = m2 * (lc2**2 + l1 * lc2 * cos2) + moment
        phi2 = m2 * lc2 * g * np.cos(theta1 + theta2 - np.pi / 2.0)
        phi1 = (
            -m2 * l1 * lc2 * squared2 * sin2
            - 2 * m2 * l1 * lc2 * velocity2 * velocity1 * sin2
            + (m1 * lc1 + m2 * l1) * g * np.cos(theta1 - np.pi / 2)
            + phi2
        )
        acceleration2 = (torque + d2 / d1 * phi1 - m2 * l1 * lc2 * squared1 * sin2 - phi2) / (
            m2 * lc2**2 + moment - square(d2) / d1
        )
        acceleration1 = -(d2 * acceleration2 + phi1) / d1
        return np.array([velocity1, velocity2, acceleration1, acceleration2])


def _wrapped(angles: Array) -> Array:
    """Return angles between -π and π; whole turns are subtracted one by one, as each subtraction rounds."""
    while (over := angles > np.pi).any():
        angles = np.where(over, angles - 2 * np.pi, angles)
    while (under := angles < -np.pi).any():
        angles = np.where(under, angles + 2 * np.pi, angles)
    return angles
