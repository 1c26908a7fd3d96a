"""Closed-form gradients equal autograd's for all networks and distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import autograd, config, learner_of, random_batch
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.gradients.closed_form import has_closed_form
from pgcli.algorithm.gradients.fisher import autograd_product, fisher_product
from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.optimizers import unflattened
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.estimators.objectives import value_slope
from pgcli.policies.networks import Chain, mlp

M = 12
SPACES: dict[str, spaces.Space[Any]] = {
    "softmax": spaces.Discrete(4, start=-1),
    "factorised": spaces.MultiDiscrete([2, 3], start=[5, 0]),
    "bernoulli": spaces.MultiBinary(3),
    "gaussian": spaces.Box(-1, 1, (2,)),
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "policy_gradient": {},
    "policy_gradient with an entropy bonus": {"entropy_coef": 0.3},
    "importance_sampling": {"objective": "importance_sampling"},
    "importance_sampling, bounded": {"objective": "importance_sampling", "importance_bound": 1.1},
    "importance_sampling, self-normalised": {
        "objective": "importance_sampling",
        "importance_bound": 1.1,
        "self_normalize": True,
    },
    "clip": {"objective": "clip", "clip_range": 0.1},
    "clip, two ranges": {"objective": "clip", "clip_range": [0.05, 0.8]},
    "clip, adaptive KL penalty": {"objective": "clip", "kl_coef": {"target": 0.01}},
    "clip, KL penalty, entropy": {"objective": "clip", "kl_coef": 0.4, "entropy_coef": 0.3},
}


def agent_of(space: spaces.Space[Any], *, obs: spaces.Space[Any] | None = None, **sections: Any) -> PolicyGradient:
    settings = config(**{"policy": {"hidden_sizes": [6, 5]}} | sections)
    torch.manual_seed(0)
    agent = build_agent(obs or spaces.Box(-9, 9, (3,)), space, settings)
    for module in (agent.policy, agent.value):
        if module is not None:
            for parameter in module.double().parameters():
                torch.nn.init.normal_(parameter, std=0.7)
    return agent


def batch_of(agent: PolicyGradient, obs: Tensor) -> Batch:
    """Create steps of another policy, with ratios, advantages and values on both sides of each bound."""
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    actor, distribution = agent.policy.actor("sampled"), agent.policy.distribution
    noise = distribution.noise(np.random.default_rng(3), 1, M)[0]
    with torch.no_grad():
        outputs = agent.policy(obs)
        actions = torch.from_numpy(distribution.sample(outputs.numpy(), noise))
        behavior = distribution.log_probs(outputs, actions) + 0.3 * normal(M)
        values = normal(M) if agent.value is None else agent.value(agent.policy, obs) + 0.3 * normal(M)
    assert actor is not None
    return Batch(
        obs=obs,
        inputs=agent.gradient.inputs(obs),
        actions=actions,
        advantages=normal(M),
        weights=normal(M).abs(),
        returns=normal(M),
        values=values,
        behavior_log_probs=behavior,
        on_policy=False,
        sequences=None,
        trajectories=random_batch(),
    )


def assert_same(agent: PolicyGradient, batch: Batch, of: Any) -> None:
    assert has_closed_form(agent.policy, agent.value)
    with torch.no_grad():
        gradient, terms = agent.gradient(batch, of, 0.25)
    expected, expected_terms = autograd(agent)(batch, of, 0.25)
    (optimizer,) = (part.optimizer for part in agent.parts if part.name == of)
    parts = [unflattened(vector, optimizer.parameters) for vector in (gradient, expected)]
    for number, (one, other) in enumerate(zip(*parts, strict=True)):
        assert other.abs().max() > 1e-6, number  # none is trivially equal
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    found, wanted = terms(), expected_terms()
    assert found.keys() == wanted.keys()
    for name, term in found.items():
        assert term.item() == pytest.approx(wanted[name].item(), rel=1e-10), name


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("space", SPACES)
def test_the_policys_gradient_equals_autograds(space: str, objective: str) -> None:
    agent = agent_of(SPACES[space], algorithm={"update_epochs": 2} | OBJECTIVES[objective])
    draw = torch.Generator().manual_seed(1)
    assert_same(agent, batch_of(agent, torch.randn(M, 3, dtype=torch.float64, generator=draw)), "policy")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("clip_range", [None, 0.1])
def test_the_value_functions_gradient_equals_autograds(clip_range: float | None, shared: bool, normalize: bool) -> None:
    agent = agent_of(
        SPACES["gaussian"],
        algorithm={"baseline": "value", "value_coef": 0.7, **OBJECTIVES["clip, KL penalty, entropy"]},
        value={"clip_range": clip_range, "shared_trunk": shared},
        policy={"hidden_sizes": [6, 5], "normalize_obs": normalize},
    )
    draw = torch.Generator().manual_seed(1)
    obs = torch.randn(M, 3, dtype=torch.float64, generator=draw)
    agent.policy.add_statistics(3 * obs + 1)
    batch = batch_of(agent, obs)
    for of in ("joint",) if shared else ("policy", "value"):
        assert_same(agent, batch, of)


@pytest.mark.parametrize("space", SPACES)
def test_the_gradient_of_two_networks_that_are_clipped_together_equals_autograds(space: str) -> None:
    agent = agent_of(
        SPACES[space],
        algorithm={"baseline": "value", "value_coef": 0.7, **OBJECTIVES["clip, two ranges"]},
        optimizer={"clip_gradients": "together", "max_grad_norm": 0.5},
    )
    draw = torch.Generator().manual_seed(1)
    assert_same(agent, batch_of(agent, torch.randn(M, 3, dtype=torch.float64, generator=draw)), "joint")


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
@pytest.mark.parametrize("space", ["softmax", "factorised"])
def test_forbidden_actions_have_no_gradient_either_way(space: str, entropy_coef: float) -> None:
    entries = 4 if space == "softmax" else 5
    seen = spaces.Dict({"action_mask": spaces.MultiBinary(entries), "x": spaces.Box(-1, 1, (2,), np.float64)})
    agent = agent_of(SPACES[space], obs=seen, algorithm={"objective": "clip", "entropy_coef": entropy_coef})
    assert agent.policy.masked
    random = np.random.default_rng(2)
    masks = random.integers(0, 2, (M, entries)).astype(np.int8)
    masks[:, [0, -1]] = 1  # something is permitted to each factor
    rows = [agent.policy.encoder.layout.pack({"action_mask": mask, "x": random.normal(size=2)}) for mask in masks]
    batch = batch_of(agent, torch.from_numpy(np.stack(rows)))
    assert_same(agent, batch, "policy")
    assert_same_fisher(agent, batch)


@pytest.mark.parametrize("hidden_sizes", [[], [3], [4, 3, 5]])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "identity"])
def test_the_chain_rule_through_layers_equals_autograds(activation: Any, hidden_sizes: list[int]) -> None:
    torch.manual_seed(4)
    network = mlp([3, *hidden_sizes, 2], activation).double()
    gradient_of: dict[Tensor, Tensor] = {x: torch.zeros_like(x, requires_grad=False) for x in network.parameters()}
    x, slope = torch.randn(7, 3, dtype=torch.float64, requires_grad=True), torch.randn(7, 2, dtype=torch.float64)
    expected = torch.autograd.grad(network(x), [*network.parameters(), x], slope)
    with torch.no_grad():
        chain = Chain(list(network), gradient_of)
        inputs, _ = chain.forward(x)
        onward = chain.backward(inputs, slope, inner=True)
    for one, other in zip([*gradient_of.values(), onward], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def assert_same_fisher(agent: PolicyGradient, batch: Batch) -> None:
    size = sum(parameter.numel() for parameter in agent.policy.parameters())
    draw = torch.Generator().manual_seed(5)
    for v in torch.randn(3, size, dtype=torch.float64, generator=draw):
        found, expected = (form(agent.policy, batch, batch.weights)(v) for form in (fisher_product, autograd_product))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("hidden_sizes", [[], [6, 5]])
@pytest.mark.parametrize("space", SPACES)
def test_products_with_the_fisher_matrix_equal_autograds(
    space: str, hidden_sizes: list[int], activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_of(SPACES[space], policy={"hidden_sizes": hidden_sizes, "activation": activation})
    draw = torch.Generator().manual_seed(1)
    batch = batch_of(agent, torch.randn(M, 3, dtype=torch.float64, generator=draw))
    assert_same_fisher(agent, batch)
    monkeypatch.setattr(torch.autograd, "grad", None)  # the two implementations are really different
    fisher_product(agent.policy, batch, batch.weights)(torch.ones(sum(x.numel() for x in agent.policy.parameters())))


def test_networks_without_a_closed_form_use_autograd() -> None:
    box = SPACES["gaussian"]
    for distribution in ("tanh_gaussian", "state_dependent_gaussian"):
        agent = agent_of(box, policy={"distribution": distribution})
        assert not has_closed_form(agent.policy, None)
    assert not has_closed_form(agent_of(box, policy={"memory": "gru"}).policy, None)
    pictures = agent_of(box, obs=spaces.Box(0, 255, (8, 8, 3), np.uint8))
    assert not has_closed_form(pictures.policy, None)


def test_an_update_uses_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that the two implementations are really different."""
    agent = learner_of(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), config())
    monkeypatch.setattr(torch.autograd, "grad", None)
    agent.update(random_batch(torch.float32))


def test_rounding_does_not_clip_a_value_inside_the_range() -> None:
    draw = torch.Generator().manual_seed(0)
    values, moves, targets = torch.randn(3, 1000, generator=draw).numpy()
    slopes = value_slope(values, targets, moves, clip_range=100)
    np.testing.assert_allclose(slopes, 2 * (values - targets) / 1000, rtol=1e-6)
