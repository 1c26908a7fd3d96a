"""Gradient variance: exact in closed form, confirmed by sampling, without effect on training."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import kills
import numpy as np
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from helpers import (
    World,
    ascent,
    bandit,
    chain,
    collect_episodes,
    config,
    mapped,
    moments,
    random_batch,
    softmax_agent,
    trajectories,
)
from torch import Tensor

from pgcli.algorithm.gradient_variance import measure, with_estimator
from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.config import load_config, override
from pgcli.config.schema import Config
from pgcli.errors import ConfigError, RunDirectoryError
from pgcli.estimators.trajectories import Trajectories
from pgcli.experiment.build import environments_of
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.verify import verify
from pgcli.policies import trajectory_outputs as along
from pgcli.policies.trajectory_outputs import trajectory_gradients
from pgcli.records import GradientEstimate
from pgcli.report.plots import plot
from pgcli.runs import checkpoints
from pgcli.runs.tables import header_of
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.executor import ChunkExecutor

EXACT = 1e-10


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------- gradients of each column

POLICIES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "softmax": (spaces.Discrete(4), {}),
    "linear": (spaces.Discrete(4), {"hidden_sizes": []}),
    "gaussian": (spaces.Box(-1, 1, (2,)), {}),
    "tanh_gaussian": (spaces.Box(-1, 1, (2,)), {"distribution": "tanh_gaussian"}),
    "state_dependent_gaussian": (spaces.Box(-1, 1, (2,)), {"distribution": "state_dependent_gaussian"}),
    "choices": (spaces.MultiDiscrete([2, 3]), {}),
    "bits": (spaces.MultiBinary(3), {}),
    "normalised": (spaces.Discrete(4), {"normalize_obs": True}),
    "gru": (spaces.Discrete(4), {"memory": "gru", "memory_size": 5}),
    "lstm, cut": (spaces.Discrete(4), {"memory": "lstm", "memory_size": 5, "backpropagation_steps": 2}),
}


def agent_and_batch(kind: str, **algorithm: Any) -> tuple[PolicyGradient, Trajectories]:
    """Build an agent in float64 and four possible trajectories of different lengths."""
    space, policy = POLICIES[kind]
    settings = config(policy={"hidden_sizes": [6, 5]} | policy, algorithm=algorithm)
    agent = build_agent(spaces.Box(-1, 1, (3,)), space, settings)
    agent.policy.double()
    batch, draw = random_batch(), np.random.default_rng(3)
    if not isinstance(space, spaces.Discrete):
        shape = (*batch.mask.shape, *(space.shape or ()))
        drawn = draw.normal(size=shape) if isinstance(space, spaces.Box) else draw.integers(0, 2, shape)
        batch = replace(batch, actions=torch.from_numpy(drawn))
    return agent, batch


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("kind", POLICIES)
def test_the_gradient_of_a_column_equals_that_of_a_batch_with_this_column(kind: str) -> None:
    agent, batch = agent_and_batch(kind, returns="reward_to_go", baseline="none", average="episodes")
    returns = agent.estimate(batch).advantages
    tables = torch.stack([returns, batch.mask.double(), torch.zeros_like(returns)])
    (each,) = trajectory_gradients(agent.policy, batch, tables, max_length=agent.config.policy.backpropagation_steps)
    assert each.shape == (3, 4, sum(p.numel() for p in agent.policy.parameters()))
    for column in range(4):
        alone = batch.columns(slice(column, column + 1))
        assert len(alone.mask) == [5, 3, 1, 4][column]
        assert (each[0, column] + flat(estimate_gradient(agent, alone)[0])).abs().max() < EXACT
    assert each[0].abs().sum() > 1
    assert each[2].abs().max() == 0


@pytest.mark.parametrize("kind", POLICIES)
def test_masked_entries_have_no_effect(kind: str) -> None:
    agent, batch = agent_and_batch(kind)
    reached = batch.reached

    def garbage(name: str, x: Tensor) -> Tensor:
        mask = reached if name == "obs" else batch.mask
        if name in ("obs", "actions"):
            bad = torch.nan if x.is_floating_point() else 99
            return torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x, torch.full_like(x, bad))
        return x

    dirty = mapped(batch, garbage)
    assert not torch.equal(torch.nan_to_num(dirty.obs, 7.0), batch.obs)
    tables = torch.ones(1, *batch.mask.shape, dtype=torch.float64)
    (clean,), (found,) = (list(trajectory_gradients(agent.policy, b, tables)) for b in (batch, dirty))
    assert torch.equal(clean, found)


@pytest.mark.parametrize("kind", ["softmax", "gru"])
def test_columns_in_parts_equal_the_columns_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, batch = agent_and_batch(kind)
    tables = torch.stack([batch.rewards, batch.mask.double()])
    (whole,) = trajectory_gradients(agent.policy, batch, tables)
    for numbers, together, sizes in ((1, 1, [1, 1, 1, 1]), (1, 2, [2, 2]), (1, 3, [3, 1]), (1000, 1, None)):
        monkeypatch.setattr(along, "NUMBERS", numbers)
        parts = list(trajectory_gradients(agent.policy, batch, tables, multiple_of=together))
        assert sizes is None or [part.shape[1] for part in parts] == sizes
        assert (torch.cat(parts, 1) - whole).abs().max() < EXACT


def test_a_column_without_a_step_has_no_gradient() -> None:
    for kind in ("softmax", "gru"):
        agent, batch = agent_and_batch(kind)
        mask = batch.mask & (torch.arange(4) != 2)
        (each,) = trajectory_gradients(
            agent.policy, replace(batch, mask=mask), torch.ones(1, 5, 4, dtype=torch.float64)
        )
        assert each[0].abs().sum(1).gt(0).tolist() == [True, True, False, True]
        empty = replace(batch, mask=torch.zeros_like(mask))
        (none,) = trajectory_gradients(agent.policy, empty, torch.ones(1, 5, 4, dtype=torch.float64))
        assert none.shape == each.shape
        assert none.abs().max() == 0


def test_images_are_read_column_by_column() -> None:
    space = spaces.Box(0, 255, (8, 8, 1), np.uint8)
    settings = config(policy={"hidden_sizes": [4]}, algorithm={"baseline": "none", "average": "episodes"})
    agent = build_agent(space, spaces.Discrete(4), settings)
    agent.policy.double()
    batch, draw = random_batch(), torch.Generator().manual_seed(1)
    batch = replace(batch, obs=torch.randint(256, (6, 4, 8, 8, 1), generator=draw, dtype=torch.uint8))
    (each,) = trajectory_gradients(agent.policy, batch, agent.estimate(batch).advantages[None])
    alone = flat(estimate_gradient(agent, batch.columns(slice(1, 2)))[0])
    assert alone.abs().max() > 1e-3
    assert (each[0, 1] + alone).abs().max() < EXACT


# ---------------------------------------------------------------------------------------- closed forms, by enumeration

BANDITS: dict[str, tuple[list[float], list[float]]] = {
    "one": ([0.0, 0.0], [1.0, 0.0]),
    "two": ([0.0, math.log(2), math.log(3)], [1.0, 0.0, 2.0]),
}
GRADIENT_SQUARED = {"one": 0.125, "two": (1 + 14**2 + 15**2) / 36**2}
# the trace of the covariance of the estimate of a batch, from gold values that were enumerated independently
VARIANCE = {
    ("one", "none", 4): 0.03125,
    ("one", "mean", 2): 0.03125,
    ("one", "mean", 4): 0.01171875,
    ("one", "leave_one_out", 2): 0.125,
    ("one", "leave_one_out", 4): 0.02083333,
    ("two", "none", 4): 0.15702160,
    ("two", "mean", 4): 0.05830440,
    ("two", "leave_one_out", 4): 0.10365226,
    ("two", "leave_one_out", 2): 0.47993827,
}


def expectation(agent: PolicyGradient, world: World, n: int) -> dict[str, float]:
    """Compute the expectation of each column over all batches of n episodes; empty cells are 0."""
    mean = dict.fromkeys(("gradient_variance", "trajectory_variance", "squared_norm", "signal"), 0.0)
    for batch in product(world, repeat=n):
        probability = math.prod(p for p, _ in batch)
        (own, *_) = measure(agent, trajectories(*(episode for _, episode in batch)))
        norm, v, of_one = own.gradient_norm, own.gradient_variance, own.trajectory_variance
        assert norm is not None
        assert v is not None
        assert of_one is not None
        for name, x in (("gradient_variance", v), ("trajectory_variance", of_one), ("squared_norm", norm**2)):
            mean[name] += probability * x
        mean["signal"] += probability * (norm**2 - v)
        if own.snr is not None and v > EXACT:
            assert own.snr == pytest.approx((norm**2 - v) / v, rel=1e-9)
    return mean


@pytest.mark.parametrize(("world", "baseline", "n"), VARIANCE, ids=str)
def test_the_variance_on_a_bandit_is_exact_except_for_the_shared_baseline(world: str, baseline: str, n: int) -> None:
    agent = softmax_agent(BANDITS[world][0], returns="total", baseline=baseline, average="episodes", gamma=1.0)
    found = expectation(agent, bandit(*BANDITS[world]), n)
    square = GRADIENT_SQUARED[world]
    lacks = {"none": 0.0, "mean": square / n**2, "leave_one_out": square / (n - 1) ** 2}[baseline]
    shrunk = (1 - 1 / n) ** 2 if baseline == "mean" else 1
    assert found["gradient_variance"] == pytest.approx(VARIANCE[world, baseline, n] - lacks, abs=1e-8)
    assert found["trajectory_variance"] == pytest.approx(n * found["gradient_variance"], rel=1e-12)
    assert found["signal"] == pytest.approx(shrunk * square + lacks, abs=EXACT)


@pytest.mark.parametrize("returns", ["total", "reward_to_go"])
def test_the_variance_on_a_chain_is_the_closed_form(returns: str) -> None:
    """n² (1 - p)² p^n (1 - p^n) γ^(2n - 2), twice: both logits change equally."""
    n, gamma, p = 5, 0.9, 1 / (1 + math.exp(-0.5))
    world, agent = (
        chain(0.5, n, 0, 1),
        softmax_agent([0.0, 0.5], returns=returns, baseline="none", average="episodes", gamma=gamma),
    )
    if returns == "total":
        score = n * (1 - p) * gamma ** (n - 1)
    else:
        score = (1 - p) * sum(gamma ** (n - 1 - t) for t in range(n))
    closed = 2 * score**2 * p**n * (1 - p**n)
    if returns == "total":
        assert closed / 2 == pytest.approx(0.1299441557, abs=1e-10)
    found = expectation(agent, world, 2)
    assert found["trajectory_variance"] == pytest.approx(closed, rel=1e-9)
    assert found["gradient_variance"] == pytest.approx(moments(agent, world, 2)[1], rel=1e-9)
    assert found["signal"] == pytest.approx(2 * (score * p**n) ** 2, rel=1e-9)


@pytest.mark.parametrize("baseline", ["group", "none", "group, standardised"])
def test_groups_that_share_a_start_state_are_the_independent_parts(baseline: str) -> None:
    """Two groups of two pulls, each of one of two bandits, which pay for different actions."""
    name, *how = baseline.split(", ")
    settings: dict[str, Any] = {"returns": "total", "baseline": "group", "average": "episodes", "group_size": 2}
    agent = softmax_agent([0.0, 0.4], **settings | ({"standardize": "group"} if how else {}))
    if name != "group":
        agent.config = agent.config.model_copy(
            update={"diagnostics": config(diagnostics={"every": 1, "shadows": [f"total+{name}"]}).diagnostics}
        )
    probabilities = torch.tensor([0.0, 0.4]).softmax(0).tolist()
    pays = ((4.0, 0.0), (0.0, 4.0))  # of a context, of an action
    mean, square, variance, apart = torch.zeros(()), 0.0, 0.0, 0.0
    for contexts in product(range(2), repeat=2):
        for actions in product(range(2), repeat=4):
            probability = 0.25 * math.prod(probabilities[a] for a in actions)
            batch = trajectories(*([(a, pays[contexts[n // 2]][a])] for n, a in enumerate(actions)))
            found = measure(agent, batch)[-1]
            g = ascent(agent if name == "group" else with_estimator(agent, f"total+{name}"), batch)
            mean, square = mean + probability * g, square + probability * float(g @ g)
            variance += probability * (found.gradient_variance or 0.0)
            assert found.gradient_norm == pytest.approx(float(torch.linalg.vector_norm(g)), abs=1e-6)
            each = torch.stack([4 * ascent_of_one(agent, batch, n) for n in range(4)]) if name == "none" else g[None]
            apart += probability * float(each.var(0).sum()) / 4 if name == "none" else 0.0
    exact = square - float(mean @ mean)
    assert variance == pytest.approx(exact, rel=1e-6)
    if name == "none":
        assert apart < 0.9 * exact, "trajectories that share a start state are not independent"


def ascent_of_one(agent: PolicyGradient, batch: Trajectories, column: int) -> Tensor:
    one = with_estimator(agent, "total+none")
    return ascent(one, batch.columns(slice(column, column + 1))) / 4


def test_a_baseline_that_knows_the_value_removes_all_of_the_variance() -> None:
    """Of bandit one with b = J, every pull gives the same gradient."""
    agent = softmax_agent([0.0, 0.0], returns="total", baseline="value", average="episodes", gamma=1.0)
    assert agent.value is not None
    with torch.no_grad():
        for parameter in agent.value.double().parameters():
            parameter.zero_()
        list(agent.value.parameters())[-1].fill_(0.5)
    (own,) = measure(agent, trajectories([(0, 1.0)], [(1, 0.0)], [(1, 0.0)]))
    assert own.gradient_norm == pytest.approx(math.sqrt(0.125))
    assert own.gradient_variance == pytest.approx(0, abs=1e-16)
    assert own.variance_removed == pytest.approx(1)
    assert own.cosine == pytest.approx(1)


def test_the_removed_share_compares_equal_returns_without_standardization() -> None:
    """Three pulls by hand: contributions R s or (R - b) s, with s = ±(1/2, -1/2), and their variance over three."""
    agent = softmax_agent([0.0, 0.0], returns="total", baseline="mean", average="episodes", standardize="batch")
    shadows = ["total+mean", "total+none", "total+none+batch"]
    agent.config = agent.config.model_copy(
        update={"diagnostics": config(diagnostics={"every": 1, "shadows": shadows}).diagnostics}
    )
    own, mean, none, none_batch = measure(agent, trajectories([(0, 5.0)], [(1, 4.0)], [(1, 3.0)]))
    v_none = np.var([5, -4, -3], ddof=1) / 2 / 3
    v_mean = np.var([1, 0, 1], ddof=1) / 2 / 3
    assert none.gradient_variance == pytest.approx(v_none)
    assert mean.gradient_variance == pytest.approx(v_mean)
    # standardised: contributions (1, 0, 1) / 3σ, σ² = 2/3, of which the deviation of the batch takes (1, -2, 1) / 12
    moved = np.array([1, 0, 1]) / 3 / (2 / 3) ** 0.5
    moved -= moved.sum() * (1 / 3 + np.array([1, -2, 1]) / 12)
    assert own.gradient_variance == pytest.approx(3 / 2 * np.square(moved).sum() / 2)
    assert [row.variance_removed for row in (own, mean)] == pytest.approx([1 - v_mean / v_none] * 2)
    assert [row.variance_removed for row in (none, none_batch)] == [0.0, 0.0]
    assert own.gradient_norm == pytest.approx(none_batch.gradient_norm)  # standardising takes the mean out
    g_mean, g_none = 2 / 3, -2 / 3  # of s: (1 + 0 + 1) / 3 and (5 - 4 - 3) / 3
    assert mean.gradient_norm == pytest.approx(abs(g_mean) / math.sqrt(2))
    assert [row.cosine for row in (own, mean, none)] == pytest.approx([1, 1, math.copysign(1, g_mean * g_none)])
    assert mean.snr == pytest.approx(g_mean**2 / 2 / v_mean - 1)
    assert mean.trajectories_for_snr_1 == pytest.approx(3 / (g_mean**2 / 2 / v_mean - 1))
    assert none.snr is not None
    assert none.snr < 0
    assert none.trajectories_for_snr_1 is None


def test_leave_one_out_and_mean_differ_by_a_scale_only() -> None:
    agent = softmax_agent([0.3, 0.1], returns="total", baseline="leave_one_out", average="episodes")
    agent.config = override(agent.config, ["diagnostics={every: 1, shadows: [total+mean]}"])
    own, mean = measure(agent, trajectories([(0, 5.0)], [(1, 4.0), (0, 1.0)], [(1, 3.0)], [(0, 3.0)]))
    assert mean.cosine == pytest.approx(1)
    assert own.gradient_norm == pytest.approx(4 / 3 * (mean.gradient_norm or 0))
    assert own.snr == pytest.approx(mean.snr)


def test_overflowing_numbers_leave_cells_empty() -> None:
    agent = softmax_agent([0.0, 0.0], returns="total", baseline="none", average="episodes")
    (own,) = measure(agent, trajectories([(0, 1e200)], [(1, 1e200)], [(1, -1e200)]))
    assert own.gradient_variance is own.trajectory_variance is own.snr is None
    (still,) = measure(agent, trajectories([(0, 0.0)], [(1, 0.0)]))
    assert (still.gradient_norm, still.gradient_variance) == (0, 0)
    assert still.snr is still.cosine is still.variance_removed is None


# -------------------------------------------------------------------------------------------------- against a sample

SAMPLED = ("total+none", "total+mean", "reward_to_go+none", "reward_to_go+leave_one_out")


def test_the_variance_on_cart_pole_matches_many_batches() -> None:
    """The mean v of 120 batches of 8 equals the variance of their gradients within four standard errors."""
    settings = override(
        load_config("cartpole"),
        [
            *("rollout.episodes=8", "env.num_envs=8", "policy.hidden_sizes=[]", "env.max_episode_steps=12"),
            "algorithm={average: episodes, returns: total, baseline: none}",
            f"diagnostics={{every: 1, shadows: [{', '.join(SAMPLED[1:])}]}}",
        ],
    )
    executor = ChunkExecutor(EnvironmentCache(environments_of(settings)))
    try:
        envs = executor.environments.of_width(8)
        agent = build_agent(envs.observation_space, envs.action_space, settings)
        batches = [collect_episodes(settings, executor, agent.policy, number, lambda: None) for number in range(120)]
    finally:
        executor.close()
    told = [measure(agent, batch) for batch in batches]
    for number, name in enumerate(SAMPLED):
        one = with_estimator(agent, name)
        drawn = torch.stack([flat(estimate_gradient(one, batch)[0]).double() for batch in batches])
        squares = (drawn - drawn.mean(0)).square().sum(1) * (120 / 119)
        said = torch.tensor([row[number].gradient_variance for row in told], dtype=torch.float64)
        error = float((squares.var() / 120 + said.var() / 120).sqrt())
        assert error < 0.2 * float(squares.mean()), "it could not fail"
        assert abs(float(squares.mean() - said.mean())) < 4 * error, name
        norms = [row[number].gradient_norm for row in told]
        assert norms == pytest.approx(torch.linalg.vector_norm(drawn, dim=1).tolist(), rel=1e-4)


@pytest.mark.parametrize("average", ["steps", "episodes"])
@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"objective": "importance_sampling", "reuse": 2, "importance_bound": 2.0, "self_normalize": True},
    ],
    ids=str,
)
def test_v_includes_the_effect_of_a_trajectory_on_batch_statistics(algorithm: dict[str, Any], average: str) -> None:
    """In 500 copies of a batch, leaving out one copy of a trajectory moves g by its contribution and its influence."""
    agent, batch = agent_and_batch("softmax", returns="reward_to_go", baseline="none", average=average, **algorithm)
    batch = replace(batch, behavior_log_probs=-1 - batch.rewards.cos() / 2)
    copies, parts = 500, 4
    steps = batch.mask.sum(0).double()
    shares = (steps / steps.sum()).tolist() if average == "steps" else [1 / parts] * parts
    v = 0.0
    for first, share in enumerate(shares):
        many = mapped(batch, lambda _, x: x.roll(-first, 1).repeat(1, copies, *[1] * (x.ndim - 2)))  # noqa: B023
        whole, without = (flat(estimate_gradient(agent, many.columns(slice(k, None)))[0]) for k in (0, 1))
        v += (1 - 1 / parts) * float((copies * (without - whole)).square().sum()) / (1 - share) ** 2
    assert measure(agent, batch)[0].gradient_variance == pytest.approx(v, rel=0.02)


def test_the_variance_of_a_mean_over_steps_is_the_jackknife_of_a_ratio() -> None:
    """Three trajectories by hand: the estimates without each one, from the same advantages."""
    agent = softmax_agent([0.0, 0.0], returns="total", baseline="none", average="steps", gamma=1.0)
    episodes = ([(0, 5.0)], [(1, 4.0), (0, 1.0)], [(1, 3.0), (1, 0.0), (0, -1.0)])
    whole = ascent(agent, trajectories(*episodes))
    without = [ascent(agent, trajectories(*(e for k, e in enumerate(episodes) if k != left))) for left in range(3)]
    jackknife = 2 / 3 * sum(float((one - whole).square().sum()) for one in without)
    assert measure(agent, trajectories(*episodes))[0].gradient_variance == pytest.approx(jackknife, rel=1e-6)


# -------------------------------------------------------------------------------------------- the first row is the own


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"objective": "clip", "standardize": "batch", "update_epochs": 3},
        {"objective": "importance_sampling", "importance_bound": 0.5, "average": "episode_means"},
        {"returns": "lambda_return", "baseline": "value"},
    ],
    ids=str,
)
def test_the_own_row_is_the_gradient_that_an_update_begins_with(kind: str, algorithm: dict[str, Any]) -> None:
    agent, batch = agent_and_batch(kind, **algorithm)
    if agent.value is not None:
        agent.value.double()
    (own,) = measure(agent, batch)
    gradient = flat(estimate_gradient(agent, batch)[0])
    assert own.estimator == "+".join(
        [algorithm.get("returns", "reward_to_go"), algorithm.get("baseline", "mean")]
        + ([algorithm["standardize"]] if "standardize" in algorithm else [])
    )
    assert own.gradient_norm == pytest.approx(float(torch.linalg.vector_norm(gradient)), rel=1e-9)


def test_reused_trajectories_are_weighed_by_their_ratios() -> None:
    agent, batch = agent_and_batch("softmax", objective="importance_sampling", reuse=2)
    batch = replace(batch, behavior_log_probs=-torch.ones_like(batch.rewards))
    gradient = float(torch.linalg.vector_norm(flat(estimate_gradient(agent, batch)[0])))
    assert measure(agent, batch)[0].gradient_norm == pytest.approx(gradient, rel=1e-9)
    unweighed = float(
        torch.linalg.vector_norm(flat(estimate_gradient(agent, replace(batch, behavior_log_probs=None))[0]))
    )
    assert gradient != pytest.approx(unweighed, rel=1e-3)


# ------------------------------------------------------------------------------------------------ runs and their files

SHORT = ("training.iterations=4", "training.env_steps=null", "evaluation.episodes=3", "evaluation.every=2")
RUNS: dict[str, tuple[str, ...]] = {
    "native episodes": (
        *("cartpole/reward_to_go", "rollout.episodes=6", "env.num_envs=3", "env.max_episode_steps=40"),
        "optimizer.schedule=constant",
        *("diagnostics.shadows=[total+none, total+optimal, reward_to_go+leave_one_out]",),
    ),
    "segments": (
        *kills.CASES["segments"],
        "value.normalize_returns=true",
        "diagnostics.shadows=[reward_to_go+value, lambda_return+value, vtrace+value]",
    ),
    "groups": ("cartpole/grpo", "rollout.episodes=16", "env.max_episode_steps=40", "diagnostics.shadows=[total+mean]"),
    "reuse": (*kills.CASES["reuse"], "diagnostics.shadows=[total+none]"),
    "a Gaussian, normalised": (*kills.CASES["a Gaussian, normalised"], "diagnostics.shadows=[reward_to_go+value]"),
    "memory and a mask": (*kills.CASES["memory and a mask"], "diagnostics.shadows=[lambda_return+value]"),
}


def trained(path: Path, kind: str, *overrides: str, **how: Any) -> Path:
    name, *settings = RUNS[kind]
    loaded = load_config(name, [*settings, *SHORT, "diagnostics.every=1", *overrides])
    return run_experiment(Request(loaded, path, ["train"], **how)).path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a finished run of a kind, created at first use."""
    home = tmp_path_factory.mktemp("measured")

    def made(kind: str) -> Path:
        return home / kind if (home / kind).exists() else trained(home / kind, kind)

    return made


@pytest.mark.parametrize("kind", RUNS)
def test_measuring_does_not_affect_training(kind: str, measured: Callable[[str], Path], tmp_path: Path) -> None:
    with_it = measured(kind)
    without = trained(tmp_path / "run", kind, "diagnostics={every: null, shadows: []}")
    assert not (without / "gradients.csv").exists()
    for name in ("metrics.csv", "episodes.csv", "evaluations.csv"):
        assert (with_it / name).read_bytes() == (without / name).read_bytes(), name
    files = checkpoints.list_checkpoints(with_it / "checkpoints")
    assert [file.name for file in files] == [f.name for f in checkpoints.list_checkpoints(without / "checkpoints")]
    for file in files:
        one, other = checkpoints.load(file), checkpoints.load(without / "checkpoints" / file.name)
        assert one.counters == other.counters
        assert one.tensors.keys() == other.tensors.keys()
        assert all(x.numpy().tobytes() == other.tensors[key].numpy().tobytes() for key, x in one.tensors.items())
        assert {k: v for k, v in one.config.items() if k != "diagnostics"} == {
            k: v for k, v in other.config.items() if k != "diagnostics"
        }


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_has_a_row_for_each_estimator_and_is_verified(kind: str, measured: Callable[[str], Path]) -> None:
    path = measured(kind)
    settings, table = load_config(str(path / "config.yaml")), rows(path / "gradients.csv")
    names = [settings.estimator, *settings.diagnostics.shadows]
    assert [(row["iteration"], row["estimator"]) for row in table] == [(str(k), n) for k in range(4) for n in names]
    assert [row["env_steps"] for row in table[:: len(names)]] == [r["env_steps"] for r in rows(path / "metrics.csv")]
    assert all(float(row["cosine"]) == pytest.approx(1) for row in table[:: len(names)])
    result = verify(path, everything=True)
    assert result["passed"], result
    assert result["recomputed"] == [0, 1, 2, 3]
    assert result["rows"]["gradients"] == len(table)


def test_the_norm_equals_grad_norm_for_a_single_step(measured: Callable[[str], Path]) -> None:
    for kind in ("native episodes", "reuse"):
        path = measured(kind)
        norms = [float(row["grad_norm"]) for row in rows(path / "metrics.csv")]
        table = rows(path / "gradients.csv")
        own = [row for row in table if row["estimator"] == table[0]["estimator"]]
        assert [float(row["gradient_norm"]) for row in own] == pytest.approx(norms, rel=1e-5)


def edited(column: str, cell: str, line: int = 2) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        lines = [text.split(",") for text in (path / "gradients.csv").read_text().splitlines()]
        lines[line][lines[0].index(column)] = cell
        (path / "gradients.csv").write_text("".join(f"{','.join(cells)}\n" for cells in lines))

    return edit


def without_line(line: int, until: int | None = None) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        lines = (path / "gradients.csv").read_text().splitlines(keepends=True)
        del lines[line : until or line + 1]
        (path / "gradients.csv").write_text("".join(lines))

    return edit


def scaled(path: Path) -> None:
    """Make the first row consistent, but with a norm that differs from the update's."""
    lines = [text.split(",") for text in (path / "gradients.csv").read_text().splitlines()]
    for name, factor in (("gradient_norm", 2.0), ("gradient_variance", 4.0), ("trajectory_variance", 4.0)):
        place = lines[0].index(name)
        lines[1][place] = repr(float(lines[1][place]) * factor)
    (path / "gradients.csv").write_text("".join(f"{','.join(cells)}\n" for cells in lines))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edited("snr", "3.5"), "the columns of total+none in iteration 0 contradict"),
        (edited("trajectory_variance", "3.5"), "in iteration 0 contradict"),
        (edited("env_steps", "3", line=6), "the env_steps of iteration 1 differ from metrics.csv"),
        (edited("estimator", "total+mean"), "total+mean"),
        (edited("cosine", "0.5", line=2), "iteration 0 has cosine 0.5, but recomputed it is"),
        (edited("iteration", "x"), "line 3 has `x` instead of a number"),
        (edited("gradient_norm", "many"), "line 3 has `many` instead of a number"),
        (without_line(3), "iteration 0 has "),
        (without_line(5, 9), "iteration 1 has no rows, expected"),
        (without_line(13, 17), "iteration 3 has no rows, expected"),
        (scaled, "the gradient_norm of iteration 0 differs from grad_norm in metrics.csv"),
        (lambda path: (path / "gradients.csv").unlink(), "gradients.csv: is missing"),
    ],
)
def test_verify_finds_later_changes(
    edit: Callable[[Path], None], told: str, measured: Callable[[str], Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(measured("native episodes"), tmp_path / "run"))
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps({name: status[name] for name in ("status", "iteration")}))
    edit(path)
    failed = [finding["text"] for finding in verify(path)["findings"] if finding["level"] == "failed"]
    assert len(failed) == 1
    assert told in failed[0]


def test_a_resumed_run_continues_to_measure_and_can_change_the_interval(
    measured: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = measured("native episodes")
    path = trained(tmp_path / "run", "native episodes", "training.iterations=2")
    with (path / "gradients.csv").open("a") as file:
        file.write("2,99,total+none,6,1")  # half a line of an iteration that was not completed
    trained(path, "native episodes", resume=True)
    assert (path / "gradients.csv").read_bytes() == (whole / "gradients.csv").read_bytes()
    changed = ("training.iterations=9", "diagnostics={every: 3, shadows: [total+none]}")
    trained(path, "native episodes", *changed, resume=True)
    assert json.loads((path / "run.json").read_text())["exact"] is True
    assert sorted({int(row["iteration"]) for row in rows(path / "gradients.csv")}) == [0, 1, 2, 3, 6]
    assert verify(path, everything=True)["passed"]
    trained(path, "native episodes", "training.iterations=10", "diagnostics={every: null, shadows: []}", resume=True)
    assert verify(path, everything=True)["passed"]


def test_a_new_run_does_not_inherit_a_gradient_variance_table(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", "native episodes", "training.iterations=1")
    trained(path, "native episodes", "training.iterations=1", "diagnostics={every: null, shadows: []}", overwrite=True)
    assert not (path / "gradients.csv").exists()
    assert (tmp_path / "run~1" / "gradients.csv").exists()
    half = tmp_path / "half"
    half.mkdir()
    (half / "run.json").write_text('{"pgcli": "0.1.0"}')  # killed when it had begun
    (half / "gradients.csv").write_text("iteration,env")
    trained(half, "native episodes", "training.iterations=1")
    assert len(rows(half / "gradients.csv")) == 4


# ------------------------------------------------------------------------------------------------------- the config


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        override(Config(), overrides)
    return [f"{problem.message} | {problem.hint}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("diagnostics.shadows=[total+none]",), "`diagnostics.every` is null, so nothing is measured | set"),
        (("diagnostics={every: 1, shadows: [reward_to_go+mean]}",), "the config's own estimator is always measured"),
        (("diagnostics={every: 1, shadows: [total+none, total+none]}",), "it is listed twice"),
        (("diagnostics={every: 1, shadows: [total+value]}",), "the config learns none"),
        (("diagnostics={every: 1, shadows: [lambda_return+none]}",), "needs a value function"),
        (("diagnostics={every: 1, shadows: [reward_to_go+optimal]}",), "is defined for the total return"),
        (("diagnostics={every: 1, shadows: [total+group]}",), "needs a group size"),
        (("diagnostics={every: 1, shadows: [total+mean+group]}",), "divides by the standard deviation of a group's"),
        (("diagnostics={every: 1, shadows: [nonsense]}",), "should be an estimator like total+none, got 'nonsense'"),
        (("diagnostics={every: 1, shadows: [total+nnoe]}",), "did you mean `total+none`?"),
        (
            ("diagnostics.every=1", "rollout.episodes=1", "algorithm.baseline=none"),
            "a variance needs more than one trajectory",
        ),
        (
            ("diagnostics.every=1", "rollout.episodes=8", "algorithm={baseline: group, group_size: 8}"),
            "a variance needs more than one group",
        ),
        (
            (
                *("rollout={episodes: null, steps: 8}", "algorithm={baseline: value, returns: lambda_return}"),
                "diagnostics={every: 1, shadows: [total+value]}",
            ),
            "a segment does not contain the total return",
        ),
    ],
    ids=str,
)
def test_unmeasurable_estimators_are_rejected(overrides: tuple[str, ...], told: str) -> None:
    (problem,) = problems(*overrides)
    assert told in problem


def test_a_mistake_in_the_config_is_reported_once_not_per_shadow() -> None:
    bad = ("algorithm.update_epochs=3", "diagnostics={every: 1, shadows: [total+none, total+mean]}")
    (problem,) = problems(*bad)
    assert "algorithm.update_epochs" in problem


def test_an_invalid_shadow_is_reported_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("diagnostics:\n  every: 2\n  shadows:\n    - total+none\n    - total+value\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:5:7: `diagnostics\.shadows\[1\]`: `total\+value`: it needs"):
        load_config(str(tmp_path / "c.yaml"))


def test_a_shadow_inherits_the_compatible_keys_of_the_config() -> None:
    base = override(
        Config(), ["algorithm={discount_weighting: true, standardize: batch, baseline: group, group_size: 4}"]
    )
    assert base.estimator == "reward_to_go+group+batch"
    assert base.with_estimator(base.estimator) == base
    total, group = base.with_estimator("total+mean"), base.with_estimator("total+group+group")
    assert (total.algorithm.discount_weighting, total.group_size, total.algorithm.standardize) == (False, 1, "none")
    assert (group.group_size, group.estimator) == (4, "total+group+group")


# ---------------------------------------------------------------------------------------------------------- the figure


def drawn(path: Path, y: str, output: Path) -> list[dict[str, str]]:
    return rows(plot([path], "iteration", y, "mean", "none", 1, output))


def test_a_figure_has_a_line_for_each_estimator(measured: Callable[[str], Path], tmp_path: Path) -> None:
    path = measured("native episodes")
    table = drawn(path, "gradient_variance", tmp_path / "a.csv")
    assert table == drawn(path, "gradients.gradient_variance", tmp_path / "b.csv")
    name = load_config(str(path / "config.yaml")).name
    found = [(line["label"], line["x"], line["center"]) for line in table]
    expected = [
        (f"{name}: estimator {row['estimator']}", row["iteration"], row["gradient_variance"])
        for row in sorted(rows(path / "gradients.csv"), key=lambda row: row["estimator"])
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(("y", "scale"), [("gradient_variance", "log"), ("cosine", "linear"), ("snr", "linear")])
def test_variances_are_drawn_over_powers_of_ten(
    y: str, scale: str, measured: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    scales: list[str] = []
    save = Figure.savefig

    def saved(self: Figure, *arguments: Any, **keywords: Any) -> None:
        scales.append(self.axes[0].get_yscale())
        save(self, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", saved)
    path = measured("native episodes")
    if y == "snr":
        assert any(float(row["snr"]) < 0 for row in rows(path / "gradients.csv"))
    plot([path], "iteration", y, "mean", "none", 1, tmp_path / "a.png")
    assert scales == [scale]


def test_a_run_without_gradient_variance_cannot_be_drawn(measured: Callable[[str], Path], tmp_path: Path) -> None:
    bare = trained(tmp_path / "bare", "native episodes", "diagnostics={every: null, shadows: []}")
    with pytest.raises(RunDirectoryError, match=r"has no gradients\.csv") as caught:
        drawn(bare, "snr", tmp_path / "a.csv")
    assert "diagnostics.every" in caught.value.hint
    with pytest.raises(ConfigError, match="has no column `noise`"):
        drawn(measured("native episodes"), "gradients.noise", tmp_path / "a.csv")
    (bare / "gradients.csv").write_bytes(b"")
    with pytest.raises(RunDirectoryError, match="empty or damaged"):
        drawn(bare, "snr", tmp_path / "a.csv")


def test_the_command_line_draws_and_verifies_gradient_variance(measured: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(measured("native episodes"), tmp_path / "run")
    done = pgcli("plot", "run", "-y", "snr", cwd=tmp_path)
    assert (tmp_path / done.stdout.strip()).stat().st_size > 1000
    assert done.stdout.strip() == "run/plots/snr.png"
    pgcli("verify", "run", cwd=tmp_path)
    done = pgcli("train", "run/config.yaml", "diagnostics.shadows=[total+vlaue]", cwd=tmp_path, code=2)
    assert "did you mean `total+value`?" in done.stderr


def test_rows_are_the_fields_of_a_record() -> None:
    assert header_of("gradients") == ["iteration", "env_steps", *GradientEstimate.__dataclass_fields__]
    assert set(header_of("metrics")) & set(GradientEstimate.__dataclass_fields__) == set()
