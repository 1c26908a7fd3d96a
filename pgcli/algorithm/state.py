"""The state of a learner: all tensors that an update changes, and their rollback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.algorithm.reuse import PastIterations
from pgcli.policies.normalizers import ReturnScale
from pgcli.policies.policy import parameters_of


def state_dict(agent: PolicyGradient, scale: ReturnScale | None, past: PastIterations) -> dict[str, Tensor]:
    """Return all mutable state as named tensors: views, not copies."""
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
    if agent.config.algorithm.has_adaptive_kl:
        tensors["kl_coef"] = agent.losses.adaptive_kl_coef
    if scale is not None:
        tensors |= {f"return_scale.{key}": x for key, x in scale.named_buffers()}
    for age, policy in enumerate(past.policies, 1):
        tensors |= {f"past.{age}.{key}": x for key, x in parameters_of(policy, None).items()}
    return tensors


def memory_of(agent: PolicyGradient, scale: ReturnScale | None = None) -> list[Tensor]:
    """Return the tensors that an update changes in place, as few large ones without names."""
    optimizers = [x for part in agent.parts for x in part.optimizer.memory]
    own = agent.losses.adaptive_kl_coef
    return [*optimizers, own, *agent.policy.buffers(), *(() if scale is None else scale.buffers())]


def copy_state(source: PolicyGradient, target: PolicyGradient) -> None:
    """Copy the tensors that an update changes to another device, in place."""
    if source is not target:
        for theirs, mine in zip(memory_of(target), memory_of(source), strict=True):
            theirs.copy_(mine)


@contextmanager
def rolled_back(agent: PolicyGradient, scale: ReturnScale | None, past: PastIterations) -> Iterator[None]:
    """Restore the state if an exception is raised."""
    before = [(tensor, tensor.clone()) for tensor in memory_of(agent, scale)]
    policies, trajectories = past.policies, past.trajectories
    try:
        yield
    except BaseException:
        past.policies, past.trajectories = policies, trajectories
        for tensor, value in before:
            tensor.copy_(value)
        raise
