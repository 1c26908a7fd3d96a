"""`pgcli doctor` on the command line: its findings, and that it leaves no files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from helpers import config
from test_cli import TINY
from test_environments import PATHS

from pgcli.config.schema import Config
from pgcli.inspection import doctor
from pgcli.inspection.doctor import diagnose, diagnosis_text

SEGMENTS = {"rollout": {"episodes": None, "steps": 8}, "algorithm": {"baseline": "value", "returns": "lambda_return"}}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SPEED_SECONDS", 0.02)


def settings(env_id: str, **sections: Any) -> Config:
    env = {"id": env_id, "num_envs": 4} | sections.pop("env", {})
    small: dict[str, Any] = {"rollout": {"episodes": 6}, "policy": {"hidden_sizes": [8]}}
    small |= {"training": {"iterations": 20}, "evaluation": {"every": None, "episodes": 5}}
    return config(env=env, **(small | sections))


def findings(result: dict[str, Any], *levels: str) -> list[tuple[str, str]]:
    return [(one["text"], one["key"]) for one in result["findings"] if one["level"] in (levels or ("note", "warning"))]


def test_a_config_is_examined_and_nothing_is_written(tmp_path: Path) -> None:
    done = pgcli("doctor", "cartpole", *TINY, cwd=tmp_path)
    assert not list(tmp_path.iterdir())
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "CartPole-v1"
    assert max(map(len, lines)) <= 80
    for words in ("Box (4,) float32", "Discrete 2", "at most 500 steps", "a return of 475", "vectorized", "58 param"):
        assert words in done.stdout
    assert not [line for line in lines if line.startswith(("note", "warning"))]


def test_json_output_has_the_same_content(tmp_path: Path) -> None:
    segments = ["rollout={episodes: null, steps: 8}", "algorithm={baseline: value, returns: lambda_return}"]
    done = pgcli("doctor", "cartpole", *TINY, *segments, "env.id=Pendulum-v1", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert result["observation"][0]["shape"] == [3]
    assert (result["action"]["low"], result["action"]["high"]) == (-2, 2)
    assert result["policy_parameters"] == 3 * 8 + 8 + 8 + 1 + 1, "one hidden layer, one mean, one standard deviation"
    assert result["value_parameters"] == 3 * 8 + 8 + 8 + 1
    assert result["vectorization"] == "numpy"
    assert result["steps_per_iteration"] == 4 * 8
    assert result["time_limit"] == 200
    assert result["deterministic"]
    assert not result["remembers"]
    assert result["run_seconds"] > 0
    assert 10_000 < result["run_bytes"] < 1_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such.yaml"], 2, "no such file"),
        (["cartpole", "env.id=CartPole-v9"], 3, "did you mean `CartPole-v1`"),
        (["cartpole", "env.kwargs.zzz=1"], 2, "no parameter `zzz`"),
        (["cartpole", "env.id=worlds:World", "env.kwargs={fault: error, at: 3}"], 3, "the motor is on fire"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_that_ends_a_run_also_ends_the_doctor(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    done = pgcli("doctor", *arguments, cwd=tmp_path, code=code, PYTHONPATH=PATHS)
    assert words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_doctor_detects_the_memory_of_bipedal_walker() -> None:
    covered = diagnose(settings("BipedalWalker-v3"))
    assert covered["remembers"]
    assert covered["rebuild"]
    assert any("builds a new one" in text for text, _ in findings(covered, "ok"))
    bare = diagnose(settings("BipedalWalker-v3", env={"rebuild": False}))
    assert [key for text, key in findings(bare, "warning") if "carry state" in text] == ["env.rebuild=true"]


FINDINGS: list[tuple[Config, str, str]] = [
    (settings("Mindful-v0"), "instances carry state over from past episodes", "env.rebuild=true"),
    (settings("Moody-v0"), "not deterministic", ""),
    (settings("Stubborn-v0"), "the seed has no effect", ""),
    (settings("Endless-v0"), "no time limit", "env.max_episode_steps=1000"),
    (settings("Continuous-v0"), "observations reach 3000", "policy.normalize_obs=true"),
    (settings("Continuous-v0"), "actions range from 0 to 500", "RescaleAction"),
    (
        settings("Acrobot-v1", env={"wrappers": ["worlds:thousandfold"]}, **SEGMENTS),
        "rewards reach 1000",
        "normalize_ret",
    ),
    (settings("World-v0", env={"kwargs": {"fault": "far obs"}}), "observation of 7 outside the bounds", ""),
    (settings("World-v0"), "World-v0 is out of date", ""),
    (settings("World-v2", evaluation={"every": 1, "episodes": 200}), "evaluation takes", "evaluation.every=10"),
]


@pytest.mark.parametrize(("case", "text", "key"), FINDINGS, ids=[text for _, text, _ in FINDINGS])
def test_a_weak_config_is_reported_with_the_key_that_fixes_it(case: Config, text: str, key: str) -> None:
    result = diagnose(case)
    found = [fix for what, fix in findings(result) if text in what]
    assert len(found) == 1, result["findings"]
    assert key in found[0]
    assert bool(key) == bool(found[0])
    assert text[:40] in " ".join(diagnosis_text(result).split())


@pytest.mark.parametrize(
    "case",
    [
        settings("World-v2"),
        settings("Pendulum-v1", policy={"normalize_obs": True}, **SEGMENTS),
        settings("Continuous-v0", policy={"normalize_obs": True, "distribution": "tanh_gaussian"}),
        settings("FrozenLake-v1"),
    ],
    ids=lambda case: case.env.id,
)
def test_a_sound_config_has_no_findings(case: Config) -> None:
    assert findings(diagnose(case)) == []


def test_a_reused_buffer_and_a_mask_are_detected() -> None:
    assert any("observation buffer" in text for text, _ in findings(diagnose(settings("Continuous-v0")), "ok"))
    fresh = settings("Continuous-v0", env={"kwargs": {"buffered": False}})
    assert not any("observation buffer" in text for text, _ in findings(diagnose(fresh), "ok"))
    masked = diagnose(settings("Masked-v0"))
    assert masked["action_mask"]
    assert "with a mask" in diagnosis_text(masked)
    assert findings(masked) == []


def test_a_slow_iteration_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "COLLECTING_SECONDS", 0.05)
    long = {"rollout": {"episodes": None, "steps": 10**6}}
    result = diagnose(settings("World-v2", **(SEGMENTS | long), training={"iterations": 3}))
    assert result["steps_per_iteration"] == 4 * 10**6
    assert result["collect_seconds"] > 1
    assert result["update_seconds"] > 1
    assert result["run_seconds"] == pytest.approx(
        3 * (result["collect_seconds"] + result["update_seconds"]) + result["evaluate_seconds"]
    )
    assert any("times are extrapolated" in text for text, _ in findings(result, "note"))


def test_the_batch_and_the_budget_are_those_of_the_config() -> None:
    clip = {"objective": "clip", "update_epochs": 3, "num_minibatches": 2}
    case = settings("World-v2", algorithm=clip, training={"env_steps": 1300})
    result = diagnose(case)
    assert result["steps_per_iteration"] == 6 * 20
    assert result["minibatch_steps"] == 60
    assert result["optimizer_steps_per_iteration"] == 6
    assert result["iterations"] == 11
    assert "120 steps of 6 episodes; 6 optimizer steps of 60" in diagnosis_text(result)
