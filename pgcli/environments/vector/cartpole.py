"""CartPole in numpy: a pole on a cart that is pushed left or right.

Source: Gymnasium, `classic_control/cartpole.py`; Barto, Sutton and Anderson (1983); the equations of Florian (2007).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form, operands
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout

_FOUR_THIRDS = np.array(4.0 / 3.0)


class CartPole(Form):
    """The state is x, ẋ, θ and θ̇, in SI units."""

    draws = 4

    def __init__(self, env: Any, layout: Layout) -> None:
        """Compute the constants of the equations."""
        self._forces = np.array([-env.force_mag, env.force_mag])
        self._pole, self._mass, self._gravity = operands(env.polemass_length, env.total_mass, env.gravity)
        self._length, self._pole_mass, self._tau = operands(env.length, env.masspole, env.tau)
        self._far, self._low = operands(env.x_threshold, env.theta_threshold_radians)
        self._rewards = np.array([0.0, -1.0] if env._sutton_barto_reward else [1.0, 1.0])  # before and at a fall

    def reset(self, random: Streams) -> Array:
        """Return states within 0.05 of the upright rest."""
        return np.array([random.uniform(-0.05, 0.05) for _ in range(4)])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Integrate one step of Euler's method; a fall is terminal."""
        _, x_dot, theta, theta_dot = state
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (self._forces.take(actions) + self._pole * np.square(theta_dot) * sin) / self._mass
        theta_acc = (self._gravity * sin - cos * temp) / (
            self._length * (_FOUR_THIRDS - self._pole_mass * np.square(cos) / self._mass)
        )
        x_acc = temp - self._pole * theta_acc * cos / self._mass
        state = state + self._tau * np.array([x_dot, x_acc, theta_dot, theta_acc])
        over = (np.abs(state[0]) > self._far) | (np.abs(state[2]) > self._low)
        return state, self._rewards.take(over), over

    def observe(self, state: Array) -> Array:
        """Return the state."""
        return state.T.astype(np.float32, order="C")
