"""Distributions over actions: sampling in numpy while acting, log-probabilities in torch for the update."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


class Softmax:
    """π(a|s) = exp(h(s,a)) / Σ_a' exp(h(s,a')) over `size` actions numbered from `start`.

    Source: Sutton & Barto (2018), section 13.1.
    """

    def __init__(self, size: int, start: int = 0) -> None:
        self.size = size
        self.start = start

    def sample(self, logits: Array, uniforms: Array) -> Array:
        """Draw actions [N] by inverting the distribution function at `uniforms` [N] in [0, 1).

        In float64, where u < 1 gives u Σ exp(h) < Σ exp(h): an action of probability 0 is never drawn.
        """
        cumulative = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1, dtype=np.float64)
        chosen: Array = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1)
        return chosen + self.start

    def mode(self, logits: Array) -> Array:
        """Give the most probable actions [N]."""
        chosen: Array = logits.argmax(1)
        return chosen + self.start

    def log_probs(self, logits: Tensor, actions: Tensor) -> Tensor:
        """Compute log π(a|s) [M] of `actions` [M] from `logits` [M, size], in nats."""
        return logits.log_softmax(1).gather(1, (actions - self.start)[:, None]).squeeze(1)

    def entropy(self, logits: Tensor) -> Tensor:
        """Compute -Σ_a π log π [M], in nats."""
        log_probs = logits.log_softmax(1)
        return -(log_probs.exp() * log_probs).sum(1)
