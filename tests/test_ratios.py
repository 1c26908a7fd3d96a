"""Importance weights of whole trajectories: by hand, on FrozenLake's own transitions, and where products overflow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from helpers import Array, autograd, config, random_batch, softmax_agent, trajectories
from test_exactness import (
    Moves,
    Shares,
    futures,
    gradient_of_return,
    log,
    side_by_side,
    tabular_agent,
)
from torch import Tensor

from pgcli.algorithm.batch import minibatches
from pgcli.algorithm.gradient_variance import measure
from pgcli.algorithm.importance import TrajectoryRatios
from pgcli.algorithm.learner import Learner, build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.config import Config, choices, override
from pgcli.errors import Diverged
from pgcli.estimators.ratios import log_weights, per_decision_advantages, trajectory_weights
from pgcli.estimators.trajectories import Trajectories
from pgcli.inspection.gradient_check.age import over_age
from pgcli.seeding import Purpose, generator

EXACT = 1e-10
PRODUCTS = ("per_decision", "trajectory")
KINDS = ("per_decision", "trajectory", "sequence")
AGED = [
    *("algorithm.objective=importance_sampling", "algorithm.average=episodes", "algorithm.gamma=1"),
    *("algorithm.baseline=none", "algorithm.reuse=2", "optimizer.learning_rate=0.05"),
]
OFF: dict[str, Any] = {"objective": "importance_sampling", "baseline": "none", "average": "episodes"}


def test_the_weights_of_two_trajectories_by_hand() -> None:
    """ρ = 2, 3, 1/4 in the first trajectory; 5 in the second, and junk behind its end."""
    log_ratios = torch.tensor([[2, 5], [3, 7], [1 / 4, 0]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    expected = {
        "step": [[2, 5], [3, 1], [1 / 4, 1]],
        "per_decision": [[2, 5], [6, 5], [3 / 2, 5]],
        "trajectory": [[3 / 2, 5]] * 3,
        "sequence": [[(3 / 2) ** (1 / 3), 5]] * 3,
    }
    for kind, weights in expected.items():
        logs = log_weights(log_ratios, mask, cast(choices.Ratios, kind))
        torch.testing.assert_close(logs.exp(), torch.tensor(weights, dtype=torch.float64))
    logs = log_weights(log_ratios, mask, "per_decision")
    bounded = torch.tensor([[2, 4], [4, 4], [3 / 2, 4]], dtype=torch.float64)
    torch.testing.assert_close(trajectory_weights(logs, 4.0), bounded)
    torch.testing.assert_close(trajectory_weights(logs, 4.0, True), bounded / bounded.mean(1, keepdim=True))


def test_a_per_decision_advantage_by_hand() -> None:
    """Two steps of a trajectory with r = 1, 2, γ = 0.5, W = 3, 5, b = 10, 20: each reward has its own weight."""
    rewards, weights, baseline = (torch.tensor(row)[:, None] for row in ([1.0, 2.0], [3.0, 5.0], [10.0, 20.0]))
    found = per_decision_advantages(weights, rewards, torch.tensor([[0.5], [0.5]]), baseline)
    assert found[:, 0].tolist() == [3 * 1 + 0.5 * 5 * 2 - 3 * 10, 5 * 2 - 5 * 20]


# ------------------------------------------------------------------------------------------------- FrozenLake, exactly

COST = 0.1


def lake() -> Moves:
    """Return the transitions of Gymnasium's slippery FrozenLake of 2 × 3 tiles; each step costs COST."""
    with gym.make("FrozenLake-v1", desc=["SFF", "FHG"]) as env:
        table = cast(Moves, env.unwrapped.P)  # type: ignore[attr-defined]
    return {
        s: {a: [(p, after, r - COST, over) for p, after, r, over in outcomes] for a, outcomes in row.items()}
        for s, row in table.items()
    }


def shares(seed: int) -> Shares:
    """Return a random policy over 6 tiles and 4 actions."""
    random = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.2
    return cast(Shares, (random / random.sum(1, keepdim=True)).tolist())


PI, MU = shares(1), shares(2)
ANY_VALUES = torch.tensor([0.4, -1.0, 2.0, 0.1, 0.0, 3.0], dtype=torch.float64).numpy()


def lake_mean(**algorithm: Any) -> tuple[Array, Array]:
    """Return E[g] over all episodes of μ of at most 3 steps, and ∇J, both [S, A]. One batch weights all of them."""
    moves = lake()
    episodes = list(futures(moves, MU, 0, 3))
    chances = torch.tensor([float(p) for p, _ in episodes], dtype=torch.float64)
    assert chances.sum().item() == pytest.approx(1, abs=EXACT)
    agent = tabular_agent(log(PI), ANY_VALUES, gamma=0.9, **OFF | algorithm)
    batch = side_by_side([told for _, told in episodes], MU)
    scale = len(episodes) * chances  # the mean over columns becomes the expectation
    table, _ = agent.batch(batch)
    weights = table.weights * scale[batch.mask.nonzero()[:, 1]]
    with torch.no_grad():
        found, _ = agent.gradient(replace(table, weights=weights), "policy", 0.0)
    own = next(iter(agent.policy.parameters()))
    return -found[: own.numel()].view(own.shape).T.numpy(), gradient_of_return(moves, log(PI), 0.9, 3)


@pytest.mark.parametrize("ratios", KINDS)
@pytest.mark.parametrize("algorithm", [{"returns": "total"}, {"discount_weighting": True}], ids=str)
def test_products_of_ratios_are_exact_on_frozen_lake(algorithm: dict[str, Any], ratios: str) -> None:
    found, exact = lake_mean(ratios=ratios, **algorithm)
    if ratios in PRODUCTS:
        assert abs(found - exact).max() < EXACT
    else:
        assert abs(found - exact).max() > 0.01 * abs(exact).max(), "biased by design"
    assert abs(lake_mean(ratios="step", **algorithm)[0] - exact).max() > 0.01 * abs(exact).max()


@pytest.mark.parametrize("ratios", PRODUCTS)
def test_a_value_baseline_stays_unbiased_and_stands_for_what_was_cut_off(ratios: str) -> None:
    """∇ of E[Σ γ^t r_t + γ^3 V(s_3)] with V fixed: weighted like the reward before it."""
    for algorithm in ({"returns": "total"}, {"discount_weighting": True}):
        found, _ = lake_mean(ratios=ratios, **algorithm | {"baseline": "value"})
        exact = gradient_of_return(lake(), log(PI), 0.9, 3, ANY_VALUES)
        assert abs(found - exact).max() < EXACT


def test_per_decision_has_less_variance_than_the_trajectory_for_independent_rewards() -> None:
    """With later rewards of 0 variance comes from later ratios only: per_decision has none of it."""
    agents = {kind: softmax_agent([0.0, 1.0], **OFF | {"ratios": kind, "gamma": 1.0}) for kind in PRODUCTS}
    found: dict[str, list[Tensor]] = {kind: [] for kind in agents}
    behavior = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    for later in (0, 1):
        batch = trajectories([(1, 1.0), (later, 0.0)])
        batch = replace(batch, behavior_log_probs=behavior[batch.actions])
        for kind, agent in agents.items():
            found[kind].append(-estimate_gradient(agent, batch)[0][-1])
    assert torch.equal(*found["per_decision"])
    first, second = found["trajectory"]
    assert not torch.allclose(first, second)


# ------------------------------------------------------------------------------------ as an update computes them


def agent_of(**algorithm: Any) -> PolicyGradient:
    settings = config(policy={"hidden_sizes": [6]}, algorithm={"update_epochs": 2} | algorithm)
    agent = build_agent(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), settings)
    agent.policy.double()
    return agent


def acted(agent: PolicyGradient, spread: float = 0.4) -> Trajectories:
    """Return four trajectories of a random other policy."""
    batch = random_batch()
    draw = torch.Generator().manual_seed(8)
    shift = spread * torch.randn(batch.mask.shape, dtype=torch.float64, generator=draw)
    with torch.no_grad():
        outputs = agent.policy(batch.obs[:-1].flatten(0, 1))
        log_probs = agent.policy.distribution.log_probs(outputs, batch.actions.flatten()).view(batch.mask.shape)
    return replace(batch, behavior_log_probs=torch.where(batch.mask, log_probs + shift, 0))


CASES: list[dict[str, Any]] = [
    *({"objective": "importance_sampling", "ratios": kind} for kind in KINDS),
    *({"objective": "importance_sampling", "ratios": kind, "returns": "total"} for kind in KINDS),
    {"objective": "importance_sampling", "ratios": "per_decision", "importance_bound": 1.1, "self_normalize": True},
    {"objective": "clip", "ratios": "sequence", "clip_range": 0.05, "kl_coef": 0.2},
]


@pytest.mark.parametrize("algorithm", CASES, ids=str)
def test_the_closed_form_equals_autograd(algorithm: dict[str, Any]) -> None:
    agent = agent_of(**algorithm)
    batch, _ = agent.batch(acted(agent))
    with torch.no_grad():
        gradient, terms = agent.gradient(batch, "policy", 0.0)
    expected, expected_terms = autograd(agent)(batch, "policy", 0.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 1e-3
    for name, term in terms().items():
        assert term.item() == pytest.approx(expected_terms()[name].item(), rel=1e-10), name


@pytest.mark.parametrize("average", ["steps", "episodes", "episode_means"])
@pytest.mark.parametrize("algorithm", CASES[:3], ids=str)
def test_minibatches_are_whole_trajectories_and_their_losses_sum_to_the_batchs(
    algorithm: dict[str, Any], average: str
) -> None:
    agent = agent_of(**algorithm | {"average": average})
    batch, _ = agent.batch(acted(agent))
    with torch.no_grad():
        whole, _ = agent.gradient(batch, "policy", 0.0)
        whole = whole.clone()
        parts = [
            part for _, part in minibatches(batch, 1, 4, lambda epoch: generator(0, Purpose.MINIBATCH, epoch), False)
        ]
        assert sorted(map(len, parts)) == [1, 3, 4, 5], "the lengths of the trajectories"
        total = sum(agent.gradient(part, "policy", 0.0)[0].clone() for part in parts) / len(parts)
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-12)
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_a_recurrent_policys_minibatches_are_whole_trajectories_too() -> None:
    settings = config(
        policy={"hidden_sizes": [], "memory": "gru", "memory_size": 3},
        algorithm={"objective": "importance_sampling", "ratios": "trajectory", "num_minibatches": 2},
    )
    agent = build_agent(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), settings)
    agent.policy.double()
    batch, _ = agent.batch(replace(random_batch(), behavior_log_probs=-torch.ones(5, 4, dtype=torch.float64)))
    for _, part in minibatches(batch, 1, 2, lambda epoch: generator(0, Purpose.MINIBATCH, epoch), False):
        assert part.rows is not None
        columns = torch.tensor(sorted(set((part.rows % 4).tolist())))
        assert len(part) == int(batch.trajectories.lengths[columns].sum())
        assert TrajectoryRatios(torch.zeros(len(part)), part, agent.config.algorithm).logs.shape == (5, len(columns))


def test_the_effective_sample_size_counts_trajectories() -> None:
    """(Σ W)² / Σ W² of the products 3/2 and 5."""
    pi = torch.tensor([0.25, 0.75], dtype=torch.float64)
    agent = softmax_agent(pi.log().tolist(), **OFF | {"ratios": "per_decision", "reuse": 2, "update_epochs": 2})
    batch = trajectories([(1, 0.0), (1, 1.0)], [(0, 2.0)])
    batch = replace(batch, behavior_log_probs=torch.tensor([[0.5, 0.05], [0.75, 1.0]], dtype=torch.float64).log())
    learned, _ = agent.batch(batch)
    with torch.no_grad():
        terms = {name: term.item() for name, term in agent.gradient(learned, "policy", 0.0)[1]().items()}
    report = agent.losses.describe(terms | {"grad_norm": 0.0}, 1, learned, 0.1, 0.0)
    assert report.effective_sample_size == pytest.approx((1.5 + 5) ** 2 / (1.5**2 + 25))


def test_clipped_sequences_are_gspo() -> None:
    """Zheng et al. (2025), eq. 5: a mean over trajectories of min(s A, clip(s) A), s differentiated as a whole."""
    agent = agent_of(
        objective="clip", ratios="sequence", clip_range=0.15, returns="total", average="episode_means", baseline="mean"
    )
    batch = acted(agent)
    assert batch.behavior_log_probs is not None
    outputs = agent.policy(batch.obs[:-1].flatten(0, 1))
    log_probs = agent.policy.distribution.log_probs(outputs, batch.actions.flatten()).view(batch.mask.shape)
    log_ratios = torch.where(batch.mask, log_probs - batch.behavior_log_probs, 0).sum(0) / batch.lengths
    s, advantages = log_ratios.exp(), agent.estimate(batch).advantages[0]
    assert ((s - 1).abs() > 0.15).any()
    assert ((s - 1).abs() < 0.15).any()
    objective = torch.minimum(s * advantages, s.clamp(0.85, 1.15) * advantages).mean()
    expected = torch.autograd.grad(objective, list(agent.policy.parameters()))
    found, terms = estimate_gradient(agent, batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(-one, other, rtol=1e-10, atol=1e-12)
    assert terms["policy_loss"].item() == pytest.approx(-objective.item(), rel=1e-10)
    clipped = ((s - 1).abs() > 0.15).double() @ batch.lengths.double() / batch.num_steps
    assert terms["clip_fraction"].item() == pytest.approx(clipped.item())


@pytest.mark.parametrize("self_normalize", [False, True])
@pytest.mark.parametrize("ratios", ["trajectory", "sequence"])
def test_the_gradient_variance_measures_the_gradient_of_the_update(ratios: str, self_normalize: bool) -> None:
    agent = agent_of(
        objective="importance_sampling", ratios=ratios, self_normalize=self_normalize, average="episodes", reuse=2
    )
    batch = acted(agent)
    (row,) = measure(agent, batch)
    gradient, _ = estimate_gradient(agent, batch)
    assert row.gradient_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradient)), rel=1e-9)
    assert row.gradient_variance is not None
    assert row.gradient_variance > 0


# ------------------------------------------------------------------------------------------------------------ overflow


def uniform_agent(**algorithm: Any) -> PolicyGradient:
    """Return an agent in float32 that draws each of two actions with probability 1/2."""
    settings = config(policy={"hidden_sizes": [], "init": "orthogonal"}, algorithm=OFF | {"reuse": 2} | algorithm)
    return build_agent(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), settings)


def extreme() -> Trajectories:
    """Return 200 steps whose ratios are e^20 in one trajectory, e^-20 in the other."""
    batch = trajectories([(0, 1.0)] * 200, [(1, 1.0)] * 200)
    behavior = math.log(0.5) - 20 * torch.tensor([1.0, -1.0]).expand(200, 2)
    return replace(batch, obs=batch.obs.float(), behavior_log_probs=behavior)


@pytest.mark.parametrize("ratios", PRODUCTS)
@pytest.mark.parametrize("safe", [{"importance_bound": 2.0}, {"self_normalize": True}], ids=str)
def test_products_that_overflow_end_in_a_named_state(ratios: str, safe: dict[str, Any]) -> None:
    agent = uniform_agent(ratios=ratios)
    learner = Learner(agent)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    with pytest.raises(Diverged, match=r"the largest product of ratios is e\^4000") as caught:
        learner.agent.update(extreme(), 0, 0.0, lambda: None)
    assert "algorithm.importance_bound or algorithm.self_normalize" in caught.value.hint
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name])
    report = uniform_agent(ratios=ratios, **safe).update(extreme(), 0, 0.0, lambda: None)
    for number in (report.policy_loss, report.grad_norm, report.effective_sample_size):
        assert number is not None
        assert math.isfinite(number)


def test_the_geometric_mean_does_not_overflow() -> None:
    loss = uniform_agent(ratios="sequence").update(extreme(), 0, 0.0, lambda: None).policy_loss
    assert loss is not None
    assert math.isfinite(loss)


# ------------------------------------------------------------------------------------------------- the age of the data


def test_old_data_bias_steps_and_sequences_and_make_products_vary() -> None:
    rows = over_age(override(Config(), AGED), 3)
    assert len(rows) == 16
    for row in rows:
        fresh = row.age == 0
        unbiased = fresh or row.ratios in PRODUCTS
        assert (row.bias < EXACT) == unbiased, row
        at_start = next(other.standard_deviation for other in rows if other.age == 0)
        assert fresh or (row.standard_deviation > at_start) == (row.ratios in PRODUCTS), row
    deviations = {row.ratios: row.standard_deviation for row in rows if row.age == 3}
    assert deviations["per_decision"] < deviations["trajectory"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--age", "3"], "--age and -o"),
        (["-o", "a.png"], "--age and -o"),
        (["--age", "3", "-o", "a.txt"], "not a .png"),
        (
            ["cartpole", "algorithm.baseline=value", "--age", "3", "-o", "a.png"],
            "whole episodes without a value function",
        ),
    ],
)
def test_a_figure_over_age_needs_a_file_and_whole_episodes(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = pgcli("check", *arguments, cwd=tmp_path, code=2)
    assert words in done.stderr
    assert not list(tmp_path.iterdir())
