"""`algorithm.reuse`: policies and trajectories of the last iterations."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch

from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import trajectory_log_probs


class PastIterations:
    """The last `count` policies, newest first, with their trajectories and log-probabilities."""

    def __init__(self, policy: Policy, count: int) -> None:
        self.policies = [deepcopy(policy) for _ in range(count)]
        self.trajectories: list[Trajectories] = []

    def joined(self, trajectories: Trajectories) -> Trajectories:
        """Return new trajectories followed by those of past iterations."""
        return pad_columns([trajectories, *self.trajectories])

    def add(self, policy: Policy, trajectories: Trajectories) -> None:
        """Add an iteration and drop the oldest. `policy` is a copy of the acting policy."""
        self.policies = [policy, *self.policies[:-1]]
        self._keep(policy, trajectories)

    def collect_again(self, iteration: int, collect: Callable[[Policy, int], Trajectories]) -> None:
        """Collect the trajectories that update `iteration` reuses; checkpoints do not store them."""
        self.trajectories = []
        for age, policy in reversed(list(enumerate(self.policies[:iteration], 1))):
            self._keep(policy, collect(policy, iteration - age))

    def _keep(self, policy: Policy, trajectories: Trajectories) -> None:
        if trajectories.behavior_log_probs is None:
            trajectories = with_log_probs(policy, trajectories)
        self.trajectories = [trajectories, *self.trajectories][: len(self.policies)]


@torch.no_grad()
def with_log_probs(policy: Policy, trajectories: Trajectories) -> Trajectories:
    """Return trajectories with the log-probabilities of the policy that collected them."""
    return replace(trajectories, behavior_log_probs=trajectory_log_probs(policy, trajectories))
