"""Every key of a config: its default, its rule and its description, which is also the editor's tooltip."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from pgcli.config import choices

DEFAULT_ITERATIONS = 100  # of a run with no budget


class Section(BaseModel):
    """A mapping of the config: strict types, no unknown keys, immutable once read."""

    # defer_build: the validators are built when the first config is read, not on import
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def _integral(value: Any) -> Any:
    """Return a float such as `1e6` as the whole number that it equals."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_integral)  # comes last: bounds after it would be missing from the JSON Schema
Count = Annotated[int, Field(ge=1, le=10**12), _WHOLE]
Json = Any  # any YAML value: passed to the environment unchanged


class WrapperConfig(Section):
    """A Gymnasium wrapper and its arguments."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Gymnasium's by name, others as `module:Class`.")
    kwargs: dict[str, Json] = Field({}, description="Keyword arguments of the wrapper.")


def _by_name(value: Any) -> Any:
    """Return a wrapper without arguments for a name alone."""
    return {"name": value} if isinstance(value, str) else value


def _or_name(schema: dict[str, Any]) -> None:
    """Add to the JSON Schema that a wrapper may be a name alone."""
    array = schema.get("anyOf", [schema])[0]
    array["items"] = {"anyOf": [{"type": "string"}, array["items"]]}


Wrappers = list[Annotated[WrapperConfig, BeforeValidator(_by_name)]]


class EnvConfig(Section):
    """Which environment, how many side by side, and how they are built."""

    id: Annotated[str, Field(min_length=1)] = Field(
        "CartPole-v1", description="Any Gymnasium id; `module:Id-v0` imports the module that registers it."
    )
    num_envs: Annotated[int, Field(ge=1, le=65536), _WHOLE] = Field(
        64, description="Environments stepped side by side."
    )
    chunk_size: Count | None = Field(
        None, description="Columns that share one forward pass; null: num_envs. Part of the result."
    )
    kwargs: dict[str, Json] = Field({}, description="Keyword arguments of the environment.")
    wrappers: Wrappers = Field(
        [],
        json_schema_extra=_or_name,
        description="Gymnasium's by name, others as `module:Class`, or `{name: …, kwargs: …}`; innermost first.",
    )
    max_episode_steps: Count | None = Field(None, description="Time limit in steps; null: the registered one.")
    vectorization: choices.Vectorization = Field(
        "auto",
        description="native: the environment's own vector form; sync: one by one; auto: native where there is one.",
    )
    rebuild: Literal["auto"] | bool = Field(
        "auto",
        description="A fresh instance per episode; auto: for environments known to remember past episodes.",
    )
    _reads_mask: bool = PrivateAttr(True)

    @property
    def reads_mask(self) -> bool:
        """Whether an action mask is read; `policy.action_mask: none` ignores it, whatever it is."""
        return self._reads_mask


class EvaluationEnvConfig(Section):
    """How the environment of evaluations differs from that of training; null: not at all."""

    wrappers: Wrappers | None = Field(
        None,
        json_schema_extra=_or_name,
        description="All wrappers of the evaluation environment, `[]` for none; null: those of training.",
    )
    kwargs: dict[str, Json] | None = Field(
        None, description="All keyword arguments of the evaluation environment; null: those of training."
    )
    max_episode_steps: Count | None = Field(
        None, description="Time limit of evaluation episodes in steps; null: that of training."
    )

    def applied_to(self, env: EnvConfig) -> EnvConfig:
        """Return `env` as evaluations have it."""
        return env.model_copy(update={name: value for name, value in self if value is not None})


class RolloutConfig(Section):
    """What is collected in one iteration."""

    episodes: Count | None = Field(64, description="Whole episodes per iteration; any number.")
    steps: Count | None = Field(
        None, description="With `episodes: null`: segments of so many rows of num_envs environments that go on."
    )
    horizon: Count | None = Field(None, description="Cut episodes after so many steps; null: never.")


Sizes = Annotated[list[Annotated[int, Field(ge=1, le=65536), _WHOLE]], Field(max_length=32)]


class PolicyConfig(Section):
    """The policy network and the distribution whose parameters it computes."""

    hidden_sizes: Sizes = Field([64, 64], description="Units of each hidden layer; [] is a linear policy.")
    activation: choices.ActivationName = Field("tanh", description="Nonlinearity after each hidden layer.")
    init: choices.Initialization = Field(
        "uniform",
        description="Weights at the start; uniform: in ±1/√fan_in, torch's; orthogonal: with gain √2, 0.01 for the "
        "policy's last layer and 1 for the value's, and no biases.",
    )
    distribution: choices.DistributionName = Field(
        "auto",
        description="Over actions; auto: softmax for Discrete and MultiDiscrete, gaussian for Box, bernoulli for "
        "MultiBinary; tanh_gaussian: squashed into the bounds of a Box; state_dependent_gaussian: noise that is a "
        "function of the state for noise_steps steps (gSDE).",
    )
    initial_standard_deviation: float = Field(
        1.0, gt=0, le=1e6, description="σ of a gaussian at the start; it is learned."
    )
    noise_steps: Count = Field(
        64,
        description="Steps for which a state_dependent_gaussian keeps its noise; 1: it draws noise anew in each step, "
        "so that its score is exact.",
    )
    normalize_obs: bool = Field(
        False,
        description="Observations minus their running mean, over their standard deviation, clipped to ±10; images by "
        "channel. Images whose bounds do not tell their scale are always normalised.",
    )
    image_network: choices.ImageNetworkName = Field(
        "auto",
        description="What reads the images of an observation, before the hidden layers; nature: three convolutions, "
        "for sides of 36 pixels or more; small: two, at a third of the cost; auto: nature where it fits; "
        "none: images are flattened.",
    )
    memory: choices.MemoryName = Field(
        "none", description="A recurrent layer before the hidden ones, which remembers the episode so far."
    )
    memory_size: Annotated[int, Field(ge=1, le=65536), _WHOLE] = Field(64, description="Units of the recurrent layer.")
    backpropagation_steps: Count | None = Field(
        None, description="Gradients go so many steps back through the memory; null: to the start of the trajectory."
    )
    action_mask: choices.ActionMask = Field(
        "auto",
        description="auto: actions that info or a Dict observation forbid by an `action_mask` have probability 0; "
        "none: the mask is ignored.",
    )


class AlgorithmConfig(Section):
    """How trajectories become a gradient; the defaults are reward-to-go REINFORCE with a mean baseline."""

    returns: choices.Returns = Field(
        "reward_to_go",
        description="total: R(τ) for every step; reward_to_go: G_t, the rewards from t on; lambda_return: G_t mixed "
        "with the values on its way (GAE, once V is subtracted); vtrace: that, corrected for data of another policy.",
    )
    baseline: choices.Baseline = Field(
        "mean",
        description="Subtracted from the returns; mean: over the trajectories that run at t; leave_one_out: over the "
        "others of them; optimal: the constant of least variance, from the others; group: over the group_size columns "
        "that share a start state; value: V(s), learned.",
    )
    objective: choices.Objective = Field(
        "policy_gradient",
        description="policy_gradient: log π times the advantage; importance_sampling: weighed by ρ = π/μ for data of "
        "another policy μ; clip: the smaller of ρA and its value with ρ clipped (PPO).",
    )
    gamma: float = Field(0.99, ge=0, le=1, description="Discount γ per environment step.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of lambda_return; has no effect on other returns.")
    discount_weighting: bool = Field(
        False,
        description="Weigh step t by γ^t: with reward_to_go the exact gradient of the discounted return.",
    )
    average: choices.Average = Field(
        "steps",
        description="steps: mean over steps; episodes: sum over steps, mean over trajectories (the gradient of the "
        "return); episode_means: mean within, then over trajectories.",
    )
    standardize: choices.Standardize = Field(
        "none",
        description="batch: advantages of the batch to mean 0 and (population) standard deviation 1; group: those "
        "of each group divided by the standard deviation of its returns (GRPO).",
    )
    group_size: Count | None = Field(
        None, description="Columns that share a reset seed, and so a start state; for baseline group."
    )
    group_mean: choices.GroupMean = Field(
        "whole", description="Of baseline group; whole: the own column included (GRPO); leave_one_out: the others."
    )
    estimator: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="`FILE.py:NAME` or `FILE.ipynb:NAME`: your own function from (rollouts, policy, gamma) to a flat "
        "gradient. It replaces returns, baseline, average, standardize and discount_weighting; null: pgcli's.",
    )
    reuse: Annotated[int, Field(ge=1, le=1000), _WHOLE] = Field(
        1, description="Learn from the data of so many last iterations; needs importance_sampling or clip."
    )
    update_epochs: Count = Field(1, description="Passes over the batch per update.")
    num_minibatches: Count = Field(1, description="Parts of the batch, one optimizer step each, per epoch.")
    clip_range: float = Field(0.2, gt=0, description="ε of objective clip; has no effect on other objectives.")
    clip_range_schedule: choices.Schedule = Field(
        "constant", description="How ε goes on with the share of the budget that is used; linear, cosine: to 0."
    )
    importance_bound: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Truncate the weights ρ of importance_sampling here; null: never."
    )
    self_normalize: bool = Field(
        False, description="Divide the weights ρ of importance_sampling by their mean over the batch."
    )
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    entropy_coef_schedule: choices.Schedule = Field(
        "constant", description="How entropy_coef goes on with the budget that is used; linear, cosine: to 0."
    )
    kl_coef: float = Field(0.0, ge=0, description="Weight of a penalty on KL(μ‖π), μ the policy that acted.")
    value_coef: float = Field(0.5, ge=0, description="Weight of the value loss; has no effect without one.")
    target_kl: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Stop an update's passes once KL(μ‖π) is above this; has no effect on one step."
    )


class OptimizerConfig(Section):
    """The step from a gradient to new parameters."""

    name: choices.OptimizerName = Field("adam", description="The rule; sgd is plain ascent θ + α g.")
    learning_rate: float = Field(0.001, gt=0, description="Step size α at the start.")
    schedule: choices.Schedule = Field(
        "constant",
        description="How α goes on with the share of the budget that is used; linear, cosine: to 0.",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Scale a network's gradient of a larger Euclidean norm down to it; null: never."
    )


class ValueConfig(Section):
    """The value function V, for baseline value; without it, none of these has an effect."""

    hidden_sizes: Sizes | None = Field(None, description="Units of each hidden layer; null: those of the policy.")
    shared_trunk: bool = Field(False, description="V is one more output of the policy network, not one of its own.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Step size of V's network at the start; null: that of the optimizer."
    )
    update_epochs: Count | None = Field(
        None, description="Passes over the batch per update of V's network; null: as many as of the policy."
    )
    clip_range: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Keep V within this of what it was before the update, in the loss; null: no clipping."
    )
    normalize_returns: bool = Field(
        False, description="Rewards over the running standard deviation of the discounted return."
    )


class SamplingConfig(Section):
    """Who collects the chunks of a rollout; no effect on the result."""

    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1024), _WHOLE] = Field(
        0,
        description="0: in this process; n: so many worker processes, or actors; auto: one for each chunk, but no more "
        "than the cores that this process may use (shared by --jobs), or the cluster has; 0 if that is one, or, on "
        "this machine, the environment has its vector form.",
    )
    backend: choices.Backend = Field(
        "local",
        description="local: processes of this machine; ray: actors on the cluster at RAY_ADDRESS, or of a Ray started "
        "here; --jobs then places whole runs.",
    )


class TrainingConfig(Section):
    """The budget, of which the first one reached ends the run; with none, 100 iterations."""

    iterations: Annotated[int, Field(ge=1, le=10**9), _WHOLE] | None = Field(
        None, description="Iterations, each one collect and one update; null: no limit."
    )
    env_steps: Count | None = Field(None, description="Environment steps, the last iteration whole; null: no limit.")
    seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds of training; outside the promise of equal bytes; null: no limit."
    )
    device: choices.Device = Field(
        "cpu",
        description="Where the update runs. cuda: a GPU, for images; equal bytes only on the same model of it.",
    )
    threads: Annotated[int, Field(ge=1, le=1024), _WHOLE] = Field(
        1, description="torch's threads. Part of the result: sums are ordered by it."
    )
    compile: bool = Field(
        False,
        description="Compile what learns from images, or on a GPU, with torch.compile: a minute at the start, and a "
        "compiler for C++. Plain networks on the CPU have gradients in closed form, which are faster.",
    )


class EvaluationConfig(Section):
    """Episodes that only measure; they cannot change what is learned."""

    every: Count | None = Field(
        10, description="Evaluate after every so many updates, and at 0 and the end; null: only there."
    )
    episodes: Count = Field(100, description="Episodes per evaluation.")
    mode: choices.Mode = Field("sampled", description="sampled: actions drawn from π; greedy: the most probable one.")
    env: EvaluationEnvConfig = Field(
        default_factory=EvaluationEnvConfig,
        description="What differs in the environment, for `pgcli eval` and films, too; so that clipped rewards, lost "
        "lives and shaping stay in training.",
    )
    stop_at_return: float | None = Field(None, description="End the run when an evaluation's mean return reaches this.")
    stop_at: dict[str, float] = Field(
        {},
        description="End the run when an evaluation reaches these values of columns of evaluations.csv, such as "
        "`{is_success: 0.95}`, all of them, and stop_at_return, at once.",
    )
    stop_evaluations: Count = Field(
        1, description="End the run once so many evaluations in a row reach stop_at_return and stop_at."
    )
    patience: Count | None = Field(
        None, description="End the run once so many evaluations in a row have no better mean return than the best."
    )

    @property
    def goals(self) -> dict[str, float]:
        """What an evaluation has to reach to end the run, by column of evaluations.csv; {}: nothing ends it."""
        return ({} if self.stop_at_return is None else {"return_mean": self.stop_at_return}) | self.stop_at

    @property
    def stops(self) -> bool:
        """Whether a rule may end the run before its budget."""
        return bool(self.goals) or self.patience is not None


class CheckpointConfig(Section):
    """Which states of the run stay on disk."""

    every: Count | None = Field(
        10, description="Save after every so many updates, and at 0 and the end; null: only there."
    )
    keep: Count = Field(3, description="How many of the newest are kept; the best one is kept besides.")


# A name of a column: no commas, quotes or control characters, and no space at its ends.
INFO_NAME = r"^[^\x00-\x20\x7f,\"']([^\x00-\x1f\x7f,\"']*[^\x00-\x20\x7f,\"'])?$"
DEFAULT_INFO = ("is_success", "success")


class LoggingConfig(Section):
    """What is written of a run besides its results: no effect on what is learned."""

    tensorboard: bool = Field(
        False, description="Event files in the run's folder tensorboard/, for `tensorboard --logdir`."
    )
    wandb: bool = Field(
        False,
        description="An offline run of Weights & Biases in the run's folder wandb/; only `wandb sync` sends it.",
    )
    info: list[Annotated[str, Field(pattern=INFO_NAME, max_length=100)]] | None = Field(
        None,
        description="Numbers and booleans that the environment reports in the info of an episode's last step, as "
        "columns of episodes.csv, and their means in metrics.csv and evaluations.csv; `a.b` is b of the mapping a; "
        "null: is_success and success, if the episodes of the first evaluation report them.",
    )


_RETURNS, _BASELINES = ("|".join(get_args(choice)) for choice in (choices.Returns, choices.Baseline))
ESTIMATOR = rf"^({_RETURNS})\+({_BASELINES})(\+(batch|group))?$"


class DiagnosticsConfig(Section):
    """The variance ledger, gradients.csv: how far the gradient stands out of its noise; no effect on the result."""

    every: Count | None = Field(None, description="Measure in every so many iterations, from 0 on; null: never.")
    shadows: list[Annotated[str, Field(pattern=ESTIMATOR)]] = Field(
        [],
        description="Other estimators to measure on the same trajectories: RETURNS+BASELINE, not standardised, or "
        "RETURNS+BASELINE+STANDARDIZE.",
    )


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
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), _WHOLE] = Field(
        0, description="Everything random is derived from it."
    )
    env: EnvConfig = Field(default_factory=EnvConfig, description="The environment.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="What one iteration collects.")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="The policy network.")
    algorithm: AlgorithmConfig = Field(
        default_factory=AlgorithmConfig, description="How trajectories become a gradient."
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How a gradient becomes a step.")
    value: ValueConfig = Field(default_factory=ValueConfig, description="The value function, if one is learned.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="Who collects.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How long.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="How the policy is measured.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What is saved.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="What other tools are given.")
    diagnostics: DiagnosticsConfig = Field(
        default_factory=DiagnosticsConfig, description="What is measured of the gradient."
    )

    def model_post_init(self, context: Any, /) -> None:
        """Pass `policy.action_mask` to the environment, which has the mask."""
        self.env._reads_mask = self.policy.action_mask == "auto"

    @property
    def evaluation_env(self) -> EnvConfig:
        """The environment of evaluations."""
        return self.evaluation.env.applied_to(self.env)

    @property
    def group_size(self) -> int:
        """Columns that share a reset seed: 1 where there are no groups."""
        return self.algorithm.group_size or 1

    @property
    def info_names(self) -> tuple[str, ...]:
        """What is read of the info of an episode's last step."""
        return DEFAULT_INFO if self.logging.info is None else tuple(dict.fromkeys(self.logging.info))

    @property
    def has_value(self) -> bool:
        """Whether a value function is learned."""
        return self.algorithm.baseline == "value"

    @property
    def estimator(self) -> str:
        """The name of its gradient estimator: RETURNS+BASELINE, and +STANDARDIZE where not none."""
        algorithm = self.algorithm
        standardize = () if algorithm.standardize == "none" else (algorithm.standardize,)
        return "+".join((algorithm.returns, algorithm.baseline, *standardize))

    def without_stopping(self) -> Config:
        """Return the config without the rules that end a run before its budget."""
        names = ("stop_at_return", "stop_at", "stop_evaluations", "patience")
        never: dict[str, Any] = {name: EvaluationConfig.model_fields[name].default for name in names}
        return self.model_copy(update={"evaluation": self.evaluation.model_copy(update=never)})

    def with_estimator(self, name: str) -> Config:
        """Return the config with another estimator, without diagnostics and without keys that only its own allows."""
        returns, baseline, standardize, *_ = (*name.split("+"), "none")
        changes: dict[str, Any] = {"returns": returns, "baseline": baseline, "standardize": standardize}
        if returns == "total":
            changes["discount_weighting"] = False  # it already is the exact gradient of the discounted return
        if baseline != "group":
            changes |= {"group_size": None, "group_mean": "whole"}
        algorithm = self.algorithm.model_copy(update=changes)
        return self.model_copy(update={"algorithm": algorithm, "diagnostics": DiagnosticsConfig()})
