"""What one iteration collected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """T steps of N trajectories, one column each, padded after its end.

    A row t of a column is the transition from `obs[t]` to `obs[t + 1]`; `mask` is False where there is none.
    What stands in masked places is arbitrary, except that rewards are 0 there.

    Shapes: obs [T + 1, N, …]; actions [T, N, …]; rewards, terminated, truncated, mask [T, N].
    Rewards are in reward units and float64, as environments give them.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor

    @property
    def num_steps(self) -> int:
        """Transitions collected; padding does not count."""
        return int(self.mask.sum())

    @property
    def lengths(self) -> Tensor:
        """Steps of each trajectory, [N]."""
        return self.mask.sum(0)

    def ended(self) -> list[str]:
        """Say of each trajectory how it ended: terminated, truncated by the environment, or cut at the horizon."""
        terminated, truncated = (self.terminated & self.mask).any(0), (self.truncated & self.mask).any(0)
        return [
            "terminated" if a else "truncated" if b else "horizon"
            for a, b in zip(terminated.tolist(), truncated.tolist(), strict=True)
        ]


def pad_columns(parts: list[Trajectories]) -> Trajectories:
    """Put chunks of columns side by side, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    steps = max(part.mask.shape[0] for part in parts)

    def join(name: str, rows: int) -> Tensor:
        columns: list[Tensor] = [getattr(part, name) for part in parts]
        width = sum(column.shape[1] for column in columns)
        joined = columns[0].new_zeros((rows, width, *columns[0].shape[2:]))
        start = 0
        for column in columns:
            joined[: column.shape[0], start : start + column.shape[1]] = column
            start += column.shape[1]
        return joined

    return Trajectories(
        obs=join("obs", steps + 1),
        actions=join("actions", steps),
        rewards=join("rewards", steps),
        terminated=join("terminated", steps),
        truncated=join("truncated", steps),
        mask=join("mask", steps),
    )


def from_steps(steps: Tensor, mask: Tensor) -> Tensor:
    """Put the values [M] of the valid steps back in their places, 0 elsewhere: [T, N]."""
    return torch.zeros(mask.shape, dtype=steps.dtype).masked_scatter(mask, steps)
