"""Suites: configs on several environments, with normalised scores over tasks and seeds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from command_line import pgcli
from test_cli import rows

from pgcli.config import shipped, shipped_configs, shipped_suites
from pgcli.errors import ConfigError, PgcliError, UsageError
from pgcli.studies.execution import plan
from pgcli.studies.suite import names_suite, plan_suite, read_suite
from pgcli.studies.suite_report import overall_rows, write_suite

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


LABELLED = """\
configs:
  plain: {base: mine.yaml, algorithm: {baseline: none}, training.env_steps: 200}
  cartpole/rloo:
environments: [CartPole-v1, Acrobot-v1]
settings: {training: {env_steps: 100}, env.num_envs: 4}
"""


def result(values: Mapping[str, list[float]], first: float) -> dict[str, Any]:
    """Return the result of one task: final returns by variant; untrained policies have the return `first`."""
    runs = [
        {"arm": label, "final_return": value, "first_evaluation": first}
        for label, one in values.items()
        for value in one
    ]
    arms = [
        {"arm": label, **dict.fromkeys(("iqm", "iqm_low", "iqm_high"), sorted(one)[len(one) // 2])}
        for label, one in values.items()
    ]
    return {"column": "return_mean", "env_steps": 100, "arms": arms, "runs": runs}


@pytest.fixture
def page_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the module of `make suites`."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    import suites

    yield suites
    for name in ("suites", "results", "results_page", "results_curves"):
        del sys.modules[name]


def test_the_page_has_a_place_and_the_scores_of_each_shipped_suite(page_writer: ModuleType) -> None:
    page = page_writer.PAGE.read_text()
    for name in shipped_suites():
        page = page_writer.with_section(page, name.removeprefix("suites/"), f"results of {name}")
        assert f"results of {name}" in page
        for env_id, (random, reference) in read_suite([name]).scores.items():
            assert re.search(rf"^\| {env_id} \| {random:g} ± [\d.]+ \| [\d,]+ \| {reference:g} \|", page, re.MULTILINE)
    assert "Not run yet" not in page


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
    single = write_suite(tmp_path, "s", {"one": result({"a": [7], "b": [8]}, 0)}, {"one": (0, 10)}, [])
    assert overall_rows(single)[1] == ["`a`", "1", "0.70", "0.70"]
    fallen = write_suite(tmp_path, "s", {"one": result({"a": [-900, 0, 1], "b": [0, 0, 0]}, 0)}, {"one": (0, 1)}, [])
    assert [fallen["profile"][0][key] for key in ("threshold", "share")] == [-0.5, pytest.approx(2 / 3)]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.md", "report.json", "profiles.png", "arms.csv", "pairs.csv", "tasks.csv", "profile.csv")
    }
    lengths = one | {"column": "length_mean"} | {"runs": [run | {"final_length": 9} for run in two["runs"]]}
    scaled = write_suite(tmp_path, "s", {"one": lengths}, {"one": (-10, 0)}, ["compare"])
    assert scaled["tasks"][0]["random"] == -9, "known scores are returns, not lengths"
    flat = result({"a": [5, 5, 5], "b": [5, 5, 5]}, 10)
    with pytest.raises(UsageError, match="no variant ends above the untrained policies"):
        write_suite(tmp_path, "s", {"one": flat}, {}, ["compare"])


def test_a_suite_trains_every_config_on_every_environment(tmp_path: Path, page_writer: ModuleType) -> None:
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
    assert "cartpole/rloo > cartpole/reinforce  " in again.stdout
    assert "(profiles.png)" in (home / "report.md").read_text()
    assert "| `cartpole/rloo` | 4 |" in page_writer.section("two", home)
    shown = pgcli("show", "runs/two-compare", cwd=tmp_path, code=4)
    assert "name one of its runs: runs/two-compare/Acrobot-v1/runs/" in shown.stderr


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rollout.episodes: 4", "rollout: {episods: 4}", "s.yaml: rollout.episods=4: unknown key"),
        ("  CartPole-v1:\n", "  CartPole-v1: {env.id: Acrobot-v1}\n", "a suite does not use env.id=Acrobot-v1"),
        ("[cartpole/rloo, cartpole/reinforce]", "[cartpole/rloo, cartpole/rloo]", "`cartpole/rloo` occurs twice"),
        ("[cartpole/rloo, cartpole/reinforce]", "[[cartpole/rloo]]", "should be a list of names"),
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
    assert names_suite(str(file))
    with pytest.raises(PgcliError) as error:
        plan_suite(read_suite([str(file)]), [], None, tmp_path)
    problems = error.value.problems if isinstance(error.value, ConfigError) else [error.value]
    assert told in "\n".join(map(str, problems))
    assert error.value.exit_code == ConfigError.exit_code


def test_a_config_has_a_label_and_settings_and_a_file_beside_the_suite_precedes_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LABELLED)
    (tmp_path / "mine.yaml").write_text("{name: mine, env: {num_envs: 2}, rollout: {episodes: 6}}")
    suite = read_suite([str(tmp_path / "s.yaml")])
    with pytest.raises(UsageError, match="CartPole-v1: the variants have unequal numbers of env steps"):
        plan_suite(suite, [], None, tmp_path)  # 200 of `plain`, 100 of the suite
    for env_id, planned in plan_suite(suite, ["training.env_steps=300"], None, tmp_path).items():
        plain, rloo = (variant.config for variant in planned.variants)
        assert [variant.label for variant in planned.variants] == ["plain", "cartpole/rloo"]
        assert (plain.env.id, plain.env.num_envs, plain.rollout.episodes) == (env_id, 4, 6)
        assert (plain.algorithm.baseline, rloo.algorithm.baseline) == ("none", "leave_one_out")
        assert plain.training.env_steps == rloo.training.env_steps == 300


def test_an_environment_that_cannot_be_used_is_reported_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE.replace("Acrobot-v1", "Acrobt-v1"))
    done = pgcli("compare", "s.yaml", "-q", cwd=tmp_path, code=3)
    assert "did you mean `Acrobot-v1`?" in done.stderr
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_opens_with_its_command_and_names_existing_configs_and_environments(
    name: str, tmp_path: Path
) -> None:
    path = shipped_suites()[name]
    first, second, *_ = path.read_text().splitlines()
    assert first == f"# pgcli compare configs/{name}.yaml"
    assert second.startswith("# ")
    assert len(second) < 100  # `pgcli init --list` prints it
    suite = read_suite([name])
    plans = plan_suite(suite, [], None, tmp_path)
    assert plans.keys() == suite.scores.keys() <= set(gymnasium.registry)
    copy = shipped.copy(name, tmp_path)
    assert copy.read_text().splitlines() == [f"# pgcli compare {copy}", *path.read_text().splitlines()[1:]]
    assert read_suite([str(copy)]).environments == suite.environments


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites/classic").mkdir(parents=True)
    assert "CartPole-v1" in plan(["suites/classic"], None, None).comparisons


@pytest.mark.parametrize("command", ["train", "doctor", "check"])
def test_a_suite_is_no_config(command: str, tmp_path: Path) -> None:
    assert not shipped_suites().keys() & shipped_configs().keys()
    done = pgcli(command, "suites/classic", cwd=tmp_path, code=2)
    assert done.stderr.count("error: ") == 1
    assert "classic.yaml: is a suite of several configs" in done.stderr
    assert "`pgcli compare suites/classic`" in done.stderr


def test_a_suite_is_compared_alone(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    done = pgcli("compare", "s.yaml", "cartpole/ppo", cwd=tmp_path, code=2)
    assert "a suite is compared alone" in done.stderr
