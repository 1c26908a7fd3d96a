"""A registered reward threshold applies to the registered environment only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from helpers import config

from pgcli.environments.registry import reward_threshold

SCALED: dict[str, Any] = {"name": "evaluation_worlds:Hundred"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"id": "CartPole-v1"}, 475),
        ({"id": "CartPole-v1", "wrappers": [SCALED]}, None),
        ({"id": "CartPole-v1", "wrappers": [{"name": "ClipReward", "kwargs": {"max_reward": 1}}]}, None),
        ({"id": "CartPole-v1", "wrappers": [{"name": "TimeLimit", "kwargs": {"max_episode_steps": 9}}]}, None),
        ({"id": "CartPole-v1", "wrappers": [{"name": "FlattenObservation"}]}, 475),
        ({"id": "CartPole-v1", "wrappers": [{"name": "FrameStackObservation", "kwargs": {"stack_size": 2}}]}, 475),
        ({"id": "CartPole-v1", "wrappers": [{"name": "FlattenObservation"}, SCALED]}, None),
        ({"id": "CartPole-v1", "wrappers": [{"name": "evaluation_worlds:Wider"}]}, 475),
        ({"id": "CartPole-v1", "max_episode_steps": 500}, 475),
        ({"id": "CartPole-v1", "max_episode_steps": 300}, None),
        ({"id": "CartPole-v1", "max_episode_steps": 200}, 195),  # which is CartPole-v0
        ({"id": "CartPole-v1", "kwargs": {"sutton_barto_reward": True}}, None),
        ({"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}}, None),
        ({"id": "FrozenLake-v1", "kwargs": {"map_name": "4x4"}}, 0.7),
        ({"id": "Pendulum-v1"}, None),
        ({"id": "evaluation_worlds:Curriculum"}, None),
    ],
)
def test_a_threshold_requires_unchanged_rewards_arguments_and_limits(
    env: dict[str, Any], expected: float | None
) -> None:
    assert reward_threshold(config(env=env).env) == expected


def test_commands_report_the_threshold_of_the_environment_of_evaluations(tmp_path: Path) -> None:
    small = ("rollout.episodes=2", "training.iterations=1", "evaluation.episodes=2", "evaluation.stop_at_return=null")
    changed = ("env.wrappers=[{name: ClipReward, kwargs: {max_reward: 0.5}}]",)
    for name, words in {"plain": (), "changed": changed, "own": (*changed, "evaluation.env.wrappers=[]")}.items():
        pgcli("train", "cartpole", *small, *words, "--run-dir", name, cwd=tmp_path)
        expected = None if name == "changed" else 475
        shown = pgcli("show", name, "--json", cwd=tmp_path)
        assert json.loads(shown.stdout)["threshold"] == expected
    text = pgcli("doctor", "cartpole", *small, *changed, cwd=tmp_path).stdout
    assert "no threshold: the registered 475" in text
    doctor = json.loads(pgcli("doctor", "cartpole", *small, *words, "--json", cwd=tmp_path).stdout)
    assert doctor["reward_threshold"] == 475
    assert any("evaluation.env.wrappers" in finding["text"] for finding in doctor["findings"])
    pgcli("resume", "own", "evaluation.env.wrappers=null", "training.iterations=2", cwd=tmp_path)
    assert json.loads(pgcli("show", "own", "--json", cwd=tmp_path).stdout)["threshold"] is None
