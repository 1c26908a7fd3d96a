"""Learning on another device: equal results without synchronization. Only the last test needs a GPU.

A second device on the CPU gives the same results. On the meta device, which has shapes but no numbers, every operation
that would synchronize or mix devices is an error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tasks  # noqa: F401 - registers the environments
import torch
from command_line import pgcli
from helpers import collect_episodes, config, executor_for, flat_batch, learner_of
from torch import Tensor

from pgcli.algorithm import gradients
from pgcli.algorithm.learner import Learner, on_device
from pgcli.algorithm.optimizers import clip_grad_norm_
from pgcli.config.schema import Config
from pgcli.estimators.trajectories import Trajectories
from pgcli.records import Update

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


def learners_of(settings: Config, count: int) -> tuple[list[Learner], Trajectories]:
    executor = executor_for(settings)
    one = executor.environments.of_width(8)
    learners = [learner_of(one.observation_space, one.action_space, settings) for _ in range(count)]
    return learners, collect_episodes(settings, executor, learners[0].policy, 0, lambda: None)


def numbers(update: Update) -> dict[str, float]:
    return {name: x for name, x in vars(update).items() if isinstance(x, int | float)}


def state(agent: Learner) -> Tensor:
    return torch.cat([x.flatten().double() for x in agent.state_dict().values()])


@pytest.fixture
def by_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "has_closed_form", lambda policy, value: False)


@pytest.mark.parametrize("case", CASES)
def test_an_agent_on_another_device_learns_the_same_and_is_copied_back(case: str, by_autograd: None) -> None:
    (here, there), batch = learners_of(settings_of(case), 2)
    there._twin = twin = on_device(there.agent, torch.device("cpu"))
    assert not {x.data_ptr() for x in twin.policy.parameters()} & {x.data_ptr() for x in there.policy.parameters()}
    for iteration in range(3):
        assert there.update(batch, iteration) == here.update(batch, iteration)
        assert torch.equal(state(there), state(here))


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_gradient_clipping_on_another_device_does_not_synchronize(norm: float) -> None:
    here = norm * torch.ones(4, dtype=torch.float64) / 2
    there = Unseen(here.clone())
    clip_grad_norm_(here, 0.5)
    clip_grad_norm_(there, 0.5)
    assert torch.allclose(torch.Tensor(there.as_subclass(torch.Tensor)), here, rtol=1e-12)


class Unseen(Tensor):
    """A tensor on the CPU that pretends to be on another device and cannot be read as a number."""

    is_cpu = False

    def __float__(self) -> float:
        raise AssertionError("a GPU would be waited for")


@pytest.mark.parametrize("case", CASES)
def test_no_step_synchronizes_or_mixes_devices(case: str, by_autograd: None) -> None:
    meta, settings = torch.device("meta"), settings_of(case, optimizer={"max_grad_norm": 0.5})
    (learner,), trajectories = learners_of(settings, 1)
    trajectories = replace(trajectories, behavior_log_probs=torch.zeros_like(trajectories.rewards).float())
    batch, ends = flat_batch(learner.agent, trajectories)[0], list[str]()
    there = on_device(learner.agent, meta)
    for part in there.parts:
        with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):  # at the very end
            there.improve(part, batch.to(meta), 0, 0.5, lambda: ends.append("step"))
    assert len(ends) == sum(part.epochs for part in there.parts) * settings.algorithm.num_minibatches
    with pytest.raises(RuntimeError, match="meta"):
        there.improve(there.parts[0], batch, 0, 0.5, lambda: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU")
def test_a_missing_gpu_is_reported_before_any_file_is_written(tmp_path: Path) -> None:
    done = pgcli("train", "cartpole", "training.device=cuda", "--run-dir", "run", cwd=tmp_path, code=2)
    assert done.stderr.startswith(f"error: training.device: cuda, but torch {torch.__version__} finds no GPU")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_update_is_close_to_a_cpu_update(case: str) -> None:
    (here,), batch = learners_of(settings_of(case), 1)
    (there,), _ = learners_of(settings_of(case, training={"device": "cuda"}), 1)
    for iteration in range(2):
        assert numbers(there.update(batch, iteration)) == pytest.approx(
            numbers(here.update(batch, iteration)), rel=1e-2
        )
    assert torch.allclose(state(there), state(here), atol=1e-3)
