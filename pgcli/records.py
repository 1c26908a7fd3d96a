"""What training tells: plain records, which the run directory and the display only consume."""

from __future__ import annotations

from dataclasses import dataclass


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
class Update:
    """What one update did."""

    policy_loss: float
    entropy: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class Timing:
    """Seconds that an iteration took, by its parts; `evaluate` is that of the policy it started from."""

    elapsed: float
    collect: float
    update: float
    evaluate: float


@dataclass(frozen=True)
class Iteration:
    """One iteration: a row of metrics.csv, its episodes, its timing."""

    iteration: int
    env_steps: int
    episode_count: int
    returns: Sample
    length_mean: float
    discounted_return_mean: float
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


Record = Iteration | Evaluation
