"""Environments of a vector form in numpy. Each column has its own reset seed, as single environments have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from pgcli.config.choices import VectorForm
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.outputs import Step
from pgcli.environments.single import make_environment
from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout
from pgcli.seeding import DerivedSeeds


class ArrayEnvironments:
    """N environments in one array, with the results of N single ones, to the bit.

    The episode of a column depends on its seed and its actions alone, not on the other columns. Columns that are not
    running are not stepped.
    """

    form: VectorForm = "numpy"

    def __init__(self, config: EnvConfig, num_envs: int, kind: type[Form]) -> None:
        with closing(make_environment(config)) as env:
            self.observation_space, self.action_space = env.observation_space, env.action_space
            self.layout = Layout(self.observation_space)
            self._form = kind(env.unwrapped, self.layout)
        checked = check_environment(config)
        self.longest_episode = checked.longest_episode
        self._limit = math.inf if checked.time_limit is None else checked.time_limit
        self._num_envs = num_envs

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column and return the observations, [N, …]."""
        self._random = self._streams(seeds)
        first = self._form.reset(self._random)
        self._state: Array = first.astype(self._form.dtype)
        self._age = np.zeros(self._num_envs, np.int64)
        self._obs = self._form.observe(first)
        return self._obs

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start an episode in some columns, each with its own seed; return all observations, [N, …]."""
        places, random = np.array(columns), self._streams(seeds)
        first = self._form.reset(random)
        if self._form.is_random:
            self._random.replace(places, random)
        self._state[:, places], self._age[places] = first, 0
        self._obs = self._obs.copy()
        self._obs[places] = self._form.observe(first)
        return self._obs

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions in the columns that are running."""
        self._stepped = running
        if not running.all():
            return self._step_some(actions, running)
        self._state, rewards, terminated = self._form.step(self._state, actions, self._random)
        self._age += 1
        self._obs = self._form.observe(self._state)
        return Step(self._obs, rewards, terminated, self._age >= self._limit)

    def _step_some(self, actions: Array, running: Array) -> Step:
        columns, form = running.nonzero()[0], self._form
        obs, rewards, terminated = self._obs.copy(), np.zeros(self._num_envs), np.zeros(self._num_envs, bool)
        with self._random.only(columns):
            state, rewards[columns], terminated[columns] = form.step(
                self._state[:, columns], actions[columns], self._random
            )
        self._state[:, columns], obs[columns] = state, form.observe(state)
        self._age += running
        self._obs = obs
        return Step(obs, rewards, terminated, running & (self._age >= self._limit))

    def reported(self, names: Sequence[str], columns: Array) -> Array | None:
        """Return the numbers under `names` in the last infos of some columns, [N, K]."""
        values = np.full((len(columns), len(names)), np.nan)
        for number, name in enumerate(names):
            if (entry := self._form.info(name)) is not None:
                values[self._stepped, number] = entry
        values[~columns] = np.nan
        return values

    def close(self) -> None:
        """Do nothing: arrays have no resources."""

    def _streams(self, seeds: Sequence[int]) -> Streams:
        array = seeds.array() if isinstance(seeds, DerivedSeeds) else np.array(seeds, np.uint64)
        return Streams(array, self._form.draws, narrow=self._form.narrow)
