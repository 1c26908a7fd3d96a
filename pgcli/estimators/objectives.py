"""Objectives: scalar losses whose gradient is the (negative) policy gradient estimate.

Losses use torch, for autograd and for metrics. Slopes use numpy, which takes a third of torch's time for a few hundred
numbers.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Average = Literal["steps", "episodes", "episode_means"]  # equal to pgcli.config.choices.Average; tested


def step_weights(mask: Tensor, average: Average) -> Tensor:
    """Return the weights w_t,n of the steps, so that Σ w x is the average of x named by `average`.

    steps: 1/M over all M valid steps. episodes: 1/N, the sum over steps and the mean over trajectories, so that
    Σ w s A is the gradient of the return. episode_means: 1/(N T_n), the mean within each trajectory, then over
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
    """Compute -Σ w A log π(a|s), with gradient -Σ w A ∇log π(a|s).

    Args: all [M], over the valid steps; advantages in reward units and without gradient.
    Returns: a scalar, in reward units. Source: Williams (1992), eq. 11; Sutton et al. (2000), theorem 1.
    """
    return -(weights * advantages * log_probs).sum()


def importance_sampling_loss(
    log_probs: Tensor,
    log_ratios: Tensor,
    advantages: Tensor,
    weights: Tensor,
    bound: float = math.inf,
    self_normalize: bool = False,
) -> Tensor:
    """Compute -Σ w ρ̄ A log π(a|s), with gradient -Σ w ρ̄ A ∇log π(a|s).

    ρ = π/μ is a constant; ρ̄ = min(ρ, bound), divided by Σ w ρ̄ / Σ w if `self_normalize`. Without either,
    E_μ[ρ A ∇log π] = E_π[A ∇log π] at each step, for the states of μ. A bound biases towards μ, self-normalizing by
    O(1/M); both reduce variance.

    Args: all [M], over the valid steps; log_ratios log π - log μ in nats; advantages in reward units, no gradient.
    Returns: a scalar, in reward units.
    Source: Owen (2013), chapter 9; Espeholt et al. (2018), section 4, on the bound.
    """
    return policy_gradient_loss(
        log_probs, _importance(log_ratios.detach(), weights, bound, self_normalize) * advantages, weights
    )


def _importance(log_ratios: Tensor, weights: Tensor, bound: float, self_normalize: bool) -> Tensor:
    ratios = log_ratios.exp().clamp(max=bound)
    return ratios * weights.sum() / (weights * ratios).sum() if self_normalize else ratios


def clip_loss(
    log_ratios: Tensor, advantages: Tensor, weights: Tensor, clip_range: float, clip_range_high: float | None = None
) -> Tensor:
    """Compute -Σ w min(ρ A, clip(ρ, 1 - ε, 1 + ε') A) with ρ = π/μ.

    ε = `clip_range` and ε' = `clip_range_high`, or ε.

    At ρ = 1 its gradient is that of `policy_gradient_loss`. It is 0 where A > 0 and ρ > 1 + ε', or A < 0 and ρ < 1 - ε.

    Args: as `importance_sampling_loss`. Returns: a scalar, in reward units.
    Source: Schulman et al. (2017), eq. 7; Yu et al. (2025), eq. 8, on two ranges.
    """
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high))
    return -(weights * torch.minimum(ratios * advantages, clipped * advantages)).sum()


def kl_estimates(log_ratios: Tensor) -> Tensor:
    """Compute k3 = ρ - 1 - ln ρ ≥ 0 of each step, with ρ = π/μ.

    Its expectation over actions of μ is KL(μ‖π).

    Args: log_ratios, [M], in nats. Returns: [M], in nats. Source: Schulman (2020), "Approximating KL divergence".
    """
    return torch.expm1(log_ratios) - log_ratios


def policy_gradient_slope(advantages: Array, weights: Array) -> Array:
    """Compute ∂/∂log π of `policy_gradient_loss`, [M]: the weight of each score ∇log π, -w A."""
    slope: Array = -(weights * advantages)
    return slope


def importance_sampling_slope(
    log_ratios: Array, advantages: Array, weights: Array, bound: float = math.inf, self_normalize: bool = False
) -> Array:
    """Compute ∂/∂log π of `importance_sampling_loss`, [M]: -w ρ̄ A."""
    ratios = np.minimum(np.exp(log_ratios), bound)
    if self_normalize:
        ratios *= weights.sum() / (weights * ratios).sum()
    return policy_gradient_slope(ratios * advantages, weights)


def clip_slope(
    log_ratios: Array, advantages: Array, weights: Array, clip_range: float, clip_range_high: float | None = None
) -> Array:
    """Compute ∂/∂log π of `clip_loss`, [M]: -w ρ A, and 0 where the clipped term is smaller."""
    ratios = np.exp(log_ratios)
    plain = ratios * advantages
    high = 1 + (clip_range if clip_range_high is None else clip_range_high)
    kept = plain <= np.minimum(np.maximum(ratios, 1 - clip_range), high) * advantages
    slope: Array = -(weights * plain * kept)
    return slope


def kl_slopes(log_ratios: Array) -> Array:
    """Compute ∂/∂log π of `kl_estimates`, [M]: ρ - 1."""
    slopes: Array = np.expm1(log_ratios)
    return slopes


def value_loss(
    values: Tensor, targets: Tensor, old_values: Tensor | None = None, clip_range: float | None = None
) -> Tensor:
    """Compute the mean of (V - G)²; with `clip_range`, the larger of it and its value for clipped V.

    Args: all [M], over the valid steps, in reward units; targets and old_values without gradient.
    Returns: a scalar, in squared reward units. Source: Huang et al. (2022), detail 9, on the clip.
    """
    errors = (values - targets).square()
    if clip_range is not None and old_values is not None:
        near = old_values + (values - old_values).clamp(-clip_range, clip_range)
        errors = torch.maximum(errors, (near - targets).square())
    return errors.mean()


def value_slope(
    values: Array, targets: Array, old_values: Array | None = None, clip_range: float | None = None
) -> Array:
    """Compute ∂/∂V of `value_loss`, [M]: 2 (V - G)/M, and 0 where the clipped loss is larger."""
    errors: Array = values - targets
    if clip_range is not None and old_values is not None:
        moved = values - old_values
        near = old_values + np.minimum(np.maximum(moved, -clip_range), clip_range) - targets
        errors[(near**2 > errors**2) & (abs(moved) > clip_range)] = 0
    errors *= 2 / len(errors)
    return errors


def explained_variance(values: Tensor, targets: Tensor) -> float | None:
    """Compute 1 - Var[G - V] / Var[G], the explained variance; None if Var[G] = 0.

    Args: [M], in reward units. Returns: at most 1; below 0 if V is worse than a constant.
    """
    variance = float(targets.var(correction=0))
    return 1 - float((targets - values).var(correction=0)) / variance if variance > 0 else None


def standardized(advantages: Tensor, floor: float = 0.0, correction: int = 0) -> Tensor:
    """Compute (A - mean A) / max(σ, floor).

    σ² is Σ (A - mean A)² / (M - correction): with 0 that of the population, with 1 that of a sample. Equal advantages
    become 0, never 0/0; a σ that overflows makes them nan, not 0. `floor` is the spread that rounding alone can cause:
    if a baseline cancels all advantages, the remaining noise must not be amplified. Biased: this multiplies the
    gradient by a random factor.

    Args: advantages, [M], over the valid steps; floor, in their unit. Returns: [M], without a unit.
    """
    shifted = advantages - advantages[:1]  # equal advantages are now exactly 0
    centred = shifted - shifted.mean()
    variance = centred.square().mean()
    if correction:
        variance = variance * (len(centred) / max(len(centred) - correction, 1))
    deviation = variance.sqrt().clamp(min=max(floor, torch.finfo(centred.dtype).tiny))
    return centred / torch.where(deviation.isinf(), torch.nan, deviation)


def group_standardized(advantages: Tensor, group_size: int, floor: float = 0.0) -> tuple[Tensor, int]:
    """Compute A / max(σ, floor) for each group of columns.

    σ is the population standard deviation of A in the group. For advantages with one value per trajectory. Groups of
    equal returns give 0, never 0/0, and are counted. Groups are weighted by 1/σ, which changes the direction of the
    gradient: biased by design.

    Args: advantages, [T, N], in reward units; floor, in their unit, the σ that rounding alone can cause.
    Returns: [T, N], without a unit, and the number of groups without variance.
    Source: Shao et al. (2024), section 4.1.2; on the bias, Liu et al. (2025).
    """
    deviations = advantages[0].reshape(-1, group_size).std(1, correction=0)
    without = int((deviations <= floor).sum())
    deviations = deviations.clamp(min=max(floor, torch.finfo(advantages.dtype).tiny))
    deviations = torch.where(deviations.isinf(), torch.nan, deviations)  # overflow: nan, not 0
    return advantages / deviations.repeat_interleave(group_size), without
