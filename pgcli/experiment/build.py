"""Build a run in memory from its config: environments, learner, sampler, worker pool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar, assert_never

from pgcli.algorithm.gradient_variance import measure
from pgcli.algorithm.learner import Learner, build_agent
from pgcli.config import Config
from pgcli.config.schema import EnvConfig
from pgcli.errors import EnvironmentFailure
from pgcli.policies.observations import Encoder
from pgcli.runs import checkpoints
from pgcli.runs.directory import earlier_evaluations, elapsed_seconds
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.pool import LocalPool, WorkerPool, worker_count
from pgcli.sampling.process_pool import ProcessPool
from pgcli.sampling.ray_pool import RayPool
from pgcli.system.memory import check_memory
from pgcli.system.processes import Check
from pgcli.system.ray_cluster import cores, cpus, join
from pgcli.training.loop import Counters, Training

ROW_BYTES = 40  # of a step without its observation: action, reward, flags and weights


def environments_of(config: Config) -> EnvConfig:
    """Return the config of a run's environments; the columns of a group share a reset seed."""
    return config.env.with_shared_seeds() if config.group_size > 1 else config.env


def columns_of(config: Config) -> int:
    """Return the number of columns of a rollout."""
    return config.rollout.episodes or config.env.num_envs


def build_learner(config: Config, environments: EnvironmentCache, *, user_code: bool = True) -> Learner:
    """Build the learner for these environments.

    Args: user_code: load `algorithm.estimator`, which runs the user's file.
    """
    segments = config.rollout.steps is not None  # which have their own instances
    envs = environments.of_width(1 if segments else len(chunk_ranges(config.env, columns_of(config))[0]))
    agent = build_agent(envs.observation_space, envs.action_space, config, user_code=user_code)
    learner = Learner(agent, measure=measure)
    _check_batch(config, learner.policy.encoder)
    return learner


def _check_batch(config: Config, encoder: Encoder) -> None:
    """Raise UsageError if the smallest possible rollout exceeds this machine's memory."""
    rollout, reuse = config.rollout, config.algorithm.reuse
    stored = math.prod(encoder.layout.shape) * encoder.layout.dtype.itemsize
    steps, row = rollout.steps or 1, stored + 4 * encoder.size + ROW_BYTES
    columns = columns_of(config)
    what = f"{steps:,} steps of {columns:,} environments" if rollout.steps else f"{columns:,} episodes"
    check_memory(
        reuse * (steps + 1) * columns * row,
        f"an iteration collects {what} of {row:,} bytes each",
        f"make rollout.{'steps or env.num_envs' if rollout.steps else 'episodes'} smaller",
    )
    chunk_ranges(config.env, config.evaluation.episodes)


def worker_pool(config: Config, environments: EnvironmentCache, share: int, check: Check) -> WorkerPool:
    """Build the configured worker pool and join its cluster; workers start later.

    Args: share: the number of runs that share the cores.
    Raises: UsageError, EnvironmentFailure.
    """
    env, count = environments.config, config.sampling.workers
    chunks = chunk_ranges(env, columns_of(config))
    match config.sampling.backend:
        case "local":
            if count == "auto":
                vectorized = environments.of_width(len(chunks[0])).form != "sync"
                count = worker_count(max(cores() // share, 1), len(chunks), vectorized)
            return ProcessPool(env, config.policy, count) if count else LocalPool(environments)
        case "ray":
            if count == 0 or (count == "auto" and len(chunks) == 1):
                return LocalPool(environments)
            leave = join(cores() if count == "auto" else count, check)
            own = cpus() // share - (share > 1)  # a run placed on the cluster occupies one CPU
            actors = worker_count(own, len(chunks), vectorized=False) if count == "auto" else count
            if actors:
                return RayPool(env, config.policy, actors, leave)
            leave()
            return LocalPool(environments)
        case never:
            assert_never(never)


def restore(run: Training, checkpoint: checkpoints.Checkpoint, name: str, path: Path) -> int:
    """Restore the state of the run in `path` from its checkpoint `name`.

    Returns: the number of environments that were not restored. Raises: CheckpointError, EnvironmentFailure.
    """
    checkpoints.check_tensors(checkpoint.agent, run.learner.state_dict(), name)
    run.learner.load_state_dict(checkpoint.agent)
    lost = run.sampler.load_state_dict(checkpoint.sampler, run.learner.policy, checkpoint.counters["iteration"])
    iteration = checkpoint.counters["iteration"]
    run.counters = Counters(**checkpoint.counters, seconds=elapsed_seconds(path, iteration))
    run.evaluations = earlier_evaluations(path, iteration)
    return lost


class Closeable(Protocol):
    """A resource with simulators."""

    def close(self) -> None:
        """Free the resource."""


T = TypeVar("T", bound=Closeable)


@contextmanager
def released(resource: T) -> Iterator[T]:
    """Close `resource` at the end. An error in it does not hide the exception that ended the run."""
    try:
        yield resource
    except BaseException:
        with suppress(EnvironmentFailure):
            resource.close()
        raise
    try:
        resource.close()
    except EnvironmentFailure as fault:
        fault.hint = "the run had finished; all its results are saved"
        raise
