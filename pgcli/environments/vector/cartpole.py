"""CartPole in numpy: a pole on a cart that is pushed left or right.

Source: Gymnasium, `classic_control/cartpole.py`; Barto, Sutton and Anderson (1983); the equations of Florian (2007).
"""

from __future__ import annotations

import numpy as np

from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.streams import Streams


class CartPole(Form):
    """The state is x, ẋ, θ and θ̇, in SI units."""

    draws = 4

    def reset(self, random: Streams) -> Array:
        """Return states within 0.05 of the upright rest."""
        return np.array([random.uniform(-0.05, 0.05) for _ in range(4)])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Integrate one step of Euler's method; a fall is terminal."""
        env, (_, x_dot, theta, theta_dot) = self._env, state
        force = np.where(actions == 1, env.force_mag, -env.force_mag)
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (force + env.polemass_length * np.square(theta_dot) * sin) / env.total_mass
        theta_acc = (env.gravity * sin - cos * temp) / (
            env.length * (4.0 / 3.0 - env.masspole * np.square(cos) / env.total_mass)
        )
        x_acc = temp - env.polemass_length * theta_acc * cos / env.total_mass
        state = state + env.tau * np.array([x_dot, x_acc, theta_dot, theta_acc])
        over = (np.abs(state[0]) > env.x_threshold) | (np.abs(state[2]) > env.theta_threshold_radians)
        rewards = np.where(over, -1.0, 0.0) if env._sutton_barto_reward else np.ones(len(over))
        return state, rewards, over

    def observe(self, state: Array) -> Array:
        """Return the state."""
        return state.T.astype(np.float32, order="C")
