"""Whole episodes, one per column: collected for updates or measured for evaluations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pgcli.config.choices import Mode
from pgcli.config.schema import Config
from pgcli.environments.make import Environments
from pgcli.errors import CheckpointError, EnvironmentFailure
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.policy import Actor, Policy
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import Array, EndedEpisode, Rollout, Transition, named, play, reported, to_trajectories
from pgcli.seeding import DerivedSeeds, Purpose, generator
from pgcli.system.processes import Check


class EpisodeSampler:
    """Sampler of whole episodes. It has no state: an iteration is a pure function of the policy."""

    failed_restores = 0

    def __init__(self, config: Config, executor: ChunkExecutor) -> None:
        self._config, self._executor = config, executor

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect `rollout.episodes` episodes. Raises: EnvironmentFailure."""
        assert self._config.rollout.episodes is not None
        work = CollectEpisodes(self._config, iteration)
        chunks = self._executor.map(work, self._config.rollout.episodes, policy, check)
        parts, infos = zip(*chunks, strict=True)
        trajectories, info = pad_columns(list(parts)), np.concatenate(infos)
        ended = ended_episodes(trajectories, self._config.algorithm.gamma)
        names = self._config.info_names
        return Rollout(
            trajectories, [one._replace(info=named(names, row)) for one, row in zip(ended, info.tolist(), strict=True)]
        )

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return an empty dictionary."""
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy, iteration: int) -> int:
        """Raise CheckpointError if there are tensors."""
        if tensors:
            raise CheckpointError(
                f"{sorted(tensors)[0]} is in the checkpoint, but a sampler of whole episodes has no state"
            )
        return 0


def episode_seed(config: Config, iteration: int, column: int) -> int:
    """Derive the reset seed of a whole episode; the columns of a group share it."""
    seed: int = episode_seeds(config, iteration, range(column, column + 1))[0]
    return seed


def episode_seeds(config: Config, iteration: int, columns: range) -> DerivedSeeds:
    """Derive the reset seeds of whole episodes."""
    return DerivedSeeds(config.seed, Purpose.RESET, iteration, np.array(columns) // config.group_size)


def ended_episodes(trajectories: Trajectories, gamma: float) -> list[EndedEpisode]:
    """Describe each trajectory of whole episodes; the discounted return is Σ_t γ^t r_t."""
    rewards, mask, terminated, truncated = (
        x.numpy() for x in (trajectories.rewards, trajectories.mask, trajectories.terminated, trajectories.truncated)
    )
    discounts = gamma ** np.arange(len(rewards))[:, None]
    cut = np.where((truncated & mask).any(0), "truncated", "horizon")
    how = np.where((terminated & mask).any(0), "terminated", cut)
    columns = (rewards.sum(0), (discounts * rewards).sum(0), mask.sum(0), how)
    return [EndedEpisode(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass(frozen=True)
class CollectEpisodes:
    """Collect one whole episode in every column of a chunk."""

    config: Config
    iteration: int
    mode: Mode = "sampled"

    @property
    def kind(self) -> Hashable:
        """Everything but seeds that `play` depends on."""
        return self.config.rollout.horizon, self.config.info_names

    def seeds(self, columns: range) -> DerivedSeeds:
        """Return the reset seed of each column."""
        return episode_seeds(self.config, self.iteration, columns)

    def generator(self, columns: range) -> np.random.Generator:
        """Return the random stream of the actions."""
        return generator(self.config.seed, Purpose.ACT, self.iteration, columns.start)

    def play(
        self, seeds: Sequence[int], generator: np.random.Generator, envs: Environments, actor: Actor, check: Check
    ) -> tuple[Trajectories, Array]:
        """Return the trajectories and the numbers reported at their ends, [N, K]."""
        names = self.config.info_names
        steps = list(play(envs, actor, seeds, generator, self.config.rollout.horizon, check, names))
        return to_trajectories(steps), reported(steps, len(seeds), len(names))

    def part(self, result: tuple[Trajectories, Array], columns: slice) -> tuple[Trajectories, Array]:
        """Return the result of neighbouring columns, cut after their longest episode."""
        return result[0].columns(columns).contiguous(), result[1][columns]


@dataclass(frozen=True)
class MeasureEpisodes:
    """Play one whole episode in every column of a chunk and keep only the sums."""

    mode: Mode
    gamma: float
    horizon: int | None
    seed: int
    purposes: tuple[Purpose, Purpose]
    indices: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def kind(self) -> Hashable:
        """Everything but seeds that `play` depends on."""
        return self.mode, self.gamma, self.horizon, self.names

    def seeds(self, columns: range) -> DerivedSeeds:
        """Return the reset seed of each column."""
        return DerivedSeeds(self.seed, self.purposes[0], *self.indices, np.array(columns))

    def generator(self, columns: range) -> np.random.Generator:
        """Return the random stream of the actions."""
        return generator(self.seed, self.purposes[1], *self.indices, columns.start)

    def play(
        self, seeds: Sequence[int], generator: np.random.Generator, envs: Environments, actor: Actor, check: Check
    ) -> Array:
        """Return undiscounted and discounted returns, lengths and reported numbers, [3 + K, N].

        Raises: EnvironmentFailure if a return is not finite.
        """
        sums = np.zeros((3, len(seeds)))
        discount, info = 1.0, list[Transition]()
        for transition in play(envs, actor, seeds, generator, self.horizon, check, self.names):
            if transition.info is not None:
                info.append(transition)
            rewards = np.where(transition.running, transition.rewards, 0.0).astype(np.float64, copy=False)
            sums += (rewards, discount * rewards, transition.running)
            discount *= self.gamma
        if not np.isfinite(sums).all():
            worst = seeds[int(np.flatnonzero(~np.isfinite(sums).all(0))[0])]
            raise EnvironmentFailure(f"non-finite rewards in the evaluation episode with reset seed {worst}")
        return np.concatenate((sums, reported(info, len(seeds), len(self.names)).T))

    def part(self, result: Array, columns: slice) -> Array:
        """Return the result of neighbouring columns."""
        return result[:, columns]
