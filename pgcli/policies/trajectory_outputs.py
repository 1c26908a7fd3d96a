"""Outputs of policy and value function for trajectories [T, N]."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from pgcli.estimators.trajectories import Trajectories, from_steps
from pgcli.policies.networks import is_plain
from pgcli.policies.policy import Policy
from pgcli.policies.recurrent import Sequences, ranges
from pgcli.policies.value_function import ValueFunction

NUMBERS = 2**24  # of float32, 64 MiB: gradients and activations of columns that are computed together


def valid_steps(
    policy: Policy, trajectories: Trajectories, *, max_length: int | None = None, values: bool = False
) -> tuple[Tensor, Sequences | None]:
    """Return the valid steps in processing order, rows t N + n [M], and their sequences.

    For a feed-forward policy, rows ascend and there are no sequences. For a recurrent policy, each episode is a
    sequence, split after every `max_length` steps, where the recurrent state is computed. With `values`, a sequence
    includes the state after its last step.
    """
    mask = trajectories.reached if values else trajectories.mask
    if policy.memory is None:
        return mask.flatten().nonzero().squeeze(1), None
    valid, columns = trajectories.mask, trajectories.mask.shape[1]
    before, after = torch.zeros_like(valid), torch.zeros_like(valid)
    before[1:], after[:-1] = valid[:-1], valid[1:]
    column, start = (valid & ~before).T.nonzero().unbind(1)  # column after column, like the ends
    lengths = (valid & ~after).T.nonzero()[:, 1] - start + 1 + int(values)
    memory = torch.zeros(len(start), policy.memory.state_size)
    if trajectories.memory is not None:
        memory = torch.where((start == 0)[:, None], trajectories.memory[column], memory)
    rows = ranges(start, lengths) * columns + column.repeat_interleave(lengths)
    sequences = Sequences(lengths, memory)
    if max_length is None or int(lengths.max()) <= max_length:
        return rows, sequences
    return rows, _cut(policy, trajectories.obs.flatten(0, 1)[rows], sequences, max_length)


@torch.no_grad()
def _cut(policy: Policy, obs: Tensor, sequences: Sequences, max_length: int) -> Sequences:
    """Split sequences after every `max_length` steps; compute the recurrent states there."""
    assert policy.memory is not None
    x, starts = policy.read(obs.to(policy.device)), sequences.lengths.cumsum(0) - sequences.lengths
    counts = (sequences.lengths - 1) // max_length + 1
    firsts = counts.cumsum(0) - counts
    memory = sequences.memory.repeat_interleave(counts, 0).to(x)
    for number in range(1, int(counts.max())):
        longer = (counts > number).nonzero().squeeze(1)
        rows = starts[longer] + (number - 1) * max_length + torch.arange(max_length)[:, None]
        _, after = policy.memory.run(x[rows], memory[firsts[longer] + number - 1])
        memory[firsts[longer] + number] = after
    lengths = torch.full((len(memory),), max_length)
    lengths[firsts + counts - 1] = sequences.lengths - (counts - 1) * max_length
    return Sequences(lengths, memory)


@torch.no_grad()
def trajectory_values(policy: Policy, value: ValueFunction | None, trajectories: Trajectories) -> Tensor:
    """Compute V [T + 1, N] of the observed states; 0 elsewhere and without a value function."""
    shape, dtype = trajectories.reached.shape, trajectories.rewards.dtype
    if value is None:
        return torch.zeros(shape, dtype=dtype)
    rows, sequences = valid_steps(policy, trajectories, values=True)
    values = value(policy, trajectories.obs.flatten(0, 1).index_select(0, rows).to(policy.device), sequences)
    return from_steps(values.to(trajectories.rewards), rows, shape)


def trajectory_log_probs(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute log π(a|s) [T, N] of the actions taken, in nats; 0 on masked rows."""
    log_probs, rows = _log_probs(policy, trajectories)
    return from_steps(log_probs, rows, trajectories.mask.shape)


def _log_probs(policy: Policy, trajectories: Trajectories, max_length: int | None = None) -> tuple[Tensor, Tensor]:
    rows, sequences = valid_steps(policy, trajectories, max_length=max_length)
    steps = (x.flatten(0, 1).index_select(0, rows) for x in (trajectories.obs, trajectories.actions))
    obs, actions = (x.to(policy.device) for x in steps)
    return policy.distribution.log_probs(policy(obs, sequences), actions).to(rows.device), rows


@torch.no_grad()
def trajectory_ratios(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute π/μ [T, N]; 1 on masked rows, and if μ = π because no behavior_log_probs are recorded."""
    behavior, rewards = trajectories.behavior_log_probs, trajectories.rewards
    if behavior is None:
        return torch.ones_like(rewards)
    log_ratios = torch.where(trajectories.mask, trajectory_log_probs(policy, trajectories) - behavior, 0)
    return log_ratios.exp().to(rewards.dtype)


def squared_score_norms(policy: Policy, trajectories: Trajectories) -> Tensor:
    """Compute |Σ_t ∇log π(a_t|s_t)|² of each trajectory, [N], with one backward pass for each."""
    log_probs = trajectory_log_probs(policy, trajectories).sum(0)
    each = torch.eye(len(log_probs), dtype=log_probs.dtype)
    scores = torch.autograd.grad(log_probs, list(policy.parameters()), each, is_grads_batched=True)
    squares = torch.stack([score.flatten(1).square().sum(1) for score in scores])
    return squares.sum(0).to(trajectories.rewards)


def trajectory_gradients(
    policy: Policy,
    trajectories: Trajectories,
    coefficients: Tensor,
    *,
    max_length: int | None = None,
    multiple_of: int = 1,
) -> Iterator[Tensor]:
    """Compute g_n = Σ_t c_t,n ∇log π(a_t|s_t) of each column, for each of K tables of coefficients c.

    Up to NUMBERS values, a multiple of `multiple_of` columns are computed at once (vmap). Recurrent policies and image
    networks process columns one by one. No gradient flows into the recurrent state before row 0.

    Args: coefficients, [K, T, N]; those on masked rows are ignored. max_length, as in `valid_steps`.
    Yields: [K, n, P] for the P parameters in order: the first n columns, then the next.
    """
    size = sum(parameter.numel() for parameter in policy.parameters())
    width = policy.encoder.size + sum(layer.out_features for layer in policy.network if isinstance(layer, nn.Linear))
    rows, columns = trajectories.mask.shape
    room = NUMBERS // (len(coefficients) * (size + rows * width))
    step = max(room // multiple_of, 1) * multiple_of
    for start in range(0, columns, step):
        part = trajectories.columns(slice(start, start + step))
        own = coefficients[:, : len(part.mask), start : start + step]
        if not part.mask.any():
            yield own.new_zeros(len(own), own.shape[2], size)
        elif policy.memory is not None or len(policy.images) or not is_plain(policy.network):
            yield _gradients_in_turn(policy, part, own, max_length)
        else:
            yield _gradients_at_once(policy, part, torch.where(part.mask, own, 0))


def _gradients_in_turn(
    policy: Policy, trajectories: Trajectories, coefficients: Tensor, max_length: int | None
) -> Tensor:
    parameters, gradients = list(policy.parameters()), []
    for number in range(coefficients.shape[2]):
        column = trajectories.columns(slice(number, number + 1))
        if not column.mask.any():
            gradients.append(coefficients.new_zeros(len(coefficients), sum(each.numel() for each in parameters)))
            continue
        log_probs, rows = _log_probs(policy, column, max_length)
        each = [torch.autograd.grad(log_probs, parameters, c, retain_graph=True) for c in coefficients[:, rows, number]]
        gradients.append(torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each]))
    return torch.stack(gradients, 1)


class _LogProbs(nn.Module):
    """log π(a|s) as a function of all parameters: the network's and the distribution's."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, read: Tensor, obs: Tensor, actions: Tensor) -> Tensor:
        policy = self.policy
        return policy.distribution.log_probs(policy(obs, trunk=policy.network[:-1](read)), actions)


def _gradients_at_once(policy: Policy, trajectories: Trajectories, coefficients: Tensor) -> Tensor:
    valid = trajectories.mask.flatten()
    first = valid.nonzero()[0]  # replaces masked rows, so that a coefficient of 0 is not multiplied by nan
    rows = torch.where(valid, torch.arange(len(valid)), first)
    obs, actions = trajectories.obs.flatten(0, 1)[rows], trajectories.actions.flatten(0, 1)[rows]
    read, obs, actions = (x.view(*trajectories.mask.shape, *x.shape[1:]) for x in (policy.encode(obs), obs, actions))
    log_probs = _LogProbs(policy)
    parameters = {name: parameter.detach() for name, parameter in log_probs.named_parameters()}

    def of_column(read: Tensor, obs: Tensor, actions: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
        def at(parameters: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(log_probs, parameters, (read, obs, actions))
            return found

        pull_back: Callable[[Tensor], tuple[dict[str, Tensor]]] = vjp(at, parameters)[1]
        return vmap(lambda c: pull_back(c)[0])(coefficients)

    gradients = vmap(of_column, in_dims=(1, 1, 1, 2), out_dims=1)(read, obs, actions, coefficients)
    return torch.cat([gradients[name].flatten(2) for name in parameters], 2)
