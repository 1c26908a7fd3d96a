"""Environments side by side, each column reset with a seed of its own."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig, WrapperConfig
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.policies.observations import Layout

Array = NDArray[Any]
T = TypeVar("T")

# Measured: an episode of a used instance differs from that of a fresh one, with the same seed and actions.
REMEMBERS_PAST_EPISODES = ("BipedalWalker-v3", "BipedalWalkerHardcore-v3", "CarRacing-v3")


class Step(NamedTuple):
    """What one step of all columns gave; arbitrary for columns that were not running."""

    obs: Array  # [N, …]
    rewards: Array  # [N]
    terminated: Array  # bool [N]
    truncated: Array  # bool [N]


class Environments(Protocol):
    """N environments side by side. Arrays that it hands out are never written again."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column: obs [N, …]."""

    def step(self, actions: Array, running: Array) -> Step:
        """Act in the columns that are running."""

    def close(self) -> None:
        """Free what the simulators hold."""


class NativeEnvironments:
    """An environment's own vector form. Its columns share one generator, seeded with the first column's seed."""

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        limit: dict[str, Any] = (
            {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
        )
        self._envs = _guarded(
            config,
            lambda: gym.make_vec(
                config.id,
                num_envs,
                vectorization_mode="vector_entry_point",
                **limit,
                **config.kwargs,
            ),
        )
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column."""
        obs: Array = self._envs.reset(seed=seeds[0])[0]
        return obs

    def step(self, actions: Array, running: Array) -> Step:
        """Act in every column; those that are over go on unseen."""
        return Step(*self._envs.step(actions)[:4])

    def close(self) -> None:
        """Free what the simulator holds."""
        self._envs.close()


class SingleEnvironments:
    """Single environments stepped one by one; a column whose episode is over is not stepped."""

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        self._config = config
        self._rebuild = config.id in REMEMBERS_PAST_EPISODES if config.rebuild == "auto" else config.rebuild
        self._envs = [make(config) for _ in range(num_envs)]
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        self._layout = Layout(self.observation_space)
        self._keeps_arrays = isinstance(self.action_space, spaces.Box)  # an entry of a row of 0-d arrays is a number
        self._seeds: list[int] = []
        self._obs: Array = np.zeros(())

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column, in a fresh instance where the environment remembers."""
        if self._rebuild and self._seeds:
            self.close()
            self._envs = [make(self._config) for _ in self._envs]
        self._seeds = list(seeds)
        obs = np.empty((len(self._envs), *self._layout.shape), self._layout.dtype)
        for column in range(len(self._envs)):
            self._start(column, obs)
        self._obs = obs
        return obs

    def restart(self, seeds: dict[int, int]) -> Array:
        """Start a new episode in some columns, each with its seed: obs [N, …] of all."""
        obs, self._seeds = self._obs.copy(), list(self._seeds)
        for column, seed in seeds.items():
            if self._rebuild:
                self._envs[column].close()
                self._envs[column] = make(self._config)
            self._seeds[column] = seed
            self._start(column, obs)
        self._obs = obs
        return obs

    def step(self, actions: Array, running: Array) -> Step:
        """Act in the columns that are running."""
        n = len(self._envs)
        obs, rewards = self._obs.copy(), np.zeros(n)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        for column in np.flatnonzero(running).tolist():
            action = actions[column, ...] if self._keeps_arrays else actions[column]
            try:
                following, rewards[column], terminated[column], truncated[column], _ = self._envs[column].step(action)
                obs[column] = self._layout.pack(following)
            except Exception as error:
                raise self._failure(f"step with action {actions[column]}", column, error) from error
        self._obs = obs
        return Step(obs, rewards, terminated, truncated)

    def close(self) -> None:
        """Free what the simulators hold."""
        for env in self._envs:
            env.close()

    def _start(self, column: int, obs: Array) -> None:
        try:
            first, _ = self._envs[column].reset(seed=self._seeds[column])
            obs[column] = self._layout.pack(first)
        except Exception as error:
            raise self._failure("reset", column, error) from error

    def _failure(self, what: str, column: int, error: Exception) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"{self._config.id} raised {type(error).__name__} in {what} of the episode with "
            f"reset seed {self._seeds[column]}: {error}"
        )


def make_environments(config: EnvConfig, num_envs: int) -> Environments:
    """Build `num_envs` environments side by side, in the vector form that the config asks for."""
    native = config.vectorization == "native" or (config.vectorization == "auto" and _takes_native(config))
    return NativeEnvironments(config, num_envs) if native else SingleEnvironments(config, num_envs)


def make(config: EnvConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build one environment with its wrappers.

    Raises: EnvironmentFailure, with what would mend it.
    """
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    env: gym.Env[Any, Any] = _guarded(
        config,
        lambda: gym.make(
            config.id,
            max_episode_steps=config.max_episode_steps,
            disable_env_checker=True,
            **rendering,
            **config.kwargs,
        ),
    )
    for entry in config.wrappers:
        wrapper = entry if isinstance(entry, WrapperConfig) else WrapperConfig(name=entry)
        try:
            env = _wrapper_class(wrapper.name)(env, **wrapper.kwargs)
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise EnvironmentFailure(f"wrapper {wrapper.name}: {error}", "see its kwargs") from error
    return env


def spec(config: EnvConfig) -> gym.envs.registration.EnvSpec:
    """Look up what Gymnasium's registry says of the environment, without building it.

    Raises: EnvironmentFailure, with what would mend it.
    """
    module, _, name = config.id.rpartition(":")

    def look_up() -> gym.envs.registration.EnvSpec:
        if module:
            importlib.import_module(module)
        return gym.spec(name)

    return _guarded(config, look_up)


def _takes_native(config: EnvConfig) -> bool:
    found = spec(config)
    if found.vector_entry_point is None or config.wrappers or config.rebuild is True:
        return False
    entry = found.vector_entry_point
    load = gym.envs.registration.load_env_creator
    creator = _guarded(config, lambda: load(entry)) if isinstance(entry, str) else entry
    metadata = getattr(creator, "metadata", {})
    return metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP


def _wrapper_class(name: str) -> Callable[..., gym.Env[Any, Any]]:
    module, _, attribute = name.rpartition(":")
    try:
        found: Callable[..., gym.Env[Any, Any]] = getattr(
            importlib.import_module(module or "gymnasium.wrappers"), attribute
        )
    except (ImportError, AttributeError) as error:
        hint = "Gymnasium's wrappers go by their name, others as `module:Class`"
        raise EnvironmentFailure(f"wrapper `{name}` not found: {error}", hint) from error
    return found


def _guarded(config: EnvConfig, build: Callable[[], T]) -> T:
    """Build something of Gymnasium's, and tell a user's mistake in one sentence."""
    try:
        return build()
    except gym.error.DependencyNotInstalled as error:
        commands = re.findall("`(pip install [^`]+)`", str(error))
        missing = str(error).partition(",")[0]
        hint = commands[-1] if commands else 'pip install "gymnasium[all]"'
        raise EnvironmentFailure(f"{config.id}: {missing}", hint) from error
    except gym.error.Error as error:
        message, _, hint = str(error).partition(" Did you mean: ")
        close = difflib.get_close_matches(config.id, gym.registry, n=1)
        hint = hint or (f"`{close[0]}`?" if close else "")
        raise EnvironmentFailure(message, f"did you mean {hint}" if hint else "") from error
    except ModuleNotFoundError as error:
        raise EnvironmentFailure(f"{config.id}: {error}", "install the package that has it") from error
    except TypeError as error:
        unknown = re.search("unexpected keyword argument '(.+?)'", str(error))
        if unknown:
            raise UsageError(f"env.kwargs: {config.id} takes no `{unknown[1]}`", "see its documentation") from error
        raise EnvironmentFailure(f"{config.id} cannot be built: {error}") from error
    except Exception as error:
        raise EnvironmentFailure(f"{config.id} cannot be built: {type(error).__name__}: {error}") from error
