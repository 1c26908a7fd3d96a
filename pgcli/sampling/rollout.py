"""Rollouts: a chunk of columns is a pure function of (policy, seeds, noise), whoever collects it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pgcli.config.choices import Mode
from pgcli.config.schema import Config, EnvConfig
from pgcli.environments.checks import MAX_EPISODE_STEPS
from pgcli.environments.forms import Environments, make_environments
from pgcli.errors import EnvironmentFailure
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.policy import Actor, Policy
from pgcli.sampling.pool import Crew
from pgcli.seeding import Purpose, Seeds, derived_seed, generator

Array = NDArray[Any]
NOISE_ROWS = 64  # random numbers are drawn for so many steps at a time


class Ended(NamedTuple):
    """An episode that ended, or was cut at the horizon: returns in reward units, length in steps."""

    episode_return: float
    discounted_return: float
    length: int
    how: str  # terminated | truncated | horizon


class Rollout(NamedTuple):
    """What one iteration collected, and the episodes that ended in it."""

    trajectories: Trajectories
    episodes: list[Ended]


class Transition(NamedTuple):
    """One step of all columns. `running` is False where the episode was over before."""

    obs: Array
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    running: Array
    next_obs: Array


def play(
    envs: Environments,
    actor: Actor,
    seeds: Sequence[int],
    generator: np.random.Generator,
    horizon: int | None,
    check: Callable[[], None],
) -> Iterator[Transition]:
    """Play one episode in every column, all from their reset, until the last is over or cut at `horizon`.

    `check` is called before every step; what it raises ends the rollout (a signal, say).
    """
    obs = envs.reset(seeds)
    running, memory = np.ones(len(seeds), bool), actor.start(len(seeds))
    for t in range(MAX_EPISODE_STEPS if horizon is None else horizon):
        check()
        if t % NOISE_ROWS == 0:
            noise = actor.noise(generator, NOISE_ROWS, len(seeds))
        actions, memory = actor.respond(obs, noise[t % NOISE_ROWS], memory)
        next_obs, rewards, terminated, truncated = envs.step(actor.for_environment(actions), running)
        yield Transition(obs, actions, rewards, terminated, truncated, running, next_obs)
        running = running & ~(terminated | truncated)
        if not running.any():
            return
        obs = next_obs
    if horizon is None:
        raise endless()


def endless() -> EnvironmentFailure:
    """Tell an episode that the guard stops."""
    return EnvironmentFailure(
        f"an episode has not ended after {MAX_EPISODE_STEPS} steps",
        "set env.max_episode_steps; rollout.horizon cuts training only",
    )


def to_trajectories(transitions: Sequence[Transition]) -> Trajectories:
    """Stack the steps of one chunk, time first."""
    obs, actions, rewards, terminated, truncated, running, next_obs = zip(*transitions, strict=True)
    mask = _stacked(running)
    return Trajectories(
        obs=torch.from_numpy(_stacked((*obs, next_obs[-1]))),
        actions=torch.from_numpy(_stacked(actions)),
        rewards=torch.from_numpy(np.where(mask, _stacked(rewards).astype(np.float64, copy=False), 0.0)),
        terminated=torch.from_numpy(_stacked(terminated) & mask),
        truncated=torch.from_numpy(_stacked(truncated) & mask),
        mask=torch.from_numpy(mask),
    )


def _stacked(rows: Sequence[Array]) -> Array:
    """Do what np.stack does, in half the time for many small rows."""
    return np.concatenate(rows).reshape(len(rows), *rows[0].shape)


def chunk_ranges(columns: int, width: int) -> list[range]:
    """Split columns into chunks of `width`; the last may be narrower."""
    return [range(start, min(start + width, columns)) for start in range(0, columns, width)]


class Play(Protocol):
    """What is done with one chunk of columns; it can be sent to another process."""

    @property
    def mode(self) -> Mode:
        """How the policy acts."""

    def __call__(self, columns: range, envs: Environments, actor: Actor, check: Callable[[], None]) -> Any:
        """Do it. A pure function of (policy, columns)."""


class Chunks:
    """Splits columns into chunks, and keeps the environments of each width; with workers, these have their own."""

    def __init__(self, config: EnvConfig, workers: Crew | None = None) -> None:
        self._config, self.workers = config, workers
        self._environments: dict[int, Environments] = {}
        self.width = config.chunk_size or config.num_envs

    def split(self, columns: int) -> Iterator[tuple[range, Environments]]:
        """Give each chunk's columns and the environments to play them in."""
        for chunk in self.ranges(columns):
            yield chunk, self.environments(len(chunk))

    def ranges(self, columns: int) -> list[range]:
        """Give each chunk's columns."""
        return chunk_ranges(columns, self.width)

    def map(self, play: Play, columns: int, policy: Policy, check: Callable[[], None]) -> list[Any]:
        """Do one thing with every chunk, here or in workers: the results in the order of the columns."""
        if self.workers is not None:
            chunks = self.ranges(columns)
            return self.workers.run(policy, len(chunks), lambda n, _: _InWorker(self._config, play, chunks[n]), check)
        actor = policy.actor(play.mode)
        return [play(chunk, envs, actor, check) for chunk, envs in self.split(columns)]

    def environments(self, width: int) -> Environments:
        """Give `width` environments side by side, the same ones every time."""
        if width not in self._environments:
            self._environments[width] = make_environments(self._config, width)
        return self._environments[width]

    def close(self) -> None:
        """Free what the simulators hold, and end the workers."""
        try:
            for environments in self._environments.values():
                environments.close()
        finally:
            if self.workers is not None:
                self.workers.close()


@dataclass(frozen=True)
class _InWorker:
    config: EnvConfig
    play: Play
    columns: range

    def __call__(self, kept: dict[Any, Any], policy: Policy, check: Callable[[], None]) -> Any:
        chunks = kept.setdefault("chunks", Chunks(self.config))
        envs = chunks.environments(len(self.columns))
        return self.play(self.columns, envs, policy.actor(self.play.mode), check)


def episode_seed(config: Config, iteration: int, column: int) -> int:
    """Derive the reset seed of a whole episode; the columns of a group share it."""
    return derived_seed(config.seed, Purpose.RESET, iteration, column // config.group_size)


@dataclass(frozen=True)
class Collect:
    """Collect one whole episode in every column."""

    config: Config
    iteration: int
    mode: Mode = "sampled"

    def __call__(self, columns: range, envs: Environments, actor: Actor, check: Callable[[], None]) -> Trajectories:
        """Collect a chunk."""
        config, iteration = self.config, self.iteration
        seeds = Seeds(columns, lambda column: episode_seed(config, iteration, column))
        random = generator(config.seed, Purpose.ACT, iteration, columns.start)
        return to_trajectories(list(play(envs, actor, seeds, random, config.rollout.horizon, check)))


def collect_episodes(
    config: Config, chunks: Chunks, policy: Policy, iteration: int, check: Callable[[], None]
) -> Trajectories:
    """Collect `rollout.episodes` whole episodes, one column each. A pure function of (policy, iteration).

    Raises: EnvironmentFailure.
    """
    assert config.rollout.episodes is not None
    return pad_columns(chunks.map(Collect(config, iteration), config.rollout.episodes, policy, check))


@dataclass(frozen=True)
class Measure:
    """Play one whole episode in every column: undiscounted and discounted returns and lengths, [3, N]."""

    mode: Mode
    gamma: float
    horizon: int | None
    seed: int
    purposes: tuple[Purpose, Purpose]
    indices: tuple[int, ...]

    def __call__(self, columns: range, envs: Environments, actor: Actor, check: Callable[[], None]) -> Array:
        """Measure a chunk. Raises: EnvironmentFailure if a return is not finite."""
        seeds = Seeds(columns, lambda column: derived_seed(self.seed, self.purposes[0], *self.indices, column))
        random = generator(self.seed, self.purposes[1], *self.indices, columns.start)
        sums = np.zeros((3, len(columns)))
        discount = 1.0
        for transition in play(envs, actor, seeds, random, self.horizon, check):
            rewards = np.where(transition.running, transition.rewards, 0.0).astype(np.float64, copy=False)
            sums += (rewards, discount * rewards, transition.running)
            discount *= self.gamma
        if not np.isfinite(sums).all():
            worst = seeds[int(np.flatnonzero(~np.isfinite(sums).all(0))[0])]
            raise EnvironmentFailure(f"non-finite rewards in the evaluation episode with reset seed {worst}")
        return sums


def ended_episodes(trajectories: Trajectories, gamma: float) -> list[Ended]:
    """Describe each trajectory of whole episodes; the discounted return is Σ_t γ^t r_t."""
    rewards, mask, terminated, truncated = (
        x.numpy() for x in (trajectories.rewards, trajectories.mask, trajectories.terminated, trajectories.truncated)
    )
    discounts = gamma ** np.arange(len(rewards))[:, None]
    cut = np.where((truncated & mask).any(0), "truncated", "horizon")
    how = np.where((terminated & mask).any(0), "terminated", cut)
    columns = (rewards.sum(0), (discounts * rewards).sum(0), mask.sum(0), how)
    return [Ended(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
