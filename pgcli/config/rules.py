"""Rules between keys: each a reason and a mend, and none that a single key could state for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgcli.config.schema import Config


class Violation(NamedTuple):
    """A combination that cannot work: its keys, the reason, and the mend."""

    keys: tuple[str, ...]
    reason: str
    mend: str


# Gymnasium's wrappers that a run cannot have: the reason and the mend.
_NO_WRAPPERS = {
    "NormalizeObservation": (
        "its running statistics are in no checkpoint, and evaluation would change them",
        "use `policy.normalize_obs: true`",
    ),
    "NormalizeReward": (
        "its running statistics are in no checkpoint, and returns would no longer be those of the environment",
        "use `value.normalize_returns: true`",
    ),
    "Autoreset": ("it hides where an episode ends, and resets without a seed", "leave it out"),
    "RecordEpisodeStatistics": ("every return and length is in episodes.csv already", "leave it out"),
    "RecordVideo": ("training takes no pictures", "leave it out, and film with `pgcli eval RUN_DIR --video FILE.gif`"),
    "HumanRendering": (
        "training shows no pictures",
        "leave it out, and film with `pgcli eval RUN_DIR --video FILE.gif`",
    ),
    "RenderCollection": ("it keeps every picture in memory", "leave it out"),
    **dict.fromkeys(
        ("TransformAction", "TransformObservation", "TransformReward"),
        ("it wants a function, and YAML holds none", "write a wrapper of your own, and name it as `module:Class`"),
    ),
}


def violations(config: Config) -> Iterator[Violation]:
    """Yield every combination of keys that has no meaning or could only disappoint."""
    own = list(_of_run(config))
    yield from own
    yield from _of_diagnostics(config, {violation.reason for violation in own})


def _of_run(config: Config) -> Iterator[Violation]:
    algorithm, rollout, env = config.algorithm, config.rollout, config.env
    if rollout.episodes is None and rollout.steps is None:
        yield Violation(("rollout.episodes", "rollout.steps"), "nothing is collected", "set `rollout.episodes`")
    if rollout.steps is not None:
        yield from _of_segments(config, rollout.steps)
    if algorithm.returns in ("lambda_return", "vtrace") and not config.has_value:
        yield Violation(
            ("algorithm.returns", "algorithm.baseline"),
            f"`{algorithm.returns}` mixes in the values of states, and without a value function there are none",
            "use `baseline: value`, or `returns: reward_to_go`",
        )
    if algorithm.baseline == "mean" and rollout.episodes == 1:
        yield Violation(
            ("algorithm.baseline", "rollout.episodes"),
            "the mean over one trajectory is that trajectory: every advantage would be zero",
            "collect more episodes, or use `baseline: none`",
        )
    if algorithm.baseline in ("leave_one_out", "optimal") and rollout.episodes == 1:
        yield Violation(
            ("algorithm.baseline", "rollout.episodes"),
            "with one trajectory there are no others to compare it with",
            "collect more episodes, or use `baseline: none`",
        )
    if algorithm.baseline == "optimal" and algorithm.returns != "total":
        yield Violation(
            ("algorithm.baseline", "algorithm.returns"),
            "the constant of least variance is that of R(τ) times the score of the whole trajectory",
            "use `returns: total`, or `baseline: leave_one_out`",
        )
    if algorithm.returns == "vtrace" and algorithm.objective == "policy_gradient":
        yield Violation(
            ("algorithm.returns", "algorithm.objective"),
            "it corrects the returns for data of another policy, and objective policy_gradient has no such data",
            "use `objective: importance_sampling`, or `returns: lambda_return`",
        )
    if algorithm.returns == "total" and algorithm.discount_weighting:
        yield Violation(
            ("algorithm.discount_weighting", "algorithm.returns"),
            "`returns: total` is already the exact gradient of the discounted return; weighing it by γ^t is wrong",
            "leave discount_weighting out, or use `returns: reward_to_go`",
        )
    yield from _of_corrections(config)
    if algorithm.estimator is not None:
        yield from _of_estimators(config, algorithm.estimator)
    yield from _of_shared_trunks(config)
    groups = algorithm.baseline == "group"
    if groups and algorithm.group_size is None:
        yield Violation(
            ("algorithm.baseline", "algorithm.group_size"),
            "a group needs a size",
            "set `group_size` to how many columns share a start state",
        )
    if not groups and algorithm.group_size is not None:
        yield Violation(
            ("algorithm.group_size", "algorithm.baseline"),
            "only `baseline: group` has groups",
            "leave group_size out, or use `baseline: group`",
        )
    if groups and algorithm.group_size == 1:
        yield Violation(
            ("algorithm.group_size",),
            "the mean over one trajectory is that trajectory: every advantage would be zero",
            "use a larger group_size",
        )
    if groups and rollout.episodes and algorithm.group_size and rollout.episodes % algorithm.group_size:
        yield Violation(
            ("algorithm.group_size", "rollout.episodes"),
            f"groups of {algorithm.group_size} do not divide {rollout.episodes} episodes",
            "make `rollout.episodes` a multiple of `group_size`",
        )
    if groups and env.vectorization == "native":
        yield Violation(
            ("env.vectorization", "algorithm.baseline"),
            "the columns of a native vector environment cannot share a reset seed",
            "use `vectorization: sync` or `auto`",
        )
    if algorithm.standardize == "group" and not (groups and algorithm.returns == "total"):
        yield Violation(
            ("algorithm.standardize", "algorithm.baseline", "algorithm.returns"),
            "it divides by the standard deviation of a group's total returns",
            "use `baseline: group` with `returns: total`, or `standardize: batch`",
        )
    for name, mend in (("max_episode_steps", "set `env.max_episode_steps`"), ("render_mode", "leave it out")):
        if name in env.kwargs:
            yield Violation((f"env.kwargs.{name}",), "pgcli gives this argument to Gymnasium itself", mend)
    for wrapper in env.wrappers:
        module, _, name = wrapper.name.rpartition(":")
        if name in _NO_WRAPPERS and module in ("", "gymnasium.wrappers"):
            reason, mend = _NO_WRAPPERS[name]
            yield Violation(("env.wrappers",), f"{name}: {reason}", mend)
    if env.vectorization == "native" and env.wrappers:
        yield Violation(
            ("env.vectorization", "env.wrappers"),
            "a native vector environment takes no wrappers",
            "use `vectorization: sync`, or leave the wrappers out",
        )
    if env.vectorization == "native" and env.rebuild is True:
        yield Violation(
            ("env.vectorization", "env.rebuild"),
            "the episodes of a native vector environment share one instance",
            "use `vectorization: sync`, or leave rebuild out",
        )
    if config.evaluation.stop_at_return is not None and config.evaluation.every is None:
        yield Violation(
            ("evaluation.stop_at_return", "evaluation.every"),
            "without `evaluation.every` nothing is evaluated before the end",
            "set `evaluation.every`",
        )
    if algorithm.group_mean != "whole" and not groups:
        yield Violation(
            ("algorithm.group_mean", "algorithm.baseline"),
            "only `baseline: group` has groups",
            "leave group_mean out, or use `baseline: group`",
        )
    if config.policy.backpropagation_steps is not None and config.policy.memory == "none":
        yield Violation(
            ("policy.backpropagation_steps", "policy.memory"),
            "a policy without memory has nothing to go back through",
            "leave backpropagation_steps out, or use `memory: gru`",
        )
    if config.training.compile and config.policy.memory != "none":
        yield Violation(
            ("training.compile", "policy.memory"),
            "torch.compile does not go into recurrent networks",
            "leave compile out",
        )


def _of_segments(config: Config, steps: int) -> Iterator[Violation]:
    """Yield what cannot be asked of segments, which are not trajectories from a start state."""
    algorithm, rollout, env = config.algorithm, config.rollout, config.env
    if rollout.episodes is not None:
        yield Violation(
            ("rollout.steps", "rollout.episodes"),
            "an iteration collects either segments or whole episodes",
            "set `episodes: null` for segments, or leave steps out",
        )
        return
    if not config.has_value:
        yield Violation(
            ("rollout.steps", "algorithm.baseline"),
            "a segment ends amid its episodes, and without a value function nothing stands for their rest",
            "use `baseline: value`, or collect whole episodes: `rollout: {episodes: 64}`",
        )
    if algorithm.returns == "total":
        yield Violation(
            ("rollout.steps", "algorithm.returns"),
            "a segment does not hold the total return of its episodes",
            "use `returns: lambda_return`",
        )
    if algorithm.discount_weighting:
        yield Violation(
            ("rollout.steps", "algorithm.discount_weighting"),
            "the row of a segment is not the time t since the start of its episode",
            "leave discount_weighting out, or collect whole episodes",
        )
    if algorithm.average != "steps":
        yield Violation(
            ("rollout.steps", "algorithm.average"),
            "the columns of a segment are not trajectories, so there is no mean over them",
            "use `average: steps`",
        )
    if rollout.horizon is not None:
        yield Violation(
            ("rollout.steps", "rollout.horizon"),
            "segments are cut by their own length",
            "leave horizon out, or set `env.max_episode_steps`",
        )
    if algorithm.reuse > 1:
        yield Violation(
            ("rollout.steps", "algorithm.reuse"),
            "on resume the data of earlier iterations are collected again, which takes whole episodes",
            "set `reuse: 1`, or collect whole episodes",
        )
    if algorithm.num_minibatches > steps * env.num_envs:
        yield Violation(
            ("algorithm.num_minibatches", "rollout.steps"),
            f"there are more minibatches than the {steps * env.num_envs} steps of the batch",
            "use fewer",
        )


def _of_corrections(config: Config) -> Iterator[Violation]:
    """Yield what learns from another policy's data, or speaks of it, without a ratio that corrects for that."""
    algorithm = config.algorithm
    if algorithm.objective == "policy_gradient":
        later = "after its first step the policy is no longer the one that acted"
        earlier = "the data of earlier iterations are those of other policies"
        for key, why in (("update_epochs", later), ("num_minibatches", later), ("reuse", earlier)):
            if getattr(algorithm, key) > 1:
                yield Violation(
                    (f"algorithm.{key}", "algorithm.objective"),
                    f"{why}, and objective policy_gradient does not correct for that",
                    f"set `{key}: 1`, or use `objective: clip` or `importance_sampling`",
                )
        if algorithm.kl_coef > 0 or algorithm.target_kl is not None:
            key = "kl_coef" if algorithm.kl_coef > 0 else "target_kl"
            yield Violation(
                (f"algorithm.{key}", "algorithm.objective"),
                "objective policy_gradient takes one step from the policy that acted, where KL and its gradient are 0",
                f"leave {key} out, or use `objective: clip` or `importance_sampling`",
            )
    for key, given in (
        ("importance_bound", algorithm.importance_bound is not None),
        ("self_normalize", algorithm.self_normalize),
    ):
        if given and algorithm.objective != "importance_sampling":
            yield Violation(
                (f"algorithm.{key}", "algorithm.objective"),
                "only `objective: importance_sampling` has weights of this kind",
                f"leave {key} out, or use `objective: importance_sampling`",
            )


def _of_estimators(config: Config, location: str) -> Iterator[Violation]:
    """Yield what an estimator of the user's own, which is given whole episodes and gives a gradient, cannot have."""
    algorithm, key = config.algorithm, "algorithm.estimator"
    file, colon, name = location.rpartition(":")
    if not (colon and file.endswith(".py") and name.isidentifier()):
        yield Violation((key,), f"expected FILE.py:NAME, got {location!r}", "write it like `my.py:reinforce`")
    if config.rollout.steps is not None:
        yield Violation(
            (key, "rollout.steps"),
            "it is given whole episodes, not segments",
            "collect whole episodes: `rollout: {episodes: 64}`",
        )
    if algorithm.objective != "policy_gradient":
        yield Violation(
            (key, "algorithm.objective"),
            "it gives the gradient of one step on data of the policy's own",
            "use `objective: policy_gradient`",
        )
    if algorithm.baseline in ("value", "group"):
        why = {"value": "it is given no value function", "group": "it is not told of groups"}[algorithm.baseline]
        yield Violation((key, "algorithm.baseline"), why, "use `baseline: none`, and subtract one of your own")
    if algorithm.entropy_coef > 0:
        yield Violation((key, "algorithm.entropy_coef"), "it gives the whole gradient", "leave entropy_coef out")
    if config.policy.memory != "none":
        yield Violation(
            (key, "policy.memory"), "a policy with memory has no score of one step alone", "use `memory: none`"
        )


def _of_shared_trunks(config: Config) -> Iterator[Violation]:
    """Yield what a value function that is one more output of the policy network cannot have of its own."""
    value = config.value
    if not (config.has_value and value.shared_trunk):
        return
    for key in ("hidden_sizes", "learning_rate", "update_epochs"):
        if getattr(value, key) is not None:
            yield Violation(
                ("value.shared_trunk", f"value.{key}"),
                "the value function that shares the policy's trunk learns with it, in the same steps",
                f"leave {key} out, or shared_trunk",
            )


def _of_diagnostics(config: Config, own: set[str]) -> Iterator[Violation]:
    """Yield what cannot be measured; of a shadow, what would be wrong with a run of it, unless it is with this one."""
    diagnostics, rollout = config.diagnostics, config.rollout
    if diagnostics.every is None:
        if diagnostics.shadows:
            yield Violation(
                ("diagnostics.shadows", "diagnostics.every"),
                "without `diagnostics.every` nothing is measured",
                "set `diagnostics.every`, or leave shadows out",
            )
        return
    columns = "rollout.episodes" if rollout.episodes else "env.num_envs"
    if (rollout.episodes or config.env.num_envs) // config.group_size < 2:
        one = "trajectory" if config.group_size == 1 else "group"
        yield Violation(
            ("diagnostics.every", columns), f"one {one} says nothing of a variance", f"use a larger `{columns}`"
        )
    seen = {config.estimator}
    for number, name in enumerate(diagnostics.shadows):
        shadow = config.with_estimator(name)
        reasons = [violation.reason for violation in _of_run(shadow) if violation.reason not in own]
        if name in seen:
            reasons = ["the config's own is measured anyway" if name == config.estimator else "it is there twice"]
        elif shadow.has_value and not config.has_value:
            reasons = ["the config learns no value function that could be its baseline"]
        if reasons:
            yield Violation((f"diagnostics.shadows.{number}",), f"`{name}`: {reasons[0]}", "leave it out")
        seen.add(name)
