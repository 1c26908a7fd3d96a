"""Environments of a vector form in numpy.

Each column has its own reset seed, as single environments have.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np

from pgcli.config.choices import VectorForm
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.outputs import Step
from pgcli.environments.single import make_environment
from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.native import VectorEnvironments
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout
from pgcli.seeding import DerivedSeeds

_ONE = np.array(1)
_EPISODES, _MOST_STARTS = 32, 2**16  # prepared ahead: episodes of each column, of all columns together


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
        self._limit = np.array(checked.time_limit or 2**62)
        self._num_envs = num_envs
        self._upcoming = _Upcoming(self._form, max(1, min(_EPISODES, _MOST_STARTS // num_envs)))

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column and return the observations, [N, …]."""
        starts = _Starts(self._form, seeds.array() if isinstance(seeds, DerivedSeeds) else np.array(seeds, np.uint64))
        self._state: Array = starts.state.astype(self._form.dtype)
        self._random, self._obs, self._age = starts.random, starts.obs, np.zeros(self._num_envs, np.int64)
        return self._obs

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start an episode in some columns, each with its own seed; return all observations, [N, …]."""
        chosen = np.array(columns)
        if isinstance(seeds, DerivedSeeds):
            starts, places = self._upcoming.find(chosen, seeds)
        else:
            own = [seeds[column] for column in columns]
            starts, places = _Starts(self._form, np.array(own, np.uint64)), np.arange(len(chosen))
        self._state[:, chosen], self._age[chosen] = starts.state[:, places], 0
        if self._form.is_random:
            self._random.replace(chosen, starts.random, places)
        self._obs = self._obs.copy()
        self._obs[chosen] = starts.obs[places]
        return self._obs

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions in the columns that are running."""
        self._stepped = running
        if np.count_nonzero(running) < self._num_envs:
            return self._step_some(actions, running)
        self._state, rewards, terminated = self._form.step(self._state, actions, self._random)
        self._age += _ONE
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


class NativeArrayEnvironments(ArrayEnvironments):
    """Whole episodes in numpy, with the bytes of the environment's own vector form.

    Each of several seeds starts as `one`, which is in that form.
    """

    form: VectorForm = "native"

    def __init__(self, config: EnvConfig, count: int, width: int, one: VectorEnvironments, kind: type[Form]) -> None:
        super().__init__(config, count * width, kind)
        self._width, self._one = width, one
        self._random = Streams(np.zeros(count * width, np.uint64), 1)  # steps draw nothing

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column, from the seed of the first column of each set."""
        sets = [seeds[first] for first in range(0, self._num_envs, self._width)]
        obs, states = zip(*((self._one.reset([seed]), self._one.arrays()["state"]) for seed in sets), strict=True)
        self._state, self._obs = np.concatenate(states, 1), np.concatenate(obs)
        self._steps, self._live = 0, np.arange(self._num_envs)
        return self._obs

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions in the columns that are running, the only ones that the state still has."""
        if np.count_nonzero(running) < len(self._live):
            self._state, self._live = self._state.compress(running[self._live], 1), running.nonzero()[0]
        live = self._live if len(self._live) < self._num_envs else slice(None)
        obs, rewards, terminated = self._obs.copy(), np.zeros(self._num_envs), np.zeros(self._num_envs, bool)
        self._state, rewards[live], terminated[live] = self._form.step(self._state, actions[live], self._random)
        obs[live] = self._form.observe(self._state)
        self._obs, self._stepped, self._steps = obs, running, self._steps + 1
        return Step(obs, rewards, terminated, running if self._steps >= self._limit else np.zeros_like(running))

    def close(self) -> None:
        """Free the resources of the simulator."""
        self._one.close()


class _Starts:
    """The starts of M episodes: first states [K, M] and observations [M, …].

    `random` continues them.
    """

    def __init__(self, form: Form, seeds: Array) -> None:
        self.random = Streams(seeds, form.draws, narrow=form.narrow)
        self.state = form.reset(self.random)
        self.obs = form.observe(self.state)


class _Upcoming:
    """The starts of the next episodes of all columns, prepared together.

    A thousand take little longer than one.
    """

    def __init__(self, form: Form, episodes: int) -> None:
        """Args: episodes: the number of episodes that are prepared for each column."""
        self._form, self._episodes = form, episodes
        self._seeds: DerivedSeeds | None = None  # of the first prepared episode of each column
        self._starts: _Starts

    def find(self, columns: Array, seeds: DerivedSeeds) -> tuple[_Starts, Array]:
        """Return starts, and the places in them of the episodes of some columns."""
        if self._seeds is not None and seeds.equals_but_for_last(self._seeds):
            ahead = (seeds.last - self._seeds.last)[columns]
            if not np.count_nonzero(ahead.view(np.uint64) >= self._episodes):  # a negative number is a large one
                return self._starts, columns * self._episodes + ahead
        self._seeds, self._starts = seeds, _Starts(self._form, seeds.ahead(self._episodes))
        return self._starts, columns * self._episodes
