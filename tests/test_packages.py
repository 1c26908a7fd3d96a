"""Third-party packages on the command line: train, resume, evaluate, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import pgcli
from helpers import mostly_slow
from test_cli import contents

from pgcli.config import Config, to_data

SMALL = ["training.iterations=2", "evaluation.episodes=1", "evaluation.every=null", "--quiet"]
SEGMENTS = ["rollout={episodes: null, steps: 16}", "algorithm={returns: lambda_return, baseline: value}"]
EPISODES = ["rollout.episodes=2"]
IMAGE = "env.wrappers=[{name: FilterObservation, kwargs: {filter_keys: [image, direction]}}]"
ATARI = [
    "env.kwargs={frameskip: 1}",
    "env.wrappers=[{name: AtariPreprocessing, kwargs: {noop_max: 4}}, "
    "{name: ResizeObservation, kwargs: {shape: [36, 36]}}, {name: FrameStackObservation, kwargs: {stack_size: 2}}]",
    "env.max_episode_steps=40",
]

# What a stranger's environment brings: spaces, types of rewards, no render mode, no time limit, its own namespace.
STRANGERS = {
    "a Dict with a text left out": ["minigrid:MiniGrid-DoorKey-5x5-v0", IMAGE, *SEGMENTS],
    "a wrapper of the package": [
        "minigrid:MiniGrid-Empty-5x5-v0",
        "env.wrappers=['minigrid.wrappers:ImgObsWrapper']",
        *EPISODES,
    ],
    "a Tuple, with memory": ["popgym:popgym-AutoencodeEasy-v0", "policy.memory=lstm", *SEGMENTS],
    "counts observed": ["popgym:popgym-ConcentrationEasy-v0", "policy.memory=gru", *EPISODES],
    "counts chosen": ["popgym:popgym-BattleshipEasy-v0", *SEGMENTS],
    "goals in float64": ["highway_env:parking-v0", "policy.normalize_obs=true", "rollout.horizon=20", *EPISODES],
    "a table that is no image": ["highway_env:highway-fast-v0", "rollout.horizon=5", *EPISODES],
    "Atari without naming its package": ["ALE/Pong-v5", *ATARI, *SEGMENTS],
}


def train(folder: Path, env_id: str, *settings: str) -> Path:
    """Train into `folder`, and return it."""
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump({"name": "run", "env": {"id": env_id, "num_envs": 2}}))
    pgcli("train", config, *settings, "--run-dir", folder, cwd=folder.parent)
    return folder


@pytest.mark.parametrize("name", mostly_slow(STRANGERS, ["counts chosen", "goals in float64"], "trains many packages"))
def test_a_third_party_environment_trains_and_resumes_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    env_id, *settings = STRANGERS[name]
    whole = train(tmp_path / "whole", env_id, *settings, *SMALL)
    parts = train(tmp_path / "parts", env_id, *settings, *SMALL, "training.iterations=1")
    pgcli("resume", parts, "training.iterations=2", "--quiet", cwd=tmp_path)
    before, after = contents(whole), contents(parts)
    for file in ("metrics.csv", "episodes.csv", "iteration-000002.safetensors"):
        assert before[file] == after[file], file
    assert json.loads((parts / "run.json").read_text())["exact"] is True


def test_a_third_party_module_needs_trust_for_an_evaluation(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *STRANGERS["a Dict with a text left out"], *SMALL)
    refused = pgcli("eval", run, cwd=tmp_path, code=3)
    assert "minigrid" in refused.stderr
    assert "--trust" in refused.stderr
    shown = pgcli(
        "eval", run, "--trust", "--episodes", "2", "--horizon", "9", "--json", "--video", "agent.gif", cwd=tmp_path
    )
    assert json.loads(shown.stdout)["episodes"] == 2
    assert (tmp_path / "agent.gif").read_bytes().startswith(b"GIF89a")


@pytest.fixture(scope="module")
def atari(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in an Atari game."""
    return train(tmp_path_factory.mktemp("atari") / "run", *STRANGERS["Atari without naming its package"], *SMALL)


def test_atari_needs_no_trust(atari: Path) -> None:
    assert json.loads(pgcli("eval", atari, "--episodes", "1", "--json", cwd=atari).stdout)["mean_length"] == 10, (
        "of four frames"
    )


def test_text_parts_are_rejected_with_a_filter_for_the_others(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"env": {"id": "minigrid:MiniGrid-Empty-5x5-v0"}}))
    refused = pgcli("train", config, cwd=tmp_path, code=3)
    assert "MissionSpace at ['mission']" in refused.stderr
    assert "filter_keys: [direction, image]" in refused.stderr


def test_a_third_party_config_is_complete(atari: Path) -> None:
    stored = yaml.safe_load((atari / "config.yaml").read_text())
    assert stored["env"]["wrappers"][1] == {"name": "ResizeObservation", "kwargs": {"shape": [36, 36]}}
    assert stored.keys() == to_data(Config()).keys()
