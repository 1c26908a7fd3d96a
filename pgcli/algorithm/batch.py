"""From trajectories [T, N] to a batch [M] of steps, and from a batch to minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.config.schema import Config
from pgcli.estimators.objectives import explained_variance, group_standardized, standardized, step_weights
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.policy import Policy
from pgcli.policies.recurrent import Sequences
from pgcli.policies.trajectory_outputs import valid_steps
from pgcli.records import Update

ROUNDING = 1e-6  # relative error of an advantage in float32, with a margin


@dataclass(frozen=True)
class Estimate:
    """A = returns - baseline and targets G of V, both [T, N], and V [T + 1, N], in reward units."""

    advantages: Tensor
    baseline: Tensor  # [T, N], or broadcastable
    returns: Tensor
    values: Tensor

    def without_baseline(self) -> Estimate:
        """Return the estimate with b = 0."""
        bare = torch.zeros_like(self.baseline)
        return replace(self, advantages=self.advantages + self.baseline, baseline=bare)


@dataclass(frozen=True)
class Batch:
    """M steps to learn from, first axis M: all valid steps of an update, or a `share` of them."""

    obs: Tensor
    inputs: Tensor  # encoded obs, computed once per update; [M, 0] if the gradient reads obs directly
    actions: Tensor
    advantages: Tensor
    weights: Tensor
    returns: Tensor
    values: Tensor  # V before the update
    behavior_log_probs: Tensor
    on_policy: bool  # the policy has not changed since it acted: ratios are exactly 1
    sequences: Sequences | None  # for a recurrent policy: the sequences of consecutive steps
    trajectories: Trajectories  # source of the steps
    share: float = 1.0
    rows: Tensor | None = None  # t N + n of each step, for importance weights of whole trajectories
    estimate: Estimate | None = None  # with them
    standardize: bool = False  # minibatches standardize their advantages

    def __len__(self) -> int:
        return self.advantages.shape[0]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device; sequences and trajectories are not moved."""
        tensors: dict[str, Any] = {name: x.to(device) for name, x in self._tensors().items()}
        return replace(self, **tensors)

    @property
    def parts(self) -> int:
        """The number of shuffled units: steps, trajectories, or sequences for a recurrent policy."""
        if self.sequences is not None:
            return len(self.sequences.lengths)
        return len(self) if self.rows is None else self.trajectories.mask.shape[1]

    def split(self, order: Tensor, count: int) -> Iterator[Batch]:
        """Yield `count` batches of the units in `order`, weighted to estimate the full loss."""
        if self.sequences is not None or self.rows is not None:
            for chosen in order.tensor_split(count):
                rows, sequences = self._steps_of(chosen)
                yield self._part(len(chosen), sequences, {name: x[rows] for name, x in self._tensors().items()})
            return
        names, columns = zip(*self._tensors().items(), strict=True)
        order = order.to(self.advantages.device)
        for part in zip(*(x.index_select(0, order).tensor_split(count) for x in columns), strict=True):
            yield self._part(len(part[0]), None, dict(zip(names, part, strict=True)))

    def _steps_of(self, chosen: Tensor) -> tuple[Tensor, Sequences | None]:
        """Return the steps of the chosen sequences, or of the chosen trajectories."""
        if self.sequences is not None:
            return self.sequences.take(chosen)
        assert self.rows is not None
        return torch.isin(self.rows % self.trajectories.mask.shape[1], chosen.to(self.rows)), None

    def _tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def _part(self, parts: int, sequences: Sequences | None, tensors: dict[str, Any]) -> Batch:
        tensors["weights"] = tensors["weights"] * (self.parts / parts)
        share = tensors["weights"].shape[0] / self.advantages.shape[0] * self.share
        if self.standardize:
            tensors["advantages"] = standardized(
                tensors["advantages"], ROUNDING * float(self.advantages.abs().max()), 1
            )
        return Batch(
            **tensors,
            on_policy=self.on_policy,
            sequences=sequences,
            trajectories=self.trajectories,
            share=share,
            estimate=self.estimate,
        )


def flatten(
    config: Config, policy: Policy, inputs: Callable[[Tensor], Tensor], trajectories: Trajectories, estimate: Estimate
) -> tuple[Batch, Update]:
    """Standardize and weight the advantages, and flatten the valid steps.

    Args: inputs: obs [M, …] → the input of the gradient, [M, size].
    Returns: the batch, and the metrics known before the update.
    """
    rows, sequences = valid_steps(policy, trajectories, max_length=config.policy.backpropagation_steps)
    algorithm, mask = config.algorithm, trajectories.mask
    advantages, zero_variance_groups = estimate.advantages, None
    largest = float(trajectories.rewards.abs().sum(0).max() + estimate.values.abs().max())
    floor = 1e-8 * largest  # bounds all returns: a smaller spread is rounding

    def taken(x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, rows)

    if algorithm.standardize == "group":
        advantages, zero_variance_groups = group_standardized(advantages, config.group_size, floor)
    advantages = taken(advantages)
    if algorithm.standardize in ("batch", "minibatch"):  # a minibatch standardizes them again: it undoes this
        advantages = standardized(advantages, floor, correction=int(algorithm.standardize == "minibatch"))
    weights = taken(step_weights(mask, algorithm.average))
    if algorithm.discount_weighting:
        weights = weights * algorithm.gamma ** (rows // mask.shape[1]).to(weights.dtype)
    returns, values = taken(estimate.returns), taken(estimate.values[:-1])
    obs, actions = taken(trajectories.obs[:-1]), taken(trajectories.actions)
    dtype, behavior = next(policy.network.parameters()).dtype, trajectories.behavior_log_probs
    batch = Batch(
        obs=obs,
        inputs=inputs(obs),
        actions=actions,
        advantages=advantages.to(dtype),
        weights=weights.to(dtype),
        returns=returns.to(dtype),
        values=values.to(dtype),
        behavior_log_probs=torch.zeros(len(rows), dtype=dtype) if behavior is None else taken(behavior),
        on_policy=behavior is None,
        sequences=sequences,
        trajectories=trajectories,
        rows=None if algorithm.ratios == "step" else rows,
        estimate=None if algorithm.ratios == "step" else estimate,
        standardize=algorithm.standardize == "minibatch",
    )
    spread, clipped = policy.distribution.action_statistics(actions)
    return batch.to(policy.device), Update(
        explained_variance=explained_variance(values, returns) if config.has_value else None,
        zero_variance_groups=zero_variance_groups,
        action_standard_deviation=spread,
        action_clip_fraction=clipped,
    )


def minibatches(
    batch: Batch, epochs: int, count: int, shuffler: Callable[[int], np.random.Generator], on_policy: bool
) -> Iterator[tuple[int, Batch]]:
    """Yield (epoch, minibatch) for each step of an update; each epoch uses the batch once.

    `shuffler(epoch)` orders the steps. With `on_policy`, the ratios of the first minibatch are set to exactly 1:
    recomputing them in another batch shape could change the last bit.
    """
    count = min(count, batch.parts)
    for epoch in range(epochs):
        whole = (batch,) if count == 1 else None
        for part in whole or batch.split(torch.from_numpy(shuffler(epoch).permutation(batch.parts)), count):
            yield epoch, replace(part, on_policy=True) if on_policy else part
            on_policy = False
