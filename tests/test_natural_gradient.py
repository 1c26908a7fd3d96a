"""Natural gradient steps equal F⁻¹ g of explicit matrices and closed forms; TRPO takes the longest permitted step."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from helpers import config, flat_batch, learner_of, mostly_slow, random_batch, softmax_agent, trajectories
from helpers import log_probs as log_probs_of
from test_closed_form import SPACES, agent_of, batch_of
from torch import Tensor

from pgcli.algorithm import natural_gradient
from pgcli.algorithm.batch import Batch
from pgcli.algorithm.gradients.fisher import fisher_product
from pgcli.algorithm.learner import Learner, build_agent
from pgcli.algorithm.natural_gradient import NaturalGradient, conjugate_gradient
from pgcli.algorithm.optimizers import flattened
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.errors import Diverged
from pgcli.estimators.trajectories import Trajectories
from pgcli.records import OPTIONAL
from pgcli.runs import checkpoints

NATURAL: dict[str, Any] = {"name": "natural", "damping": 0, "cg_iterations": 200}
TRPO: dict[str, Any] = NATURAL | {"max_kl": 0.01, "line_search": True}
BATCH = random_batch(torch.float32)


def optimizer_of(agent: PolicyGradient) -> NaturalGradient:
    optimizer = agent.parts[0].optimizer
    assert isinstance(optimizer, NaturalGradient)
    return optimizer


def parameters(agent: PolicyGradient) -> Tensor:
    return flattened(list(agent.policy.parameters())).detach().clone()


def moved(agent: PolicyGradient, batch: Batch, gradient: Tensor, rate: float = 1.0) -> Tensor:
    """Return the change of the parameters in a step along `gradient`."""
    before = parameters(agent)
    with torch.no_grad():
        optimizer_of(agent).step(-gradient, rate, batch)
    return parameters(agent) - before


def scores(agent: PolicyGradient, obs: Tensor, actions: Tensor, sequences: Any = None) -> Tensor:
    """Compute ∇log π(a|s) of each step by autograd, [M, dim]."""
    log_probs = agent.policy.distribution.log_probs(agent.policy(obs, sequences), actions)
    each = [torch.autograd.grad(one, list(agent.policy.parameters()), retain_graph=True) for one in log_probs]
    return torch.stack([flattened(one) for one in each])


def fisher(agent: PolicyGradient, batch: Batch, draws: list[tuple[float, Tensor]]) -> Tensor:
    """Compute Σ_t w_t E[∇log π ∇log πᵀ] / Σ_t w_t from all actions or nodes: (weight, or 0 for π; actions [M, …])."""
    total = torch.zeros(())
    for weight, actions in draws:
        s = scores(agent, batch.obs, actions, batch.sequences)
        p = torch.full((len(s),), weight, dtype=torch.float64)
        if not weight:
            with torch.no_grad():
                p = agent.policy.distribution.log_probs(agent.policy(batch.obs, batch.sequences), actions).exp()
        total = total + torch.einsum("m,mi,mj->ij", p * batch.weights / batch.weights.sum(), s, s)
    return total


def all_actions(name: str, count: int) -> list[tuple[float, Tensor]]:
    table = {
        "softmax": [[a] for a in range(-1, 3)],
        "factorised": [[a, b] for a in (5, 6) for b in (0, 1, 2)],
        "bernoulli": [list(bits) for bits in product((0, 1), repeat=3)],
    }[name]
    rows = [torch.tensor(row).expand(count, -1) for row in table]
    return [(0.0, row[:, 0] if name == "softmax" else row) for row in rows]


def nodes_of(agent: PolicyGradient, batch: Batch) -> list[tuple[float, Tensor]]:
    """Gauss-Hermite nodes of a gaussian policy of two entries, exact for squares of its scores."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    weights = weights / weights.sum()
    with torch.no_grad():
        state = agent.policy.distribution.state_parameters(agent.policy(batch.obs, batch.sequences))
    mean, log_sigma = state.chunk(2, 1)
    return [
        (float(weights[i] * weights[j]), mean + log_sigma.exp() * torch.tensor([nodes[i], nodes[j]]))
        for i in range(6)
        for j in range(6)
    ]


@pytest.mark.parametrize("space", [*SPACES, "tanh_gaussian", "state_dependent_gaussian"])
def test_the_product_with_the_fisher_matrix_is_that_of_the_expected_outer_products(space: str) -> None:
    box = space if "_gaussian" in space else "auto"
    agent = agent_of(
        SPACES.get(space, SPACES["gaussian"]), policy={"hidden_sizes": [4], "distribution": box}, optimizer=NATURAL
    )
    draw = torch.Generator().manual_seed(1)
    batch = batch_of(agent, torch.randn(12, 3, dtype=torch.float64, generator=draw))
    draws = nodes_of(agent, batch) if "gaussian" in space else all_actions(space, len(batch))
    expected = fisher(agent, batch, draws)
    multiply = fisher_product(agent.policy, batch, batch.weights / batch.weights.sum())
    found = torch.stack([multiply(v) for v in torch.eye(len(expected), dtype=torch.float64)])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_the_fisher_matrix_of_a_recurrent_policy(memory: str) -> None:
    policy = {"hidden_sizes": [], "memory": memory, "memory_size": 2}
    agent = build_agent(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), config(policy=policy, optimizer=NATURAL))
    agent.policy.double()
    batch, _ = flat_batch(agent, random_batch())
    expected = fisher(agent, batch, [(0.0, torch.full((len(batch),), a)) for a in range(4)])
    multiply = fisher_product(agent.policy, batch, batch.weights / batch.weights.sum())
    found = torch.stack([multiply(v) for v in torch.eye(len(expected), dtype=torch.float64)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- closed forms


def tabular(states: int, logits: Tensor, **sections: Any) -> PolicyGradient:
    """Build a policy with one logit for each state and action; its bias stays in the parameters."""
    settings = config(**{"policy": {"hidden_sizes": []}, "optimizer": NATURAL} | sections)
    agent = build_agent(spaces.Discrete(states), spaces.Discrete(logits.shape[1]), settings)
    weight, bias = agent.policy.double().parameters()
    with torch.no_grad():
        weight.copy_(logits.T)
        bias.zero_()
    return agent


@pytest.mark.parametrize("average", ["steps", "episodes", "episode_means"])
def test_the_natural_gradient_of_a_tabular_softmax_is_the_advantage_up_to_a_constant_per_state(average: str) -> None:
    """Kakade (2001): the logits move by α A(s, a) + c(s), however often a state is visited."""
    draw = torch.Generator().manual_seed(2)
    logits, table = torch.randn(2, 3, 4, dtype=torch.float64, generator=draw)
    agent = tabular(3, logits, algorithm={"baseline": "none", "average": average, "discount_weighting": True})
    pi = logits.softmax(1)
    advantages = table - (pi * table).sum(1, keepdim=True)
    # all actions of each state, weighted by their probabilities and by any distribution of the states
    state, action = (x.flatten() for x in torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"))
    visits = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    batch, _ = flat_batch(agent, trajectories([(0, 1.0)] * 12))
    weights = (visits[:, None] * pi).flatten() * {"steps": 1, "episodes": 12, "episode_means": 0.2}[average]
    batch = replace(
        batch, obs=state[:, None].to(batch.obs), actions=action, weights=weights, advantages=table.flatten()
    )
    gradient = (weights[:, None] * advantages.flatten()[:, None] * scores(agent, batch.obs, action)).sum(0)
    change = moved(agent, batch, gradient, rate=0.5)
    weight, bias = change[:12].view(4, 3).T, change[12:]
    of_logits = weight + bias
    centred = of_logits - (pi * of_logits).sum(1, keepdim=True)
    torch.testing.assert_close(centred, 0.5 * advantages, rtol=1e-8, atol=1e-9)
    plain = gradient[:12].view(4, 3).T + gradient[12:]
    assert (plain - (pi * plain).sum(1, keepdim=True) - advantages).abs().max() > 0.1, "the plain gradient is another"


def test_the_natural_gradient_of_a_gaussian_bandit_has_its_closed_form() -> None:
    """With r = -(a - c)²: ∂J/∂μ = -2 (μ - c), ∂J/∂log σ = -2σ²; F = diag(1/σ², 2), so Δ = (-2σ² (μ - c), -σ²)."""
    agent = agent_of(
        spaces.Box(-9, 9, (1,)), obs=spaces.Box(-1, 1, (0,)), policy={"hidden_sizes": []}, optimizer=NATURAL
    )
    mean, sigma, c = 0.3, 0.7, 1.0
    with torch.no_grad():
        for parameter, x in zip(agent.policy.parameters(), (math.log(sigma), mean), strict=False):
            parameter.fill_(x)
        list(agent.policy.parameters())[-1].fill_(mean)
    names = [name for name, _ in agent.policy.named_parameters()]
    assert names == ["distribution.log_standard_deviation", "network.0.weight", "network.0.bias"]
    batch = replace(
        flat(agent, torch.zeros(12, 0, dtype=torch.float64)), advantages=torch.zeros(12, dtype=torch.float64)
    )
    gradient = torch.tensor([-2 * sigma**2, -2 * (mean - c)], dtype=torch.float64)
    expected = torch.tensor([-(sigma**2), -2 * sigma**2 * (mean - c)], dtype=torch.float64)
    torch.testing.assert_close(moved(agent, batch, gradient, 0.1), 0.1 * expected, rtol=1e-10, atol=1e-12)


def flat(agent: PolicyGradient, obs: Tensor) -> Batch:
    batch = batch_of(agent, obs)
    return replace(batch, weights=torch.full((len(obs),), 1 / len(obs), dtype=torch.float64))


def test_the_natural_gradient_of_a_linear_quadratic_regulator_has_its_closed_form() -> None:
    """With a ~ N(k s + b, σ²) and x = (s, 1), (k, b) move by σ² E[x xᵀ]⁻¹ ∇J, and log σ by half its slope."""
    agent = agent_of(
        spaces.Box(-9, 9, (1,)), obs=spaces.Box(-9, 9, (1,)), policy={"hidden_sizes": []}, optimizer=NATURAL
    )
    s = torch.linspace(-0.2, 1, 12, dtype=torch.float64)[:, None]
    gradient = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)  # of log σ, k, b
    sigma = float(next(iter(agent.policy.parameters())).detach().exp())
    x = torch.cat((s, torch.ones_like(s)), 1)
    second = x.T @ x / 12
    expected = torch.cat((gradient[:1] / 2, sigma**2 * torch.linalg.solve(second, gradient[1:])))
    torch.testing.assert_close(moved(agent, flat(agent, s), gradient), expected, rtol=1e-8, atol=1e-10)


def test_the_natural_gradient_does_not_depend_on_a_linear_parametrization() -> None:
    """With observations M s instead of s and weights W M⁻¹, the policy is the same; so is its natural step, only."""
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(12, 3, dtype=torch.float64, generator=draw)
    mixing = torch.tensor([[2.0, 0.3, 0.0], [0.0, 0.5, -0.4], [0.1, 0.0, 3.0]], dtype=torch.float64)
    logits: dict[str, list[Tensor]] = {"natural": [], "sgd": []}
    for name in ("natural", "sgd"):
        settings = config(policy={"hidden_sizes": []}, optimizer=NATURAL if name == "natural" else {"name": "sgd"})
        for matrix in (torch.eye(3, dtype=torch.float64), mixing):
            agent = build_agent(spaces.Box(-9, 9, (3,)), spaces.Discrete(3), settings)
            weight, bias = agent.policy.double().parameters()
            with torch.no_grad():
                weight.copy_(torch.arange(9, dtype=torch.float64).view(3, 3).sin() @ torch.linalg.inv(matrix))
                bias.copy_(torch.tensor([0.0, 0.2, -0.1]))
            batch = flat(agent, states @ matrix.T)
            batch = replace(batch, actions=torch.arange(12) % 3, advantages=torch.arange(12).double().cos())
            with torch.no_grad():
                gradient, _ = agent.gradient(replace(batch, on_policy=True, inputs=batch.obs), "policy", 0.0)
                agent.parts[0].optimizer.step(gradient, 0.7, batch)
                logits[name].append(agent.policy.forward(batch.obs).log_softmax(1))
    assert (logits["natural"][0] - logits["natural"][1]).abs().max() < 1e-8
    assert (logits["sgd"][0] - logits["sgd"][1]).abs().max() > 1e-2


# ------------------------------------------------------------------------------------- conjugate gradients and damping


def matrix(*eigenvalues: float) -> Tensor:
    draw = torch.Generator().manual_seed(4)
    axes: Tensor = torch.linalg.qr(
        torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64, generator=draw)
    )[0]
    return axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("eigenvalues", [(1, 2, 3, 4), (1e-3, 1, 1, 100), (0, 0, 1, 5)])
def test_conjugate_gradients_solve_the_damped_system(damping: float, eigenvalues: tuple[float, ...]) -> None:
    f = matrix(*eigenvalues)
    g = f @ torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)  # in the range of F
    g = g / g.norm()
    x = conjugate_gradient(lambda v: f @ v, g, 50, damping, 1e-14)
    expected = torch.linalg.pinv(f + damping * torch.eye(4, dtype=torch.float64), hermitian=True) @ g
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-8)


def test_each_iteration_of_conjugate_gradients_brings_the_solution_closer() -> None:
    f = matrix(1, 2, 4, 8, 16)
    g = torch.ones(5, dtype=torch.float64)
    exact = torch.linalg.solve(f, g)
    errors = [float((conjugate_gradient(lambda v: f @ v, g, n, 0.0, 1e-14) - exact).norm()) for n in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[5] < 1e-9 < errors[4], "five iterations suffice in five dimensions"


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_gradient_outside_of_the_range_of_a_singular_matrix_gives_no_direction(rounding: float) -> None:
    f = matrix(0, 1, 2)
    null = torch.linalg.eigh(f)[1][:, 0]
    f = f + rounding * torch.eye(3, dtype=torch.float64)
    large = torch.linalg.eigh(f)[1][:, 2]
    mixed = null + large  # its second direction is singular: the step ends there
    assert not conjugate_gradient(lambda v: f @ v, null, 10, 0.0, 1e-6).any() or rounding
    x = conjugate_gradient(lambda v: f @ v, mixed, 10, 0.0, 1e-6)
    assert x.isfinite().all()
    assert x.norm() < 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_overflow_give_no_direction(bad: float) -> None:
    g = torch.ones(3, dtype=torch.float64)
    assert not conjugate_gradient(lambda v: bad * v, g, 10, 0.1, 1e-6).any()


# ------------------------------------------------------------------------------------------- updates: max_kl and TRPO


def agent_with(optimizer: dict[str, Any], **sections: Any) -> Learner:
    settings = config(**{"policy": {"hidden_sizes": [6]}} | sections, optimizer=optimizer)
    return learner_of(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), settings)


def whole_state(learner: Learner) -> dict[str, list[float]]:
    return {name: x.flatten().tolist() for name, x in learner.state_dict().items()}


@pytest.mark.parametrize("max_kl", [1e-6, 1e-4])
def test_max_kl_is_the_kl_of_a_short_step(max_kl: float) -> None:
    learner = agent_with(NATURAL | {"max_kl": max_kl, "damping": 0.01})
    agent, old = learner.agent, learner.agent.policy(BATCH.obs[:-1][BATCH.mask]).detach().double().log_softmax(1)
    update = learner.update(BATCH)
    new = agent.policy(BATCH.obs[:-1][BATCH.mask]).detach().double().log_softmax(1)
    kl = float((old.exp() * (old - new)).sum(1).mean())
    assert update.step_kl == pytest.approx(kl, rel=1e-5)
    assert kl == pytest.approx(max_kl, rel=0.1)
    assert update.rejected_steps == 0
    assert update.backtracks is None


def test_the_learning_rate_is_the_one_that_max_kl_leaves() -> None:
    by_kl = agent_with(NATURAL | {"max_kl": 1e-4, "damping": 0.01})
    update = by_kl.update(BATCH)
    by_rate = agent_with(NATURAL | {"learning_rate": update.learning_rate, "damping": 0.01})
    again = by_rate.update(BATCH)
    assert again.learning_rate == update.learning_rate
    assert again.step_kl == pytest.approx(update.step_kl, rel=1e-3)


def test_trpo_improves_the_surrogate_within_the_kl() -> None:
    learner = agent_with(TRPO | {"max_kl": 0.3, "damping": 1e-3})
    batch, _ = flat_batch(learner.agent, BATCH)

    def log_probs() -> Tensor:
        with torch.no_grad():
            return log_probs_of(learner.policy, batch.obs, batch.actions)

    before = log_probs()
    update = learner.update(BATCH)
    gain = (batch.weights * batch.advantages * ((log_probs() - before).exp() - 1)).sum()
    assert gain > 0
    assert update.step_kl is not None
    assert 0 < update.step_kl <= 0.3
    assert update.backtracks, "½ Δᵀ F Δ = 0.3 is far from the KL"
    assert update.rejected_steps == 0


def test_a_failed_line_search_leaves_every_byte_of_the_policy_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = agent_with(TRPO, algorithm={"baseline": "value"}, value={"learning_rate": 0.01})
    before = whole_state(learner)
    monkeypatch.setattr(NaturalGradient, "_evaluation", lambda *_: lambda: (0.0, -1.0))
    update = learner.update(BATCH)
    assert (update.rejected_steps, update.backtracks, update.step_kl, update.learning_rate) == (1, 15, 0.0, 0.0)
    after = whole_state(learner)
    assert {name: x for name, x in after.items() if name.startswith("policy.")} == {
        name: x for name, x in before.items() if name.startswith("policy.")
    }
    assert after["value_optimizer.step"] == [1.0], "the value function learns all the same"


@pytest.mark.parametrize(
    ("kl", "gain", "accepted"),
    [(0.01, 1e-9, True), (0.0101, 1.0, False), (0.001, 0.0, False), (math.nan, 1.0, False), (0.001, math.nan, False)],
)
def test_a_line_search_accepts_a_step_within_the_kl_that_improves(
    kl: float, gain: float, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = agent_with(TRPO)
    monkeypatch.setattr(NaturalGradient, "_evaluation", lambda *_: lambda: (kl, gain))
    assert learner.update(BATCH).rejected_steps == 1 - accepted


def test_the_line_search_makes_the_step_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[Tensor] = []
    learner = agent_with(TRPO)
    start = parameters(learner.agent)

    def evaluate() -> tuple[float, float]:
        changes.append(parameters(learner.agent) - start)
        return (0.0, 1.0) if len(changes) == 4 else (1.0, 1.0)

    monkeypatch.setattr(NaturalGradient, "_evaluation", lambda *_: evaluate)
    update = learner.update(BATCH)
    assert update.backtracks == 3
    for number, change in enumerate(changes):
        torch.testing.assert_close(change, changes[0] * 0.8**number, rtol=1e-3, atol=1e-6)


def test_equal_advantages_leave_the_policy_as_it_is() -> None:
    learner = agent_with(TRPO)
    before = whole_state(learner)
    update = learner.update(replace(BATCH, rewards=torch.zeros_like(BATCH.rewards)))
    assert (update.step_kl, update.rejected_steps) == (0.0, 0)
    assert whole_state(learner) == before


@pytest.mark.parametrize("optimizer", [NATURAL | {"max_kl": 0.01}, TRPO, NATURAL | {"learning_rate": 0.1}], ids=str)
def test_a_singular_fisher_matrix_rejects_the_step(optimizer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    learner = agent_with(optimizer)
    before = whole_state(learner)
    monkeypatch.setattr(natural_gradient, "fisher_product", lambda *_: torch.zeros_like)
    update = learner.update(BATCH)
    assert (update.rejected_steps, update.step_kl, update.learning_rate) == (1, 0.0, 0.0)
    assert whole_state(learner) == before


@pytest.mark.parametrize("reward", [math.nan, 1e200])
def test_a_gradient_that_is_not_finite_is_reported_and_changes_nothing(reward: float) -> None:
    learner = agent_with(TRPO)
    before, rewards = whole_state(learner), BATCH.rewards.clone()
    rewards[0, 0] = reward
    with pytest.raises(Diverged, match=r"is (nan|inf|-inf)"):
        learner.update(replace(BATCH, rewards=rewards))
    assert whole_state(learner) == before


def test_a_step_whose_kl_overflows_is_reported_and_changes_nothing() -> None:
    learner = agent_with(NATURAL | {"learning_rate": 1e38})
    before = whole_state(learner)
    with pytest.raises(Diverged, match=r"not finite|is nan|is inf"):
        learner.update(BATCH)
    assert whole_state(learner) == before


@pytest.mark.parametrize("reward", [1e-30, 1.0, 1e15])
def test_the_step_of_a_fixed_kl_does_not_depend_on_the_scale_of_the_rewards(reward: float) -> None:
    plain, scaled = (agent_with(TRPO | {"damping": 0.1}) for _ in range(2))
    plain.update(BATCH)
    scaled.update(replace(BATCH, rewards=reward * BATCH.rewards))
    torch.testing.assert_close(parameters(plain.agent), parameters(scaled.agent), rtol=1e-3, atol=1e-4)


def test_a_natural_step_keeps_log_sigma_within_its_bounds() -> None:
    policy = {"hidden_sizes": [], "log_std_bounds": [-0.001, 0.001]}
    learner = learner_of(spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (1,)), config(policy=policy, optimizer=TRPO))
    actions = BATCH.actions.float()[..., None]
    update = learner.update(replace(BATCH, actions=actions))
    log_sigma = float(next(learner.policy.parameters()).detach())
    assert abs(log_sigma) <= 0.0010001
    assert update.rejected_steps == 0


def test_the_surrogate_includes_the_entropy_bonus() -> None:
    """Equal rewards: only the bonus remains, so the step goes to the uniform policy."""
    agent = softmax_agent([0.0, 1.0], entropy_coef=0.5)
    settings = agent.config.model_copy(update={"optimizer": config(optimizer=TRPO).optimizer})
    learner = Learner(PolicyGradient(agent.policy, None, settings))
    update = learner.update(trajectories([(0, 0.0)], [(1, 0.0)]))
    assert update.rejected_steps == 0
    assert update.step_kl == pytest.approx(0.01, rel=0.4)
    assert update.entropy is not None
    after = learner.update(trajectories([(0, 0.0)], [(1, 0.0)]))
    assert after.entropy is not None
    assert after.entropy > update.entropy


def check_is_called(learner: Learner, data: Trajectories) -> int:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    learner.update(data, check=check)
    return calls


def test_an_interrupt_is_checked_before_the_step() -> None:
    assert check_is_called(agent_with(TRPO), BATCH) == 1


# ------------------------------------------------------------------------------------------------------- whole runs

SMALL = ["env.max_episode_steps=30", "evaluation={every: 2, episodes: 2}", "checkpoint.every=1"]
SEGMENTS = [
    "env.num_envs=4",
    "rollout={episodes: null, steps: 16}",
    "algorithm={returns: lambda_return, baseline: value}",
]
RUNS = {
    "natural": ["rollout.episodes=4", "optimizer={name: natural, learning_rate: 0.1}"],
    "trpo": [*SEGMENTS, "optimizer={name: natural, max_kl: 0.01, line_search: true}", "value.learning_rate=0.01"],
    "ppo": [
        *(*SEGMENTS[:2], "optimizer={clip_gradients: together, max_grad_norm: 0.5}"),
        "algorithm={returns: lambda_return, baseline: value, objective: clip, update_epochs: 2, num_minibatches: 2, "
        "standardize: minibatch, clip_range: [0.2, 0.3], kl_coef: {target: 0.01}}",
    ],
    "momentum": ["rollout.episodes=4", "optimizer={name: sgd, momentum: 0.9}"],
}


def contents(run: Path) -> dict[str, bytes]:
    tables = {name: (run / name).read_bytes() for name in ("metrics.csv", "evaluations.csv", "episodes.csv")}
    checkpoint = checkpoints.load(run / "checkpoints" / checkpoints.file_name(4))
    return tables | {name: x.numpy().tobytes() for name, x in checkpoint.tensors.items()}


@pytest.mark.parametrize("name", mostly_slow(RUNS, ["trpo"], "trains each four times"))
def test_a_run_that_is_resumed_or_has_workers_has_the_same_bytes(name: str, tmp_path: Path) -> None:
    words = [*SMALL, *RUNS[name], "policy.hidden_sizes=[4]", "env.chunk_size=2"]
    for run, more in (("whole", []), ("workers", ["sampling.workers=2"])):
        pgcli("train", "cartpole", *words, *more, "training={iterations: 4}", "--run-dir", run, cwd=tmp_path)
    pgcli("train", "cartpole", *words, "training={iterations: 2}", "--run-dir", "part", cwd=tmp_path)
    pgcli("resume", "part", "training.iterations=4", cwd=tmp_path)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "part") == whole
    assert contents(tmp_path / "workers") == whole
    header = whole["metrics.csv"].decode().splitlines()[0].split(",")
    added = {"natural": ["step_kl", "rejected_steps"], "trpo": ["step_kl", "backtracks", "rejected_steps"]}
    assert [column for column in header if column in OPTIONAL] == added.get(name, ["kl_coef"] if name == "ppo" else [])
    pgcli("verify", "part", cwd=tmp_path)
    if name == "trpo":
        pgcli("plot", "part", "-y", "step_kl", "-o", "curve.png", cwd=tmp_path)


def test_a_run_that_max_kl_lets_diverge_names_max_kl(tmp_path: Path) -> None:
    words = [*SMALL, "env.id=Pendulum-v1", "rollout.episodes=4", "optimizer={name: natural, max_kl: 1e+30}"]
    done = pgcli("train", "cartpole", *words, "training={iterations: 4}", "--run-dir", "run", cwd=tmp_path, code=5)
    assert "`pgcli resume run optimizer.max_kl=…`" in done.stderr
    assert "optimizer.learning_rate" not in done.stderr
    assert "optimizer.max_kl=… (a lower one)" in pgcli("show", "run", cwd=tmp_path).stdout.replace("\n", " ")
