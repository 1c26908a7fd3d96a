"""Gradients in closed form: the chain rule written out for plain networks, without a graph.

For a minibatch of 64, autograd takes several times as long as the arithmetic. This module computes the same gradients
for plain layers and distributions with closed-form gradients; a test compares all objectives, distributions and
activations with autograd. Matrix products run in torch; operations on a few numbers per step run in numpy.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.losses import Losses, PartName, Step, Terms, joint_terms
from pgcli.algorithm.optimizers import flattened, unflattened
from pgcli.policies.distributions import Scored
from pgcli.policies.networks import Chain, has_chain
from pgcli.policies.policy import FORBIDDEN, Policy
from pgcli.policies.value_function import ValueFunction

Array = NDArray[Any]


def has_closed_form(policy: Policy, value: ValueFunction | None) -> bool:
    """Return whether all networks and the distribution have a closed form."""
    images = len(policy.images) or (value is not None and len(value.images))
    networks = [policy.network, *([] if value is None else [value.network])]
    plain = policy.memory is None and not images and all(map(has_chain, networks))
    return policy.device.type == "cpu" and plain and policy.distribution.has_closed_form


class ClosedForm:
    """The gradient of a plain policy and its value function, with or without a shared trunk.

    All gradients share one vector: the policy's parameters, then the value function's.
    """

    def __init__(self, policy: Policy, value: ValueFunction | None, losses: Losses) -> None:
        self._policy, self._losses, self._is_shared = policy, losses, value is not None and value.shared
        first, second = list(policy.parameters()), [] if value is None else list(value.parameters())
        parameters: list[Tensor] = [*first, *second]
        self._gradient = torch.zeros_like(flattened(parameters), requires_grad=False)
        sizes = [sum(parameter.numel() for parameter in part) for part in (first, second)]
        self._of_policy, self._of_value = torch.split(self._gradient, sizes)
        gradient_of = dict(zip(parameters, unflattened(self._gradient, parameters), strict=True))
        self._of_distribution = [gradient_of[parameter] for parameter in policy.distribution.parameters()]
        *hidden, last = policy.network
        self._trunk, self._head = Chain(hidden, gradient_of), Chain([last], gradient_of)
        self._network = Chain([*hidden, last], gradient_of)
        self._value_network = Chain([] if value is None else list(value.network), gradient_of)

    def inputs(self, obs: Tensor) -> Tensor:
        """Return observations [M, …] encoded and normalized, [M, size]."""
        return self._policy.encode(obs)

    def __call__(self, batch: Batch, part: PartName, progress: float) -> Step:
        """Return ∂loss/∂θ [dim] and the terms of the loss."""
        match part:
            case "policy":
                inputs, outputs = self._network.forward(batch.inputs)
                scored, slope = self._policy_slope(batch, outputs, progress)
                self._network.backward(inputs, slope)
                return self._of_policy, lambda: self._policy_terms(scored, batch, progress)
            case "value":
                inputs, values = self._value_network.forward(batch.inputs)
                self._value_network.backward(inputs, self._value_slope(batch, values))
                return self._of_value, lambda: self._losses.value_terms(values[:, 0], batch)
            case "joint" if not self._is_shared:
                _, policy_terms = self(batch, "policy", progress)
                _, value_terms = self(batch, "value", progress)
                return self._gradient, lambda: joint_terms(policy_terms(), value_terms())
            case "joint":
                inputs, features = self._trunk.forward(batch.inputs)
                of_actions, outputs = self._head.forward(features)
                of_values, values = self._value_network.forward(features)
                scored, slope = self._policy_slope(batch, outputs, progress)
                from_policy = self._head.backward(of_actions, slope, inner=True)
                from_value = self._value_network.backward(of_values, self._value_slope(batch, values), inner=True)
                self._trunk.backward(inputs, from_policy + from_value)
                return self._gradient, lambda: joint_terms(
                    self._policy_terms(scored, batch, progress), self._losses.value_terms(values[:, 0], batch)
                )
            case _:
                assert_never(part)

    def _policy_slope(self, batch: Batch, outputs: Tensor, progress: float) -> tuple[Scored, Tensor]:
        """Return the distribution's scores for the outputs [M, size], and ∂loss/∂outputs."""
        if self._policy.masked:  # a forbidden action has probability 0, so no gradient
            outputs = outputs.masked_fill(~self._policy.encoder.permitted(batch.obs), FORBIDDEN)
        scored = self._policy.distribution.scored(outputs.numpy(), batch.actions.numpy())
        slope, own = scored.backward(
            self._losses.policy_slope(scored.log_probs, batch, progress),
            -self._losses.entropy_coef(progress) / len(batch),
        )
        for gradient, one in zip(self._of_distribution, own, strict=True):
            gradient.copy_(torch.from_numpy(one))
        return scored, torch.from_numpy(slope)

    def _value_slope(self, batch: Batch, outputs: Tensor) -> Tensor:
        """Return ∂loss/∂V, [M, 1]."""
        return torch.from_numpy(self._losses.value_slope(outputs.numpy()[:, 0], batch)[:, None])

    def _policy_terms(self, scored: Scored, batch: Batch, progress: float) -> Terms:
        log_probs, entropy = torch.from_numpy(scored.log_probs), torch.from_numpy(scored.entropy())
        return self._losses.policy_terms(log_probs, entropy, batch, progress)
