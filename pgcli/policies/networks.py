"""Networks: torch modules for learning, numpy for acting, on the same memory.

For a forward pass of a few rows, torch's overhead is ten times the arithmetic. Acting therefore uses numpy on views of
torch's parameters: there is one set of weights, which needs no synchronization.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.config.choices import ActivationName, ConvolutionsName
from pgcli.config.schema import PolicyConfig
from pgcli.errors import UsageError
from pgcli.policies.activations import ACTIVATION_OF, ACTIVATIONS

Array = NDArray[Any]
Forward = Callable[[Array], Array]
NATURE_SIDE = 36  # pixels: for smaller images, the nature network's last layer would have no output


def mlp(sizes: list[int], activation: ActivationName) -> nn.Sequential:
    """Build Linear layers of `sizes` with `activation` between; torch's default initialization."""
    layers: list[nn.Module] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")  # a policy without observations
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation].module()]
    return nn.Sequential(*layers[:-1])


def orthogonal(network: nn.Sequential, last_gain: float) -> None:
    """Set orthogonal weights of gain √2 (last layer: `last_gain`) and zero biases.

    Source: Saxe et al. (2014); the gains are those of Huang et al. (2022), detail 2.
    """
    layers = [module for module in network if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else math.sqrt(2))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def numpy_forward(*networks: nn.Sequential) -> Forward:
    """Return a numpy forward pass `[N, in] → [N, out]` on views of the parameters.

    With several networks of one architecture, it maps [networks, N, in] → [networks, N, out], on copies.
    """
    steps: list[Forward] = []
    for modules in zip(*networks, strict=True):
        if isinstance(modules[0], nn.Linear):
            weights = [module.weight.detach().numpy() for module in modules]
            biases = [module.bias.detach().numpy() for module in modules]
            if len(networks) == 1:
                steps.append(_linear(weights[0].T, biases[0]))
            else:
                steps.append(_linear(np.stack(weights).transpose(0, 2, 1), np.stack(biases)[:, None]))
        elif not isinstance(modules[0], nn.Identity):
            steps.append(_in_place(ACTIVATION_OF[type(modules[0])].value))

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


def _in_place(value: Callable[..., Array]) -> Forward:
    return lambda z: value(z, z)


class Chain:
    """Linear layers and activations with an explicit chain rule, in torch, on parameter views.

    Parameters are looked up once: a lookup through the module takes as long as a product of a few rows.
    `gradient_of` maps each parameter to the tensor that its gradient is written to.
    """

    def __init__(self, layers: Iterable[nn.Module], gradient_of: Mapping[Tensor, Tensor]) -> None:
        self._layers = [
            (layer.weight, layer.bias, gradient_of[layer.weight], gradient_of[layer.bias])
            if isinstance(layer, nn.Linear)
            else ACTIVATION_OF[type(layer)]
            for layer in layers
            if not isinstance(layer, nn.Identity)
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return x [M, in] and the output of each layer; an activation overwrites its input."""
        outputs = [x]
        for layer in self._layers:
            x = nn.functional.linear(x, *layer[:2]) if isinstance(layer, tuple) else layer.value_(x)
            outputs.append(x)
        return outputs

    def backward(self, outputs: Sequence[Tensor], slope: Tensor, *, inner: bool = False) -> Tensor:
        """Write ∂L/∂parameter for all layers, from ∂L/∂output [M, out] and the result of `forward`.

        Returns: ∂L/∂x, [M, in], if the chain is an `inner` part of a network.
        """
        for number, layer in reversed(list(enumerate(self._layers))):
            if isinstance(layer, tuple):
                weight, _, of_weight, of_bias = layer
                torch.mm(slope.t(), outputs[number], out=of_weight)
                torch.sum(slope, 0, out=of_bias)
                if number or inner:
                    slope = torch.mm(slope, weight)
            else:
                slope = layer.backward_(slope, outputs[number + 1])
        return slope


# --------------------------------------------------------------------------------------------------------------- images


def image_networks(shapes: Sequence[tuple[int, int, int]], config: PolicyConfig) -> nn.ModuleList:
    """Build one convolutional network for each image of an observation."""
    networks = [image_network(shape, config.image_network) for shape in shapes if config.image_network != "none"]
    if config.init == "orthogonal":
        for network in networks:
            orthogonal(network, last_gain=2**0.5)
    return nn.ModuleList(networks)


def image_network(shape: tuple[int, int, int], kind: ConvolutionsName) -> nn.Sequential:
    """Build a convolutional network, [M, channels, height, width] → [M, features].

    nature: Mnih et al. (2015), for sides of 36 pixels or more. small: Mnih et al. (2013) for such sides, at a third
    of the cost; two 3 × 3 layers for smaller images. auto: nature if it fits, else small.

    Raises: UsageError: for nature and a smaller image.
    """
    channels, *sides = shape
    fits = min(sides) >= NATURE_SIDE
    if kind == "nature" and not fits:
        raise UsageError(
            f"policy.image_network: nature needs sides of {NATURE_SIDE} pixels, but an image has {min(sides)}",
            "use `small`, or add the wrapper ResizeObservation",
        )
    if not fits:
        layers, features = [(16, 3, 1), (32, 3, 1)], 128  # channels, size, stride
    elif kind == "small":
        layers, features = [(16, 8, 4), (32, 4, 2)], 256
    else:
        layers, features = [(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512
    modules: list[nn.Module] = []
    for filters, size, stride in layers:
        modules += [nn.Conv2d(channels, filters, size, stride), nn.ReLU()]
        channels, sides = filters, [(side - size) // stride + 1 for side in sides]
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels * math.prod(sides), features), nn.ReLU())


def num_features(networks: nn.ModuleList) -> int:
    """Return the total number of features of the image networks."""
    return sum(
        layer.out_features for network in networks for layer in network.modules() if isinstance(layer, nn.Linear)
    )
