"""Evaluation uses its own instances, and its own environment if configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from test_cli import contents, rows

WORLDS = "evaluation_worlds"
HERE = str(Path(__file__).parent)
SMALL = (
    *("rollout.episodes=5", "policy.hidden_sizes=[4]", "training.iterations=3"),
    *("evaluation.episodes=5", "evaluation.stop_at_return=null", f"env.id={WORLDS}:Curriculum"),
)
SEGMENTS = (
    *(
        "env.num_envs=4",
        "rollout.episodes=null",
        "rollout.steps=5",
        "algorithm.baseline=value",
        "algorithm.returns=lambda_return",
    ),
)


def train(run: str, *overrides: str, cwd: Path, code: int = 0) -> str:
    return pgcli("train", "cartpole", *SMALL, *overrides, "--run-dir", run, cwd=cwd, code=code, PYTHONPATH=HERE).stderr


def evaluated(run: str, *words: str, cwd: Path) -> dict[str, Any]:
    done = pgcli("eval", run, *words, "--trust", "--episodes", 4, "--json", cwd=cwd, PYTHONPATH=HERE)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    "how",
    [
        ("env.num_envs=4",),
        ("env.chunk_size=2",),
        SEGMENTS,
        pytest.param(("sampling.workers=2", "env.chunk_size=2"), marks=pytest.mark.slow("starts workers twice")),
    ],
    ids=["whole episodes", "chunks", "segments", "workers"],
)
def test_evaluations_do_not_affect_training_in_an_environment_with_memory(how: tuple[str, ...], tmp_path: Path) -> None:
    for every in ("1", "null"):
        train(every, *how, f"evaluation.every={every}", cwd=tmp_path)
    often, seldom = (contents(tmp_path / every) for every in ("1", "null"))
    assert often["metrics.csv"] == seldom["metrics.csv"]
    assert often["episodes.csv"] == seldom["episodes.csv"]
    returns = [float(row["return"]) for row in rows(tmp_path / "1/episodes.csv")]
    assert returns[0] == 0, "training begins at the first level although an evaluation was played before"


def test_shaped_rewards_stay_in_training(tmp_path: Path) -> None:
    shaped = (f"env.id={WORLDS}:Reporting", f"env.wrappers=[{WORLDS}:Hundred]", "evaluation.env.wrappers=[]")
    train("run", *shaped, cwd=tmp_path)
    assert all(float(row["return_min"]) >= 200 for row in rows(tmp_path / "run/metrics.csv"))
    assert all(float(row["return_mean"]) < 100 for row in rows(tmp_path / "run/evaluations.csv"))
    assert evaluated("run", cwd=tmp_path)["mean_return"] < 100
    done = pgcli("verify", "run", "--all", "--trust", cwd=tmp_path, PYTHONPATH=HERE)
    assert "identical, byte" in done.stdout


def test_null_keys_of_the_evaluation_environment_inherit_trainings(tmp_path: Path) -> None:
    train("run", "env.kwargs={bonus: 7}", "env.max_episode_steps=2", "evaluation.env.max_episode_steps=1", cwd=tmp_path)
    assert {row["length"] for row in rows(tmp_path / "run/episodes.csv")} == {"2"}
    first = rows(tmp_path / "run/evaluations.csv")[0]
    assert (first["length_mean"], float(first["return_mean"]) >= 7) == ("1.0", True)
    train("other", "env.kwargs={bonus: 7}", "evaluation.env.kwargs={bonus: 0}", cwd=tmp_path)
    assert float(rows(tmp_path / "other/evaluations.csv")[0]["return_mean"]) < 7


def test_a_changed_environment_is_evaluated_and_reported(tmp_path: Path) -> None:
    train("run", "env.kwargs={bonus: 7}", "evaluation.env.max_episode_steps=2", cwd=tmp_path)
    plain = evaluated("run", cwd=tmp_path)
    assert (plain["changed"], plain["mean_length"], plain["mean_return"]) == ({}, 2, 14)
    other = evaluated("run", "env.kwargs.bonus=9", "env.max_episode_steps=null", cwd=tmp_path)
    assert other["changed"] == {"env.kwargs.bonus": 9, "env.max_episode_steps": None}
    assert (other["mean_length"], other["mean_return"]) == (3, 27)
    done = pgcli("eval", "run", "env.kwargs.bonus=9", "--trust", cwd=tmp_path, PYTHONPATH=HERE)
    assert "env.kwargs.bonus=9" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("algorithm.gamma=1",), 2, "env.wrappers, env.kwargs, env.max_episode_steps"),
        (("env.id=CartPole-v1",), 2, "env.wrappers, env.kwargs, env.max_episode_steps"),
        (("env.kwargs.bonuss=1",), 2, "has no parameter `bonuss`"),
        ((f"env.wrappers=[{WORLDS}:Wider]",), 2, "observation space"),
        (("env.kwargs.bonus=1", "--replay", "0:0"), 2, "--replay"),
    ],
)
def test_an_evaluation_environment_cannot_change_fixed_keys(
    words: tuple[str, ...], code: int, message: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "refused"
    if not folder.exists():
        folder.mkdir()
        train("run", "training.iterations=1", cwd=folder)
    done = pgcli("eval", "run", *words, "--trust", cwd=folder, code=code, PYTHONPATH=HERE)
    assert done.stderr.count("error:") == 1
    assert message in done.stderr


def test_an_evaluation_environment_with_other_spaces_is_rejected_at_the_start(tmp_path: Path) -> None:
    error = train("run", f"evaluation.env.wrappers=[{WORLDS}:Wider]", cwd=tmp_path, code=2)
    assert error.count("error:") == 1
    assert "observation space" in error
    assert not (tmp_path / "run").exists()


def test_a_module_of_the_evaluation_environment_needs_trust(tmp_path: Path) -> None:
    run = ("env.id=CartPole-v1", f"evaluation.env.wrappers=[{WORLDS}:Hundred]", "evaluation.env.max_episode_steps=3")
    train("run", *run, cwd=tmp_path)
    done = pgcli("eval", "run", cwd=tmp_path, code=3, PYTHONPATH=HERE)
    assert WORLDS in done.stderr
    assert "--trust" in done.stderr
    filmed = evaluated("run", "--video", "film.gif", cwd=tmp_path)
    assert (filmed["video_length"], filmed["video_return"]) == (3, 303), "the film is of the environment of evaluations"
