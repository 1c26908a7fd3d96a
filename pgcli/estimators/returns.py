"""Returns G: discounted sums of rewards from step t on. All are based on one recursion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def lambda_returns(rewards: Tensor, discounts: Tensor, next_values: Tensor, lambdas: Tensor) -> Tensor:
    """Compute G_t = r_t + γ_t [(1 - λ_t) v(s_t+1) + λ_t G_t+1] backwards, from G_T = v(s_T).

    γ_t = 0 marks termination and λ_t = 0 truncation. With v = 0 and λ = 1 this is the reward-to-go; G - v(s) is GAE.
    A zero selects rather than multiplies, so nan in a masked row does not propagate.
    Source: Sutton & Barto (2018), section 12.8; Schulman et al. (2016), eq. 16.

    Args:
        rewards: [T, N], in reward units.
        discounts: γ_t, [T, N], in [0, 1].
        next_values: v(s_t+1), [T, N], in reward units.
        lambdas: λ_t, [T, N], in [0, 1].

    Returns: [T, N], in reward units.
    Raises: ValueError if the shapes differ.
    """
    if not rewards.shape == discounts.shape == next_values.shape == lambdas.shape:
        shapes = [tuple(x.shape) for x in (rewards, discounts, next_values, lambdas)]
        raise ValueError(f"rewards, discounts, next_values and lambdas differ in shape: {shapes}")
    if len(rewards) == 0:
        return torch.zeros_like(rewards)
    returns, continuations = _terms(rewards, discounts, next_values, lambdas)
    rows, weights, following = returns.numpy(), continuations.numpy(), next_values[-1].numpy()
    brought = np.zeros_like(rows)  # from the next row; numpy takes a third of torch's time for short rows
    with np.errstate(over="ignore", invalid="ignore"):  # as in torch
        for row, w, b, goes_on in zip(rows[::-1], weights[::-1], brought[::-1], (weights != 0)[::-1], strict=True):
            np.multiply(w, following, out=b, where=goes_on)
            following = np.add(row, b, out=row)
    return returns


def _terms(rewards: Tensor, discounts: Tensor, next_values: Tensor, lambdas: Tensor) -> tuple[Tensor, Tensor]:
    bootstrap = discounts * (1 - lambdas)
    return rewards + torch.where(bootstrap == 0, 0, bootstrap * next_values), discounts * lambdas


def trajectory_returns(
    rewards: Tensor, gamma: float, lam: float, terminated: Tensor, cut: Tensor, next_values: Tensor
) -> Tensor:
    """Compute the λ-returns of trajectories.

    γ_t = 0 where `terminated`, λ_t = 0 where `cut`, γ and λ elsewhere. So a trajectory that was cut continues with
    value v(s_t+1), and a terminated one with 0. λ = 1 is the reward-to-go.

    Args:
        rewards: [T, N], in reward units, 0 on masked rows.
        gamma: discount γ in [0, 1].
        lam: λ in [0, 1].
        terminated: bool [T, N].
        cut: bool [T, N], the last row of each trajectory that ended without termination.
        next_values: v(s_t+1), [T, N], in reward units; 0 without a value function.

    Returns: [T, N], in reward units. Source: as `lambda_returns`; Pardo et al. (2018) on time limits.
    """
    return lambda_returns(rewards, *_factors(rewards, gamma, lam, terminated, cut, next_values))


def return_terms(
    rewards: Tensor, gamma: float, lam: float, terminated: Tensor, cut: Tensor, next_values: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute x and c of the λ-returns of trajectories as G_t = x_t + c_t G_t+1.

    c = 0 in the last row of each trajectory.

    Args: as `trajectory_returns`. Returns: x in reward units, and c, both [T, N].
    """
    return _terms(rewards, *_factors(rewards, gamma, lam, terminated, cut, next_values))


def _factors(
    rewards: Tensor, gamma: float, lam: float, terminated: Tensor, cut: Tensor, next_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    discounts = torch.where(terminated, 0.0, torch.full_like(rewards, gamma))
    return discounts, next_values, torch.where(cut, 0.0, torch.full_like(rewards, lam))


def vtrace_returns(
    rewards: Tensor, gamma: float, lam: float, terminated: Tensor, cut: Tensor, values: Tensor, ratios: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute v_t = V_t + ρ̄_t δ_t + γ_t c_t (v_t+1 - V_t+1), and q_t = r_t + γ_t v_t+1.

    δ_t = r_t + γ_t V_t+1 - V_t. With ρ̄ = min(1, π/μ) and c = λ ρ̄, v is the target of V for policy π on data of μ;
    v_t+1 = V_t+1 where a trajectory is `cut`. The advantage is ρ̄ (q - V). On-policy, v is the λ-return.

    Args:
        rewards: [T, N], in reward units, 0 on masked rows.
        gamma: discount γ.
        lam: λ.
        terminated: bool [T, N].
        cut: bool [T, N].
        values: V, [T + 1, N], in reward units; 0 for rows without a state.
        ratios: π/μ, [T, N].

    Returns: v and q, both [T, N], in reward units. Source: Espeholt et al. (2018), eq. 1 and section 4.2.
    """
    bounded = ratios.clamp(max=1)
    discounts = torch.where(terminated, 0.0, torch.full_like(rewards, gamma))
    bootstrap = torch.where(discounts == 0, 0, discounts * values[1:])
    errors = bounded * (rewards + bootstrap - values[:-1])
    corrections = lambda_returns(errors, discounts, torch.zeros_like(rewards), torch.where(cut, 0.0, lam * bounded))
    following = torch.cat((corrections[1:], torch.zeros_like(corrections[:1])))
    following = torch.where(cut | terminated, 0, discounts * following)
    return values[:-1] + corrections, rewards + bootstrap + following
