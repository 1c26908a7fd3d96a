"""What a policy and a value function say along trajectories, [T, N]; masked rows are neutral."""

from __future__ import annotations

import torch
from torch import Tensor

from pgcli.estimators.trajectories import Trajectories, from_steps
from pgcli.policies.memory import Windows, ranges
from pgcli.policies.policy import Policy, ValueFunction


def steps_along(
    policy: Policy, trajectories: Trajectories, *, cut: int | None = None, values: bool = False
) -> tuple[Tensor, Windows | None]:
    """List the valid steps in an order that `policy` can go through: rows t N + n [M]; and their windows.

    A policy without memory takes them as they stand. One with memory takes each episode's run of steps as a window;
    `cut` ends windows after so many steps, each starting from what the policy remembers there. With `values`, the
    state after a run belongs to it, and cuts none.
    """
    mask = trajectories.reached if values else trajectories.mask
    if policy.memory is None:
        return mask.flatten().nonzero().squeeze(1), None
    valid, columns = trajectories.mask, trajectories.mask.shape[1]
    before, after = torch.zeros_like(valid), torch.zeros_like(valid)
    before[1:], after[:-1] = valid[:-1], valid[1:]
    column, start = (valid & ~before).T.nonzero().unbind(1)  # one column after the other, as the ends are
    lengths = (valid & ~after).T.nonzero()[:, 1] - start + 1 + int(values)
    memory = torch.zeros(len(start), policy.memory.state_size)
    if trajectories.memory is not None:
        memory = torch.where((start == 0)[:, None], trajectories.memory[column], memory)
    rows = ranges(start, lengths) * columns + column.repeat_interleave(lengths)
    windows = Windows(lengths, memory)
    if cut is None or int(lengths.max()) <= cut:
        return rows, windows
    return rows, _cut(policy, trajectories.obs.flatten(0, 1)[rows], windows, cut)


@torch.no_grad()
def _cut(policy: Policy, obs: Tensor, windows: Windows, cut: int) -> Windows:
    """Cut windows after every `cut` steps, and run the policy to what it remembers there."""
    assert policy.memory is not None
    x, starts = policy.read(obs), windows.lengths.cumsum(0) - windows.lengths
    counts = (windows.lengths - 1) // cut + 1
    firsts = counts.cumsum(0) - counts
    memory = windows.memory.to(x.dtype).repeat_interleave(counts, 0)
    for number in range(1, int(counts.max())):
        longer = (counts > number).nonzero().squeeze(1)
        rows = starts[longer] + (number - 1) * cut + torch.arange(cut)[:, None]
        _, after = policy.memory.run(x[rows], memory[firsts[longer] + number - 1])
        memory[firsts[longer] + number] = after
    lengths = torch.full((len(memory),), cut)
    lengths[firsts + counts - 1] = windows.lengths - (counts - 1) * cut
    return Windows(lengths, memory)


@torch.no_grad()
def values_along(policy: Policy, value: ValueFunction | None, trajectories: Trajectories) -> Tensor:
    """Compute V [T + 1, N] of the states that were reached; 0 elsewhere, and without a value function."""
    shape, dtype = trajectories.reached.shape, trajectories.rewards.dtype
    if value is None:
        return torch.zeros(shape, dtype=dtype)
    rows, windows = steps_along(policy, trajectories, values=True)
    values = value(policy, trajectories.obs.flatten(0, 1)[rows], windows)
    return from_steps(values.to(dtype), rows, shape)


def log_probs_along(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute log π(a|s) [T, N] of what was done, in nats; 0 on masked rows."""
    rows, windows = steps_along(policy, trajectories)
    outputs = policy(trajectories.obs.flatten(0, 1)[rows], windows)
    log_probs = policy.distribution.log_probs(outputs, trajectories.actions.flatten(0, 1)[rows])
    return from_steps(log_probs, rows, trajectories.mask.shape)


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
