"""The activation functions: one table of values, derivatives and names for all modules."""

from __future__ import annotations

import math
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
    is_monotone: bool = True  # else dy/dz does not follow from y, and learning uses autograd


class _NumpyTanh(torch.autograd.Function):
    """y = tanh z by numpy, for all kinds of derivatives: dy/dz = 1 - y²."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        y = torch.empty_like(z)
        np.tanh(z.detach().numpy(), out=y.numpy())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        y: Tensor = ctx.saved_tensors[0]
        return slope * (1 - y * y)

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], z: Tensor) -> tuple[Tensor, int | None]:
        return _NumpyTanh.apply(z), in_dims[0]  # type: ignore[no-untyped-call]


class Tanh(nn.Tanh):
    """tanh with numpy's bits on the CPU, the same in acting and learning.

    It takes a tenth of torch's time.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Return tanh z."""
        if not z.is_cpu or torch.compiler.is_compiling():
            return super().forward(z)
        y: Tensor = _NumpyTanh.apply(z)  # type: ignore[no-untyped-call]
        return y


def _tanh_(z: Tensor) -> Tensor:
    np.tanh(z.numpy(), out=z.numpy())
    return z


def _elu(z: Array, out: Array | None = None) -> Array:
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def _by_torch(function: Callable[[Tensor], Tensor]) -> Callable[..., Array]:
    def value(z: Array, out: Array | None = None) -> Array:
        found: Array = function(torch.from_numpy(z)).numpy()
        return found

    return value


def _no_backward(slope: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("this activation has no derivative from its value")


def _silu_derivative(z: Tensor) -> Tensor:
    share = z.sigmoid()
    return share * (1 + z * (1 - share))


def _gelu_derivative(z: Tensor) -> Tensor:
    share: Tensor = torch.special.ndtr(z)
    return share + z * (-z.square() / 2).exp() / math.sqrt(2 * math.pi)


ACTIVATIONS: dict[ActivationName, Activation] = {
    "tanh": Activation(
        module=Tanh,
        operator="Tanh",
        value=np.tanh,
        derivative=lambda z: 1 - np.tanh(z) ** 2,
        value_=_tanh_,
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
    "silu": Activation(
        module=nn.SiLU,
        operator="Silu",
        value=_by_torch(nn.functional.silu),
        derivative=_by_torch(_silu_derivative),
        value_=partial(nn.functional.silu, inplace=True),
        backward_=_no_backward,
        is_monotone=False,
    ),
    "gelu": Activation(
        module=nn.GELU,
        operator="Gelu",
        value=_by_torch(nn.functional.gelu),
        derivative=_by_torch(_gelu_derivative),
        value_=nn.functional.gelu,
        backward_=_no_backward,
        is_monotone=False,
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
