"""Returns, compared with closed forms, a linear solve and special cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pgcli.estimators.returns import lambda_returns, trajectory_returns

NAN = float("nan")


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def random_inputs(T: int, N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards and next values of both signs, discounts and lambdas in [0, 1] with some zeros and ones."""
    draw = torch.Generator().manual_seed(T)
    rewards, next_values = torch.randn(2, T, N, dtype=torch.float64, generator=draw)
    discounts, lambdas = (1.2 * torch.rand(2, T, N, dtype=torch.float64, generator=draw) - 0.1).clamp(0, 1)
    return rewards, discounts, next_values, lambdas


def test_reward_to_go_of_a_constant_reward_is_a_geometric_series() -> None:
    one = torch.ones(7, 1, dtype=torch.float64)
    returns = lambda_returns(one, 0.9 * one, next_values=0 * one, lambdas=one)
    remaining = np.arange(7, 0, -1)
    np.testing.assert_allclose(returns[:, 0], (1 - 0.9**remaining) / (1 - 0.9), rtol=1e-14)


def test_lambda_zero_looks_one_step_ahead() -> None:
    one = torch.ones(3, 1, dtype=torch.float64)
    returns = lambda_returns(column(1, 2, 3), 0.5 * one, column(10, 20, 40), lambdas=0 * one)
    assert returns[:, 0].tolist() == [6, 12, 23]


def test_lambda_one_telescopes_to_rewards_plus_the_last_value() -> None:
    one = torch.ones(3, 1, dtype=torch.float64)
    returns = lambda_returns(column(1, 2, 4), 0.5 * one, column(NAN, NAN, 16), lambdas=one)
    # 1 + 2/2 + 4/4 + 16/8, 2 + 4/2 + 16/4, 4 + 16/2
    assert returns[:, 0].tolist() == [5, 8, 12]


def test_a_lambda_return_is_between_its_n_step_returns() -> None:
    returns = lambda_returns(column(1, 1), column(0.5, 0.5), column(8, 4), column(0.25, 1))
    # G_1 = 1 + 4/2 = 3; G_0 = 1 + (3/4 · 8 + 1/4 · 3) / 2
    assert returns[:, 0].tolist() == [4.375, 3]


@pytest.mark.parametrize("T", [1, 2, 13])
def test_the_recursion_solves_its_linear_equations(T: int) -> None:
    rewards, discounts, next_values, lambdas = random_inputs(T, N=3)
    returns = lambda_returns(rewards, discounts, next_values, lambdas)
    for n in range(3):
        r, gamma, v, lam = (x[:, n].numpy() for x in (rewards, discounts, next_values, lambdas))
        constant = r + gamma * (1 - lam) * v
        constant[-1] += gamma[-1] * lam[-1] * v[-1]
        expected = np.linalg.solve(np.eye(T) - np.diag((gamma * lam)[:-1], k=1), constant)
        np.testing.assert_allclose(returns[:, n], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_of_a_constant_value_and_one_terminal_reward_is_a_closed_form(lam: float) -> None:
    T, gamma, c = 8, 0.9, 0.3
    discounts = column(*[gamma] * (T - 1), 0)
    values = torch.full((T, 1), c, dtype=torch.float64)
    returns = lambda_returns(column(*[0] * (T - 1), 1), discounts, values, torch.full_like(values, lam))
    # δ = 1 - c in the last step and (γ - 1) c before it, each weighed by a power of γλ
    before = np.arange(T - 1, -1, -1)
    share = gamma * lam
    advantages = (gamma - 1) * c * (1 - share**before) / (1 - share) + share**before * (1 - c)
    np.testing.assert_allclose((returns - c)[:, 0], advantages, rtol=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_exact_values_leave_no_advantage(lam: float) -> None:
    gamma = 0.8
    values = 1 / (1 - gamma) * (1 - gamma ** torch.arange(10, -1, -1, dtype=torch.float64))[:, None]
    one = torch.ones(10, 1, dtype=torch.float64)
    returns = lambda_returns(one, gamma * one, values[1:], lam * one)
    np.testing.assert_allclose(returns, values[:-1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_values_do_not_leak_across_a_termination(lam: float) -> None:
    lambdas = column(lam, lam, lam)
    returns = lambda_returns(column(1, 2, NAN), column(0.5, 0, 0.5), column(4, NAN, NAN), lambdas)
    assert returns[1].item() == 2
    assert returns[0].item() == 1 + 0.5 * ((1 - lam) * 4 + lam * 2)
    assert returns[2].isnan()


def test_a_truncation_bootstraps_without_the_next_episode() -> None:
    returns = lambda_returns(column(1, 2, NAN), column(0.5, 0.5, 0.5), column(NAN, 10, NAN), column(1, 0, 1))
    assert returns[:2, 0].tolist() == [4.5, 7]


def test_an_infinite_reward_does_not_reach_an_earlier_episode() -> None:
    infinite = float("inf")
    for discounts, lambdas in ((column(0, 1), column(1, 1)), (column(1, 1), column(0, 1))):
        returns = lambda_returns(column(3, infinite), discounts, column(0, 0), lambdas)
        assert returns[:, 0].tolist() == [3, infinite]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept_and_the_arguments_are_unchanged(dtype: torch.dtype) -> None:
    exact = random_inputs(T=40, N=2)
    arguments = [x.to(dtype) for x in exact]
    copies = [x.clone() for x in arguments]
    returns = lambda_returns(*arguments)
    assert returns.dtype == dtype
    np.testing.assert_allclose(returns.double(), lambda_returns(*exact), rtol=0, atol=2e-6)
    assert all(map(torch.equal, arguments, copies))


def test_no_steps_have_no_returns() -> None:
    nothing = torch.zeros(0, 3)
    assert lambda_returns(nothing, nothing, nothing, nothing).shape == (0, 3)
    assert reward_to_go(nothing, 0.9, nothing.bool()).shape == (0, 3)


@pytest.mark.parametrize("wrong", range(4))
def test_different_shapes_are_rejected(wrong: int) -> None:
    arguments = [torch.zeros(4, 2) for _ in range(4)]
    arguments[wrong] = torch.zeros(4, 1)  # it would broadcast
    with pytest.raises(ValueError, match=r"differ in shape.*\(4, 1\)"):
        lambda_returns(*arguments)


def reward_to_go(rewards: Tensor, gamma: float, terminated: Tensor) -> Tensor:
    """Observed rewards only: λ = 1, no cuts, no value function."""
    return trajectory_returns(
        rewards, gamma, 1.0, terminated, torch.zeros_like(terminated), next_values=torch.zeros_like(rewards)
    )


def test_reward_to_go_stops_at_a_termination_and_not_at_the_padding() -> None:
    rewards = torch.tensor([[1, 1], [2, 2], [4, 0]], dtype=torch.float64)
    terminated = torch.tensor([[False, False], [True, False], [False, False]])
    assert reward_to_go(rewards, 0.5, terminated).tolist() == [[2, 2], [2, 2], [4, 0]]


def test_without_discount_reward_to_go_is_the_sum_and_with_gamma_zero_the_reward() -> None:
    rewards = torch.tensor([[3.0], [-1.0], [5.0]], dtype=torch.float64)
    never = torch.zeros(3, 1, dtype=torch.bool)
    assert reward_to_go(rewards, 1.0, never)[:, 0].tolist() == [7, 4, 5]
    assert reward_to_go(rewards, 0.0, never)[:, 0].tolist() == [3, -1, 5]
