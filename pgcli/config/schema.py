"""Every key of a config: its default, its rule and its description, the editor's tooltip."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from pgcli.config import choices

DEFAULT_ITERATIONS = 100  # if the config sets no budget


class Section(BaseModel):
    """A section of the config: strict types, no unknown keys, immutable."""

    # defer_build: the validators are built when the first config is read, not on import
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def _integral(value: Any) -> Any:
    """Convert a float such as `1e6` to the equal integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_integral)  # must come last: the JSON Schema would lack bounds placed after it
Count = Annotated[int, Field(ge=1, le=10**12), _WHOLE]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # the share that a running mean keeps
Pair = Field(min_length=2, max_length=2)
Json = Any  # any YAML value: passed to the environment unchanged


class WrapperConfig(Section):
    """A Gymnasium wrapper and its keyword arguments."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Name of a Gymnasium wrapper, or `module:Class`.")
    kwargs: dict[str, Json] = Field({}, description="Keyword arguments of the wrapper.")


def _by_name(value: Any) -> Any:
    """Expand the name of a wrapper to a wrapper without arguments."""
    return {"name": value} if isinstance(value, str) else value


def _or_name(schema: dict[str, Any]) -> None:
    """Allow the name of a wrapper alone in the JSON Schema."""
    array = schema.get("anyOf", [schema])[0]
    array["items"] = {"anyOf": [{"type": "string"}, array["items"]]}


Wrappers = list[Annotated[WrapperConfig, BeforeValidator(_by_name)]]


class EnvConfig(Section):
    """The environment, the number of copies, and how they are built."""

    id: Annotated[str, Field(min_length=1)] = Field(
        "CartPole-v1", description="Gymnasium id. `module:Id-v0` first imports the module that registers it."
    )
    num_envs: Annotated[int, Field(ge=1, le=65536), _WHOLE] = Field(
        64, description="Number of environments stepped in parallel."
    )
    chunk_size: Count | None = Field(
        None, description="Environments per forward pass of the policy; null: num_envs. Changes the results."
    )
    kwargs: dict[str, Json] = Field({}, description="Keyword arguments for building the environment.")
    wrappers: Wrappers = Field(
        [],
        json_schema_extra=_or_name,
        description="Wrappers, innermost first: names of Gymnasium wrappers, `module:Class`, or "
        "`{name: …, kwargs: …}`.",
    )
    max_episode_steps: Count | None = Field(
        None, description="Time limit of an episode, in steps; null: the registered limit."
    )
    vectorization: choices.Vectorization = Field(
        "auto",
        description="native: the environment's own vectorized form; numpy: pgcli's, with the results of sync; sync: "
        "one copy after the other; auto: the first of these that the environment has.",
    )
    rebuild: Literal["auto"] | bool = Field(
        "auto",
        description="true: build a new instance for each episode; auto: only for environments known to carry state "
        "over from past episodes.",
    )
    _reads_mask: bool = PrivateAttr(True)
    _shares_seeds: bool = PrivateAttr(False)

    @property
    def reads_mask(self) -> bool:
        """Whether action masks are read; `policy.action_mask: none` ignores them."""
        return self._reads_mask

    @property
    def shares_seeds(self) -> bool:
        """Whether columns share reset seeds, as those of a group do."""
        return self._shares_seeds

    def with_shared_seeds(self) -> EnvConfig:
        """Return a copy whose columns share reset seeds."""
        copied = self.model_copy()
        copied._shares_seeds = True
        return copied


class EvaluationEnvConfig(Section):
    """Settings of the evaluation environment that differ from training; null: same as training."""

    wrappers: Wrappers | None = Field(
        None,
        json_schema_extra=_or_name,
        description="Wrappers of the evaluation environment, instead of those of training; `[]`: none; null: the same.",
    )
    kwargs: dict[str, Json] | None = Field(
        None,
        description="Keyword arguments of the evaluation environment, instead of those of training; null: the same.",
    )
    max_episode_steps: Count | None = Field(
        None, description="Time limit of an evaluation episode, in steps; null: the same as in training."
    )

    def applied_to(self, env: EnvConfig) -> EnvConfig:
        """Return the environment settings of evaluations."""
        return env.model_copy(update={name: value for name, value in self if value is not None})


class RolloutConfig(Section):
    """The data that one iteration collects."""

    episodes: Count | None = Field(
        64, description="Whole episodes per iteration; null: collect segments of `steps` instead."
    )
    steps: Count | None = Field(
        None,
        description="Segment length: steps of each environment per iteration. Needs `episodes: null`; episodes "
        "continue in the next segment.",
    )
    horizon: Count | None = Field(None, description="Cut episodes after this many steps; null: never.")


LogDeviation = Annotated[float, Field(ge=-20, le=20)]
Sizes = Annotated[list[Annotated[int, Field(ge=1, le=65536), _WHOLE]], Field(max_length=32)]


class PolicyConfig(Section):
    """The policy network and the distribution whose parameters it computes."""

    hidden_sizes: Sizes = Field([64, 64], description="Units of each hidden layer; []: a linear policy.")
    activation: choices.ActivationName = Field("tanh", description="Nonlinearity after each hidden layer.")
    layer_norm: bool = Field(False, description="Normalize each hidden layer before its activation (LayerNorm).")
    residual: bool = Field(
        False, description="Add the input of a hidden layer to its output, where both have the same number of units."
    )
    network: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Your own network, `FILE.py:NAME`: a torch module, built as NAME(features, **network_kwargs), that "
        "maps features [N, features] to features. It replaces the hidden layers; null: hidden_sizes.",
    )
    network_kwargs: dict[str, Json] = Field({}, description="Keyword arguments of `network`.")
    init: choices.Initialization = Field(
        "uniform",
        description="Initial weights. uniform: in ±1/√fan_in, PyTorch's default. orthogonal: gain √2 in hidden layers, "
        "0.01 in the policy's last layer, 1 in the value function's; zero biases.",
    )
    distribution: choices.DistributionName = Field(
        "auto",
        description="Distribution over actions. auto: softmax for Discrete and MultiDiscrete, gaussian for Box, "
        "bernoulli for MultiBinary. tanh_gaussian: a gaussian squashed into the bounds of a Box. "
        "state_dependent_gaussian: gSDE, exploration noise that depends on the state.",
    )
    initial_standard_deviation: float = Field(
        1.0, gt=0, le=1e6, description="Initial standard deviation σ of a gaussian policy; σ is learned."
    )
    log_std_bounds: Annotated[list[LogDeviation], Pair] | None = Field(
        None,
        description="Bounds [low, high] of log σ of a gaussian policy: after each optimizer step, log σ is set to the "
        "nearer bound if it is beyond one; null: none.",
    )
    noise_steps: Count = Field(
        64,
        description="state_dependent_gaussian draws its noise again after this many steps; with 1, the score is exact.",
    )
    normalize_obs: bool = Field(
        False,
        description="Normalize observations by their running mean and standard deviation, and clip them to ±10; images "
        "per channel. Images with unknown bounds are always normalized.",
    )
    image_network: choices.ImageNetworkName = Field(
        "auto",
        description="Convolutional network for images. nature: three layers, for images of 36×36 pixels or more; "
        "small: two layers, a third of the cost; auto: nature if the image is large enough, else small; "
        "none: flatten images.",
    )
    memory: choices.MemoryName = Field(
        "none", description="Recurrent layer before the hidden layers; it remembers the current episode."
    )
    memory_size: Annotated[int, Field(ge=1, le=65536), _WHOLE] = Field(64, description="Units of the recurrent layer.")
    backpropagation_steps: Count | None = Field(
        None,
        description="Truncated backpropagation through time: steps that gradients go back through the recurrent layer; "
        "null: to the start of the trajectory.",
    )
    action_mask: choices.ActionMask = Field(
        "auto",
        description="auto: actions forbidden by an `action_mask` in info or in a Dict observation get probability 0; "
        "none: ignore the mask.",
    )


class AdaptiveKL(Section):
    """The weight of the KL penalty adapts, so that the KL of an update stays near a target."""

    target: Positive = Field(description="KL(μ‖π) of an update, in nats.")


class AlgorithmConfig(Section):
    """The gradient estimator. The defaults are REINFORCE with reward-to-go and a mean baseline."""

    returns: choices.Returns = Field(
        "reward_to_go",
        description="Return of step t. total: R(τ), all rewards of the trajectory; reward_to_go: G_t, the rewards from "
        "t on; lambda_return: TD(λ) return, which gives GAE with baseline value; vtrace: lambda_return with "
        "off-policy correction.",
    )
    baseline: choices.Baseline = Field(
        "mean",
        description="Subtracted from the returns. mean: mean over the trajectories that still run at t; leave_one_out: "
        "the same without the own trajectory; optimal: the constant of least variance, from the other trajectories; "
        "group: mean over the group_size trajectories with the same start state; value: a learned V(s).",
    )
    objective: choices.Objective = Field(
        "policy_gradient",
        description="policy_gradient: log π times the advantage A; importance_sampling: ρA with ρ = π/μ, for data of "
        "another policy μ; clip: min(ρA, clip(ρ)A), as in PPO.",
    )
    ratios: choices.Ratios = Field(
        "step",
        description="Importance weight of step t, from the ratios ρ = π/μ. step: ρ_t; per_decision: the product up to "
        "t, and for each reward the product up to it; trajectory: the product over the trajectory; sequence: its "
        "geometric mean (GSPO), biased by design. Objective clip: step or sequence.",
    )
    gamma: float = Field(0.99, ge=0, le=1, description="Discount factor γ per environment step.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of lambda_return and vtrace; other returns ignore it.")
    discount_weighting: bool = Field(
        False,
        description="Weight step t by γ^t, which makes reward_to_go the exact gradient of the discounted return.",
    )
    average: choices.Average = Field(
        "steps",
        description="steps: mean over all steps; episodes: sum over steps, then mean over trajectories (the gradient "
        "of the return); episode_means: mean over steps, then over trajectories.",
    )
    standardize: choices.Standardize = Field(
        "none",
        description="batch: scale the advantages of a batch to mean 0 and standard deviation 1; minibatch: the same in "
        "each minibatch; group: divide them by the standard deviation of the group's returns (GRPO).",
    )
    group_size: Count | None = Field(
        None, description="Trajectories with the same reset seed, and so the same start state; for baseline group."
    )
    group_mean: choices.GroupMean = Field(
        "whole",
        description="Mean of baseline group. whole: over all its trajectories (GRPO); leave_one_out: over the others.",
    )
    estimator: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Your own gradient estimator, `FILE.py:NAME` or `FILE.ipynb:NAME`: a function of (rollouts, "
        "policy, gamma) that returns a flat gradient. It replaces returns, baseline, average, standardize and "
        "discount_weighting; null: pgcli's estimator.",
    )
    reuse: Annotated[int, Field(ge=1, le=1000), _WHOLE] = Field(
        1,
        description="Learn from the data of the last n iterations; n > 1 needs objective importance_sampling or clip.",
    )
    update_epochs: Count = Field(1, description="Passes over the batch in each update.")
    num_minibatches: Count = Field(1, description="Minibatches per epoch; each one is an optimizer step.")
    clip_range: Positive | Annotated[list[Positive], Pair] = Field(
        0.2,
        description="ε of objective clip: ρ is clipped to 1 ± ε; [low, high]: to 1 - low … 1 + high. Other objectives "
        "ignore it.",
    )
    clip_range_schedule: choices.Schedule = Field(
        "constant", description="Schedule of clip_range over the training budget; linear, cosine: down to 0."
    )
    importance_bound: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Upper bound of the importance weights; null: none."
    )
    self_normalize: bool = Field(False, description="Divide the importance weights by their mean over the batch.")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    entropy_coef_schedule: choices.Schedule = Field(
        "constant", description="Schedule of entropy_coef over the training budget; linear, cosine: down to 0."
    )
    kl_coef: Annotated[float, Field(ge=0)] | AdaptiveKL = Field(
        0.0,
        description="Weight of a penalty on KL(μ‖π), where μ is the policy that collected the data. {target: 0.01}: "
        "an adaptive weight, halved or doubled after an update whose KL is far from this target, in nats.",
    )
    value_coef: float = Field(0.5, ge=0, description="Weight of the value loss; only for baseline value.")
    target_kl: Annotated[float, Field(gt=0)] | None = Field(
        None, description="End an update early once KL(μ‖π) exceeds this, in nats; null: never."
    )

    @property
    def has_adaptive_kl(self) -> bool:
        """Whether the weight of the KL penalty adapts."""
        return isinstance(self.kl_coef, AdaptiveKL)

    @property
    def initial_kl_coef(self) -> float:
        """The weight of the KL penalty in the first update."""
        return 1.0 if isinstance(self.kl_coef, AdaptiveKL) else self.kl_coef

    @property
    def clip_ranges(self) -> tuple[float, float]:
        """ε below and above 1."""
        low, high = self.clip_range if isinstance(self.clip_range, list) else [self.clip_range] * 2
        return low, high


class OptimizerConfig(Section):
    """The optimizer of the policy."""

    name: choices.OptimizerName = Field(
        "adam",
        description="Optimizer. sgd: plain gradient ascent, θ + α g; natural: natural gradient ascent, θ + α F⁻¹ g, "
        "with adam for the value function.",
    )
    learning_rate: float = Field(0.001, gt=0, description="Initial step size α.")
    schedule: choices.Schedule = Field(
        "constant",
        description="Schedule of learning_rate over the training budget; linear, cosine: down to 0.",
    )
    max_grad_norm: Positive | None = Field(
        None, description="Clip the gradient of each network to this Euclidean norm; null: no clipping."
    )
    clip_gradients: choices.ClipGradients = Field(
        "per_network",
        description="Norm that max_grad_norm limits. per_network: of each network; together: of policy and value "
        "function, which then take their steps together, on the same minibatches (Stable-Baselines3, CleanRL).",
    )
    epsilon: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-8, description="ε of adam and rmsprop, added to the root of the second moment."
    )
    betas: Annotated[list[Decay], Pair] = Field(
        [0.9, 0.999], description="Decay of the first and the second moment of adam."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay λ of adam (AdamW): each step first subtracts α λ θ."
    )
    momentum: Decay = Field(0.0, description="Momentum of sgd; 0: none.")
    damping: float = Field(0.1, ge=0, description="natural: λ in F + λ I, which is inverted instead of F.")
    cg_iterations: Annotated[int, Field(ge=1, le=10_000), _WHOLE] = Field(
        10, description="natural: iterations of the conjugate gradient method."
    )
    max_kl: Positive | None = Field(
        None,
        description="natural: take the longest step with ½ Δᵀ F Δ ≤ max_kl, in nats, instead of a step of "
        "learning_rate; null: no limit.",
    )
    line_search: bool = Field(
        False,
        description="natural with max_kl: make the step shorter, by the factor 0.8, until the surrogate objective "
        "improves and the KL is at most max_kl (TRPO); after 15 failures, take no step.",
    )

    @property
    def step_key(self) -> str:
        """The key that sets the length of a step: with max_kl, learning_rate has no effect."""
        return "optimizer.learning_rate" if self.max_kl is None else "optimizer.max_kl"


class ValueConfig(Section):
    """The value function V(s). Only for baseline value."""

    hidden_sizes: Sizes | None = Field(None, description="Units of each hidden layer; null: as in the policy.")
    shared_trunk: bool = Field(
        False, description="true: V is another output of the policy network; false: V has its own network."
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Initial step size of V; null: optimizer.learning_rate."
    )
    update_epochs: Count | None = Field(
        None, description="Passes over the batch in each update of V; null: algorithm.update_epochs."
    )
    clip_range: Annotated[float, Field(gt=0)] | None = Field(
        None, description="In the loss, clip the change of V in an update to ± this; null: no clipping."
    )
    normalize_returns: bool = Field(
        False, description="Divide rewards by the running standard deviation of the discounted return."
    )


class SamplingConfig(Section):
    """Parallel rollout collection. Does not affect results."""

    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1024), _WHOLE] = Field(
        0,
        description="0: collect in the main process; n: n worker processes, or Ray actors; auto: one per chunk, at "
        "most the number of available cores (shared by --jobs), and 0 with one core or, locally, with a native "
        "vectorized environment.",
    )
    backend: choices.Backend = Field(
        "local",
        description="local: worker processes on this machine; ray: actors on the Ray cluster at RAY_ADDRESS, or on a "
        "local Ray. With ray, --jobs distributes whole runs.",
    )


class TrainingConfig(Section):
    """Budget and device. The first limit reached ends the run; without limits, 100 iterations."""

    iterations: Annotated[int, Field(ge=1, le=10**9), _WHOLE] | None = Field(
        None, description="Maximum number of iterations (collect, then update); null: no limit."
    )
    env_steps: Count | None = Field(
        None, description="Maximum number of environment steps; the last iteration is completed. null: no limit."
    )
    seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Maximum training time, in seconds; makes a run not reproducible. null: no limit."
    )
    device: choices.Device = Field(
        "cpu",
        description="Device of the update. cuda: a GPU, useful for images; results are identical only on the same GPU "
        "model.",
    )
    threads: Annotated[int, Field(ge=1, le=1024), _WHOLE] = Field(
        1, description="PyTorch threads. Changes the last digits of results, because sums are ordered differently."
    )
    compile: bool = Field(
        False,
        description="Use torch.compile for image networks and on a GPU. Takes about a minute at the start and needs a "
        "C++ compiler. Plain networks on the CPU have closed-form gradients, which are faster.",
    )


class EvaluationConfig(Section):
    """Evaluation during training. It does not change what is learned."""

    every: Count | None = Field(
        10, description="Evaluate every n updates, before the first and after the last; null: only before and after."
    )
    episodes: Count = Field(100, description="Episodes per evaluation.")
    mode: choices.Mode = Field(
        "sampled", description="sampled: draw actions from the policy; greedy: take the most probable action."
    )
    env: EvaluationEnvConfig = Field(
        default_factory=EvaluationEnvConfig,
        description="Differences from the training environment, also for `pgcli eval` and videos, so that reward "
        "clipping and shaping stay in training.",
    )
    stop_at_return: float | None = Field(
        None, description="Stop the run when the mean return of an evaluation reaches this."
    )
    stop_at: dict[str, float] = Field(
        {},
        description="Stop the run when one evaluation reaches all these values of columns of evaluations.csv, such as "
        "`{is_success: 0.95}`, and stop_at_return.",
    )
    stop_evaluations: Count = Field(
        1, description="Number of consecutive evaluations that must reach stop_at_return and stop_at to stop the run."
    )
    patience: Count | None = Field(
        None, description="Stop the run after n consecutive evaluations without a new best mean return; null: never."
    )

    @property
    def goals(self) -> dict[str, float]:
        """The values that stop the run, by column of evaluations.csv; {} if none does."""
        return ({} if self.stop_at_return is None else {"return_mean": self.stop_at_return}) | self.stop_at

    @property
    def stops(self) -> bool:
        """Whether a stopping rule may end the run before its budget."""
        return bool(self.goals) or self.patience is not None


class CheckpointConfig(Section):
    """When checkpoints are saved, and how many are kept."""

    every: Count | None = Field(
        10, description="Save every n updates, before the first and after the last; null: only before and after."
    )
    keep: Count = Field(3, description="Number of newest checkpoints to keep; the best one is always kept, too.")


# A name of a column: no commas, quotes or control characters, and no space at its ends.
INFO_NAME = r"^[^\x00-\x20\x7f,\"']([^\x00-\x1f\x7f,\"']*[^\x00-\x20\x7f,\"'])?$"
DEFAULT_INFO = ("is_success", "success")


class LoggingConfig(Section):
    """Additional logs. They do not change what is learned."""

    tensorboard: bool = Field(False, description="Write TensorBoard event files to tensorboard/ in the run directory.")
    wandb: bool = Field(False, description="Write a Weights & Biases run to wandb/ in the run directory.")
    wandb_mode: Literal["offline", "online"] = Field(
        "offline", description="offline: nothing is sent, and `wandb sync` uploads it; online: sent during training."
    )
    wandb_project: str = Field("pgcli", min_length=1, max_length=128, description="Project of Weights & Biases.")
    wandb_entity: str | None = Field(
        None, min_length=1, description="User or team of Weights & Biases; null: your default entity."
    )
    wandb_tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        [], description="Tags of the run in Weights & Biases."
    )
    wandb_group: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Group of the run in Weights & Biases, for example of its seeds.",
    )
    mlflow: bool = Field(False, description="Log to MLflow: one run, which a resumed run continues.")
    mlflow_uri: str | None = Field(
        None,
        min_length=1,
        description="Tracking server, database or folder of MLflow, without a password; null: MLFLOW_TRACKING_URI, "
        "or else mlflow/ in the run directory.",
    )
    mlflow_experiment: str = Field("pgcli", min_length=1, max_length=500, description="Experiment of MLflow.")
    info: list[Annotated[str, Field(pattern=INFO_NAME, max_length=100)]] | None = Field(
        None,
        description="Keys of the info of an episode's last step, with numbers or booleans: columns of episodes.csv, "
        "and their means in metrics.csv and evaluations.csv. `a.b` is key b of the mapping a. null: is_success and "
        "success, if the first evaluation reports them.",
    )

    @property
    def tools(self) -> list[str]:
        """The tools that get the records, by the name of their key."""
        return [name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name)]


_RETURNS, _BASELINES = ("|".join(get_args(choice)) for choice in (choices.Returns, choices.Baseline))
ESTIMATOR = rf"^({_RETURNS})\+({_BASELINES})(\+(batch|group))?$"


class DiagnosticsConfig(Section):
    """Gradient variance measurements in gradients.csv. They do not affect results."""

    every: Count | None = Field(None, description="Measure every n iterations, from iteration 0 on; null: never.")
    shadows: list[Annotated[str, Field(pattern=ESTIMATOR)]] = Field(
        [],
        description="Other estimators to measure on the same trajectories: RETURNS+BASELINE, or "
        "RETURNS+BASELINE+STANDARDIZE for standardized advantages.",
    )


# No separators, wildcards, quotes or control characters; not `-`, `.`, `~` or space first; no dot or space last.
_NEVER = r"\x00-\x1f\x7f-\x9f\u2028\u2029/\\:*?\"<>|"
FOLDER_NAME = rf"^[^{_NEVER}~.\- ]([^{_NEVER}]*[^{_NEVER}. ])?$"


def _with_base(schema: dict[str, Any]) -> None:
    """Add the key `base` of files to the JSON Schema; it is resolved before a config is built."""
    schema["properties"]["base"] = {
        "type": "string",
        "description": "Shipped config or YAML file whose keys apply where this file has none.",
    }


class Config(Section):
    """A pgcli experiment. One config with one seed is one run."""

    model_config = ConfigDict(json_schema_extra=_with_base)

    name: str = Field(
        "experiment",
        pattern=FOLDER_NAME,
        max_length=60,  # 240 bytes at most: file systems allow 255
        description="Experiment name, used for the run directory; defaults to the name of the file.",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), _WHOLE] = Field(
        0, description="Seed of all random numbers of the run."
    )
    env: EnvConfig = Field(default_factory=EnvConfig, description="The environment.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="The data that one iteration collects.")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="The policy network.")
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig, description="The gradient estimator.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="The optimizer of the policy.")
    value: ValueConfig = Field(default_factory=ValueConfig, description="The value function, for baseline value.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="Parallel rollout collection.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Budget and device.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Evaluation during training.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Checkpoints.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="Additional logs.")
    diagnostics: DiagnosticsConfig = Field(
        default_factory=DiagnosticsConfig, description="Gradient variance measurements."
    )

    def model_post_init(self, context: Any, /) -> None:
        """Pass `policy.action_mask` on to the environment, which provides the mask."""
        self.env._reads_mask = self.policy.action_mask == "auto"

    @property
    def evaluation_env(self) -> EnvConfig:
        """The environment of evaluations."""
        return self.evaluation.env.applied_to(self.env)

    @property
    def group_size(self) -> int:
        """The number of columns that share a reset seed; 1 without groups."""
        return self.algorithm.group_size or 1

    @property
    def info_names(self) -> tuple[str, ...]:
        """The keys read from the info of an episode's last step."""
        return DEFAULT_INFO if self.logging.info is None else tuple(dict.fromkeys(self.logging.info))

    @property
    def has_value(self) -> bool:
        """Whether a value function is learned."""
        return self.algorithm.baseline == "value"

    @property
    def estimator(self) -> str:
        """The name of the gradient estimator: RETURNS+BASELINE, and +STANDARDIZE unless none."""
        algorithm = self.algorithm
        standardize = () if algorithm.standardize == "none" else (algorithm.standardize,)
        return "+".join((algorithm.returns, algorithm.baseline, *standardize))

    def without_stopping(self) -> Config:
        """Return the config without stopping rules."""
        names = ("stop_at_return", "stop_at", "stop_evaluations", "patience")
        never: dict[str, Any] = {name: EvaluationConfig.model_fields[name].default for name in names}
        return self.model_copy(update={"evaluation": self.evaluation.model_copy(update=never)})

    def with_estimator(self, name: str) -> Config:
        """Return the config with another estimator, without diagnostics and incompatible keys."""
        returns, baseline, standardize, *_ = (*name.split("+"), "none")
        changes: dict[str, Any] = {"returns": returns, "baseline": baseline, "standardize": standardize}
        if returns == "total":
            changes["discount_weighting"] = False  # it already is the exact gradient of the discounted return
        if baseline != "group":
            changes |= {"group_size": None, "group_mean": "whole"}
        algorithm = self.algorithm.model_copy(update=changes)
        return self.model_copy(update={"algorithm": algorithm, "diagnostics": DiagnosticsConfig()})
