"""Rules between keys: combinations that have no meaning or no effect, each with a reason and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

from pgcli.config.schema import Config

Value = str | float | None
Condition = Callable[[Config], bool]


class Not(NamedTuple):
    """Every value but this one."""

    value: Value


class Rule(NamedTuple):
    """What no config may have: each key of `when` with its value there, or fulfilling its condition there."""

    when: dict[str, Value | Not | Condition]
    reason: str | Callable[[Config], str]
    fix: str


class Violation(NamedTuple):
    """A rule that a config breaks."""

    keys: tuple[str, ...]
    reason: str
    fix: str


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


def _has_wrapper(name: str) -> Condition:
    return lambda c: any(wrapper.name in (name, f":{name}", f"gymnasium.wrappers:{name}") for wrapper in c.env.wrappers)


_MEAN_OF_ONE = "the mean over one trajectory is that trajectory: every advantage would be zero"
_LATER_STEPS = "after its first step the policy is no longer the one that acted"
_OTHER_POLICIES = "the data of earlier iterations are those of other policies"
_WHOLE_EPISODES = "collect whole episodes: `rollout: {episodes: 64}`"
_ON_POLICY = "it gives the gradient of one step on data of the policy's own"
_OWN_BASELINE = "use `baseline: none`, and subtract one of your own"
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
        {"algorithm.baseline": "mean", "rollout.episodes": 1},
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
    *(
        Rule(
            {f"algorithm.{key}": Not(default), "algorithm.objective": Not("importance_sampling")},
            "only `objective: importance_sampling` has weights of this kind",
            f"leave {key} out, or use `objective: importance_sampling`",
        )
        for key, default in (("importance_bound", None), ("self_normalize", False))
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
    *(
        Rule(
            {f"algorithm.{key}": Not(default), "algorithm.baseline": Not("group")},
            "only `baseline: group` has groups",
            f"leave {key} out, or use `baseline: group`",
        )
        for key, default in (("group_size", None), ("group_mean", "whole"))
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
    Rule(
        {"env.kwargs.max_episode_steps": lambda c: "max_episode_steps" in c.env.kwargs},
        _GYMNASIUM,
        "set `env.max_episode_steps`",
    ),
    Rule({"env.kwargs.render_mode": lambda c: "render_mode" in c.env.kwargs}, _GYMNASIUM, "leave it out"),
    *(
        Rule({"env.wrappers": _has_wrapper(name)}, f"{name}: {reason}", fix)
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
    Rule(
        {"env.vectorization": "native", "env.wrappers": lambda c: bool(c.env.wrappers)},
        "a native vector environment takes no wrappers",
        "use `vectorization: sync`, or leave the wrappers out",
    ),
    Rule(
        {"env.vectorization": "native", "env.rebuild": True},
        "the episodes of a native vector environment share one instance",
        "use `vectorization: sync`, or leave rebuild out",
    ),
    # Recurrent policies
    Rule(
        {"policy.backpropagation_steps": Not(None), "policy.memory": "none"},
        "a policy without memory has nothing to go back through",
        "leave backpropagation_steps out, or use `memory: gru`",
    ),
    Rule(
        {"training.compile": True, "policy.memory": Not("none")},
        "torch.compile does not go into recurrent networks",
        "leave compile out",
    ),
    # Evaluation and diagnostics
    Rule(
        {"evaluation.stop_at_return": Not(None), "evaluation.every": None},
        "without `evaluation.every` nothing is evaluated before the end",
        "set `evaluation.every`",
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
