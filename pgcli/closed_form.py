"""Gradients in closed form: the chain rule written out for plain networks, without a graph.

Autograd takes several times as long for a minibatch of 64 as the arithmetic does. For policies of plain layers with a
distribution that knows its own gradient, these are the same gradients; a test holds them equal for every objective,
distribution and activation.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pgcli.descent import Batch
from pgcli.policies.distributions import Scored
from pgcli.policies.networks import activations, backward
from pgcli.policies.policy import FORBIDDEN, Policy, ValueFunction

Slope = Callable[[Tensor], Tensor]  # log_probs or V [M] → ∂loss/∂ of each, [M]


def is_plain(policy: Policy, value: ValueFunction | None) -> bool:
    """Say whether all of the networks, and the distribution, have a closed form here."""
    images = len(policy.images) or (value is not None and len(value.images))
    return policy.memory is None and not images and policy.distribution.has_closed_form


def policy_gradient(policy: Policy, batch: Batch, slope: Slope, entropy_slope: float) -> tuple[Scored, list[Tensor]]:
    """Give what the policy says of a batch, and ∂loss/∂θ in the order of its parameters.

    `entropy_slope` is ∂loss/∂entropy of one step.
    """
    layers = list(policy.network)
    outputs = activations(layers, _read(batch))
    scored, onward, own = _head(policy, batch, slope, entropy_slope, outputs[-1])
    return scored, own + backward(layers, outputs, onward)[0]


def value_gradient(value: ValueFunction, batch: Batch, slope: Slope) -> tuple[Tensor, list[Tensor]]:
    """Give V [M] of a batch, and ∂loss/∂θ in the order of the value function's parameters."""
    layers = list(value.network)
    outputs = activations(layers, _read(batch))
    values = outputs[-1].squeeze(1)
    return values, backward(layers, outputs, slope(values)[:, None])[0]


def joint_gradient(
    policy: Policy, value: ValueFunction, batch: Batch, slope: Slope, entropy_slope: float, value_slope: Slope
) -> tuple[Scored, Tensor, list[Tensor]]:
    """Give the same of both over a trunk that they share, the policy's parameters before the value function's."""
    (*trunk, last), head = policy.network, list(value.network)
    outputs = activations(trunk, _read(batch))
    actions, estimates = activations([last], outputs[-1]), activations(head, outputs[-1])
    values = estimates[-1].squeeze(1)
    scored, onward, own = _head(policy, batch, slope, entropy_slope, actions[-1])
    of_last, before_last = backward([last], actions, onward, inner=True)
    of_head, before_head = backward(head, estimates, value_slope(values)[:, None], inner=True)
    of_trunk, _ = backward(trunk, outputs, before_last + before_head)
    return scored, values, [*own, *of_trunk, *of_last, *of_head]


def _read(batch: Batch) -> Tensor:
    assert batch.read is not None
    return batch.read


def _head(
    policy: Policy, batch: Batch, slope: Slope, entropy_slope: float, outputs: Tensor
) -> tuple[Scored, Tensor, list[Tensor]]:
    if policy.masked:  # what is forbidden has probability 0, and so no gradient
        outputs = outputs.masked_fill(~policy.encoder.permitted(batch.obs), FORBIDDEN)
    scored = policy.distribution.scored(outputs, batch.actions)
    return scored, *scored.backward(slope(scored.log_probs), entropy_slope)
