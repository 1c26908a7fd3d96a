"""From a batch to new parameters: epochs, minibatches, and one step of an optimizer for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.algorithm.optimizers import Optimizer
from pgcli.errors import Diverged
from pgcli.policies.recurrent import Sequences

Named = Iterable[tuple[str, Tensor]]
Terms = dict[str, Tensor]  # the `loss` to descend, and what to report, all scalars: means over a batch
Step = tuple[Tensor, Callable[[], Terms]]  # ∂loss/∂θ until the next step, [dim]; the terms, if asked for


@dataclass(frozen=True)
class Batch:
    """M steps to learn from, first axis M: all valid ones of an update, or `share` of them."""

    obs: Tensor
    actions: Tensor
    advantages: Tensor
    weights: Tensor
    returns: Tensor
    values: Tensor  # before the update
    behavior_log_probs: Tensor | None  # None: the policy is the one that acted
    windows: Sequences | None = None  # of a policy with memory: which of the steps follow each other
    read: Tensor | None = None  # what plain networks read of obs, [M, size], for gradients in closed form
    share: float = 1.0

    def __len__(self) -> int:
        return self.advantages.shape[0]

    def to(self, device: torch.device) -> Batch:
        """Give the same on another device; what says which steps follow each other stays."""
        tensors: dict[str, Any] = {name: x.to(device) for name, x in self._tensors().items()}
        return replace(self, **tensors)

    @property
    def parts(self) -> int:
        """What can be taken apart: steps, or the windows of a policy with memory."""
        return len(self) if self.windows is None else len(self.windows.lengths)

    def split(self, order: Tensor, count: int) -> Iterator[Batch]:
        """Give the parts in `order`, in `count` batches, weighed so that the loss of each estimates that of all."""
        if self.windows is not None:
            for chosen in order.tensor_split(count):
                rows, windows = self.windows.take(chosen)
                yield self._part(len(chosen), windows, {name: x[rows] for name, x in self._tensors().items()})
            return
        names, columns = zip(*self._tensors().items(), strict=True)
        order = order.to(self.advantages.device)
        for part in zip(*(x.index_select(0, order).tensor_split(count) for x in columns), strict=True):
            yield self._part(len(part[0]), None, dict(zip(names, part, strict=True)))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def _part(self, parts: int, windows: Sequences | None, tensors: dict[str, Tensor]) -> Batch:
        tensors["weights"] = tensors["weights"] * (self.parts / parts)
        share = tensors["weights"].shape[0] / self.advantages.shape[0] * self.share
        behavior_log_probs = tensors.pop("behavior_log_probs", None)
        return Batch(**tensors, behavior_log_probs=behavior_log_probs, windows=windows, share=share)


def minibatches(
    batch: Batch, epochs: int, count: int, shuffler: Callable[[int], np.random.Generator], on_policy: bool
) -> Iterator[tuple[int, Batch]]:
    """Give (epoch, minibatch) for each step of an update: in every epoch each part of the batch once.

    `shuffler(epoch)` orders them. With `on_policy`, the first part comes without behavior_log_probs: its policy is
    the one that acted, and its ratios are exactly 1, whatever a batch of another shape does to the last bit.
    """
    count = min(count, batch.parts)
    first = on_policy
    for epoch in range(epochs):
        whole = (batch,) if count == 1 else None
        for part in whole or batch.split(torch.from_numpy(shuffler(epoch).permutation(batch.parts)), count):
            yield epoch, replace(part, behavior_log_probs=None) if first else part
            first = False


def check_finite(named: Named, then: str = "") -> None:
    """Raise Diverged with the name of the first tensor that is not finite, and what came of it."""
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            raise Diverged(f"{name} is not finite{then}")


@torch.no_grad()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is told below
def descend(
    optimizer: Optimizer,
    parts: Iterator[tuple[int, Batch]],
    epochs: int,
    step_of: Callable[[Batch], Step],
    learning_rate: float,
    max_grad_norm: float | None = None,
    target_kl: float | None = None,
    check: Callable[[], None] = lambda: None,
    suspects: Callable[[Optimizer, Batch, Tensor], Named] = lambda optimizer, part, gradient: (),
) -> dict[str, float]:
    """Step once for each part; end before a step, but the first, that would start from an approx_kl above `target_kl`.

    `check` is called before every step; what it raises ends the update amid its steps.
    Returns: the means of the terms and of the norm of the gradient over the last epoch, and how many epochs there were.
    Raises: Diverged, before the step, if a term or the norm of the gradient is not finite; it names the first of the
    `suspects` of a step that is not, causes before what follows from them.
    """
    sums: dict[str, float] = {}
    weight, last = 0.0, -1
    for epoch, part in parts:
        check()
        gradient, terms_of = step_of(part)
        if target_kl is not None and last >= 0 and terms_of()["approx_kl"] > target_kl:
            break
        norm = float(torch.linalg.vector_norm(gradient))
        finite = math.isfinite(norm)
        if finite and max_grad_norm is not None and norm > max_grad_norm:
            gradient *= max_grad_norm / norm
        if epoch == epochs - 1 or target_kl is not None or not finite:
            values = {name: term.item() for name, term in terms_of().items()} | {"grad_norm": norm}
            for name, value in sorted(
                values.items(), key=lambda item: item[0] == "loss"
            ):  # a part of the sum says more
                if not math.isfinite(value):
                    check_finite(suspects(optimizer, part, gradient), f", and so {name} is {value}")
                    raise Diverged(f"{name} is {value}")
            if epoch != last:
                sums, weight = dict.fromkeys(values, 0.0), 0.0
            sums = {name: sums[name] + part.share * value for name, value in values.items()}
            weight += part.share
        last = epoch
        optimizer.step(gradient, learning_rate)
    return {name: total / weight for name, total in sums.items()} | {"update_epochs": last + 1}


@torch.no_grad()
def descend_unseen(
    optimizer: Optimizer,
    parts: Iterator[tuple[int, Batch]],
    epochs: int,
    step_of: Callable[[Batch], Step],
    learning_rate: float,
    max_grad_norm: float | None = None,
    target_kl: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Do what `descend` does, on a device that would be waited for whenever a number is looked at: only at the end.

    `target_kl` alone needs a number at every step. What is not finite is in the parameters at the end.
    """
    rows, shares, names, last = list[Tensor](), list[float](), list[str](), -1
    for epoch, part in parts:
        check()
        gradient, terms_of = step_of(part)
        if target_kl is not None and last >= 0 and float(terms_of()["approx_kl"]) > target_kl:
            break
        norm = torch.linalg.vector_norm(gradient)
        if max_grad_norm is not None:
            gradient = gradient * (max_grad_norm / norm).clamp(max=1)
        if epoch == epochs - 1 or target_kl is not None:
            if epoch != last:
                rows.clear()
                shares.clear()
            terms = terms_of() | {"grad_norm": norm}
            names = list(terms)
            rows.append(torch.stack([term.detach().double() for term in terms.values()]))
            shares.append(part.share)
        last = epoch
        optimizer.step(gradient, learning_rate)
    table = torch.stack(rows).cpu()
    means = (torch.tensor(shares, dtype=table.dtype) @ table / sum(shares)).tolist()
    return dict(zip(names, means, strict=True)) | {"update_epochs": last + 1}
