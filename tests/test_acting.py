"""A policy acts identically in training, evaluation, films and notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import Array, collect_episodes, config, executor_for

from pgcli.algorithm.learner import build_agent
from pgcli.config.choices import Mode
from pgcli.config.schema import Config
from pgcli.experiment.load import Agent
from pgcli.policies.policy import Policy
from pgcli.report.video import film
from pgcli.seeding import Purpose
from pgcli.training.evaluation import evaluate


class Steady(gym.Env[Array, Array]):
    """Constant observation, 20 steps; every change of the action costs reward."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Box(-100, 100, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.last: Array | None = None
        return np.ones(2, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        change = 0.0 if self.last is None else float(abs(action - self.last)[0])
        self.t, self.last = self.t + 1, action.copy()
        return np.ones(2, np.float32), -change, self.t >= 20, False, {}

    def render(self) -> Array:
        return np.zeros((8, 8, 3), np.uint8)


def settings_for(**policy: Any) -> Config:
    return config(
        env={"id": "test_acting:Steady", "num_envs": 4, "max_episode_steps": 20},
        rollout={"episodes": 8},
        policy={"hidden_sizes": [4], "distribution": "state_dependent_gaussian"} | policy,
    )


def policy_of(settings: Config) -> Policy:
    space = Steady()
    return build_agent(space.observation_space, space.action_space, settings).policy


def returns_everywhere(settings: Config, tmp_path: Path) -> dict[str, Array]:
    """Return the returns of episodes of one policy in training, evaluation, a film and a notebook."""
    policy, executor = policy_of(settings), executor_for(settings)
    batch = collect_episodes(settings, executor, policy, 0, lambda: None)
    purposes = (Purpose.TEST_RESET, Purpose.TEST_ACT)
    measured = evaluate(policy, executor, 8, "sampled", 1.0, None, 0, purposes)
    agent, env, played = Agent(policy, settings, {}, Path("nowhere"), seed=0), Steady(), []
    for _ in range(8):
        agent.reset()
        (obs, _), over, total = env.reset(), False, 0.0
        while not over:
            obs, reward, over, _, _ = env.step(agent.act(obs))
            total += reward
        played.append(total)
    filmed = [film(agent, tmp_path / "one.gif", "sampled", seed, None).episode_return for seed in range(4)]
    return {
        "training": batch.rewards.sum(0).numpy(),
        "evaluation": measured.returns,
        "film": np.array(filmed),
        "notebook": np.array(played),
    }


def test_kept_noise_lasts_for_noise_steps_in_every_acting_path(tmp_path: Path) -> None:
    for returns in returns_everywhere(settings_for(), tmp_path).values():
        assert (returns == 0).all(), "θ is the same in all 20 steps"


def test_noise_is_redrawn_after_noise_steps_in_every_acting_path(tmp_path: Path) -> None:
    for returns in returns_everywhere(settings_for(noise_steps=10), tmp_path).values():
        assert (returns < 0).all()
    changes = np.diff(
        [
            noise[0]
            for noise in policy_of(settings_for(noise_steps=3))
            .actor("sampled")
            .noise(np.random.default_rng(0), 10, 1)
            .reshape(10, 1, -1)[:, :, 0]
        ]
    )
    assert (changes != 0).tolist() == [False, False, True] * 3


def test_reset_draws_new_noise_and_clears_the_recurrent_state() -> None:
    recurrent = {"distribution": "gaussian", "memory": "gru"}
    for policy in (dict[str, Any](), recurrent):
        settings = settings_for(**policy)
        agent = Agent(policy_of(settings), settings, {}, Path("nowhere"), seed=0)
        mode: Mode = "greedy" if policy else "sampled"
        obs = np.full((3, 2), 0.5, np.float32)
        first, second = (agent.act(obs, mode=mode) for _ in range(2))
        with pytest.raises(ValueError, match="reset"):
            agent.act(obs[:2], mode=mode)
        agent.reset()
        again = agent.act(obs, mode=mode)
        if policy:
            assert (first != second).all(), "it remembers"
            assert (first == again).all()
        else:
            assert (first == second).all(), "it keeps its noise"
            assert (first != again).all()


def test_a_stateless_agent_accepts_batches_of_any_size() -> None:
    settings = settings_for(distribution="gaussian")
    agent = Agent(policy_of(settings), settings, {}, Path("nowhere"), seed=0)
    assert [len(agent.act(np.ones((n, 2), np.float32))) for n in (1, 3, 2)] == [1, 3, 2]


def ratio_of_expected_to_true_gradient(steps: int, noise_steps: int, episodes: int) -> float:
    """Estimate E[g]·∇J / |∇J|² on s' = s + 0.3 a, r = -s'²: ∇J by differentiating the simulation itself."""
    policy = Policy(
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(-np.inf, np.inf, (1,)),
        settings_for(hidden_sizes=[], noise_steps=noise_steps, initial_standard_deviation=0.5).policy,
    ).double()
    distribution, (weight, bias) = policy.distribution, policy.network.parameters()
    with torch.no_grad():
        weight.copy_(torch.tensor([[-0.4, 0.1]]))
        bias.fill_(0.2)
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), steps, episodes).copy())
    state, log_probs, rewards = torch.ones(episodes, 1, dtype=torch.float64), [], []
    for t in range(steps):
        obs = torch.cat((state, torch.ones_like(state)), 1)
        outputs = policy(obs)
        (log_deviation,) = distribution.parameters()
        action = outputs[:, :1] + torch.einsum("nf,nfd->nd", outputs[:, 1:], log_deviation.exp() * noise[t])
        log_probs.append(distribution.log_probs(policy(obs.detach()), action.detach()))
        state = state + 0.3 * action
        rewards.append(-state.square()[:, 0])
    returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)
    advantages = (returns - returns.mean(1, keepdim=True)).detach()
    surrogate = (torch.stack(log_probs) * advantages).sum(0).mean()
    estimated, true = (
        torch.cat([g.flatten() for g in torch.autograd.grad(of, list(policy.parameters()), retain_graph=True)])
        for of in (surrogate, returns[0].mean())
    )
    return float(estimated @ true / (true @ true))


def test_the_gradient_is_too_large_with_kept_noise_and_exact_with_new_noise() -> None:
    assert ratio_of_expected_to_true_gradient(4, 64, 20_000) == pytest.approx(2.93, abs=0.2)
    assert ratio_of_expected_to_true_gradient(4, 1, 20_000) == pytest.approx(1.0, abs=0.05)
