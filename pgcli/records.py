"""What training tells: plain records, which the run directory and the display only consume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sample:
    """Statistics of a sample of returns, in reward units. One value has no spread: None, not nan."""

    n: int
    mean: float
    standard_error: float | None
    standard_deviation: float | None
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Episode:
    """One training episode: a row of episodes.csv."""

    episode: int
    episode_return: float
    discounted_return: float
    length: int
    ended: str


@dataclass(frozen=True)
class GradientEstimate:
    """What an iteration's trajectories say of an estimator, a row of gradients.csv; None where it says nothing."""

    estimator: str
    trajectories: int
    gradient_norm: float | None  # of the estimate of the whole batch
    gradient_variance: float | None  # trace of its covariance, in squared units of the gradient
    trajectory_variance: float | None  # the same of a single trajectory
    snr: float | None  # squared norm of the true gradient over gradient_variance; below 0: nothing to be seen of it
    trajectories_for_snr_1: float | None
    variance_removed: float | None  # by the baseline, a share
    cosine: float | None  # between this estimate and the config's own


@dataclass(frozen=True)
class Update:
    """The metrics of one update; None where one does not apply. Losses to grad_norm are means over the last epoch.

    Each is measured before the step that it leads to, so after one step on its own data a policy has approx_kl 0.
    """

    policy_loss: float | None = None  # None: the gradient is the user's own
    entropy: float | None = None  # nats
    grad_norm: float | None = None
    learning_rate: float | None = None
    value_loss: float | None = None
    approx_kl: float | None = None  # KL(μ‖π) in nats, by k3
    clip_fraction: float | None = None  # of the steps
    effective_sample_size: float | None = None  # (Σ ρ)² / Σ ρ², in steps
    explained_variance: float | None = None  # by V as it was before the update
    update_epochs: int | None = None  # the last of which target_kl may have cut short
    clip_range: float | None = None
    entropy_coef: float | None = None
    zero_variance_groups: int | None = None
    return_scale: float | None = None  # what rewards were divided by
    action_standard_deviation: float | None = None  # mean over the entries of an action
    action_clip_fraction: float | None = None  # of the entries
    gradients: Sequence[GradientEstimate] = ()  # the config's own first, where they were measured

    def __or__(self, other: Update) -> Update:
        """Return this record completed by the metrics that `other` has."""
        return replace(self, **{name: x for name, x in vars(other).items() if x is not None})


@dataclass(frozen=True)
class Timing:
    """Seconds that an iteration took, by its parts; `evaluate` is that of the policy it started from."""

    elapsed: float
    collect: float
    update: float
    evaluate: float


@dataclass(frozen=True)
class Iteration:
    """One iteration: a row of metrics.csv, the episodes that ended in it, its timing."""

    iteration: int
    env_steps: int
    episode_count: int
    steps: int  # of this iteration alone
    returns: Sample | None  # of the episodes that ended; None if none did
    length_mean: float | None
    discounted_return_mean: float | None
    update: Update
    episodes: list[Episode]
    timing: Timing
    progress: float


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the policy after `iteration` updates: a row of evaluations.csv."""

    iteration: int
    env_steps: int
    mode: str
    returns: Sample
    length_mean: float
    discounted_return_mean: float
    seconds: float


@dataclass(frozen=True)
class Notice:
    """Something that the user should know."""

    text: str


Record = Iteration | Evaluation | Notice
