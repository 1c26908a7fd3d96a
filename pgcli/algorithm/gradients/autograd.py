"""Gradients by autograd, optionally with torch.compile: for images, recurrent policies, GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import assert_never

import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.losses import Losses, PartName, Step, Terms, joint_terms
from pgcli.algorithm.optimizers import flattened
from pgcli.errors import UsageError
from pgcli.policies.policy import Policy
from pgcli.policies.value_function import ValueFunction


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function of tensors, forward and backward, once for all batch sizes."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no helper processes, which could outlive this one
    return torch.compile(function, dynamic=True)


@cache
def check_compiler(device: str) -> None:
    """Raise UsageError if torch.compile does not work here. The first call takes seconds."""
    try:
        compiled(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # torch has no common base class for these
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"training.compile: torch.compile does not work here: {reason}", "leave training.compile out"
        ) from error


class Autograd:
    """The gradient of any policy and value function."""

    def __init__(self, policy: Policy, value: ValueFunction | None, losses: Losses, *, compile: bool = False) -> None:
        self._policy, self._losses, self._is_shared = policy, losses, value is not None and value.shared
        self._parameters = list(policy.parameters()), [] if value is None else list(value.parameters())
        networks: list[Callable[..., Tensor]] = [policy.forward, policy.trunk]
        if value is not None:
            networks.append(value.forward)
        self._outputs, self._trunk, *self._values = [compiled(one) if compile else one for one in networks]

    def inputs(self, obs: Tensor) -> Tensor:
        """Return an empty tensor [M, 0]: networks read the observations directly."""
        return obs.new_empty(len(obs), 0)

    @torch.enable_grad()
    def __call__(self, batch: Batch, part: PartName, progress: float) -> Step:
        """Return ∂loss/∂θ [dim] and the terms of the loss."""
        policy, value = self._parameters
        match part:
            case "policy":
                terms, parameters = self.policy_terms(batch, progress), policy
            case "value":
                terms, parameters = self.value_terms(batch), value
            case "joint":
                trunk = self._trunk(batch.obs, batch.sequences) if self._is_shared else None
                terms = joint_terms(self.policy_terms(batch, progress, trunk), self.value_terms(batch, trunk))
                parameters = policy + value
            case _:
                assert_never(part)
        return flattened(torch.autograd.grad(terms["loss"], parameters)), lambda: terms

    def policy_terms(self, batch: Batch, progress: float = 0.0, trunk: Tensor | None = None) -> Terms:
        """Compute the policy's loss; `trunk` is the last hidden layer [M, features], if known."""
        outputs = self._outputs(batch.obs, batch.sequences, trunk)
        log_probs = self._policy.distribution.log_probs(outputs, batch.actions)
        with torch.set_grad_enabled(self._losses.entropy_coef(progress) > 0):
            entropy = self._policy.distribution.entropy(outputs)
        return self._losses.policy_terms(log_probs, entropy, batch, progress)

    def value_terms(self, batch: Batch, trunk: Tensor | None = None) -> Terms:
        """Compute the value function's loss; `trunk` as in `policy_terms`."""
        (values,) = self._values
        return self._losses.value_terms(values(self._policy, batch.obs, batch.sequences, trunk), batch)
