"""What a policy and a value function say along trajectories, [T, N]; masked rows are neutral."""

from __future__ import annotations

import torch
from torch import Tensor

from pgcli.estimators.trajectories import Trajectories, from_steps
from pgcli.policies.policy import Policy, ValueFunction


@torch.no_grad()
def values_along(policy: Policy, value: ValueFunction | None, trajectories: Trajectories) -> Tensor:
    """Compute V [T + 1, N] of the states that were reached; 0 elsewhere, and without a value function."""
    reached, dtype = trajectories.reached, trajectories.rewards.dtype
    if value is None:
        return torch.zeros(reached.shape, dtype=dtype)
    return from_steps(value(policy, trajectories.obs[reached]).to(dtype), reached)


def log_probs_along(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute log π(a|s) [T, N] of what was done, in nats; 0 on masked rows."""
    mask = trajectories.mask
    outputs = policy(trajectories.obs[:-1][mask])
    return from_steps(policy.distribution.log_probs(outputs, trajectories.actions[mask]), mask)


@torch.no_grad()
def ratios_along(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute π/μ [T, N]; 1 on masked rows, and for data without behavior_log_probs, which are the policy's own."""
    behavior, rewards = trajectories.behavior_log_probs, trajectories.rewards
    if behavior is None:
        return torch.ones_like(rewards)
    log_ratios = torch.where(trajectories.mask, log_probs_along(policy, trajectories) - behavior, 0)
    return log_ratios.exp().to(rewards.dtype)


def squared_scores_along(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute |Σ_t ∇log π(a_t|s_t)|² of each trajectory, [N], with one backward pass for each."""
    log_probs = log_probs_along(policy, trajectories).sum(0)
    each = torch.eye(len(log_probs), dtype=log_probs.dtype)
    scores = torch.autograd.grad(log_probs, list(policy.parameters()), each, is_grads_batched=True)
    squares = torch.stack([score.flatten(1).square().sum(1) for score in scores])
    return squares.sum(0).to(trajectories.rewards.dtype)
