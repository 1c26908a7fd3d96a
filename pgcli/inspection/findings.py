"""Findings about a run from its tables: each is a function of columns with a threshold.

Columns are [K], one entry per iteration, nan for an empty cell. "Late" is the last quarter of the entries: problems at
the start of a run are not reported.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pgcli.report.text import Finding, percent

Array = NDArray[np.float64]

COLLAPSED = 0.01  # of the entropy at the start: of two actions, the rarer one is taken in less than 1 of 1000 steps
DESTROYED = 0.005  # nats: of two actions drawn alike, 0.7 % of the entropy
NARROW = 0.01  # of σ at the start
MOSTLY_CLIPPED = 0.5  # of the actions: a gaussian of σ = 1 on bounds of ±1 begins with 0.32
LOW_SNR = 0.1  # the noise of the gradient estimate is ten times its signal
ZERO_GROUPS = 0.5  # of the groups: half of the data gives no gradient
LOW_ESS = 0.5  # of the batch: where particle filters resample (Doucet & Johansen 2009)
MUCH_CLIPPED = 0.3  # of the steps: their gradient is cut; PPO's usual share is 0.05 to 0.2
HARDLY_CLIPPED = 0.001  # of the steps: the clip changes nothing
LARGE_KL = 0.05  # nats: by Pinsker, up to √(0.05 / 2) = 16 % of the actions' probability moved in one update
SHARE_OF_UPDATES = 0.1  # of the iterations that may have a large KL
WORSE = -0.01  # of the variance; closer to 0 may be rounding, if all returns are equal
SMALL_STEP = 1e-4  # of |θ| by optimizer step, a tenth of the 1e-3 that is a common rule of thumb (CS231n)
MUCH_EVALUATING = 0.5  # of the time, as in `pgcli doctor`
SURE = 3.0  # standard errors of a difference: in one direction, chance alone exceeds them in 1 of 740 cases
FELL = 0.2  # of what was gained since the start
GREEDY_GAP = 0.1  # of the sampled return


def entropy_collapse(iteration: Array, entropy: Array) -> Finding | None:
    """Find where the entropy of a discrete policy fell below 1 % of what it was at the start.

    The policy then hardly tries other actions, so learning has stopped. Already the first row may belong to a
    policy that its first update destroyed.
    """
    known = np.isfinite(entropy)
    if not known.any():
        return None
    start = entropy[known][0]
    if start < DESTROYED:
        if np.median(entropy[known]) >= DESTROYED:
            return None
        text = f"the entropy is {start:.2g} nats in the first row: after the first update, the policy hardly explores"
        return Finding("warning", text, int(iteration[known][0]), "a lower optimizer.learning_rate")
    below = np.flatnonzero(known & (entropy < COLLAPSED * start))
    if not len(below):
        return None
    at = below[0]
    text = f"the entropy fell to {entropy[at]:.2g} nats, from {start:.2g} at the start: the policy hardly explores"
    return Finding("warning", text, int(iteration[at]), "algorithm.entropy_coef=0.01")


def narrow_actions(iteration: Array, deviation: Array) -> Finding | None:
    """Find where the standard deviation of continuous actions fell below 1 % of its start."""
    known = np.isfinite(deviation)
    if not known.any() or (start := deviation[known][0]) <= 0:
        return None
    below = np.flatnonzero(known & (deviation < NARROW * start))
    if not len(below):
        return None
    at = below[0]
    text = (
        f"the standard deviation of the actions fell to {deviation[at]:.2g}, from {start:.2g}: no exploration is left"
    )
    return Finding("warning", text, int(iteration[at]), "algorithm.entropy_coef=0.001")


def clipped_actions(iteration: Array, fraction: Array) -> Finding | None:
    """Find that most late action values are out of bounds and clipped."""
    late = _late(fraction)
    if late is None or (middle := float(np.median(fraction[late]))) <= MOSTLY_CLIPPED:
        return None
    text = f"{percent(middle)} of the actions are out of bounds and clipped: the environment sees only the bounds"
    key = "policy.distribution=tanh_gaussian, or a lower policy.initial_standard_deviation"
    return Finding("warning", text, int(iteration[late[0]]), key)


def low_snr(iteration: Array, snr: Array, variance: Array) -> Finding | None:
    """Find a late signal-to-noise ratio of the gradient below 0.1.

    It is the ratio of means, Σ (|g|² - v) / Σ v = Σ snr v / Σ v: ratios of single rows are too noisy to average.
    """
    late = _late(snr * variance)
    if late is None or not (noise := float(variance[late].sum())):
        return None
    ratio = float((snr * variance)[late].sum()) / noise
    if ratio >= LOW_SNR:
        return None
    text = f"the gradient's signal-to-noise ratio is {ratio:.2g} (over the last {len(late)}): noise dominates the steps"
    return Finding("warning", text, int(iteration[late[0]]), "more rollout.episodes or rollout.steps")


def cut_by_horizon(iteration: Array, ended: NDArray[np.object_]) -> Finding | None:
    """Find that rollout.horizon cut every late episode: later steps are never learned from.

    Args: both [episodes].
    """
    if not len(ended):
        return None
    late = np.flatnonzero(iteration > iteration[-1] - max(1, (iteration[-1] + 1) // 4))
    if not (ended[late] == "horizon").all():
        return None
    text = f"all of the last {len(late):,} episodes were cut by rollout.horizon: later steps are never learned from"
    return Finding("note", text, int(iteration[late[0]]), "rollout.horizon=null")


def zero_variance_groups(iteration: Array, zero: Array, groups: float) -> Finding | None:
    """Find that half of the late groups have equal returns: their advantages and gradients are 0.

    Args: zero, the number of the `groups` of an iteration without variance. Source: Yu et al. (2025), DAPO.
    """
    late = _late(zero)
    if late is None or not groups or (share := float(np.mean(zero[late])) / groups) <= ZERO_GROUPS:
        return None
    text = f"{percent(share)} of the groups have equal returns in all episodes, and give no gradient"
    return Finding("warning", text, int(iteration[late[0]]), "a larger algorithm.group_size")


def low_effective_sample_size(iteration: Array, size: Array, batch: Array) -> Finding | None:
    """Find that the late effective sample size (Σρ)² / Σρ² is below half of the batch.

    Source: Kong (1992) for the size, Doucet & Johansen (2009) for one half. Args: batch, its steps or trajectories.
    """
    late = _late(size / batch)
    if late is None or (share := float(np.median((size / batch)[late]))) >= LOW_ESS:
        return None
    text = f"the effective sample size is {percent(share)} of the batch: a few of its weights dominate the estimate"
    return Finding(
        "warning",
        text,
        int(iteration[late[0]]),
        "a lower algorithm.reuse, algorithm.update_epochs or optimizer.learning_rate",
    )


def greedy_gap(
    iteration: Array, greedy: Array, greedy_error: Array, sampled: Array, sampled_error: Array
) -> Finding | None:
    """Find that greedy and sampled returns differ by more than 3 standard errors and 10 %.

    Args: greedy evaluations, and the returns of training by the same policies; errors are standard errors.
    """
    both = np.flatnonzero(np.isfinite(greedy) & np.isfinite(sampled))
    if not len(both):
        return None
    at = both[-1]
    gap = float(greedy[at] - sampled[at])
    error = math.hypot(greedy_error[at], sampled_error[at])
    if not abs(gap) > SURE * error or abs(gap) <= GREEDY_GAP * abs(sampled[at]):  # nan: one episode has no error
        return None
    text = f"the return of greedy evaluation is {greedy[at]:.4g}, that of sampled training {sampled[at]:.4g}"
    key = "evaluation.mode=sampled" if gap > 0 else "a longer run, or a lower algorithm.entropy_coef"
    return Finding("note", text, int(iteration[at]), key)


def clip_fraction(iteration: Array, fraction: Array, optimizer_steps: int) -> Finding | None:
    """Find that more than 30 % of late steps are clipped, or hardly any step ever.

    With one optimizer step per batch, all ratios are 1 and nothing is clipped.
    """
    late = _late(fraction)
    if late is None:
        return None
    middle, first = float(np.median(fraction[late])), int(iteration[late[0]])
    if middle > MUCH_CLIPPED:
        text = f"{percent(middle)} of the steps are clipped: they give no gradient, and the policy changes a lot"
        return Finding("warning", text, first, "a lower optimizer.learning_rate or algorithm.update_epochs")
    if np.nanmax(fraction) >= HARDLY_CLIPPED:
        return None
    if optimizer_steps == 1:
        text = "no step is clipped: with one optimizer step per batch, all ratios are 1"
        return Finding("note", text, first, "algorithm.update_epochs=4")
    text = f"at most {100 * np.nanmax(fraction):.2g} % of the steps are clipped: the policy hardly changes in an update"
    return Finding("note", text, first, "a larger optimizer.learning_rate or algorithm.update_epochs")


def explained_variance(iteration: Array, explained: Array) -> Finding | None:
    """Find a late explained variance 1 - Var(G - V) / Var(G) below -0.01: V is worse than a constant."""
    late = _late(explained)
    if late is None or (middle := float(np.median(explained[late]))) >= WORSE:
        return None
    text = f"the explained variance is {middle:.2g}: the value function is a worse baseline than a constant"
    return Finding("warning", text, int(iteration[late[0]]), "value.update_epochs=10, or another value.learning_rate")


def small_steps(iteration: int, moved: float, size: float, optimizer_steps: int) -> Finding | None:
    """Find that the policy hardly changes: |Δθ| / (√n |θ|) below 1e-4 over n optimizer steps.

    √n assumes steps in random directions. A common rule of thumb is 1e-3 per step.
    Args: moved |Δθ| since the checkpoint of `iteration`, size |θ| there.
    Source: Karpathy et al., CS231n, Neural Networks Part 3, ratio of weights to updates.
    """
    if not optimizer_steps or not size:
        return None
    ratio = moved / size / math.sqrt(optimizer_steps)
    if ratio >= SMALL_STEP:
        return None
    text = f"parameters hardly change: |Δθ|/|θ| is {moved / size:.1e} over {optimizer_steps:,} steps, {ratio:.1e} each"
    return Finding("warning", text, iteration, "a larger optimizer.learning_rate")


def evaluation_time(collect: Array, update: Array, evaluate: Array, every: int | None) -> Finding | None:
    """Find that evaluation takes more than half of the time."""
    parts = [float(np.nansum(part)) for part in (collect, update, evaluate)]
    total = sum(parts)
    if not total or every is None or parts[2] / total <= MUCH_EVALUATING:
        return None
    text = f"evaluation takes {percent(parts[2] / total)} of the time"
    return Finding("note", text, None, f"evaluation.every={10 * every}")


def large_kl(iteration: Array, kl: Array) -> Finding | None:
    """Find that more than a tenth of the updates have a KL above 0.05 nats."""
    known = np.isfinite(kl)
    large = np.flatnonzero(known & (kl > LARGE_KL))
    if not known.any() or len(large) <= SHARE_OF_UPDATES * known.sum():
        return None
    worst = large[np.argmax(kl[large])]
    text = f"approx_kl is above {LARGE_KL} nats in {len(large):,} of {known.sum():,} updates, maximum {kl[worst]:.2g}"
    return Finding(
        "warning", text, int(iteration[worst]), "algorithm.target_kl=0.02, or a lower optimizer.learning_rate"
    )


def fell_after_best(iteration: Array, returns: Array, errors: Array) -> Finding | None:
    """Find that the last evaluation is significantly below the best, by a fifth of the total gain.

    Args: [E], evaluations and their standard errors; `_sure` accounts for the best of E - 1.
    """
    if len(returns) < 3:
        return None
    best, last = int(np.argmax(returns)), len(returns) - 1
    fall, gain = float(returns[best] - returns[last]), float(returns[best] - returns[0])
    error = math.hypot(errors[best], errors[last])
    if not fall > _sure(last) * error or fall <= FELL * gain:  # nan: one episode has no error
        return None
    text = f"the return fell from {returns[best]:.4g} to {returns[last]:.4g}; `--which best` selects the best policy"
    return Finding(
        "warning", text, int(iteration[best]), "optimizer.schedule=linear, or a lower optimizer.learning_rate"
    )


def no_gain(iteration: Array, returns: Array, errors: Array) -> Finding | None:
    """Find that no evaluation is significantly better than the untrained policy.

    Args: [E], evaluations and their standard errors; `_sure` accounts for the best of E - 1.
    """
    if len(returns) < 2:
        return None
    best = int(np.argmax(returns))
    error = math.hypot(errors[best], errors[0])
    if not returns[best] - returns[0] <= _sure(len(returns) - 1) * error:  # nan: one episode has no error
        return None
    text = f"no evaluation is significantly better than the untrained policy, {returns[0]:.4g}"
    return Finding("warning", text, int(iteration[-1]), "a longer run, or another optimizer.learning_rate")


def _sure(looks: int) -> float:
    """Return the standard errors that chance exceeds in any of n looks with probability 1 / 740.

    By Bonferroni: 3 for one look, 4.0 for 50, 4.4 for 200.
    """
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-SURE) / looks)


def _late(values: Array) -> NDArray[np.int64] | None:
    """Return the indices of the last quarter of the finite entries, at least one; None without any."""
    known = np.flatnonzero(np.isfinite(values))
    return known[-max(1, len(known) // 4) :] if len(known) else None
