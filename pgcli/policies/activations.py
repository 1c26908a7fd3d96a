"""The activation functions: one table of values, derivatives and names for all modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.config.choices import ActivationName

Array = NDArray[Any]


@dataclass(frozen=True)
class Activation:
    """An activation y = f(z), in the forms that acting, learning and exporting need."""

    module: type[nn.Module]
    operator: str  # ONNX's name for it
    value: Callable[..., Array]  # z → y; called with (z, out), may write to out
    derivative: Callable[[Array], Array]  # z → dy/dz
    value_: Callable[[Tensor], Tensor]  # z → y, in place
    backward_: Callable[[Tensor, Tensor], Tensor]  # ∂L/∂y, y → ∂L/∂z, in place of ∂L/∂y


def _elu(z: Array, out: Array | None = None) -> Array:
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


ACTIVATIONS: dict[ActivationName, Activation] = {
    "tanh": Activation(
        module=nn.Tanh,
        operator="Tanh",
        value=np.tanh,
        derivative=lambda z: 1 - np.tanh(z) ** 2,
        value_=torch.tanh_,
        backward_=lambda slope, y: torch.ops.aten.tanh_backward.grad_input(slope, y, grad_input=slope),
    ),
    "relu": Activation(
        module=nn.ReLU,
        operator="Relu",
        value=lambda z, out=None: np.maximum(z, 0, out=out),
        derivative=lambda z: (z > 0).astype(z.dtype),
        value_=torch.relu_,
        backward_=lambda slope, y: slope.mul_(y > 0),
    ),
    "elu": Activation(
        module=nn.ELU,
        operator="Elu",
        value=_elu,
        derivative=lambda z: np.exp(np.minimum(z, 0)),
        value_=partial(nn.functional.elu, inplace=True),
        backward_=lambda slope, y: slope.mul_(torch.where(y > 0, 1, y + 1)),
    ),
    "identity": Activation(
        module=nn.Identity,
        operator="Identity",
        value=lambda z, out=None: z,
        derivative=np.ones_like,
        value_=lambda z: z,
        backward_=lambda slope, y: slope,
    ),
}
ACTIVATION_OF = {activation.module: activation for activation in ACTIVATIONS.values()}
