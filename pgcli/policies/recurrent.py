"""Recurrent policies: GRU or LSTM, trained by truncated backpropagation in time."""

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


@dataclass(frozen=True)
class Sequences:
    """S sequences of consecutive steps, each within one episode, concatenated in a batch's rows."""

    lengths: Tensor  # steps of each, long [S]
    memory: Tensor  # the recurrent state before the first step of each, [S, state_size]; without gradient

    def take(self, chosen: Tensor) -> tuple[Tensor, Sequences]:
        """Return the rows of the chosen sequences, and these sequences."""
        lengths = self.lengths[chosen]
        starts = (self.lengths.cumsum(0) - self.lengths)[chosen]
        return ranges(starts, lengths), Sequences(lengths, self.memory[chosen])


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenate the ranges start, start + 1, …, start + length - 1."""
    offsets = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + offsets.repeat_interleave(lengths)


class RecurrentNetwork(nn.Module):
    """A GRU or LSTM of `size` units; its state [state_size] is 0 at an episode's start.

    Sources: Cho et al. (2014); Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """

    def __init__(self, kind: RecurrentName, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.parts = 1 if kind == "gru" else 2  # of the state: h, or h and c
        self.state_size = self.parts * size
        self.core = (nn.GRU if kind == "gru" else nn.LSTM)(inputs, size)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Compute the outputs [M, size] of inputs [M, inputs] in the order of `sequences`."""
        lengths = sequences.lengths
        padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(x, lengths.tolist())))
        outputs, _ = self.run(padded, sequences.memory)
        valid = torch.arange(len(outputs)) < lengths[:, None]
        return outputs.transpose(0, 1)[valid]

    def run(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Process x [T, S, inputs]; return outputs [T, S, size] and the last states."""
        state = [part.contiguous() for part in memory.to(x)[None].chunk(self.parts, -1)]
        outputs: Tensor
        if self.parts == 2:
            outputs, (h, c) = self.core(x, tuple(state))
            return outputs, torch.cat((h, c), -1)[0]
        outputs, h = self.core(x, *state)
        return outputs, h[0]

    def in_numpy(self) -> Callable[[Array, Array], tuple[Array, Array]]:
        """Return one step in numpy: inputs, state → outputs, next state, each [N, …]."""
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
    return (1 + np.tanh(x / 2)) / 2  # cannot overflow
