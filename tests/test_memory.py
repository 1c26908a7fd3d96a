"""Recurrent policies: training reproduces the outputs of acting, with exact gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import (
    autograd,
    collect_episodes,
    config,
    executor_for,
    flat_batch,
    mostly_slow,
    segment_sampler,
    trajectories,
)
from test_spaces import returns
from torch import Tensor, nn

from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.config.schema import Config
from pgcli.estimators.trajectories import Trajectories
from pgcli.experiment.load import Agent
from pgcli.policies.policy import Policy
from pgcli.policies.recurrent import RecurrentNetwork, Sequences, ranges
from pgcli.policies.trajectory_outputs import trajectory_log_probs, trajectory_values, valid_steps

KINDS = ["gru", "lstm"]


def agent_for(kind: str, cut: int | None = None, shared: bool = True, **sections: Any) -> PolicyGradient:
    settings = config(
        algorithm={"baseline": "value", "returns": "lambda_return"} | sections.pop("algorithm", {}),
        value={"shared_trunk": shared},
        policy={"memory": kind, "memory_size": 5, "hidden_sizes": [4], "backpropagation_steps": cut},
        **sections,
    )
    return build_agent(spaces.Box(-1, 1, (3,)), spaces.Discrete(3), settings)


def policy_for(settings: Config) -> Policy:
    envs = executor_for(settings).environments.of_width(1)
    return build_agent(envs.observation_space, envs.action_space, settings).policy


def doubled(agent: PolicyGradient) -> PolicyGradient:
    agent.policy.double()
    assert agent.value is not None
    agent.value.double()
    return agent


def segment(agent: PolicyGradient) -> Trajectories:
    """Three columns of seven rows, with episodes that begin before, within, and at the end; and random memories."""
    draw = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 0]], dtype=torch.bool).T
    assert agent.policy.memory is not None
    memory = torch.randn(3, agent.policy.memory.state_size, dtype=torch.float64, generator=draw)
    return Trajectories(
        obs=torch.randn(8, 3, 3, dtype=torch.float64, generator=draw),
        actions=torch.randint(3, (7, 3), generator=draw),
        rewards=torch.randn(7, 3, dtype=torch.float64, generator=draw) * mask,
        terminated=torch.zeros(7, 3, dtype=torch.bool),
        truncated=torch.zeros(7, 3, dtype=torch.bool),
        mask=mask,
        memory=memory,
    )


def step_by_step(agent: PolicyGradient, batch: Trajectories, cut: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute log π(a|s) [T, N] and V [T + 1, N] with torch's own cells, one step of one column at a time."""
    policy, value = agent.policy, agent.value
    assert policy.memory is not None
    assert value is not None
    gru = policy.memory.parts == 1
    cell = (nn.GRUCell if gru else nn.LSTMCell)(3, 5, dtype=torch.float64)
    cell_parameters: dict[str, Tensor] = dict(
        zip(dict(cell.named_parameters()), policy.memory.core.parameters(), strict=True)
    )
    steps, columns = batch.mask.shape
    log_probs = torch.zeros(steps, columns, dtype=torch.float64)
    values = torch.zeros(steps + 1, columns, dtype=torch.float64)

    def look(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        start = state if gru else tuple(state.chunk(2, -1))
        after = torch.func.functional_call(cell, cell_parameters, (x[None], start))
        return (after, after) if gru else (after[0], torch.cat(after, -1))

    for n in range(columns):
        state, age = torch.zeros(1, policy.memory.state_size, dtype=torch.float64), 0
        if batch.memory is not None and batch.mask[0, n]:
            state = batch.memory[n][None]
        for t in range(steps):
            if not batch.mask[t, n]:
                state, age = torch.zeros_like(state), 0
                continue
            if cut is not None and age and age % cut == 0:
                state = state.detach()
            h, state = look(batch.obs[t, n], state)
            age += 1
            features = policy.network[:-1](h)
            log_probs[t, n] = policy.network[-1](features).log_softmax(1)[0, batch.actions[t, n]]
            values[t, n] = value.network(features)[0, 0]
            if t + 1 == steps or not batch.mask[t + 1, n]:
                h, _ = look(batch.obs[t + 1, n], state)
                values[t + 1, n] = value.network(policy.network[:-1](h))[0, 0]
    return log_probs, values


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_values_equal_those_of_single_steps(kind: str) -> None:
    agent = doubled(agent_for(kind))
    batch = segment(agent)
    log_probs, values = step_by_step(agent, batch)
    torch.testing.assert_close(trajectory_log_probs(agent.policy, batch), log_probs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(trajectory_values(agent.policy, agent.value, batch), values, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(trajectory_log_probs(agent.policy, replace(batch, memory=None)), log_probs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 7, 100, None])
def test_the_gradient_flows_back_through_exactly_the_configured_steps(kind: str, cut: int | None) -> None:
    agent = doubled(agent_for(kind, cut))
    batch = segment(agent)
    taken, _ = flat_batch(agent, batch)
    weights = torch.randn(len(taken), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows, _ = valid_steps(agent.policy, batch, max_length=cut)
    log_probs = agent.policy.distribution.log_probs(agent.policy(taken.obs, taken.sequences), taken.actions)
    ours = torch.autograd.grad((weights * log_probs).sum(), list(agent.policy.parameters()))
    expected, _ = step_by_step(agent, batch, cut)
    theirs = torch.autograd.grad((weights * expected.flatten()[rows]).sum(), list(agent.policy.parameters()))
    for name, one, other in zip(dict(agent.policy.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)


def test_a_shorter_truncation_gives_another_gradient() -> None:
    gradients = []
    for cut in (None, 2):
        agent = doubled(agent_for("gru", cut))
        gradients.append(torch.cat([g.flatten() for g in estimate_gradient(agent, segment(agent))[0]]))
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_computes_the_log_probabilities_of_acting(kind: str) -> None:
    """Noise that is inverted: u selects the action by cumulative probability."""
    settings = config(
        env={"id": "tasks:Identity-v0", "num_envs": 16, "kwargs": {"observation": "tuple"}},
        rollout={"episodes": 16},
        policy={"memory": kind, "memory_size": 8, "hidden_sizes": [8]},
    )
    executor = executor_for(settings)
    envs = executor.environments.of_width(16)
    agent = build_agent(envs.observation_space, envs.action_space, settings)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.mul_(3)  # a policy that is far from uniform, and depends on what came before
    batch = collect_episodes(settings, executor, agent.policy, 0, lambda: None)
    actor = agent.policy.actor("sampled")
    memory, acted = actor.start(16), []
    for t in range(len(batch.mask)):
        probabilities = []
        for u in np.linspace(0, 1, 200, endpoint=False):
            actions, after = actor.respond(batch.obs[t].numpy(), np.full(16, u), memory)
            probabilities.append(actions == batch.actions[t].numpy())
        acted.append(np.mean(probabilities, 0))
        memory = after
    said = trajectory_log_probs(agent.policy, batch).detach().exp().numpy()
    np.testing.assert_allclose(np.stack(acted), said, atol=0.006)
    assert said.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_steps_equal_torchs(kind: Literal["gru", "lstm"]) -> None:
    torch.manual_seed(0)
    memory = RecurrentNetwork(kind, 4, 6)
    x, state = torch.randn(9, 5, 4), torch.randn(5, memory.state_size)
    expected, last = memory.run(x, state)
    step, now = memory.in_numpy(), state.numpy()
    for t in range(9):
        outputs, now = step(x[t].numpy(), now)
        np.testing.assert_allclose(outputs, expected[t].detach(), atol=1e-6)
    np.testing.assert_allclose(now, last.detach(), atol=1e-6)
    with np.errstate(all="raise"):
        step(np.full((1, 4), -1e4, np.float32), now[:1])


def test_windows_are_taken_whole() -> None:
    sequences = Sequences(torch.tensor([3, 1, 2]), torch.arange(3.0)[:, None])
    rows, taken = sequences.take(torch.tensor([2, 0]))
    assert rows.tolist() == [4, 5, 0, 1, 2]
    assert taken.lengths.tolist() == [2, 3]
    assert taken.memory.flatten().tolist() == [2, 0]
    assert ranges(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist() == [7, 8, 0, 1, 2]


def test_the_minibatches_of_an_epoch_contain_every_step_once_and_sum_to_the_batch() -> None:
    from pgcli.algorithm.batch import minibatches

    agent = doubled(agent_for("lstm", cut=2, algorithm={"average": "steps"}))
    batch, _ = flat_batch(agent, segment(agent))
    whole = torch.autograd.grad(autograd(agent).policy_terms(batch)["policy_loss"], list(agent.policy.parameters()))
    parts = [part for _, part in minibatches(batch, 1, 3, lambda epoch: np.random.default_rng(epoch), on_policy=False)]
    assert sum(map(len, parts)) == len(batch) == 17
    sums = [torch.zeros_like(g) for g in whole]
    for part in parts:
        assert part.sequences is not None
        share = part.parts / batch.parts
        assert part.share == len(part) / len(batch), "its weight in what is reported"
        gradients = torch.autograd.grad(
            autograd(agent).policy_terms(part)["policy_loss"], list(agent.policy.parameters())
        )
        sums = [total + share * g for total, g in zip(sums, gradients, strict=True)]
    for one, other in zip(sums, whole, strict=True):
        torch.testing.assert_close(one, other)


LEARNERS = ["episodes", "segments, shared trunk", "segments, own network", "reuse"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learner", mostly_slow(LEARNERS, ["episodes", "reuse"], "learns for a second each"))
def test_a_recurrent_policy_learns_to_remember(kind: str, learner: str) -> None:
    whole = learner in ("episodes", "reuse")
    clip = {"objective": "clip", "update_epochs": 4, "num_minibatches": 2 if whole else 4}
    value = {"returns": "lambda_return", "baseline": "value"}
    algorithm: dict[str, Any] = {"episodes": {}, "reuse": clip | {"reuse": 2}}.get(learner, clip | value)
    _, after = returns(
        seed=1,
        env={"id": "tasks:Recall-v0", "num_envs": 32 if whole else 16, "kwargs": {"delay": 5}},
        rollout={"episodes": 32} if whole else {"episodes": None, "steps": 24},
        algorithm=algorithm,
        value={"shared_trunk": learner == "segments, shared trunk"},
        policy={"memory": kind, "memory_size": 16, "hidden_sizes": [16], "backpropagation_steps": 8},
        optimizer={"learning_rate": 0.02 if whole else 0.01},
        training={"iterations": 40},
        evaluation={"every": None},
    )
    assert after > 0.95


def test_a_policy_without_memory_cannot_remember() -> None:
    _, after = returns(
        env={"id": "tasks:Recall-v0", "num_envs": 32, "kwargs": {"delay": 5}},
        rollout={"episodes": 32},
        policy={"hidden_sizes": [16]},
        optimizer={"learning_rate": 0.02},
        training={"iterations": 40},
        evaluation={"every": None},
    )
    assert after < 0.75


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_restored_sampler_keeps_the_recurrent_state(kind: str, chunk_size: int | None) -> None:
    settings = config(
        env={"id": "tasks:Identity-v0", "num_envs": 3, "chunk_size": chunk_size},
        rollout={"episodes": None, "steps": 5},
        algorithm={"baseline": "value", "returns": "lambda_return"},
        policy={"memory": kind, "memory_size": 6},
    )
    policy = policy_for(settings)
    one, other = segment_sampler(settings), segment_sampler(settings)
    for iteration in range(3):
        one.collect(policy, iteration, lambda: None)
    state = {name: tensor.clone() for name, tensor in one.state_dict(3).items()}
    assert state["sampler.memory"].abs().max() > 0
    assert other.load_state_dict(state, policy, 3) == 0
    for iteration in range(3, 6):
        ours = one.collect(policy, iteration, lambda: None).trajectories
        theirs = other.collect(policy, iteration, lambda: None).trajectories
        assert ours.memory is not None
        assert theirs.memory is not None
        assert torch.equal(ours.memory, theirs.memory)
        assert torch.equal(ours.actions, theirs.actions)


def test_memory_is_empty_at_the_start_of_every_episode() -> None:
    """In segments, the first action of an episode uses an empty recurrent state."""
    settings = config(
        env={"id": "tasks:Identity-v0", "num_envs": 2},
        rollout={"episodes": None, "steps": 30},
        algorithm={"baseline": "value", "returns": "lambda_return"},
        policy={"memory": "gru", "memory_size": 6},
    )
    policy = policy_for(settings)
    batch = segment_sampler(settings).collect(policy, 0, lambda: None).trajectories
    rows, sequences = valid_steps(policy, batch)
    assert sequences is not None
    assert sequences.lengths.tolist() == [8, 8, 8, 3] * 2, "episodes of eight steps, a masked row between them"
    assert sequences.memory.abs().max() == 0
    acted = policy(batch.obs.flatten(0, 1)[rows], sequences).detach()
    seen: dict[tuple[Any, ...], Tensor] = {}
    for start in (sequences.lengths.cumsum(0) - sequences.lengths).tolist():
        first = (int(batch.obs.flatten(0, 1)[rows][start]),)
        torch.testing.assert_close(seen.setdefault(first, acted[start]), acted[start])


def test_padded_episodes_of_different_lengths_are_separate_sequences() -> None:
    agent = agent_for("gru")
    batch = trajectories([(0, 1.0)] * 3, [(1, 1.0)], [(2, 1.0)] * 2)
    batch = replace(batch, obs=torch.randn(4, 3, 3))
    _, sequences = valid_steps(agent.policy, batch)
    assert sequences is not None
    assert sequences.lengths.tolist() == [3, 1, 2]
    rows, sequences = valid_steps(agent.policy, batch, values=True)
    assert sequences is not None
    assert sequences.lengths.tolist() == [4, 2, 3]
    assert rows.tolist() == [0, 3, 6, 9, 1, 4, 2, 5, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_the_recurrent_state_is_reset_at_every_episode_while_acting(kind: str) -> None:
    settings = config(
        env={"id": "tasks:Identity-v0", "num_envs": 2},
        rollout={"episodes": None, "steps": 11},
        algorithm={"baseline": "value", "returns": "lambda_return"},
        policy={"memory": kind, "memory_size": 6},
    )
    policy = policy_for(settings)
    sampler, actor = segment_sampler(settings), policy.actor("sampled")
    memory = actor.start(2)
    for iteration in range(3):
        batch = sampler.collect(policy, iteration, lambda: None).trajectories
        for obs, mask in zip(batch.obs[:-1].numpy(), batch.mask.numpy(), strict=True):
            memory = np.where(mask[:, None], actor.respond(obs, np.zeros(2), memory)[1], 0)
        assert (sampler.state_dict(iteration + 1)["sampler.memory"].numpy() == memory).all()


def test_an_agent_in_a_notebook_remembers_until_it_is_reset() -> None:
    settings = config(policy={"memory": "lstm", "memory_size": 6})
    space = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "n": spaces.Discrete(3)})
    policy = build_agent(space, spaces.Box(-1, 1, (4,)), settings).policy
    agent = Agent(policy, settings, {}, Path("nowhere"), seed=0)
    one = {"x": np.array([0.1, -0.2], np.float32), "n": 1}
    several = {"x": np.array([[0.1, -0.2], [0.3, 0.4]], np.float32), "n": np.array([1, 2])}
    first, second = agent.act(one, "greedy"), agent.act(one, "greedy")
    assert first.shape == (4,)
    assert not np.allclose(first, second)
    agent.reset()
    assert np.array_equal(agent.act(one, "greedy"), first)
    agent.reset()
    both = agent.act(several, "greedy")
    assert both.shape == (2, 4)
    np.testing.assert_allclose(both[0], first, rtol=1e-5)
    with pytest.raises(ValueError, match=r"observation\['n'\] is missing"):
        agent.act({"x": one["x"]})
