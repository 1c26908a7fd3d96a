"""Optimizers equal torch.optim, schedules have the right end points, updates are atomic."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import ascent, config, learner_of, trajectories
from torch import Tensor

from pgcli.algorithm.learner import Learner
from pgcli.algorithm.optimizers import Optimizer, flattened, scheduled
from pgcli.config.schema import OptimizerConfig
from pgcli.errors import Diverged

Rule = Literal["adam", "sgd", "rmsprop"]
RULES: list[Rule] = ["adam", "sgd", "rmsprop"]
UNSEEN = trajectories([(1, 1.0), (0, 2.0), (1, 0.5)], [(0, 1.0)], [(1, -3.0), (1, 1.0)])  # all observations are 0
BATCH = replace(UNSEEN, obs=torch.linspace(-1, 1, UNSEEN.obs.numel()).reshape(UNSEEN.obs.shape))


def agent_with(seed: int = 0, **optimizer: Any) -> Learner:
    settings = config(seed=seed, policy={"hidden_sizes": [5]}, optimizer=optimizer)
    return learner_of(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), settings)


def parameters(agent: Learner) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


CONSTANTS: list[tuple[Rule, type[torch.optim.Optimizer], dict[str, Any], dict[str, Any]]] = [  # pgcli's and torch's
    ("adam", torch.optim.Adam, {}, {}),
    ("adam", torch.optim.Adam, {"epsilon": 1e-3, "betas": [0.5, 0.8]}, {"eps": 1e-3, "betas": (0.5, 0.8)}),
    ("adam", torch.optim.AdamW, {"weight_decay": 0.3}, {"weight_decay": 0.3}),
    ("sgd", torch.optim.SGD, {}, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.9}),
    ("rmsprop", torch.optim.RMSprop, {}, {}),
    ("rmsprop", torch.optim.RMSprop, {"epsilon": 1e-2}, {"eps": 1e-2}),
]


@pytest.mark.parametrize(("rule", "torchs", "own", "their"), CONSTANTS, ids=[f"{a} {c}" for a, _, c, _ in CONSTANTS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_rule_equals_torchs(
    rule: Rule,
    torchs: Any,
    own: dict[str, Any],
    their: dict[str, Any],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    draw = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, dtype=dtype, generator=draw) for shape in ((3, 4), (4,), ())]
    ours = [start.clone() for start in starts]
    theirs = [start.clone().requires_grad_() for start in starts]
    optimizer, reference = Optimizer(rule, ours, OptimizerConfig(name=rule, **own)), torchs(theirs, lr=0.1, **their)
    for step in range(20):
        learning_rate = 0.1 / (1 + step)
        # from large over small to zero
        gradients = [torch.randn(x.shape, dtype=dtype, generator=draw) * 10.0 ** (2 - step) for x in starts]
        optimizer.step(flattened([g * (step < 18) for g in gradients]), learning_rate)
        for x, g in zip(theirs, gradients, strict=True):
            x.grad = g * (step < 18)
        reference.param_groups[0]["lr"] = learning_rate
        reference.step()
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_beyond_a_bound_is_set_to_it(rule: Rule) -> None:
    x, free = torch.tensor([0.5, -0.5, 0.0]), torch.tensor([0.5, -0.5])
    optimizer = Optimizer(rule, [x, free], bounds=[(x, -0.6, 0.6)])
    for _ in range(4):
        optimizer.step(torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0]), 0.1)
    assert x.tolist() == pytest.approx([0.6, -0.6, 0.0])
    assert free.abs().min() > 0.8
    optimizer.step(torch.tensor([1000.0, 0.0, 0.0, 0.0, 0.0]), 0.01)
    assert x[0] < 0.6 or rule == "adam", "a bound does not hold a parameter back"


def test_the_first_step_of_adam_is_the_learning_rate_against_the_sign() -> None:
    x = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    Optimizer("adam", [x]).step(torch.tensor([1e-3, -40.0, 0.0], dtype=torch.float64), 0.25)
    assert x.tolist() == pytest.approx([0.75, 1.25, 1.0], abs=1e-5)


@pytest.mark.parametrize(
    ("schedule", "start", "half", "end"), [("constant", 3, 3, 3), ("linear", 3, 1.5, 0), ("cosine", 3, 1.5, 0)]
)
def test_a_schedule_goes_from_the_value_to_its_end(schedule: Any, start: float, half: float, end: float) -> None:
    assert [scheduled(3.0, schedule, at) for at in (0, 0.5, 1)] == pytest.approx([start, half, end], abs=1e-15)


def test_linear_and_cosine_agree_at_middle_and_ends_only() -> None:
    assert scheduled(1.0, "linear", 0.25) == 0.75
    assert scheduled(1.0, "cosine", 0.25) == pytest.approx((2 + math.sqrt(2)) / 4)


def test_an_update_climbs_along_the_gradient_by_the_scheduled_rate() -> None:
    agent = agent_with(name="sgd", learning_rate=0.5, schedule="linear")
    before, uphill = parameters(agent), ascent(agent.agent, BATCH)
    update = agent.update(BATCH, progress=0.75)
    assert update.learning_rate == 0.125
    np.testing.assert_allclose(parameters(agent)[-2:] - before[-2:], 0.125 * uphill, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("norm", "moved"), [(0.25, 0.25), (4.0, 1.0)])
def test_only_a_gradient_above_the_limit_is_scaled_down(norm: float, moved: float) -> None:
    free, limited = (agent_with(name="sgd", learning_rate=1.0, max_grad_norm=limit) for limit in (None, 1.0))
    start = parameters(free)
    length = free.update(BATCH).grad_norm
    assert length is not None
    direction = (parameters(free) - start) / length
    assert direction.norm().item() == pytest.approx(1, rel=1e-5)
    louder = replace(BATCH, rewards=BATCH.rewards * norm / length)  # the gradient is linear in the rewards
    assert limited.update(louder).grad_norm == pytest.approx(norm, rel=1e-5)
    np.testing.assert_allclose(parameters(limited) - start, moved * direction, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_a_non_finite_update_changes_nothing(bad: float) -> None:
    agent = agent_with(name="adam")
    agent.update(BATCH)
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    rewards = BATCH.rewards.clone()
    rewards[0, 0] = bad
    with pytest.raises(Diverged, match=r"is (nan|inf|-inf)"):
        agent.update(replace(BATCH, rewards=rewards))
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.state_dict().items())


def test_a_finite_gradient_that_makes_parameters_non_finite_is_reported() -> None:
    agent = agent_with(name="sgd", learning_rate=1e38)
    louder = replace(BATCH, rewards=1e3 * BATCH.rewards)
    with pytest.raises(Diverged, match=r"policy\.network\.0\.weight is not finite"):
        agent.update(louder)


@pytest.mark.parametrize("constants", [*({"name": rule} for rule in RULES), {"name": "sgd", "momentum": 0.5}], ids=str)
def test_a_restored_agent_continues_bit_for_bit(constants: dict[str, Any]) -> None:
    agent, fresh = agent_with(**constants), agent_with(seed=1, **constants)
    for _ in range(3):
        agent.update(BATCH)
    saved = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    fresh.update(BATCH)  # a memory of its own, to be overwritten
    act = fresh.policy.actor("greedy").act
    fresh.load_state_dict(saved)
    obs = torch.linspace(-1, 1, 50)[:, None].numpy()
    for _ in range(3):
        assert agent.update(BATCH) == fresh.update(BATCH)
    assert agent.state_dict().keys() == fresh.state_dict().keys() == saved.keys()
    for name, tensor in agent.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
        assert not torch.equal(tensor, saved[name]), name
    assert (act(obs, obs[:, 0]) == agent.policy.actor("greedy").act(obs, obs[:, 0])).all()


def test_the_state_is_named_after_the_network() -> None:
    layers = [f"network.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    names = {rule: set(agent_with(name=rule).state_dict()) for rule in RULES}
    policy = {f"policy.{layer}" for layer in layers}
    assert names["sgd"] == policy
    momentum = {f"optimizer.{layer}.momentum_buffer" for layer in layers}
    assert set(agent_with(name="sgd", momentum=0.9).state_dict()) == policy | momentum
    assert names["rmsprop"] == policy | {f"optimizer.{layer}.square_avg" for layer in layers}
    moments = {f"optimizer.{layer}.{moment}" for layer in layers for moment in ("exp_avg", "exp_avg_sq")}
    assert names["adam"] == policy | moments | {"optimizer.step"}


def test_optimizers_do_without_torch_dynamo_and_sympy() -> None:
    code = """
import sys, torch
from pgcli.algorithm.optimizers import Optimizer
for rule in ("adam", "sgd", "rmsprop"):
    x = torch.ones(3, requires_grad=True)
    Optimizer(rule, [x]).step(torch.autograd.grad(x.square().sum(), [x])[0], 0.1)
    assert x.max() < 1
print(sorted({"torch._dynamo", "torch.optim", "sympy"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch._dynamo" not in result.stdout
    assert "sympy" not in result.stdout


@pytest.mark.parametrize("rule", RULES)
def test_parameters_with_replaced_memory_are_still_updated(rule: Rule) -> None:
    network = torch.nn.Linear(2, 1)
    optimizer = Optimizer(rule, list(network.parameters()))
    for parameter in network.parameters():  # as Module.to does
        parameter.data = parameter.data.clone()
    before = flattened(list(network.parameters())).detach()
    optimizer.step(torch.ones(3), 0.1)
    assert (flattened(list(network.parameters())) < before).all()
