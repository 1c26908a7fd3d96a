"""Objectives: scalar losses whose gradient is the (negative) policy gradient estimate."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Average = Literal["steps", "episodes", "episode_means"]


def step_weights(mask: Tensor, average: Average) -> Tensor:
    """Give the weight w_t,n of each step, so that Σ w x is the average of x that `average` names.

    steps: 1/M over all M valid steps. episodes: 1/N, a sum over the steps and a mean over the trajectories,
    which makes Σ w s A the gradient of the return. episode_means: 1/(N T_n), the mean within, then over
    trajectories (GRPO's 1/|o|).

    Args: mask, bool [T, N]. Returns: [T, N] in float64, 0 on masked rows.
    Source: Shao et al. (2024), eq. 3, for episode_means.
    """
    weights = mask.double()
    match average:
        case "steps":
            return weights / weights.sum()
        case "episodes":
            return weights / mask.shape[1]
        case "episode_means":
            return weights / weights.sum(0).clamp(min=1) / mask.shape[1]


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """Compute -Σ w A log π(a|s), whose gradient is minus the policy gradient estimate Σ w A ∇log π(a|s).

    Args: all [M], over the valid steps; advantages in reward units and without gradient.
    Returns: a scalar, in reward units. Source: Williams (1992), eq. 11; Sutton et al. (2000), theorem 1.
    """
    return -(weights * advantages * log_probs).sum()


def standardized(advantages: Tensor, floor: float = 0.0) -> Tensor:
    """Compute (A - mean A) / max(σ, floor), with the population standard deviation σ of the batch.

    Equal advantages become 0, never 0/0. `floor` is what rounding alone may leave of them: advantages that a
    baseline has cancelled are noise, and must not be blown up. Not unbiased: a random factor on the gradient.

    Args: advantages, [M], over the valid steps; floor, in their unit. Returns: [M], without a unit.
    """
    shifted = advantages - advantages[:1]  # equal advantages are 0 from here on, without rounding
    centred = shifted - shifted.mean()
    return centred / centred.square().mean().sqrt().clamp(min=max(floor, torch.finfo(centred.dtype).tiny))


def group_standardized(advantages: Tensor, group_size: int, floor: float = 0.0) -> Tensor:
    """Compute A / max(σ, floor), with the population standard deviation σ of A over each group of columns.

    For advantages that are one number per trajectory, and 0 on average within a group. Equal returns give 0, never
    0/0. It weighs groups by 1/σ, which changes the direction of the gradient: biased by design.

    Args: advantages, [T, N], in reward units; floor, in their unit. Returns: [T, N], without a unit.
    Source: Shao et al. (2024), section 4.1.2; on the bias, Liu et al. (2025).
    """
    deviations = advantages[0].reshape(-1, group_size).square().mean(1).sqrt()
    deviations = deviations.clamp(min=max(floor, torch.finfo(advantages.dtype).tiny))
    return advantages / deviations.repeat_interleave(group_size)
