"""The natural gradient, θ ← θ + α F⁻¹ ĝ, and TRPO.

TRPO limits the same step by the KL and by a line search.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.gradients.fisher import fisher_product
from pgcli.algorithm.losses import Losses
from pgcli.algorithm.optimizers import Bounds, Optimizer
from pgcli.config.schema import OptimizerConfig
from pgcli.errors import Diverged
from pgcli.policies.distributions import Product
from pgcli.policies.policy import Policy
from pgcli.records import Update

TRIALS, SHORTER = 15, 0.8  # of the line search: the step, 0.8 of it, 0.64 of it, …


class NaturalGradient(Optimizer):
    """Natural gradient steps of a policy; it has no state of its own.

    F = Σ_t w_t F(s_t) / Σ_t w_t, with the weights w of the gradient g = Σ_t w_t A_t ∇log π, and the Fisher matrix
    F(s) = E_a~π(·|s)[∇log π ∇log πᵀ] of the distribution, not of the sampled actions. The step against -g is
    Δ = α (F + λ I)⁻¹ g / Σ_t w_t. The weights cancel: for a tabular softmax, F⁻¹ g is A(s, a) up to a constant for
    each state.

    With `max_kl`, α is the largest with ½ Δᵀ F Δ ≤ max_kl. With `line_search`, Δ is multiplied by 0.8 until the mean of
    KL(π_old‖π) is at most max_kl, and the surrogate Σ_t w_t A_t π/π_old, plus the entropy bonus, has improved.
    A step is rejected, and the parameters stay the same, if F is singular along g or if the line search fails.

    Source: Kakade (2001); Schulman et al. (2015), appendix C.
    """

    def __init__(self, policy: Policy, losses: Losses, settings: OptimizerConfig, bounds: Bounds) -> None:
        super().__init__("natural", list(policy.parameters()), settings, bounds)
        self._policy, self._losses = policy, losses

    def step(self, gradient: Tensor, learning_rate: float, batch: Batch | None = None, progress: float = 0.0) -> Update:
        """Take one step against `gradient`, and return its size. Raises: Diverged: if its KL is not finite."""
        assert batch is not None
        settings, (vector, *_) = self.settings, self.memory
        before, weights, g = vector.clone(), batch.weights.double(), gradient.double()
        norm = torch.linalg.vector_norm(g)
        size = float(norm / weights.sum())
        evaluate = self._evaluation(batch, progress)
        if size == 0:
            return Update(learning_rate=0.0 if settings.max_kl else learning_rate, step_kl=0.0, rejected_steps=0)
        product = fisher_product(self._policy, batch, weights / weights.sum())
        unit = conjugate_gradient(product, g / norm, settings.cg_iterations, settings.damping, precision_of(vector))
        rate, direction = learning_rate, size * unit
        if settings.max_kl is not None:
            curvature = float(unit @ product(unit))
            rate = math.sqrt(2 * settings.max_kl / curvature) / size if curvature > 0 else 0.0
        if not direction.any() or not 0 < rate < math.inf:
            return Update(learning_rate=0.0, step_kl=0.0, rejected_steps=1)
        for backtracks in range(TRIALS if settings.line_search else 1):
            vector.copy_(before - rate * direction)
            self.clamp_()
            kl, gain = evaluate()
            if not settings.line_search or (kl <= (settings.max_kl or 0) and gain > 0):
                if not math.isfinite(kl):
                    raise Diverged(f"the KL of a natural gradient step is {kl}")
                times = backtracks if settings.line_search else None
                return Update(learning_rate=rate, step_kl=kl, backtracks=times, rejected_steps=0)
            rate *= SHORTER
        vector.copy_(before)
        return Update(learning_rate=0.0, step_kl=0.0, backtracks=TRIALS, rejected_steps=1)

    def _evaluation(self, batch: Batch, progress: float) -> Callable[[], tuple[float, float]]:
        """Return a function that compares the policy with the present one: KL and gain of the surrogate."""
        distribution, coefficient = self._policy.distribution, self._losses.entropy_coef(progress)
        weights = batch.weights.double()

        def measured() -> tuple[Tensor, Tensor, Tensor]:
            outputs = self._policy(batch.obs, batch.sequences).double()
            found = distribution.state_parameters(outputs), distribution.log_probs(outputs, batch.actions)
            return *found, distribution.entropy(outputs).mean()

        old, old_log_probs, old_entropy = measured()

        def evaluate() -> tuple[float, float]:
            now, log_probs, entropy = measured()
            kl = (weights * distribution.kl(old, now)).sum() / weights.sum()
            gain = (weights * batch.advantages * torch.expm1(log_probs - old_log_probs)).sum()
            return float(kl), float(gain + coefficient * (entropy - old_entropy))

        return evaluate


def precision_of(vector: Tensor) -> float:
    """Return the relative error of a matrix-vector product in the type of `vector`."""
    return 10 * torch.finfo(vector.dtype).eps


def conjugate_gradient(product: Product, g: Tensor, iterations: int, damping: float, precision: float) -> Tensor:
    """Solve (F + λ I) x = g by at most `iterations` steps of the conjugate gradient method, from x = 0.

    F may be singular: if g is in its range, x is the shortest solution. It stops where the residual, or the curvature
    along the next direction, is a rounding error of `precision`; x = 0 if g itself is such a direction.

    Args: product: v → F v, positive semi-definite. g, [dim], of length about 1.
    Source: Hestenes & Stiefel (1952).
    """
    x, residual, direction = torch.zeros_like(g), g.clone(), g.clone()
    square, largest = float(residual @ residual), 0.0
    enough = precision**2 * square
    for _ in range(iterations):
        along = product(direction)
        length = float(direction @ direction)
        of_fisher = float(direction @ along)
        largest = max(largest, of_fisher / length)
        curvature = of_fisher + damping * length
        if not precision * largest * length < curvature < math.inf:
            break
        x += square / curvature * direction
        residual -= square / curvature * (along + damping * direction)
        before, square = square, float(residual @ residual)
        if not square > enough:
            break
        direction = residual + square / before * direction
    return x
