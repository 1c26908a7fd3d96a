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


def violations(config: Config) -> Iterator[Violation]:
    """Yield every combination of keys that has no meaning or could only disappoint."""
    algorithm, rollout, env = config.algorithm, config.rollout, config.env
    if rollout.steps is not None:
        yield Violation(
            ("rollout.steps",),
            "segments need a value function to complete their returns, which this version does not have",
            "collect whole episodes: `rollout: {episodes: 64}`",
        )
    if rollout.episodes is None and rollout.steps is None:
        yield Violation(("rollout.episodes", "rollout.steps"), "nothing is collected", "set `rollout.episodes`")
    if algorithm.baseline == "mean" and rollout.episodes == 1:
        yield Violation(
            ("algorithm.baseline", "rollout.episodes"),
            "the mean over one trajectory is that trajectory: every advantage would be zero",
            "collect more episodes, or use `baseline: none`",
        )
    if algorithm.baseline == "leave_one_out" and rollout.episodes == 1:
        yield Violation(
            ("algorithm.baseline", "rollout.episodes"),
            "with one trajectory there are no others to compare it with",
            "collect more episodes, or use `baseline: none`",
        )
    if algorithm.returns == "total" and algorithm.discount_weighting:
        yield Violation(
            ("algorithm.discount_weighting", "algorithm.returns"),
            "`returns: total` is already the exact gradient of the discounted return; weighing it by γ^t is wrong",
            "leave discount_weighting out, or use `returns: reward_to_go`",
        )
    for key, value in (
        ("update_epochs", algorithm.update_epochs),
        ("num_minibatches", algorithm.num_minibatches),
    ):
        if value > 1:
            yield Violation(
                (f"algorithm.{key}", "algorithm.objective"),
                "after its first step the policy is no longer the one that acted, and objective policy_gradient "
                "does not correct for that",
                f"set `{key}: 1`",
            )
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
    if config.sampling.workers > 0:
        yield Violation(("sampling.workers",), "this version collects in its own process only", "set `workers: 0`")
