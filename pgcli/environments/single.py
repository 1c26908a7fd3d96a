"""Single environments, stepped one after another; each column has its own instance and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pgcli.config.choices import VectorForm
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.construction import build
from pgcli.environments.failures import InvalidOutput, describe_outcome, is_user_error
from pgcli.environments.masks import MaskColumns, MaskedObservation
from pgcli.environments.outputs import (
    FLAG_TYPES,
    NUMBER_TYPES,
    Array,
    Step,
    is_finite,
    non_finite_rows,
    pack_observation,
    read_flag,
    read_info,
    read_reward,
)
from pgcli.environments.registry import spec
from pgcli.environments.reproduction import reproduction
from pgcli.errors import EnvironmentFailure
from pgcli.policies.observations import Layout

# Measured: with equal seeds and actions, episodes of used and fresh instances differ.
REMEMBERS_PAST_EPISODES = (
    *("BipedalWalker-v3", "BipedalWalkerHardcore-v3", "CarRacing-v3"),
    *("AntBulletEnv-v0", "HalfCheetahBulletEnv-v0", "HopperBulletEnv-v0", "Walker2DBulletEnv-v0"),
    *("MinAtar/Breakout-v0", "MinAtar/Breakout-v1", "PandaPickAndPlace-v3", "PandaPush-v3"),
)
_HISTORY = 1000  # rows of actions that no running episode needs; more are dropped


def make_environment(config: EnvConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build one environment with its wrappers and with its action mask in the observation.

    Raises: EnvironmentFailure, UsageError.
    """
    env = build(config, render_mode)
    return MaskedObservation(env) if check_environment(config).adds_mask else env


def uses_fresh_instances(config: EnvConfig) -> bool:
    """Return whether every episode gets a fresh instance."""
    return spec(config).id in REMEMBERS_PAST_EPISODES if config.rebuild == "auto" else config.rebuild


class SingleEnvironments:
    """Single environments, stepped one after another. Columns whose episodes ended are not stepped."""

    form: VectorForm = "sync"

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        self._config = config
        self._checked, self._fresh = check_environment(config), uses_fresh_instances(config)
        self._envs = [make_environment(config) for _ in range(num_envs)]
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        self.layout = Layout(self.observation_space)
        self.longest_episode = self._checked.longest_episode
        self._box_shape = self.layout.shape if isinstance(self.observation_space, spaces.Box) else None
        self._mask = MaskColumns(self.layout, self.action_space, used=config.reads_mask)
        self._array_actions = isinstance(self.action_space, spaces.Box)  # also for shape (), where x[i] is a number
        self._seeds: list[int] = []
        self._obs: Array = np.zeros(())
        self._history: list[tuple[Array, Array]] = []  # actions and running columns, to reproduce a fault
        self._infos: list[Any] = [None] * num_envs  # of the last step of each column
        self._starts = [0] * num_envs  # the index in the history at which each column's episode begins

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column and return the observations, [N, …]."""
        if self._fresh and self._seeds:
            self.close()
            self._envs = [make_environment(self._config) for _ in self._envs]
        self._seeds = [self._checked.seed(seed) for seed in seeds]
        self._history, self._starts = [], [0] * len(self._envs)
        obs: Array = np.empty((len(self._envs), *self.layout.shape), self.layout.dtype)
        for column in range(len(self._envs)):
            self._start(column, obs)
        self._check_observations("reset", obs, np.ones(len(obs), bool))
        self._obs = obs
        return obs

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start an episode in some columns, each with its own seed; return all observations, [N, …]."""
        obs, self._seeds = self._obs.copy(), list(self._seeds)
        for column in columns:
            if self._fresh:
                self._close(column)
                self._envs[column] = make_environment(self._config)
            self._seeds[column], self._starts[column] = self._checked.seed(seeds[column]), len(self._history)
            self._start(column, obs)
        self._check_observations("reset", obs, np.isin(np.arange(len(obs)), columns))
        self._obs = obs
        if (unused := min(self._starts)) > _HISTORY:
            del self._history[:unused]
            self._starts = [start - unused for start in self._starts]
        return obs

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions in the columns that are running."""
        n, envs = len(self._envs), self._envs
        shape, dtype = self._box_shape, self.layout.dtype
        obs, rewards = self._obs.copy(), np.zeros(n)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        self._history.append((actions, running))
        copies = actions.copy()  # an environment may write into its action
        for column in np.flatnonzero(running).tolist():
            action = copies[column, ...] if self._array_actions else copies[column]
            try:
                result = envs[column].step(action)
                if type(result) is not tuple or len(result) != 5:
                    raise InvalidOutput("a value other than (obs, reward, terminated, truncated, info)")
                next_obs, reward, ended, cut, self._infos[column] = result
                rewards[column] = reward if type(reward) in NUMBER_TYPES else read_reward(reward)
                terminated[column] = ended if type(ended) in FLAG_TYPES else read_flag(ended, "terminated")
                truncated[column] = cut if type(cut) in FLAG_TYPES else read_flag(cut, "truncated")
                plain = type(next_obs) is np.ndarray and next_obs.shape == shape and next_obs.dtype == dtype
                obs[column] = next_obs if plain else pack_observation(self.layout, next_obs)
            except BaseException as error:
                self._raise_failure("step", column, error)
        if not is_finite(rewards):
            column = int(np.flatnonzero(~np.isfinite(rewards))[0])
            self._raise_failure("step", column, InvalidOutput("a non-finite reward"))
        self._check_observations("step", obs, running & ~(terminated | truncated))
        self._obs = obs
        return Step(obs, rewards, terminated, truncated)

    def reported(self, names: Sequence[str], columns: Array) -> Array | None:
        """Return the numbers under `names` in the last infos of some columns, [N, K]."""
        values = np.full((len(self._infos), len(names)), np.nan)
        for column in columns.nonzero()[0].tolist():
            values[column] = read_info(self._infos[column], names)
        return values

    def close(self) -> None:
        """Close all environments, then raise the first failure."""
        failure: EnvironmentFailure | None = None
        for column in range(len(self._envs)):
            try:
                self._close(column)
            except EnvironmentFailure as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _start(self, column: int, obs: Array) -> None:
        try:
            result = self._envs[column].reset(seed=self._seeds[column])
            if type(result) is not tuple or len(result) != 2:
                raise InvalidOutput("a value other than (obs, info)")
            obs[column] = pack_observation(self.layout, result[0])
        except BaseException as error:
            self._raise_failure("reset", column, error)

    def _close(self, column: int) -> None:
        try:
            self._envs[column].close()
        except BaseException as error:
            self._raise_failure("close", column, error)

    def _check_observations(self, doing: str, obs: Array, continuing: Array) -> None:
        """Reject non-finite observations and empty masks in columns that continue; fill other masks."""
        if len(rows := non_finite_rows(self.layout, obs)):
            self._raise_failure(doing, int(rows[0]), InvalidOutput("a non-finite observation"))
        permitted = self._mask.permits(obs)
        if permitted is not None and not permitted.all():
            for column in np.flatnonzero(~permitted).tolist():
                if continuing[column]:
                    self._raise_failure(doing, column, InvalidOutput("an action mask that permits no action"))
                self._mask.permit_all(obs[column : column + 1])

    def _raise_failure(self, doing: str, column: int, error: BaseException) -> NoReturn:
        """Raise an EnvironmentFailure with seed, step, action and a program that reproduces it."""
        if not is_user_error(error):
            raise error
        seed = self._seeds[column] if self._seeds else None
        history = self._history[self._starts[column] :]
        actions = np.array([actions[column] for actions, running in history if running[column]])
        when = f"at the {doing}"
        if doing == "step":
            action = " ".join(str(actions[-1]).split())
            when = f"in step {len(actions) - 1} with action {action if len(action) <= 80 else f'{action[:80]} …'}"
        message, program = f"{self._config.id} {describe_outcome(error)} {when}", ""
        if seed is not None:
            message += f" of the episode with reset seed {seed}"
            program = reproduction(self._config, seed, actions, message, self._array_actions, doing == "close")
        hint = error.hint if isinstance(error, InvalidOutput) else ""
        raise EnvironmentFailure(message, hint, seed, program) from error
