"""The estimators of ∇J: pure functions of tensors `[T, N]`, T steps of N trajectories, time first.

Data:
    Trajectories: one iteration's steps, with the masks of padding, termination and cuts.
    pad_columns: join chunks of columns, padded to the longest.
    from_steps: put the values of M steps back into [T, N].

Returns G:
    lambda_returns: the recursion that all returns use; also reward-to-go and, minus V, GAE.
    trajectory_returns: λ-returns with one γ and λ; bootstraps where a trajectory is cut.
    vtrace_returns: V-trace targets and returns, from data of an older policy.
    return_terms: the terms of a λ-return's recursion.

Baselines b:
    mean_baseline: the mean over the trajectories that run at t.
    leave_one_out_baseline: the same without the own trajectory.
    optimal_baseline: the constant of least variance, for total returns.
    group_baseline: the mean within groups that share a start state.

Advantages A:
    standardized: centred and divided by their standard deviation, over the batch.
    group_standardized: divided by the standard deviation of each group.

Losses, whose gradient is minus the policy gradient estimate:
    step_weights: the weight of each step in an average.
    policy_gradient_loss: -Σ w A log π.
    importance_sampling_loss: the same, weighted by the ratio π/μ.
    clip_loss: the clipped ratios of PPO.
    value_loss: the squared error of V.

Importance weights, for data of another policy:
    log_weights: of a step, of the steps up to it, of a whole trajectory, or their geometric mean.
    trajectory_weights: bounded, and divided by their mean over the trajectories.
    per_decision_advantages: advantages whose rewards have weights of their own.

Derivatives of losses, in numpy:
    policy_gradient_slope: of policy_gradient_loss with respect to log π.
    importance_sampling_slope: of importance_sampling_loss with respect to log π.
    clip_slope: of clip_loss with respect to log π.
    kl_slopes: of kl_estimates with respect to log π.
    value_slope: of value_loss with respect to V.

Measures:
    kl_estimates: KL(μ‖π), one estimate per step.
    explained_variance: the share of the returns' variance that V predicts.
"""

from pgcli.estimators.baselines import group_baseline, leave_one_out_baseline, mean_baseline, optimal_baseline
from pgcli.estimators.objectives import (
    clip_loss,
    clip_slope,
    explained_variance,
    group_standardized,
    importance_sampling_loss,
    importance_sampling_slope,
    kl_estimates,
    kl_slopes,
    policy_gradient_loss,
    policy_gradient_slope,
    standardized,
    step_weights,
    value_loss,
    value_slope,
)
from pgcli.estimators.ratios import log_weights, per_decision_advantages, trajectory_weights
from pgcli.estimators.returns import lambda_returns, return_terms, trajectory_returns, vtrace_returns
from pgcli.estimators.trajectories import Trajectories, from_steps, pad_columns

__all__ = [
    "Trajectories",
    "clip_loss",
    "clip_slope",
    "explained_variance",
    "from_steps",
    "group_baseline",
    "group_standardized",
    "importance_sampling_loss",
    "importance_sampling_slope",
    "kl_estimates",
    "kl_slopes",
    "lambda_returns",
    "leave_one_out_baseline",
    "log_weights",
    "mean_baseline",
    "optimal_baseline",
    "pad_columns",
    "per_decision_advantages",
    "policy_gradient_loss",
    "policy_gradient_slope",
    "return_terms",
    "standardized",
    "step_weights",
    "trajectory_returns",
    "trajectory_weights",
    "value_loss",
    "value_slope",
    "vtrace_returns",
]
