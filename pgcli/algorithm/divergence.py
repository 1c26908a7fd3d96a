"""Divergence: find numbers that are not finite, and name the tensor of their origin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.losses import PartName, Step
from pgcli.algorithm.optimizers import unflattened
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.errors import Diverged
from pgcli.policies.policy import parameters_of

NamedTensors = Iterable[tuple[str, Tensor]]


def check_finite(named: NamedTensors, consequence: str = "") -> None:
    """Raise Diverged with the name of the first tensor that is not finite, and its consequence."""
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            raise Diverged(f"{name} is not finite{consequence}")


class CheckedGradient:
    """A gradient that raises Diverged at the first non-finite number and names its cause.

    It checks every tensor of a step, causes before effects. This costs several times the step, so only a failed update
    is repeated with it.
    """

    def __init__(self, agent: PolicyGradient, state: Callable[[], Mapping[str, Tensor]]) -> None:
        self._agent, self._gradient, self._state = agent, agent.gradient, state
        self.inputs = agent.gradient.inputs

    def __call__(self, batch: Batch, part: PartName, progress: float) -> Step:
        """Return the result of the wrapped gradient. Raises Diverged."""
        gradient, terms = self._gradient(batch, part, progress)
        values = {name: term.item() for name, term in terms().items()}
        values["grad_norm"] = torch.linalg.vector_norm(gradient).item()
        for name, value in sorted(values.items(), key=lambda item: item[0] == "loss"):
            if not math.isfinite(value):
                check_finite(self._suspects(batch, part, gradient), f", so {name} is {value}")
                raise Diverged(f"{name} is {value}")
        return gradient, terms

    def _suspects(self, batch: Batch, part: PartName, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
        policy, value = self._agent.policy, self._agent.value
        yield from self._state().items()
        yield from ((name, x) for name, x in vars(batch).items() if isinstance(x, Tensor))
        yield "log_probs", policy.distribution.log_probs(policy(batch.obs, batch.sequences), batch.actions)
        names = {x.data_ptr(): name for name, x in parameters_of(policy, value).items()}
        (parameters,) = (one.optimizer.parameters for one in self._agent.parts if one.name == part)
        for parameter, slope in zip(parameters, unflattened(gradient, parameters), strict=True):
            yield f"the gradient of {names[parameter.data_ptr()]}", slope
