"""Running statistics: saved in checkpoints, and updated between iterations only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.estimators.returns import lambda_returns

Array = NDArray[Any]
EPSILON = 1e-8  # added to variances
CLIP = 10.0  # standard deviations


class RunningMoments(nn.Module):
    """Count, mean and variance of all rows added so far, in float64, as if they were one batch.

    Source: Chan, Golub & LeVeque (1979), the pairwise update.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Add rows [M, size]; an empty batch changes nothing."""
        if not len(rows):
            return
        rows = rows.double()
        count = self.count + len(rows)
        mean, variance = rows.mean(0), rows.var(0, correction=0)
        shift, share = mean - self.mean, len(rows) / count
        spread = (1 - share) * self.variance + share * variance + share * (1 - share) * shift.square()
        self.variance.copy_(spread if self.count > 0 else variance)
        self.mean.copy_(self.mean + share * shift)
        self.count.copy_(count)


class Normalizer(RunningMoments):
    """x ↦ (x - mean) / √(variance + 10⁻⁸), clipped to ±10.

    Before the first row, mean is 0 and variance 1. x is float64: float32 would lose a small signal on a large offset
    before the mean is subtracted. `origin` is subtracted from 64-bit integers before; it is None if there are none.
    """

    origin: Tensor | None

    def __init__(self, size: int, *, has_origin: bool = False) -> None:
        super().__init__(size)
        self.register_buffer("origin", torch.zeros(size, dtype=torch.int64) if has_origin else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [M, size] in torch."""
        return ((x - self.mean) / (self.variance + EPSILON).sqrt()).clamp_(-CLIP, CLIP)

    def of_images_(self, x: Tensor) -> Tensor:
        """Normalise the channels of [M, size, height, width] in place and in the type of x, for speed."""
        mean, deviation = self.mean[:, None, None], (self.variance[:, None, None] + EPSILON).sqrt()
        return x.sub_(mean.to(x.dtype)).mul_((1 / deviation).to(x.dtype)).clamp_(-CLIP, CLIP)

    def in_numpy(self) -> Callable[[Array], Array]:
        """Return a numpy function [N, size] → float32 with a copy of the current statistics."""
        mean, deviation = self.mean.numpy().copy(), np.sqrt(self.variance.numpy() + EPSILON)

        def normalize(x: Array) -> Array:
            scaled = x - mean
            scaled /= deviation
            np.maximum(scaled, -CLIP, out=scaled)
            np.minimum(scaled, CLIP, out=scaled)
            normalized: Array = scaled.astype(np.float32)
            return normalized

        return normalize


class ReturnScale(RunningMoments):
    """The standard deviation of the discounted return R_t = r_t + γ R_{t-1}.

    R continues from one segment to the next and starts at 0 with every episode.
    """

    carried: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__(1)
        self.register_buffer("carried", torch.zeros(columns, dtype=torch.float64))

    def add_rewards(self, rewards: Tensor, mask: Tensor, gamma: float) -> None:
        """Add the rewards [T, N] of the valid rows."""
        before = self.carried if len(self.carried) else torch.zeros(rewards.shape[1], dtype=torch.float64)
        discounts = torch.where(mask, gamma, 0.0).double()  # an episode begins after a masked row, whose reward is 0
        backwards = (rewards.double().flip(0), discounts.flip(0), before.expand_as(discounts))
        running = lambda_returns(*backwards, torch.ones_like(discounts)).flip(0)
        self.add(running[mask][:, None])
        if len(self.carried):
            self.carried.copy_(running[-1])

    @property
    def scale(self) -> float:
        """The divisor of rewards."""
        return float((self.variance + EPSILON).sqrt())
