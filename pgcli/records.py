"""The records of a run, and the columns of its tables: each metric is declared here, once.

`METRICS`, `TIMING`, `EVALUATIONS`, `EPISODES` and `GRADIENTS` are the tables. A column has a name, a value in a record,
a label, a unit and a meaning; CSV files, plots, `show`, displays and the logs of other tools derive from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

Cell = str | int | float | None
R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column of a table, of records of type R.

    Args:
        name: in the file.
        value: of a record; None leaves the cell empty.
        help: the meaning, in a sentence.
        label, unit: on the axis of a plot; without a label, the name.
        brief: the format in a display.
        text: the cells are words.
        logarithmic: the numbers span powers of ten.
    """

    name: str
    value: Callable[[R], Cell]
    help: str
    label: str = ""
    unit: str = ""
    brief: str = ""
    text: bool = False
    logarithmic: bool = False

    @property
    def axis(self) -> str:
        """The words on an axis."""
        return (self.label or self.name.replace("_", " ")) + (f" ({self.unit})" if self.unit else "")


def _metric(help: str, label: str = "", **more: Any) -> dict[str, Any]:
    """Return the metadata of a field that becomes a `Column`."""
    return {"help": help, "label": label, **more}


@dataclass(frozen=True)
class Sample:
    """Statistics of a sample of returns, in reward units. One value has no spread: None, not nan."""

    n: int
    mean: float = field(metadata=_metric("mean return", "mean return"))
    standard_error: float | None = field(
        metadata=_metric("standard deviation / √n; empty for one episode", "standard error of the mean return")
    )
    standard_deviation: float | None = field(
        metadata=_metric("with n - 1; empty for one episode", "standard deviation of the return")
    )
    median: float = field(metadata=_metric("median return", "median return"))
    min: float = field(metadata=_metric("smallest return", "smallest return"))
    max: float = field(metadata=_metric("largest return", "largest return"))


@dataclass(frozen=True)
class Episode:
    """One training episode."""

    episode: int
    episode_return: float
    discounted_return: float
    length: int
    ended: str


@dataclass(frozen=True)
class GradientEstimate:
    """The variance of an estimator, measured on an iteration's trajectories; None where it is undefined."""

    estimator: str = field(metadata=_metric("RETURNS+BASELINE; the config's own comes first", text=True))
    trajectories: int = field(metadata=_metric("number of trajectories N"))
    gradient_norm: float | None = field(
        metadata=_metric("norm of the batch's estimate", "norm of the gradient estimate", logarithmic=True)
    )
    gradient_variance: float | None = field(
        metadata=_metric(
            "trace of the estimate's covariance, in squared units of the gradient",
            "variance of the gradient estimate",
            logarithmic=True,
        )
    )
    trajectory_variance: float | None = field(
        metadata=_metric("the same of one trajectory", "variance of one trajectory's gradient", logarithmic=True)
    )
    snr: float | None = field(
        metadata=_metric(
            "squared norm of the true gradient over gradient_variance; below 0, the signal is lost in the noise",
            "signal-to-noise ratio of the gradient",
            logarithmic=True,
        )
    )
    trajectories_for_snr_1: float | None = field(
        metadata=_metric("N / snr", "trajectories for a signal-to-noise ratio of 1", logarithmic=True)
    )
    variance_removed: float | None = field(
        metadata=_metric("by the baseline, a share", "share of the variance that the baseline removes")
    )
    cosine: float | None = field(
        metadata=_metric("between this estimate and the config's own", "cosine with the gradient that was taken")
    )


@dataclass(frozen=True, kw_only=True)
class Update:
    """The metrics of one update; None where one does not apply. Losses to grad_norm are means over the last epoch.

    Each is measured before the optimizer step that it leads to, so one step on fresh data has approx_kl 0.
    """

    policy_loss: float | None = field(metadata=_metric("empty if the gradient is computed by the user's code"))
    value_loss: float | None = field(default=None, metadata=_metric("loss of the value function", brief="loss {:.3g}"))
    entropy: float = field(
        metadata=_metric("mean over steps", "entropy of the policy", unit="nats", brief="entropy {:.3f}")
    )
    approx_kl: float | None = field(
        default=None,
        metadata=_metric("KL(μ‖π), by k3", "approximate KL divergence", unit="nats", brief="KL {:.2g}"),
    )
    clip_fraction: float | None = field(
        default=None, metadata=_metric("share of the steps whose ratio is clipped", brief="clipped {:.0%}")
    )
    effective_sample_size: float | None = field(default=None, metadata=_metric("(Σ ρ)² / Σ ρ², in steps"))
    explained_variance: float | None = field(
        default=None,
        metadata=_metric("1 - Var[G - V] / Var[G], by V before the update", brief="explained variance {:.2f}"),
    )
    grad_norm: float = field(
        metadata=_metric("of all parameters, before clipping", "gradient norm", brief="gradient norm {:.3g}")
    )
    learning_rate: float = field(metadata=_metric("of the policy"))
    update_epochs: int = field(default=1, metadata=_metric("epochs; target_kl may cut the last one short"))
    clip_range: float | None = field(default=None, metadata=_metric("ε of the clipped objective"))
    entropy_coef: float | None = field(default=None, metadata=_metric("weight of the entropy bonus"))
    zero_variance_groups: int | None = field(default=None, metadata=_metric("groups whose returns are all equal"))
    return_scale: float | None = field(default=None, metadata=_metric("divisor of the rewards"))
    action_standard_deviation: float | None = field(
        default=None, metadata=_metric("σ of a Gaussian policy, mean over the entries of an action")
    )
    action_clip_fraction: float | None = field(
        default=None, metadata=_metric("share of action entries that are clipped to the bounds")
    )
    gradients: Sequence[GradientEstimate] = ()  # the config's own first; empty unless they were measured


@dataclass(frozen=True)
class Timing:
    """Seconds of an iteration, by part; `evaluate` is the evaluation before it."""

    elapsed: float
    collect: float
    update: float
    evaluate: float


@dataclass(frozen=True)
class Iteration:
    """One iteration: its metrics, the episodes that ended in it, its timing."""

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
    """One evaluation of the policy after `iteration` updates."""

    iteration: int
    env_steps: int
    mode: str
    returns: Sample
    length_mean: float
    discounted_return_mean: float
    seconds: float


@dataclass(frozen=True)
class Notice:
    """A text that the user should read."""

    text: str


Record = Iteration | Evaluation | Notice


def _metrics(kind: type, of: Callable[[R], object], prefix: str = "", names: Sequence[str] = ()) -> Iterator[Column[R]]:
    """Yield the columns of the fields of `kind`, or of those in `names`; `of` finds the object in a record."""
    declared = {one.name: one.metadata for one in fields(kind) if one.metadata}

    def value(name: str) -> Callable[[R], Any]:
        return lambda record: getattr(of(record), name, None)

    for name in names or declared:
        yield Column(f"{prefix}{name}", value(name), **declared[name])


def _returns(of: Callable[[R], Sample | None], *names: str) -> Iterator[Column[R]]:
    return _metrics(Sample, of, "return_", names)


_ITERATION, _ENV_STEPS = "number of the iteration, from 0", "environment steps so far, this iteration included"
_UPDATES = "number of updates made before; 0: the untrained policy"
_STEPS, _LENGTH, _DISCOUNTED = "environment steps", "mean length in steps", "mean discounted return"

METRICS: tuple[Column[Iteration], ...] = (
    Column("iteration", lambda record: record.iteration, _ITERATION),
    Column("env_steps", lambda record: record.env_steps, _ENV_STEPS, _STEPS),
    Column("episodes", lambda record: record.episode_count, "episodes ended so far"),
    *_returns(lambda record: record.returns, "mean", "standard_error", "standard_deviation", "min", "max"),
    Column("length_mean", lambda record: record.length_mean, "of the episodes that ended", _LENGTH),
    Column("discounted_return_mean", lambda record: record.discounted_return_mean, "from each reset", _DISCOUNTED),
    *_metrics(Update, lambda record: record.update),
)
TIMING: tuple[Column[Iteration], ...] = (
    Column("iteration", lambda record: record.iteration, _ITERATION),
    Column("elapsed_seconds", lambda record: record.timing.elapsed, "since the run began", "seconds of training"),
    Column("collect_seconds", lambda record: record.timing.collect, "of collecting"),
    Column("update_seconds", lambda record: record.timing.update, "of the update"),
    Column("evaluate_seconds", lambda record: record.timing.evaluate, "of the evaluation before the iteration"),
    Column(
        "steps_per_second",
        lambda record: record.steps / max(record.timing.collect + record.timing.update, 1e-9),
        "environment steps per second of collecting and updating",
    ),
)
EVALUATIONS: tuple[Column[Evaluation], ...] = (
    Column("iteration", lambda record: record.iteration, _UPDATES),
    Column("env_steps", lambda record: record.env_steps, "environment steps made before", _STEPS),
    Column("mode", lambda record: record.mode, "sampled or greedy", text=True),
    Column("evaluation_episodes", lambda record: record.returns.n, "number of episodes"),
    *_returns(lambda record: record.returns, "mean", "standard_error", "standard_deviation"),
    Column("length_mean", lambda record: record.length_mean, "of the episodes", _LENGTH),
    *_returns(lambda record: record.returns, "median", "min", "max"),
    Column("discounted_return_mean", lambda record: record.discounted_return_mean, "from each reset", _DISCOUNTED),
)
EPISODES: tuple[Column[tuple[Iteration, Episode]], ...] = (
    Column("iteration", lambda row: row[0].iteration, _ITERATION),
    Column("episode", lambda row: row[1].episode, "number of the episode, from 0"),
    Column("return", lambda row: row[1].episode_return, "sum of the rewards"),
    Column("discounted_return", lambda row: row[1].discounted_return, "Σ γ^t r_t from the reset"),
    Column("length", lambda row: row[1].length, "steps"),
    Column("ended", lambda row: row[1].ended, "terminated, truncated or horizon", text=True),
)
GRADIENTS: tuple[Column[tuple[Iteration, GradientEstimate]], ...] = (
    Column("iteration", lambda row: row[0].iteration, _ITERATION),
    Column("env_steps", lambda row: row[0].env_steps, _ENV_STEPS, _STEPS),
    *_metrics(GradientEstimate, lambda row: row[1]),
)
COLUMNS: dict[str, Column[Any]] = {
    column.name: column for table in (TIMING, EPISODES, GRADIENTS, EVALUATIONS, METRICS) for column in table
}


def axis(name: str) -> str:
    """Return the words on an axis for a column, declared or not."""
    return COLUMNS[name].axis if name in COLUMNS else name.replace("_", " ")


def brief(update: Update, *names: str) -> list[str]:
    """Write metrics of an update for a display, without those that do not apply."""
    values = ((COLUMNS[name], getattr(update, name)) for name in names)
    return [column.brief.format(value).replace("%", " %") for column, value in values if value is not None]
