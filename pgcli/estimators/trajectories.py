"""The trajectories of one iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """T steps of N columns. Whole episodes are padded; segments have a masked row between episodes.

    Row t of a column is the transition from `obs[t]` to `obs[t + 1]`; `mask` is False where there is none.
    Masked entries are arbitrary, except that rewards are 0.

    Shapes: obs [T + 1, N, …]; actions [T, N, …]; rewards, terminated, truncated, mask, behavior_log_probs [T, N].
    Rewards are in reward units and float64. behavior_log_probs are log μ(a|s) of the acting policy μ, in nats, if an
    objective needs them. memory [N, …] is the recurrent state before row 0; None if every column begins an episode.
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
        """The number of transitions, without padding."""
        return int(self.mask.sum())

    @property
    def lengths(self) -> Tensor:
        """The number of steps of each trajectory, [N]."""
        return self.mask.sum(0)

    @property
    def cut(self) -> Tensor:
        """The last rows of trajectories cut by a time limit, the horizon or a segment's end, bool [T, N]."""
        return self.mask & ~self.terminated & ~torch.cat((self.mask[1:], torch.zeros_like(self.mask[:1])))

    @property
    def reached(self) -> Tensor:
        """The observed states: the first or second state of a valid row, bool [T + 1, N]."""
        none = torch.zeros_like(self.mask[:1])
        return torch.cat((self.mask, none)) | torch.cat((none, self.mask))

    def columns(self, chosen: slice) -> Trajectories:
        """Return neighbouring columns, up to the last row that is valid in one of them."""
        rows = int((self.mask[:, chosen].any(1) * torch.arange(1, len(self.mask) + 1)).max())

        taken = {name: x[: rows + (name == "obs"), chosen] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Trajectories(**taken | ({} if self.memory is None else {"memory": self.memory[chosen]}))

    def contiguous(self) -> Trajectories:
        """Return the same trajectories, with tensors of their own if they are parts of others."""
        return Trajectories(**{name: x.contiguous() for name, x in vars(self).items() if isinstance(x, Tensor)})


def pad_columns(parts: list[Trajectories]) -> Trajectories:
    """Concatenate chunks of columns, padded to the longest."""
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
    """Scatter the values [M] of steps to `shape` = [T, N], with `rows` = t N + n; 0 elsewhere."""
    return torch.zeros(shape.numel(), dtype=steps.dtype).index_copy(0, rows, steps).view(shape)
