"""Running statistics equal batch statistics, and are part of a run's state."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import collect_episodes, config, executor_for, learner_of, trajectories

from pgcli.algorithm.learner import Learner, build_agent
from pgcli.policies.normalizers import CLIP, Normalizer, ReturnScale, RunningMoments

ROWS = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5 + 1e4


@pytest.mark.parametrize("pieces", [[1000], [1, 999], [300, 0, 1, 699], [1] * 20 + [980]], ids=str)
def test_moments_of_pieces_equal_those_of_the_whole(pieces: list[int]) -> None:
    moments = RunningMoments(3)
    for end, size in zip(accumulate(pieces), pieces, strict=True):
        moments.add(ROWS[end - size : end])
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, ROWS.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, ROWS.numpy().var(0), rtol=1e-9)


def test_a_normalised_batch_has_mean_zero_and_deviation_one_and_is_clipped() -> None:
    normalizer = Normalizer(3)
    normalizer.add(ROWS)
    scaled = normalizer(ROWS)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(0, correction=0), 1, rtol=1e-6)
    assert normalizer(ROWS + 1e9).tolist()[0] == [CLIP] * 3
    assert normalizer(ROWS - 1e9).tolist()[0] == [-CLIP] * 3


def test_acting_and_learning_normalise_alike_and_follow_the_statistics() -> None:
    normalizer = Normalizer(3)
    x = (ROWS[:50] - 1e4).float()
    for _ in range(2):
        np.testing.assert_array_equal(normalizer.in_numpy()(x.numpy()), normalizer(x).float())
        normalizer.add(ROWS - 1e4)
    assert normalizer.in_numpy()(x.numpy()).dtype == np.float32


def test_a_constant_feature_becomes_zero_and_not_nan() -> None:
    normalizer = Normalizer(2)
    normalizer.add(torch.full((7, 2), 3.0))
    assert normalizer(torch.full((1, 2), 3.0)).tolist() == [[0, 0]]


def test_the_scale_of_returns_is_the_standard_deviation_of_the_discounted_sum() -> None:
    rewards = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, True], [False, True]])
    scale = ReturnScale(0)
    scale.add_rewards(rewards, mask, 0.5)
    sums = [1, 3 + 0.5, 2, 5 + 0.5 * 2, 1 + 0.5 * 6]  # per column, forward in time
    assert scale.scale == pytest.approx(np.std(sums))
    again = ReturnScale(0)
    again.add_rewards(rewards, mask, 0.5)
    again.add_rewards(rewards, mask, 0.5)
    assert again.scale == pytest.approx(np.std(sums)), "whole episodes start from nothing"


def test_the_discounted_sum_continues_across_segments_and_restarts_after_a_masked_row() -> None:
    rewards = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mask = torch.rand(30, 4, generator=torch.Generator().manual_seed(3)) > 0.2
    rewards = rewards * mask
    whole, pieces = ReturnScale(4), ReturnScale(4)
    whole.add_rewards(rewards, mask, 0.9)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 30)):
        pieces.add_rewards(rewards[rows], mask[rows], 0.9)
    assert pieces.scale == pytest.approx(whole.scale, rel=1e-12)
    sums = []
    for column in range(4):
        running = 0.0
        for t in range(30):
            running = float(rewards[t, column]) + 0.9 * running if mask[t, column] else 0.0
            sums += [running] * bool(mask[t, column])
    assert whole.scale == pytest.approx(np.std(sums), rel=1e-7)


def agent_with(**sections: Any) -> Learner:
    settings = config(**{"policy": {"hidden_sizes": [5], "normalize_obs": True}} | sections)
    return learner_of(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), settings)


BATCH = trajectories([(1, 1.0), (0, 2.0), (1, 0.5)], [(0, 1.0)], [(1, -3.0), (1, 1.0)])
BATCH = replace(BATCH, obs=torch.linspace(-1, 5, BATCH.obs.numel()).reshape(BATCH.obs.shape))


def test_observations_enter_the_statistics_after_the_update_and_padding_never() -> None:
    agent = agent_with()
    assert agent.policy.normalizer is not None
    agent.update(BATCH)
    seen = BATCH.obs[:-1][BATCH.mask].numpy()
    assert agent.policy.normalizer.count == len(seen) == 6
    assert agent.policy.normalizer.mean.item() == pytest.approx(seen.mean())
    assert agent.policy.normalizer.variance.item() == pytest.approx(seen.var(), rel=1e-6)


def test_the_statistics_are_part_of_the_state() -> None:
    sections: dict[str, Any] = {"algorithm": {"baseline": "value"}, "value": {"normalize_returns": True}}
    agent, fresh = agent_with(**sections), agent_with(**sections, seed=1)
    agent.update(BATCH)
    names = {"policy.normalizer.count", "policy.normalizer.mean", "policy.normalizer.variance", "return_scale.variance"}
    assert names <= agent.state_dict().keys()
    fresh.load_state_dict({name: tensor.clone() for name, tensor in agent.state_dict().items()})
    obs = np.linspace(-3, 3, 40, dtype=np.float32)[:, None]
    zeros = np.zeros(40)
    assert (agent.policy.actor("sampled").act(obs, zeros) == fresh.policy.actor("sampled").act(obs, zeros)).all()
    assert agent.update(BATCH) == fresh.update(BATCH)


def test_evaluation_does_not_change_the_statistics() -> None:
    settings = config(env={"num_envs": 3}, rollout={"episodes": 4}, policy={"normalize_obs": True, "hidden_sizes": [4]})
    executor = executor_for(settings)
    one = executor.environments.of_width(1)
    agent = learner_of(one.observation_space, one.action_space, settings)
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    collect_episodes(settings, executor, agent.policy, 0, lambda: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.state_dict().items())


def test_scaling_all_rewards_does_not_change_learning_from_normalized_returns() -> None:
    sections: dict[str, Any] = {
        "algorithm": {"baseline": "value", "returns": "lambda_return"},
        "value": {"normalize_returns": True},
    }
    small, large = agent_with(**sections), agent_with(**sections)
    for _ in range(3):
        a, b = small.update(BATCH), large.update(replace(BATCH, rewards=1024 * BATCH.rewards))
        assert b.policy_loss == pytest.approx(a.policy_loss, rel=1e-5)
        assert a.return_scale is not None
        assert b.return_scale == pytest.approx(1024 * a.return_scale, rel=1e-6)
    for name, tensor in small.state_dict().items():
        if not name.startswith("return_scale"):
            np.testing.assert_allclose(large.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hidden_sizes", [[], [8], [64, 32]], ids=str)
def test_orthogonal_initialization_has_the_right_gains_and_zero_biases(hidden_sizes: list[int]) -> None:
    settings = config(policy={"hidden_sizes": hidden_sizes, "init": "orthogonal"}, algorithm={"baseline": "value"})
    agent = build_agent(spaces.Box(-1, 1, (6,)), spaces.Discrete(3), settings)
    assert agent.value is not None
    for network, last in ((agent.policy.network, 0.01), (agent.value.network, 1.0)):
        layers = [module for module in network if isinstance(module, torch.nn.Linear)]
        for layer in layers:
            gain = last if layer is layers[-1] else math.sqrt(2)
            values = torch.linalg.svdvals(layer.weight.detach())
            np.testing.assert_allclose(values, gain, rtol=1e-5)
            assert not layer.bias.any()
