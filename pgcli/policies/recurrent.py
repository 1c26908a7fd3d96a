"""Recurrent policies: what a policy remembers of its episode, learned by truncated back-propagation through time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.config.choices import RecurrentName

Array = NDArray[Any]
Respond = Callable[[Array, Array], tuple[Array, Array]]  # inputs, memory → outputs, memory after, each [N, …]


@dataclass(frozen=True)
class Windows:
    """S runs of consecutive steps, each of one episode: the rows of a batch are theirs, one run after the other."""

    lengths: Tensor  # steps of each, long [S]
    memory: Tensor  # what is remembered before the first of them, [S, state_size]; a constant to the gradient

    def take(self, chosen: Tensor) -> tuple[Tensor, Windows]:
        """Give the rows of some of the windows, and these windows."""
        lengths = self.lengths[chosen]
        starts = (self.lengths.cumsum(0) - self.lengths)[chosen]
        return ranges(starts, lengths), Windows(lengths, self.memory[chosen])


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Give start, start + 1, …, `length` numbers of each, one range after the other."""
    offsets = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + offsets.repeat_interleave(lengths)


class Memory(nn.Module):
    """A GRU or an LSTM of `size` units; `state_size` numbers are remembered, all 0 at the start of an episode.

    Sources: Cho et al. (2014); Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """

    def __init__(self, kind: RecurrentName, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.parts = 1 if kind == "gru" else 2  # of the state: h, or h and c
        self.state_size = self.parts * size
        self.core = (nn.GRU if kind == "gru" else nn.LSTM)(inputs, size)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """Compute the outputs [M, size] of inputs [M, inputs] that stand in the order of `windows`."""
        outputs, _ = self.run(
            torch.nn.utils.rnn.pad_sequence(list(torch.split(x, windows.lengths.tolist()))), windows.memory
        )
        valid = torch.arange(len(outputs)) < windows.lengths[:, None]
        return outputs.transpose(0, 1)[valid]

    def run(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Go through inputs [T, S, inputs] from memory [S, state_size]: outputs [T, S, size], the memory after them."""
        state = [part.contiguous() for part in memory.to(x)[None].chunk(self.parts, -1)]
        outputs: Tensor
        if self.parts == 2:
            outputs, (h, c) = self.core(x, tuple(state))
            return outputs, torch.cat((h, c), -1)[0]
        outputs, h = self.core(x, *state)
        return outputs, h[0]

    def in_numpy(self) -> Respond:
        """Give one step in numpy, on the parameters' own memory."""
        step = _gru if self.parts == 1 else _lstm
        w, u, b, c = (parameter.detach().numpy().T for parameter in self.core.parameters())
        return lambda x, memory: step(x @ w + b, memory[:, : self.size] @ u + c, memory)


def _gru(inputs: Array, recurrent: Array, h: Array) -> tuple[Array, Array]:
    """r, z = σ(·), n = tanh(x_n + r h_n), h' = (1 - z) n + z h."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(inputs, 3, 1), np.split(recurrent, 3, 1)
    z = _sigmoid(x_z + h_z)
    h = (1 - z) * np.tanh(x_n + _sigmoid(x_r + h_r) * h_n) + z * h
    return h, h


def _lstm(inputs: Array, recurrent: Array, memory: Array) -> tuple[Array, Array]:
    """i, f, o = σ(·), c' = f c + i tanh(g), h' = o tanh(c')."""
    i, f, g, o = np.split(inputs + recurrent, 4, 1)
    c = _sigmoid(f) * memory[:, memory.shape[1] // 2 :] + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return h, np.concatenate((h, c), 1)


def _sigmoid(x: Array) -> Array:
    return (1 + np.tanh(x / 2)) / 2  # which cannot overflow
