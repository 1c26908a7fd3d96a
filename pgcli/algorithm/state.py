"""The state of a learner: everything that an update changes, as named tensors, and how it is rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from pgcli.policies.policy import parameters_of

if TYPE_CHECKING:
    from pgcli.algorithm.learner import Learner
    from pgcli.algorithm.policy_gradient import PolicyGradient


def state_dict(learner: Learner) -> dict[str, Tensor]:
    """Return all mutable state as named tensors: views, not copies."""
    agent = learner.agent
    tensors = parameters_of(agent.policy, agent.value)
    first = [name for name, _ in agent.policy.named_parameters()]
    second = [] if agent.value is None else [name for name, _ in agent.value.named_parameters()]
    for part in reversed(agent.parts):
        optimizer, names = {
            "policy": ("optimizer", first),
            "value": ("value_optimizer", second),
            "joint": ("optimizer", first + [f"value.{name}" for name in second]),
        }[part.name]
        tensors |= {f"{optimizer}.{key}": x for key, x in part.optimizer.state(names).items()}
    if learner.return_scale is not None:
        tensors |= {f"return_scale.{key}": x for key, x in learner.return_scale.named_buffers()}
    for age, policy in enumerate(learner.past.policies, 1):
        tensors |= {f"past.{age}.{key}": x for key, x in parameters_of(policy, None).items()}
    return tensors


def memory_of(agent: PolicyGradient) -> list[Tensor]:
    """Return what an update of the agent changes in place: a few large tensors without names."""
    return [x for part in agent.parts for x in part.optimizer.memory] + [*agent.policy.buffers()]


def copy_state(source: PolicyGradient, target: PolicyGradient) -> None:
    """Copy what an update changes in place, from one device to another."""
    if source is not target:
        for theirs, mine in zip(memory_of(target), memory_of(source), strict=True):
            theirs.copy_(mine)


@contextmanager
def rolled_back(learner: Learner) -> Iterator[None]:
    """Restore the state of before if an exception is raised."""
    scale = [] if learner.return_scale is None else list(learner.return_scale.buffers())
    before = [(tensor, tensor.clone()) for tensor in [*memory_of(learner.agent), *scale]]
    past = learner.past.policies, learner.past.trajectories
    try:
        yield
    except BaseException:
        learner.past.policies, learner.past.trajectories = past
        for tensor, value in before:
            tensor.copy_(value)
        raise
