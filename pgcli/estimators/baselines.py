"""Baselines b, which are subtracted from returns. A baseline must not depend on the action."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """Compute b_t = Σ_n G_t,n / N_t over the N_t trajectories that run at t.

    Each trajectory is part of its own baseline, so the gradient is scaled by exactly 1 - 1/N_t.
    For total returns, equal in all T rows, and a full mask, this is the mean over all columns.

    Args:
        returns: [T, N], in reward units.
        mask: bool [T, N].

    Returns: [T, 1], in reward units. Source: Kool et al. (2019), section 3, on including the own sample.
    """
    running = mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, returns, 0).sum(1, keepdim=True) / running


def leave_one_out_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """Compute b_t,n = Σ_{m ≠ n} G_t,m / (N_t - 1), the mean over the others at t.

    The baseline does not depend on the trajectory itself, so the gradient stays unbiased. Where only one trajectory
    runs, the baseline is 0.

    Args: as `mean_baseline`. Returns: [T, N], in reward units; arbitrary where no trajectory runs.
    Source: Kool et al. (2019), section 3; Ahmadian et al. (2024), eq. 10.
    """
    own = torch.where(mask, returns, 0)
    others = mask.sum(1, keepdim=True) - 1
    return torch.where(others > 0, (own.sum(1, keepdim=True) - own) / others.clamp(min=1), 0)


def optimal_baseline(returns: Tensor, squared_scores: Tensor) -> Tensor:
    """Compute b_n = Σ_{m ≠ n} R_m |s_m|² / Σ_{m ≠ n} |s_m|².

    s = Σ_t ∇log π(a_t|s_t) is the score of a trajectory. b* = E[R |s|²] / E[|s|²] is the constant b that minimizes the
    variance of (R - b) s (the trace of its covariance). Estimated from the other trajectories, it leaves the gradient
    unbiased. It is 0 for a single trajectory.

    Args:
        returns: R(τ), [N], in reward units.
        squared_scores: |s|², [N].

    Returns: [N], in reward units. Source: Weaver & Tao (2001); Greensmith et al. (2004), theorem 13.
    """
    others = squared_scores.sum() - squared_scores
    weighted = returns * squared_scores
    return torch.where(others > 0, (weighted.sum() - weighted) / others, 0)


def group_baseline(returns: Tensor, mask: Tensor, group_size: int, leave_one_out: bool = False) -> Tensor:
    """Compute the baseline within each group of `group_size` neighbouring columns.

    A group shares a start state. This estimates the value of that state. If it includes the own trajectory, as in GRPO,
    the gradient is scaled by 1 - 1/N_t of the group; with `leave_one_out` it stays unbiased.

    Args: as `mean_baseline`; group_size divides N. Returns: [T, N], in reward units.
    Source: Shao et al. (2024), section 4.1.1; Kool et al. (2019).
    """
    baseline = leave_one_out_baseline if leave_one_out else mean_baseline
    shape = (len(returns) * returns.shape[1] // group_size, group_size)  # a row is a group at one step
    return baseline(returns.reshape(shape), mask.reshape(shape)).expand(shape).reshape(returns.shape)
