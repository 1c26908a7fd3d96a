"""The configured losses: values and terms in torch, slopes for closed forms in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.importance import TrajectoryRatios
from pgcli.algorithm.optimizers import scheduled
from pgcli.config.schema import AdaptiveKL, AlgorithmConfig
from pgcli.errors import Diverged
from pgcli.estimators.objectives import (
    clip_loss,
    clip_slope,
    importance_sampling_loss,
    importance_sampling_slope,
    kl_estimates,
    kl_slopes,
    policy_gradient_loss,
    policy_gradient_slope,
    value_loss,
    value_slope,
)
from pgcli.records import Update

Array = NDArray[Any]
Term = Literal[
    "loss", "policy_loss", "value_loss", "entropy", "approx_kl", "ratio", "squared_ratio", "clip_fraction", "grad_norm"
]
Terms = dict[Term, Tensor]  # `loss` is minimized; all are scalars, means over a minibatch
Step = tuple[Tensor, Callable[[], Terms]]  # ∂loss/∂θ [dim], valid until the next step; and the terms, if needed


@dataclass(frozen=True)
class Losses:
    """Losses of policy and value function; `progress` in [0, 1] is the used share of the budget.

    `adaptive_kl_coef` is the weight of the KL penalty if it adapts: a state, which starts at 1.
    """

    algorithm: AlgorithmConfig
    value_clip_range: float | None
    adaptive_kl_coef: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64))

    def entropy_coef(self, progress: float) -> float:
        """Return the weight of the entropy bonus at `progress`."""
        return scheduled(self.algorithm.entropy_coef, self.algorithm.entropy_coef_schedule, progress)

    def clip_range(self, progress: float) -> tuple[float, float]:
        """Return ε below and above 1 at `progress`."""
        low, high = self.algorithm.clip_ranges
        schedule = self.algorithm.clip_range_schedule
        return scheduled(low, schedule, progress), scheduled(high, schedule, progress)

    @property
    def kl_coef(self) -> float:
        """The weight of the KL penalty."""
        coefficient = self.algorithm.kl_coef
        return float(self.adaptive_kl_coef) if isinstance(coefficient, AdaptiveKL) else coefficient

    def adapt_kl_coef(self, kl: float | None) -> None:
        """Halve an adaptive weight below a KL of target / 1.5, and double it above 1.5 target.

        It stays within 1e-6 and 1e6.

        Source: Schulman et al. (2017), section 4.
        """
        if isinstance(self.algorithm.kl_coef, AdaptiveKL) and kl is not None:
            target, beta = self.algorithm.kl_coef.target, self.adaptive_kl_coef
            beta.mul_(0.5 if kl < target / 1.5 else 2 if kl > 1.5 * target else 1).clamp_(1e-6, 1e6)

    def policy_loss(self, log_probs: Tensor, log_ratios: Tensor, batch: Batch, progress: float) -> Tensor:
        """Compute the objective's loss from log π and log π - log μ, both [M]."""
        algorithm, advantages, weights = self.algorithm, batch.advantages, batch.weights
        match algorithm.objective:
            case "policy_gradient":
                return policy_gradient_loss(log_probs, advantages, weights)
            case "importance_sampling" if algorithm.ratios != "step":
                return policy_gradient_loss(log_probs, self._of(log_ratios, batch).weighted_advantages, weights)
            case "importance_sampling":
                bound, self_normalize = algorithm.importance_bound or math.inf, algorithm.self_normalize
                return importance_sampling_loss(log_probs, log_ratios, advantages, weights, bound, self_normalize)
            case "clip":
                if algorithm.ratios != "step":  # the value of the sequence's ratio, with the gradient of the step's
                    log_ratios = self._of(log_ratios, batch).log_ratios + log_ratios - log_ratios.detach()
                return clip_loss(log_ratios, advantages, weights, *self.clip_range(progress))
            case _:
                assert_never(algorithm.objective)

    def _of(self, log_ratios: Tensor, batch: Batch) -> TrajectoryRatios:
        return TrajectoryRatios(log_ratios, batch, self.algorithm)

    def policy_terms(self, log_probs: Tensor, entropy: Tensor, batch: Batch, progress: float) -> Terms:
        """Compute the policy's loss and its terms from log π and the entropy of each step, both [M]."""
        algorithm, entropy = self.algorithm, entropy.mean()
        log_ratios = log_probs - (log_probs.detach() if batch.on_policy else batch.behavior_log_probs)
        policy_loss = self.policy_loss(log_probs, log_ratios, batch, progress)
        loss = policy_loss - self.entropy_coef(progress) * entropy
        terms: Terms = {"loss": loss, "policy_loss": policy_loss, "entropy": entropy}
        if algorithm.objective != "policy_gradient":
            kl = kl_estimates(log_ratios if self.kl_coef > 0 else log_ratios.detach()).mean()
            if algorithm.ratios == "step":
                ratios = log_ratios.detach().exp()
                mean, mean_square = ratios.mean(), ratios.square().mean()
            else:
                of_trajectories = self._of(log_ratios, batch)
                ratios, (mean, mean_square) = of_trajectories.log_ratios.exp(), of_trajectories.sums()
            terms |= {"approx_kl": kl, "ratio": mean, "squared_ratio": mean_square}
            if self.kl_coef > 0:
                terms["loss"] = loss + self.kl_coef * kl
            if algorithm.objective == "clip":
                low, high = self.clip_range(progress)
                terms["clip_fraction"] = ((1 - ratios > low) | (ratios - 1 > high)).to(ratios.dtype).mean()
        return terms

    def policy_slope(self, log_probs: Array, batch: Batch, progress: float) -> Array:
        """Compute ∂loss/∂log π [M] of `policy_terms`: the weight of each score."""
        algorithm, advantages, weights = self.algorithm, batch.advantages.numpy(), batch.weights.numpy()
        log_ratios = log_probs - (log_probs if batch.on_policy else batch.behavior_log_probs.numpy())
        match algorithm.objective:
            case "policy_gradient":
                return policy_gradient_slope(advantages, weights)
            case "importance_sampling" if algorithm.ratios != "step":
                weighted = self._of(torch.from_numpy(log_ratios), batch).weighted_advantages
                slope = policy_gradient_slope(weighted.numpy(), weights)
            case "importance_sampling":
                bound, self_normalize = algorithm.importance_bound or math.inf, algorithm.self_normalize
                slope = importance_sampling_slope(log_ratios, advantages, weights, bound, self_normalize)
            case "clip":
                own = log_ratios
                if algorithm.ratios != "step":
                    own = self._of(torch.from_numpy(log_ratios), batch).log_ratios.numpy()
                slope = clip_slope(own, advantages, weights, *self.clip_range(progress))
            case _:
                assert_never(algorithm.objective)
        return slope + self.kl_coef / len(batch) * kl_slopes(log_ratios) if self.kl_coef > 0 else slope

    def value_terms(self, values: Tensor, batch: Batch) -> Terms:
        """Compute the value function's loss from V [M]."""
        loss = value_loss(values, batch.returns, batch.values, self.value_clip_range)
        return {"loss": self.algorithm.value_coef * loss, "value_loss": loss}

    def value_slope(self, values: Array, batch: Batch) -> Array:
        """Compute ∂loss/∂V [M] of `value_terms`."""
        slope = value_slope(values, batch.returns.numpy(), batch.values.numpy(), self.value_clip_range)
        return self.algorithm.value_coef * slope

    def describe(self, means: Mapping[Term, float], epochs: int, batch: Batch, rate: float, progress: float) -> Update:
        """Return the policy's metrics after `epochs` on a batch."""
        samples = len(batch) if self.algorithm.ratios == "step" else batch.trajectories.mask.shape[1]
        ratio, squared_ratio = means.get("ratio"), means.get("squared_ratio")
        effective_sample_size = None
        if ratio is not None and squared_ratio is not None:  # 0 if all squared ratios underflow
            effective_sample_size = samples * ratio**2 / squared_ratio if squared_ratio > 0 else 0.0
        return Update(
            policy_loss=means.get("policy_loss"),
            value_loss=means.get("value_loss"),
            entropy=means["entropy"],
            approx_kl=means.get("approx_kl"),
            clip_fraction=means.get("clip_fraction"),
            effective_sample_size=effective_sample_size,
            grad_norm=means["grad_norm"],
            learning_rate=rate,
            update_epochs=epochs,
            clip_range=self.clip_range(progress)[0] if self.algorithm.objective == "clip" else None,
            kl_coef=self.kl_coef if self.algorithm.has_adaptive_kl else None,
            entropy_coef=self.entropy_coef(progress) if self.algorithm.entropy_coef > 0 else None,
        )


def joint_terms(policy: Terms, value: Terms) -> Terms:
    """Add the losses of a policy and a value function on a shared trunk."""
    return policy | value | {"loss": policy["loss"] + value["loss"]}


class EpochMeans:
    """Means of the terms over the last epoch: kept as tensors, read once at the end."""

    def __init__(self) -> None:
        self._rows: list[Terms] = []
        self._shares: list[float] = []
        self.epoch = -1

    def add(self, epoch: int, terms: Terms, share: float) -> None:
        """Add the terms of a step on `share` of the batch; a new epoch discards the previous one."""
        if epoch != self.epoch:
            self._rows, self._shares, self.epoch = [], [], epoch
        self._rows.append(terms)
        self._shares.append(share)

    def read(self) -> dict[Term, float]:
        """Return the means, weighted by the shares."""
        names = list(self._rows[0])
        numbers = torch.stack([term.detach() for row in self._rows for term in row.values()]).tolist()
        return {
            name: sum(share * x for share, x in zip(self._shares, numbers[n :: len(names)], strict=True))
            / sum(self._shares)
            for n, name in enumerate(names)
        }


def check_terms(means: Mapping[Term, float], norms: Sequence[Tensor]) -> None:
    """Raise Diverged if a term or the norm of a gradient is not finite."""
    for name, value in sorted(means.items(), key=lambda item: item[0] == "loss"):  # a term of the sum is more specific
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value}")
    if not torch.stack(list(norms)).isfinite().all():
        raise Diverged("grad_norm is not finite")
