"""What one iteration collected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """T steps of N columns: a trajectory each, padded after its end; or segments, one masked row between episodes.

    A row t of a column is the transition from `obs[t]` to `obs[t + 1]`; `mask` is False where there is none.
    What stands in masked places is arbitrary, except that rewards are 0 there.

    Shapes: obs [T + 1, N, …]; actions [T, N, …]; rewards, terminated, truncated, mask, behavior_log_probs [T, N].
    Rewards are in reward units and float64, as environments give them. behavior_log_probs are log μ(a|s) of the
    policy μ that acted, in nats, where an objective needs them. memory [N, …] is what a recurrent policy remembered
    before row 0; None: nothing, every column begins an episode.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    behavior_log_probs: Tensor | None = None
    memory: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """Transitions collected; padding does not count."""
        return int(self.mask.sum())

    @property
    def lengths(self) -> Tensor:
        """Steps of each trajectory, [N]."""
        return self.mask.sum(0)

    @property
    def cut(self) -> Tensor:
        """The last rows of what goes on unseen: at a time limit, a horizon, the end of a segment. bool [T, N]."""
        return self.mask & ~self.terminated & ~torch.cat((self.mask[1:], torch.zeros_like(self.mask[:1])))

    @property
    def reached(self) -> Tensor:
        """The states that were seen: the first or the second of a valid row. bool [T + 1, N]."""
        none = torch.zeros_like(self.mask[:1])
        return torch.cat((self.mask, none)) | torch.cat((none, self.mask))

    def columns(self, chosen: slice) -> Trajectories:
        """Give neighbouring columns, up to the last row that is valid in one of them."""
        rows = int((self.mask[:, chosen].any(1) * torch.arange(1, len(self.mask) + 1)).max())

        taken = {name: x[: rows + (name == "obs"), chosen] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Trajectories(**taken | ({} if self.memory is None else {"memory": self.memory[chosen]}))


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
        behavior_log_probs=None if parts[0].behavior_log_probs is None else join("behavior_log_probs", steps),
        memory=None
        if parts[0].memory is None
        else torch.cat([part.memory for part in parts if part.memory is not None]),
    )


def from_steps(steps: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Put the values [M] of steps back in their places, row t N + n of `shape` = [T, N] for each, 0 elsewhere."""
    return torch.zeros(shape.numel(), dtype=steps.dtype).index_copy(0, rows, steps).view(shape)
