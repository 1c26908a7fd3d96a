"""Importance weights of steps and of whole trajectories, from log π - log μ of each step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pgcli.estimators.returns import lambda_returns

Ratios = Literal["step", "per_decision", "trajectory", "sequence"]  # equal to pgcli.config.choices.Ratios; tested


def log_weights(log_ratios: Tensor, mask: Tensor, ratios: Ratios) -> Tensor:
    """Compute the logarithm of each step's importance weight from ln ρ_t, ρ = π/μ.

    step: ln ρ_t. per_decision: Σ_{l≤t} ln ρ_l. trajectory: Σ_l ln ρ_l over the whole trajectory. sequence: the mean
    of ln ρ_l over it, so that the weight is the geometric mean of the ratios. Sums do not overflow where products do.

    The weight of the product up to t makes the expectation over μ that over π. The geometric mean does not: it is
    biased towards μ by design, and its variance does not grow with the length.

    Args: log_ratios, in nats, and mask, bool, both [T, N]; a column is one trajectory from its start.
    Returns: [T, N], in nats. After the end of a trajectory, per_decision is the sum over all of it.
    Source: Precup et al. (2000), section 3; Zheng et al. (2025), eq. 7, for sequence.
    """
    log_ratios = torch.where(mask, log_ratios, 0)
    match ratios:
        case "step":
            return log_ratios
        case "per_decision":
            return log_ratios.cumsum(0)
        case "trajectory":
            return log_ratios.sum(0).expand_as(log_ratios)
        case "sequence":
            return (log_ratios.sum(0) / mask.sum(0).clamp(min=1)).expand_as(log_ratios)


def trajectory_weights(log_weights: Tensor, bound: float = math.inf, self_normalize: bool = False) -> Tensor:
    """Compute min(exp(log_weights), bound), divided by its mean over the trajectories if `self_normalize`.

    The mean of each row counts every trajectory once, those that have ended with their last weight: its expectation
    is 1 without a bound. Both options work on logarithms, so that neither overflows. Both are biased.

    Args: log_weights, [T, N], as `log_weights` returns them. Returns: [T, N]; inf where a weight overflows.
    Source: Precup et al. (2000), section 3; Owen (2013), chapter 9.
    """
    bounded = log_weights.clamp(max=math.log(bound)) if bound < math.inf else log_weights
    if self_normalize:
        bounded = bounded - bounded.logsumexp(1, keepdim=True) + math.log(bounded.shape[1])
    return bounded.exp()


def per_decision_advantages(weights: Tensor, terms: Tensor, continuations: Tensor, baseline: Tensor) -> Tensor:
    """Compute Σ_{l≥t} (Π_{t≤k<l} c_k) W_l x_l - W_t b_t.

    Each term of G_t = x_t + c_t G_t+1 has its own weight.

    W_l is the weight of the product up to l. So a reward is weighted by the ratios of the actions before it, and not
    by those after it.

    Args: W, x, c and b, all [T, N]. Returns: [T, N], in reward units: the advantage times the weight of the score.
    Source: Precup et al. (2000), eq. 4; Jie & Abbeel (2010), eq. 8.
    """
    whole = torch.ones_like(continuations)
    return lambda_returns(weights * terms, continuations, torch.zeros_like(terms), whole) - weights * baseline
