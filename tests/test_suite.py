"""Suites: configs on several environments, with normalised scores over tasks and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from test_cli import rows

from pgcli.errors import ConfigError, PgcliError, UsageError
from pgcli.studies.suite import is_suite, plan_suite, read_suite
from pgcli.studies.suite_report import write_suite

SUITE = """\
configs: [cartpole/rloo, cartpole/reinforce]
environments:
  CartPole-v1:
  Acrobot-v1: {env.max_episode_steps: 30, training.env_steps: 400}
settings:
  {training.env_steps: 300, rollout.episodes: 4, env.num_envs: 4, "policy.hidden_sizes": [4], evaluation.episodes: 4}
seeds: 0-1
scores: {CartPole-v1: [0, 100], Acrobot-v1: [-31, 0]}
"""


def result(values: Mapping[str, list[float]], first: float) -> dict[str, Any]:
    """Return the result of one task: final returns by variant; untrained policies have the return `first`."""
    runs = [
        {"arm": label, "final_return": value, "first_evaluation": first}
        for label, one in values.items()
        for value in one
    ]
    arms = [{"arm": label, "iqm": sorted(one)[1]} for label, one in values.items()]  # of three seeds: never read else
    return {"column": "return_mean", "arms": arms, "runs": runs}


def test_scores_are_normalised_and_aggregated_over_tasks_and_seeds(tmp_path: Path) -> None:
    """On the first task b has the reference, 110; on the second it is given: [-10, 0]."""
    one = result({"a": [10, 60, 110], "b": [110, 110, 110]}, 10)
    two = result({"a": [-10, -5, 0], "b": [-5, -5, -5]}, -9)
    found = write_suite(tmp_path, "s", {"one": one, "two": two}, {"two": (-10, 0)}, ["compare", "s.yaml"])
    assert [(row["random"], row["reference"], row["measured"]) for row in found["tasks"][::2]] == [
        (10, 110, True),
        (-10, 0, False),
    ]
    a, b = found["arms"]
    assert (a["runs"], a["mean"], a["iqm"]) == (6, 0.5, 0.5)  # 0, ½, 1 on both: the middle four are 0, ½, ½, 1
    assert (b["mean"], b["iqm"]) == (0.75, 0.75)  # 1, 1, 1, ½, ½, ½
    assert b["mean_low"] == b["mean_high"] == 0.75  # no seed differs within a task
    assert 0 < a["iqm_low"] < 0.5 < a["iqm_high"] < 1
    assert found["pairs"][0]["improvement"] == pytest.approx((0.5 / 3 + 0.5) / 2)  # U / n² of each task
    above_half = [point["share"] for point in found["profile"] if point["arm"] == "b" and 0.5 < point["threshold"] < 1]
    assert set(above_half) == {0.5}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.md", "report.json", "profiles.png", "arms.csv", "pairs.csv", "tasks.csv", "profile.csv")
    }
    flat = result({"a": [5, 5, 5], "b": [5, 5, 5]}, 10)
    with pytest.raises(UsageError, match="no variant ends above the untrained policies"):
        write_suite(tmp_path, "s", {"one": flat}, {}, ["compare"])


def test_a_suite_trains_every_config_on_every_environment(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(SUITE)
    found = json.loads(pgcli("compare", "two.yaml", "--jobs", "2", "-q", "--json", cwd=tmp_path).stdout)
    assert [arm["runs"] for arm in found["arms"]] == [4, 4]
    home = tmp_path / "runs/two-compare"
    assert len(list(home.glob("*/runs/*/seed-*/metrics.csv"))) == 8
    runs = rows(home / "Acrobot-v1/runs.csv")
    assert {int(run["env_steps"]) >= 400 for run in runs} == {True}
    score = [(float(run["final_return"]) + 31) / 31 for run in runs if run["arm"] == "cartpole/rloo"]
    task = next(row for row in found["tasks"] if (row["task"], row["arm"]) == ("Acrobot-v1", "cartpole/rloo"))
    assert task["score"] == pytest.approx(sum(score) / 2)
    again = pgcli("compare", "two.yaml", cwd=tmp_path)
    assert again.stdout.splitlines()[0] == "runs/two-compare"
    assert "P(cartpole/rloo > cartpole/reinforce) over tasks and seeds" in again.stdout
    assert "(profiles.png)" in (home / "report.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds:", "sedes:", "did you mean `seeds`?"),
        ("[cartpole/rloo, cartpole/reinforce]", "3", "`configs`"),
        ("[0, 100]", "[100, 0]", "the reference must be above"),
        ("[0, 100]", "[1]", "`scores.CartPole-v1`"),
        ("scores: {CartPole-v1", "scores: {CartPol-v1", "did you mean `CartPole-v1`?"),
        ("  CartPole-v1:\n", "  CartPole-v1: 3\n", "`environments.CartPole-v1`"),
        ("rollout.episodes: 4", "rollout.episods: 4", "did you mean `rollout.episodes`?"),
        ("cartpole/rloo,", "", "nothing to compare"),
        ("0-1", "1-0-1", "--seeds"),
    ],
)
def test_a_mistake_in_a_suite_is_named(old: str, new: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    assert old in SUITE
    file.write_text(SUITE.replace(old, new))
    assert is_suite(str(file))
    with pytest.raises(PgcliError) as error:
        plan_suite(read_suite([str(file)]), [], None, tmp_path)
    assert told in str(error.value)
    assert error.value.exit_code == ConfigError.exit_code


def test_a_suite_is_compared_alone(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    done = pgcli("compare", "s.yaml", "cartpole/ppo", cwd=tmp_path, code=2)
    assert "a suite is compared alone" in done.stderr
