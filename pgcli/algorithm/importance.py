"""`algorithm.ratios`: the importance weights of whole trajectories in a batch of steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.config.schema import AlgorithmConfig
from pgcli.errors import Diverged
from pgcli.estimators.ratios import log_weights, per_decision_advantages, trajectory_weights
from pgcli.estimators.returns import return_terms
from pgcli.estimators.trajectories import Trajectories, from_steps

LARGE = 300.0  # e^300 and its square are finite


def weighted_separately(
    algorithm: AlgorithmConfig, trajectories: Trajectories, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the returns of the actions into terms, so that each reward can have a weight of its own.

    G_t = past_t + Σ_{l≥t} (Π_{t≤k<l} c_k) x_l. Total returns are discounted from t = 0.

    Returns: x and past, the rewards before t of total returns, in reward units; and c; as (x, c, past), each [T, N].
    """
    rewards, ends = trajectories.rewards, (trajectories.terminated, trajectories.cut)
    lam = algorithm.gae_lambda if algorithm.returns == "lambda_return" else 1.0
    terms, continuations = return_terms(rewards, algorithm.gamma, lam, *ends, values[1:])
    if algorithm.returns != "total":
        return terms, continuations, torch.zeros_like(rewards)
    discounts = algorithm.gamma ** torch.arange(len(rewards), dtype=rewards.dtype)[:, None]
    past = (discounts * rewards).cumsum(0) - discounts * rewards
    goes_on = trajectories.mask & ~trajectories.terminated & ~trajectories.cut
    return discounts * terms, goes_on.to(rewards), past


class TrajectoryRatios:
    """The logarithms of the importance weights of the C trajectories in a batch.

    They come from ln ρ [M] and have no gradient.

    A batch consists of whole trajectories. Sums run on the CPU in float64, over tables [T, C].
    """

    def __init__(self, log_ratios: Tensor, batch: Batch, algorithm: AlgorithmConfig) -> None:
        assert batch.rows is not None
        self._batch, self._algorithm = batch, algorithm
        mask = batch.trajectories.mask
        self._rows, columns = batch.rows.cpu(), mask.shape[1]
        self._present = torch.zeros(columns, dtype=torch.bool).index_fill(0, self._rows % columns, True)
        self._mask = mask[:, self._present]
        table = from_steps(log_ratios.detach().double().cpu(), self._rows, mask.shape)[:, self._present]
        self.logs = log_weights(table, self._mask, algorithm.ratios)  # [T, C]

    @property
    def weights(self) -> Tensor:
        """The importance weights, bounded and normalized as configured, [T, C]."""
        algorithm = self._algorithm
        return trajectory_weights(self.logs, algorithm.importance_bound or math.inf, algorithm.self_normalize)

    @property
    def log_ratios(self) -> Tensor:
        """The logarithms of the weights of the steps, [M]."""
        return self._of_steps(self.logs)

    @property
    def weighted_advantages(self) -> Tensor:
        """The advantages times the weights, [M].

        Raises: Diverged: if a product of ratios is too large for a float.
        """
        batch, weights = self._batch, self.weights
        assert batch.estimate is not None
        if self._algorithm.ratios == "per_decision":
            terms, continuations, past = weighted_separately(self._algorithm, batch.trajectories, batch.estimate.values)
            tables = (terms, continuations, batch.estimate.baseline - past)
            weighted = self._of_steps(per_decision_advantages(weights, *(x[:, self._present] for x in tables)))
        else:
            weighted = self._of_steps(weights) * batch.advantages
        if not weighted.isfinite().all():
            raise Diverged(
                f"importance weights are not finite: the largest product of ratios is e^{float(self.logs.max()):.0f}",
                "set algorithm.importance_bound or algorithm.self_normalize, or lower algorithm.reuse, "
                "algorithm.update_epochs or optimizer.learning_rate",
            )
        return weighted

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return Σ W and Σ W² over the trajectories.

        They are divided by the number in the whole batch and by the share of this one.

        So the means over minibatches, weighted by their shares, are means over trajectories.
        """
        products = self.logs[-1].clamp(-LARGE, LARGE).exp()
        count = self._batch.trajectories.mask.shape[1] * self._batch.share
        return products.sum() / count, products.square().sum() / count

    def _of_steps(self, table: Tensor) -> Tensor:
        whole = table.new_zeros(self._batch.trajectories.mask.shape)
        whole[:, self._present] = table
        return whole.flatten()[self._rows].to(self._batch.advantages)
