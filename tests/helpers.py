"""Environments with known solutions, and helpers that build objects for tests."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.gradients.autograd import Autograd
from pgcli.algorithm.learner import Learner, build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.config.schema import Config
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.policy import Policy
from pgcli.records import Update
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.episodes import EpisodeSampler
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.segments import SegmentSampler

Array = NDArray[Any]
Episode = Sequence[tuple[int, float]]  # (action, reward) of each step
World = Sequence[tuple[float, Episode]]  # every episode that can happen, with its probability


torch.set_num_threads(1)  # tests run side by side


def config(**sections: Any) -> Config:
    """Validate the sections of a config, given as plain data."""
    return Config.model_validate(sections)


def executor_for(settings: Config) -> ChunkExecutor:
    """Build an executor of these environments in this process."""
    return ChunkExecutor(EnvironmentCache(settings.env))


def segment_sampler(settings: Config) -> SegmentSampler:
    """Build a sampler of segments in this process."""
    return SegmentSampler(settings, executor_for(settings))


def softmax_agent(logits: Sequence[float], **algorithm: Any) -> PolicyGradient:
    """Build an agent in float64 with π = softmax(logits) in every state: linear, with zero observations only.

    So only the bias matters, and its gradient is the gradient of the logits.
    """
    settings = config(policy={"hidden_sizes": []}, algorithm=algorithm)
    agent = build_agent(spaces.Box(-1, 1, (1,)), spaces.Discrete(len(logits)), settings)
    bias = list(agent.policy.double().parameters())[-1]
    with torch.no_grad():
        bias.copy_(torch.tensor(logits, dtype=torch.float64))
    return agent


def trajectories(*episodes: Episode) -> Trajectories:
    """Stack episodes as columns, with observation 0; all end by termination."""
    lengths = torch.tensor([len(episode) for episode in episodes])
    t = torch.arange(int(lengths.max()))[:, None]
    actions, rewards = torch.zeros(2, len(t), len(episodes), dtype=torch.float64)
    for column, episode in enumerate(episodes):
        actions[: len(episode), column], rewards[: len(episode), column] = torch.tensor(episode, dtype=torch.float64).T
    return Trajectories(
        obs=torch.zeros(len(t) + 1, len(episodes), 1, dtype=torch.float64),
        actions=actions.long(),
        rewards=rewards,
        terminated=t == lengths - 1,
        truncated=torch.zeros(len(t), len(episodes), dtype=torch.bool),
        mask=t < lengths,
    )


def random_batch(dtype: torch.dtype = torch.float64) -> Trajectories:
    """Four trajectories of lengths 5, 3, 1, 4 with random observations, actions and rewards."""
    draw = torch.Generator().manual_seed(5)
    batch = trajectories(*([(0, 0.0)] * length for length in (5, 3, 1, 4)))
    return replace(
        batch,
        obs=torch.randn(6, 4, 3, dtype=torch.float64, generator=draw).to(dtype),
        actions=torch.randint(4, (5, 4), generator=draw),
        rewards=torch.randn(5, 4, dtype=torch.float64, generator=draw) * batch.mask,
    )


def mostly_slow(values: Iterable[str], fast: Collection[str], reason: str) -> list[Any]:
    """Return parameters of a test: those not in `fast` are marked slow."""
    return [one if one in fast else pytest.param(one, marks=pytest.mark.slow(reason)) for one in values]


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def mapped(batch: Trajectories, function: Callable[[str, Tensor], Tensor]) -> Trajectories:
    """Apply `function(name, tensor)` to every tensor of a batch."""
    return Trajectories(**{name: function(name, x) for name, x in vars(batch).items() if isinstance(x, Tensor)})


def log_probs(policy: Policy, obs: Tensor, actions: Tensor) -> Tensor:
    """Compute log π(a|s) [M]."""
    return policy.distribution.log_probs(policy(obs), actions)


def learner_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], settings: Config) -> Learner:
    """Build an agent and the learner that updates it."""
    return Learner(build_agent(observation_space, action_space, settings))


def collect_episodes(
    settings: Config, executor: ChunkExecutor, policy: Policy, iteration: int, check: Callable[[], None]
) -> Trajectories:
    """Collect the trajectories of an iteration of whole episodes."""
    return EpisodeSampler(settings, executor).collect(policy, iteration, check).trajectories


def flat_batch(agent: PolicyGradient, batch: Trajectories) -> tuple[Batch, Update]:
    """Return the batch that an update of the agent learns from."""
    return agent.batch(batch)


def autograd(agent: PolicyGradient) -> Autograd:
    """Return the gradient by autograd of any agent, so that its losses can be differentiated."""
    return Autograd(agent.policy, agent.value, agent.losses)


def ascent(agent: PolicyGradient, batch: Trajectories) -> Tensor:
    """Estimate ∇J with respect to the last bias: of a `softmax_agent`, the logits."""
    return -estimate_gradient(agent, batch)[0][-1]


def moments(agent: PolicyGradient, world: World, n: int) -> tuple[Tensor, float]:
    """Compute E[g] and the trace of g's covariance without sampling, from every batch of n episodes."""
    mean, square = torch.zeros(()), 0.0
    for batch in product(world, repeat=n):
        probability = math.prod(p for p, _ in batch)
        g = ascent(agent, trajectories(*(episode for _, episode in batch)))
        mean = mean + probability * g
        square += probability * float(g @ g)
    return mean, square - float(mean @ mean)


def bandit(logits: Sequence[float], rewards: Sequence[float]) -> World:
    """One step, one reward for each action."""
    exponentials = [math.exp(logit) for logit in logits]
    return [(e / sum(exponentials), [(a, r)]) for a, (e, r) in enumerate(zip(exponentials, rewards, strict=True))]


def chain(theta: float, n: int, every_step: float, at_the_end: float) -> World:
    """Go right (1) with p = σ(θ); left (0) and the n-th right end the episode."""
    p = 1 / (1 + math.exp(-theta))
    lost: World = [(p**k * (1 - p), [(1, every_step)] * k + [(0, every_step)]) for k in range(n)]
    return [*lost, (p**n, [(1, every_step)] * (n - 1) + [(1, every_step + at_the_end)])]


class Counting(gym.Env[Array, np.int64]):
    """Shows (k, t) at step t and pays t + 1; k, the length and the kind of end follow from the reset seed.

    It reuses one observation buffer, asserts correct use of Gymnasium's interface, and has an optional
    `fault` in step `at`.
    """

    resets: ClassVar[list[tuple[int, int]]] = []  # (number of the instance, seed), of all instances
    instances: ClassVar[int] = 0

    def __init__(self, fault: str = "", at: int = 1, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.fault, self.at = fault, at
        self.running = False
        self.buffer = np.zeros(2, np.float32)
        self.number = Counting.instances
        Counting.instances += 1

    @staticmethod
    def facts(seed: int) -> tuple[float, int, str]:
        """Return k, the length and the kind of end of the episode with this reset seed."""
        return seed % 1024 / 1024, 1 + seed % 7, "terminated" if seed % 3 else "truncated"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        assert seed is not None, "an unseeded reset"
        Counting.resets.append((self.number, seed))
        self.k, self.length, self.end = self.facts(seed)
        self.buffer[:] = np.nan if self.fault == "nan reset" else self.k, 0
        self.t, self.running = 0, True
        return (np.zeros(2, int) if self.fault == "integer reset" else self.buffer), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.running, "a step after the end"
        assert action in self.action_space
        faulty = self.t == self.at
        if faulty and self.fault == "crash":
            raise RuntimeError("the motor is on fire")
        self.t += 1
        self.buffer[:] = self.k, np.nan if faulty and self.fault == "nan obs" else self.t
        over = self.t >= self.length and self.fault != "endless"
        self.running = not over
        reward = np.inf if faulty and self.fault == "inf reward" else float(self.t)
        obs = self.buffer[:1] if faulty and self.fault == "narrow obs" else self.buffer
        return obs, reward, over and self.end == "terminated", over and self.end == "truncated", {}


gym.register("Counting-v0", entry_point="helpers:Counting")
