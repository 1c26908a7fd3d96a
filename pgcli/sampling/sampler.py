"""Samplers: whole episodes, or segments of environments that continue across iterations."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pgcli.config.schema import Config
from pgcli.policies.policy import Policy
from pgcli.sampling.episodes import EpisodeSampler
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import Rollout
from pgcli.sampling.segments import SegmentSampler
from pgcli.system.processes import Check


class Sampler(Protocol):
    """Collects the trajectories of an iteration, and keeps its state at the start of the last two iterations."""

    failed_restores: int
    """Environments that a new worker could not restore in the last `collect`; each started a new episode."""

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect for one iteration, from the state at its start.

        `check` is called before every step. If it, or an environment, raises, the state does not change.
        Raises: EnvironmentFailure.
        """

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return the state at the start of `iteration`, as tensors named `sampler.…`.

        That is the iteration collected last, whose update may have failed, or the one after it.
        """

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy, iteration: int) -> int:
        """Restore the state at the start of `iteration`; return how many environments could not be restored.

        Raises: CheckpointError for tensors that are no state of this sampler; EnvironmentFailure.
        """


def make_sampler(config: Config, executor: ChunkExecutor) -> Sampler:
    """Build the sampler that `rollout` asks for."""
    return (EpisodeSampler if config.rollout.steps is None else SegmentSampler)(config, executor)
