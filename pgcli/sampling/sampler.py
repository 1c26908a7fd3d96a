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
    """Collects the trajectories of an iteration. Keeps its state at the start of the last two."""

    failed_restores: int
    """Environments not restored in a new worker during the last `collect`; each began a new episode."""

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect one iteration from the state at its start.

        `check` is called before every step. If an exception is raised, the state does not change.
        Raises: EnvironmentFailure.
        """

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return the state at the start of `iteration`, as tensors named `sampler.…`.

        `iteration` is the last collected one, whose update may have failed, or the next.
        """

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy, iteration: int) -> int:
        """Restore the state at the start of `iteration`; return the number of failed environments.

        Raises: CheckpointError for tensors of another sampler; EnvironmentFailure.
        """


def make_sampler(config: Config, executor: ChunkExecutor) -> Sampler:
    """Build the sampler that `rollout` configures."""
    return (EpisodeSampler if config.rollout.steps is None else SegmentSampler)(config, executor)
