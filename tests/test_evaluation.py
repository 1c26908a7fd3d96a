"""Evaluation: results computed by hand in a known environment, and no effect on training."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers import Counting, config, executor_for, learner_of

from pgcli.algorithm.learner import build_agent
from pgcli.config.schema import Config
from pgcli.records import Evaluation, Iteration, Record
from pgcli.sampling.sampler import make_sampler
from pgcli.seeding import Purpose, derived_seed
from pgcli.training.evaluation import Episodes, evaluate, sample
from pgcli.training.loop import Counters, Training, train

TEST = (Purpose.TEST_RESET, Purpose.TEST_ACT)


def measured(
    env: dict[str, Any],
    episodes: int = 9,
    gamma: float = 1.0,
    horizon: int | None = None,
    mode: Literal["sampled", "greedy"] = "sampled",
    seed: int = 5,
) -> Episodes:
    settings = config(env={"num_envs": 4} | env, policy={"hidden_sizes": [4]})
    executor = executor_for(settings)
    one = executor.environments.of_width(1)
    policy = build_agent(one.observation_space, one.action_space, settings).policy
    return evaluate(policy, executor, episodes, mode, gamma, horizon, seed, TEST)


def lengths(episodes: int = 9, seed: int = 5) -> list[int]:
    return [Counting.facts(derived_seed(seed, Purpose.TEST_RESET, column))[1] for column in range(episodes)]


@pytest.mark.parametrize("horizon", [None, 1, 4])
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_evaluation_reports_the_returns_and_lengths_of_episodes(gamma: float, horizon: int | None) -> None:
    # step t pays t + 1: L (L + 1) / 2 undiscounted, and with γ the derivative of a geometric series
    expected = [min(length, horizon or length) for length in lengths()]
    assert len(set(lengths())) > 3
    episodes = measured({"id": "Counting-v0"}, gamma=gamma, horizon=horizon)
    assert episodes.lengths.tolist() == expected
    assert episodes.returns.tolist() == [n * (n + 1) / 2 for n in expected]
    by_hand = {
        1.0: [n * (n + 1) / 2 for n in expected],
        0.5: [4 - (n + 2) / 2 ** (n - 1) for n in expected],
        0.0: [1.0] * len(expected),
    }
    assert episodes.discounted_returns.tolist() == by_hand[gamma]


def test_evaluations_repeat_for_a_seed_and_differ_for_another() -> None:
    first, again, other = (measured({}, seed=seed).returns.tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_the_number_of_episodes_does_not_change_the_first_ones() -> None:
    assert measured({}, episodes=9).returns[:8].tolist() == measured({}, episodes=8).returns.tolist()


def test_greedy_and_sampled_policies_differ() -> None:
    assert measured({}, mode="greedy").returns.tolist() != measured({}).returns.tolist()


@pytest.mark.parametrize(
    "vectorization",
    [
        "sync",
        "native",
    ],
)
def test_discounting_is_done_in_float64(vectorization: str) -> None:
    episodes = measured({"id": "CartPole-v1", "vectorization": vectorization}, gamma=0.99)
    closed_form = (1 - 0.99**episodes.lengths) / (1 - 0.99)
    np.testing.assert_allclose(episodes.discounted_returns, closed_form, rtol=1e-12)


def test_a_sample_is_described_with_n_minus_one() -> None:
    values = [2.0, 4.0, 4.0, 10.0]
    described = sample(values)
    assert (described.n, described.mean, described.median, described.min, described.max) == (4, 5, 4, 2, 10)
    assert described.standard_deviation == pytest.approx(math.sqrt((9 + 1 + 1 + 25) / 3))
    assert described.standard_error == pytest.approx(math.sqrt(12) / 2)
    # the tutorial's standard error, σ/√(n-1) with the population's σ, is the same number
    assert described.standard_error == pytest.approx(statistics.pstdev(values) / math.sqrt(3))


def test_one_value_has_no_spread() -> None:
    described = sample([3.0])
    assert (described.n, described.mean, described.median, described.min, described.max) == (1, 3, 3, 3, 3)
    assert described.standard_deviation is None
    assert described.standard_error is None


def trained(**sections: Any) -> tuple[list[Record], dict[str, torch.Tensor]]:
    sections = {"rollout": {"episodes": 6}, "training": {"iterations": 12}, "policy": {"hidden_sizes": [4]}} | sections
    settings: Config = config(**sections)
    executor = executor_for(settings)
    one = executor.environments.of_width(1)
    agent = learner_of(one.observation_space, one.action_space, settings)
    records = list(train(Training(settings, executor, agent, make_sampler(settings, executor), Counters())))
    return records, agent.state_dict()


@pytest.mark.parametrize("env", ["CartPole-v1", "Counting-v0"])
def test_evaluating_more_often_does_not_change_what_is_learned(env: str) -> None:
    env_section = {"id": env, "num_envs": 3}
    often, tensors = trained(env=env_section, evaluation={"every": 1, "episodes": 7})
    for evaluation in ({"every": 10, "episodes": 3}, {"every": None, "episodes": 1, "mode": "greedy"}):
        seldom, others = trained(env=env_section, evaluation=evaluation)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
        rows, other_rows = ([r for r in records if isinstance(r, Iteration)] for records in (often, seldom))
        assert [row.episodes for row in rows] == [row.episodes for row in other_rows]
        assert [row.update for row in rows] == [row.update for row in other_rows]


@pytest.mark.parametrize(
    ("every", "expected"), [(1, list(range(13))), (5, [0, 5, 10, 12]), (6, [0, 6, 12]), (None, [0, 12])]
)
def test_evaluations_happen_at_start_end_and_every_n_iterations(every: int | None, expected: list[int]) -> None:
    env = {"id": "Counting-v0", "num_envs": 6}
    records, _ = trained(env=env, evaluation={"every": every, "episodes": 2})
    evaluations = [record for record in records if isinstance(record, Evaluation)]
    rows = [record for record in records if isinstance(record, Iteration)]
    assert [evaluation.iteration for evaluation in evaluations] == expected
    assert [row.iteration for row in rows] == list(range(12))
    assert [evaluation.env_steps for evaluation in evaluations] == [
        sum(episode.length for row in rows[:n] for episode in row.episodes) for n in expected
    ]


def test_a_reached_return_ends_the_run() -> None:
    env = {"id": "Counting-v0", "num_envs": 6}
    records, _ = trained(env=env, evaluation={"every": 3, "episodes": 2, "stop_at_return": 0.5})
    assert [getattr(record, "stopped_by", None) for record in records] == ["", "goal"]


def test_an_overflowing_standard_deviation_is_none() -> None:
    found = sample([1e200, -1e200])
    assert (found.mean, found.standard_deviation, found.standard_error) == (0, None, None)
    json.dumps(vars(found), allow_nan=False)
