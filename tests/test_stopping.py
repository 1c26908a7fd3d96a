"""Early stopping: when a run ends, its files, and equal results after kill and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from helpers import config
from test_cli import contents, rows
from test_evaluation_env import HERE, WORLDS

from pgcli.config import load_config
from pgcli.errors import ConfigError
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment
from pgcli.records import Evaluation, Record, Sample
from pgcli.training.stopping import Stopping, stop_reason

SMALL = (
    *("rollout.episodes=3", "env.num_envs=3", "policy.hidden_sizes=[4]", "training.iterations=9", "checkpoint.every=2"),
    *("evaluation.every=1", "evaluation.episodes=3", "evaluation.stop_at_return=null"),
)


def evaluation(number: int, mean: float, **info: float) -> Evaluation:
    return Evaluation(number, 0, "sampled", Sample(1, mean, None, None, mean, mean, mean), 1.0, mean, 0.0, info)


def stops_at(means: list[float], resumed: int = 0, **settings: Any) -> tuple[int | None, str]:
    """Return the evaluation and rule that end a run, if it is resumed before one of them."""
    stopping = Stopping(config(evaluation=settings).evaluation, [{"return_mean": mean} for mean in means[:resumed]])
    for number, mean in list(enumerate(means))[resumed:]:
        if rule := stopping.add(evaluation(number, mean)):
            return number, rule
    return None, ""


@pytest.mark.parametrize(
    ("means", "settings", "expected"),
    [
        ([1, 5, 4, 5, 6], {"stop_at_return": 5}, (1, "goal")),
        ([1, 5, 4, 5, 6], {"stop_at_return": 5, "stop_evaluations": 2}, (4, "goal")),
        ([1, 5, 4, 5, 4], {"stop_at_return": 5, "stop_evaluations": 2}, (None, "")),
        ([1, 5, 5, 5, 6], {"patience": 2}, (3, "patience")),
        ([1, 5, 5, 6, 6, 4], {"patience": 2}, (5, "patience")),
        ([3, 2, 4, 3, 5], {"patience": 2}, (None, "")),
        ([-3, -4, -5], {"patience": 2}, (2, "patience")),
        ([5, 4, 5, 5], {"patience": 3, "stop_at_return": 5, "stop_evaluations": 2}, (3, "goal")),
        ([1, 2, 3], {}, (None, "")),
    ],
)
def test_a_rule_counts_evaluations_in_a_row(
    means: list[float], settings: dict[str, Any], expected: tuple[int | None, str]
) -> None:
    assert stops_at(means, **settings) == expected
    last = len(means) if expected[0] is None else expected[0]
    assert {stops_at(means, resumed, **settings) for resumed in range(last + 1)} == {expected}


def test_several_goals_must_be_reached_together() -> None:
    settings = config(evaluation={"stop_at_return": 5.0, "stop_at": {"is_success": 0.9, "length_mean": 1.0}}).evaluation
    stopping = Stopping(settings)
    assert [stopping.add(evaluation(0, 5)), stopping.add(evaluation(1, 4, is_success=1.0))] == ["", ""]
    assert stopping.add(evaluation(2, 5, is_success=0.9)) == "goal"
    assert stop_reason(settings, "goal") == ("stopped early: mean return ≥ 5 and is_success ≥ 0.9 and length_mean ≥ 1")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"stop_evaluations": 2}, "evaluation.stop_evaluations"),
        ({"patience": 2, "every": None}, "evaluation.patience"),
        ({"stop_at": {"is_success": 1.0}, "every": None}, "evaluation.stop_at"),
    ],
)
def test_a_rule_without_effect_is_rejected(settings: dict[str, Any], key: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"evaluation": settings}))
    with pytest.raises(ConfigError, match=key):
        load_config(str(file))


GOAL = ("evaluation.stop_at_return=20", "evaluation.stop_evaluations=2", "optimizer.learning_rate=0.03")


def test_a_stopped_run_ends_with_an_evaluation_of_fresh_episodes(tmp_path: Path) -> None:
    done = pgcli("train", "cartpole", *SMALL, *GOAL, "training.iterations=60", "--run-dir", "run", cwd=tmp_path)
    reason = "stopped early: mean return ≥ 20 in 2 evaluations"
    assert json.loads((tmp_path / "run/status.json").read_text())["reason"] == reason
    assert reason in done.stderr
    *_, before, ended, fresh = rows(tmp_path / "run/evaluations.csv")
    assert [row["stopped_by"] for row in (before, ended, fresh)] == ["", "", "goal"]
    assert min(float(before["return_mean"]), float(ended["return_mean"])) >= 20
    assert (fresh["iteration"], fresh["env_steps"]) == (ended["iteration"], ended["env_steps"])
    assert fresh["return_mean"] != ended["return_mean"], "the episodes are others"
    shown = json.loads(pgcli("show", "run", "--json", cwd=tmp_path).stdout)
    assert shown["evaluation"]["return_mean"] == float(fresh["return_mean"])
    pgcli("plot", "run", "-o", "curve.csv", cwd=tmp_path)
    assert rows(tmp_path / "curve.csv")[-1]["center"] == fresh["return_mean"]
    verified = pgcli("verify", "run", "--all", cwd=tmp_path).stdout
    assert "best.json" not in verified


def test_the_best_checkpoint_is_chosen_without_the_evaluation_after_the_stop(tmp_path: Path) -> None:
    pgcli("train", "cartpole", *SMALL, "evaluation.patience=2", "--run-dir", "run", cwd=tmp_path)
    evaluations = rows(tmp_path / "run/evaluations.csv")
    assert evaluations[-1]["stopped_by"] == "patience"
    scheduled = [float(row["return_mean"]) for row in evaluations[:-1]]
    best = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    assert best["iteration"] == scheduled.index(max(scheduled)) == len(scheduled) - 3


class Killed(BaseException):
    """The immediate end of a process."""


def test_a_run_killed_at_any_record_and_resumed_stops_with_the_same_bytes(tmp_path: Path) -> None:
    settings = load_config("cartpole", [*SMALL, "evaluation.patience=3", f"env.id={WORLDS}:Reporting"])
    run_experiment(Request(settings, tmp_path / "whole", []))
    whole = contents(tmp_path / "whole")
    length = len(whole["evaluations.csv"].splitlines()) + len(whole["metrics.csv"].splitlines()) - 2

    def watch(record: Record) -> None:
        if next(remaining) == 0:
            raise Killed

    for number in range(length):
        path, remaining = tmp_path / f"killed-{number}", iter(range(number, -1, -1))
        with pytest.raises(Killed):
            run_experiment(Request(settings, path, []), Context(watch))
        run_experiment(Request(settings, path, [], resume=True))
        assert contents(path) == whole
    assert length > 8


def test_a_stopped_run_continues_under_other_rules_as_if_it_had_always_had_them(tmp_path: Path) -> None:
    def train(run: str, *words: str) -> None:
        pgcli("train", "cartpole", *SMALL, *words, "--run-dir", run, cwd=tmp_path, PYTHONPATH=HERE)

    train("stopped", "evaluation.patience=2")
    stopped = contents(tmp_path / "stopped")
    done = pgcli("resume", "stopped", cwd=tmp_path)
    assert "already finished: stopped early" in done.stderr
    assert "evaluation.patience=null` uses the rest of the budget" in done.stderr
    again = pgcli("resume", "stopped", "training.iterations=12", cwd=tmp_path)
    assert "stopped early" in again.stderr, "a larger budget is not what ended it"
    assert contents(tmp_path / "stopped")["evaluations.csv"] == stopped["evaluations.csv"]
    pgcli("resume", "stopped", "evaluation.patience=null", "training.iterations=9", cwd=tmp_path)
    train("never")
    never, resumed = contents(tmp_path / "never"), contents(tmp_path / "stopped")
    assert never["evaluations.csv"] == resumed["evaluations.csv"], "the column `stopped_by` goes with the rules"
    assert never["metrics.csv"] == resumed["metrics.csv"]
    pgcli("resume", "never", "evaluation.patience=2", "training.iterations=12", cwd=tmp_path)
    assert rows(tmp_path / "never/evaluations.csv")[0]["stopped_by"] == ""


def test_a_comparison_ignores_stopping_rules(tmp_path: Path) -> None:
    words = (
        "training.iterations=null",
        "training.env_steps=60",
        "evaluation.patience=1",
        "--seeds",
        "0",
        "-o",
        "study",
    )
    done = pgcli("compare", "cartpole", *SMALL, *words, "algorithm.gamma=0.9,1", cwd=tmp_path)
    assert "evaluation.patience is ignored" in done.stderr
    for file in (tmp_path / "study").rglob("evaluations.csv"):
        assert "stopped_by" not in rows(file)[0]
