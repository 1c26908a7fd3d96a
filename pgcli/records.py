"""The records of a run and the columns of its tables.

Each metric is declared once, here.

`METRICS`, `TIMING`, `EVALUATIONS`, `EPISODES` and `GRADIENTS` are the tables. A column has a name, a value in a record,
a label, a unit and a meaning; CSV files, plots, `show`, displays and the logs of other tools derive from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, TypeVar, get_origin, get_type_hints

Cell = str | int | float | None
Number = float | None
R = TypeVar("R")


@dataclass(frozen=True)
class Metric:
    """The meaning and format of a number.

    As the annotation of a field, it declares a column.

    Args:
        help: the meaning, in addition to the name.
        label, unit: for the axis of a plot; the label defaults to the name.
        brief: the format in a display.
        text: the values are words.
        optional: the column is only in the tables of runs whose config gives it a value.
        logarithmic: the values span powers of ten.
    """

    help: str
    label: str = ""
    unit: str = ""
    brief: str = ""
    text: bool = False
    optional: bool = False
    logarithmic: bool = False


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table: its name, and its value in a record of type R. None is an empty cell."""

    name: str
    value: Callable[[R], Cell]
    metric: Metric

    @property
    def axis(self) -> str:
        """The label of an axis."""
        unit = f" ({self.metric.unit})" if self.metric.unit else ""
        return (self.metric.label or self.name.replace("_", " ")) + unit


@dataclass(frozen=True)
class Sample:
    """Statistics of returns, in reward units. A single value has spread None."""

    n: int
    mean: Annotated[float, Metric("over episodes", "mean return")]
    standard_error: Annotated[Number, Metric("standard deviation / √n", "standard error of the mean return")]
    standard_deviation: Annotated[Number, Metric("with n - 1", "standard deviation of the return")]
    median: Annotated[float, Metric("over episodes", "median return")]
    min: Annotated[float, Metric("over episodes", "smallest return")]
    max: Annotated[float, Metric("over episodes", "largest return")]


@dataclass(frozen=True)
class Episode:
    """One training episode."""

    episode: int
    episode_return: float
    discounted_return: float
    length: int
    ended: str
    info: Mapping[str, float] = field(default_factory=dict)  # numbers in the info of its last step


def _wide(help: str, label: str) -> Metric:
    return Metric(help, label, logarithmic=True)


@dataclass(frozen=True)
class GradientEstimate:
    """The variance of an estimator on the trajectories of one iteration.

    None if undefined.

    snr estimates the squared norm of the true gradient over gradient_variance. Below 0, noise exceeds the signal.
    """

    estimator: Annotated[str, Metric("RETURNS+BASELINE; the config's own comes first", text=True)]
    trajectories: Annotated[int, Metric("number N")]
    gradient_norm: Annotated[Number, _wide("|g|", "norm of the gradient estimate")]
    gradient_variance: Annotated[Number, _wide("v = tr Cov[g]", "variance of the gradient estimate")]
    trajectory_variance: Annotated[Number, _wide("N v", "variance of one trajectory's gradient")]
    snr: Annotated[Number, _wide("(|g|² - v) / v", "signal-to-noise ratio of the gradient")]
    trajectories_for_snr_1: Annotated[Number, _wide("N / snr", "trajectories for a signal-to-noise ratio of 1")]
    variance_removed: Annotated[Number, Metric("1 - v(A) / v(G)", "share of the variance that the baseline removes")]
    cosine: Annotated[Number, Metric("g · g_own / (|g| |g_own|)", "cosine with the gradient of the update")]


@dataclass(frozen=True, kw_only=True)
class Update:
    """The metrics of one update; None if not applicable.

    Losses to grad_norm are means over the last epoch.

    They are measured before each optimizer step, so one step on new data has approx_kl 0.
    """

    policy_loss: Annotated[Number, Metric("None if the user's code computes the gradient")] = None
    value_loss: Annotated[Number, Metric("of the value function", brief="loss {:.3g}")] = None
    entropy: Annotated[Number, Metric("mean over steps", "entropy of the policy", "nats", "entropy {:.3f}")] = None
    approx_kl: Annotated[Number, Metric("KL(μ‖π), by k3", "approximate KL divergence", "nats", "KL {:.2g}")] = None
    clip_fraction: Annotated[Number, Metric("of the steps", brief="clipped {:.0%}")] = None
    effective_sample_size: Annotated[Number, Metric("(Σ ρ)² / Σ ρ², in steps or trajectories (algorithm.ratios)")] = (
        None
    )
    explained_variance: Annotated[
        Number, Metric("1 - Var[G - V] / Var[G], before the update", brief="explained variance {:.2f}")
    ] = None
    grad_norm: Annotated[Number, Metric("before clipping", "gradient norm", brief="gradient norm {:.3g}")] = None
    learning_rate: Annotated[Number, Metric("of the policy")] = None
    update_epochs: Annotated[int | None, Metric("target_kl may cut the last one short")] = None
    clip_range: Annotated[Number, Metric("ε of the clipped objective; the lower one of two")] = None
    entropy_coef: Annotated[Number, Metric("weight of the entropy bonus")] = None
    zero_variance_groups: Annotated[int | None, Metric("groups whose returns are all equal")] = None
    return_scale: Annotated[Number, Metric("divisor of the rewards")] = None
    action_standard_deviation: Annotated[Number, Metric("σ, mean over the entries of an action")] = None
    action_clip_fraction: Annotated[Number, Metric("of the entries of the actions")] = None
    kl_coef: Annotated[Number, Metric("weight of the KL penalty, where it adapts", optional=True)] = None
    step_kl: Annotated[
        Number, Metric("KL(π_old‖π) of a natural gradient step", "KL of the step", "nats", "KL {:.2g}", optional=True)
    ] = None
    backtracks: Annotated[int | None, Metric("times that the line search made the step shorter", optional=True)] = None
    rejected_steps: Annotated[
        int | None, Metric("steps not taken: the line search failed, or F is singular", optional=True)
    ] = None
    gradients: Sequence[GradientEstimate] = ()  # the config's own first; empty unless they were measured

    def __or__(self, other: Update) -> Update:
        """Return this record completed by the metrics that `other` has."""
        return replace(self, **{name: x for name, x in vars(other).items() if x is not None})


@dataclass(frozen=True)
class Timing:
    """Seconds of an iteration, by part; `evaluate` is the evaluation before it."""

    elapsed: float
    collect: float
    update: float
    evaluate: float


@dataclass(frozen=True)
class Iteration:
    """One iteration: metrics, finished episodes, timing."""

    iteration: int
    env_steps: int
    episode_count: int
    steps: int  # of this iteration
    returns: Sample | None  # of the episodes that ended; None if none did
    length_mean: float | None
    discounted_return_mean: float | None
    update: Update
    episodes: list[Episode]
    timing: Timing
    progress: float
    info: Mapping[str, float] = field(default_factory=dict)  # means over the episodes with a number

    @property
    def steps_per_second(self) -> float:
        """Environment steps per second of collecting and updating."""
        return self.steps / max(self.timing.collect + self.timing.update, 1e-9)


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
    info: Mapping[str, float] = field(default_factory=dict)  # means over the episodes with a number
    stopped_by: str = ""  # the rule that stopped the run before this evaluation on new episodes


@dataclass(frozen=True)
class LogEntry:
    """The numbers of one record, by `table/column`.

    `elapsed` is relative to the start of the session, in seconds.
    """

    iteration: int
    env_steps: int
    values: dict[str, float]
    elapsed: float = 0.0


@dataclass(frozen=True)
class Notice:
    """A message for the user."""

    text: str


Record = Iteration | Evaluation | Notice


def _metrics(kind: type, of: Callable[[R], object], prefix: str = "", names: Sequence[str] = ()) -> Iterator[Column[R]]:
    """Yield the columns of `kind`, or of its fields `names`, of the object `of` a record."""
    hints = get_type_hints(kind, include_extras=True)
    metrics = {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}

    def value(name: str) -> Callable[[R], Any]:
        return lambda record: getattr(of(record), name, None)

    for name in names or (name for name, metric in metrics.items() if not metric.optional):
        yield Column(f"{prefix}{name}", value(name), metrics[name])


def _returns(of: Callable[[R], Sample | None], *names: str) -> Iterator[Column[R]]:
    return _metrics(Sample, of, "return_", names)


_ITERATION = Metric("from 0; of an evaluation, the number of updates before it")
_ENV_STEPS = Metric("so far, an iteration's own included", "environment steps")
_LENGTH = Metric("of the episodes", "mean length in steps")
_DISCOUNTED = Metric("from each reset", "mean discounted return")

METRICS: tuple[Column[Iteration], ...] = (
    Column("iteration", lambda it: it.iteration, _ITERATION),
    Column("env_steps", lambda it: it.env_steps, _ENV_STEPS),
    Column("episodes", lambda it: it.episode_count, Metric("ended so far")),
    *_returns(lambda it: it.returns, "mean", "standard_error", "standard_deviation", "min", "max"),
    Column("length_mean", lambda it: it.length_mean, _LENGTH),
    Column("discounted_return_mean", lambda it: it.discounted_return_mean, _DISCOUNTED),
    *_metrics(Update, lambda it: it.update),
)
TIMING: tuple[Column[Iteration], ...] = (
    Column("iteration", lambda it: it.iteration, _ITERATION),
    Column("elapsed_seconds", lambda it: it.timing.elapsed, Metric("since the run began", "seconds of training")),
    Column("collect_seconds", lambda it: it.timing.collect, Metric("of this iteration")),
    Column("update_seconds", lambda it: it.timing.update, Metric("of this iteration")),
    Column("evaluate_seconds", lambda it: it.timing.evaluate, Metric("of the evaluation before this iteration")),
    Column("steps_per_second", lambda it: it.steps_per_second, Metric("of collecting and updating")),
)
EVALUATIONS: tuple[Column[Evaluation], ...] = (
    Column("iteration", lambda it: it.iteration, _ITERATION),
    Column("env_steps", lambda it: it.env_steps, _ENV_STEPS),
    Column("mode", lambda it: it.mode, Metric("sampled or greedy", text=True)),
    Column("evaluation_episodes", lambda it: it.returns.n, Metric("number")),
    *_returns(lambda it: it.returns, "mean", "standard_error", "standard_deviation"),
    Column("length_mean", lambda it: it.length_mean, _LENGTH),
    *_returns(lambda it: it.returns, "median", "min", "max"),
    Column("discounted_return_mean", lambda it: it.discounted_return_mean, _DISCOUNTED),
)
EPISODES: tuple[Column[tuple[Iteration, Episode]], ...] = (
    Column("iteration", lambda row: row[0].iteration, _ITERATION),
    Column("episode", lambda row: row[1].episode, Metric("from 0")),
    Column("return", lambda row: row[1].episode_return, Metric("sum of the rewards")),
    Column("discounted_return", lambda row: row[1].discounted_return, Metric("Σ γ^t r_t from the reset")),
    Column("length", lambda row: row[1].length, Metric("in steps")),
    Column("ended", lambda row: row[1].ended, Metric("terminated, truncated or horizon", text=True)),
)
GRADIENTS: tuple[Column[tuple[Iteration, GradientEstimate]], ...] = (
    Column("iteration", lambda row: row[0].iteration, _ITERATION),
    Column("env_steps", lambda row: row[0].env_steps, _ENV_STEPS),
    *_metrics(GradientEstimate, lambda row: row[1]),
)
TABLES: dict[str, tuple[Column[Any], ...]] = {
    "metrics": METRICS,
    "timing": TIMING,
    "evaluations": EVALUATIONS,
    "episodes": EPISODES,
    "gradients": GRADIENTS,  # only with `diagnostics.every`
}
STOPPED_BY: Column[Evaluation] = Column(
    "stopped_by",
    lambda it: it.stopped_by or None,
    Metric("goal or patience: the rule that stopped the run before this evaluation on new episodes", text=True),
)


def _update(iteration: Iteration) -> Update:
    return iteration.update


_UPDATE = get_type_hints(Update, include_extras=True).items()
_OPTIONAL = [name for name, hint in _UPDATE if get_origin(hint) is Annotated and hint.__metadata__[0].optional]
OPTIONAL = dict(zip(_OPTIONAL, _metrics(Update, _update, names=_OPTIONAL), strict=True))  # of metrics.csv
COLUMNS = {column.name: column for table in (*TABLES.values(), (STOPPED_BY,), OPTIONAL.values()) for column in table}
_INFO: dict[str, Callable[[Any], Mapping[str, float]]] = {  # by table, from its records
    "metrics": lambda it: it.info,
    "evaluations": lambda it: it.info,
    "episodes": lambda row: row[1].info,
}


def columns(table: str, more: Sequence[str] = ()) -> tuple[Column[Any], ...]:
    """Return the columns of a table, then `more`: optional ones, or names from info."""
    return (*TABLES[table], *(_additional(table, name) for name in more))


def _additional(table: str, name: str) -> Column[Any]:
    if name == STOPPED_BY.name:
        return STOPPED_BY
    if table == "metrics" and name in OPTIONAL:
        return OPTIONAL[name]
    return Column(name, lambda record: _INFO[table](record).get(name), Metric("reported by the environment"))


def more_columns(info: Sequence[str], *, stops: bool, metrics: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the additional columns of a run, by table.

    Args: info: names reported by the environment. stops: the run has a stopping rule. metrics: of `OPTIONAL`.
    """
    own: dict[str, Sequence[str]] = {"evaluations": [STOPPED_BY.name] if stops else [], "metrics": metrics}
    return {table: [*own.get(table, ()), *info] for table in _INFO}


def axis(name: str) -> str:
    """Return the axis label of a column, declared or not."""
    return COLUMNS[name].axis if name in COLUMNS else name.replace("_", " ")


def brief(update: Update, *names: str) -> list[str]:
    """Format metrics of an update for a display; skip those that do not apply."""
    values = ((COLUMNS[name].metric.brief, getattr(update, name)) for name in names)
    return [form.format(value).replace("%", " %") for form, value in values if value is not None]
