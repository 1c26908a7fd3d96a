"""Estimators written from their definitions.

They loop over the steps of a trajectory and sum over all later steps.

Nothing here is shared with pgcli's own estimators: λ-returns and V-trace are the sums that define them, not
recursions, and gradients are sums of scores, not derivatives of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.config.schema import AlgorithmConfig
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.policy import Policy
from pgcli.policies.recurrent import Sequences
from pgcli.policies.trajectory_outputs import valid_steps

Array = NDArray[Any]
CHUNK = 256  # scores computed together
FEW = 64  # scores computed one by one


@dataclass(frozen=True)
class ScoredTrajectory:
    """n consecutive steps of one episode."""

    scores: Array  # ∇log π(a|s), [n, dim]
    entropy_scores: Array  # ∇ of the entropy, [n, dim]
    rewards: list[float]  # [n]
    values: list[float]  # V, [n + 1], the last one 0 if the episode terminated
    ratios: list[float]  # π/μ, [n]
    row: int  # of its first step

    def __len__(self) -> int:
        return len(self.rewards)


def reward_to_go(trajectory: ScoredTrajectory, t: int, gamma: float) -> float:
    """Compute Σ_{l ≥ t} γ^(l-t) r_l + γ^(n-t) V(s_n)."""
    n = len(trajectory)
    rewards = sum(gamma ** (k - t) * trajectory.rewards[k] for k in range(t, n))
    return rewards + gamma ** (n - t) * trajectory.values[n]


def lambda_return(trajectory: ScoredTrajectory, t: int, gamma: float, lam: float) -> float:
    """Compute (1 - λ) Σ_n λ^(n-1) G^(n) + λ^(m-1) G^(m).

    G^(n) = r_t + … + γ^n V(s_t+n), with m steps to the end.
    """
    ahead = len(trajectory) - t
    total = lam ** (ahead - 1) * reward_to_go(trajectory, t, gamma)
    for n in range(1, ahead):
        rewards = sum(gamma**k * trajectory.rewards[t + k] for k in range(n))
        total += (1 - lam) * lam ** (n - 1) * (rewards + gamma**n * trajectory.values[t + n])
    return total


def vtrace_return(trajectory: ScoredTrajectory, t: int, gamma: float, lam: float) -> float:
    """Compute q_t = r_t + γ v_t+1 of V-trace.

    v_s = V_s + Σ_k γ^(k-s) (Π_{i<k} c_i) ρ_k δ_k (Espeholt et al. 2018, eq. 1).
    """
    rewards, values, bounded = trajectory.rewards, trajectory.values, [min(ratio, 1.0) for ratio in trajectory.ratios]
    v = values[t + 1]
    for k in range(t + 1, len(trajectory)):
        error = rewards[k] + gamma * values[k + 1] - values[k]
        v += gamma ** (k - t - 1) * math.prod(lam * c for c in bounded[t + 1 : k]) * bounded[k] * error
    return rewards[t] + gamma * v


def weight_of(trajectory: ScoredTrajectory, t: int, algorithm: AlgorithmConfig) -> float:
    """Compute the importance weight of step t, at most `importance_bound`.

    After the end, it is that of the last step.
    """
    ratios, n = trajectory.ratios, len(trajectory)
    match algorithm.ratios:
        case "step":
            weight = ratios[min(t, n - 1)]
        case "per_decision":
            weight = math.prod(ratios[: t + 1])
        case "trajectory":
            weight = math.prod(ratios)
        case "sequence":
            weight = math.prod(ratios) ** (1 / n)
    return min(weight, algorithm.importance_bound or math.inf)


def weights_of(batch: Sequence[ScoredTrajectory], algorithm: AlgorithmConfig) -> list[list[float]]:
    """Compute the importance weights of products of ratios.

    If configured, they are divided by their mean over trajectories.
    """
    found = [[weight_of(one, t, algorithm) for t in range(len(one))] for one in batch]
    if not algorithm.self_normalize:
        return found
    means = [
        sum(weight_of(one, t, algorithm) for one in batch) / len(batch) for t in range(max(len(one) for one in batch))
    ]
    return [[weight / means[t] for t, weight in enumerate(row)] for row in found]


def weighted_return(trajectory: ScoredTrajectory, t: int, weights: list[float], algorithm: AlgorithmConfig) -> float:
    """Compute G_t with each reward times the weight of its step, and V(s_k) times that of step k - 1.

    The score of t has weight W_t, so an earlier reward has this weight as well.
    """
    gamma, lam, n = algorithm.gamma, algorithm.gae_lambda, len(trajectory)
    rewards, values = trajectory.rewards, trajectory.values

    def ahead(end: int) -> float:
        paid = sum(gamma ** (k - t) * weights[k] * rewards[k] for k in range(t, end))
        return paid + gamma ** (end - t) * weights[end - 1] * values[end]

    match algorithm.returns:
        case "total":
            before = sum(gamma**k * weights[t] * rewards[k] for k in range(t))
            return before + gamma**t * ahead(n)
        case "lambda_return":
            mixed = sum((1 - lam) * lam ** (k - t - 1) * ahead(k) for k in range(t + 1, n))
            return mixed + lam ** (n - t - 1) * ahead(n)
        case _:
            return ahead(n)


def returns_of(trajectory: ScoredTrajectory, algorithm: AlgorithmConfig) -> list[float]:
    """Compute G_t of every step."""
    steps, gamma, lam = range(len(trajectory)), algorithm.gamma, algorithm.gae_lambda
    match algorithm.returns:
        case "total":
            return [reward_to_go(trajectory, 0, gamma)] * len(trajectory)
        case "reward_to_go":
            return [reward_to_go(trajectory, t, gamma) for t in steps]
        case "lambda_return":
            return [lambda_return(trajectory, t, gamma, lam) for t in steps]
        case "vtrace":
            return [vtrace_return(trajectory, t, gamma, lam) for t in steps]


def baseline_of(
    batch: Sequence[ScoredTrajectory], returns: list[list[float]], n: int, t: int, algorithm: AlgorithmConfig
) -> float:
    """Compute b of step t of trajectory n."""
    size = len(batch) if algorithm.baseline != "group" else algorithm.group_size or 1
    peers = range(n // size * size, n // size * size + size)
    at = 0 if algorithm.returns == "total" else t
    values = {m: returns[m][at] for m in peers if at < len(batch[m])}
    others = [m for m in values if m != n]
    kind = algorithm.baseline
    if kind == "group":
        kind = "mean" if algorithm.group_mean == "whole" else "leave_one_out"
    match kind:
        case "mean":
            return sum(values.values()) / len(values)
        case "leave_one_out":
            return sum(values[m] for m in others) / len(others) if others else 0.0
        case "optimal":
            squares = {m: float(np.square(batch[m].scores.sum(0)).sum()) for m in others}
            total = sum(squares.values())
            return sum(values[m] * squares[m] for m in others) / total if total > 0 else 0.0
        case "value":
            return batch[n].values[at]
        case _:
            return 0.0


def gradient(batch: Sequence[ScoredTrajectory], columns: int, algorithm: AlgorithmConfig) -> Array:
    """Compute the estimate of ∇J, [dim], by `algorithm`.

    It is that of the trajectories of a number of columns.

    ĝ = Σ_nt w_nt ρ_nt A_nt ∇log π(a_nt|s_nt), plus the gradients of the entropy bonus and the KL penalty.
    """
    returns = [returns_of(trajectory, algorithm) for trajectory in batch]
    steps = [(n, t) for n, trajectory in enumerate(batch) for t in range(len(trajectory))]
    advantages = {(n, t): returns[n][t] - baseline_of(batch, returns, n, t, algorithm) for n, t in steps}
    negligible = 1e-8 * max((abs(g) for row in returns for g in row), default=0.0)
    if algorithm.standardize == "group":
        size = algorithm.group_size or 1
        for first in range(0, len(batch), size):
            deviation = float(np.std([advantages[n, 0] for n in range(first, first + size)]))
            for n, t in steps:
                if first <= n < first + size:
                    advantages[n, t] = advantages[n, t] / deviation if deviation > negligible else 0.0
    if algorithm.standardize in ("batch", "minibatch"):  # the batch is one minibatch here
        values = list(advantages.values())
        sample = algorithm.standardize == "minibatch" and len(values) > 1
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=int(sample)))
        advantages = {at: (a - mean) / deviation if deviation > negligible else 0.0 for at, a in advantages.items()}
    weights = {}
    for n, t in steps:
        share = {"steps": 1 / len(steps), "episodes": 1 / columns, "episode_means": 1 / (columns * len(batch[n]))}
        weights[n, t] = share[algorithm.average]
        if algorithm.discount_weighting:
            weights[n, t] *= algorithm.gamma ** (batch[n].row + t)
    ratios = {(n, t): batch[n].ratios[t] for n, t in steps}
    match algorithm.objective:
        case "policy_gradient":
            ratios = dict.fromkeys(steps, 1.0)
        case "importance_sampling" if algorithm.ratios != "step":
            of_steps = weights_of(batch, algorithm)
            ratios = {(n, t): of_steps[n][t] for n, t in steps}
        case "importance_sampling":
            ratios = {at: min(ratio, algorithm.importance_bound or math.inf) for at, ratio in ratios.items()}
            if algorithm.self_normalize:
                mean = sum(weights[at] * ratios[at] for at in steps) / sum(weights.values())
                ratios = {at: ratio / mean for at, ratio in ratios.items()}
        case "clip":
            ratios = {(n, t): weight_of(batch[n], t, algorithm) for n, t in steps}
            for at, ratio in ratios.items():
                low, high = algorithm.clip_ranges
                beyond = ratio > 1 + high if advantages[at] > 0 else ratio < 1 - low
                ratios[at] = 0.0 if beyond else ratio
    weighted = {at: ratios[at] * advantages[at] for at in steps}
    if algorithm.objective == "importance_sampling" and algorithm.ratios == "per_decision":
        for n, t in steps:  # A = G - b
            baseline = ratios[n, t] * (returns[n][t] - advantages[n, t])
            weighted[n, t] = weighted_return(batch[n], t, of_steps[n], algorithm) - baseline
    terms = [weights[n, t] * weighted[n, t] * batch[n].scores[t] for n, t in steps]
    total: Array = sum(terms, np.zeros(()))
    for n, t in steps:
        total = total + algorithm.entropy_coef * batch[n].entropy_scores[t] / len(steps)
        if algorithm.initial_kl_coef > 0:
            total = total - algorithm.initial_kl_coef * (batch[n].ratios[t] - 1) * batch[n].scores[t] / len(steps)
    return total


# ----------------------------------------------------------------------------------------- from columns to trajectories


def step_scores(policy: Policy, trajectories: Trajectories, of_entropy: bool = False) -> Array:
    """Compute ∇log π(a_t|s_t), or ∇ of the entropy at s_t, of every step: [T, N, dim], 0 on masked rows."""
    rows, sequences = valid_steps(policy, trajectories)
    obs, actions = trajectories.obs.flatten(0, 1)[rows], trajectories.actions.flatten(0, 1)[rows]
    if sequences is None:  # repeated pairs are computed once
        pairs = np.concatenate([x.reshape(len(rows), -1).double().numpy() for x in (obs, actions)], 1)
        _, first, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        parts = torch.split(torch.from_numpy(first), CHUNK)
        scores = torch.cat([_scores(policy, obs[part], actions[part], None, of_entropy) for part in parts])
        scores = scores[which.ravel()]
    else:
        scores = _scores(policy, obs, actions, sequences, of_entropy)
    found = scores.new_zeros(trajectories.mask.numel(), scores.shape[1])
    found[rows] = scores
    return found.view(*trajectories.mask.shape, -1).numpy()


def _scores(policy: Policy, obs: Tensor, actions: Tensor, sequences: Sequences | None, of_entropy: bool) -> Tensor:
    """Compute the gradient of each step's log-probability or entropy, [M, dim]."""
    parameters, outputs = list(policy.parameters()), policy(obs, sequences)
    terms = policy.distribution.entropy(outputs) if of_entropy else policy.distribution.log_probs(outputs, actions)
    if len(rows := list(terms)) <= FEW:  # the first use of batched gradients imports sympy: as slow as torch itself
        each = [torch.autograd.grad(row, parameters, retain_graph=True, allow_unused=True) for row in rows]
        return torch.stack([flat(gradients, parameters) for gradients in each])
    eye = torch.eye(len(terms), dtype=terms.dtype)
    grads = torch.autograd.grad(terms, parameters, eye, is_grads_batched=True, allow_unused=True)
    wide = [p.expand(len(terms), *p.shape) for p in parameters]
    return torch.cat(
        [(torch.zeros_like(w) if g is None else g).flatten(1) for g, w in zip(grads, wide, strict=True)], 1
    )


def hidden_layer_scores(
    weights: Sequence[Array],
    states: Array,
    actions: Array,
    pi: Array,
    value: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
) -> Array:
    """Compute the score ∇log π(a|s) of a softmax over one hidden layer, [..., dim], by the chain rule.

    Args: weights W₁, b₁, W₂, b₂, in the order of the result; states [..., inputs]; actions [...]; pi [..., A].
    """
    w1, b1, w2, b2 = weights
    z = states @ w1.T + b1
    delta = np.eye(len(b2))[actions] - pi
    back = delta @ w2 * derivative(z)
    parts = (back[..., None] * states[..., None, :], back, delta[..., None] * value(z)[..., None, :], delta)
    return np.concatenate([part.reshape(*delta.shape[:-1], -1) for part in parts], -1)


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Concatenate gradients, [dim], in the order of the parameters; None counts as 0."""
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([part.detach().flatten() for part in parts])


def select_columns(trajectories: Trajectories, columns: Sequence[int]) -> Trajectories:
    """Return some of the columns, in this order."""
    index = torch.tensor(columns)
    return Trajectories(
        **{name: x.index_select(1, index) for name, x in vars(trajectories).items() if isinstance(x, Tensor)}
    )


def scored_trajectories(
    trajectories: Trajectories, scores: Array, entropy_scores: Array, values: Array, ratios: Array
) -> list[list[ScoredTrajectory]]:
    """Split each column into its trajectories."""
    columns = []
    for n, mask in enumerate(trajectories.mask.T.numpy()):
        edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(int)))
        column = []
        for start, end in edges.reshape(-1, 2).tolist():
            steps = slice(start, end)
            last = 0.0 if trajectories.terminated[end - 1, n] else float(values[end, n])
            reward, value, ratio = (x[steps, n].tolist() for x in (trajectories.rewards, values, ratios))
            column.append(
                ScoredTrajectory(scores[steps, n], entropy_scores[steps, n], reward, [*value, last], ratio, start)
            )
        columns.append(column)
    return columns
