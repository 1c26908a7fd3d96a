"""Run functions on chunks of whole episodes, in this process or in workers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pgcli.config.choices import Mode
from pgcli.config.schema import EnvConfig
from pgcli.environments.make import Environments
from pgcli.policies.policy import Actor, Policy
from pgcli.policies.stacked import stacked_actor
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.pool import LocalPool, WorkerPool
from pgcli.seeding import DerivedSeeds
from pgcli.system.processes import Check


class ChunkFunction(Protocol):
    """A pure function of (policy, columns) on one chunk of columns, which can be pickled."""

    @property
    def mode(self) -> Mode:
        """How the policy acts."""

    @property
    def kind(self) -> Hashable:
        """Everything but seeds that `play` depends on."""

    def seeds(self, columns: range) -> DerivedSeeds:
        """Return the reset seed of each column."""

    def generator(self, columns: range) -> np.random.Generator:
        """Return the random stream of the actions."""

    def play(
        self, seeds: Sequence[int], generator: np.random.Generator, envs: Environments, actor: Actor, check: Check
    ) -> Any:
        """Return the result for one column per seed; `check` is called before every step."""

    def part(self, result: Any, columns: slice) -> Any:
        """Return the result of neighbouring columns."""


class ChunkExecutor:
    """Applies functions to chunks of columns. Owns the worker pool and this process's environments."""

    def __init__(self, environments: EnvironmentCache, pool: WorkerPool | None = None) -> None:
        self.environments = environments
        self.pool = pool or LocalPool(environments)
        self._evaluation: EnvConfig | None = None  # evaluation environments; None: training environments

    def for_evaluation(self, config: EnvConfig) -> ChunkExecutor:
        """Return an executor with the same workers and separate evaluation environments."""
        executor = ChunkExecutor(self.environments.for_evaluation(config), self.pool)
        executor._evaluation = config
        return executor

    def map(self, function: ChunkFunction, columns: int, policy: Policy, check: Check) -> list[Any]:
        """Apply `function` to every chunk; return the results in the order of the columns."""
        chunks = chunk_ranges(self.environments.config, columns)
        tasks = {number: ChunkTask(function, chunk, self._evaluation) for number, chunk in enumerate(chunks)}
        done = self.pool.map(policy, tasks, check)
        return [done[number] for number in tasks]

    def close(self) -> None:
        """Close the environments and end the workers."""
        try:
            self.environments.close()
        finally:
            self.pool.close()


@dataclass(frozen=True)
class ChunkTask:
    """A function on one chunk of columns, alone or with the chunks of other seeds."""

    function: ChunkFunction
    chunk: range
    evaluation: EnvConfig | None

    @property
    def columns(self) -> int:
        """The number of columns."""
        return len(self.chunk)

    @property
    def kind(self) -> Hashable:
        """What chunks of different seeds must have in common to be played as one."""
        return type(self.function), self.function.kind, len(self.chunk), self.evaluation is None

    def __call__(self, environments: EnvironmentCache, policy: Policy, check: Check) -> Any:
        """Return the result for the chunk."""
        function, envs = self.function, self._environments(environments).of_width(len(self.chunk))
        seeds, generator = function.seeds(self.chunk), function.generator(self.chunk)
        return function.play(seeds, generator, envs, policy.actor(function.mode), check)

    def together(
        self, tasks: Sequence[ChunkTask], environments: EnvironmentCache, policies: Sequence[Policy], check: Check
    ) -> list[Any]:
        """Return the results of the chunks of several seeds."""
        function, width = self.function, self.columns
        seeds = [seed for task in tasks for seed in task.function.seeds(task.chunk).array().tolist()]
        generators = [task.function.generator(task.chunk) for task in tasks]
        actor = stacked_actor(policies, function.mode, generators, width)
        envs = self._environments(environments).of_stack(len(tasks), width)
        result = function.play(seeds, generators[0], envs, actor, check)
        return [function.part(result, slice(start, start + width)) for start in range(0, len(seeds), width)]

    def _environments(self, environments: EnvironmentCache) -> EnvironmentCache:
        return environments if self.evaluation is None else environments.for_evaluation(self.evaluation)
