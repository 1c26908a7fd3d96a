"""Products with the Fisher matrix of a policy: in closed form for plain networks, else by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.gradients.closed_form import has_closed_form
from pgcli.algorithm.optimizers import flattened, unflattened
from pgcli.policies.distributions import Product
from pgcli.policies.networks import Chain
from pgcli.policies.policy import FORBIDDEN, Policy


def fisher_product(policy: Policy, batch: Batch, weights: Tensor) -> Product:
    """Return v → F v in float64, F = Σ_t w_t E_a~π(·|s_t)[∇log π ∇log πᵀ], for weights w [M] and v [dim].

    The order of the parameters is that of `policy.parameters()`.
    """
    return (closed_form_product if has_closed_form(policy, None) else autograd_product)(policy, batch, weights)


def closed_form_product(policy: Policy, batch: Batch, weights: Tensor) -> Product:
    """Return v → Σ_t w_t Jᵀ F(s_t) J v, with J = ∂outputs/∂θ at s_t.

    F(s) is the Fisher matrix of the outputs; J v is a forward pass of tangents. log σ of a gaussian policy is a
    parameter itself, of Fisher information 2 (Var z² = 2), without covariance with the mean.
    """
    parameters: list[Tensor] = list(policy.parameters())
    found = torch.zeros_like(flattened(parameters), requires_grad=False)
    found_of = dict(zip(parameters, unflattened(found, parameters), strict=True))
    with torch.no_grad():
        chain = Chain(policy.network, found_of)
        inputs, outputs = chain.forward(policy.encode(batch.obs))
        if policy.masked:
            outputs = outputs.masked_fill(~policy.encoder.permitted(batch.obs), FORBIDDEN)
        of_outputs, total = policy.distribution.fisher(outputs.double()), weights.sum()

    @torch.no_grad()
    def product(v: Tensor) -> Tensor:
        along = dict(zip(parameters, unflattened(v.to(found), parameters), strict=True))
        slope = weights[:, None] * of_outputs(chain.tangent(inputs, along).double())
        chain.backward(list(inputs), slope.to(found.dtype))
        for log_sigma in policy.distribution.parameters():
            found_of[log_sigma].copy_(2 * total * along[log_sigma])
        return found.to(torch.float64, copy=True)

    return product


def autograd_product(policy: Policy, batch: Batch, weights: Tensor) -> Product:
    """Return v → H v, with H the Hessian of Σ w KL(π_old‖π_θ) at θ_old. It differentiates twice."""
    distribution, parameters = policy.distribution, list(policy.parameters())
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # its RNNs have no second derivative
        now = distribution.state_parameters(policy(batch.obs, batch.sequences).double())
        kl = (weights * distribution.kl(now.detach(), now)).sum()
        slope = flattened(torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        along = torch.autograd.grad(slope, parameters, v.to(slope), retain_graph=True, materialize_grads=True)
        return flattened(along).double()

    return product
