"""Environments with a table of transitions in numpy: FrozenLake, CliffWalking and Taxi.

Source: Gymnasium, `toy_text`: `env.P[state][action]` lists (probability, next state, reward, terminated), and
`env.initial_state_distrib` has the probabilities of first states.
"""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import ACTION_MASK, Layout


class Tabular(Form):
    """The state is the number of the table's state."""

    dtype = np.int64

    def __init__(self, env: Any, layout: Layout) -> None:
        states, self._actions = range(len(env.P)), np.array(len(env.P[0]))
        rows = [env.P[state][action] for state, action in product(states, range(self._actions))]
        most = max(map(len, rows))
        self.is_random, self._width = most > 1, np.array(most + (most > 1))
        self.draws = 16 if self.is_random else 1
        # A draw of at least the sum of all probabilities, which may be rounded, selects the first outcome.
        padded = [[*row, *[row[0]] * (self._width - len(row))] for row in rows]
        probability, after, rewards, terminated = (np.array(x) for x in zip(*(zip(*row) for row in padded)))  # noqa: B905
        self._probability, self._after = probability.ravel(), after.ravel().astype(np.int64)
        self._rewards, self._terminated = rewards.ravel().astype(np.float64), terminated.ravel().astype(bool)
        self._limits = np.full((most, len(rows)), np.inf)  # cumulative probabilities
        for number, row in enumerate(rows):
            self._limits[: len(row), number] = np.cumsum([one[0] for one in row])
        self._first = np.cumsum(env.initial_state_distrib)
        numbers = np.arange(len(states))
        obs: Any = numbers
        if layout.nested:
            obs = {"observation": numbers, ACTION_MASK: np.array([env.action_mask(state) for state in states])}
        self._obs = layout.pack(obs, batch=True)
        self._info = self._probability[:0]

    def reset(self, random: Streams) -> Array:
        """Draw states from the initial distribution."""
        state: Array = np.argmax(self._first > random.random()[:, None], 1)
        return state[None]

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Draw the next states from the table."""
        row = state[0] * self._actions + actions
        if self.is_random:
            passed = random.random() >= self._limits.take(row, 1)
            row = reduce(np.add, passed.view(np.uint8), row * self._width)
        self._info = row
        return self._after.take(row)[None], self._rewards.take(row), self._terminated.take(row)

    def observe(self, state: Array) -> Array:
        """Return the numbers of the states, with their action masks if the policy reads them."""
        obs: Array = self._obs.take(state[0], 0)
        return obs

    def info(self, name: str) -> Array | None:
        """Return `prob`, the probability of the last transition."""
        return self._probability.take(self._info) if name == "prob" else None
