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


class HiddenLayer(nn.Module):
    """y = f(norm(W x + b)), plus x if it is residual and the sizes are equal.

    Sources: Ba et al. (2016) for LayerNorm, He et al. (2016) for residual layers.
    """

    def __init__(self, fan_in: int, fan_out: int, activation: ActivationName, layer_norm: bool, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)
        self.norm = nn.LayerNorm(fan_out) if layer_norm else nn.Identity()
        self.activation = ACTIVATIONS[activation].module()
        self.residual = residual and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        """Compute y [N, fan_out] from x [N, fan_in]."""
        y: Tensor = self.activation(self.norm(self.linear(x)))
        return x + y if self.residual else y


def mlp(
    sizes: list[int], activation: ActivationName, layer_norm: bool = False, residual: bool = False
) -> nn.Sequential:
    """Build Linear layers of `sizes` with `activation` between; torch's default initialization."""
    layers: list[nn.Module] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")  # a policy without observations
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes), 2):
            if (layer_norm or residual) and number < len(sizes):
                layers.append(HiddenLayer(fan_in, fan_out, activation, layer_norm, residual))
            else:
                layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation].module()]
    return nn.Sequential(*layers[:-1])


def is_known(module: nn.Module) -> bool:
    """Return whether pgcli has formulas for a module: a Linear layer with a bias, or an activation.

    A module of the user may be a subclass, or have another α, which torch alone computes.
    """
    if type(module) is nn.Linear:
        return {name for name, _ in module.named_parameters()} == {"weight", "bias"}
    activation = ACTIVATION_OF.get(type(module))
    return activation is not None and repr(module) == repr(activation.module())


def is_plain(network: nn.Sequential) -> bool:
    """Return whether a network consists of Linear layers and activations, as the adapters of users need."""
    return all(map(is_known, network))


def has_chain(network: nn.Sequential) -> bool:
    """Return whether the chain rule of a network is written out, in `Chain`."""
    return is_plain(network) and all(
        isinstance(module, nn.Linear) or ACTIVATION_OF[type(module)].is_monotone for module in network
    )


def orthogonal(network: nn.Sequential, last_gain: float) -> None:
    """Set orthogonal weights of gain √2 (last layer: `last_gain`) and zero biases.

    Source: Saxe et al. (2014); the gains are those of Huang et al. (2022), detail 2.
    """
    own = [module.linear if isinstance(module, HiddenLayer) else module for module in network]
    layers = [module for module in own if isinstance(module, nn.Linear | nn.Conv2d)]  # none of the user's network
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else math.sqrt(2))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def numpy_forward(*networks: nn.Sequential) -> Forward:
    """Return a numpy forward pass `[N, in] → [N, out]` on views of the parameters.

    With several plain networks of one architecture, it maps [networks, N, in] → [networks, N, out], on copies.
    """
    steps: list[Forward] = []
    for modules in zip(*networks, strict=True):
        module = modules[0]
        if not is_known(module):
            assert len(networks) == 1, "only plain networks act together"
            steps.append(_through_torch(module))
        elif isinstance(module, nn.Linear):
            weights = [one.weight.detach().numpy() for one in modules]
            biases = [one.bias.detach().numpy() for one in modules]
            if len(networks) == 1:
                steps.append(_linear(weights[0].T, biases[0]))
            else:
                steps.append(_linear(np.stack(weights).transpose(0, 2, 1), np.stack(biases)[:, None]))
        elif not isinstance(module, nn.Identity):
            steps.append(_in_place(ACTIVATION_OF[type(module)].value))

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


def _through_torch(module: nn.Module) -> Forward:
    @torch.no_grad()
    def apply(x: Array) -> Array:
        found: Array = module(torch.from_numpy(x)).numpy()
        return found

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

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the input of each layer and the last output; an activation overwrites its input."""
        inputs = []
        for layer in self._layers:
            inputs.append(x)
            x = nn.functional.linear(x, *layer[:2]) if isinstance(layer, tuple) else layer.value_(x)
        return inputs, x

    def tangent(self, inputs: list[Tensor], along: Mapping[Tensor, Tensor]) -> Tensor:
        """Return the derivative of the output as the parameters move along `along`, [M, out].

        Args: inputs: of `forward`; they are not changed.
        """
        moved = torch.zeros_like(inputs[0])
        for layer, x in zip(self._layers, inputs, strict=True):
            if isinstance(layer, tuple):
                weight, bias, *_ = layer
                own = nn.functional.linear(x, along[weight], along[bias])
                moved = own if x is inputs[0] else torch.addmm(own, moved, weight.t())
            else:
                moved = layer.backward_(moved, x)  # elementwise, so forward and backward are the same product
        return moved

    def backward(self, inputs: list[Tensor], slope: Tensor, *, inner: bool = False) -> Tensor:
        """Write ∂L/∂parameter for all layers, from ∂L/∂output [M, out] and the `inputs` of `forward`.

        Empties `inputs`, so that slopes reuse their memory: it is still in the processor's cache.
        Returns: ∂L/∂x, [M, in], if the chain is an `inner` part of a network.
        """
        for layer in reversed(self._layers):
            x = inputs.pop()
            if isinstance(layer, tuple):
                weight, _, of_weight, of_bias = layer
                if x.shape[1] < slope.shape[1]:  # a product whose right matrix is narrow takes up to six times as long
                    of_weight.copy_(torch.mm(x.t(), slope).t())
                else:
                    torch.mm(slope.t(), x, out=of_weight)
                torch.sum(slope, 0, out=of_bias)
                if inputs or inner:
                    slope = torch.mm(slope, weight)
            else:
                slope = layer.backward_(slope, x)
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
