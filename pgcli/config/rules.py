"""Rules between keys: combinations without a meaning, and keys without an effect, each with a reason and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from pgcli.config.messages import dotted, path_of, shown
from pgcli.config.schema import Config

Value = str | float | dict[str, float] | None
Condition = Callable[[Config], bool]


class Not(NamedTuple):
    """Every value but this one."""

    value: Value


class Rule(NamedTuple):
    """A forbidden combination: every key of `when` has the value, or meets the condition, that `when` maps it to."""

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
        """The reason, after the names of the keys."""
        return f"{' and '.join(f'`{dotted(path_of(key))}`' for key in self.keys)}: {self.reason}"


class Effect(NamedTuple):
    """Keys that have an effect only where `condition` is true, which depends on the keys of `under`."""

    keys: tuple[str, ...]
    condition: Condition
    under: tuple[str, ...]
    fix: str  # a setting that gives them an effect
    refused: bool = True  # False: only these values of numbers take the effect away, and a notice reports it


class Ineffective(NamedTuple):
    """A key that is not at its default and has no effect under other keys."""

    key: str
    under: tuple[str, ...]
    message: str
    fix: str
    refused: bool


def without_effect(config: Config) -> list[Ineffective]:
    """Return every key that is not at its default and that, under the config's other keys, changes nothing."""
    default, found = Config(), dict[str, Ineffective]()
    for keys, condition, under, fix, refused in EFFECTS:
        for key in keys:
            if key in found or attrgetter(key)(config) == attrgetter(key)(default) or condition(config):
                continue
            *most, last = [f"`{other}: {_written(config, other)}`" for other in under]
            values = f"{', '.join(most)} and {last}" if most else last
            message = f"`{key}` has no effect under {values}"
            found[key] = Ineffective(key, under, message, f"leave it out, or set {fix}", refused)
    return list(found.values())


def effective(config: Config) -> Config:
    """Return the config with its defaults for keys without effect, and written out where null stands for another key.

    Configs that train the same run in different words become equal.
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


def _written(config: Config, key: str) -> str:
    value = attrgetter(key)(config)
    return value if isinstance(value, str) else shown(value)


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
    """Yield the first rule that a run of each shadow would break, without the reasons in `own`."""
    seen = {config.estimator}
    for number, name in enumerate(config.diagnostics.shadows):
        shadow = config.with_estimator(name)
        reasons = [violation.reason for violation in violations(shadow) if violation.reason not in own]
        if name in seen:
            reasons = ["the config's own is measured anyway" if name == config.estimator else "it is there twice"]
        elif shadow.has_value and not config.has_value:
            reasons = ["the config learns no value function that could be its baseline"]
        if reasons:
            yield Violation((f"diagnostics.shadows.{number}",), f"`{name}`: {reasons[0]}", "leave it out")
        seen.add(name)


def _segments(c: Config) -> bool:
    return c.rollout.steps is not None and c.rollout.episodes is None


def _no_location(c: Config) -> bool:
    file, colon, name = (c.algorithm.estimator or "").rpartition(":")
    return c.algorithm.estimator is not None and not (
        colon and file.endswith((".py", ".ipynb")) and name.isidentifier()
    )


_ENVIRONMENTS = ("env", "evaluation.env")  # the sections that describe one


def _has_wrapper(section: str, name: str) -> Condition:
    names = (name, f":{name}", f"gymnasium.wrappers:{name}")
    return lambda c: any(one.name in names for one in attrgetter(f"{section}.wrappers")(c) or ())


def _has_wrappers(section: str) -> Condition:
    return lambda c: bool(attrgetter(f"{section}.wrappers")(c))


def _has_argument(section: str, name: str) -> Condition:
    return lambda c: name in (attrgetter(f"{section}.kwargs")(c) or ())


_MEAN_OF_ONE = "the mean over one trajectory is that trajectory: every advantage would be zero"
_LATER_STEPS = "after its first step the policy is no longer the one that acted"
_OTHER_POLICIES = "the data of earlier iterations are those of other policies"
_WHOLE_EPISODES = "collect whole episodes: `rollout: {episodes: 64}`"
_ON_POLICY = "it gives the gradient of one step on data of the policy's own"
_OWN_BASELINE = "leave baseline out, and subtract one of your own"
_GYMNASIUM = "pgcli gives this argument to Gymnasium itself"
_NOT_SAVED = "its running statistics are in no checkpoint, and"
_NORMALIZE_RETURNS = "use `value.normalize_returns: true`"
_FILM = "leave it out, and film with `pgcli eval RUN_DIR --video FILE.gif`"
_FUNCTION = ("it wants a function, and YAML holds none", "write a wrapper of your own, and name it as `module:Class`")

RULES: tuple[Rule, ...] = (
    Rule({"rollout.episodes": None, "rollout.steps": None}, "nothing is collected", "set `rollout.episodes`"),
    Rule(
        {"rollout.steps": Not(None), "rollout.episodes": Not(None)},
        "an iteration collects either segments or whole episodes",
        "set `episodes: null` for segments, or leave steps out",
    ),
    # Segments are not trajectories from a start state
    Rule(
        {"rollout.steps": _segments, "algorithm.baseline": Not("value")},
        "a segment ends amid its episodes, and without a value function nothing stands for their rest",
        f"use `baseline: value`, or {_WHOLE_EPISODES}",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.returns": "total"},
        "a segment does not hold the total return of its episodes",
        "use `returns: lambda_return`",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.discount_weighting": True},
        "the row of a segment is not the time t since the start of its episode",
        "leave discount_weighting out, or collect whole episodes",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.average": Not("steps")},
        "the columns of a segment are not trajectories, so there is no mean over them",
        "use `average: steps`",
    ),
    Rule(
        {"rollout.steps": _segments, "rollout.horizon": Not(None)},
        "segments are cut by their own length",
        "leave horizon out, or set `env.max_episode_steps`",
    ),
    Rule(
        {"rollout.steps": _segments, "algorithm.reuse": Not(1)},
        "on resume the data of earlier iterations are collected again, which takes whole episodes",
        "set `reuse: 1`, or collect whole episodes",
    ),
    Rule(
        {
            "algorithm.num_minibatches": lambda c: (
                c.algorithm.num_minibatches > (c.rollout.steps or 0) * c.env.num_envs
            ),
            "rollout.steps": _segments,
        },
        lambda c: f"there are more minibatches than the {(c.rollout.steps or 0) * c.env.num_envs} steps of the batch",
        "use fewer",
    ),
    # Returns and baselines
    Rule(
        {
            "algorithm.returns": lambda c: c.algorithm.returns in ("lambda_return", "vtrace"),
            "algorithm.baseline": Not("value"),
        },
        lambda c: f"`{c.algorithm.returns}` mixes in the values of states, and without a value function there are none",
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
        "with one trajectory there are no others to compare it with",
        "collect more episodes, or use `baseline: none`",
    ),
    Rule(
        {"algorithm.baseline": "optimal", "algorithm.returns": Not("total")},
        "the constant of least variance is that of R(τ) times the score of the whole trajectory",
        "use `returns: total`, or `baseline: leave_one_out`",
    ),
    Rule(
        {"algorithm.returns": "vtrace", "algorithm.objective": "policy_gradient"},
        "it corrects the returns for data of another policy, and objective policy_gradient has no such data",
        "use `objective: importance_sampling`, or `returns: lambda_return`",
    ),
    Rule(
        {"algorithm.discount_weighting": True, "algorithm.returns": "total"},
        "`returns: total` is already the exact gradient of the discounted return; weighing it by γ^t is wrong",
        "leave discount_weighting out, or use `returns: reward_to_go`",
    ),
    # Data of another policy need an objective that corrects for it
    *(
        Rule(
            {f"algorithm.{key}": Not(1), "algorithm.objective": "policy_gradient"},
            f"{reason}, and objective policy_gradient does not correct for that",
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
            "objective policy_gradient takes one step from the policy that acted, where KL and its gradient are 0",
            f"leave {key} out, or use `objective: clip` or `importance_sampling`",
        )
        for key, condition in (
            ("kl_coef", Not(0)),
            ("target_kl", lambda c: c.algorithm.target_kl is not None and c.algorithm.kl_coef == 0),
        )
    ),
    # An estimator of the user's own: from whole episodes to a gradient
    Rule(
        {"algorithm.estimator": _no_location},
        lambda c: f"expected FILE.py:NAME or FILE.ipynb:NAME, got {c.algorithm.estimator!r}",
        "write it like `my.py:reinforce`",
    ),
    *(
        Rule({"algorithm.estimator": Not(None), key: wanted}, reason, fix)
        for key, wanted, reason, fix in (
            ("rollout.steps", Not(None), "it is given whole episodes, not segments", _WHOLE_EPISODES),
            ("algorithm.objective", Not("policy_gradient"), _ON_POLICY, "use `objective: policy_gradient`"),
            ("algorithm.baseline", "value", "it is given no value function", _OWN_BASELINE),
            ("algorithm.baseline", "group", "it is not told of groups", _OWN_BASELINE),
            ("algorithm.entropy_coef", Not(0), "it gives the whole gradient", "leave entropy_coef out"),
            ("policy.memory", Not("none"), "a policy with memory has no score of one step alone", "use `memory: none`"),
        )
    ),
    # A value function that is one more output of the policy network
    *(
        Rule(
            {"value.shared_trunk": lambda c: c.has_value and c.value.shared_trunk, f"value.{key}": Not(None)},
            "the value function that shares the policy's trunk learns with it, in the same steps",
            f"leave {key} out, or shared_trunk",
        )
        for key in ("hidden_sizes", "learning_rate", "update_epochs")
    ),
    # Groups
    Rule(
        {"algorithm.baseline": "group", "algorithm.group_size": None},
        "a group needs a size",
        "set `group_size` to how many columns share a start state",
    ),
    Rule(  # not only without effect: columns would share their reset seeds
        {"algorithm.group_size": Not(None), "algorithm.baseline": Not("group")},
        "only `baseline: group` has groups",
        "leave group_size out, or use `baseline: group`",
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
        lambda c: f"groups of {c.group_size} do not divide {c.rollout.episodes} episodes",
        "make `rollout.episodes` a multiple of `group_size`",
    ),
    Rule(
        {"env.vectorization": "native", "algorithm.baseline": "group"},
        "the columns of a native vector environment cannot share a reset seed",
        "use `vectorization: sync` or `auto`",
    ),
    Rule(
        {
            "algorithm.standardize": "group",
            "algorithm.baseline": lambda c: (c.algorithm.baseline, c.algorithm.returns) != ("group", "total"),
            "algorithm.returns": lambda c: True,
        },
        "it divides by the standard deviation of a group's total returns",
        "use `baseline: group` with `returns: total`, or `standardize: batch`",
    ),
    # Environment
    *(
        Rule({f"{section}.kwargs.{name}": _has_argument(section, name)}, _GYMNASIUM, fix)
        for section in _ENVIRONMENTS
        for name, fix in (
            ("max_episode_steps", f"set `{section}.max_episode_steps`"),
            ("render_mode", "leave it out"),
        )
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
            ("Autoreset", "it hides where an episode ends, and resets without a seed", "leave it out"),
            ("RecordEpisodeStatistics", "every return and length is in episodes.csv already", "leave it out"),
            ("RecordVideo", "training takes no pictures", _FILM),
            ("HumanRendering", "training shows no pictures", _FILM),
            ("RenderCollection", "it keeps every picture in memory", "leave it out"),
            ("TransformAction", *_FUNCTION),
            ("TransformObservation", *_FUNCTION),
            ("TransformReward", *_FUNCTION),
        )
    ),
    *(
        Rule(
            {"env.vectorization": "native", f"{section}.wrappers": _has_wrappers(section)},
            "a native vector environment takes no wrappers",
            "use `vectorization: sync`, or leave the wrappers out",
        )
        for section in _ENVIRONMENTS
    ),
    Rule(
        {"env.vectorization": "native", "env.rebuild": True},
        "the episodes of a native vector environment share one instance",
        "use `vectorization: sync`, or leave rebuild out",
    ),
    # Recurrent policies
    Rule(
        {"training.compile": True, "policy.memory": Not("none")},
        "torch.compile does not go into recurrent networks",
        "leave compile out",
    ),
    # Evaluation and diagnostics
    *(
        Rule(
            {f"evaluation.{key}": Not(default), "evaluation.every": None},
            "without `evaluation.every` nothing is evaluated before the end",
            "set `evaluation.every`",
        )
        for key, default in (("stop_at_return", None), ("stop_at", {}), ("patience", None))
    ),
    Rule(
        {"evaluation.stop_evaluations": lambda c: c.evaluation.stop_evaluations > 1 and not c.evaluation.goals},
        "there is no value that evaluations have to reach",
        "set `evaluation.stop_at_return`, or leave stop_evaluations out",
    ),
    Rule(
        {"diagnostics.shadows": lambda c: bool(c.diagnostics.shadows), "diagnostics.every": None},
        "without `diagnostics.every` nothing is measured",
        "set `diagnostics.every`, or leave shadows out",
    ),
    *(
        Rule(
            {"diagnostics.every": Not(None), key: one},
            lambda c: f"one {'trajectory' if c.group_size == 1 else 'group'} says nothing of a variance",
            f"use a larger `{key}`",
        )
        for key, one in (
            ("rollout.episodes", lambda c: c.rollout.episodes and c.rollout.episodes // c.group_size < 2),
            ("env.num_envs", lambda c: not c.rollout.episodes and c.env.num_envs // c.group_size < 2),
        )
    ),
)


def _estimators(c: Config) -> list[str]:
    """Return the gradient estimators that a run computes: its own and those that it only measures."""
    shadows = c.diagnostics.shadows if c.diagnostics.every is not None else []
    return [c.estimator, *shadows]


def _needs_own_estimate(c: Config) -> bool:
    """Return whether a run computes pgcli's estimate: to learn from it, or to measure its variance."""
    return c.algorithm.estimator is None or c.diagnostics.every is not None


def _steps(c: Config) -> int:
    """Return the optimizer steps of the policy on one batch."""
    return c.algorithm.update_epochs * c.algorithm.num_minibatches


def _value_steps(c: Config) -> int:
    """Return the optimizer steps of the value function on one batch."""
    return (c.value.update_epochs or c.algorithm.update_epochs) * c.algorithm.num_minibatches


def _has_hidden_layers(c: Config) -> bool:
    own_network = c.has_value and not c.value.shared_trunk
    return bool(c.policy.hidden_sizes or (own_network and c.value.hidden_sizes))


_DERIVED = {  # where null, it stands for the value of the other key
    "value.hidden_sizes": "policy.hidden_sizes",
    "value.learning_rate": "optimizer.learning_rate",
    "value.update_epochs": "algorithm.update_epochs",
}
_ONE_STEP = ("algorithm.update_epochs", "algorithm.num_minibatches")
_ONE_PASS = (*_ONE_STEP, "algorithm.reuse")
_SEVERAL_STEPS = "`algorithm.update_epochs: 4`"
_MEMORY = "`policy.memory: gru`"

# For each key without a row here, and in no rule above that refuses it where it has no effect, the effect is its own.
# An image, a mask or continuous actions are of the environment: what needs them is not in this table.
EFFECTS: tuple[Effect, ...] = (
    Effect(
        ("env.num_envs",),
        lambda c: c.env.chunk_size is None or c.rollout.steps is not None,
        ("env.chunk_size", "rollout.episodes"),
        "`env.chunk_size: null`",
    ),
    Effect(
        ("env.rebuild",),
        lambda c: c.env.vectorization != "native",
        ("env.vectorization",),
        "`env.vectorization: sync`",
    ),
    Effect(
        ("policy.activation",),
        _has_hidden_layers,
        ("policy.hidden_sizes",),
        "`policy.hidden_sizes: [64, 64]`",
    ),
    Effect(
        ("policy.initial_standard_deviation",),
        lambda c: c.policy.distribution not in ("softmax", "bernoulli"),
        ("policy.distribution",),
        "`policy.distribution: gaussian`",
    ),
    Effect(
        ("policy.noise_steps",),
        lambda c: c.policy.distribution == "state_dependent_gaussian",
        ("policy.distribution",),
        "`policy.distribution: state_dependent_gaussian`",
    ),
    Effect(
        ("policy.memory_size", "policy.backpropagation_steps"),
        lambda c: c.policy.memory != "none",
        ("policy.memory",),
        _MEMORY,
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
    Effect(
        ("algorithm.group_mean",),
        lambda c: c.algorithm.baseline == "group",
        ("algorithm.baseline",),
        "`algorithm.baseline: group`",
    ),
    Effect(
        ("algorithm.clip_range", "algorithm.clip_range_schedule"),
        lambda c: c.algorithm.objective == "clip",
        ("algorithm.objective",),
        "`algorithm.objective: clip`",
    ),
    Effect(
        ("algorithm.importance_bound", "algorithm.self_normalize"),
        lambda c: c.algorithm.objective == "importance_sampling",
        ("algorithm.objective",),
        "`algorithm.objective: importance_sampling`",
    ),
    Effect(  # one step from the policy that acted: all ratios are 1, and the gradient of the KL is 0
        (
            *("algorithm.clip_range", "algorithm.clip_range_schedule", "algorithm.self_normalize"),
            "algorithm.kl_coef",
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
        lambda c: _value_steps(c) > 1,
        ("value.update_epochs", *_ONE_STEP),
        "`value.update_epochs: 4`",
        refused=False,
    ),
    Effect(
        ("training.compile",),
        lambda c: c.algorithm.estimator is None,
        ("algorithm.estimator",),
        "`algorithm.estimator: null`",
    ),
)
CONDITIONAL = frozenset(key for effect in EFFECTS for key in effect.keys)
