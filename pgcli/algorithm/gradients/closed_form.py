"""Gradients in closed form: the chain rule written out for plain networks, without a graph.

Autograd takes several times as long for a minibatch of 64 as the arithmetic does. For policies of plain layers with a
distribution that knows its own gradient, these are the same gradients; a test holds them equal for every objective,
distribution and activation. Products are torch's; what is done with one number or a few per step is numpy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.algorithm.descent import Batch
from pgcli.algorithm.optimizers import flattened, unflattened
from pgcli.policies.distributions import Scored
from pgcli.policies.networks import Chain
from pgcli.policies.policy import FORBIDDEN, Policy
from pgcli.policies.value_function import ValueFunction

Array = NDArray[Any]
Slope = Callable[[Array], Array]  # log_probs or V [M] → ∂loss/∂ of each, [M]


def is_plain(policy: Policy, value: ValueFunction | None) -> bool:
    """Say whether all of the networks, and the distribution, have a closed form here."""
    images = len(policy.images) or (value is not None and len(value.images))
    return policy.device.type == "cpu" and policy.memory is None and not images and policy.distribution.has_closed_form


class ClosedForm:
    """The gradients of a plain policy, and of the value function beside it or on its trunk.

    Each is a vector [dim] in the order of the parameters, those of the policy before those of the value function; it
    stays until the next is computed.
    """

    def __init__(self, policy: Policy, value: ValueFunction | None) -> None:
        self._policy = policy
        own, learned = list(policy.parameters()), [] if value is None else list(value.parameters())
        parameters: list[Tensor] = [*own, *learned]
        self._gradient = torch.zeros_like(flattened(parameters), requires_grad=False)
        sizes = [sum(parameter.numel() for parameter in part) for part in (own, learned)]
        self._of_policy, self._of_value = torch.split(self._gradient, sizes)
        gradient_of = dict(zip(parameters, unflattened(self._gradient, parameters), strict=True))
        self._of_distribution = [gradient_of[parameter] for parameter in policy.distribution.parameters()]
        *hidden, last = policy.network
        self._trunk, self._last = Chain(hidden, gradient_of), Chain([last], gradient_of)
        self._network = Chain([*hidden, last], gradient_of)
        self._value = None if value is None else Chain(list(value.network), gradient_of)

    def of_policy(self, batch: Batch, slope: Slope, entropy_slope: float) -> tuple[Scored, Tensor]:
        """Give what the policy says of a batch, and ∂loss/∂θ; `entropy_slope` is ∂loss/∂entropy of one step."""
        outputs = self._network.forward(_read(batch))
        scored, onward = self._head(batch, slope, entropy_slope, outputs[-1])
        self._network.backward(outputs, onward)
        return scored, self._of_policy

    def of_value(self, batch: Batch, slope: Slope) -> tuple[Array, Tensor]:
        """Give V [M] of a batch, and ∂loss/∂θ of the value function."""
        assert self._value is not None
        outputs = self._value.forward(_read(batch))
        values, onward = _ahead(outputs[-1], slope)
        self._value.backward(outputs, onward)
        return values, self._of_value

    def of_both(
        self, batch: Batch, slope: Slope, entropy_slope: float, value_slope: Slope
    ) -> tuple[Scored, Array, Tensor]:
        """Give the same of both over a trunk that they share."""
        assert self._value is not None
        outputs = self._trunk.forward(_read(batch))
        actions, estimates = self._last.forward(outputs[-1]), self._value.forward(outputs[-1])
        scored, onward = self._head(batch, slope, entropy_slope, actions[-1])
        values, ahead = _ahead(estimates[-1], value_slope)
        before_last = self._last.backward(actions, onward, inner=True)
        before_value = self._value.backward(estimates, ahead, inner=True)
        self._trunk.backward(outputs, before_last + before_value)
        return scored, values, self._gradient

    def _head(self, batch: Batch, slope: Slope, entropy_slope: float, outputs: Tensor) -> tuple[Scored, Tensor]:
        if self._policy.masked:  # what is forbidden has probability 0, and so no gradient
            outputs = outputs.masked_fill(~self._policy.encoder.permitted(batch.obs), FORBIDDEN)
        scored = self._policy.distribution.scored(outputs.numpy(), batch.actions.numpy())
        onward, own = scored.backward(slope(scored.log_probs), entropy_slope)
        for gradient, one in zip(self._of_distribution, own, strict=True):
            gradient.copy_(torch.from_numpy(one))
        return scored, torch.from_numpy(onward)


def _ahead(outputs: Tensor, slope: Slope) -> tuple[Array, Tensor]:
    values = outputs.numpy()[:, 0]
    return values, torch.from_numpy(slope(values)[:, None])


def _read(batch: Batch) -> Tensor:
    assert batch.read is not None
    return batch.read
