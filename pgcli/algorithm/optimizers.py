"""Optimizers as one function from gradients to steps.

The first use of `torch.optim` imports torch._dynamo and sympy, which takes as long as importing torch. These are the
same rules without that import; a test compares them with torch.optim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.config.choices import OptimizerName, Schedule
from pgcli.config.schema import OptimizerConfig
from pgcli.records import Update

Bounds = Sequence[tuple[Tensor, float, float]]
_NOTHING = Update()


def scheduled(value: float, schedule: Schedule, progress: float) -> float:
    """Return `value` at `progress` in [0, 1]; linear and cosine end at 0."""
    match schedule:
        case "constant":
            return value
        case "linear":
            return value * (1 - progress)
        case "cosine":
            return value * (1 + math.cos(math.pi * progress)) / 2


class Optimizer:
    """Gradient descent on `parameters`, in place, with the constants of `settings`.

    The parameters become views of one vector, so that a rule is a few operations on this vector.

    sgd: m ← μ m + g; θ ← θ - α m, with momentum μ. rmsprop: v ← 0.99 v + 0.01 g²; θ ← θ - α g / (√v + ε) (Hinton
    2012). adam: Kingma & Ba (2015), algorithm 1; with weight decay λ, first θ ← θ - α λ θ (Loshchilov & Hutter 2019).

    Args: bounds: parameters that each step sets to the nearer of two bounds, low and high, if they are beyond it.
    """

    def __init__(
        self,
        rule: OptimizerName,
        parameters: Sequence[Tensor],
        settings: OptimizerConfig | None = None,
        bounds: Bounds = (),
    ) -> None:
        self.rule, self.settings, self._bounds = rule, settings or OptimizerConfig(), bounds
        self.parameters = list(parameters)
        self._vector = self._gathered()
        names: dict[OptimizerName, tuple[str, ...]] = {"adam": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",)}
        if self.settings.momentum:
            names["sgd"] = ("momentum_buffer",)
        self.moments = {name: torch.zeros_like(self._vector) for name in names.get(rule, ())}
        self._moments = {name: unflattened(moment, self.parameters) for name, moment in self.moments.items()}
        self.steps = torch.zeros((), device=self._vector.device)  # of adam

    @property
    def memory(self) -> list[Tensor]:
        """All tensors that a step changes; the parameters are one vector."""
        if self.parameters[0].data_ptr() != self._vector.data_ptr():  # other code has replaced their memory
            self._vector = self._gathered()
        return [self._vector, *self.moments.values(), self.steps]

    def step(self, gradient: Tensor, learning_rate: float, batch: Batch | None = None, progress: float = 0.0) -> Update:
        """Take one step against `gradient`, [dim] in the order of the parameters, and return its own metrics.

        Args: batch, progress: what the gradient was computed from, for a step that depends on more than the gradient.
        """
        vector, *moments, steps = self.memory
        settings = self.settings
        match self.rule:
            case "sgd":
                if moments:
                    gradient = moments[0].mul_(settings.momentum).add_(gradient)
                vector.sub_(gradient, alpha=learning_rate)
            case "rmsprop":
                v = moments[0].mul_(0.99).addcmul_(gradient, gradient, value=0.01)
                vector.addcdiv_(gradient, v.sqrt().add_(settings.epsilon), value=-learning_rate)
            case "adam":
                steps += 1
                mean, mean_square = moments
                beta1, beta2 = settings.betas
                if settings.weight_decay:
                    vector.mul_(1 - learning_rate * settings.weight_decay)
                torch._fused_adam_(
                    [vector],
                    [gradient],
                    [mean],
                    [mean_square],
                    [],
                    [steps],
                    lr=learning_rate,
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=0.0,
                    eps=settings.epsilon,
                    amsgrad=False,
                    maximize=False,
                )
            case "natural":
                raise AssertionError("a step of NaturalGradient")
        self.clamp_()
        return _NOTHING

    def clamp_(self) -> None:
        """Set the parameters beyond a bound to it."""
        for parameter, low, high in self._bounds:
            parameter.data.clamp_(low, high)

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the optimizer's state as tensors named after the parameters (views, not copies)."""
        tensors = {
            f"{name}.{moment}": tensor
            for moment, parts in self._moments.items()
            for name, tensor in zip(names, parts, strict=True)
        }
        return tensors | ({"step": self.steps} if self.rule == "adam" else {})

    @torch.no_grad()
    def _gathered(self) -> Tensor:
        vector = flattened(self.parameters)
        for parameter, part in zip(self.parameters, unflattened(vector, self.parameters), strict=True):
            parameter.data = part
        return vector


def clip_grad_norm_(gradient: Tensor, limit: float | None) -> Tensor:
    """Scale a gradient [dim] in place to a norm of at most `limit`; return the original norm."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if limit is not None:
        if not gradient.is_cpu:  # without synchronizing the device
            gradient *= (limit / norm).clamp(max=1)
        elif (found := float(norm)) > limit:
            gradient *= limit / found
    return norm


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate flattened tensors, [dim]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflattened(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a vector [dim] with the shapes of the tensors `like`."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
