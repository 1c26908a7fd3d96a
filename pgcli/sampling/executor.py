"""Run functions on chunks of whole episodes, in this process or in workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pgcli.config.choices import Mode
from pgcli.config.schema import EnvConfig
from pgcli.environments.make import Environments
from pgcli.policies.policy import Actor, Policy
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.pool import LocalPool, WorkerPool
from pgcli.system.process_state import environments_turn
from pgcli.system.processes import Check


class ChunkFunction(Protocol):
    """A pure function of (policy, columns) on one chunk of columns, which can be pickled."""

    @property
    def mode(self) -> Mode:
        """How the policy acts."""

    def __call__(self, columns: range, envs: Environments, actor: Actor, check: Check) -> Any:
        """Return the result for a chunk; `check` is called before every step."""


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
        if not self.pool.count:  # this process needs no list of tasks
            actor, results = policy.actor(function.mode), []
            for chunk in chunks:
                with environments_turn():
                    results.append(function(chunk, self.environments.of_width(len(chunk)), actor, check))
            return results
        tasks = {number: _ChunkTask(function, chunk, self._evaluation) for number, chunk in enumerate(chunks)}
        done = self.pool.map(policy, tasks, check)
        return [done[number] for number in tasks]

    def close(self) -> None:
        """Close the environments and end the workers."""
        try:
            self.environments.close()
        finally:
            self.pool.close()


@dataclass(frozen=True)
class _ChunkTask:
    function: ChunkFunction
    chunk: range
    evaluation: EnvConfig | None

    def __call__(self, environments: EnvironmentCache, policy: Policy, check: Check) -> Any:
        if self.evaluation is not None:
            environments = environments.for_evaluation(self.evaluation)
        envs = environments.of_width(len(self.chunk))
        return self.function(self.chunk, envs, policy.actor(self.function.mode), check)
