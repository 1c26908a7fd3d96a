"""Environments side by side, each column reset with a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import examine, make, packed
from pgcli.environments.failures import FLAGS, NUMBERS, Broken, flag, is_fault, number, told
from pgcli.environments.masks import MaskColumns
from pgcli.environments.registry import build_native, spec
from pgcli.environments.reproduction import reproduction
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.policies.observations import Layout

__all__ = ["Environments", "NativeEnvironments", "SingleEnvironments", "Step", "make", "make_environments", "rebuilds"]

Array = NDArray[Any]

# Measured: an episode of a used instance differs from that of a fresh one, with the same seed and actions.
REMEMBERS_PAST_EPISODES = (
    *("BipedalWalker-v3", "BipedalWalkerHardcore-v3", "CarRacing-v3"),
    *("AntBulletEnv-v0", "HalfCheetahBulletEnv-v0", "HopperBulletEnv-v0", "Walker2DBulletEnv-v0"),
    *("MinAtar/Breakout-v0", "MinAtar/Breakout-v1", "PandaPickAndPlace-v3", "PandaPush-v3"),
)


class Step(NamedTuple):
    """What one step of all columns gave; arbitrary for columns that were not running."""

    obs: Array  # [N, …], packed as the layout says
    rewards: Array  # [N]
    terminated: Array  # bool [N]
    truncated: Array  # bool [N]


class Environments(Protocol):
    """N environments side by side. Arrays that it hands out are never written again.

    Whatever an environment raises, and whatever it gives that is not finite or does not fit its spaces, is told as an
    EnvironmentFailure.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    layout: Layout

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column: obs [N, …]."""

    def step(self, actions: Array, running: Array) -> Step:
        """Act in the columns that are running."""

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start a new episode in some columns, which were not running in the last step: obs [N, …] of all."""

    def close(self) -> None:
        """Free what the simulators hold."""


class NativeEnvironments:
    """An environment's own vector form. Its columns share one generator, seeded with the first column's seed.

    A column whose episode is over starts another in the next step, by itself. Where it is, is in arrays.
    """

    def __init__(self, config: EnvConfig, num_envs: int, render_mode: str | None = None) -> None:
        self._config = config
        self._envs = build_native(config, num_envs, render_mode)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self.layout = Layout(self.observation_space)
        self._seed, self._steps = 0, 0
        self._obs: Array = np.zeros(())

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column."""
        self._seed, self._steps = seeds[0], 0
        try:
            obs = packed(self.layout, self._envs.reset(seed=seeds[0])[0], batch=True).copy()
            if not _finite(obs):
                raise Broken("a non-finite observation")
        except BaseException as error:
            self._blame("at the reset", error)
        self._obs = obs
        return obs

    def seed(self, seed: int) -> None:
        """Let the episodes that start from now on follow from `seed`."""
        self._seed, self._steps = seed, 0
        self._envs.np_random = np.random.default_rng(seed)

    def arrays(self) -> dict[str, Array]:
        """Give copies of its arrays: all of its state, if `is_its_arrays`."""
        found = sorted(vars(self._envs.unwrapped).items())
        return {name: x.copy() for name, x in found if isinstance(x, np.ndarray) and x.dtype.kind in "biuf"}

    def put_back(self, arrays: dict[str, Array]) -> None:
        """Be where `arrays` were taken."""
        for name, array in arrays.items():
            setattr(self._envs.unwrapped, name, array.copy())

    def step(self, actions: Array, running: Array) -> Step:
        """Act in every column; those that are over start an episode, or go on unseen."""
        try:
            obs, *others, _ = self._envs.step(actions.copy())
            step = Step(packed(self.layout, obs, batch=True).copy(), *map(np.array, others))
            for what, values in (("reward", step.rewards), ("observation", step.obs)):
                if not (_finite(values) or _finite(values[running])):
                    raise Broken(f"a non-finite {what}")
        except BaseException as error:
            self._blame(f"in step {self._steps}", error)
        self._steps += 1
        self._obs = step.obs
        return step

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Give where the columns are: those that were over have started an episode in the last step, without a seed."""
        return self._obs

    def pictures(self) -> Any:
        """Draw where the columns are: one picture of each, if it was built with a `render_mode`."""
        return self._envs.render()

    @property
    def render_fps(self) -> float | None:
        """Pictures per second of simulated time, if the environment says so."""
        return self._envs.metadata.get("render_fps")

    def close(self) -> None:
        """Free what the simulator holds."""
        try:
            self._envs.close()
        except BaseException as error:
            self._blame("at the close", error)

    def _blame(self, doing: str, error: BaseException) -> NoReturn:
        if not is_fault(error):
            raise error
        what = f"gave {error}" if isinstance(error, Broken) else f"raised {told(error)}"
        message = f"the vector form of {self._config.id} {what} {doing} of the episodes with reset seed {self._seed}"
        raise EnvironmentFailure(message, "env.vectorization=sync tells which episode it is") from error


class SingleEnvironments:
    """Single environments stepped one by one; a column whose episode is over is not stepped."""

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        self._config = config
        self._found, self._rebuild = examine(config), rebuilds(config)
        self._envs = [make(config) for _ in range(num_envs)]
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        self.layout = Layout(self.observation_space)
        self._box_shape = self.layout.shape if isinstance(self.observation_space, spaces.Box) else None
        self._mask = MaskColumns(self.layout, self.action_space)
        self._keeps_arrays = isinstance(self.action_space, spaces.Box)  # an entry of a row of 0-d arrays is a number
        self._seeds: list[int] = []
        self._obs: Array = np.zeros(())
        self._history: list[tuple[Array, Array]] = []  # actions and who was running, for the reproduction of a fault
        self._starts = [0] * num_envs  # where in it each column's episode begins

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column, in a fresh instance where the environment remembers."""
        if self._rebuild and self._seeds:
            self.close()
            self._envs = [make(self._config) for _ in self._envs]
        self._seeds = [self._found.seed(seed) for seed in seeds]
        self._history, self._starts = [], [0] * len(self._envs)
        obs: Array = np.empty((len(self._envs), *self.layout.shape), self.layout.dtype)
        for column in range(len(self._envs)):
            self._start(column, obs)
        self._check("reset", obs, np.ones(len(obs), bool))
        self._obs = obs
        return obs

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start a new episode in some columns, each with its seed: obs [N, …] of all."""
        obs, self._seeds = self._obs.copy(), list(self._seeds)
        for column, seed in zip(columns, seeds, strict=True):
            if self._rebuild:
                self._close(column)
                self._envs[column] = make(self._config)
            self._seeds[column], self._starts[column] = self._found.seed(seed), len(self._history)
            self._start(column, obs)
        self._check("reset", obs, np.isin(np.arange(len(obs)), columns))
        self._obs = obs
        self._forget()
        return obs

    def step(self, actions: Array, running: Array) -> Step:
        """Act in the columns that are running."""
        n, envs = len(self._envs), self._envs
        shape, dtype = self._box_shape, self.layout.dtype
        obs, rewards = self._obs.copy(), np.zeros(n)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        self._history.append((actions, running))
        given = actions.copy()  # an environment may write into its action
        for column in np.flatnonzero(running).tolist():
            action = given[column, ...] if self._keeps_arrays else given[column]
            try:
                result = envs[column].step(action)
                if type(result) is not tuple or len(result) != 5:
                    raise Broken("something else than (obs, reward, terminated, truncated, info)")
                following, reward, ended, cut, _ = result
                rewards[column] = reward if type(reward) in NUMBERS else number(reward)
                terminated[column] = ended if type(ended) in FLAGS else flag(ended, "terminated")
                truncated[column] = cut if type(cut) in FLAGS else flag(cut, "truncated")
                plain = type(following) is np.ndarray and following.shape == shape and following.dtype == dtype
                obs[column] = following if plain else packed(self.layout, following)
            except BaseException as error:
                self._blame("step", column, error)
        if not _finite(rewards):
            self._blame("step", int(np.flatnonzero(~np.isfinite(rewards))[0]), Broken("a non-finite reward"))
        self._check("step", obs, running & ~(terminated | truncated))
        self._obs = obs
        return Step(obs, rewards, terminated, truncated)

    def close(self) -> None:
        """Free what the simulators hold: all of them, also if one cannot be closed."""
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
                raise Broken("something else than (obs, info)")
            obs[column] = packed(self.layout, result[0])
        except BaseException as error:
            self._blame("reset", column, error)

    def _check(self, doing: str, obs: Array, on: Array) -> None:
        """Refuse numbers that are not finite, and masks without a choice in the columns that go `on`."""
        if not _finite(obs):
            wrong = ~np.isfinite(obs).reshape(len(obs), -1).all(1)
            self._blame(doing, int(np.flatnonzero(wrong)[0]), Broken("a non-finite observation"))
        permitted = self._mask.permits(obs)
        if permitted is not None and not permitted.all():
            for column in np.flatnonzero(~permitted).tolist():
                if on[column]:
                    self._blame(doing, column, Broken("an action mask that permits nothing"))
                self._mask.permit_all(obs[column])

    def _forget(self) -> None:
        """Drop the history that no running episode needs, now and then."""
        oldest = min(self._starts)
        if oldest > 1000:
            del self._history[:oldest]
            self._starts = [start - oldest for start in self._starts]

    def _close(self, column: int) -> None:
        try:
            self._envs[column].close()
        except BaseException as error:
            self._blame("close", column, error)

    def _blame(self, doing: str, column: int, error: BaseException) -> NoReturn:
        """Tell where a fault happened, and write down what led to it."""
        if not is_fault(error):
            raise error
        env_id, seed = self._config.id, self._seeds[column] if self._seeds else None
        since = self._history[self._starts[column] :]
        actions = np.array([actions[column] for actions, running in since if running[column]])
        what = f"gave {error}" if isinstance(error, Broken) else f"raised {told(error)}"
        when = f"in step {len(actions) - 1} with action {_shown(actions[-1])}" if doing == "step" else f"at the {doing}"
        whose = "" if seed is None else f" of the episode with reset seed {seed}"
        message = f"{env_id} {what} {when}{whose}"
        program = (
            ""
            if seed is None
            else reproduction(self._config, seed, actions, message, self._keeps_arrays, doing == "close")
        )
        hint = error.hint if isinstance(error, Broken) else ""
        raise EnvironmentFailure(message, hint, seed, program) from error


def make_environments(config: EnvConfig, num_envs: int) -> Environments:
    """Build `num_envs` environments side by side, in the vector form that the config asks for.

    Raises: EnvironmentFailure, UsageError.
    """
    found = examine(config)
    if config.vectorization == "native":
        if found.adds_mask:
            raise UsageError(
                f"env.vectorization: the vector form of {config.id} shows no action mask", "use `sync` or `auto`"
            )
        return NativeEnvironments(config, num_envs)
    if config.vectorization == "auto" and not found.adds_mask and _takes_native(config):
        native = NativeEnvironments(config, num_envs)
        if (native.observation_space, native.action_space) == (found.observation_space, found.action_space):
            return native
        native.close()  # another environment than its single form
    return SingleEnvironments(config, num_envs)


def make_lasting(config: EnvConfig, num_envs: int) -> NativeEnvironments | SingleEnvironments:
    """Build environments that go on from one iteration to the next, and that can be brought back to where they were.

    Raises: EnvironmentFailure, UsageError.
    """
    envs = make_environments(config, num_envs)
    if isinstance(envs, NativeEnvironments):
        if is_its_arrays(envs, NativeEnvironments(config, num_envs)):
            return envs
        envs.close()
        if config.vectorization == "native":
            message = f"env.vectorization: the vector form of {config.id} keeps more than arrays, and cannot be resumed"
            raise UsageError(message, "use `sync` or `auto`, or whole episodes")
        envs = SingleEnvironments(config, num_envs)
    assert isinstance(envs, SingleEnvironments)
    return envs


def is_its_arrays(envs: NativeEnvironments, other: NativeEnvironments) -> bool:
    """Say whether an instance that is given another's arrays and generator goes on as that one does. Closes `other`."""
    n, rows = len(envs.reset([0])), 16
    other.reset([1])
    envs.action_space.seed(0)
    actions = np.array([[envs.action_space.sample() for _ in range(n)] for _ in range(4 * rows)])
    everyone = np.ones(n, bool)
    for row in actions[rows:]:
        envs.step(row, everyone)
    other.put_back(envs.arrays())
    told = []
    for one in (envs, other):
        one.seed(2)
        told.append([b"".join(x.tobytes() for x in one.step(row, everyone)) for row in actions[:rows]])
    other.close()
    return told[0] == told[1]


def column_of(arrays: dict[str, Array], alone: dict[str, Array], column: int) -> dict[str, Array]:
    """Cut a column out of the arrays of a native form, to the shapes of `alone`, those of a form of one column.

    Raises: ValueError where the shapes do not say along which axis the columns stand.
    """
    cut = {}
    for name, like in alone.items():
        array = arrays[name]
        axes = [axis for axis, (n, one) in enumerate(zip(array.shape, like.shape, strict=True)) if n != one]
        if len(axes) > 1 or any(like.shape[axis] != 1 for axis in axes):
            raise ValueError(f"{name} of shape {array.shape} has no column of shape {like.shape}")
        cut[name] = array if not axes else np.take(array, [column], axes[0])
    return cut


def rebuilds(config: EnvConfig) -> bool:
    """Say whether every episode is given a fresh instance."""
    return spec(config).id in REMEMBERS_PAST_EPISODES if config.rebuild == "auto" else config.rebuild


def _takes_native(config: EnvConfig) -> bool:
    entry = spec(config).vector_entry_point
    if entry is None or config.wrappers or config.rebuild is True:
        return False
    try:
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
    except ImportError:  # what the vector form needs may be missing
        return False
    return getattr(creator, "metadata", {}).get("autoreset_mode") is AutoresetMode.NEXT_STEP


def _finite(values: Array) -> bool:
    """Say whether all are finite. A sum of squares that is finite shows it, in a quarter of the time."""
    if values.dtype.kind != "f":
        return True
    flat = values.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())


def _shown(action: Any) -> str:
    text = " ".join(str(action).split())
    return text if len(text) <= 80 else f"{text[:80]} …"
