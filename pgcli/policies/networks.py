"""Networks, each in torch for the update and in numpy for acting, on the same memory.

A forward pass of a few rows costs torch ten times what the arithmetic does; while acting, numpy computes it on
views of torch's own parameters, so there is one set of weights and nothing to keep in step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.errors import EnvironmentFailure

Activation = Literal["tanh", "relu", "elu", "identity"]
Array = NDArray[Any]
Forward = Callable[[Array], Array]

_MODULES: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


def _relu(x: Array) -> Array:
    return np.maximum(x, 0, out=x)


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _tanh(x: Array) -> Array:
    return np.tanh(x, out=x)


_FUNCTIONS: dict[type[nn.Module], Forward] = {nn.Tanh: _tanh, nn.ReLU: _relu, nn.ELU: _elu}


def mlp(sizes: list[int], activation: Activation) -> nn.Sequential:
    """Build Linear layers of `sizes` with `activation` between them, with torch's own start: uniform in ±1/√fan_in."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), _MODULES[activation]()]
    return nn.Sequential(*layers[:-1])


def orthogonal(network: nn.Sequential, last_gain: float) -> None:
    """Start from orthogonal weights of gain √2, the last layer's of `last_gain`, and no biases.

    Source: Saxe et al. (2014); the gains are those of Huang et al. (2022), detail 2.
    """
    layers = [module for module in network if isinstance(module, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)


def numpy_forward(network: nn.Sequential) -> Forward:
    """Give the forward pass of `network` in numpy, on its parameters' own memory: `[N, in] → [N, out]`."""
    steps: list[Forward] = []
    for module in network:
        if isinstance(module, nn.Linear):
            steps.append(_linear(module.weight.detach().numpy().T, module.bias.detach().numpy()))
        elif not isinstance(module, nn.Identity):
            steps.append(_FUNCTIONS[type(module)])

    def forward(x: Array) -> Array:
        for step in steps:
            x = step(x)
        return x

    return forward


def _linear(weight: Array, bias: Array) -> Forward:
    def apply(x: Array) -> Array:
        product = x @ weight
        product += bias
        return product

    return apply


class Encoder:
    """Turns observations as the environment gives them into vectors of `size` numbers.

    Box: flattened. Discrete: one-hot.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        match space:
            case spaces.Box():
                self.size, self.start = math.prod(space.shape), None
            case spaces.Discrete():
                self.size, self.start = int(space.n), int(space.start)
            case _:
                raise EnvironmentFailure(
                    f"observation space {space} is not supported; Box and Discrete are",
                    "the wrapper `FlattenObservation` under env.wrappers makes a Box of many spaces",
                )

    def in_torch(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode `[M, …]` to `[M, size]`."""
        if self.start is None:
            return obs.reshape(len(obs), self.size).to(dtype)
        return nn.functional.one_hot(obs.long() - self.start, self.size).to(dtype)

    def in_numpy(self, obs: Array) -> Array:
        """Encode `[N, …]` to `[N, size]`."""
        if self.start is None:
            return obs.reshape(len(obs), self.size).astype(np.float32, copy=False)
        encoded = np.zeros((len(obs), self.size), np.float32)
        encoded[np.arange(len(obs)), obs - self.start] = 1
        return encoded
