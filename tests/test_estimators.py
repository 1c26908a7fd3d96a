"""Exact expectations of gradient estimates over all batches, compared with closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import (
    Array,
    World,
    ascent,
    bandit,
    chain,
    config,
    log_probs,
    mapped,
    moments,
    random_batch,
    softmax_agent,
    trajectories,
)
from torch import Tensor

from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.estimators.baselines import leave_one_out_baseline, mean_baseline
from pgcli.estimators.objectives import standardized, step_weights
from pgcli.estimators.trajectories import Trajectories
from pgcli.sampling.episodes import ended_episodes

EXACT = 1e-10
GRPO = {"baseline": "mean", "standardize": "batch"}
NONE: dict[str, Any] = {"baseline": "none"}
MEAN: dict[str, Any] = {"baseline": "mean"}
OTHERS: dict[str, Any] = {"baseline": "leave_one_out"}
EVEN = ([0.0, 0.0], [1.0, 0.0])
UNEVEN = ([0.0, math.log(2), math.log(3)], [1.0, 0.0, 2.0])


def mlp_agent(activation: str = "tanh", dtype: torch.dtype = torch.float64, **algorithm: Any) -> PolicyGradient:
    settings = config(policy={"hidden_sizes": [6], "activation": activation}, algorithm=algorithm)
    agent = build_agent(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), settings)
    agent.policy.to(dtype)
    return agent


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def gradient(agent: PolicyGradient, batch: Trajectories) -> Tensor:
    """Estimate ∇J with respect to all parameters, as one vector."""
    return -flat(estimate_gradient(agent, batch)[0])


def scores(agent: PolicyGradient, batch: Trajectories) -> Tensor:
    """Compute ∇log π(a|s) of every step, [T, N, parameters], 0 on masked rows."""
    parameters = list(agent.policy.parameters())
    each_step = log_probs(agent.policy, batch.obs[:-1][batch.mask], batch.actions[batch.mask])
    rows = [flat(torch.autograd.grad(each, parameters, retain_graph=True)) for each in each_step]
    result = torch.zeros(*batch.mask.shape, len(rows[0]), dtype=each_step.dtype)
    result[batch.mask] = torch.stack(rows)
    return result


# E[g] and Var from exact fractions, by counts of actions instead of batches; roots (GRPO) to 40 digits.
@pytest.mark.parametrize("returns", ["total", "reward_to_go"])
@pytest.mark.parametrize(
    ("world", "algorithm", "n", "mean", "variance"),
    [
        (EVEN, NONE, 1, "1/4 -1/4", "1/8"),
        (EVEN, NONE, 4, "1/4 -1/4", "1/32"),
        (EVEN, MEAN, 2, "1/8 -1/8", "1/32"),
        (EVEN, MEAN, 4, "3/16 -3/16", "3/256"),
        (EVEN, OTHERS, 2, "1/4 -1/4", "1/8"),
        (EVEN, OTHERS, 4, "1/4 -1/4", "1/48"),
        (EVEN, {"baseline": "group", "group_size": 2}, 4, "1/8 -1/8", "1/64"),
        (EVEN, {"baseline": "group", "group_size": 4}, 4, "3/16 -3/16", "3/256"),
        (EVEN, GRPO, 4, "0.40400635094610965 -0.40400635094610965", "0.0485577367904177"),
        (UNEVEN, NONE, 1, "-1/36 -7/18 5/12", "407/648"),
        (UNEVEN, NONE, 4, "-1/36 -7/18 5/12", "407/2592"),
        (UNEVEN, MEAN, 2, "-1/72 -7/36 5/24", "311/2592"),
        (UNEVEN, MEAN, 4, "-1/48 -7/24 5/16", "403/6912"),
        (UNEVEN, OTHERS, 2, "-1/36 -7/18 5/12", "311/648"),
        (UNEVEN, OTHERS, 4, "-1/36 -7/18 5/12", "403/3888"),
        (UNEVEN, GRPO, 4, "-0.042490910766803 -0.342909590010470 0.3854005007772741", "0.0938164138241089"),
    ],
)
def test_mean_and_variance_on_bandits_are_exact(
    returns: str, world: tuple[list[float], list[float]], algorithm: Any, n: int, mean: str, variance: str
) -> None:
    logits, rewards = world
    agent = softmax_agent(logits, returns=returns, **algorithm)
    g, trace = moments(agent, bandit(logits, rewards), n)
    assert g.tolist() == pytest.approx([float(Fraction(x)) for x in mean.split()], abs=EXACT)
    assert trace == pytest.approx(float(Fraction(variance)), abs=EXACT)


@pytest.mark.parametrize("world", [EVEN, UNEVEN])
def test_grpo_standardises_each_group_by_itself(world: tuple[list[float], list[float]]) -> None:
    logits, rewards = world
    grpo = {"returns": "total", "baseline": "group", "standardize": "group"}
    whole, _ = moments(softmax_agent(logits, **GRPO), bandit(logits, rewards), 4)
    one, one_variance = moments(softmax_agent(logits, **grpo, group_size=4), bandit(logits, rewards), 4)
    assert one.tolist() == pytest.approx(whole.tolist(), abs=EXACT)
    pair, pair_variance = moments(softmax_agent(logits, **grpo, group_size=2), bandit(logits, rewards), 2)
    pairs, pairs_variance = moments(softmax_agent(logits, **grpo, group_size=2), bandit(logits, rewards), 4)
    assert pairs.tolist() == pytest.approx(pair.tolist(), abs=EXACT)  # two groups are two samples of one
    assert pairs_variance == pytest.approx(pair_variance / 2, abs=EXACT)
    assert one_variance > 0


def test_a_group_of_equal_returns_has_zero_advantages_without_0_over_0() -> None:
    grpo = {"returns": "total", "baseline": "group", "standardize": "group", "group_size": 2}
    batch = trajectories([(0, 1 / 3)], [(1, 1 / 3)], [(0, 5.0)], [(1, 1.0)])
    alone = trajectories([(0, 5.0)], [(1, 1.0)])
    agent = softmax_agent(EVEN[0], **grpo)
    assert ascent(agent, batch).tolist() == pytest.approx((ascent(agent, alone) / 2).tolist(), abs=1e-7)


def test_the_even_bandit_under_grpo_is_a_closed_form() -> None:
    # m of 4 rewarded: A = √((4-m)/m) or -√(m/(4-m)), so the first coordinate of g is √(m (4-m)) / 4
    g, _ = moments(softmax_agent(EVEN[0], **GRPO), bandit(*EVEN), 4)
    assert g[0].item() == pytest.approx((2 * math.sqrt(3) + 3) / 16, abs=1e-14)


def test_the_average_does_not_matter_where_all_trajectories_have_one_step() -> None:
    batch = trajectories([(0, 1.0)], [(1, 0.0)], [(2, 2.0)])
    each = [softmax_agent(UNEVEN[0], average=a) for a in ("steps", "episodes", "episode_means")]
    assert len({tuple(ascent(agent, batch).tolist()) for agent in each}) == 1


P, N_STEPS, GAMMA, THETA = 1 / (1 + math.exp(-0.5)), 5, 0.9, 0.5
J = GAMMA ** (N_STEPS - 1) * P**N_STEPS
CHAIN = chain(THETA, N_STEPS, every_step=0, at_the_end=1)


def chain_agent(**algorithm: Any) -> PolicyGradient:
    return softmax_agent([0.0, THETA], **{"average": "episodes", "gamma": GAMMA} | algorithm)


def test_on_the_chain_total_return_has_the_exact_gradient_and_variance() -> None:
    g, trace = moments(chain_agent(returns="total", baseline="none"), CHAIN, 1)
    # both logits, with opposite scores: twice the variance of one
    assert g[1].item() == pytest.approx(N_STEPS * (1 - P) * J, abs=EXACT)
    assert trace / 2 == pytest.approx(J**2 * (N_STEPS * (1 - P)) ** 2 * (1 / P**N_STEPS - 1), abs=EXACT)
    assert (g[1].item(), trace / 2) == pytest.approx((0.1157333946, 0.1299441557), abs=5e-11)


def test_the_policy_loss_is_the_return_weighted_log_probability() -> None:
    right = trajectories([(1, 0.0)] * 4 + [(1, 1.0)])
    _, terms = estimate_gradient(chain_agent(returns="total", baseline="none"), right)
    assert terms["policy_loss"].item() == pytest.approx(-(GAMMA**4) * 5 * math.log(P), rel=1e-12)


def test_reward_to_go_without_discount_weighting_has_its_known_bias_on_the_chain() -> None:
    g, _ = moments(chain_agent(returns="reward_to_go", baseline="none"), CHAIN, 1)
    other = sum(GAMMA ** (N_STEPS - 1 - t) for t in range(N_STEPS)) * P**N_STEPS * (1 - P)
    assert g[1].item() == pytest.approx(other, abs=EXACT)


@pytest.mark.parametrize(
    ("world", "expected"),
    [(CHAIN, (1 - P) * J), (chain(THETA, N_STEPS, every_step=1, at_the_end=0), 0)],
    ids=["one reward at the end", "a constant reward"],
)
def test_scores_times_immediate_rewards_are_not_the_gradient(world: World, expected: float) -> None:
    """The wrong estimator of M2L 2024 is n times too small on the chain, and 0 for a constant reward."""
    agent = chain_agent(returns="total", baseline="none")
    wrong = 0.0
    for probability, episode in world:
        batch = trajectories(episode)
        discounts = GAMMA ** torch.arange(len(batch.rewards), dtype=torch.float64)[:, None]
        wrong += probability * float((scores(agent, batch)[..., -1] * discounts * batch.rewards).sum())
    assert wrong == pytest.approx(expected, abs=EXACT)
    right, _ = moments(agent, world, 1)
    assert right[1] - wrong > 0.05


def test_leave_one_out_is_zero_for_a_single_trajectory() -> None:
    lone = trajectories([(1, 1.0), (0, 1.0)], [(0, 5.0)])
    advantages = chain_agent(baseline="leave_one_out").estimate(lone).advantages
    assert advantages[1, 0].item() == 1
    assert advantages[0].tolist() == pytest.approx([1.9 - 5, 5 - 1.9])


def test_the_mean_baseline_of_a_single_trajectory_is_its_return() -> None:
    lone = trajectories([(1, 1.0), (0, 1.0)], [(0, 5.0)])
    advantages = chain_agent(baseline="mean").estimate(lone).advantages
    assert advantages[1, 0].item() == 0  # alone at t = 1
    assert advantages[0].tolist() == pytest.approx([(1.9 - 5) / 2, (5 - 1.9) / 2])


def test_the_mean_baseline_counts_running_trajectories_only() -> None:
    returns = torch.tensor([[1.0, 3.0, 8.0], [5.0, math.nan, 9.0], [math.inf, math.nan, 2.0]])
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    assert mean_baseline(returns, mask).tolist() == [[4.0], [7.0], [0.0]]


def test_leave_one_out_is_the_mean_over_the_other_running_trajectories() -> None:
    returns = torch.tensor([[1.0, 3.0, 8.0], [5.0, math.nan, 9.0], [math.inf, math.nan, 2.0]])
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    assert leave_one_out_baseline(returns, mask)[mask].tolist() == [5.5, 4.5, 2, 9, 5, 0]


def test_gpomdp_is_reward_to_go_with_discount_weighting_in_another_order() -> None:
    batch = random_batch()
    agent = mlp_agent(returns="reward_to_go", baseline="none", gamma=0.9, average="episodes", discount_weighting=True)
    discounted = 0.9 ** torch.arange(5.0, dtype=torch.float64)[:, None] * batch.rewards
    gpomdp = (discounted[..., None] * scores(agent, batch).cumsum(0)).sum((0, 1)) / 4
    np.testing.assert_allclose(gradient(agent, batch), gpomdp, rtol=0, atol=EXACT)


def test_total_return_is_the_sum_of_scores_times_the_sum_of_rewards() -> None:
    batch = random_batch()
    agent = mlp_agent(returns="total", baseline="none", gamma=0.9, average="episodes")
    discounted = 0.9 ** torch.arange(5.0, dtype=torch.float64)[:, None] * batch.rewards
    total = (scores(agent, batch).sum(0) * discounted.sum(0)[:, None]).mean(0)
    np.testing.assert_allclose(gradient(agent, batch), total, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_the_score_is_the_closed_form_of_the_tutorial(dtype: torch.dtype, tolerance: float) -> None:
    agent = mlp_agent("relu", dtype)
    batch = random_batch()
    w1, b1, w2, b2 = (parameter.detach().double().numpy() for parameter in agent.policy.parameters())

    def grad_log(state: Array, action: int) -> Array:
        hidden = w1 @ state + b1
        preferences = np.exp(w2 @ np.maximum(hidden, 0) + b2)
        score = np.eye(4)[action] - preferences / preferences.sum()
        back = (score @ w2) * (hidden > 0)
        pieces = (np.outer(back, state), back, np.outer(score, np.maximum(hidden, 0)), score)
        return np.concatenate([piece.ravel() for piece in pieces])

    by_autograd = scores(agent, batch)[batch.mask]
    states, actions = batch.obs[:-1][batch.mask].numpy(), batch.actions[batch.mask].tolist()
    closed_form = np.stack([grad_log(state, action) for state, action in zip(states, actions, strict=True)])
    assert (closed_form[:, :18] == 0).any()  # the ReLU was closed somewhere
    np.testing.assert_allclose(by_autograd, closed_form, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("average", "expected"),
    # π even, so the score is ±1/2: Σ s G is 3/2 - 2/2 + 1/2 = 1 over the three steps, 5/2 over the one
    [("steps", (1 + 2.5) / 4), ("episodes", (1 + 2.5) / 2), ("episode_means", (1 / 3 + 2.5) / 2)],
)
def test_each_average_weights_its_named_unit_equally(average: str, expected: float) -> None:
    batch = trajectories([(1, 1.0), (0, 1.0), (1, 1.0)], [(1, 5.0)])
    agent = softmax_agent([0, 0], baseline="none", gamma=1.0, average=average)
    assert ascent(agent, batch).tolist() == pytest.approx([-expected, expected], rel=1e-14)


def test_step_weights_are_fractions_of_one_where_they_average() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert step_weights(mask, "steps").sum().item() == pytest.approx(1)
    assert step_weights(mask, "episode_means").sum(0).tolist() == pytest.approx([1 / 3] * 3)
    assert step_weights(mask, "episodes").sum(0).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert (step_weights(mask, "steps")[~mask] == 0).all()


def test_a_longer_padding_changes_nothing() -> None:
    batch, agent = random_batch(), mlp_agent()
    longer = mapped(batch, lambda _, x: torch.cat((x, torch.zeros_like(x[:2]))))
    assert torch.equal(gradient(agent, longer), gradient(agent, batch))


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e9 / 3, 1e-12])
@pytest.mark.parametrize("count", [1, 3, 7, 1000])
def test_equal_advantages_standardise_to_exactly_zero(value: float, count: int) -> None:
    assert (standardized(torch.full((count,), value, dtype=torch.float64)) == 0).all()


def test_standardised_advantages_have_mean_zero_and_population_deviation_one() -> None:
    assert standardized(torch.tensor([1e300, 0.0], dtype=torch.float64)).isnan().all(), "no signal that vanishes unseen"
    assert standardized(torch.tensor([2.0, 2.0, 5.0, 5.0, 1.0, 6.0])).tolist() == pytest.approx(
        [(x - 3.5) / math.sqrt(21.5 / 6) for x in (2, 2, 5, 5, 1, 6)]
    )


def test_a_batch_of_equal_returns_has_zero_advantages() -> None:
    agent = softmax_agent([0.3, -0.2], returns="total", **GRPO)
    assert ascent(agent, trajectories(*[[(1, 0.7)]] * 7)).tolist() == [0, 0]


def test_gamma_to_the_t_weighs_after_standardisation() -> None:
    # G = ±3 in every step, so A = ±1; π even; every score times advantage is 1/2, weighed by 1 and γ = 1/2
    batch = trajectories([(1, 1.5), (1, 3.0)], [(0, -1.5), (0, -3.0)])
    agent = softmax_agent([0, 0], baseline="none", gamma=0.5, standardize="batch", discount_weighting=True)
    assert ascent(agent, batch)[1].item() == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4, rel=1e-14)


@pytest.mark.parametrize("theta", [-2.0, 0.0, 0.5, 3.0])
def test_the_entropy_bonus_has_the_closed_form_gradient(theta: float) -> None:
    p = 1 / (1 + math.exp(-theta))
    agent = softmax_agent([0, theta], baseline="none", entropy_coef=0.25)
    nothing = trajectories([(1, 0.0)] * 3, [(0, 0.0)])
    # H = ln(1 + e^θ) - pθ, so dH/dθ = -θ p (1-p)
    assert ascent(agent, nothing)[1].item() == pytest.approx(-0.25 * theta * p * (1 - p), abs=1e-14)
    assert estimate_gradient(agent, nothing)[1]["entropy"].item() == pytest.approx(
        math.log1p(math.exp(theta)) - p * theta
    )


def test_trajectories_have_lengths_and_ends() -> None:
    batch = trajectories([(0, 0.0)] * 3, [(0, 0.0)], [(0, 0.0)] * 2)
    terminated = torch.tensor([[False] * 3, [False, True, False], [True, True, True]])
    truncated = torch.tensor([[False] * 3, [False, True, True], [False, True, False]])
    batch = replace(batch, terminated=terminated, truncated=truncated)
    assert batch.num_steps == 6
    assert batch.lengths.tolist() == [3, 1, 2]
    how = [one.how for one in ended_episodes(batch, 1.0)]
    assert how == ["terminated", "horizon", "truncated"], "padding has no flags"


def test_rounding_noise_of_equal_returns_is_not_amplified() -> None:
    agent = softmax_agent([0.0, 0.0], returns="reward_to_go", baseline="mean", standardize="batch", gamma=0.99)
    rewards = torch.full((50, 7), 1e9 / 3, dtype=torch.float64)
    everywhere = torch.ones(50, 7, dtype=torch.bool)
    batch = Trajectories(
        obs=torch.zeros(51, 7, 1, dtype=torch.float64),
        actions=torch.arange(350).reshape(50, 7) % 2,
        rewards=rewards,
        terminated=~everywhere,
        truncated=~everywhere,
        mask=everywhere,
    )
    gradients, _ = estimate_gradient(agent, batch)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)
