"""From a batch to a gradient: the losses of policy and value function, by autograd or in closed form."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, assert_never

import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.algorithm.descent import Batch, Step, Terms
from pgcli.algorithm.gradients.closed_form import ClosedForm
from pgcli.algorithm.optimizers import flattened, scheduled
from pgcli.config.schema import Config
from pgcli.errors import UsageError
from pgcli.estimators.objectives import (
    clip_loss,
    clip_slope,
    importance_sampling_loss,
    importance_sampling_slope,
    kl_estimates,
    kl_slopes,
    policy_gradient_loss,
    policy_gradient_slope,
    value_loss,
    value_slope,
)
from pgcli.policies.distributions import Scored
from pgcli.policies.policy import Policy
from pgcli.policies.value_function import ValueFunction

Array = NDArray[Any]
Part = Literal["policy", "value", "joint"]  # of what is learned; joint: both, over a trunk that they share


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function of tensors, forward and backward, once for all sizes of a batch."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # in this process: no helpers that could outlive it
    return torch.compile(function, dynamic=True)


@cache
def check_compiler(device: str) -> None:
    """Raise UsageError if torch.compile does not work here: tried once, which takes seconds."""
    try:
        compiled(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # torch has no one class for these
        reason = str(error).partition("\n")[0]
        raise UsageError(f"training.compile: torch.compile does not work here: {reason}", "leave it out") from error


@dataclass(frozen=True)
class Losses:
    """The losses that a config asks for; `progress` in [0, 1] is the share of the budget that is used."""

    config: Config
    policy: Policy
    value: ValueFunction | None

    @cached_property
    def _outputs(self) -> Callable[..., Tensor]:
        return self._compiled(self.policy.forward)

    @cached_property
    def _values(self) -> Callable[..., Tensor]:
        assert self.value is not None
        return self._compiled(self.value.forward)

    @cached_property
    def _trunk(self) -> Callable[..., Tensor]:
        return self._compiled(self.policy.trunk)

    def _compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return compiled(function) if self.config.training.compile else function

    @cached_property
    def closed_form(self) -> ClosedForm:
        """The gradients of plain networks."""
        return ClosedForm(self.policy, self.value)

    def policy_terms(self, batch: Batch, progress: float = 0.0, trunk: Tensor | None = None) -> Terms:
        """Compute the policy's loss on a batch; without behavior_log_probs, the policy itself is the one that acted."""
        outputs = self._outputs(batch.obs, batch.windows, trunk)
        log_probs = self.policy.distribution.log_probs(outputs, batch.actions)
        with torch.set_grad_enabled(self.entropy_coef(progress) > 0):
            entropy = self.policy.distribution.entropy(outputs)
        return self._policy_terms(log_probs, entropy, batch, progress)

    def _policy_terms(self, log_probs: Tensor, entropy: Tensor, batch: Batch, progress: float) -> Terms:
        algorithm, entropy = self.config.algorithm, entropy.mean()
        log_ratios = _log_ratios(log_probs, batch)
        policy_loss = self.policy_loss(log_probs, log_ratios, batch, progress)
        loss = policy_loss - self.entropy_coef(progress) * entropy
        terms = {"loss": loss, "policy_loss": policy_loss, "entropy": entropy}
        if algorithm.objective != "policy_gradient":
            kl = kl_estimates(log_ratios if algorithm.kl_coef > 0 else log_ratios.detach()).mean()
            ratios = log_ratios.detach().exp()
            terms |= {"approx_kl": kl, "ratio": ratios.mean(), "squared_ratio": ratios.square().mean()}
            if algorithm.kl_coef > 0:
                terms["loss"] = loss + algorithm.kl_coef * kl
            if algorithm.objective == "clip":
                clip_range = self.clip_range(progress)
                terms["clip_fraction"] = ((ratios - 1).abs() > clip_range).to(ratios.dtype).mean()
        return terms

    def policy_loss(self, log_probs: Tensor, log_ratios: Tensor, batch: Batch, progress: float) -> Tensor:
        """Compute the objective's loss from log π and log π - log μ, both [M], of the steps of a batch."""
        algorithm, advantages, weights = self.config.algorithm, batch.advantages, batch.weights
        match algorithm.objective:
            case "policy_gradient":
                return policy_gradient_loss(log_probs, advantages, weights)
            case "importance_sampling":
                bound, self_normalize = algorithm.importance_bound or math.inf, algorithm.self_normalize
                return importance_sampling_loss(log_probs, log_ratios, advantages, weights, bound, self_normalize)
            case "clip":
                return clip_loss(log_ratios, advantages, weights, self.clip_range(progress))
            case _:
                assert_never(algorithm.objective)

    def _policy_slope(self, log_probs: Array, batch: Batch, progress: float) -> Array:
        """Compute ∂loss/∂log π [M] of what `_policy_terms` computes: how much each score counts."""
        algorithm, advantages, weights = self.config.algorithm, batch.advantages.numpy(), batch.weights.numpy()
        log_ratios = log_probs - (log_probs if batch.behavior_log_probs is None else batch.behavior_log_probs.numpy())
        match algorithm.objective:
            case "policy_gradient":
                return policy_gradient_slope(advantages, weights)
            case "importance_sampling":
                bound, self_normalize = algorithm.importance_bound or math.inf, algorithm.self_normalize
                slope = importance_sampling_slope(log_ratios, advantages, weights, bound, self_normalize)
            case "clip":
                slope = clip_slope(log_ratios, advantages, weights, self.clip_range(progress))
            case _:
                assert_never(algorithm.objective)
        return slope + algorithm.kl_coef / len(batch) * kl_slopes(log_ratios) if algorithm.kl_coef > 0 else slope

    def entropy_coef(self, progress: float) -> float:
        """Give the weight of the entropy bonus at `progress`."""
        return scheduled(self.config.algorithm.entropy_coef, self.config.algorithm.entropy_coef_schedule, progress)

    def clip_range(self, progress: float) -> float:
        """Give ε at `progress`."""
        return scheduled(self.config.algorithm.clip_range, self.config.algorithm.clip_range_schedule, progress)

    def value_terms(self, batch: Batch, trunk: Tensor | None = None) -> Terms:
        """Compute the value function's loss on a batch."""
        assert self.value is not None
        return self._value_terms(self._values(self.policy, batch.obs, batch.windows, trunk), batch)

    def _value_slope(self, values: Array, batch: Batch) -> Array:
        """Compute ∂loss/∂V [M] of what `_value_terms` computes."""
        slope = value_slope(values, batch.returns.numpy(), batch.values.numpy(), self.config.value.clip_range)
        return self.config.algorithm.value_coef * slope

    def _value_terms(self, values: Tensor, batch: Batch) -> Terms:
        loss = value_loss(values, batch.returns, batch.values, self.config.value.clip_range)
        return {"loss": self.config.algorithm.value_coef * loss, "value_loss": loss}

    def joint_terms(self, batch: Batch, progress: float) -> Terms:
        """Add both losses, for a trunk that they share."""
        trunk = self._trunk(batch.obs, batch.windows)
        return _together(self.policy_terms(batch, progress, trunk), self.value_terms(batch, trunk))

    def step_of(self, batch: Batch, of: Part, progress: float) -> Step:
        """Give ∂loss/∂θ, [dim] in the order of the optimizer's parameters, and the terms of the loss if asked for.

        The gradient stays until the next is asked for.
        """
        if batch.read is None:
            return self._by_autograd(batch, of, progress)

        def slope(log_probs: Array) -> Array:
            return self._policy_slope(log_probs, batch, progress)

        def value_slope(values: Array) -> Array:
            return self._value_slope(values, batch)

        def policy_terms(scored: Scored) -> Terms:
            log_probs, entropy = torch.from_numpy(scored.log_probs), torch.from_numpy(scored.entropy())
            return self._policy_terms(log_probs, entropy, batch, progress)

        def value_terms(values: Array) -> Terms:
            return self._value_terms(torch.from_numpy(values), batch)

        entropy_slope = -self.entropy_coef(progress) / len(batch)
        match of:
            case "policy":
                scored, gradient = self.closed_form.of_policy(batch, slope, entropy_slope)
                return gradient, lambda: policy_terms(scored)
            case "value":
                values, gradient = self.closed_form.of_value(batch, value_slope)
                return gradient, lambda: value_terms(values)
            case "joint":
                scored, values, gradient = self.closed_form.of_both(batch, slope, entropy_slope, value_slope)
                return gradient, lambda: _together(policy_terms(scored), value_terms(values))
            case _:
                assert_never(of)

    @torch.enable_grad()
    def _by_autograd(self, batch: Batch, of: Part, progress: float) -> Step:
        policy, value = list(self.policy.parameters()), [] if self.value is None else list(self.value.parameters())
        match of:
            case "policy":
                terms, parameters = self.policy_terms(batch, progress), policy
            case "value":
                terms, parameters = self.value_terms(batch), value
            case "joint":
                terms, parameters = self.joint_terms(batch, progress), policy + value
            case _:
                assert_never(of)
        return flattened(torch.autograd.grad(terms["loss"], parameters)), lambda: terms


def _together(policy: Terms, value: Terms) -> Terms:
    return policy | value | {"loss": policy["loss"] + value["loss"]}


def _log_ratios(log_probs: Tensor, batch: Batch) -> Tensor:
    """Compute log π - log μ; 0 for data without behavior_log_probs, which are the policy's own."""
    return log_probs - (log_probs.detach() if batch.behavior_log_probs is None else batch.behavior_log_probs)
