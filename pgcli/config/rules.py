"""Rules between keys: invalid combinations and keys without effect, with reasons and fixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from pgcli.config.messages import dotted, path_of, shown
from pgcli.config.schema import Config

Value = str | float | dict[str, float] | None
Condition = Callable[[Config], bool]


class Not(NamedTuple):
    """Any value except this one."""

    value: Value


class Rule(NamedTuple):
    """An invalid combination: every key of `when` has the given value or meets the condition."""

    when: dict[str, Value | Not | Condition]
    reason: str | Callable[[Config], str]
    fix: str


class Violation(NamedTuple):
    """A rule that a config breaks."""

    keys: tuple[str, ...]
    reason: str
    fix: str

    @property
    def message(self) -> str:
        """The names of the keys, then the reason."""
        return f"{' and '.join(f'`{dotted(path_of(key))}`' for key in self.keys)}: {self.reason}"


def _setting(key: str, value: Any) -> str:
    return f"`{key}: {value if isinstance(value, str) else shown(value)}`"


class Effect(NamedTuple):
    """Keys that have an effect only if `condition` is true, which depends on the keys in `under`."""

    keys: tuple[str, ...]
    condition: Condition
    under: tuple[str, ...]
    fix: str  # a setting under which they have an effect
    refused: bool = True  # False: it depends on numeric values, and is only a notice

    @classmethod
    def with_value(cls, keys: tuple[str, ...], key: str, value: Value) -> Effect:
        """Return the row of keys that have an effect only if `key` has this value."""
        return cls(keys, lambda c: bool(attrgetter(key)(c) == value), (key,), _setting(key, value))


class Ineffective(NamedTuple):
    """A key with a non-default value that has no effect, because of other keys."""

    key: str
    under: tuple[str, ...]
    message: str
    fix: str
    refused: bool


def without_effect(config: Config) -> list[Ineffective]:
    """Return every key with a non-default value and no effect."""
    default, found = Config(), dict[str, Ineffective]()
    for keys, condition, under, fix, refused in EFFECTS:
        for key in keys:
            if key in found or attrgetter(key)(config) == attrgetter(key)(default) or condition(config):
                continue
            *most, last = [_setting(other, attrgetter(other)(config)) for other in under]
            values = f"{', '.join(most)} and {last}" if most else last
            message = f"`{key}` has no effect with {values}"
            found[key] = Ineffective(key, under, message, f"remove it, or set {fix}", refused)
    return list(found.values())


def effective(config: Config) -> Config:
    """Return the config with defaults for keys without effect.

    Null is replaced where it refers to another key.

    Different configs that train the same run become equal.
    """
    default = Config()
    values: dict[str, Any] = {one.key: attrgetter(one.key)(default) for one in without_effect(config)}
    if config.has_value and not config.value.shared_trunk:
        for key, same in _DERIVED.items():
            if attrgetter(key)(config) is None:
                values[key] = attrgetter(same)(config)
    values["env.chunk_size"] = config.env.chunk_size or config.env.num_envs
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    updated = {name: getattr(config, name).model_copy(update=part) for name, part in sections.items()}
    return config.model_copy(update=updated)


def violations(config: Config) -> Iterator[Violation]:
    """Yield every rule that `config` breaks."""
    own = [
        Violation(tuple(when), reason if isinstance(reason, str) else reason(config), fix)
        for when, reason, fix in RULES
        if all(_holds(config, key, wanted) for key, wanted in when.items())
    ]
    yield from own
    if config.diagnostics.every is not None:
        yield from _of_shadows(config, {violation.reason for violation in own})


def _holds(config: Config, key: str, wanted: Value | Not | Condition) -> bool:
    if callable(wanted):
        return wanted(config)
    value = attrgetter(key)(config)
    return bool(value != wanted.value if isinstance(wanted, Not) else value == wanted)


def _of_shadows(config: Config, own: set[str]) -> Iterator[Violation]:
    """Yield the first rule that each shadow estimator would break, without the reasons in `own`."""
    seen = {config.estimator}
    for number, name in enumerate(config.diagnostics.shadows):
        shadow = config.with_estimator(name)
        reasons = [violation.reason for violation in violations(shadow) if violation.reason not in own]
        if name in seen:
            reasons = [
                "the config's own estimator is always measured" if name == config.estimator else "it is listed twice"
            ]
        elif shadow.has_value and not config.has_value:
            reasons = ["it needs a value function, and the config learns none"]
        if reasons:
            yield Violation((f"diagnostics.shadows.{number}",), f"`{name}`: {reasons[0]}", "remove it")
        seen.add(name)


def _segments(c: Config) -> bool:
    return c.rollout.steps is not None and c.rollout.episodes is None


def _of_trajectories(c: Config) -> bool:
    return c.algorithm.ratios != "step" and c.algorithm.objective != "policy_gradient"


def _no_location(location: str | None, *suffixes: str) -> bool:
    file, colon, name = (location or "").rpartition(":")
    return location is not None and not (colon and file.endswith(suffixes) and name.isidentifier())


_ENVIRONMENTS = ("env", "evaluation.env")  # sections that describe an environment


def _has_wrapper(section: str, name: str) -> Condition:
    names = (name, f":{name}", f"gymnasium.wrappers:{name}")
    return lambda c: any(one.name in names for one in attrgetter(f"{section}.wrappers")(c) or ())


def _is_set(key: str) -> Condition:
    return lambda c: bool(attrgetter(key)(c))


def _needs_vector_form(c: Config) -> bool:
    return c.env.vectorization in ("native", "numpy")


def _has_argument(section: str, name: str) -> Condition:
    return lambda c: name in (attrgetter(f"{section}.kwargs")(c) or ())


_CREDENTIALS = re.compile(r"://.*:.*@|[?&;][^=]*(pass|pwd|token|secret|key)[^=]*=", re.IGNORECASE)
_MEAN_OF_ONE = "the mean over one trajectory is its own return: every advantage would be zero"
_LATER_STEPS = "after the first optimizer step, the data are off-policy"
_OTHER_POLICIES = "data of earlier iterations are off-policy"
_WHOLE_EPISODES = "collect whole episodes: `rollout: {episodes: 64}`"
_ON_POLICY = "your estimator computes one on-policy gradient step"
_OWN_BASELINE = "remove baseline, and subtract a baseline in your function"
_GYMNASIUM = "pgcli sets this argument itself"
_NOT_SAVED = "checkpoints do not contain its running statistics, and"
_NORMALIZE_RETURNS = "use `value.normalize_returns: true`"
_FILM = "remove it, and film with `pgcli eval RUN_DIR --video FILE.gif`"
_NO_MAX_KL: dict[str, Value | Not | Condition] = {"optimizer.max_kl": None}
_FUNCTION = ("it needs a function, which YAML cannot express", "write your own wrapper, and name it as `module:Class`")

RULES: tuple[Rule, ...] = (
    Rule(
        {"rollout.episodes": None, "rollout.steps": None},
        "an iteration would collect no data",
        "set `rollout.episodes`",
    ),
    Rule(
        {"rollout.steps": Not(None), "rollout.episodes": Not(None)},
        "an iteration collects either segments or whole episodes",
        "set `episodes: null` for segments, or remove steps",
    ),
    # Segments are not trajectories from a start state
    Rule(
        {"rollout.steps": _segments, "algorithm.baseline": Not("value")},
        "segments cut episodes, and bootstrapping the rest needs a value function",
        f"use `baseline: value`, or {_WHOLE_EPISODES}",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.returns": "total"},
        "a segment does not contain the total return of its episodes",
        "use `returns: lambda_return`",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.discount_weighting": True},
        "segments do not know the time t since the start of an episode",
        "remove discount_weighting, or collect whole episodes",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.average": Not("steps")},
        "segments are not whole trajectories, so there is no mean over trajectories",
        "use `average: steps`",
    ),
    Rule(
        {"rollout.steps": _segments, "rollout.horizon": Not(None)},
        "a segment ends after `rollout.steps`",
        "remove horizon, or set `env.max_episode_steps`",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.reuse": Not(1)},
        "resuming collects the data of earlier iterations again, which needs whole episodes",
        "set `reuse: 1`, or collect whole episodes",
    ),
    Rule(
        {
            "algorithm.num_minibatches": lambda c: (
                c.algorithm.num_minibatches > (c.rollout.steps or 0) * c.env.num_envs
            ),
            "rollout.steps": _segments,
        },
        lambda c: f"more minibatches than the {(c.rollout.steps or 0) * c.env.num_envs} steps of the batch",
        "use fewer minibatches",
    ),
    # Returns and baselines
    Rule(
        {
            "algorithm.returns": lambda c: c.algorithm.returns in ("lambda_return", "vtrace"),
            "algorithm.baseline": Not("value"),
        },
        lambda c: f"`{c.algorithm.returns}` needs a value function",
        "use `baseline: value`, or `returns: reward_to_go`",
    ),
    Rule(
        {
            "algorithm.baseline": lambda c: c.algorithm.baseline == "mean" and c.algorithm.estimator is None,
            "rollout.episodes": 1,
        },
        _MEAN_OF_ONE,
        "collect more episodes, or use `baseline: none`",
    ),
    Rule(
        {"algorithm.baseline": lambda c: c.algorithm.baseline in ("leave_one_out", "optimal"), "rollout.episodes": 1},
        "this baseline needs at least two trajectories",
        "collect more episodes, or use `baseline: none`",
    ),
    Rule(
        {"algorithm.baseline": "optimal", "algorithm.returns": Not("total")},
        "the optimal baseline is defined for the total return R(τ) only",
        "use `returns: total`, or `baseline: leave_one_out`",
    ),
    Rule(
        {"algorithm.returns": "vtrace", "algorithm.objective": "policy_gradient"},
        "V-trace corrects off-policy returns, and objective policy_gradient is on-policy",
        "use `objective: importance_sampling`, or `returns: lambda_return`",
    ),
    Rule(
        {"algorithm.discount_weighting": True, "algorithm.returns": "total"},
        "`returns: total` already gives the exact gradient of the discounted return; another γ^t is wrong",
        "remove discount_weighting, or use `returns: reward_to_go`",
    ),
    # Off-policy data need an objective that corrects for it
    *(
        Rule(
            {f"algorithm.{key}": Not(1), "algorithm.objective": "policy_gradient"},
            f"{reason}, and objective policy_gradient does not correct for it",
            f"set `{key}: 1`, or use `objective: clip` or `importance_sampling`",
        )
        for key, reason in (
            ("update_epochs", _LATER_STEPS),
            ("num_minibatches", _LATER_STEPS),
            ("reuse", _OTHER_POLICIES),
        )
    ),
    *(
        Rule(
            {f"algorithm.{key}": condition, "algorithm.objective": "policy_gradient"},
            "objective policy_gradient takes one on-policy step, where the KL and its gradient are 0",
            f"remove {key}, or use `objective: clip` or `importance_sampling`",
        )
        for key, condition in (
            ("kl_coef", Not(0)),
            ("target_kl", lambda c: c.algorithm.target_kl is not None and c.algorithm.kl_coef == 0),
        )
    ),
    # Importance weights of whole trajectories
    Rule(
        {
            "algorithm.ratios": lambda c: c.algorithm.ratios in ("per_decision", "trajectory"),
            "algorithm.objective": "clip",
        },
        "`clip` bounds the ratio of a step or of a sequence, not a product of ratios, which its range would cut off",
        "use `ratios: sequence`, or `objective: importance_sampling` with `importance_bound`",
    ),
    *(
        Rule({"algorithm.ratios": _of_trajectories, key: wanted}, reason, fix)
        for key, wanted, reason, fix in (
            (
                "rollout.steps",
                _segments,
                "a segment does not contain the whole trajectory, so the product of its ratios is unknown",
                f"use `ratios: step`, or {_WHOLE_EPISODES}",
            ),
            (
                "algorithm.returns",
                "vtrace",
                "V-trace weights rewards itself, and each score by the ratio of its own step",
                "use `ratios: step`, or `returns: lambda_return`",
            ),
            (
                "policy.backpropagation_steps",
                lambda c: c.policy.backpropagation_steps is not None and c.algorithm.num_minibatches > 1,
                "minibatches of windows do not contain whole trajectories",
                "set `num_minibatches: 1`, or remove backpropagation_steps",
            ),
        )
    ),
    Rule(
        {"algorithm.ratios": "per_decision", "algorithm.standardize": Not("none")},
        "advantages have no fixed mean and deviation, because each reward has a weight that changes with the policy",
        "use `standardize: none`, or `ratios: trajectory`",
    ),
    Rule(
        {"algorithm.ratios": "per_decision", "algorithm.self_normalize": True, "diagnostics.every": Not(None)},
        "each time step has a normalizer of its own, for which the gradient variance has no formula",
        "remove self_normalize or diagnostics.every",
    ),
    # The user's own estimator: from whole episodes to a gradient
    Rule(
        {"algorithm.estimator": lambda c: _no_location(c.algorithm.estimator, ".py", ".ipynb")},
        lambda c: f"expected FILE.py:NAME or FILE.ipynb:NAME, got {c.algorithm.estimator!r}",
        "for example `my.py:reinforce`",
    ),
    *(
        Rule({"algorithm.estimator": Not(None), key: wanted}, reason, fix)
        for key, wanted, reason, fix in (
            ("rollout.steps", Not(None), "your estimator needs whole episodes, not segments", _WHOLE_EPISODES),
            ("algorithm.objective", Not("policy_gradient"), _ON_POLICY, "use `objective: policy_gradient`"),
            ("algorithm.baseline", "value", "your estimator receives no value function", _OWN_BASELINE),
            ("algorithm.baseline", "group", "your estimator receives no groups", _OWN_BASELINE),
            ("algorithm.entropy_coef", Not(0), "your estimator computes the whole gradient", "remove entropy_coef"),
            (
                "policy.memory",
                Not("none"),
                "your estimator needs the score of each step, which a recurrent policy does not have",
                "use `memory: none`",
            ),
        )
    ),
    # A value function that takes its steps together with the policy
    *(
        Rule(
            {"value.shared_trunk": lambda c: c.has_value and c.value.shared_trunk, f"value.{key}": Not(None)},
            "a value function with a shared trunk is trained together with the policy",
            f"remove {key} or shared_trunk",
        )
        for key in ("hidden_sizes", "learning_rate", "update_epochs")
    ),
    *(
        Rule(
            {
                "optimizer.clip_gradients": lambda c: c.has_value and c.optimizer.clip_gradients == "together",
                f"value.{key}": Not(None),
            },
            "with one norm for both, the value function is trained together with the policy",
            f"remove {key} or clip_gradients",
        )
        for key in ("learning_rate", "update_epochs")
    ),
    # The natural gradient
    Rule(
        {"optimizer.name": "natural", "algorithm.objective": Not("policy_gradient")},
        "a natural gradient step starts from the policy that acted",
        "use `objective: policy_gradient`, or `name: adam`",
    ),
    Rule(
        {"optimizer.name": "natural", "value.shared_trunk": lambda c: c.has_value and c.value.shared_trunk},
        "adam trains the value function, and cannot train a trunk that the natural gradient trains",
        "remove shared_trunk, or use `name: adam`",
    ),
    Rule(
        {
            "optimizer.name": "natural",
            "optimizer.clip_gradients": lambda c: c.has_value and c.optimizer.clip_gradients == "together",
        },
        "adam trains the value function, so policy and value function take separate steps",
        "remove clip_gradients, or use `name: adam`",
    ),
    Rule(
        {
            "optimizer.name": "natural",
            "value.learning_rate": lambda c: c.has_value and not c.value.shared_trunk and c.value.learning_rate is None,
        },
        "adam trains the value function, and a learning rate of the natural gradient does not suit adam",
        "set `value.learning_rate: 0.001`",
    ),
    Rule(
        {"optimizer.line_search": lambda c: c.optimizer.name == "natural" and c.optimizer.line_search, **_NO_MAX_KL},
        "the line search keeps the KL of a step at most max_kl",
        "set `max_kl: 0.01`",
    ),
    Rule(
        {
            "optimizer.line_search": lambda c: c.optimizer.name == "natural" and c.optimizer.line_search,
            "algorithm.estimator": Not(None),
        },
        "the line search compares the surrogate objective of pgcli's own estimator",
        "remove line_search",
    ),
    Rule(
        {"policy.log_std_bounds": lambda c: sorted(c.policy.log_std_bounds or []) != (c.policy.log_std_bounds or [])},
        "the lower bound comes first",
        "exchange the bounds",
    ),
    # Groups
    Rule(
        {"algorithm.baseline": "group", "algorithm.group_size": None},
        "`baseline: group` needs a group size",
        "set `group_size`, the number of trajectories with the same start state",
    ),
    Rule(  # it would also make columns share their reset seeds
        {"algorithm.group_size": Not(None), "algorithm.baseline": Not("group")},
        "only `baseline: group` has groups",
        "remove group_size, or use `baseline: group`",
    ),
    Rule(
        {"algorithm.group_size": lambda c: c.algorithm.baseline == "group" and c.algorithm.group_size == 1},
        _MEAN_OF_ONE,
        "use a larger group_size",
    ),
    Rule(
        {
            "algorithm.group_size": lambda c: c.algorithm.baseline == "group",
            "rollout.episodes": lambda c: (c.rollout.episodes or 0) % c.group_size > 0,
        },
        lambda c: f"{c.rollout.episodes} episodes cannot be divided into groups of {c.group_size}",
        "make `rollout.episodes` a multiple of `group_size`",
    ),
    Rule(
        {"env.vectorization": "native", "algorithm.baseline": "group"},
        "native vector environments cannot share a reset seed",
        "use `vectorization: sync` or `auto`",
    ),
    Rule(
        {
            "algorithm.standardize": "group",
            "algorithm.baseline": lambda c: (c.algorithm.baseline, c.algorithm.returns) != ("group", "total"),
            "algorithm.returns": lambda c: True,
        },
        "standardize group divides by the standard deviation of a group's total returns",
        "use `baseline: group` with `returns: total`, or `standardize: batch`",
    ),
    # Environment
    *(
        Rule({f"{section}.kwargs.{name}": _has_argument(section, name)}, _GYMNASIUM, fix)
        for section in _ENVIRONMENTS
        for name, fix in (("max_episode_steps", f"set `{section}.max_episode_steps`"), ("render_mode", "remove it"))
    ),
    *(
        Rule({f"{section}.wrappers": _has_wrapper(section, name)}, f"{name}: {reason}", fix)
        for section in _ENVIRONMENTS
        for name, reason, fix in (
            ("NormalizeObservation", f"{_NOT_SAVED} evaluation would change them", "use `policy.normalize_obs: true`"),
            (
                "NormalizeReward",
                f"{_NOT_SAVED} returns would no longer be those of the environment",
                _NORMALIZE_RETURNS,
            ),
            ("Autoreset", "it hides the end of episodes, and resets without a seed", "remove it"),
            ("RecordEpisodeStatistics", "episodes.csv already has every return and length", "remove it"),
            ("RecordVideo", "training renders no frames", _FILM),
            ("HumanRendering", "training opens no window", _FILM),
            ("RenderCollection", "it keeps every frame in memory", "remove it"),
            ("TransformAction", *_FUNCTION),
            ("TransformObservation", *_FUNCTION),
            ("TransformReward", *_FUNCTION),
        )
    ),
    *(
        Rule(
            {"env.vectorization": _needs_vector_form, f"{section}.wrappers": _is_set(f"{section}.wrappers")},
            lambda c: f"{c.env.vectorization} vector environments do not support wrappers",
            "use `vectorization: sync`, or remove the wrappers",
        )
        for section in _ENVIRONMENTS
    ),
    Rule(
        {"env.vectorization": _needs_vector_form, "env.rebuild": True},
        lambda c: f"episodes of a {c.env.vectorization} vector environment share one instance",
        "use `vectorization: sync`, or remove rebuild",
    ),
    # The user's own network
    Rule(
        {"policy.network": lambda c: _no_location(c.policy.network, ".py")},
        lambda c: f"expected FILE.py:NAME, got {c.policy.network!r}",
        "for example `my.py:Network`",
    ),
    Rule(
        {"policy.network": Not(None), "algorithm.estimator": Not(None)},
        "your estimator needs the tutorial's policy, which has plain layers",
        "remove policy.network or algorithm.estimator",
    ),
    # Recurrent policies
    Rule(
        {"training.compile": True, "policy.memory": Not("none")},
        "torch.compile does not support recurrent networks",
        "remove compile",
    ),
    # Evaluation and diagnostics
    *(
        Rule(
            {f"evaluation.{key}": Not(default), "evaluation.every": None},
            "stopping rules need evaluations during training",
            "set `evaluation.every`",
        )
        for key, default in (("stop_at_return", None), ("stop_at", {}), ("patience", None))
    ),
    Rule(
        {"evaluation.stop_evaluations": lambda c: c.evaluation.stop_evaluations > 1 and not c.evaluation.goals},
        "it needs a value to reach",
        "set `evaluation.stop_at_return`, or remove stop_evaluations",
    ),
    Rule(
        {"diagnostics.shadows": _is_set("diagnostics.shadows"), "diagnostics.every": None},
        "`diagnostics.every` is null, so nothing is measured",
        "set `diagnostics.every`, or remove shadows",
    ),
    Rule(
        {"logging.mlflow_uri": lambda c: _CREDENTIALS.search(c.logging.mlflow_uri or "") is not None},
        "a config is stored in clear text, and this address has a password",
        "remove it, and set the environment variable MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD",
    ),
    *(
        Rule(
            {"diagnostics.every": Not(None), key: one},
            lambda c: f"a variance needs more than one {'trajectory' if c.group_size == 1 else 'group'}",
            f"use a larger `{key}`",
        )
        for key, one in (
            ("rollout.episodes", lambda c: c.rollout.episodes and c.rollout.episodes // c.group_size < 2),
            ("env.num_envs", lambda c: not c.rollout.episodes and c.env.num_envs // c.group_size < 2),
        )
    ),
)


def _estimators(c: Config) -> list[str]:
    """Return the gradient estimators that a run computes: its own and its shadows."""
    shadows = c.diagnostics.shadows if c.diagnostics.every is not None else []
    return [c.estimator, *shadows]


def _needs_own_estimate(c: Config) -> bool:
    """Return whether a run computes pgcli's own estimator, to learn or to measure its variance."""
    return c.algorithm.estimator is None or c.diagnostics.every is not None


def _steps(c: Config) -> int:
    """Return the number of optimizer steps of the policy per batch."""
    return c.algorithm.update_epochs * c.algorithm.num_minibatches


def _uses_adam(c: Config) -> bool:
    """Return whether adam trains the policy or the value function."""
    return c.optimizer.name == "adam" or (c.optimizer.name == "natural" and c.has_value)


def _has_fixed_kl(c: Config) -> bool:
    """Return whether the KL, not the learning rate, sets the size of the policy's steps."""
    return c.optimizer.name == "natural" and c.optimizer.max_kl is not None


def _value_has_layers(c: Config) -> bool:
    return c.has_value and not c.value.shared_trunk and bool(c.value.hidden_sizes)


_DERIVED = {  # null means the value of the other key
    "value.hidden_sizes": "policy.hidden_sizes",
    "value.learning_rate": "optimizer.learning_rate",
    "value.update_epochs": "algorithm.update_epochs",
}
_ONE_STEP = ("algorithm.update_epochs", "algorithm.num_minibatches")
_ONE_PASS = (*_ONE_STEP, "algorithm.reuse")
_SEVERAL_STEPS = "`algorithm.update_epochs: 4`"

# Keys without a row here, and without a rule above, always have an effect. Keys that depend on the environment
# (images, masks, continuous actions) are not in this table.
EFFECTS: tuple[Effect, ...] = (
    Effect(
        ("env.num_envs",),
        lambda c: c.env.chunk_size is None or c.rollout.steps is not None,
        ("env.chunk_size", "rollout.episodes"),
        "`env.chunk_size: null`",
    ),
    Effect(("env.rebuild",), lambda c: not _needs_vector_form(c), ("env.vectorization",), "`env.vectorization: sync`"),
    Effect.with_value(("policy.hidden_sizes",), "policy.network", None),
    Effect(
        ("policy.activation", "policy.layer_norm", "policy.residual"),
        lambda c: c.policy.network is None or _value_has_layers(c),
        ("policy.network",),
        "`policy.network: null`",
    ),
    Effect(
        ("policy.activation", "policy.layer_norm", "policy.residual"),
        lambda c: bool(c.policy.hidden_sizes) or _value_has_layers(c),
        ("policy.hidden_sizes",),
        "`policy.hidden_sizes: [64, 64]`",
    ),
    Effect(
        ("policy.network_kwargs",),
        lambda c: c.policy.network is not None,
        ("policy.network",),
        "`policy.network: my.py:Network`",
    ),
    Effect(
        ("policy.initial_standard_deviation", "policy.log_std_bounds"),
        lambda c: c.policy.distribution not in ("softmax", "bernoulli"),
        ("policy.distribution",),
        "`policy.distribution: gaussian`",
    ),
    Effect.with_value(("policy.noise_steps",), "policy.distribution", "state_dependent_gaussian"),
    Effect(
        ("policy.memory_size", "policy.backpropagation_steps"),
        lambda c: c.policy.memory != "none",
        ("policy.memory",),
        "`policy.memory: gru`",
    ),
    Effect(
        (
            *("algorithm.returns", "algorithm.baseline", "algorithm.average", "algorithm.standardize"),
            "algorithm.discount_weighting",
        ),
        _needs_own_estimate,
        ("algorithm.estimator",),
        "`algorithm.estimator: null`",
    ),
    Effect(
        ("algorithm.gae_lambda",),
        lambda c: any(name.startswith(("lambda_return", "vtrace")) for name in _estimators(c)),
        ("algorithm.returns",),
        "`algorithm.returns: lambda_return`",
    ),
    Effect(
        ("algorithm.discount_weighting",),
        lambda c: c.algorithm.gamma != 1,
        ("algorithm.gamma",),
        "`algorithm.gamma: 0.99`",
        refused=False,
    ),
    Effect.with_value(("algorithm.group_mean",), "algorithm.baseline", "group"),
    Effect.with_value(("algorithm.clip_range", "algorithm.clip_range_schedule"), "algorithm.objective", "clip"),
    Effect.with_value(
        ("algorithm.importance_bound", "algorithm.self_normalize"), "algorithm.objective", "importance_sampling"
    ),
    Effect(
        ("algorithm.ratios",),
        lambda c: c.algorithm.objective != "policy_gradient",
        ("algorithm.objective",),
        "`algorithm.objective: importance_sampling`",
    ),
    Effect(  # one on-policy step: all ratios are 1, and the gradient of the KL is 0
        (
            *("algorithm.clip_range", "algorithm.clip_range_schedule", "algorithm.self_normalize"),
            *("algorithm.kl_coef", "algorithm.ratios"),
        ),
        lambda c: _steps(c) > 1 or c.algorithm.reuse > 1,
        _ONE_PASS,
        _SEVERAL_STEPS,
        refused=False,
    ),
    Effect(
        ("algorithm.importance_bound",),
        lambda c: _steps(c) > 1 or c.algorithm.reuse > 1 or (c.algorithm.importance_bound or 1) < 1,
        _ONE_PASS,
        _SEVERAL_STEPS,
        refused=False,
    ),
    Effect(("algorithm.target_kl",), lambda c: _steps(c) > 1, _ONE_STEP, _SEVERAL_STEPS, refused=False),
    Effect(
        ("algorithm.entropy_coef_schedule",),
        lambda c: c.algorithm.entropy_coef > 0,
        ("algorithm.entropy_coef",),
        "`algorithm.entropy_coef: 0.01`",
    ),
    Effect(
        ("optimizer.clip_gradients",),
        lambda c: c.has_value and not c.value.shared_trunk,
        ("algorithm.baseline", "value.shared_trunk"),
        "`algorithm.baseline: value`",
    ),
    Effect(
        ("optimizer.clip_gradients",),
        lambda c: c.optimizer.max_grad_norm is not None,
        ("optimizer.max_grad_norm",),
        "`optimizer.max_grad_norm: 0.5`",
    ),
    Effect(
        ("optimizer.epsilon",),
        lambda c: c.optimizer.name == "rmsprop" or _uses_adam(c),
        ("optimizer.name",),
        "`optimizer.name: adam`",
    ),
    Effect(("optimizer.betas", "optimizer.weight_decay"), _uses_adam, ("optimizer.name",), "`optimizer.name: adam`"),
    Effect.with_value(("optimizer.momentum",), "optimizer.name", "sgd"),
    Effect.with_value(
        ("optimizer.damping", "optimizer.cg_iterations", "optimizer.max_kl", "optimizer.line_search"),
        "optimizer.name",
        "natural",
    ),
    Effect(
        ("optimizer.learning_rate",),
        lambda c: not _has_fixed_kl(c),
        ("optimizer.name", "optimizer.max_kl"),
        "`optimizer.max_kl: null`",
    ),
    Effect(
        ("optimizer.schedule", "optimizer.max_grad_norm"),
        lambda c: not _has_fixed_kl(c) or c.has_value,
        ("optimizer.name", "optimizer.max_kl"),
        "`optimizer.max_kl: null`",
    ),
    Effect(
        (
            *("value.hidden_sizes", "value.shared_trunk", "value.learning_rate", "value.update_epochs"),
            *("value.clip_range", "value.normalize_returns", "algorithm.value_coef"),
        ),
        lambda c: c.has_value,
        ("algorithm.baseline",),
        "`algorithm.baseline: value`",
    ),
    Effect(
        ("value.clip_range",),
        lambda c: (c.value.update_epochs or c.algorithm.update_epochs) * c.algorithm.num_minibatches > 1,
        ("value.update_epochs", *_ONE_STEP),
        "`value.update_epochs: 4`",
        refused=False,
    ),
    Effect.with_value(
        tuple(f"logging.wandb_{key}" for key in ("mode", "project", "entity", "tags", "group")), "logging.wandb", True
    ),
    Effect.with_value(("logging.mlflow_uri", "logging.mlflow_experiment"), "logging.mlflow", True),
    Effect.with_value(("training.compile",), "algorithm.estimator", None),
)
CONDITIONAL = frozenset(key for effect in EFFECTS for key in effect.keys)
