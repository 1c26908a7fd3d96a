"""From a batch to new parameters: epochs, minibatches, and one step of an optimizer for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.errors import Diverged
from pgcli.optimizers import Optimizer
from pgcli.policies.memory import Windows

Named = Iterable[tuple[str, Tensor]]
Terms = dict[str, Tensor]  # the `loss` to descend, and what to report, all scalars: means over a batch


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
    windows: Windows | None = None  # of a policy with memory: which of the steps follow each other
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.advantages)

    @property
    def parts(self) -> int:
        """What can be taken apart: steps, or the windows of a policy with memory."""
        return len(self) if self.windows is None else len(self.windows.lengths)

    def take(self, chosen: Tensor) -> Batch:
        """Give some of the parts, weighed so that their loss estimates that of the batch without bias."""
        rows, windows = (chosen, None) if self.windows is None else self.windows.take(chosen)
        taken: dict[str, Any] = {
            name: x.index_select(0, rows) for name, x in vars(self).items() if isinstance(x, Tensor)
        }
        taken["weights"] = taken["weights"] / (len(chosen) / self.parts)
        return replace(self, **taken, windows=windows, share=len(rows) / len(self) * self.share)


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
        order = None if count == 1 else torch.from_numpy(shuffler(epoch).permutation(batch.parts))
        for rows in (None,) if order is None else order.tensor_split(count):
            part = batch if rows is None else batch.take(rows)
            yield epoch, replace(part, behavior_log_probs=None) if first else part
            first = False


def check_finite(named: Named, then: str = "") -> None:
    """Raise Diverged with the name of the first tensor that is not finite, and what came of it."""
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            raise Diverged(f"{name} is not finite{then}")


def descend(
    optimizer: Optimizer,
    parts: Iterator[tuple[int, Batch]],
    terms_of: Callable[[Batch], Terms],
    learning_rate: float,
    max_grad_norm: float | None = None,
    target_kl: float | None = None,
    check: Callable[[], None] = lambda: None,
    suspects: Callable[[Batch, list[Tensor]], Named] = lambda part, gradients: (),
) -> dict[str, float]:
    """Step once for each part; end before a step, but the first, that would start from an approx_kl above `target_kl`.

    `check` is called before every step; what it raises ends the update amid its steps.
    Returns: the means of the terms and of the norm of the gradient over the last epoch, and how many epochs there were.
    Raises: Diverged, before the step, if a term or the norm of the gradient is not finite; it names the first of the
    `suspects` of a part and its gradients that is not, causes before what follows from them.
    """
    sums: dict[str, float] = {}
    weight, last = 0.0, -1
    for epoch, part in parts:
        check()
        terms = terms_of(part)
        if target_kl is not None and last >= 0 and terms["approx_kl"] > target_kl:
            break
        gradients = list(torch.autograd.grad(terms["loss"], optimizer.parameters))
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        values = {name: term.item() for name, term in (terms | {"grad_norm": norm}).items()}
        for name, value in sorted(values.items(), key=lambda item: item[0] == "loss"):  # a part of the sum says more
            if not math.isfinite(value):
                check_finite(suspects(part, gradients), f", and so {name} is {value}")
                raise Diverged(f"{name} is {value}")
        if max_grad_norm is not None and values["grad_norm"] > max_grad_norm:
            scale = max_grad_norm / values["grad_norm"]
            gradients = [gradient * scale for gradient in gradients]
        optimizer.step(gradients, learning_rate)
        if epoch != last:
            sums, weight, last = dict.fromkeys(values, 0.0), 0.0, epoch
        sums = {name: sums[name] + part.share * value for name, value in values.items()}
        weight += part.share
    return {name: total / weight for name, total in sums.items()} | {"update_epochs": last + 1}
