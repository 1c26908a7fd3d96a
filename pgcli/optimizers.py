"""Optimizers as one function from gradients to steps.

The first use of `torch.optim` imports torch._dynamo and sympy, which takes as long as torch itself. These are the
same rules without it; a test holds them equal to torch.optim's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["adam", "sgd", "rmsprop"]
Schedule = Literal["constant", "linear", "cosine"]


def scheduled(value: float, schedule: Schedule, progress: float) -> float:
    """Give `value` at `progress` in [0, 1], the share of the budget that is used; linear and cosine end at 0."""
    match schedule:
        case "constant":
            return value
        case "linear":
            return value * (1 - progress)
        case "cosine":
            return value * (1 + math.cos(math.pi * progress)) / 2


class Optimizer:
    """Gradient descent on `parameters`, in place, by one of three rules with torch.optim's default constants.

    sgd: θ ← θ - α g. rmsprop: v ← 0.99 v + 0.01 g²; θ ← θ - α g / (√v + 1e-8) (Hinton 2012).
    adam: β = (0.9, 0.999), ε = 1e-8 (Kingma & Ba 2015, algorithm 1).
    """

    def __init__(self, rule: Rule, parameters: Sequence[Tensor]) -> None:
        self.rule = rule
        self.parameters = list(parameters)
        self.moments: dict[str, list[Tensor]] = {
            name: [torch.zeros_like(parameter) for parameter in self.parameters]
            for name in {"adam": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",), "sgd": ()}[rule]
        }
        self.steps = torch.zeros(())  # of adam

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Move the parameters by one step against `gradients`."""
        match self.rule:
            case "sgd":
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=learning_rate)
            case "rmsprop":
                for parameter, gradient, v in zip(self.parameters, gradients, self.moments["square_avg"], strict=True):
                    v.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
                    parameter.addcdiv_(gradient, v.sqrt().add_(1e-8), value=-learning_rate)
            case "adam":
                self.steps += 1
                torch._fused_adam_(
                    self.parameters,
                    list(gradients),
                    self.moments["exp_avg"],
                    self.moments["exp_avg_sq"],
                    [],
                    [self.steps] * len(self.parameters),
                    lr=learning_rate,
                    beta1=0.9,
                    beta2=0.999,
                    weight_decay=0.0,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                )

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Give the optimizer's memory as tensors named after the parameters' `names`; they share its memory."""
        tensors = {
            f"{name}.{moment}": tensor
            for moment, values in self.moments.items()
            for name, tensor in zip(names, values, strict=True)
        }
        return tensors | ({"step": self.steps} if self.rule == "adam" else {})
