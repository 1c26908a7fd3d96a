"""What an estimator should give, from the definitions, one step of one trajectory after the other.

Nothing here is shared with pgcli's own estimators: λ-returns and V-trace are written as the sums over what lies ahead
that define them, not as recursions, and gradients are sums of scores, not derivatives of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from pgcli.policies.trajectory_outputs import steps_along

Array = NDArray[Any]
CHUNK = 256  # scores that are computed together
FEW = 64


@dataclass(frozen=True)
class Piece:
    """Consecutive steps of one episode: ∇log π [n, dim], r [n], V [n + 1], π/μ [n], ∇entropy [n, dim], its row."""

    scores: Array
    rewards: Array
    values: Array
    ratios: Array
    entropy_scores: Array
    terminated: bool
    row: int

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def last_value(self) -> float:
        """What stands for the rest of an episode that goes on unseen."""
        return 0.0 if self.terminated else float(self.values[-1])


def reward_to_go(piece: Piece, t: int, gamma: float) -> float:
    """Compute Σ_{l ≥ t} γ^(l-t) r_l, and V of where the piece is cut."""
    n = len(piece)
    rewards = sum(gamma ** (k - t) * float(piece.rewards[k]) for k in range(t, n))
    return rewards + gamma ** (n - t) * piece.last_value


def lambda_return(piece: Piece, t: int, gamma: float, lam: float) -> float:
    """Compute (1 - λ) Σ_n λ^(n-1) G^(n) + λ^(m-1) G^(m), with G^(n) = r_t + … + γ^n V(s_t+n) and m steps to the end."""
    ahead = len(piece) - t
    total = lam ** (ahead - 1) * reward_to_go(piece, t, gamma)
    for n in range(1, ahead):
        rewards = sum(gamma**k * float(piece.rewards[t + k]) for k in range(n))
        total += (1 - lam) * lam ** (n - 1) * (rewards + gamma**n * float(piece.values[t + n]))
    return total


def vtrace_return(piece: Piece, t: int, gamma: float, lam: float) -> float:
    """Compute q_t = r_t + γ v_t+1, with v_s = V_s + Σ_k γ^(k-s) (Π_{i<k} c_i) ρ_k δ_k (Espeholt et al. 2018, eq. 1)."""
    if t + 1 == len(piece):
        return float(piece.rewards[t]) + gamma * piece.last_value
    bounded = np.minimum(piece.ratios, 1)
    v = float(piece.values[t + 1])
    for k in range(t + 1, len(piece)):
        after = piece.last_value if k + 1 == len(piece) else float(piece.values[k + 1])
        error = float(piece.rewards[k]) + gamma * after - float(piece.values[k])
        v += gamma ** (k - t - 1) * math.prod((lam * bounded[t + 1 : k]).tolist()) * float(bounded[k]) * error
    return float(piece.rewards[t]) + gamma * v


def returns_of(piece: Piece, algorithm: AlgorithmConfig) -> list[float]:
    """Compute G_t of every step."""
    steps, gamma, lam = range(len(piece)), algorithm.gamma, algorithm.gae_lambda
    match algorithm.returns:
        case "total":
            return [reward_to_go(piece, 0, gamma)] * len(piece)
        case "reward_to_go":
            return [reward_to_go(piece, t, gamma) for t in steps]
        case "lambda_return":
            return [lambda_return(piece, t, gamma, lam) for t in steps]
        case "vtrace":
            return [vtrace_return(piece, t, gamma, lam) for t in steps]


def baseline_of(
    pieces: Sequence[Piece], returns: list[list[float]], n: int, t: int, algorithm: AlgorithmConfig
) -> float:
    """Compute b of step t of piece n."""
    size = len(pieces) if algorithm.baseline != "group" else algorithm.group_size or 1
    peers = range(n // size * size, n // size * size + size)
    whole = algorithm.returns == "total"
    beside = [m for m in peers if whole or t < len(pieces[m])]
    others = [m for m in beside if m != n]
    values = {m: returns[m][0 if whole else t] for m in beside}
    kind = algorithm.baseline
    if kind == "group":
        kind = "mean" if algorithm.group_mean == "whole" else "leave_one_out"
    match kind:
        case "mean":
            return sum(values.values()) / len(values)
        case "leave_one_out":
            return sum(values[m] for m in others) / len(others) if others else 0.0
        case "optimal":
            squares = {m: float(np.square(pieces[m].scores.sum(0)).sum()) for m in others}
            total = sum(squares.values())
            return sum(values[m] * squares[m] for m in others) / total if total > 0 else 0.0
        case "value":
            return float(pieces[n].values[0 if whole else t])
        case _:
            return 0.0


def gradient(pieces: Sequence[Piece], columns: int, algorithm: AlgorithmConfig) -> Array:
    """Compute the estimate of ∇J, [dim], that `algorithm` stands for, from the pieces of so many columns."""
    returns = [returns_of(piece, algorithm) for piece in pieces]
    steps = [(n, t) for n, piece in enumerate(pieces) for t in range(len(piece))]
    advantages = {(n, t): returns[n][t] - baseline_of(pieces, returns, n, t, algorithm) for n, t in steps}
    negligible = 1e-8 * max((abs(g) for row in returns for g in row), default=0.0)
    if algorithm.standardize == "group":
        size = algorithm.group_size or 1
        for first in range(0, len(pieces), size):
            deviation = float(np.std([advantages[n, 0] for n in range(first, first + size)]))
            for n, t in steps:
                if first <= n < first + size:
                    advantages[n, t] = advantages[n, t] / deviation if deviation > negligible else 0.0
    if algorithm.standardize == "batch":
        mean, deviation = float(np.mean(list(advantages.values()))), float(np.std(list(advantages.values())))
        advantages = {at: (a - mean) / deviation if deviation > negligible else 0.0 for at, a in advantages.items()}
    weights = {}
    for n, t in steps:
        share = {"steps": 1 / len(steps), "episodes": 1 / columns, "episode_means": 1 / (columns * len(pieces[n]))}
        weights[n, t] = share[algorithm.average]
        if algorithm.discount_weighting:
            weights[n, t] *= algorithm.gamma ** (pieces[n].row + t)
    ratios = {(n, t): float(pieces[n].ratios[t]) for n, t in steps}
    match algorithm.objective:
        case "policy_gradient":
            ratios = dict.fromkeys(steps, 1.0)
        case "importance_sampling":
            ratios = {at: min(ratio, algorithm.importance_bound or math.inf) for at, ratio in ratios.items()}
            if algorithm.self_normalize:
                mean = sum(weights[at] * ratios[at] for at in steps) / sum(weights.values())
                ratios = {at: ratio / mean for at, ratio in ratios.items()}
        case "clip":
            for at, ratio in ratios.items():
                beyond = ratio > 1 + algorithm.clip_range if advantages[at] > 0 else ratio < 1 - algorithm.clip_range
                ratios[at] = 0.0 if beyond else ratio
    total = sum((weights[n, t] * ratios[n, t] * advantages[n, t] * pieces[n].scores[t] for n, t in steps), np.zeros(()))
    for n, t in steps:
        total = total + algorithm.entropy_coef * pieces[n].entropy_scores[t] / len(steps)
        if algorithm.kl_coef > 0:
            total = total - algorithm.kl_coef * (float(pieces[n].ratios[t]) - 1) * pieces[n].scores[t] / len(steps)
    result: Array = total
    return result


# --------------------------------------------------------------------------------------------- from columns to pieces


def scores_along(policy: Policy, trajectories: Trajectories, of_entropy: bool = False) -> Array:
    """Compute ∇log π(a_t|s_t), or ∇ of the entropy at s_t, of every step: [T, N, dim], 0 on masked rows."""
    rows, windows = steps_along(policy, trajectories)
    obs, actions = trajectories.obs.flatten(0, 1)[rows], trajectories.actions.flatten(0, 1)[rows]
    if windows is None:  # what happened often is computed once
        pairs = np.concatenate([x.reshape(len(rows), -1).double().numpy() for x in (obs, actions)], 1)
        _, first, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        parts = torch.split(torch.from_numpy(first), CHUNK)
        scores = torch.cat([_scores(policy, obs[part], actions[part], None, of_entropy) for part in parts])
        scores = scores[which.ravel()]
    else:
        scores = _scores(policy, obs, actions, windows, of_entropy)
    found = scores.new_zeros(trajectories.mask.numel(), scores.shape[1])
    found[rows] = scores
    return found.view(*trajectories.mask.shape, -1).numpy()


def _scores(policy: Policy, obs: Tensor, actions: Tensor, windows: Sequences | None, of_entropy: bool) -> Tensor:
    parameters, outputs = list(policy.parameters()), policy(obs, windows)
    along = policy.distribution.entropy(outputs) if of_entropy else policy.distribution.log_probs(outputs, actions)
    if len(rows := list(along)) <= FEW:  # the first use of batched gradients imports sympy: as slow as torch itself
        each = [torch.autograd.grad(row, parameters, retain_graph=True, allow_unused=True) for row in rows]
        return torch.stack([flat(gradients, parameters) for gradients in each])
    eye = torch.eye(len(along), dtype=along.dtype)
    grads = torch.autograd.grad(along, parameters, eye, is_grads_batched=True, allow_unused=True)
    wide = [p.expand(len(along), *p.shape) for p in parameters]
    return torch.cat(
        [(torch.zeros_like(w) if g is None else g).flatten(1) for g, w in zip(grads, wide, strict=True)], 1
    )


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Give gradients as one vector, [dim], in the order of the parameters; 0 for what has no part in it."""
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([part.detach().flatten() for part in parts])


def take(trajectories: Trajectories, columns: Sequence[int]) -> Trajectories:
    """Give some of the columns."""
    index = torch.tensor(columns)
    return Trajectories(
        **{name: x.index_select(1, index) for name, x in vars(trajectories).items() if isinstance(x, Tensor)}
    )


def pieces_of(
    trajectories: Trajectories, scores: Array, entropy_scores: Array, values: Array, ratios: Array
) -> list[list[Piece]]:
    """Cut columns into pieces of episodes."""
    mask, terminated = trajectories.mask.numpy(), trajectories.terminated.numpy()
    rewards, pieces = trajectories.rewards.numpy(), []
    for n in range(mask.shape[1]):
        edges = np.flatnonzero(np.diff(np.concatenate(([False], mask[:, n], [False])).astype(int)))
        column = []
        for start, end in edges.reshape(-1, 2).tolist():
            rows = slice(start, end)
            column.append(
                Piece(
                    scores[rows, n],
                    rewards[rows, n],
                    values[start : end + 1, n],
                    ratios[rows, n],
                    entropy_scores[rows, n],
                    bool(terminated[end - 1, n]),
                    start,
                )
            )
        pieces.append(column)
    return pieces
