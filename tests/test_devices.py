"""Learning on another device: the same as here, without a number of it being looked at. Only the last test needs a GPU.

A twin on the CPU shows that it learns the same. On the meta device, which has shapes and no numbers, whatever would
wait for a GPU is an error, and so is what mixes two devices.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tasks  # noqa: F401 - registers the environments
import torch
from command_line import pgcli
from helpers import config
from torch import Tensor

from pgcli.algorithm import policy_gradient as room
from pgcli.algorithm.descent import descend_unseen, minibatches
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.config.schema import Config
from pgcli.estimators.trajectories import Trajectories
from pgcli.records import Update
from pgcli.sampling.rollout import Chunks, collect_episodes
from pgcli.seeding import Purpose, generator

PPO = {
    "objective": "clip",
    "baseline": "value",
    "returns": "lambda_return",
    "update_epochs": 3,
    "num_minibatches": 4,
    "standardize": "batch",
    "entropy_coef": 0.1,
}
IDENTITY, IMAGE = {"id": "tasks:Identity-v0"}, {"id": "tasks:Identity-v0", "kwargs": {"observation": "image in a dict"}}
BOX = {"id": "tasks:Identity-v0", "kwargs": {"observation": "box", "action": "box"}}
CASES: dict[str, dict[str, Any]] = {
    "one-hot": {"env": IDENTITY},
    "a tuple, several choices": {"env": IDENTITY | {"kwargs": {"observation": "tuple", "action": "multi-discrete"}}},
    "bits": {"env": IDENTITY | {"kwargs": {"action": "multi-binary"}}},
    "images": {"env": IMAGE, "policy": {"normalize_obs": True}},
    "images under a shared trunk": {"env": IMAGE, "value": {"shared_trunk": True}},
    "a memory": {"env": IMAGE, "policy": {"memory": "gru", "backpropagation_steps": 3}},
    "a Gaussian": {"env": BOX, "policy": {"normalize_obs": True}, "value": {"normalize_returns": True}},
    "a squashed Gaussian": {"env": BOX, "policy": {"distribution": "tanh_gaussian"}},
    "exploration by the state": {"env": BOX, "policy": {"distribution": "state_dependent_gaussian"}},
    "masked": {"env": {"id": "tasks:Permitted-v0", "kwargs": {"where": "obs"}}, "algorithm": PPO | {"kl_coef": 0.2}},
    "no value function": {
        "env": IDENTITY,
        "algorithm": {"objective": "importance_sampling", "num_minibatches": 2, "self_normalize": True},
    },
    "V-trace, reuse": {
        "env": IDENTITY,
        "algorithm": {"objective": "importance_sampling", "returns": "vtrace", "baseline": "value", "reuse": 2},
    },
    "one step with the optimal baseline": {"env": IDENTITY, "algorithm": {"returns": "total", "baseline": "optimal"}},
}


def settings_of(case: str, **more: Any) -> Config:
    sections: dict[str, Any] = {"algorithm": PPO, "optimizer": {"max_grad_norm": None}} | CASES[case] | more
    return config(**sections | {"env": sections["env"] | {"num_envs": 8}, "rollout": {"episodes": 8}})


def agents_of(settings: Config, count: int) -> tuple[list[PolicyGradient], Trajectories]:
    chunks = Chunks(settings.env)
    one = chunks.environments(8)
    agents = [PolicyGradient(one.observation_space, one.action_space, settings) for _ in range(count)]
    return agents, collect_episodes(settings, chunks, agents[0].policy, 0, lambda: None)


def numbers(update: Update) -> dict[str, float]:
    return {name: x for name, x in vars(update).items() if isinstance(x, int | float)}


def state(agent: PolicyGradient) -> Tensor:
    return torch.cat([x.flatten().double() for x in agent.state_dict().values()])


@pytest.fixture
def by_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_plain", lambda policy, value: False)


@pytest.mark.parametrize("case", CASES)
def test_a_twin_learns_the_same_and_everything_comes_back(
    case: str, by_autograd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here, there), batch = agents_of(settings_of(case), 2)
    there._there = twin = there.on(torch.device("cpu"))
    assert not {x.data_ptr() for x in twin.policy.parameters()} & {x.data_ptr() for x in there.policy.parameters()}
    for iteration in range(3):
        update = here.update(batch, iteration)
        with monkeypatch.context() as patch:
            patch.setattr(PolicyGradient, "_descend", staticmethod(descend_unseen))
            other = there.update(batch, iteration)
        assert torch.equal(state(there), state(here))
        assert numbers(other) == pytest.approx(numbers(update), rel=1e-6)
    assert twin.policy is not there.policy


def test_where_it_is_not_seen_a_gradient_is_scaled_down_and_target_kl_ends_an_update(
    by_autograd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in (
        {"optimizer": {"max_grad_norm": 0.01, "name": "sgd", "learning_rate": 1.0}},
        {"optimizer": {"max_grad_norm": 100.0, "name": "sgd", "learning_rate": 1.0}},
        {"algorithm": PPO | {"target_kl": 0.02, "update_epochs": 40}, "optimizer": {"learning_rate": 0.001}},
    ):
        (here, there), batch = agents_of(settings_of("one-hot", **more), 2)
        update = here.update(batch)
        there._there = there.on(torch.device("cpu"))
        with monkeypatch.context() as patch:
            patch.setattr(PolicyGradient, "_descend", staticmethod(descend_unseen))
            other = there.update(batch)
        assert numbers(other) == pytest.approx(numbers(update), rel=1e-4)
        assert torch.allclose(state(there), state(here), atol=1e-5)
    assert 1 < update.update_epochs < 40


@pytest.mark.parametrize("case", CASES)
def test_no_step_looks_at_a_number_or_mixes_devices(case: str, by_autograd: None) -> None:
    meta, settings = torch.device("meta"), settings_of(case, optimizer={"max_grad_norm": 0.5})
    (agent,), trajectories = agents_of(settings, 1)
    batch = agent.batch(replace(trajectories, behavior_log_probs=torch.zeros_like(trajectories.rewards).float()))[0]
    there, descended, ends = agent.on(meta), batch.to(meta), list[str]()
    joint = there.value is not None and there.value_optimizer is None
    parts: list[tuple[Any, Any]] = [("joint" if joint else "policy", there.optimizer)]
    if there.value_optimizer is not None:
        parts.append(("value", there.value_optimizer))
    for of, optimizer in parts:
        shuffled = minibatches(descended, 2, 3, lambda epoch: generator(0, Purpose.MINIBATCH, epoch), on_policy=False)
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # at the very end
            descend_unseen(
                optimizer,
                shuffled,
                2,
                partial(there.losses.step_of, of=of, progress=0.5),
                0.1,
                0.5,
                check=lambda: ends.append("step"),
            )
    assert len(ends) == 6 * len(parts)
    with pytest.raises(RuntimeError, match="meta"):
        descend_unseen(
            there.optimizer,
            iter([(0, batch), (1, batch)]),
            2,
            lambda part: there.losses.step_of(part, parts[0][0], 0.5),
            0.1,
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU")
def test_a_missing_gpu_is_told_before_anything_is_written(tmp_path: Path) -> None:
    done = pgcli("train", "cartpole", "training.device=cuda", "--run-dir", "run", cwd=tmp_path, code=2)
    assert done.stderr.startswith(f"error: training.device: cuda, and torch {torch.__version__} finds no GPU here")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_learns_nearly_the_same(case: str) -> None:
    (here,), batch = agents_of(settings_of(case), 1)
    (there,), _ = agents_of(settings_of(case, training={"device": "cuda"}), 1)
    for iteration in range(2):
        assert numbers(there.update(batch, iteration)) == pytest.approx(
            numbers(here.update(batch, iteration)), rel=1e-2
        )
    assert torch.allclose(state(there), state(here), atol=1e-3)
