"""`pgcli tune`: what is searched is found, nothing is lost, and mistakes are explained."""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Command, pgcli
from optuna.trial import TrialState, create_trial

from pgcli.config import load_config
from pgcli.errors import ConfigError, PgcliError, RunDirectoryError, UsageError
from pgcli.experiment.run import Request, run_experiment
from pgcli.studies.search import Search, check_folder, plan_search
from pgcli.studies.search_report import best_of
from pgcli.studies.spaces import Choices, Interval, Space, grid_point, grid_size, parse_space
from pgcli.studies.summaries import read_run
from pgcli.studies.trials import Trials, importances, open_trials

WORLD = """\
name: target
env: {id: "search_worlds:Target", num_envs: 16, max_episode_steps: 5}
rollout: {episodes: 64}
policy: {hidden_sizes: [], initial_standard_deviation: 0.1}
algorithm: {returns: total, baseline: mean, gamma: 1}
optimizer: {name: sgd, learning_rate: 0.01}
training: {env_steps: 64}
evaluation: {every: 1, episodes: 4, mode: greedy}
"""
RATE = "optimizer.learning_rate=0.01..10:log"
HERE = str(ROOT / "tests")


def planned(folder: Path, *words: str, **more: Any) -> Search:
    """Plan a search of CartPole's learning rate, or of other words."""
    wanted: dict[str, Any] = {"seeds": [100], "trials": 4, "sampler": "tpe", "pruner": "none", "y": "return_mean"}
    words = words or ("optimizer.learning_rate=0.01..1:log", "training.env_steps=100")
    return plan_search("cartpole", words, folder=folder, **(wanted | more))


def tune(*words: object, cwd: Path, code: int | None = 0, **more: Any) -> Any:
    """Run a search of the world's learning rate in the folder `out`."""
    (cwd / "world.yaml").write_text(WORLD)
    return pgcli(*command(*words), cwd=cwd, code=code, PYTHONPATH=HERE, **more)


def command(*words: object) -> list[object]:
    return ["tune", "world.yaml", RATE, "--seeds", "100", "--confirm", "0", "--pruner", "none", "-o", "out", *words]


def ended(folder: Path) -> list[dict[str, str]]:
    """Return the table of the trials of a search."""
    with (folder / "out/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Spaces


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("1e-4..1e-1:log", Interval(1e-4, 0.1, log=True)),
        ("0.8..1", Interval(0.8, 1)),
        ("-2..2", Interval(-2, 2)),
        (".5..1.5:step=.25", Interval(0.5, 1.5, step=0.25)),
        ("8..64:step=8", Interval(8, 64, step=8)),
        ("[16],[64,64]", Choices(("[16]", "[64,64]"))),
        ("none,mean", Choices(("none", "mean"))),
        ("0.5", None),
        ("../my.py:World", None),
        ("{a: [1..2]}", None),
    ],
)
def test_spaces_are_parsed(text: str, space: Interval | Choices | None) -> None:
    assert parse_space("a.b", text) == space


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1e-4..x", "not a space"),
        ("..1", "not a space"),
        ("1..2..3", "not a space"),
        ("1...2", "not a space"),
        ("nan..1", "not a space"),
        ("1e-4-1e-1:log", "not a space"),
        ("1e-4:log", "not a space"),
        ("1..2,5", "not a space"),
        ("1..2:lg", "neither :log nor :step"),
        ("1..2:", "neither :log nor :step"),
        ("1..2:log:log", "neither :log nor :step"),
        ("2..1", "must be below"),
        ("1..1", "must be below"),
        ("1..1e999", "must be below"),
        ("0..1:log", "above 0"),
        ("1..9:log:step=2", "no steps"),
        ("1..9:step=0", "at most 8"),
        ("1..9:step=9", "at most 8"),
        ("a,b,a", "a occurs twice"),
        ("a,,b", "empty value"),
    ],
)
def test_a_space_that_cannot_be_parsed_is_rejected_with_a_hint(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as error:
        parse_space("a.b", text)
    assert error.value.hint


def test_the_type_of_a_key_decides_whether_its_numbers_are_whole(tmp_path: Path) -> None:
    search = planned(
        tmp_path,
        *(
            "env.num_envs=8..64",
            "algorithm.gamma=0..1",
            "rollout.episodes=4..30:step=8",
            "optimizer.epsilon=1e-8..1:log",
        ),
        "training.env_steps=100",
    )
    assert {key: space.text for key, space in search.spaces.items()} == {
        "algorithm.gamma": "0.0..1.0",
        "env.num_envs": "8..64",
        "optimizer.epsilon": "1e-08..1.0:log",
        "rollout.episodes": "4..28:step=8",
    }


def test_sampled_numbers_have_few_digits_and_stay_in_their_interval() -> None:
    draw = random.Random(1)
    for space in (Interval(0.1234567, 9, log=True), Interval(0.8, 0.99999), Interval(1000.0, 1000.01, log=True)):
        values = {space.rounded(draw.uniform(space.low, space.high)) for _ in range(300)}
        assert all(space.low <= value <= space.high for value in values if not isinstance(value, str))
        assert len(values) > 50
        assert max(len(f"{value}") for value in values) <= 10


def test_a_grid_has_each_combination_once() -> None:
    spaces: dict[str, Space] = {
        "a": Choices(("x", "y")),
        "b": Interval(1, 7, step=3, whole=True),
        "c": Interval(0.0, 1.0, step=0.5),
    }
    points = [tuple(grid_point(spaces, number).values()) for number in range(grid_size(spaces))]
    assert points[:4] == [("x", 1, 0.0), ("x", 1, 0.5), ("x", 1, 1.0), ("x", 4, 0.0)]
    assert len(set(points)) == 2 * 3 * 3
    with pytest.raises(UsageError, match=r"`d=0\.1\.\.1` is continuous"):
        grid_size(spaces | {"d": Interval(0.1, 1)})


# The plan


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["training.env_steps=100"], "nothing to search"),
        (["optimizer.learning_rat=0.1..1", "training.env_steps=9"], "did you mean `optimizer.learning_rate`"),
        (["algorithm.gamma=0.9..1.5", "training.env_steps=9"], "at most 1"),
        (["policy.activation=tanh,swosh", "training.env_steps=9"], "swosh"),
        (["algorithm.gae_lambda=0.8..1", "training.env_steps=9"], "algorithm.gae_lambda"),  # without effect
        (["algorithm.gamma=0.9..1", "algorithm.gamma=0.5,0.6", "training.env_steps=9"], "twice"),
        (["seed=1..5", "training.env_steps=9"], "--seeds"),
        (["training.env_steps=10..20"], "share budget"),
        (["evaluation.episodes=10..20", "training.env_steps=9"], "share budget"),
        (["env.id=CartPole-v1,Acrobot-v1", "training.env_steps=9"], "changes the task"),
        (["algorithm.gamma=0.9..1"], "training.env_steps=100000"),
        (["rollout.episodes=4..8:step=0.5", "training.env_steps=9"], "whole step"),
        (["algorithm.gamma", "training.env_steps=9", "optimizer.learning_rate=0.1..1"], "KEY=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_search_that_cannot_work_is_rejected_before_it_starts(words: list[str], problem: str) -> None:
    with pytest.raises((UsageError, ConfigError)) as error:
        planned(Path("out"), *words)
    assert problem in str(error.value)
    assert error.value.exit_code == 2


def test_values_that_are_valid_only_together_are_accepted() -> None:
    words = ("algorithm.baseline=mean,value", "algorithm.returns=reward_to_go,lambda_return", "training.env_steps=9")
    search = planned(Path("out"), *words, "algorithm.standardize=none")
    assert list(search.spaces) == ["algorithm.baseline", "algorithm.returns"]
    with pytest.raises(ConfigError):
        search.variant({"algorithm.baseline": "mean", "algorithm.returns": "lambda_return"})


# The trials


@contextmanager
def opened(search: Search) -> Iterator[Trials]:
    search.folder.mkdir(exist_ok=True)
    yield open_trials(search, None)[0]


def drawn(trials: Trials, values: dict[int, float], count: int = 1) -> list[dict[str, Any]]:
    """Claim and end all trials, with a value by number or else a failure; return what was drawn."""
    while claims := trials.claim(count):
        for claim in claims:
            value = values.get(claim.number)
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            trials.finish(claim, state, value, "" if value is not None else "the spring is broken")
            claim.lock.close()
    return [trial.params for trial in trials.all]


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        ("tpe", 3),
        ("grid", 1),
        *(pytest.param(*case, marks=pytest.mark.slow("like tpe in batches")) for case in (("tpe", 1), ("random", 1))),
    ],
)
def test_the_values_of_a_trial_depend_on_the_trials_before_it_only(sampler: str, count: int, tmp_path: Path) -> None:
    rate = "optimizer.learning_rate=0.1..0.9" + (":step=0.1" if sampler == "grid" else ":log")
    words = (rate, "policy.hidden_sizes=[4],[8]", "training.env_steps=99")
    values = {number: float(number % 5) for number in range(14) if number != 3} | {12: 9.0}
    search = planned(tmp_path / "whole", *words, sampler=sampler, trials=14)
    with opened(search) as trials:
        whole = drawn(trials, values, count)
    assert len(whole) == 14
    assert len({str(one) for one in whole}) > 7
    for kept in (1, 13):
        part = replace(search, folder=tmp_path / f"{kept}")
        with opened(replace(part, trials=kept)) as trials:
            drawn(trials, values, count)
        with opened(part) as trials:  # the next process
            assert drawn(trials, values, count) == whole


def test_a_trial_of_a_killed_process_is_continued_and_one_of_another_process_is_not(tmp_path: Path) -> None:
    search = planned(tmp_path / "out", trials=2)
    with opened(search) as mine, opened(search) as theirs:
        (first,) = mine.claim(1)
        (second,) = theirs.claim(1)
        assert (first.number, second.number) == (0, 1)
        assert not mine.claim(1)
        values = theirs.all[1].params
        second.lock.close()  # as the system does when a process is killed
        (again,) = mine.claim(1)
        assert (again.number, mine.all[1].params) == (1, values)
        mine.finish(again, TrialState.COMPLETE, 1.0)
        again.lock.close()
        assert [trial.number for trial in theirs.unfinished] == [0]


def test_a_trial_that_ends_while_a_process_looks_for_one_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(planned(tmp_path / "out", trials=1)) as trials:
        (claim,) = trials.claim(1)
        monkeypatch.setattr(Trials, "unfinished", trials.unfinished)  # as seen before the end
        trials.finish(claim, TrialState.COMPLETE, 1.0)
        claim.lock.close()
        assert trials.claim(1) == []


def test_two_trials_with_equal_values_share_their_runs_in_turn(tmp_path: Path) -> None:
    search = planned(
        tmp_path / "out", "policy.hidden_sizes=[4],[8]", "training.env_steps=9", trials=6, sampler="random"
    )
    with opened(search) as trials:
        found = drawn(trials, dict.fromkeys(range(6), 1.0), count=3)
        assert len(found) == len(trials.all) == 6
        assert {trial.state for trial in trials.all} == {TrialState.COMPLETE}


def test_a_journal_cut_at_any_byte_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    search = planned(tmp_path / "out", trials=3)
    with opened(search) as trials:
        drawn(trials, {0: 1.0, 2: 2.0})
        states = {trial.number: (trial.state, trial.value, trial.params) for trial in trials.all}
    journal = tmp_path / "out/journal.log"
    whole = journal.read_bytes()
    for size in range(0, len(whole) + 1, 29):
        journal.write_bytes(whole[:size])
        trials, notices = open_trials(search, None)
        assert len(notices) == (size > 0 and whole[size - 1 : size] != b"\n"), size
        assert open_trials(search, None)[1] == []
        for trial in trials.all:
            assert trial.params == states[trial.number][2]
            assert trial.state in (TrialState.RUNNING, states[trial.number][0])
    for size in random.Random(0).sample(range(len(whole)), 5):
        journal.write_bytes(whole[:size])
        with opened(search) as trials:
            drawn(trials, {0: 1.0, 2: 2.0})
            assert {one.number: (one.state, one.value, one.params) for one in trials.all} == states


def test_the_incomplete_line_of_a_process_that_was_killed_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    search = planned(tmp_path / "out", trials=2)
    with opened(search) as trials:
        (claim,) = trials.claim(1)
        with (tmp_path / "out/journal.log").open("ab") as file:
            file.write(b'{"op_code":5,"wor')
        trials.finish(claim, TrialState.COMPLETE, 1.0)
        claim.lock.close()
        assert open_trials(search, None)[0].all[0].value == 1.0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"op_code": 0}\nhello\n{"op_code": 0}\n', "line 2 is damaged"),
        (b'{"op_code": 0}\n', "not a journal of Optuna"),
        (b'{"op_code": 99, "worker_id": "x"}\n', "not a journal of Optuna"),
    ],
    ids=["in the middle", "other keys", "unknown operation"],
)
def test_a_damaged_journal_is_not_overwritten(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=problem):
        open_trials(planned(tmp_path), None)
    assert (tmp_path / "journal.log").read_bytes() == content


def test_the_median_pruner_ends_trials_below_the_median_of_complete_ones(tmp_path: Path) -> None:
    search = planned(tmp_path / "out", trials=9, pruner="median", sampler="random")
    assert search.rungs == [25, 50, 75]
    with opened(search) as trials:
        answers = []
        for claim in (claim for _ in range(9) for claim in trials.claim(1)):
            level = float(claim.number) if claim.number < 6 else 2.4 if claim.number % 2 else 2.6
            answers.append([trials.is_worse(claim, {25: level}), trials.is_worse(claim, {25: level, 50: level})])
            worse = any(answers[-1])
            trials.finish(claim, TrialState.PRUNED if worse else TrialState.COMPLETE, None if worse else level)
            claim.lock.close()
    assert answers == [[False, False]] * 7 + [[True, True], [False, False]]  # medians: 2.5 of six, 2.6 of seven


def test_hyperband_prunes_the_same_trials_after_a_kill(tmp_path: Path) -> None:
    """A process that continues a trial beyond both rungs asks at the second one only."""
    found, early = list[list[tuple[TrialState, dict[str, Any]]]](), set[int]()
    for asks in ("twice", "once"):
        search = planned(tmp_path / asks, trials=16, pruner="hyperband", sampler="random")
        assert search.rungs == [11, 33]
        draw = random.Random(3)
        with opened(search) as trials:
            for claim in (claim for _ in range(16) for claim in trials.claim(1)):
                values = {11: draw.random(), 33: draw.random() - 1}
                if asks == "twice" and trials.is_worse(claim, {11: values[11]}):
                    early.add(claim.number)
                worse = trials.is_worse(claim, {11: values[11]} if claim.number in early else values)
                trials.finish(claim, TrialState.PRUNED if worse else TrialState.COMPLETE, None if worse else values[33])
                claim.lock.close()
            found.append([(trial.state, trial.system_attrs) for trial in trials.all])
    assert found[0] == found[1]
    assert 3 < sum(state == TrialState.PRUNED for state, _ in found[0]) < 16


def test_importance_is_that_of_the_key_that_decides(tmp_path: Path) -> None:
    search = planned(tmp_path / "out", trials=40, sampler="random")
    search = replace(search, spaces={"a": Interval(0.0, 1.0), "b": Interval(0.0, 1.0)})
    distributions = {key: space.distribution() for key, space in search.spaces.items()}
    draw = random.Random(0)
    pairs = [(draw.random(), draw.random()) for _ in range(60)]
    trials = [
        create_trial(params={"a": a, "b": b}, distributions=distributions, value=-((a - 0.3) ** 2)) for a, b in pairs
    ]
    found = importances(search, trials)
    assert found["a"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert importances(search, trials[:1]) == {}


# The command


def test_a_run_that_pauses_ends_with_the_bytes_of_one_that_does_not(tmp_path: Path) -> None:
    config = planned(tmp_path, RATE, "training.env_steps=1500", "evaluation.episodes=3", "checkpoint.every=null").start
    run_experiment(Request(config, tmp_path / "whole", []))
    for until in (200, 700, None):
        outcome = run_experiment(Request(config, tmp_path / "parts", [], resume=True, until=until))
        assert outcome.reason.startswith("training.env_steps=1500" if until is None else "paused after ")
        steps = read_run(tmp_path / "parts", 0).steps
        assert steps > (until or 1499)
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_search_finds_the_rate_and_leaves_a_config_figures_and_runs(tmp_path: Path) -> None:
    done = tune("--trials", "5", "--json", cwd=tmp_path)
    result, out = json.loads(done.stdout), tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("study.json", "journal.log", "trials.csv", "best.yaml", "history.png", "importance.png"),
        *("runs", "confirmation", ".lock"),
    }
    assert [row["trial"] for row in result["trials"]] == list(range(5))
    best = max(result["trials"], key=lambda row: row["value"])
    assert (result["best"]["trial"], result["best"]["value"]) == (best["trial"], best["value"])
    assert abs(best["optimizer.learning_rate"] - 0.5) <= min(
        abs(row["optimizer.learning_rate"] - 0.5) for row in result["trials"] if row["optimizer.learning_rate"] < 0.5
    )
    assert result["confirmation"] is None
    assert load_config(str(out / "best.yaml")).optimizer.learning_rate == best["optimizer.learning_rate"]
    run = out / best["runs"] / "seed-100"
    pgcli("train", "out/best.yaml", "seed=100", "--run-dir", "again", cwd=tmp_path, PYTHONPATH=HERE)
    assert (tmp_path / "again/metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()

    again = tune("--trials", "5", "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == result
    assert "runs" not in again.stderr  # nothing was trained
    other = tune("algorithm.gamma=0.5..1", cwd=tmp_path, code=4)
    assert "belongs to another search: `algorithm.gamma` was not searched and is 0.5..1.0" in other.stderr
    assert "hint: " in other.stderr


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_search_continues(tmp_path: Path) -> None:
    done = tune("--trials", "4", "env.kwargs={fails_above: 3}", cwd=tmp_path)
    rows = ended(tmp_path)
    failed = [row for row in rows if row["state"] == "failed"]
    assert 0 < len(failed) < 4
    assert all("the spring is broken" in row["reason"] and float(row["optimizer.learning_rate"]) > 1 for row in failed)
    assert f"{len(failed)} failed" in done.stdout
    hopeless = tune("--trials", "2", "policy.distribution=softmax", "-o", "other", cwd=tmp_path, code=1)
    assert "none of 2 trials is complete: seed 100 failed: " in hopeless.stderr
    assert "hint: " in hopeless.stderr


def test_files_of_other_programs_are_not_replaced(tmp_path: Path) -> None:
    search = planned(tmp_path)
    check_folder(search)
    (tmp_path / "best.yaml").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"contains best\.yaml, which pgcli did not write"):
        check_folder(search)
    (tmp_path / "study.json").write_text('{"pgcli": "1"}')
    with pytest.raises(RunDirectoryError, match="not a study"):
        check_folder(search)


def test_a_search_without_a_complete_trial_has_no_best_one() -> None:
    with pytest.raises(PgcliError, match="none of 0 trials is complete"):
        best_of([])


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'optuna' else find(name, *more)\n"
    )
    done = pgcli("tune", "cartpole", RATE, cwd=tmp_path, code=2, real_process=True, PYTHONPATH=str(tmp_path))
    assert "`pgcli tune` needs the package optuna" in done.stderr
    assert "hint: pip install " in done.stderr


# Interruptions


@pytest.mark.slow("kills several searches")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_search_ends_with_the_trials_of_an_uninterrupted_one(jobs: str, tmp_path: Path) -> None:
    words = ["--trials", "12", "--seeds", "100,101", "--pruner", "median", "training.env_steps=512", "--jobs", jobs]
    (whole := tmp_path / "whole").mkdir()
    began = time.monotonic()
    tune(*words, cwd=whole)
    took = time.monotonic() - began
    expected = ended(whole)
    assert {row["state"] for row in expected} == {"complete", "pruned", "failed"}
    draw, part = random.Random(int(jobs)), tmp_path / "part"
    part.mkdir()
    (part / "world.yaml").write_text(WORLD)
    for _ in range(8):
        killed = Command(*command(*words), cwd=part, PYTHONPATH=HERE)
        if killed.poll(draw.uniform(0, took / 6)) is None:
            killed.send_signal(9)
            killed.wait()
    tune(*words, cwd=part)
    assert ended(part) == expected


@pytest.mark.slow("two searches at a time")
def test_two_processes_in_one_folder_train_each_trial_once(tmp_path: Path) -> None:
    (tmp_path / "world.yaml").write_text(WORLD)
    both = [
        Command(*command("--trials", "12", "--confirm", "2", "--json"), cwd=tmp_path, PYTHONPATH=HERE) for _ in range(2)
    ]
    results = [json.loads(one.finished(200).stdout) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert results[0] == results[1]
    assert [row["trial"] for row in results[0]["trials"]] == list(range(12))
    for path in (tmp_path / "out/runs").glob("*/seed-100"):
        assert "resumes" not in json.loads((path / "run.json").read_text())


@pytest.mark.slow("searches with a database")
def test_a_database_holds_the_trials_of_several_folders(tmp_path: Path) -> None:
    words = ["--trials", "6", "--storage", f"sqlite:///{tmp_path}/search.db"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tune(*words, cwd=tmp_path / name)
    assert len(ended(tmp_path / "a")) == len(ended(tmp_path / "b")) == 6
    assert len(list((tmp_path / "b/out/runs").glob("*"))) <= 1  # all were trained in the other folder
    bad = tune("--storage", "nothing://user:secret@host/x", "-o", "new", cwd=tmp_path, code=2)
    assert "--storage: cannot be opened" in bad.stderr
    assert "secret" not in bad.stderr


@pytest.mark.slow("twenty trials and a comparison")
def test_a_hidden_learning_rate_is_searched_found_and_confirmed(tmp_path: Path) -> None:
    done = tune("--trials", "20", "--seeds", "1-2", "--confirm", "10", "--json", cwd=tmp_path)
    assert load_config(str(tmp_path / "out/best.yaml")).optimizer.learning_rate == pytest.approx(0.5, abs=0.15)
    confirmation = json.loads(done.stdout)["confirmation"]
    assert confirmation["seeds"] == [0, *range(3, 12)]  # without those of the search
    assert "`best` ends above one of `start` with P = 1.00" in confirmation["pairs"][0]["sentence"]
    assert confirmation["pairs"][0]["shown"]
    text = tune("--trials", "20", "--seeds", "1-2", "--confirm", "10", cwd=tmp_path)
    assert "On 10 fresh seeds its mean is " in " ".join(text.stdout.split())


@pytest.mark.slow("three commands on its runs")
def test_other_commands_read_the_runs_of_a_search(tmp_path: Path) -> None:
    tune("--trials", "7", "--pruner", "median", "training.env_steps=512", cwd=tmp_path)
    row = ended(tmp_path)[0]
    run = f"out/{row['runs']}/seed-100"
    pgcli("show", run, cwd=tmp_path, PYTHONPATH=HERE)
    pgcli("verify", run, "--trust", cwd=tmp_path, PYTHONPATH=HERE)
    pgcli("plot", "out/runs", "-o", "a.png", cwd=tmp_path, PYTHONPATH=HERE)
    assert pgcli("ls", "out", cwd=tmp_path, PYTHONPATH=HERE).stdout.count("seed-100") == 7
