"""Value functions, ratios and continuous actions without sampling: enumeration, quadrature, linear solves.

Gradients of a known J come from a complex step, Im J(θ + ih) / h, independent of the policy gradient theorem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import permutations, product
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import (
    Array,
    ascent,
    autograd,
    bandit,
    collect_episodes,
    config,
    executor_for,
    flat_batch,
    learner_of,
    mapped,
    moments,
    softmax_agent,
    trajectories,
)
from torch import Tensor
from torch import distributions as reference

from pgcli.algorithm.batch import Batch, minibatches
from pgcli.algorithm.learner import Learner, build_agent
from pgcli.algorithm.losses import Step
from pgcli.algorithm.parts import PartName
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.estimators.baselines import optimal_baseline
from pgcli.estimators.objectives import (
    clip_loss,
    clip_slope,
    explained_variance,
    importance_sampling_loss,
    kl_estimates,
    policy_gradient_loss,
    value_loss,
)
from pgcli.estimators.returns import vtrace_returns
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.distributions import Bernoulli, Factorised, Gaussian, Softmax, StateDependentGaussian, TanhGaussian
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import squared_score_norms, trajectory_ratios, trajectory_values

EXACT = 1e-10
HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)


# --------------------------------------------------------------------------------------------- worlds that are a table

Moves = Mapping[int, Mapping[int, Sequence[tuple[Any, int, float, bool]]]]  # as Gymnasium's env.unwrapped.P
Shares = Sequence[Sequence[Fraction]]  # π(a|s), a row for each state

# Three rows of states, so every episode is over after three steps at most; some after one or two.
LAYERS: Moves = {
    0: {0: [(HALF, 1, 1.0, False), (HALF, 2, 0.0, False)], 1: [(3 * QUARTER, 2, 0.5, False), (QUARTER, 2, 3.0, True)]},
    1: {0: [(1, 3, -1.0, False)], 1: [(HALF, 4, 0.0, False), (HALF, 3, 2.0, True)]},
    2: {0: [(HALF, 3, 1.0, False), (HALF, 4, -2.0, False)], 1: [(1, 4, 0.5, False)]},
    3: {0: [(1, 0, 2.0, True)], 1: [(HALF, 0, -1.0, True), (HALF, 0, 4.0, True)]},
    4: {0: [(1, 0, 0.0, True)], 1: [(1, 0, 1.0, True)]},
}
PI: Shares = [[Fraction(k, 3), Fraction(3 - k, 3)] for k in (1, 2, 1, 2, 1)]

# Two states that go on for ever, but for one way out.
TWO: Moves = {
    0: {0: [(1, 0, 1.0, False)], 1: [(HALF, 1, 0.0, False), (HALF, 0, 2.0, False)]},
    1: {0: [(3 * QUARTER, 0, -1.0, False), (QUARTER, 1, 5.0, True)], 1: [(1, 1, 0.5, False)]},
}
ACTED: Shares = [[HALF, HALF], [QUARTER, 3 * QUARTER]]
TARGET: Shares = [[Fraction(1, 3), Fraction(2, 3)], [Fraction(4, 5), Fraction(1, 5)]]


class Told(NamedTuple):
    """One episode, with one more state than actions."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    terminated: bool


def futures(moves: Moves, policy: Shares, state: int, horizon: int) -> Iterator[tuple[Fraction, Told]]:
    """Yield every possible episode from `state`, cut at `horizon`, with its probability."""
    for action, p in enumerate(policy[state]):
        for q, after, reward, over in moves[state][action]:
            if over or horizon == 1:
                yield p * q, Told((state, after), (action,), (reward,), over)
                continue
            for r, rest in futures(moves, policy, after, horizon - 1):
                joined = ((state, *rest.states), (action, *rest.actions), (reward, *rest.rewards))
                yield p * q * r, Told(*joined, rest.terminated)


def side_by_side(told: Sequence[Told], acted: Shares | None = None) -> Trajectories:
    """Create one batch of episodes; `acted` is the policy μ of behavior_log_probs."""
    lengths = torch.tensor([len(episode.actions) for episode in told])
    steps = int(lengths.max())
    t = torch.arange(steps)[:, None]
    batch = Trajectories(
        obs=torch.zeros(steps + 1, len(told), dtype=torch.int64),
        actions=torch.zeros(steps, len(told), dtype=torch.int64),
        rewards=torch.zeros(steps, len(told), dtype=torch.float64),
        terminated=(t == lengths - 1) & torch.tensor([episode.terminated for episode in told]),
        truncated=torch.zeros(steps, len(told), dtype=torch.bool),
        mask=t < lengths,
    )
    for column, episode in enumerate(told):
        rows = len(episode.actions)
        batch.obs[: rows + 1, column] = torch.tensor(episode.states)
        batch.actions[:rows, column] = torch.tensor(episode.actions)
        batch.rewards[:rows, column] = torch.tensor(episode.rewards, dtype=torch.float64)
    if acted is None:
        return batch
    log_mu = torch.from_numpy(log(acted))
    return replace(batch, behavior_log_probs=log_mu[batch.obs[:-1], batch.actions] * batch.mask)


def in_proportion(world: Sequence[tuple[Fraction, Told]], acted: Shares | None = None) -> Trajectories:
    """Create a batch with episodes repeated by probability: its mean is the expectation."""
    whole = math.lcm(*(p.denominator for p, _ in world))
    return side_by_side([told for p, told in world for _ in range(int(p * whole))], acted)


def log(shares: Shares) -> Array:
    logarithms: Array = np.log(np.array(shares, dtype=float))
    return logarithms


def tabular_agent(logits: Array, values: Array | None = None, **algorithm: Any) -> PolicyGradient:
    """Build an agent in float64 whose logits [S, A] and values [S] are a table: linear on one-hot observations."""
    states, actions = logits.shape
    settings = config(policy={"hidden_sizes": []}, algorithm=algorithm)
    agent = build_agent(spaces.Discrete(states), spaces.Discrete(actions), settings)
    tables = [(agent.policy, logits.T)] if agent.value is None else [(agent.policy, logits.T), (agent.value, values)]
    for module, table in tables:
        weight, bias = module.double().parameters()
        with torch.no_grad():
            weight.copy_(torch.as_tensor(table).reshape(weight.shape))
            bias.zero_()
    return agent


def table_ascent(agent: PolicyGradient, batch: Trajectories) -> Array:
    """Estimate ∇J with respect to the logits [S, A] of a `tabular_agent`."""
    gradient: Array = -estimate_gradient(agent, batch)[0][0].T.numpy()
    return gradient


def returns_from(moves: Moves, logits: Array, gamma: float, horizon: int | None, last: Array | None = None) -> Array:
    """Solve for V [S], or go back `horizon` steps from the values `last`; logits may be complex."""
    transitions, rewards = np.zeros((*logits.shape, len(logits))), np.zeros(logits.shape)
    for state, action in product(*map(range, logits.shape)):
        for p, after, reward, over in moves[state][action]:
            rewards[state, action] += float(p) * reward
            transitions[state, action, after] += 0.0 if over else float(p)
    pi = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    going, paid = np.einsum("sa,sat->st", pi, transitions), (pi * rewards).sum(1)
    if horizon is None:
        solved: Array = np.linalg.solve(np.eye(len(logits)) - gamma * going, paid)
        return solved
    values: Array = np.zeros(len(logits)) if last is None else last
    for _ in range(horizon):
        values = paid + gamma * going @ values
    return values


def complex_step(function: Callable[[Array], Any], at: Array) -> Array:
    """Differentiate a real function to machine precision."""
    gradient = np.zeros(at.shape)
    for index in np.ndindex(*at.shape):
        moved = at.astype(complex)
        moved[index] += 1e-30j
        gradient[index] = function(moved).imag / 1e-30
    return gradient


def gradient_of_return(moves: Moves, logits: Array, gamma: float, horizon: int, last: Array | None = None) -> Array:
    return complex_step(lambda moved: returns_from(moves, moved, gamma, horizon, last)[0], logits)


# ----------------------------------------------------------------------------------- exact values, trajectory by whole

GAMMA = 0.9
ON_LAYERS = returns_from(LAYERS, log(PI), GAMMA, 3)
WRONG = np.array([0.7, -2.0, 1.5, 0.2, 3.0])
BY_STEP: dict[str, Any] = {"average": "episodes", "gamma": GAMMA, "discount_weighting": True}
IN_TOTAL: dict[str, Any] = {"average": "episodes", "gamma": GAMMA, "returns": "total"}


@pytest.mark.parametrize(
    ("values", "algorithm"),
    [
        # the baseline may be any function of the state: what is not bootstrapped from need not be true
        (WRONG, BY_STEP | {"returns": "reward_to_go", "baseline": "value"}),
        (ON_LAYERS, BY_STEP | {"returns": "lambda_return", "baseline": "value", "gae_lambda": 0.3}),
        (ON_LAYERS, BY_STEP | {"returns": "vtrace", "baseline": "value", "gae_lambda": 0.4}),
    ],
)
def test_the_gradient_is_exact_for_random_transitions(values: Array, algorithm: dict[str, Any]) -> None:
    """In `test_grid`, which covers all cells, only actions are random."""
    expected = gradient_of_return(LAYERS, log(PI), GAMMA, 3)
    batch = in_proportion(list(futures(LAYERS, PI, 0, 3)))
    assert batch.terminated.any(0).all()
    g = table_ascent(tabular_agent(log(PI), values, **algorithm), batch)
    np.testing.assert_allclose(g, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.parametrize("returns", ["total", "reward_to_go", "lambda_return"])
def test_a_cut_trajectory_is_bootstrapped_from_its_last_state(returns: str, horizon: int) -> None:
    """So the gradient is that of E[Σ γ^t r_t + γ^H V(s_H)], with V fixed; for λ < 1 if V is exact."""
    batch = in_proportion(list(futures(LAYERS, PI, 0, horizon)))
    assert batch.cut.any()
    setting = (IN_TOTAL if returns == "total" else BY_STEP) | {"returns": returns}
    for values, lam in ((WRONG, 1.0), (ON_LAYERS, 0.3)):
        agent = tabular_agent(log(PI), values, **setting, baseline="value", gae_lambda=lam)
        expected = gradient_of_return(LAYERS, log(PI), GAMMA, horizon, values)
        np.testing.assert_allclose(table_ascent(agent, batch), expected, rtol=0, atol=EXACT)
    agent = tabular_agent(log(PI), **setting, baseline="none", gae_lambda=1.0)
    expected = gradient_of_return(LAYERS, log(PI), GAMMA, horizon)  # without V the rest counts as nothing
    np.testing.assert_allclose(table_ascent(agent, batch), expected, rtol=0, atol=EXACT)


# --------------------------------------------------------------------------------------------------------- FrozenLake

LIMIT = 20  # short enough that a good part of the episodes is truncated
COST = 0.05  # of each step: where only the last is paid, total and reward_to_go are one
GOOD = (0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0)  # where the goal is reached often
LAKE_CELLS: dict[str, dict[str, Any]] = {
    "total, none": IN_TOTAL | {"baseline": "none"},
    "total, leave_one_out": IN_TOTAL | {"baseline": "leave_one_out"},
    "reward_to_go, none": BY_STEP | {"returns": "reward_to_go", "baseline": "none"},
    "reward_to_go, leave_one_out": BY_STEP | {"returns": "reward_to_go", "baseline": "leave_one_out"},
    "lambda_return, value": BY_STEP | {"returns": "lambda_return", "baseline": "value", "gae_lambda": 0.7},
    "not weighed by γ^t": BY_STEP | {"returns": "reward_to_go", "baseline": "none", "discount_weighting": False},
}


def lake_logits() -> Array:
    logits = np.random.default_rng(0).normal(0, 0.3, (16, 4))
    logits[np.arange(16), GOOD] += 0.7
    return logits


def lake_gradients(cells: dict[str, dict[str, Any]], batches: int, **algorithm: Any) -> tuple[dict[str, Array], Moves]:
    """Collect `batches` batches of 500 episodes like training; all cells use the same ones."""
    settings = config(
        env={"id": "FrozenLake-v1", "num_envs": 500, "max_episode_steps": LIMIT},
        rollout={"episodes": 500},
        policy={"hidden_sizes": []},
        algorithm=algorithm,
    )
    with gym.make("FrozenLake-v1") as env:
        table = cast(Moves, env.unwrapped.P)  # type: ignore[attr-defined]
    moves = {
        s: {a: [(p, after, r - COST, over) for p, after, r, over in outcomes] for a, outcomes in row.items()}
        for s, row in table.items()
    }
    values = returns_from(moves, lake_logits(), GAMMA, None)
    agents = {name: tabular_agent(lake_logits(), values, **cell) for name, cell in cells.items()}
    found: dict[str, list[Array]] = {name: [] for name in cells}
    executor = executor_for(settings)
    policy = next(iter(agents.values())).policy
    for iteration in range(batches):
        batch = collect_episodes(settings, executor, policy, iteration, lambda: None)
        batch = replace(batch, rewards=batch.rewards - COST * batch.mask)
        assert batch.truncated.any(0).double().mean() > 0.05
        for name, agent in agents.items():
            found[name].append(table_ascent(agent, batch))
    executor.close()
    return {name: np.stack(each) for name, each in found.items()}, moves


def standard_errors_off(found: Array, expected: Array) -> float:
    """Return the largest deviation of a mean from its expectation; without variance it must be 0."""
    errors = found.std(0, ddof=1) / math.sqrt(len(found))
    np.testing.assert_array_equal(expected[errors == 0], found.mean(0)[errors == 0])
    return float((np.abs(found.mean(0) - expected)[errors > 0] / errors[errors > 0]).max())


def test_unbiased_estimators_on_frozen_lake_match_the_model_gradient() -> None:
    found, moves = lake_gradients(LAKE_CELLS, 80)
    exact = gradient_of_return(moves, lake_logits(), GAMMA, LIMIT)
    values = returns_from(moves, lake_logits(), GAMMA, None)
    with_rest = gradient_of_return(moves, lake_logits(), GAMMA, LIMIT, values)  # V stands for what was not seen
    off = {
        name: standard_errors_off(g, with_rest if name == "lambda_return, value" else exact)
        for name, g in found.items()
    }
    assert off.pop("not weighed by γ^t") > 6  # so a bias of this kind would be seen
    assert max(off.values()) < 4, off
    # and the estimate knows what a time limit is: without V's part of it, it would be far off
    assert standard_errors_off(found["lambda_return, value"], exact) > 4


def test_groups_on_frozen_lake_match_the_model_gradient() -> None:
    """The columns of a group slip at the same moments, but their actions are their own."""
    group: dict[str, Any] = {"baseline": "group", "group_size": 4, "group_mean": "leave_one_out"}
    found, moves = lake_gradients({"group": IN_TOTAL | group}, 50, **group)
    exact = gradient_of_return(moves, lake_logits(), GAMMA, LIMIT)
    assert standard_errors_off(found["group"], exact) < 4


# ---------------------------------------------------------------------------------------------- data of another policy

EVEN = ([0.0, 0.0], [1, 0])
UNEVEN = ([0.0, math.log(2), math.log(3)], [1, 0, 2])
EVEN_SHARES = ([HALF, HALF], [QUARTER, 3 * QUARTER])  # π, μ
UNEVEN_SHARES = ([Fraction(1, 6), Fraction(1, 3), HALF], [HALF, QUARTER, QUARTER])
BANDITS = [(EVEN, EVEN_SHARES), (UNEVEN, UNEVEN_SHARES)]
Bandit = tuple[tuple[list[float], list[int]], tuple[list[Fraction], list[Fraction]]]


def exact_bandit(world: Bandit) -> list[Fraction]:
    """∂J/∂θ_a = π_a (r_a - J)."""
    (_, rewards), (pi, _) = world
    total = sum((p * r for p, r in zip(pi, rewards, strict=True)), Fraction())
    return [p * (r - total) for p, r in zip(pi, rewards, strict=True)]


def pulls(world: Bandit, n: int) -> Iterator[tuple[Fraction, tuple[int, ...], Trajectories]]:
    """Yield every batch of n pulls by μ: probability, actions, batch."""
    (_, rewards), (_, mu) = world
    for actions in product(range(len(mu)), repeat=n):
        batch = trajectories(*([(a, float(rewards[a]))] for a in actions))
        behavior = torch.tensor([[math.log(mu[a]) for a in actions]], dtype=torch.float64)
        yield (
            math.prod((mu[a] for a in actions), start=Fraction(1)),
            actions,
            replace(batch, behavior_log_probs=behavior),
        )


def mean_under_mu(world: Bandit, n: int, **algorithm: Any) -> list[float]:
    agent = softmax_agent(world[0][0], objective="importance_sampling", **algorithm)
    mean: Tensor = sum((float(p) * ascent(agent, batch) for p, _, batch in pulls(world, n)), torch.zeros(()))
    return mean.tolist()


@pytest.mark.parametrize("ratios", ["step", "per_decision", "trajectory", "sequence"])
@pytest.mark.parametrize("world", BANDITS)
@pytest.mark.parametrize(
    ("algorithm", "n"),
    [
        ({"baseline": "none"}, 1),
        ({"baseline": "none"}, 2),
        ({"baseline": "leave_one_out"}, 2),
        ({"baseline": "group", "group_size": 3, "group_mean": "leave_one_out"}, 3),
        ({"baseline": "none", "returns": "total"}, 2),
    ],
)
def test_importance_sampling_of_another_policys_pulls_is_exact(
    world: Bandit, algorithm: dict[str, Any], n: int, ratios: str
) -> None:
    found = mean_under_mu(world, n, ratios=ratios, **algorithm)
    assert found == pytest.approx([float(x) for x in exact_bandit(world)], abs=EXACT)


@pytest.mark.parametrize("world", BANDITS)
def test_ratios_have_mean_one_under_the_policy_that_acted(world: Bandit) -> None:
    agent = softmax_agent(world[0][0], baseline="none")
    assert sum(
        float(p) * trajectory_ratios(agent.policy, batch).item() for p, _, batch in pulls(world, 1)
    ) == pytest.approx(1, abs=1e-14)
    (pi, mu) = world[1]
    for _, (action,), batch in pulls(world, 1):
        assert trajectory_ratios(agent.policy, batch).item() == pytest.approx(float(pi[action] / mu[action]), rel=1e-14)


@pytest.mark.parametrize("bound", [Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(100)])
@pytest.mark.parametrize("world", BANDITS)
def test_bounded_weights_have_the_bias_computed_by_hand(world: Bandit, bound: Fraction) -> None:
    (_, rewards), (pi, mu) = world
    arms = range(len(pi))
    expected = [
        sum((mu[a] * min(pi[a] / mu[a], bound) * rewards[a] * ((a == b) - pi[b]) for a in arms), Fraction())
        for b in arms
    ]
    found = mean_under_mu(world, 1, baseline="none", importance_bound=float(bound))
    assert found == pytest.approx([float(x) for x in expected], abs=EXACT)
    assert (expected == exact_bandit(world)) == (bound >= 2), "and without bias only where it binds nowhere"


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["step", "per_decision", "trajectory", "sequence"])
@pytest.mark.parametrize("world", BANDITS)
def test_self_normalized_weights_are_divided_by_their_batch_mean(world: Bandit, n: int, kind: str) -> None:
    (_, rewards), (pi, mu) = world
    expected = [Fraction()] * len(pi)
    for p, actions, _ in pulls(world, n):
        ratios = [pi[a] / mu[a] for a in actions]
        for a, ratio in zip(actions, ratios, strict=True):
            for b in range(len(pi)):
                expected[b] += p * ratio / sum(ratios) * rewards[a] * ((a == b) - pi[b])
    found = mean_under_mu(world, n, baseline="none", self_normalize=True, ratios=kind)
    assert found == pytest.approx([float(x) for x in expected], abs=EXACT)


def test_weights_are_bounded_before_self_normalizing() -> None:
    log_probs = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    # ρ = 4 and 1, bounded 2 and 1, whose mean is 3/2: weights 4/3 and 2/3
    log_ratios = torch.tensor([math.log(4), 0], dtype=torch.float64)
    loss = importance_sampling_loss(log_probs, log_ratios, 3 * one, one / 2, bound=2.0, self_normalize=True)
    assert loss.item() == pytest.approx((4 / 3 * 3 * 1 + 2 / 3 * 3 * 2) / 2, rel=1e-14)


@pytest.mark.parametrize("world", BANDITS)
def test_the_optimal_baseline_is_unbiased(world: Bandit) -> None:
    logits, rewards = world[0]
    agent = softmax_agent(logits, returns="total", baseline="optimal")
    g, _ = moments(agent, bandit(logits, [float(r) for r in rewards]), 3)
    assert g.tolist() == pytest.approx([float(x) for x in exact_bandit(world)], abs=EXACT)


def test_the_optimal_baseline_minimizes_variance_for_large_batches() -> None:
    """On the uneven bandit b* = 61/66 is the best constant; N pulls estimate it up to O(1/N)."""
    pi, rewards = UNEVEN_SHARES[0], UNEVEN[1]
    squares = [sum(((a == b) - pi[b]) ** 2 for b in range(3)) for a in range(3)]
    best = sum(p * r * q for p, r, q in zip(pi, rewards, squares, strict=True)) / sum(
        p * q for p, q in zip(pi, squares, strict=True)
    )
    assert best == Fraction(61, 66)
    agent = softmax_agent(UNEVEN[0], returns="total", baseline="optimal")
    pulled = [a for a, p in enumerate(pi) for _ in range(int(p * 300))]
    batch = trajectories(*([(a, float(rewards[a]))] for a in pulled))
    estimate = agent.estimate(batch)
    of_the_code = (estimate.returns - estimate.advantages)[0]
    assert of_the_code.tolist() == pytest.approx([float(best)] * 300, abs=0.01)
    for column in range(len(pulled)):  # the own pull is left out, to the last digit
        others = [a for i, a in enumerate(pulled) if i != column]
        weighted = sum(rewards[a] * squares[a] for a in others)
        assert of_the_code[column].item() == pytest.approx(float(weighted / sum(squares[a] for a in others)), rel=1e-12)
    counts = torch.tensor([100_000, 200_000, 300_000])
    returns, scores = (
        torch.tensor([float(x) for x in xs], dtype=torch.float64).repeat_interleave(counts) for xs in (rewards, squares)
    )
    assert (optimal_baseline(returns, scores) - 61 / 66).abs().max() < 1e-4


def test_the_squared_score_of_a_trajectory_uses_the_sum_over_its_steps() -> None:
    # π even, so a score is ±(1/2, -1/2): three of one sign sum to (3/2, -3/2), and one against one to nothing
    agent = softmax_agent([0.0, 0.0], returns="total", baseline="optimal")
    batch = trajectories([(0, 1.0)] * 3, [(0, 1.0), (1, 1.0)], [(1, 2.0)])
    assert squared_score_norms(agent.policy, batch).tolist() == pytest.approx([4.5, 0, 0.5], abs=1e-15)
    advantages = agent.estimate(replace(batch, rewards=batch.rewards * 2)).advantages
    returns = [2 * (1 + 0.99 + 0.99**2), 2 * 1.99, 4.0]
    expected = [returns[0] - 4.0, returns[1] - (4.5 * returns[0] + 0.5 * 4) / 5, 4 - returns[0]]
    assert advantages[0].tolist() == pytest.approx(expected, rel=1e-14)


def test_a_single_trajectory_has_optimal_baseline_zero() -> None:
    assert optimal_baseline(torch.tensor([3.0]), torch.tensor([0.1])).tolist() == [0]
    # of two, one that was certain to happen, score 0, tells nothing of the other
    assert optimal_baseline(torch.tensor([3.0, 8.0]), torch.tensor([0.25, 0.0])).tolist() == [0, 3]


@pytest.mark.parametrize("objective", ["clip", "importance_sampling"])
def test_grpo_on_policy_has_the_same_values_for_every_objective(objective: str) -> None:
    grpo = {"returns": "total", "baseline": "group", "standardize": "group", "group_size": 4, "objective": objective}
    agent = softmax_agent(UNEVEN[0], **grpo)
    log_pi = torch.tensor([float(p) for p in UNEVEN_SHARES[0]], dtype=torch.float64).log()
    g = torch.zeros(3, dtype=torch.float64)
    for pulled in product(range(3), repeat=4):
        batch = trajectories(*([(a, float(UNEVEN[1][a]))] for a in pulled))
        batch = replace(batch, behavior_log_probs=log_pi[torch.tensor([pulled])])
        g += log_pi[list(pulled)].sum().exp() * ascent(agent, batch)
    # by counts of actions, in exact fractions and roots to 40 digits
    assert g.tolist() == pytest.approx([-0.042490910766803, -0.342909590010470, 0.3854005007772741], abs=EXACT)


# --------------------------------------------------------------------------------------------------------- PPO's clip

LOG_RATIOS = torch.linspace(-3, 3, 241, dtype=torch.float64)


@pytest.mark.parametrize("clip_range", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("advantage", [2.0, 0.25, -0.25, -2.0])
def test_the_clip_zeroes_gradients_only_beyond_the_range_in_the_advantages_direction(
    advantage: float, clip_range: float
) -> None:
    log_ratios = LOG_RATIOS.clone().requires_grad_()
    ratios = LOG_RATIOS.exp()
    one = torch.ones_like(ratios)
    loss = clip_loss(log_ratios, advantage * one, one, clip_range)
    (gradient,) = torch.autograd.grad(loss, log_ratios)
    silent = ratios > 1 + clip_range if advantage > 0 else ratios < 1 - clip_range
    assert torch.equal(gradient == 0, silent)
    assert 0 < silent.sum() < len(ratios)
    np.testing.assert_allclose(gradient[~silent], -advantage * ratios[~silent], rtol=1e-15)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_two_clip_ranges_bound_each_direction_by_its_own(advantage: float) -> None:
    """Clip-higher (Yu et al. 2025): -min(ρA, clip(ρ, 0.9, 1.5) A)."""
    one = torch.ones(1, dtype=torch.float64)
    losses = [clip_loss(x[None], advantage * one, one, 0.1, 0.5).item() for x in LOG_RATIOS]
    expected = [-min(math.exp(x) * advantage, min(max(math.exp(x), 0.9), 1.5) * advantage) for x in LOG_RATIOS.tolist()]
    assert losses == pytest.approx(expected, rel=1e-15)
    ratios = LOG_RATIOS.exp().numpy()
    slopes = clip_slope(LOG_RATIOS.numpy(), np.full(241, advantage), np.ones(241), 0.1, 0.5)
    silent = ratios > 1.5 if advantage > 0 else ratios < 0.9
    np.testing.assert_allclose(slopes, np.where(silent, 0, -advantage * ratios), rtol=1e-15)


@pytest.mark.parametrize("advantage", [2.0, 0.0, -2.0])
def test_the_clipped_surrogate_is_never_above_the_unclipped_one(advantage: float) -> None:
    one = torch.ones(1, dtype=torch.float64)
    losses = [clip_loss(x[None], advantage * one, one, 0.2).item() for x in LOG_RATIOS]
    unclipped = (-LOG_RATIOS.exp() * advantage).tolist()
    pessimistic = [loss - plain for loss, plain in zip(losses, unclipped, strict=True)]
    assert min(pessimistic) >= 0
    assert (max(pessimistic) > 1) == (advantage != 0)
    # the same statement from the other side: clipped at 1 ± ε where that is worse
    expected = [-min(math.exp(x) * advantage, min(max(math.exp(x), 0.8), 1.2) * advantage) for x in LOG_RATIOS.tolist()]
    assert losses == pytest.approx(expected, rel=1e-15)


def test_the_clip_gradient_at_ratio_one_is_the_policy_gradient_bit_for_bit() -> None:
    draw = torch.Generator().manual_seed(1)
    log_probs, advantages, weights = torch.randn(3, 50, dtype=torch.float64, generator=draw)
    log_probs.requires_grad_()
    clipped = clip_loss(log_probs - log_probs.detach(), advantages, weights, 0.2)
    plain = policy_gradient_loss(log_probs, advantages, weights)
    weighed = importance_sampling_loss(log_probs, log_probs.detach() * 0, advantages, weights)
    (expected,) = torch.autograd.grad(plain, log_probs)
    assert torch.equal(torch.autograd.grad(clipped, log_probs)[0], expected)
    assert torch.equal(torch.autograd.grad(weighed, log_probs)[0], expected)
    assert clipped.item() == pytest.approx(-(weights * advantages).sum().item())


# ------------------------------------------------------------------------------------- updates, with ratios by hand


def sgd_agent(logits: Sequence[float], rate: float, **algorithm: Any) -> Learner:
    """Build a `softmax_agent` with plain gradient ascent and learning rate `rate`."""
    settings = config(
        policy={"hidden_sizes": []}, optimizer={"name": "sgd", "learning_rate": rate}, algorithm=algorithm
    )
    agent = learner_of(spaces.Box(-1, 1, (1,)), spaces.Discrete(len(logits)), settings)
    with torch.no_grad():
        list(agent.policy.double().parameters())[-1].copy_(torch.tensor(logits, dtype=torch.float64))
    return agent


def probabilities(policy: Policy) -> Array:
    logits = list(policy.parameters())[-1].detach().numpy()
    shares: Array = np.exp(logits) / np.exp(logits).sum()
    return shares


ONE_STEP_EACH = [(0, 1.0), (1, 0.5), (1, -1.0), (2, 4.0), (2, -2.0), (0, -3.0), (2, 1.0)]
OFF_POLICY: dict[str, Any] = {"baseline": "none", "objective": "clip"}


@pytest.mark.parametrize("objective", ["clip", "importance_sampling"])
def test_one_step_on_fresh_data_has_ratios_of_exactly_one(objective: str) -> None:
    for batch in (trajectories(*([step] for step in ONE_STEP_EACH)), trajectories(ONE_STEP_EACH, ONE_STEP_EACH[:3])):
        agent = sgd_agent([0.3, -1.0, 0.1], 5.0, baseline="none", objective=objective)
        agent.policy.float()  # where rounding would show
        update = agent.update(batch)
        assert update.approx_kl == 0
        assert update.clip_fraction == (0 if objective == "clip" else None)
        assert update.effective_sample_size == batch.num_steps


def watched(agent: Learner) -> list[dict[str, float]]:
    """Record the terms of the policy's loss before each step."""
    seen: list[dict[str, float]] = []
    gradient = agent.agent.gradient

    class Watched:
        inputs = staticmethod(gradient.inputs)

        def __call__(self, batch: Batch, part: PartName, progress: float) -> Step:
            slope, terms = gradient(batch, part, progress)
            seen.append({name: term.item() for name, term in terms().items()})
            return slope, terms

    agent.agent.gradient = Watched()
    return seen


@pytest.mark.parametrize("objective", ["clip", "importance_sampling"])
def test_only_the_first_of_several_steps_has_ratios_of_exactly_one(
    objective: str,
) -> None:
    """In float32, small parts round differently from the batch of thirteen."""
    algorithm = {"baseline": "none", "objective": objective, "num_minibatches": 5, "update_epochs": 2}
    agent = learner_of(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), config(algorithm=algorithm))
    seen = watched(agent)
    for iteration in range(10):
        agent.update(replace(ragged(), behavior_log_probs=None), iteration)
    assert len(seen) == 10 * 2 * 5
    for first in seen[::10]:
        assert (first["approx_kl"], first["ratio"], first["squared_ratio"]) == (0, 1, 1)
    assert all(terms["approx_kl"] > 0 for i, terms in enumerate(seen) if i % 10)


@pytest.mark.parametrize("objective", ["clip", "importance_sampling"])
def test_an_update_reports_weighted_means_of_its_last_epoch(
    objective: str,
) -> None:
    agent = sgd_agent([0.3, -1.0, 0.1], 1.0, baseline="none", objective=objective, num_minibatches=3, update_epochs=2)
    seen = watched(agent)
    update = agent.update(trajectories(*([step] for step in ONE_STEP_EACH)))
    shares = (3 / 7, 2 / 7, 2 / 7)
    mean = {name: sum(p * terms[name] for p, terms in zip(shares, seen[3:], strict=True)) for name in seen[0]}
    assert update.policy_loss == pytest.approx(mean["policy_loss"], rel=1e-12)
    assert update.approx_kl == pytest.approx(mean["approx_kl"], rel=1e-12)
    assert update.effective_sample_size == pytest.approx(7 * mean["ratio"] ** 2 / mean["squared_ratio"], rel=1e-12)


@pytest.mark.parametrize("objective", ["clip", "importance_sampling"])
def test_a_second_epoch_reports_the_metrics_of_ratios_by_hand(objective: str) -> None:
    """The first step is a plain policy gradient step; the second epoch measures at its result."""
    logits, rate = [0.3, -1.0, 0.1], 1.0
    agent = sgd_agent(logits, rate, baseline="none", objective=objective, update_epochs=2, clip_range=0.3)
    before = probabilities(agent.policy)
    actions = [a for a, _ in ONE_STEP_EACH]
    climb = np.mean([r * (np.eye(3)[a] - before) for a, r in ONE_STEP_EACH], axis=0)
    raised = np.exp(np.array(logits) + rate * climb)
    after = raised / raised.sum()
    ratios = (after / before)[actions]
    update = agent.update(trajectories(*([step] for step in ONE_STEP_EACH)))
    assert update.effective_sample_size == pytest.approx(ratios.sum() ** 2 / (ratios**2).sum(), rel=1e-12)
    assert update.approx_kl == pytest.approx((ratios - 1 - np.log(ratios)).mean(), rel=1e-10)
    paid = np.array([r for _, r in ONE_STEP_EACH])
    if objective == "clip":
        outside = np.abs(ratios - 1) > 0.3
        assert update.clip_fraction == pytest.approx(outside.mean())
        assert 0 < outside.mean() < 1
        surrogate = np.minimum(ratios * paid, np.clip(ratios, 0.7, 1.3) * paid)
        assert update.policy_loss == pytest.approx(-surrogate.mean(), rel=1e-12)
    else:
        assert update.policy_loss == pytest.approx(-(ratios * paid * np.log(after[actions])).mean(), rel=1e-12)


def test_reused_data_is_weighted_by_the_policy_that_collected_it() -> None:
    agent = sgd_agent([0.3, -1.0, 0.1], 2.0, baseline="none", objective="importance_sampling", reuse=2)
    policies = [probabilities(agent.policy)]
    first, second, third = ONE_STEP_EACH[:3], ONE_STEP_EACH[3:5], ONE_STEP_EACH[5:]
    for iteration, steps in enumerate((first, second)):
        agent.update(trajectories(*([step] for step in steps)), iteration)
        policies.append(probabilities(agent.policy))
    # what a resumed run does first: it collects the second again, and the policy of then acts
    agent.past.collect_again(2, lambda _, iteration: trajectories(*([step] for step in (first, second)[iteration])))
    update = agent.update(trajectories(*([step] for step in third)), 2)
    # the third learns from itself and the second, not from the first
    own, old = [a for a, _ in third], [a for a, _ in second]
    ratios = np.concatenate((np.ones(len(own)), (policies[2] / policies[1])[old]))
    assert update.effective_sample_size == pytest.approx(ratios.sum() ** 2 / (ratios**2).sum(), rel=1e-12)
    assert update.approx_kl == pytest.approx((ratios - 1 - np.log(ratios)).mean(), rel=1e-10)
    paid = np.array([r for _, r in (*third, *second)])
    log_pi = np.log(policies[2][own + old])
    assert update.policy_loss == pytest.approx(-(ratios * paid * log_pi).mean(), rel=1e-12)
    assert np.ptp(ratios) > 0.1


def test_explained_variance_is_the_share_predicted_by_v() -> None:
    targets = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    # errors 0, 0, 1 have variance 2/9; the targets 14/9
    assert explained_variance(torch.tensor([1.0, 2.0, 3.0]), targets) == pytest.approx(6 / 7)
    assert explained_variance(targets + 5, targets) == pytest.approx(1)  # a constant is not variance
    assert explained_variance(torch.zeros(3), targets) == pytest.approx(0)
    assert explained_variance(-targets, targets) == pytest.approx(-3)  # errors of twice the size
    assert explained_variance(targets, torch.full((3,), 7.0)) is None


@pytest.mark.parametrize(
    ("value", "old", "target", "expected", "slope"),
    [
        (1.0, 1.0, 3.0, 4.0, -4.0),  # where it was: the plain square
        (1.1, 1.0, 3.0, 1.9**2, -3.8),  # within the range
        (2.0, 1.0, 3.0, 1.8**2, 0.0),  # too fast towards the target: kept at 1.2, and held there
        (0.0, 1.0, 3.0, 9.0, -6.0),  # away from the target: the plain square is worse, and pulls it back
        (4.0, 1.0, 3.0, 1.8**2, 0.0),  # across the target by 1: still worse where it is kept
        (6.0, 1.0, 3.0, 9.0, 6.0),  # across the target by more
    ],
)
def test_the_clipped_value_loss_is_the_larger_of_two(
    value: float, old: float, target: float, expected: float, slope: float
) -> None:
    v, was, g = (torch.tensor([x], dtype=torch.float64) for x in (value, old, target))
    v.requires_grad_()
    loss = value_loss(v, g, was, clip_range=0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    assert torch.autograd.grad(loss, v)[0].item() == pytest.approx(slope, rel=1e-14)
    assert value_loss(v, g, was).item() == pytest.approx((value - target) ** 2, rel=1e-14)


# --------------------------------------------------------------------------------------------------------- minibatches


def ragged() -> Trajectories:
    """Four trajectories of lengths 5, 3, 1, 4, terminated or cut, of another policy than the agent's."""
    draw = torch.Generator().manual_seed(5)
    batch = trajectories(*([(0, 0.0)] * length for length in (5, 3, 1, 4)))
    return replace(
        batch,
        obs=torch.randn(6, 4, 3, dtype=torch.float64, generator=draw),
        actions=torch.randint(4, (5, 4), generator=draw),
        rewards=torch.randn(5, 4, dtype=torch.float64, generator=draw) * batch.mask,
        terminated=batch.terminated & torch.tensor([True, False, True, False]),
        behavior_log_probs=-1.4 + 0.3 * torch.randn(5, 4, dtype=torch.float64, generator=draw),
    )


def deep_agent(**algorithm: Any) -> PolicyGradient:
    settings = config(policy={"hidden_sizes": [6]}, algorithm=algorithm, value={"clip_range": 0.1})
    agent = build_agent(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), settings)
    agent.policy.double()
    if agent.value is not None:
        agent.value.double()
    return agent


def ordered(order: Sequence[int]) -> np.random.Generator:
    return cast(np.random.Generator, SimpleNamespace(permutation=lambda _: np.array(order)))


MINI: dict[str, Any] = {"objective": "clip", "entropy_coef": 0.3, "kl_coef": 0.2, "gamma": 0.9}


@pytest.mark.parametrize("count", [1, 2, 3, 13, 100])
@pytest.mark.parametrize("average", ["steps", "episodes", "episode_means"])
def test_weighted_minibatch_losses_sum_to_the_batch_loss(average: str, count: int) -> None:
    agent = deep_agent(baseline="value", returns="lambda_return", average=average, **MINI)
    batch, _ = flat_batch(agent, ragged())
    order = np.random.default_rng(3).permutation(13)
    parts = [part for _, part in minibatches(batch, 1, count, lambda _: ordered(order.tolist()), on_policy=False)]
    assert len(parts) == min(count, 13)
    assert sum(part.share for part in parts) == pytest.approx(1)
    for terms in (autograd(agent).policy_terms, autograd(agent).value_terms):
        whole = terms(batch)
        for name in whole.keys() - {"squared_ratio"}:
            pieces = sum(part.share * terms(part)[name].item() for part in parts)
            assert pieces == pytest.approx(whole[name].item(), rel=1e-12), name


@pytest.mark.parametrize("average", ["steps", "episodes", "episode_means"])
def test_the_mean_minibatch_gradient_over_all_orders_is_the_batch_gradient(average: str) -> None:
    agent = deep_agent(baseline="none", average=average, **MINI)
    small = mapped(ragged(), lambda _, x: x[:, 1:3])  # 3 + 1 steps, in parts of 2 and 2, or of 2, 1 and 1
    batch, _ = flat_batch(agent, small)

    def gradient(part: Any) -> Tensor:
        gradients = torch.autograd.grad(autograd(agent).policy_terms(part)["loss"], list(agent.policy.parameters()))
        return torch.cat([g.flatten() for g in gradients])

    for count in (2, 3):
        sums = [torch.zeros(()) for _ in range(count)]
        for order in permutations(range(4)):
            shuffler = ordered(order)
            parts = minibatches(batch, 1, count, lambda _, shuffler=shuffler: shuffler, on_policy=False)  # type: ignore[misc]
            for i, (_, part) in enumerate(parts):
                sums[i] = sums[i] + gradient(part) / 24
        for mean in sums:
            np.testing.assert_allclose(mean, gradient(batch), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------------ KL


@pytest.mark.parametrize("shift", [0.0, 1e-9, 1e-3, 0.5, 4.0])
def test_the_estimate_of_kl_is_positive_and_its_mean_is_kl_over_a_categorical(shift: float) -> None:
    mu = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    pi = (mu.log() + shift * torch.tensor([1.0, -1.0, 0.5, 0.25], dtype=torch.float64)).softmax(0)
    estimates = kl_estimates(pi.log() - mu.log())
    assert (estimates >= 0).all()
    expected = float((mu * (mu / pi).log()).sum())
    assert (mu * estimates).sum().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "x"), [(torch.float32, 1e-4), (torch.float32, -1e-4), (torch.float64, 1e-8), (torch.float64, -1e-8)]
)
def test_a_small_kl_is_not_lost_in_rounding(dtype: torch.dtype, x: float) -> None:
    # e^x - 1 - x = x²/2 + x³/6 + …, far below the last bit of e^x
    assert kl_estimates(torch.tensor([x], dtype=dtype)).item() == pytest.approx(x**2 / 2, rel=1e-3, abs=0)


def gauss_hermite(nodes: int) -> tuple[Array, Array]:
    """Nodes and weights of a standard normal expectation, exact for polynomials of degree 2 nodes - 1."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return z, weights / weights.sum()


def gaussian(means: Sequence[float], deviations: Sequence[float]) -> tuple[Gaussian, Tensor]:
    distribution = Gaussian(spaces.Box(-1, 1, (len(means),)), 1.0).double()
    with torch.no_grad():
        distribution.log_standard_deviation.copy_(torch.tensor(deviations, dtype=torch.float64).log())
    return distribution, torch.tensor([means], dtype=torch.float64)


def test_the_mean_estimate_of_kl_between_diagonal_gaussians_is_their_kl() -> None:
    mu, mean_of_mu = gaussian([0.3, -1.0], [1.2, 0.7])
    pi, mean_of_pi = gaussian([0.5, -0.8], [0.9, 0.6])
    z, weights = gauss_hermite(70)
    pairs = torch.tensor(list(product(z, repeat=2)), dtype=torch.float64)
    probability = torch.tensor([p * q for p, q in product(weights, repeat=2)], dtype=torch.float64)
    actions = mean_of_mu + pairs * torch.tensor([1.2, 0.7], dtype=torch.float64)
    log_ratios = pi.log_probs(mean_of_pi, actions) - mu.log_probs(mean_of_mu, actions)
    estimates = kl_estimates(log_ratios).detach()
    assert (estimates >= 0).all()
    # KL(N(m, s²) ‖ N(m', s'²)) = log(s'/s) + (s² + (m - m')²) / 2s'² - 1/2, for each entry
    entries = [(0.3, 1.2, 0.5, 0.9), (-1.0, 0.7, -0.8, 0.6)]
    expected = sum(math.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5 for m, s, n, t in entries)
    assert float(probability @ estimates) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("objective", ["clip", "importance_sampling"])
def test_the_kl_penalty_has_the_gradient_of_kl(objective: str) -> None:
    """∂KL(μ‖π)/∂θ = π - μ for a softmax; without rewards nothing else moves θ."""
    mu = np.array([0.5, 0.25, 0.25])
    for logits in ([0.0, 1.0, -0.5], np.log(mu).tolist()):
        agent = softmax_agent(logits, baseline="none", objective=objective, kl_coef=0.25)
        own, total = np.allclose(probabilities(agent.policy), mu), torch.zeros(())
        for action, p in enumerate(mu):
            batch = trajectories([(action, 0.0)])
            behavior = torch.full((1, 1), math.log(p), dtype=torch.float64)
            g = ascent(agent, replace(batch, behavior_log_probs=behavior))
            total = total + p * g
            if own:
                assert g.abs().max() < 1e-15, "at π = μ each estimate is at its minimum"
        np.testing.assert_allclose(total, -0.25 * (probabilities(agent.policy) - mu), rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------- λ-returns, and where they end


def line_agent(value: dict[str, Any] | None = None, **algorithm: Any) -> PolicyGradient:
    """Build an agent in float64 with V(x) = 2x - 1 for a scalar observation."""
    settings = config(policy={"hidden_sizes": []}, value=value or {}, algorithm={"baseline": "value"} | algorithm)
    agent = build_agent(spaces.Box(-9, 9, (1,)), spaces.Discrete(2), settings)
    assert agent.value is not None
    agent.policy.double()
    weight, bias = agent.value.double().network.parameters()
    with torch.no_grad():
        weight.fill_(2)
        bias.fill_(-1)
    return agent


# Columns of six rows, each a list of (steps, how it ended): a masked row stands between two episodes.
COLUMNS = [
    [(6, "terminated")],
    [(6, "segment end")],
    [(2, "truncated"), (3, "segment end")],
    [(1, "terminated"), (1, "truncated"), (2, "terminated")],
    [(3, "horizon")],
    [(5, "terminated")],
    [(0, ""), (5, "segment end")],
]


def segment() -> Trajectories:
    draw = torch.Generator().manual_seed(11)
    x, rewards = torch.randn(7, 7, 1, dtype=torch.float64, generator=draw), torch.zeros(6, 7, dtype=torch.float64)
    terminated, truncated, mask = torch.zeros(3, 6, 7, dtype=torch.bool)
    for column, episodes in enumerate(COLUMNS):
        row = 0
        for steps, how in episodes:
            mask[row : row + steps, column] = True
            for flags, name in ((terminated, "terminated"), (truncated, "truncated")):
                flags[row + steps - 1, column] |= how == name
            row += steps + 1
    rewards[mask] = torch.randn(int(mask.sum()), dtype=torch.float64, generator=draw)
    return Trajectories(x, torch.zeros(6, 7, dtype=torch.int64), rewards, terminated, truncated, mask)


def forward_view(rewards: list[float], values: list[float], terminated: bool, gamma: float, lam: float) -> list[float]:
    """Compute (1 - λ) Σ λ^(n-1) G^(n) + λ^(L-1) G^(L) with the n-step returns G^(n) of an episode of L steps."""
    length = len(rewards)

    def steps(t: int, n: int) -> float:
        rest = 0.0 if terminated and t + n == length else values[t + n]
        return sum(gamma**i * rewards[t + i] for i in range(n)) + gamma**n * rest

    return [
        sum((1 - lam) * lam ** (n - 1) * steps(t, n) for n in range(1, length - t))
        + lam ** (length - t - 1) * steps(t, length - t)
        for t in range(length)
    ]


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("returns", ["lambda_return", "vtrace"])
def test_lambda_returns_mix_n_step_returns_within_an_episode(returns: str, lam: float) -> None:
    """Time limits, horizons and segment ends bootstrap; terminations do not, and nothing crosses them."""
    batch, agent = segment(), line_agent(returns=returns, gamma=0.8, gae_lambda=lam)
    estimate = agent.estimate(batch)
    values = (2 * batch.obs[..., 0] - 1).tolist()
    checked = 0
    for column, episodes in enumerate(COLUMNS):
        row = 0
        for steps, how in episodes:
            rows = range(row, row + steps)
            own = [values[t][column] for t in range(row, row + steps + 1)]
            expected = forward_view(batch.rewards[rows, column].tolist(), own, how == "terminated", 0.8, lam)
            assert estimate.returns[rows, column].tolist() == pytest.approx(expected, abs=1e-13)
            checked += steps
            if returns == "lambda_return":
                against = [g - v for g, v in zip(expected, own[:-1], strict=True)]
                assert estimate.advantages[rows, column].tolist() == pytest.approx(against, abs=1e-13)
            row += steps + 1
    assert checked == batch.num_steps == 34


def test_the_value_loss_uses_returns_and_old_values() -> None:
    """V increases by 1/2 everywhere, but is clipped to 1/4."""
    batch, agent = segment(), line_agent(value={"clip_range": 0.25}, returns="lambda_return", gamma=0.8, gae_lambda=0.6)
    laid_out, report = flat_batch(agent, batch)
    old = (2 * batch.obs[:-1, :, 0] - 1)[batch.mask].numpy()
    targets = agent.estimate(batch).returns[batch.mask].numpy()
    assert report.explained_variance == pytest.approx(1 - (targets - old).var() / targets.var(), rel=1e-12)
    assert agent.value is not None
    with torch.no_grad():
        list(agent.value.parameters())[-1].add_(0.5)
    expected = np.maximum((old + 0.5 - targets) ** 2, (old + 0.25 - targets) ** 2).mean()
    terms = autograd(agent).value_terms(laid_out)
    assert terms["value_loss"].item() == pytest.approx(expected, rel=1e-12)
    assert terms["loss"].item() == pytest.approx(expected / 2, rel=1e-12)  # value_coef is 1/2


@pytest.mark.parametrize("cut", [False, True])
def test_the_total_return_of_a_cut_trajectory_is_bootstrapped(cut: bool) -> None:
    batch = trajectories([(0, 1.0), (1, 2.0), (0, 4.0)])
    batch = replace(
        batch,
        obs=torch.tensor([3.0, 5.0, 6.0, 4.5], dtype=torch.float64)[:, None, None],
        terminated=batch.terminated & (not cut),
    )
    advantages = line_agent(returns="total", gamma=0.5).estimate(batch).advantages
    # R = 1 + 2/2 + 4/4, then V(4.5) = 8 times γ³; V(3) = 5
    assert advantages[:, 0].tolist() == [3 + (1 if cut else 0) - 5] * 3


def test_values_are_zero_where_no_state_was_reached() -> None:
    batch = segment()
    dirty = replace(batch, obs=torch.where(batch.reached[..., None], batch.obs, math.nan))
    agent = line_agent()
    values = trajectory_values(agent.policy, agent.value, dirty)
    assert torch.equal(values, torch.where(batch.reached, 2 * batch.obs[..., 0] - 1, 0))
    assert batch.cut.sum() == 6  # the episodes that end in another way than by termination
    assert batch.reached.sum() == 34 + 10  # one more than its steps for each of the ten episodes


# ------------------------------------------------------------------------------------------------------------- V-trace


def vtrace_agent(values: Array, lam: float) -> PolicyGradient:
    algorithm = {"returns": "vtrace", "baseline": "value", "objective": "importance_sampling"}
    return tabular_agent(log(TARGET), values, **algorithm, gamma=GAMMA, gae_lambda=lam)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("start", [0, 1])
def test_vtrace_is_the_sum_of_corrected_errors(start: int, lam: float) -> None:
    """v_s = V(x_s) + Σ γ^(t-s) (Π c_i) ρ_t δ_t, written out for all trajectories of μ, cut or terminated."""
    told = [episode for _, episode in futures(TWO, ACTED, start, 3)]
    values = [1.5, -0.5]
    estimate = vtrace_agent(np.array(values), lam).estimate(side_by_side(told, ACTED))
    for column, (states, actions, rewards, terminated) in enumerate(told):
        steps = len(actions)
        v = [values[s] for s in states]
        if terminated:
            v[-1] = 0
        rho = [min(1.0, float(TARGET[s][a] / ACTED[s][a])) for s, a in zip(states, actions, strict=False)]
        delta = [rewards[t] + GAMMA * v[t + 1] - v[t] for t in range(steps)]
        corrected = [
            v[s]
            + sum(GAMMA ** (t - s) * math.prod(lam * c for c in rho[s:t]) * rho[t] * delta[t] for t in range(s, steps))
            for s in range(steps)
        ]
        assert estimate.returns[:steps, column].tolist() == pytest.approx(corrected, abs=1e-13)
        following = [*corrected[1:], v[-1]]
        advantages = [rewards[t] + GAMMA * following[t] - v[t] for t in range(steps)]
        assert estimate.advantages[:steps, column].tolist() == pytest.approx(advantages, abs=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_fixed_point_of_vtrace_is_the_value_of_the_policy_between_the_two(lam: float) -> None:
    """The mean of v under μ equals V only if V is the value of π̄ ∝ min(μ, π)."""
    smaller = [[min(p, q) for p, q in zip(*rows, strict=True)] for rows in zip(ACTED, TARGET, strict=True)]
    between = [[p / sum(row) for p in row] for row in smaller]
    fixed = returns_from(TWO, log(between), GAMMA, None)
    for start in (0, 1):
        batch = in_proportion(list(futures(TWO, ACTED, start, 3)), ACTED)
        mean = vtrace_agent(fixed, lam).estimate(batch).returns[0].mean().item()
        assert mean == pytest.approx(fixed[start], abs=1e-12)
        for other in (log(TARGET), log(ACTED)):
            values = returns_from(TWO, other, GAMMA, None)
            moved = vtrace_agent(values, lam).estimate(batch).returns[0].mean().item() - values[start]
            assert abs(moved) > 1e-3
            assert moved * (fixed[start] - values[start]) > 0, "towards the fixed point"


def test_on_policy_vtrace_is_the_lambda_return() -> None:
    batch = segment()
    values = torch.where(batch.reached, 2 * batch.obs[..., 0] - 1, 0)
    plain = line_agent(returns="lambda_return", gamma=0.8, gae_lambda=0.6).estimate(batch).returns[batch.mask]
    for ratio in (1.0, 1.7, 1e9):  # what π does more often than μ counts no more
        ratios = torch.full_like(batch.rewards, ratio)
        v, q = vtrace_returns(batch.rewards, 0.8, 0.6, batch.terminated, batch.cut, values, ratios)
        np.testing.assert_allclose(v[batch.mask], plain, rtol=0, atol=1e-13)
        one, _ = vtrace_returns(batch.rewards, 0.8, 0.6, batch.terminated, batch.cut, values, ratios / ratio)
        assert torch.equal(v, one)
        assert torch.isfinite(q).all()


def test_vtrace_ignores_actions_of_probability_zero() -> None:
    batch = segment()
    values = torch.where(batch.reached, 2 * batch.obs[..., 0] - 1, 0)
    never = torch.zeros_like(batch.rewards)
    v, _ = vtrace_returns(batch.rewards, 0.8, 0.6, batch.terminated, batch.cut, values, never)
    assert torch.equal(v, values[:-1])


# --------------------------------------------------------------------------------------------------- continuous actions


def linear_gaussian(k: float, mean: float, sigma: float, **algorithm: Any) -> PolicyGradient:
    """Build an agent in float64 with a ~ N(k s + mean, σ²), and optionally V(s) = s/3 - 2."""
    settings = config(policy={"hidden_sizes": []}, algorithm={"average": "episodes"} | algorithm)
    agent = build_agent(spaces.Box(-9, 9, (1,)), spaces.Box(-9, 9, (1,)), settings)
    numbers = {"distribution.log_standard_deviation": math.log(sigma), "network.0.weight": k, "network.0.bias": mean}
    with torch.no_grad():
        for name, parameter in agent.policy.double().named_parameters():
            parameter.fill_(numbers[name])
        if agent.value is not None:
            for parameter, number in zip(agent.value.double().parameters(), (1 / 3, -2), strict=True):
                parameter.fill_(number)
    return agent


def named_ascent(agent: PolicyGradient, batch: Trajectories) -> Array:
    """Estimate dJ by k, mean and log σ of a `linear_gaussian`."""
    gradients = estimate_gradient(agent, batch)[0]
    by_name = {name: -g.item() for (name, _), g in zip(agent.policy.named_parameters(), gradients, strict=True)}
    names = ("network.0.weight", "network.0.bias", "distribution.log_standard_deviation")
    return np.array([by_name[name] for name in names])


def continuous(states: Sequence[float], actions: Sequence[float], rewards: Sequence[float]) -> Trajectories:
    """Create one trajectory that terminates."""
    batch = trajectories([(0, reward) for reward in rewards])
    columns = (torch.tensor(list(x), dtype=torch.float64)[:, None, None] for x in (states, actions))
    return replace(batch, obs=next(columns), actions=next(columns))


@pytest.mark.parametrize(
    "algorithm", [{"baseline": "none"}, {"baseline": "none", "returns": "total"}, {"baseline": "value"}]
)
@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (-0.4, 0.3), (1.5, 2.0)])
def test_a_gaussian_bandit_has_its_closed_form_gradient(algorithm: dict[str, Any], mean: float, sigma: float) -> None:
    """With r = -(a - c)², J = -((μ - c)² + σ²): dJ/dμ = -2 (μ - c), dJ/d log σ = -2σ²."""
    c, agent = 0.7, linear_gaussian(0.0, mean, sigma, **algorithm)
    g = np.zeros(3)
    for z, p in zip(*gauss_hermite(8), strict=True):
        a = mean + sigma * z
        g += p * named_ascent(agent, continuous((0, 0), (a,), (-((a - c) ** 2),)))
    assert g.tolist() == pytest.approx([0, -2 * (mean - c), -2 * sigma**2], abs=EXACT)


@pytest.mark.parametrize("a", [-2.0, 0.1, 3.0])
def test_the_score_of_a_gaussian_is_its_closed_form(a: float) -> None:
    mean, sigma, s = 0.4, 0.6, 2.5
    agent = linear_gaussian(0.2, mean - 0.2 * s, sigma, baseline="none")
    z = (a - mean) / sigma
    score = named_ascent(agent, continuous((s, 0), (a,), (1.0,)))
    assert score.tolist() == pytest.approx([s * z / sigma, z / sigma, z**2 - 1], rel=1e-13)


def lqr(k: float, sigma: float, start: float, gamma: float, horizon: int) -> tuple[float, list[float]]:
    """J and dJ by k and log σ, from the recursion of m_t = E[s_t²]: s' = (1 + k) s + σz, r = -(s² + (ks + σz)²)."""
    m, by_k, by_sigma = start**2, 0.0, 0.0
    total, total_by_k, total_by_sigma = 0.0, 0.0, 0.0
    for t in range(horizon):
        total -= gamma**t * ((1 + k**2) * m + sigma**2)
        total_by_k -= gamma**t * ((1 + k**2) * by_k + 2 * k * m)
        total_by_sigma -= gamma**t * ((1 + k**2) * by_sigma + 2 * sigma**2)
        by_k = (1 + k) ** 2 * by_k + 2 * (1 + k) * m
        by_sigma = (1 + k) ** 2 * by_sigma + 2 * sigma**2
        m = (1 + k) ** 2 * m + sigma**2
    return total, [total_by_k, total_by_sigma]


@pytest.mark.parametrize(
    "algorithm",
    [
        {"returns": "total", "baseline": "none"},
        {"returns": "total", "baseline": "value"},
        {"returns": "reward_to_go", "baseline": "none", "discount_weighting": True},
        {"returns": "reward_to_go", "baseline": "value", "discount_weighting": True},
        {"returns": "lambda_return", "baseline": "value", "discount_weighting": True, "gae_lambda": 1.0},
        {"returns": "reward_to_go", "baseline": "none", "discount_weighting": True, "objective": "clip"},
    ],
    ids=str,
)
def test_a_linear_quadratic_regulator_has_its_closed_form_gradient(algorithm: dict[str, Any]) -> None:
    """By a product of quadratures over the three noises; four nodes each are exact, for g is of degree 5 at most."""
    k, sigma, start, gamma = -0.4, 0.5, 1.2, 0.9
    agent = linear_gaussian(k, 0.0, sigma, gamma=gamma, **algorithm)
    g, mean_return = np.zeros(3), 0.0
    for noise in product(zip(*gauss_hermite(4), strict=True), repeat=3):
        states, actions, rewards = [start], list[float](), list[float]()
        for z, _ in noise:
            actions.append(k * states[-1] + sigma * z)
            rewards.append(-(states[-1] ** 2 + actions[-1] ** 2))
            states.append(states[-1] + actions[-1])
        p = math.prod(weight for _, weight in noise)
        g += p * named_ascent(agent, continuous(states, actions, rewards))
        mean_return += p * sum(gamma**t * r for t, r in enumerate(rewards))
    total, gradient = lqr(k, sigma, start, gamma, 3)
    assert mean_return == pytest.approx(total, rel=1e-12)
    assert g[[0, 2]].tolist() == pytest.approx(gradient, abs=EXACT)


def test_a_gaussian_equals_torchs() -> None:
    distribution, means = gaussian([0.3, -1.0, 2.0], [1.2, 0.7, 0.01])
    peer: Any = reference.Independent(reference.Normal(means, torch.tensor([1.2, 0.7, 0.01], dtype=torch.float64)), 1)
    actions = means + torch.tensor([[0.1, -2.0, 0.03], [5.0, 0.0, 0.0]], dtype=torch.float64)
    log_probs = distribution.log_probs(means, actions)
    np.testing.assert_allclose(log_probs.detach(), peer.log_prob(actions), rtol=1e-12)
    # .5 ln(2πe σ²) for each entry
    expected = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in (1.2, 0.7, 0.01))
    assert distribution.entropy(means.expand(2, 3)).tolist() == pytest.approx([expected] * 2, rel=1e-13)


BOUNDS = spaces.Box(np.array([-2.0, 1.0]), np.array([3.0, 1.5]), dtype=np.float64)


def squashed(deviations: Sequence[float]) -> TanhGaussian:
    distribution = TanhGaussian(BOUNDS, 1.0).double()
    with torch.no_grad():
        distribution.log_standard_deviation.copy_(torch.tensor(deviations, dtype=torch.float64).log())
    return distribution


def test_a_squashed_gaussian_has_the_density_of_the_executed_action() -> None:
    distribution, means = squashed([0.8, 1.5]), torch.tensor([[0.2, -0.6]], dtype=torch.float64)
    u = torch.tensor(list(product((-2.5, -0.3, 0.0, 1.1, 2.0), repeat=2)), dtype=torch.float64)
    given = distribution.for_environment(u.numpy())
    assert all(BOUNDS.contains(action) for action in given)
    transforms = [
        reference.TanhTransform(),
        reference.AffineTransform(torch.tensor([0.5, 1.25]).double(), torch.tensor([2.5, 0.25]).double()),
    ]
    peer: Any = reference.TransformedDistribution(
        reference.Normal(means, torch.tensor([0.8, 1.5], dtype=torch.float64)), transforms
    )
    expected = peer.log_prob(torch.from_numpy(given)).sum(1)
    np.testing.assert_allclose(distribution.log_probs(means, u).detach(), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("u", [30.0, -400.0])
def test_a_squashed_gaussian_keeps_its_density_at_the_bounds(u: float) -> None:
    # 1 - tanh² u = 4 e^(-2|u|) there, while tanh u is ±1 in floating point
    distribution, mean = squashed([1.0, 1.0]), torch.tensor([[u, 0.0]], dtype=torch.float64)
    expected = -math.log(2 * math.pi) - (math.log(4) - 2 * abs(u)) - math.log(2.5) - math.log(0.25)
    assert distribution.log_probs(mean, mean).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("deviations", [(0.1, 0.3), (0.5, 1.0), (1.0, 2.0)])
def test_the_entropy_of_a_squashed_gaussian_is_the_integral_of_its_density(deviations: tuple[float, float]) -> None:
    """By the trapezoidal rule on a fine grid of u, of the density in the action's own unit."""
    means, expected = (0.4, -1.0), 0.0
    for mean, sigma, width in zip(means, deviations, (5.0, 0.5), strict=True):
        u = np.linspace(mean - 12 * sigma, mean + 12 * sigma, 20001)
        of_u = np.exp(-(((u - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
        slope = width / 2 / np.cosh(u) ** 2
        expected += float(np.sum(-of_u * np.log(of_u / slope)) * (u[1] - u[0]))
    found = squashed(deviations).entropy(torch.tensor([means], dtype=torch.float64)).item()
    assert found == pytest.approx(expected, abs=1e-5 if max(deviations) > 1 else 1e-9)


def test_state_dependent_exploration_is_a_gaussian_of_the_composed_variance() -> None:
    settings = config(policy={"hidden_sizes": [3], "distribution": "state_dependent_gaussian"}).policy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        policy = Policy(spaces.Box(-9, 9, (2,)), spaces.Box(-9, 9, (2,)), settings).double()
    distribution = policy.distribution
    assert isinstance(distribution, StateDependentGaussian)
    sigma = torch.tensor([[0.5, 0.1], [2.0, 0.3], [0.7, 1.1]], dtype=torch.float64)
    with torch.no_grad():
        distribution.log_standard_deviation.copy_(sigma.log())
    obs, actions = torch.randn(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    w1, b1, w2, b2 = (parameter.detach() for parameter in policy.network.parameters())
    features = (obs @ w1.T + b1).tanh()
    variances = torch.stack([(features**2 * sigma[:, j] ** 2).sum(1) + 1e-6 for j in (0, 1)], 1)
    peer: Any = reference.Independent(reference.Normal(features @ w2.T + b2, variances.sqrt()), 1)
    outputs = policy(obs)
    np.testing.assert_allclose(distribution.log_probs(outputs, actions).detach(), peer.log_prob(actions), rtol=1e-12)
    np.testing.assert_allclose(distribution.entropy(outputs).detach(), peer.entropy(), rtol=1e-12)
    # a = μ + θᵀφ, from the noise that acting draws: its second moment over independent θ is that variance
    whitened = torch.eye(6, dtype=torch.float64).reshape(6, 3, 2).numpy()
    rows = outputs.detach()[:1].repeat(6, 1).numpy()
    steps = distribution.sample(rows, whitened) - distribution.mode(rows)
    np.testing.assert_allclose((steps**2).sum(0), variances[0] - 1e-6, rtol=1e-12)


def test_independent_bits_equal_torchs_and_sum_to_one() -> None:
    distribution = Bernoulli(spaces.MultiBinary(3))
    logits = torch.tensor([[0.3, -2.0, 40.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    every = torch.tensor(list(product((0, 1), repeat=3)))
    for row in logits:
        outputs = row.expand(8, 3)
        peer: Any = reference.Independent(reference.Bernoulli(logits=outputs), 1)
        log_probs = distribution.log_probs(outputs, every)
        np.testing.assert_allclose(log_probs, peer.log_prob(every.double()), rtol=1e-12)
        assert log_probs.exp().sum().item() == pytest.approx(1, rel=1e-14)
        entropy = -(log_probs.exp() * log_probs).sum().item()
        assert distribution.entropy(outputs).tolist() == pytest.approx([entropy] * 8, abs=1e-13)


def test_independent_choices_equal_torchs_and_sum_to_one() -> None:
    sizes, starts = (2, 3, 4), (0, -1, 5)
    distribution = Factorised(spaces.MultiDiscrete(np.array(sizes), start=np.array(starts)))
    outputs = torch.linspace(-1, 2, 9, dtype=torch.float64).square()[None].expand(24, 9)
    every = list(product(*map(range, sizes)))
    peers: list[Any] = [reference.Categorical(logits=part) for part in torch.split(outputs, list(sizes), 1)]
    chosen = torch.tensor(every)
    expected = sum(peer.log_prob(entry) for peer, entry in zip(peers, chosen.unbind(1), strict=True))
    log_probs = distribution.log_probs(outputs, chosen + torch.tensor(starts))
    np.testing.assert_allclose(log_probs, expected, rtol=1e-12)
    assert log_probs.exp().sum().item() == pytest.approx(1, rel=1e-14)
    entropy = -(log_probs.exp() * log_probs).sum().item()
    assert distribution.entropy(outputs[:1]).item() == pytest.approx(entropy, rel=1e-13)
    assert isinstance(distribution.factors[0], Softmax)


# ---------------------------------------------------------------------------------------------- columns and padding

NEW_CELLS: dict[str, dict[str, Any]] = {
    "total return": {"returns": "total", "baseline": "none", "average": "episodes", "standardize": "batch"},
    "value": {"returns": "reward_to_go", "baseline": "value"},
    "total value": {"returns": "total", "baseline": "value"},
    "gae": {"returns": "lambda_return", "baseline": "value", "standardize": "batch"},
    "ppo": {"returns": "lambda_return", "baseline": "value", "objective": "clip", "kl_coef": 0.1, "entropy_coef": 0.1},
    "importance": {"baseline": "leave_one_out", "objective": "importance_sampling", "importance_bound": 1.1},
    "self normalised": {"baseline": "mean", "objective": "importance_sampling", "self_normalize": True},
    "vtrace": {"returns": "vtrace", "baseline": "value", "objective": "importance_sampling"},
    "vtrace clip": {"returns": "vtrace", "baseline": "value", "objective": "clip", "discount_weighting": True},
    "optimal": {"returns": "total", "baseline": "optimal", "objective": "clip"},
    "grpo": {
        "returns": "total",
        "baseline": "group",
        "group_size": 2,
        "standardize": "group",
        "objective": "clip",
        "average": "episode_means",
    },
    "rloo in groups": {
        "baseline": "group",
        "group_size": 2,
        "group_mean": "leave_one_out",
        "objective": "importance_sampling",
    },
}


def everything_learned(agent: PolicyGradient, batch: Trajectories) -> Tensor:
    """Return the gradients of the policy and of the value function, as one vector."""
    laid_out, _ = flat_batch(agent, batch)
    gradients = list(estimate_gradient(agent, batch)[0])
    if agent.value is not None:
        gradients += torch.autograd.grad(autograd(agent).value_terms(laid_out)["loss"], list(agent.value.parameters()))
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("algorithm", NEW_CELLS.values(), ids=NEW_CELLS)
def test_garbage_in_the_padding_changes_nothing(algorithm: dict[str, Any]) -> None:
    batch, agent = ragged(), deep_agent(**{"gamma": 0.9} | algorithm)
    expected = everything_learned(agent, batch)
    assert torch.isfinite(expected).all()
    padding, unreached = ~batch.mask, ~batch.reached
    assert batch.behavior_log_probs is not None
    for garbage in (math.nan, math.inf, -math.inf, 1e30):
        dirty = replace(
            batch,
            obs=torch.where(unreached[..., None], garbage, batch.obs),
            actions=torch.where(padding, 3, batch.actions),
            terminated=batch.terminated | padding,
            truncated=batch.truncated | padding,
            behavior_log_probs=torch.where(padding, garbage, batch.behavior_log_probs),
        )
        assert torch.equal(everything_learned(agent, dirty), expected)


@pytest.mark.parametrize("algorithm", NEW_CELLS.values(), ids=NEW_CELLS)
def test_the_order_of_columns_and_of_whole_groups_changes_nothing(algorithm: dict[str, Any]) -> None:
    batch, agent = ragged(), deep_agent(**{"gamma": 0.9} | algorithm)
    expected = everything_learned(agent, batch)
    for order in ([2, 3, 0, 1], [1, 0, 2, 3], [3, 2, 0, 1]):
        permuted = mapped(batch, lambda _, x, order=order: x[:, order])  # type: ignore[misc]
        np.testing.assert_allclose(everything_learned(agent, permuted), expected, rtol=1e-11, atol=1e-13)
    if "group_size" in algorithm:  # while a column in another group is another batch
        torn = mapped(batch, lambda _, x: x[:, [0, 2, 1, 3]])
        assert (everything_learned(agent, torn) - expected).abs().max() > 1e-3


def test_ratios_are_one_on_masked_rows() -> None:
    batch = ragged()
    assert batch.behavior_log_probs is not None
    dirty = replace(batch, behavior_log_probs=torch.where(batch.mask, batch.behavior_log_probs, 7.0))
    assert (trajectory_ratios(deep_agent(baseline="none").policy, dirty)[~batch.mask] == 1).all()
