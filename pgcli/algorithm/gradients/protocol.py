"""The protocol of every gradient."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.losses import PartName, Step


class Gradient(Protocol):
    """The interface of all gradient implementations."""

    def inputs(self, obs: Tensor) -> Tensor:
        """Return the gradient's input for observations [M, …], encoded once per update: [M, size]."""

    def __call__(self, batch: Batch, part: PartName, progress: float) -> Step:
        """Return ∂loss/∂θ [dim], in the order of the part's parameters, and the loss terms.

        The gradient is valid until the next call.
        """
