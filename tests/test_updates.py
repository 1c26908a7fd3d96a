"""Updates of several steps: stopping, separate and shared parts, and reuse."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

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
    learner_of,
    log_probs,
    mostly_slow,
    random_batch,
)
from torch import Tensor

from pgcli.algorithm import learner as learning
from pgcli.algorithm import second_process
from pgcli.algorithm.batch import minibatches
from pgcli.algorithm.learner import Learner
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.algorithm.reuse import with_log_probs
from pgcli.errors import Diverged, UsageError
from pgcli.seeding import Purpose, generator
from pgcli.system import processes

CLIP: dict[str, Any] = {"objective": "clip", "baseline": "value", "update_epochs": 4, "num_minibatches": 3}
BATCH = random_batch(dtype=torch.float32)


def agent_with(algorithm: dict[str, Any], **sections: Any) -> Learner:
    settings = config(**{"policy": {"hidden_sizes": [6]}} | sections, algorithm=algorithm)
    return learner_of(spaces.Box(-9, 9, (3,)), spaces.Discrete(4), settings)


def state(agent: Learner, prefix: str) -> Tensor:
    return torch.cat([x.flatten() for name, x in agent.state_dict().items() if name.startswith(prefix)]).clone()


def test_target_kl_ends_an_update_before_a_step_beyond_the_limit() -> None:
    fast = {"learning_rate": 0.1}
    free = agent_with(CLIP | {"update_epochs": 10}, optimizer=fast).update(BATCH)
    bound = agent_with(CLIP | {"update_epochs": 10, "target_kl": 0.02}, optimizer=fast)
    update = bound.update(BATCH)
    assert free.update_epochs == 10
    assert update.update_epochs is not None
    assert update.update_epochs < 10
    assert free.approx_kl is not None
    assert update.approx_kl is not None
    assert update.approx_kl <= 0.02 < free.approx_kl


def test_target_kl_always_permits_the_first_step() -> None:
    agent = agent_with(CLIP | {"target_kl": 1e-12})
    before = state(agent, "policy.")
    assert agent.update(BATCH).update_epochs == 1
    assert not torch.equal(state(agent, "policy."), before)


def test_target_kl_does_not_affect_a_separate_value_function() -> None:
    stopped, free = agent_with(CLIP | {"target_kl": 1e-12}), agent_with(CLIP)
    assert stopped.update(BATCH).value_loss == free.update(BATCH).value_loss
    assert torch.equal(state(stopped, "value."), state(free, "value."))


def test_a_separate_value_function_learns_with_its_own_optimizer() -> None:
    plain, eager = agent_with(CLIP), agent_with(CLIP, value={"learning_rate": 0.02, "update_epochs": 9})
    a, b = plain.update(BATCH), eager.update(BATCH)
    assert torch.equal(state(plain, "policy."), state(eager, "policy.")), "V is fixed while the policy learns"
    assert not torch.equal(state(plain, "value."), state(eager, "value."))
    assert a.value_loss is not None
    assert b.value_loss is not None
    assert b.value_loss < a.value_loss


def test_gradients_are_clipped_per_network() -> None:
    sections: dict[str, Any] = {"optimizer": {"name": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.01}}
    agent = agent_with({"baseline": "value"}, **sections)
    before = state(agent, "policy."), state(agent, "value.")
    agent.update(BATCH)
    for prefix, old in zip(("policy.", "value."), before, strict=True):
        assert (state(agent, prefix) - old).norm().item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("way", ["closed form", "autograd"])
def test_gradients_clipped_together_are_those_of_one_optimizer_with_one_norm(way: str) -> None:
    """One torch.optim.AdamW and one clip_grad_norm_ for policy and value function, as in CleanRL and SB3."""
    optimizer: dict[str, Any] = {"learning_rate": 0.01, "max_grad_norm": 0.05, "clip_gradients": "together"}
    constants = {"epsilon": 1e-5, "betas": [0.8, 0.99], "weight_decay": 0.1}
    algorithm = CLIP | {"standardize": "minibatch", "clip_range": [0.1, 0.4], "value_coef": 0.7, "update_epochs": 3}
    agents = [agent_with(algorithm, optimizer=optimizer | constants) for _ in range(2)]
    ours, theirs = (one.agent for one in agents)
    assert [part.name for part in ours.parts] == ["joint"]
    if way == "autograd":
        vars(ours)["gradient"] = autograd(ours)
    assert theirs.value is not None
    parameters = [*theirs.policy.parameters(), *theirs.value.parameters()]
    reference = torch.optim.AdamW(parameters, 0.01, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1)
    acted = with_log_probs(theirs.policy, BATCH)
    batch, _ = flat_batch(theirs, acted)
    plain = config(algorithm=algorithm | {"standardize": "none"})
    raw, _ = flat_batch(PolicyGradient(deepcopy(theirs.policy), deepcopy(theirs.value), plain), acted)
    for epoch in range(3):
        order = generator(0, Purpose.MINIBATCH, 5, epoch).permutation(len(batch))
        for rows in np.array_split(order, 3):
            chosen = torch.from_numpy(rows)
            new = log_probs(theirs.policy, batch.obs[chosen], batch.actions[chosen])
            ratio, a = (new - batch.behavior_log_probs[chosen]).exp(), raw.advantages[chosen]
            a = (a - a.mean()) / a.std()
            values = theirs.value(theirs.policy, batch.obs[chosen])
            loss = -torch.minimum(ratio * a, ratio.clamp(0.9, 1.4) * a).mean()
            loss = loss + 0.7 * (values - batch.returns[chosen]).square().mean()
            reference.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.05)
            reference.step()
    update = agents[0].update(BATCH, 5)
    assert update.value_loss is not None
    for name, x in agents[0].state_dict().items():
        if name.startswith(("policy.", "value.")):
            torch.testing.assert_close(x, agents[1].state_dict()[name], rtol=1e-4, atol=1e-6)


def test_target_kl_ends_an_update_of_both_networks_that_are_clipped_together() -> None:
    optimizer = {"max_grad_norm": 0.5, "clip_gradients": "together"}
    agent = agent_with(CLIP | {"target_kl": 1e-12}, optimizer=optimizer)
    assert agent.update(BATCH).update_epochs == 1
    assert agent.state_dict()["optimizer.step"] == 1
    assert {name.split(".")[0] for name in agent.state_dict()} == {"policy", "value", "optimizer"}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_minibatch_has_standardized_advantages(count: int) -> None:
    plain, agent = agent_with(CLIP), agent_with(CLIP | {"standardize": "minibatch"})
    (raw, _), (batch, _) = flat_batch(plain.agent, BATCH), flat_batch(agent.agent, BATCH)
    orders = [np.random.default_rng(epoch).permutation(len(batch)) for epoch in range(2)]
    parts = minibatches(batch, 2, count, np.random.default_rng, on_policy=False)
    chosen = [rows for order in orders for rows in (np.array_split(order, count) if count > 1 else [np.arange(13)])]
    for (_, part), rows in zip(parts, chosen, strict=True):
        a = raw.advantages.numpy()[rows]
        np.testing.assert_allclose(part.advantages, (a - a.mean()) / a.std(ddof=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(part.returns, raw.returns.numpy()[rows])


def test_a_minibatch_of_equal_advantages_gets_zeros() -> None:
    agent = agent_with(CLIP | {"standardize": "minibatch"})
    batch, _ = flat_batch(agent.agent, BATCH)
    advantages = torch.linspace(-1, 1, 13)
    advantages[:4] = 0.3 * (1 + torch.tensor([0.0, 1e-7, -1e-7, 0.0]))  # equal up to rounding
    (part, _) = replace(batch, advantages=advantages).split(torch.arange(13), 2)
    assert part.advantages.abs().max() > 1
    (first, *_) = replace(batch, advantages=advantages).split(torch.arange(13), 4)
    assert len(first) == 4
    assert first.advantages.abs().max() < 0.3
    (alone, *_) = replace(batch, advantages=advantages).split(torch.arange(13), 13)
    assert alone.advantages.tolist() == [0]


@pytest.mark.parametrize(("kl", "factor"), [(0.006, 0.5), (0.007, 1), (0.0149, 1), (0.0151, 2), (math.inf, 2)])
def test_an_adaptive_kl_penalty_is_halved_or_doubled(kl: float, factor: float) -> None:
    losses = agent_with(CLIP | {"kl_coef": {"target": 0.01}}).agent.losses
    assert losses.kl_coef == 1
    losses.adapt_kl_coef(kl)
    assert losses.kl_coef == factor
    losses.adapt_kl_coef(None)
    assert losses.kl_coef == factor
    for _ in range(50):
        losses.adapt_kl_coef(kl)
    assert losses.kl_coef == pytest.approx(1 if factor == 1 else {0.5: 1e-6, 2: 1e6}[factor])


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 2), (1e3, 0.5)])
def test_the_adaptive_weight_is_used_saved_and_rolled_back(target: float, factor: float) -> None:
    agent, fixed = agent_with(CLIP | {"kl_coef": {"target": target}}), agent_with(CLIP | {"kl_coef": 1.0})
    update, expected = agent.update(BATCH), fixed.update(BATCH)
    assert torch.equal(state(agent, "policy."), state(fixed, "policy.")), "the weight starts at 1"
    assert update == replace(expected, kl_coef=factor), "reported for the next update"
    assert agent.state_dict()["kl_coef"].item() == factor
    assert "kl_coef" not in fixed.state_dict()
    half = agent_with(CLIP | {"kl_coef": factor})
    half.load_state_dict({name: x.clone() for name, x in agent.state_dict().items()})
    agent.update(BATCH, 1)
    half.update(BATCH, 1)
    assert torch.equal(state(agent, "policy."), state(half, "policy."))
    again = agent_with(CLIP | {"kl_coef": {"target": target}})
    before = whole_state(agent)
    again.load_state_dict({name: x.clone() for name, x in agent.state_dict().items()})
    assert whole_state(again) == before
    with pytest.raises(Diverged):
        agent.update(replace(BATCH, rewards=BATCH.rewards * math.nan))
    assert whole_state(agent) == before


@pytest.mark.parametrize("distribution", ["gaussian", "tanh_gaussian", "state_dependent_gaussian"])
def test_log_sigma_stays_within_its_bounds(distribution: str) -> None:
    policy: dict[str, Any] = {"hidden_sizes": [4], "distribution": distribution, "log_std_bounds": [-0.75, -0.65]}
    if distribution != "state_dependent_gaussian":
        policy["initial_standard_deviation"] = 0.5
    sgd = {"name": "sgd", "learning_rate": 3.0}
    actions = 3 * torch.sin(torch.arange(40.0)).view(5, 4, 2)
    found = []
    for bounds in (policy["log_std_bounds"], None):
        settings = config(policy=policy | {"log_std_bounds": bounds}, optimizer=sgd)
        learner = learner_of(spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,)), settings)
        learner.update(replace(BATCH, actions=actions))
        found.append(next(x for name, x in learner.state_dict().items() if name.endswith("log_standard_deviation")))
    np.testing.assert_allclose(found[0], found[1].clamp(-0.75, -0.65))
    assert not torch.equal(*found)


@pytest.mark.parametrize(("distribution", "start"), [("gaussian", "0"), ("state_dependent_gaussian", "-0.6931")])
def test_bounds_of_log_sigma_must_contain_its_start(distribution: str, start: str) -> None:
    policy = {"hidden_sizes": [4], "distribution": distribution, "log_std_bounds": [-5, -1]}
    with pytest.raises(UsageError, match=rf"log_std_bounds: log σ starts at {start}, which is not in \[-5, -1\]"):
        learner_of(spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,)), config(policy=policy))


def test_a_shared_trunk_minimizes_the_sum_of_both_losses() -> None:
    algorithm = {"baseline": "value", "value_coef": 0.25}
    sgd = {"name": "sgd", "learning_rate": 0.5}
    agent = agent_with(algorithm, optimizer=sgd, value={"shared_trunk": True})
    assert agent.agent.value is not None
    batch, _ = flat_batch(agent.agent, BATCH)
    parameters = [*agent.policy.parameters(), *agent.agent.value.parameters()]
    policy = torch.autograd.grad(
        autograd(agent.agent).policy_terms(batch)["policy_loss"], parameters, allow_unused=True
    )
    value = torch.autograd.grad(autograd(agent.agent).value_terms(batch)["value_loss"], parameters, allow_unused=True)
    expected = [
        p.detach() - 0.5 * sum((x for x in (a, None if b is None else 0.25 * b) if x is not None), torch.zeros(()))
        for p, a, b in zip(parameters, policy, value, strict=True)
    ]
    update = agent.update(BATCH)
    assert update.value_loss == pytest.approx(
        agent_with(algorithm, value={"shared_trunk": True}).update(BATCH).value_loss
    )
    for parameter, wanted in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach(), wanted, rtol=1e-4, atol=1e-6)
    heads = [name for name in agent.state_dict() if name.startswith("value.")]
    assert heads == ["value.network.0.weight", "value.network.0.bias"], "one more output, no network"


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
def test_clip_range_and_entropy_bonus_follow_the_budget(progress: float, share: float) -> None:
    schedules = {"clip_range_schedule": "linear", "entropy_coef_schedule": "linear", "entropy_coef": 0.3}
    update = agent_with(CLIP | {"clip_range": 0.4} | schedules).update(BATCH, progress=progress)
    assert update.clip_range == pytest.approx(0.4 * share)
    assert update.entropy_coef == pytest.approx(0.3 * share)


def test_the_scheduled_entropy_bonus_is_used() -> None:
    bonus = {"baseline": "mean", "entropy_coef": 0.5, "entropy_coef_schedule": "linear"}
    half, constant = agent_with(bonus), agent_with({"baseline": "mean", "entropy_coef": 0.25})
    half.update(BATCH, progress=0.5)
    constant.update(BATCH, progress=0.5)
    assert torch.equal(state(half, "policy."), state(constant, "policy."))


def test_minibatches_depend_on_the_iteration_only() -> None:
    agents = [agent_with(CLIP) for _ in range(3)]
    for agent, iteration in zip(agents, (4, 4, 5), strict=True):
        agent.update(BATCH, iteration)
    a, b, c = (state(agent, "policy.") for agent in agents)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_metrics_that_do_not_apply_are_omitted() -> None:
    plain = agent_with({"baseline": "mean"}).update(BATCH)
    assert plain.value_loss is plain.approx_kl is plain.clip_fraction is plain.effective_sample_size is None
    assert plain.explained_variance is plain.clip_range is plain.zero_variance_groups is plain.return_scale is None
    grpo = {"returns": "total", "baseline": "group", "group_size": 2, "standardize": "group", "objective": "clip"}
    assert agent_with(grpo).update(BATCH).zero_variance_groups == 0
    weighed = agent_with({"baseline": "mean", "objective": "importance_sampling"}).update(BATCH)
    assert weighed.approx_kl == 0
    assert weighed.clip_fraction is None


def test_a_step_that_makes_the_value_function_non_finite_is_reported() -> None:
    agent = agent_with({"baseline": "value"}, optimizer={"name": "sgd"}, value={"learning_rate": 1e38})
    with pytest.raises(Diverged, match=r"value\.network"):
        agent.update(replace(BATCH, rewards=1e6 * BATCH.rewards))


def whole_state(agent: Learner) -> dict[str, list[float]]:
    return {name: x.flatten().tolist() for name, x in agent.state_dict().items()}


@pytest.mark.parametrize("after", [0, 3, 15], ids="steps of the optimizers: {}".format)
def test_a_stopped_update_is_rolled_back(after: int) -> None:
    agent = agent_with(CLIP, policy={"normalize_obs": True}, value={"normalize_returns": True})
    agent.update(BATCH)
    before, calls = whole_state(agent), iter(range(after))

    def check() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agent.update(BATCH, 1, check=check)
    assert whole_state(agent) == before
    whole = agent_with(CLIP, policy={"normalize_obs": True}, value={"normalize_returns": True})
    whole.update(BATCH)
    assert agent.update(BATCH, 1) == whole.update(BATCH, 1)
    assert whole_state(agent) == whole_state(whole)


def test_a_diverged_update_is_rolled_back() -> None:
    agent = agent_with(CLIP, optimizer={"name": "sgd", "learning_rate": 1e30})
    before = whole_state(agent)
    with pytest.raises(Diverged):
        agent.update(BATCH)
    assert whole_state(agent) == before


def test_an_update_that_fails_at_its_end_is_rolled_back_with_its_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_with({"objective": "importance_sampling", "reuse": 3})
    agent.update(BATCH)
    before, past, trajectories = whole_state(agent), list(agent.past.policies), list(agent.past.trajectories)
    monkeypatch.setattr(learning, "Update", None)
    with pytest.raises(TypeError):
        agent.update(replace(BATCH, rewards=2 * BATCH.rewards))
    assert whole_state(agent) == before
    assert agent.past.policies == past
    assert agent.past.trajectories == trajectories


def update_with_a_spare_core(trouble: str) -> None:
    """Update twice without and with a second process, also a failing one; single-threaded."""
    forks = 0

    class Troubled(processes.ForkedTask[Any]):
        def __init__(self, work: Callable[[processes.Check], Any]) -> None:
            def troubled(check: processes.Check) -> Any:
                self.meet()
                return work(check)

            super().__init__(troubled)

        def __enter__(self) -> Any:
            nonlocal forks
            forks += 1
            return super().__enter__()

        def meet(self) -> None:
            match trouble:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "failed":
                    raise ValueError

    setattr(second_process, "ForkedTask", Troubled)  # noqa: B010 - imported there
    second_process.WORTH_A_FORK, processes.PATIENCE_SECONDS = 0.0, 0.5
    if trouble == "two threads":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    trpo = {"optimizer": {"name": "natural", "max_kl": 0.01, "line_search": True}, "value": {"learning_rate": 0.01}}
    algorithm, sections = ({"baseline": "value"}, trpo) if trouble == "none, with TRPO" else (CLIP, {})
    here, there = (agent_with(algorithm, **sections) for _ in range(2))
    there = Learner(there.agent, second_process.SecondProcess())
    for iteration in range(3):
        assert there.update(BATCH, iteration) == here.update(BATCH, iteration)
        assert whole_state(there) == whole_state(here)
    assert forks == (0 if trouble == "two threads" else 2), "the first one measures what it takes"
    before, calls = whole_state(there), iter(range(5))

    def check() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    if trouble != "none, with TRPO":  # which takes fewer steps
        with pytest.raises(KeyboardInterrupt):
            there.update(BATCH, 4, check=check)
    assert whole_state(there) == before
    assert not active_children()


TROUBLES = ["none", "none, with TRPO", "killed", "stopped", "failed", "two threads"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("trouble", mostly_slow(TROUBLES, ["none"], "waits for processes"))
def test_the_value_function_learns_the_same_in_a_second_process(trouble: str) -> None:
    code = f"import test_updates; test_updates.update_with_a_spare_core({trouble!r})"
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=alone, stderr=-1, text=True, timeout=99
    )
    assert not done.returncode, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("normalize", [False, True])
def test_reused_trajectories_are_collected_again_bit_for_bit(normalize: bool) -> None:
    settings = config(
        env={"id": "CartPole-v1", "num_envs": 4},
        rollout={"episodes": 6},
        policy={"hidden_sizes": [4], "normalize_obs": normalize},
        algorithm={"objective": "importance_sampling", "reuse": 3, "update_epochs": 2, "num_minibatches": 2},
        optimizer={"learning_rate": 0.05},
    )
    executor = executor_for(settings)
    one = executor.environments.of_width(1)
    agent, again = (learner_of(one.observation_space, one.action_space, settings) for _ in range(2))
    for iteration in range(5):
        batch = collect_episodes(settings, executor, agent.policy, iteration, lambda: None)
        steps = batch.num_steps + sum(past.num_steps for past in agent.past.trajectories)
        update = agent.update(batch, iteration)
        assert len(agent.past.trajectories) == min(iteration + 1, 2)
        assert update.effective_sample_size is not None
        assert batch.num_steps / 2 < update.effective_sample_size < steps
    again.load_state_dict({name: tensor.clone() for name, tensor in agent.state_dict().items()})
    again.past.collect_again(5, lambda policy, k: collect_episodes(settings, executor, policy, k, lambda: None))
    for ours, theirs in zip(agent.past.trajectories, again.past.trajectories, strict=True):
        for name, tensor in vars(ours).items():
            other = getattr(theirs, name)
            assert tensor is other is None or torch.equal(tensor, other), name
    batch = collect_episodes(settings, executor, agent.policy, 5, lambda: None)
    assert agent.update(batch, 5) == again.update(batch, 5)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in agent.state_dict().items())


@pytest.mark.parametrize("made", [0, 1])
def test_early_iterations_reuse_fewer_trajectories(made: int) -> None:
    agent = agent_with({"objective": "clip", "reuse": 4})
    asked: list[int] = []

    def collect(policy: Any, iteration: int) -> Any:
        asked.append(iteration)
        return BATCH

    agent.past.collect_again(made, collect)
    assert asked == list(range(made))
