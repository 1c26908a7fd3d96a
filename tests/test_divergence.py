"""Non-finite numbers are reported with the name of their tensor and never saved."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from helpers import config, learner_of, random_batch

from pgcli.algorithm.batch import Batch, flatten, minibatches
from pgcli.algorithm.gradients.closed_form import ClosedForm
from pgcli.algorithm.learner import Learner
from pgcli.errors import Diverged
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment
from pgcli.records import Iteration, Notice, Record, Update
from pgcli.runs import checkpoints

CLIP: dict[str, Any] = {"objective": "clip", "baseline": "value", "update_epochs": 2, "num_minibatches": 2}
NORMALIZED: dict[str, Any] = {
    "policy": {"hidden_sizes": [6], "normalize_obs": True},
    "value": {"normalize_returns": True},
    "rollout": {"episodes": None, "steps": 5},
    "env": {"num_envs": 4},
}
BATCH = random_batch(dtype=torch.float32)


def agent_with(algorithm: dict[str, Any], action_space: spaces.Space[Any] | None = None, **more: Any) -> Learner:
    settings = config(**{"policy": {"hidden_sizes": [6]}} | more, algorithm=algorithm)
    return learner_of(spaces.Box(-9, 9, (3,)), action_space or spaces.Discrete(4), settings)


def copied(agent: Learner) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in agent.state_dict().items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", agent_with(CLIP, **NORMALIZED).state_dict())
def test_a_non_finite_state_tensor_is_named(name: str, bad: float) -> None:
    agent = agent_with(CLIP, **NORMALIZED)
    agent.update(BATCH)
    agent.state_dict()[name].view(-1)[0] = bad
    with pytest.raises(Diverged) as told:
        agent.update(BATCH, 1)
    module = name.removeprefix("optimizer.").removeprefix("value_").removeprefix("optimizer.").rpartition(".")[0]
    assert module in told.value.message, "a bad moment of an optimizer shows in the parameter, or is named itself"
    with pytest.raises(Diverged, match=name.replace(".", r"\.")):
        agent.check_finite()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("obs", torch.full_like(BATCH.obs, math.nan)),
        ("rewards", torch.full_like(BATCH.rewards, math.nan)),
        ("rewards", torch.full_like(BATCH.rewards, math.inf)),
        ("rewards", torch.full_like(BATCH.rewards, 1e300)),
    ],
)
def test_non_finite_data_is_named_and_not_learned_from(name: str, tensor: torch.Tensor) -> None:
    agent = agent_with(CLIP)
    agent.update(BATCH)
    before = copied(agent)
    with pytest.raises(Diverged, match=f"{'obs' if name == 'obs' else 'advantages'} is not finite, so policy_loss"):
        agent.update(replace(BATCH, **{name: tensor}))
    assert copied(agent) == before


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"behavior_log_probs": -math.inf}, "behavior_log_probs is not finite, so"),
        ({"advantages": math.inf}, "advantages is not finite, so"),
        ({"returns": math.nan}, "returns is not finite, so value_loss is nan"),
    ],
)
def test_a_non_finite_part_of_the_batch_is_named(
    broken: dict[str, float], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = flatten

    def broken_flatten(*arguments: Any) -> tuple[Batch, Update]:
        made, report = whole(*arguments)
        bad: dict[str, Any] = {name: torch.full((len(made),), value) for name, value in broken.items()}
        return replace(made, **bad), report

    monkeypatch.setattr("pgcli.algorithm.policy_gradient.flatten", broken_flatten)
    with pytest.raises(Diverged, match=words):
        agent_with(CLIP).update(BATCH)


def test_an_impossible_action_is_reported_by_its_log_probability() -> None:
    agent = agent_with({"baseline": "mean"}, spaces.Box(-1, 1, (1,)))
    with torch.no_grad():
        agent.policy.get_parameter("distribution.log_standard_deviation").fill_(-200)  # as good as deterministic
    with pytest.raises(Diverged, match="log_probs is not finite, so policy_loss"):
        agent.update(replace(BATCH, actions=torch.full((5, 4, 1), 0.5)))


def test_a_non_finite_gradient_of_a_finite_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_with({"baseline": "mean"})
    whole = ClosedForm.__call__

    def broken(*arguments: Any) -> Any:
        gradient, terms = whole(*arguments)
        gradient[agent.policy.get_parameter("network.0.weight").numel()] = math.nan
        return gradient, terms

    monkeypatch.setattr(ClosedForm, "__call__", broken)
    with pytest.raises(Diverged, match=r"the gradient of policy\.network\.0\.bias is not finite, so grad_norm is nan"):
        agent.update(BATCH)


def test_overflowing_statistics_are_reported_before_they_are_stored() -> None:
    agent = agent_with({"baseline": "mean"}, policy={"hidden_sizes": [6], "normalize_obs": True})
    agent.update(BATCH)
    before = copied(agent)
    with pytest.raises(Diverged, match=r"policy\.normalizer\.variance"):
        agent.update(replace(BATCH, obs=1e200 * BATCH.obs.double()))
    assert copied(agent) == before


def test_large_finite_parameters_do_not_count_as_divergence() -> None:
    agent = agent_with({"baseline": "mean"})
    for tensor in agent.state_dict().values():
        tensor.fill_(3e38)  # their sum is not finite, and each of them is
    agent.check_finite()


@pytest.mark.parametrize(
    ("log_ratio", "outcome"), [(-100.0, 0.0), (100.0, "is not finite, so policy_loss is nan"), (-1e4, 0.0)]
)
def test_overflowing_ratios_are_reported_and_underflowing_ones_count_as_zero(
    log_ratio: float, outcome: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = minibatches

    def far(batch: Batch, *arguments: Any, **keywords: Any) -> Any:
        for epoch, part in whole(batch, *arguments, **keywords):
            yield epoch, replace(part, behavior_log_probs=batch.behavior_log_probs - log_ratio, on_policy=False)

    monkeypatch.setattr("pgcli.algorithm.policy_gradient.minibatches", far)
    agent = agent_with({"objective": "clip", "baseline": "mean", "update_epochs": 2})
    if isinstance(outcome, str):
        with pytest.raises(Diverged, match=outcome):
            agent.update(BATCH)
    else:
        update = agent.update(BATCH)
        assert update.clip_fraction == 1, "all are clipped"
        assert update.effective_sample_size == outcome
        assert update.policy_loss is not None
        assert math.isfinite(update.policy_loss)


@pytest.mark.parametrize(("every", "at", "kept"), [(1, 2, 3), (4, 8, 8)], ids=["before an update", "before a save"])
def test_non_finite_numbers_never_reach_a_checkpoint(every: int, at: int, kept: int, tmp_path: Path) -> None:
    settings = config(
        env={"num_envs": 2},
        rollout={"episodes": 2, "horizon": 5},
        policy={"hidden_sizes": [4]},
        training={"iterations": 9},
        evaluation={"every": None, "episodes": 1},
        checkpoint={"every": every, "keep": 20},
    )
    agents: list[Learner] = []

    def build(*arguments: Any, **named: Any) -> Learner:
        agents.append(Learner(*arguments, **named))
        return agents[-1]

    def watch(record: Record) -> None:  # as if the machine's memory had failed
        if isinstance(record, Iteration) and record.iteration == at:
            agents[-1].state_dict()["policy.network.0.weight"][0, 0] = math.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgcli.experiment.build.Learner", build)
        with pytest.raises(Diverged, match=rf"policy\.network\.0\.weight is not finite.* in iteration {at + 1} of run"):
            run_experiment(Request(settings, Path("run"), [], folder=tmp_path), Context(watch))
    files = checkpoints.list_checkpoints(tmp_path / "run/checkpoints")
    assert checkpoints.iteration_of(files[-1]) == kept
    for file in files:
        assert all(torch.isfinite(tensor).all() for tensor in checkpoints.load(file).tensors.values())
    records: list[Record] = []
    run_experiment(Request(settings, Path("run"), [], resume=True, folder=tmp_path), Context(records.append))
    assert [record.iteration for record in records if isinstance(record, Iteration)] == list(range(kept, 9))


@pytest.mark.parametrize(
    ("environment", "rate"),
    [
        ("CartPole-v1", "1e6"),
        ("Pendulum-v1", "1e6"),
        ("Pendulum-v1 policy.activation=identity", "1e37"),
        ("Pendulum-v1 policy.distribution=state_dependent_gaussian", "1e6"),
    ],
)
def test_a_far_too_large_learning_rate_diverges_or_collapses(environment: str, rate: str, tmp_path: Path) -> None:
    words = [
        *("train", "cartpole", f"optimizer.learning_rate={rate}", "optimizer.max_grad_norm=null", "--run-dir", "run"),
        *(f"env.id={environment}".split()),
        *("rollout.episodes=4", "env.num_envs=4", "env.max_episode_steps=20", "training.iterations=6"),
        *("evaluation.episodes=2", "evaluation.every=1", "evaluation.stop_at_return=null"),
    ]
    done = pgcli(*words, cwd=tmp_path, code=0 if environment == "CartPole-v1" else 5)
    if environment == "CartPole-v1":  # logits far apart are finite
        assert "note: the entropy fell to" in done.stderr
    else:
        assert "in iteration" in done.stderr
        status = json.loads((tmp_path / "run/status.json").read_text())
        assert status["status"] == "diverged"
        assert os.listdir(tmp_path / "run/checkpoints")


@pytest.mark.parametrize(("rate", "notices"), [(1e6, 1), (1e-3, 0)])
def test_a_policy_that_stops_exploring_is_reported_once(rate: float, notices: int, tmp_path: Path) -> None:
    settings = config(
        env={"num_envs": 4},
        rollout={"episodes": 4},
        policy={"hidden_sizes": [4]},
        optimizer={"learning_rate": rate},
        training={"iterations": 5},
        evaluation={"every": None, "episodes": 1},
    )
    records: list[Record] = []
    run_experiment(Request(settings, Path("run"), [], folder=tmp_path), Context(records.append))
    told = [record.text for record in records if isinstance(record, Notice)]
    assert len(told) == notices
    assert all("the entropy fell to" in text and "algorithm.entropy_coef" in text for text in told)
