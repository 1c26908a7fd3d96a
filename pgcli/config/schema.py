"""Every key of a config: its default, its rule and one sentence, which is also the editor's tooltip."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DEFAULT_ITERATIONS = 100  # of a run with no budget


class Section(BaseModel):
    """A mapping of the config: strict types, no unknown keys, immutable once read."""

    # defer_build: the first config to be read waits for the validators, not every import
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def _integral(value: Any) -> Any:  # noqa: ANN401 - whatever the YAML held
    """Let `1e6` stand for 1000000 where a whole number is wanted."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_integral)]
Count = Annotated[Whole, Field(ge=1, le=10**12)]
Json = Any  # what YAML can hold: handed to the environment as it is


class WrapperConfig(Section):
    """A Gymnasium wrapper and its arguments."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Gymnasium's by name, others as `module:Class`.")
    kwargs: dict[str, Json] = Field({}, description="Keyword arguments of the wrapper.")


def _by_name(value: Any) -> Any:  # noqa: ANN401 - whatever the YAML held
    """Let a name alone stand for a wrapper without arguments."""
    return {"name": value} if isinstance(value, str) else value


def _or_name(schema: dict[str, Any]) -> None:
    """Tell editors of `_by_name`."""
    schema["items"] = {"anyOf": [{"type": "string"}, schema["items"]]}


class EnvConfig(Section):
    """Which environment, how many side by side, and how they are built."""

    id: Annotated[str, Field(min_length=1)] = Field(
        "CartPole-v1", description="Any Gymnasium id; `module:Id-v0` imports the module that registers it."
    )
    num_envs: Annotated[Whole, Field(ge=1, le=65536)] = Field(64, description="Environments stepped side by side.")
    chunk_size: Count | None = Field(
        None, description="Columns that share one forward pass; null: num_envs. Part of the result."
    )
    kwargs: dict[str, Json] = Field({}, description="Keyword arguments of the environment.")
    wrappers: list[Annotated[WrapperConfig, BeforeValidator(_by_name)]] = Field(
        [],
        json_schema_extra=_or_name,
        description="Gymnasium's by name, others as `module:Class`, or `{name: …, kwargs: …}`; innermost first.",
    )
    max_episode_steps: Count | None = Field(None, description="Time limit in steps; null: the registered one.")
    vectorization: Literal["auto", "native", "sync"] = Field(
        "auto",
        description="native: the environment's own vector form; sync: one by one; auto: native where there is one.",
    )
    rebuild: Literal["auto"] | bool = Field(
        "auto",
        description="A fresh instance per episode; auto: for environments known to remember past episodes.",
    )


class RolloutConfig(Section):
    """What is collected in one iteration."""

    episodes: Count | None = Field(64, description="Whole episodes per iteration; any number.")
    steps: Count | None = Field(None, description="Segments of so many rows per environment, instead of episodes.")
    horizon: Count | None = Field(None, description="Cut episodes after so many steps; null: never.")


class PolicyConfig(Section):
    """The policy network: logits of a softmax over the actions."""

    hidden_sizes: list[Annotated[Whole, Field(ge=1, le=65536)]] = Field(
        [64, 64], max_length=32, description="Units of each hidden layer; [] is a linear policy."
    )
    activation: Literal["tanh", "relu", "elu", "identity"] = Field(
        "tanh", description="Nonlinearity after each hidden layer."
    )


class AlgorithmConfig(Section):
    """How trajectories become a gradient; the defaults are reward-to-go REINFORCE with a mean baseline."""

    returns: Literal["total", "reward_to_go"] = Field(
        "reward_to_go", description="total: R(τ) for every step; reward_to_go: G_t, the rewards from t on."
    )
    baseline: Literal["none", "mean", "leave_one_out", "group"] = Field(
        "mean",
        description="Subtracted from the returns; mean: over the trajectories that run at t; leave_one_out: over the "
        "others of them; group: over the group_size columns that share a start state.",
    )
    objective: Literal["policy_gradient"] = Field(
        "policy_gradient", description="policy_gradient: the mean of log π times the advantage."
    )
    gamma: float = Field(0.99, ge=0, le=1, description="Discount γ per environment step.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of lambda_return; has no effect on other returns.")
    discount_weighting: bool = Field(
        False,
        description="Weigh step t by γ^t: with reward_to_go the exact gradient of the discounted return.",
    )
    average: Literal["steps", "episodes", "episode_means"] = Field(
        "steps",
        description="steps: mean over steps; episodes: sum over steps, mean over trajectories (the gradient of the "
        "return); episode_means: mean within, then over trajectories.",
    )
    standardize: Literal["none", "batch", "group"] = Field(
        "none",
        description="batch: advantages of the batch to mean 0 and (population) standard deviation 1; group: those "
        "of each group divided by the standard deviation of its returns (GRPO).",
    )
    group_size: Count | None = Field(
        None, description="Columns that share a reset seed, and so a start state; for baseline group."
    )
    update_epochs: Count = Field(1, description="Passes over the batch per update.")
    num_minibatches: Count = Field(1, description="Parts of the batch, one optimizer step each, per epoch.")
    clip_range: float = Field(0.2, gt=0, description="ε of objective clip; has no effect on other objectives.")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    value_coef: float = Field(0.5, ge=0, description="Weight of the value loss; has no effect without one.")
    target_kl: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Stop an update's epochs at this KL divergence; has no effect on one epoch."
    )


class OptimizerConfig(Section):
    """The step from a gradient to new parameters."""

    name: Literal["adam", "sgd", "rmsprop"] = Field("adam", description="The rule; sgd is plain ascent θ + α g.")
    learning_rate: float = Field(0.001, gt=0, description="Step size α at the start.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="How α goes on with the share of the budget that is used; linear, cosine: to 0.",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Scale gradients of a larger Euclidean norm down to it; null: never."
    )


class SamplingConfig(Section):
    """Who collects the chunks of a rollout; no effect on the result."""

    workers: Annotated[Whole, Field(ge=0, le=1024)] = Field(
        0, description="0: in this process; n: so many worker processes."
    )
    backend: Literal["local"] = Field("local", description="local: on this machine.")


class TrainingConfig(Section):
    """The budget, of which the first one reached ends the run; with none, 100 iterations."""

    iterations: Annotated[Whole, Field(ge=1, le=10**9)] | None = Field(
        None, description="Iterations, each one collect and one update; null: no limit."
    )
    env_steps: Count | None = Field(None, description="Environment steps, the last iteration whole; null: no limit.")
    seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds of training; outside the promise of equal bytes; null: no limit."
    )
    device: Literal["cpu"] = Field("cpu", description="Where the update runs.")
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        1, description="torch's threads. Part of the result: sums are ordered by it."
    )


class EvaluationConfig(Section):
    """Episodes that only measure; they cannot change what is learned."""

    every: Count | None = Field(
        10, description="Evaluate after every so many updates, and at 0 and the end; null: only there."
    )
    episodes: Count = Field(100, description="Episodes per evaluation.")
    mode: Literal["sampled", "greedy"] = Field(
        "sampled", description="sampled: actions drawn from π; greedy: the most probable one."
    )
    stop_at_return: float | None = Field(None, description="End the run when an evaluation's mean return reaches this.")


class CheckpointConfig(Section):
    """Which states of the run stay on disk."""

    every: Count | None = Field(
        10, description="Save after every so many updates, and at 0 and the end; null: only there."
    )
    keep: Count = Field(3, description="How many of the newest are kept; the best one is kept besides.")


# No separators, wildcards, quotes or control characters; no `-`, `.`, `~` or space first, no dot or space last.
_NEVER = r"\x00-\x1f\x7f-\x9f\u2028\u2029/\\:*?\"<>|"
FOLDER_NAME = rf"^[^{_NEVER}~.\- ]([^{_NEVER}]*[^{_NEVER}. ])?$"


class Config(Section):
    """A pgcli experiment: with its seed, one run."""

    name: str = Field(
        "experiment",
        pattern=FOLDER_NAME,
        max_length=60,  # 240 bytes at most: file systems allow 255
        description="Names the folder of the run; if a file leaves it out, the name of the file.",
    )
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] = Field(0, description="Everything random is derived from it.")
    env: EnvConfig = Field(default_factory=EnvConfig, description="The environment.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="What one iteration collects.")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="The policy network.")
    algorithm: AlgorithmConfig = Field(
        default_factory=AlgorithmConfig, description="How trajectories become a gradient."
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How a gradient becomes a step.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="Who collects.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How long.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="How the policy is measured.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What is saved.")

    @property
    def group_size(self) -> int:
        """Columns that share a reset seed: 1 where there are no groups."""
        return self.algorithm.group_size or 1
