"""Gradient variance: the variance and the signal-to-noise ratio of an estimator, measured on one iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from pgcli.algorithm.batch import Estimate
from pgcli.algorithm.gradients import make_gradient
from pgcli.algorithm.losses import Losses
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.estimators.trajectories import Trajectories, from_steps
from pgcli.policies.trajectory_outputs import trajectory_gradients, trajectory_log_probs, valid_steps
from pgcli.records import GradientEstimate


def measure(
    agent: PolicyGradient,
    trajectories: Trajectories,
    progress: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> list[GradientEstimate]:
    """Measure the config's own gradient estimate, then each of `diagnostics.shadows`, on the same trajectories.

    An estimate is a sum over N trajectories (or columns of a segment), g = Σ_n g_n. The *contribution* of trajectory
    n is its term of that sum, at the parameters before the update:

        g_n = Σ_t c_t,n ∇log π(a_t|s_t),   c = -∂L/∂log π   (on-policy: c = w_t,n A_t,n)

    L is the loss of the objective without entropy bonus and KL penalty; baseline, weights and standardization are
    those of the whole batch. From the contributions of U independent parts of the batch (trajectories, or groups
    that share a start state),

        v = U/(U - 1) Σ_u |g_u - g/U|²   estimates   tr Cov[g], the variance of the estimate;

    N v estimates that of a single trajectory, and |g|² - v estimates |E g|².

    These are unbiased for independent parts, i.e. with baseline none, value and group. A baseline over the whole
    batch couples the parts: v then lacks the covariance N² tr Cov[g_1, g_2]. For total returns and
    `average: episodes` that is |∇J|²/(N - 1)² with leave_one_out and |∇J|²/N² with mean, which is small unless N is.
    Numbers of the whole batch count as constants: the steps of `average: steps`, the σ of `standardize: batch`.
    With `algorithm.reuse`, trajectories of all iterations count as draws from one distribution.

    Gradients are with respect to the P parameters of the policy. `check` is called between parts of the work.
    """
    config, policy = agent.config, agent.policy
    with torch.no_grad():
        log_probs = trajectory_log_probs(policy, trajectories)
    tables: list[Tensor] = []  # of coefficients, each once

    def place(one: PolicyGradient, estimate: Estimate) -> int:
        table = _coefficients(one, trajectories, estimate, log_probs, progress)
        if not any(same := [torch.equal(table, other) for other in tables]):
            tables.append(table)
            return len(tables) - 1
        return same.index(True)

    names = [config.estimator, *config.diagnostics.shadows]
    places = []  # of each: as it is, without standardisation, and without the baseline too
    for name in names:
        check()
        one, plain = with_estimator(agent, name), with_estimator(agent, "+".join(name.split("+")[:2]))
        estimate = one.estimate(trajectories)
        bare = replace(estimate, advantages=estimate.advantages + estimate.baseline)
        places.append((place(one, estimate), place(plain, estimate), place(plain, bare)))
    gradients, variances = _moments(agent, trajectories, torch.stack(tables), check)
    return [
        _describe(name, trajectories.mask.shape[1], gradients[place], gradients[places[0][0]], *variances[[place, *of]])
        for name, (place, *of) in zip(names, places, strict=True)
    ]


def with_estimator(agent: PolicyGradient, name: str) -> PolicyGradient:
    """Return an agent with another estimator on the same policy and value function, which cannot be updated."""
    other = copy(agent)
    other.config = agent.config.with_estimator(name)
    other.value = agent.value if other.config.has_value else None
    other.losses = Losses(other.config.algorithm, other.config.value.clip_range)
    other.gradient = make_gradient(other.config, other.policy, other.value, other.losses)
    return other


def _coefficients(
    agent: PolicyGradient, trajectories: Trajectories, estimate: Estimate, log_probs: Tensor, progress: float
) -> Tensor:
    """Compute c = -∂L/∂log π(a|s) [T, N], 0 on masked rows, from log π [T, N]."""
    batch, _ = agent.batch(trajectories, estimate)
    rows, _ = valid_steps(agent.policy, trajectories)
    own = log_probs.flatten()[rows].requires_grad_()
    behavior = own.detach() if agent.config.algorithm.reuse == 1 else batch.behavior_log_probs
    loss = agent.losses.policy_loss(own, own - behavior, batch, progress)
    (slope,) = torch.autograd.grad(loss, own)
    return from_steps(-slope, rows, trajectories.mask.shape)


def _moments(
    agent: PolicyGradient, trajectories: Trajectories, tables: Tensor, check: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Compute g [K, P] and v [K] for K tables of coefficients, in float64."""
    group, cut = agent.config.group_size, agent.config.policy.backpropagation_steps
    parts = trajectories.mask.shape[1] // group
    size = sum(parameter.numel() for parameter in agent.policy.parameters())
    total, squares = (torch.zeros(len(tables), *shape, dtype=torch.float64) for shape in ((size,), ()))
    for gradients in trajectory_gradients(agent.policy, trajectories, tables, max_length=cut, multiple_of=group):
        check()
        independent = gradients.double().view(len(tables), -1, group, gradients.shape[2]).sum(2)
        total += independent.sum(1)
        squares += independent.square().sum((1, 2))
    spread = (squares - total.square().sum(1) / parts).clamp(min=0)  # rounding may leave less
    return total, spread * parts / (parts - 1)


def _describe(
    name: str, trajectories: int, gradient: Tensor, own: Tensor, variance: Tensor, plain: Tensor, bare: Tensor
) -> GradientEstimate:
    """Return a row: from g [P], the config's own g, v, and v without standardization with and without the baseline."""
    norm, v = float(torch.linalg.vector_norm(gradient)), float(variance)
    snr = _ratio(norm**2 - v, v)
    return GradientEstimate(
        estimator=name,
        trajectories=trajectories,
        gradient_norm=_number(norm),
        gradient_variance=_number(v),
        trajectory_variance=_number(trajectories * v),
        snr=snr,
        trajectories_for_snr_1=_ratio(trajectories, snr) if snr is not None and snr > 0 else None,
        variance_removed=_ratio(float(bare - plain), float(bare)),
        cosine=_ratio(float(gradient @ own), norm * float(torch.linalg.vector_norm(own))),
    )


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _ratio(a: float, b: float) -> float | None:
    return _number(a / b) if b else None
