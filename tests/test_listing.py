"""Runs as things: their default names, `pgcli ls`, tags and notes, `pgcli rm`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import pgcli, whole

from pgcli.config import load_config
from pgcli.config.names import with_run_name
from pgcli.errors import RunDirectoryError, RunInUse, UsageError
from pgcli.runs.information import check_labels
from pgcli.runs.lock import lock
from pgcli.runs.removal import check_removable, remove_runs
from pgcli.studies.listing import list_runs, listing_text

SHORT = ["training.iterations=1", "evaluation.episodes=2"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "cartpole"),
        (["training.iterations=3", "seed=4", "evaluation.every=1", "logging.info=[a]"], "cartpole"),
        (["optimizer.learning_rate=0.120"], "cartpole"),  # that of the file
        (["optimizer.learning_rate=1e-2"], "cartpole,learning_rate=0.01"),
        (["policy.hidden_sizes=[8, 8]", "algorithm.gamma=1"], "cartpole,hidden_sizes=8,8,gamma=1.0"),
        (["env.id=ALE/Pong-v5"], "cartpole,id=ALE_Pong-v5"),
        (["algorithm.gamma=1", "name=mine"], "mine"),
    ],
    ids=str,
)
def test_the_name_of_a_run_lists_the_overrides_of_its_experiment(overrides: list[str], name: str) -> None:
    config = with_run_name(load_config("cartpole", overrides), "cartpole", overrides)
    assert config.name == name


def test_a_long_name_ends_with_a_digest_and_stays_valid() -> None:
    def named(text: str) -> str:
        words = [f"env.kwargs={{text: {'x' * 80}{text}}}"]
        return with_run_name(load_config("cartpole", words), "cartpole", words).name

    assert len(named("a")) == 60
    assert named("a") != named("b")
    assert load_config("cartpole", [f"name={named('a')}"]).name == named("a")


def test_a_changed_key_does_not_collide_with_the_run_of_the_config(tmp_path: Path) -> None:
    changed = ["algorithm.gamma=0.9", *SHORT]
    assert pgcli("train", "cartpole", *SHORT, "-q", cwd=tmp_path).stdout == "runs/cartpole/seed-0\n"
    done = pgcli("train", "cartpole", *changed, "-q", "--tag", "base", "--note", "why not", cwd=tmp_path)
    assert done.stdout == "runs/cartpole,gamma=0.9/seed-0\n"
    assert json.loads((tmp_path / "runs/cartpole,gamma=0.9/seed-0/run.json").read_text())["tags"] == ["base"]
    again = pgcli("train", "cartpole", *changed, "training.iterations=2", "--resume", "--tag", "more", cwd=tmp_path)
    assert again.stdout == done.stdout
    run = json.loads((tmp_path / "runs/cartpole,gamma=0.9/seed-0/run.json").read_text())
    assert (run["tags"], run["note"]) == (["base", "more"], "why not")
    pgcli("verify", "runs/cartpole,gamma=0.9/seed-0", cwd=tmp_path)
    found = json.loads(pgcli("ls", "--json", "--where", "tags=more", cwd=tmp_path).stdout)["runs"]
    assert [(row["run"], row["iteration"]) for row in found] == [("runs/cartpole,gamma=0.9/seed-0", 2)]
    config = pgcli("train", "runs/cartpole,gamma=0.9/seed-0/config.yaml", *SHORT, cwd=tmp_path, code=4)
    assert "runs/cartpole,gamma=0.9/seed-0: a run already exists" in config.stderr


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "a=b", "x" * 61])
def test_a_tag_is_one_word(tag: str) -> None:
    with pytest.raises(UsageError, match="not a tag"):
        check_labels([tag], "")


def test_a_note_has_a_limit(tmp_path: Path) -> None:
    assert check_labels(["b", "a", "b"], "n").tags == ("b", "a")
    done = pgcli("train", "cartpole", "--note", "x" * 2000, cwd=tmp_path, code=2)
    assert "2,000 characters" in done.stderr
    assert not (tmp_path / "runs").exists()


def write_run(path: Path, status: str, returns: list[float], **config: object) -> Path:
    """Write a run directory with one evaluation per iteration."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(json.dumps({"name": path.parent.name, "seed": 0, "optimizer": config}))
    (path / "run.json").write_text(json.dumps({"pgcli": "1", "tags": ["old"]}))
    (path / "status.json").write_text(json.dumps({"status": status}))
    tables = {"evaluations": returns, "metrics": range(100, 100 * len(returns), 100)}
    columns = {"evaluations": "return_mean", "metrics": "env_steps"}
    for name, values in tables.items():
        rows = [f"{k},{value}" for k, value in enumerate(values)]
        (path / f"{name}.csv").write_text("\n".join([f"iteration,{columns[name]}", *rows, ""]))
    (path / "timing.csv").write_text("iteration,elapsed_seconds\n")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder with runs in several states."""
    write_run(tmp_path / "runs/a/seed-0", "finished", [1, 9, 5], learning_rate=0.1)
    write_run(tmp_path / "runs/b/seed-0", "running", [2, 40], learning_rate=0.01)  # without a process
    write_run(tmp_path / "runs/c/seed-0", "finished", [], learning_rate=0.02)
    (write_run(tmp_path / "runs/d/seed-0", "finished", [7]) / "status.json").write_text("[")
    return tmp_path / "runs"


def names(rows: list[dict[str, object]]) -> str:
    return "".join(Path(str(row["run"])).parent.name for row in rows)


def test_runs_are_listed_filtered_and_sorted(runs: Path) -> None:
    rows = list_runs([runs])
    assert [row["status"] for row in rows] == ["finished", "killed", "finished", "damaged"]
    assert [(row["return"], row["best"], row["env_steps"]) for row in rows[:3]] == [
        (5, 9, 200),
        (40, 40, 100),
        (None, None, 0),
    ]
    assert "status.json" in str(rows[3]["reason"])
    assert names(list_runs([runs], sort="return")) == "bacd"
    assert names(list_runs([runs], sort="optimizer.learning_rate")) == "acbd"
    for where, expected in (
        (["status=finished"], "ac"),
        (["status!=finished"], "bd"),
        (["return>=5"], "ab"),
        (["best>5", "return<6"], "a"),
        (["optimizer.learning_rate=1e-2"], "b"),
        (["tags=old"], "abc"),
        (["tags!=old"], "d"),
        (["return=null"], "cd"),
    ):
        assert names(list_runs([runs], where)) == expected, where
    lines = listing_text(
        list_runs([runs / "a", runs / "b"], sort="optimizer.learning_rate"), ["optimizer.learning_rate"]
    )
    assert (
        lines.splitlines()[0].split()
        == "run status iteration env steps return best tags optimizer.learning_rate".split()
    )


@pytest.mark.parametrize(
    ("where", "sort", "told"),
    [
        (["statu=finished"], "run", "did you mean `status`"),
        (["finished"], "run", "not a condition"),
        (["return>high"], "run", "`high` is not a number"),
        ([], "optimizer.learning_rat", "did you mean `optimizer.learning_rate`"),
    ],
)
def test_an_unknown_column_or_condition_is_an_error(where: list[str], sort: str, told: str, runs: Path) -> None:
    with pytest.raises(UsageError) as error:
        list_runs([runs], where, sort)
    assert told in str(error.value)


def removal(cwd: Path, *words: str, answer: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgcli", "rm", *words]
    return subprocess.run(command, cwd=cwd, env=whole({}), input=answer, capture_output=True, text=True, check=False)


def test_rm_asks_before_it_removes(runs: Path) -> None:
    (runs / "a/seed-0/diary.txt").touch()
    for answer, code in (("n\n", 0), ("", 2)):
        done = removal(runs.parent, "runs/a", answer=answer)
        assert done.returncode == code, done.stderr
        assert "runs/a/seed-0 with diary.txt, which pgcli did not write" in done.stderr
        assert "Remove 1 run directory?" in done.stderr
        assert (runs / "a/seed-0/metrics.csv").exists()
    done = removal(runs.parent, "runs/a", answer="y\n")
    assert done.stdout == "runs/a/seed-0\n"
    assert sorted(path.name for path in runs.iterdir()) == ["b", "c", "d"]
    pgcli("rm", "runs", "--yes", cwd=runs.parent)
    assert not runs.exists()


def test_rm_removes_nothing_outside_run_directories(runs: Path, tmp_path: Path) -> None:
    outside = write_run(tmp_path / "outside/seed-0", "finished", [1])
    (runs / "notes.txt").touch()
    (runs / "a/link").symlink_to(outside)
    (runs / "a/seed-0/inside").symlink_to(tmp_path / "outside")
    done = pgcli("rm", "runs/a", "--yes", cwd=tmp_path, code=4)
    assert "runs/a/link: is behind a link" in done.stderr
    assert (runs / "a/seed-0").exists(), "nothing is removed before all are checked"
    (runs / "a/link").unlink()
    pgcli("rm", "runs", "--yes", cwd=tmp_path)
    assert [path.name for path in runs.iterdir()] == ["notes.txt"]
    assert (outside / "metrics.csv").exists()
    for path, told in (
        (runs, "contains no run"),
        (tmp_path / "none", "no such directory"),
        (runs / "notes.txt", "a file"),
    ):
        assert told in pgcli("rm", path, "--yes", cwd=tmp_path, code=4).stderr
    (tmp_path / "alias").symlink_to(outside)
    with pytest.raises(RunDirectoryError, match="behind a link"):
        check_removable(tmp_path / "alias", tmp_path / "alias")


def test_rm_refuses_foreign_folders_and_runs_in_use(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs / "a/seed-0"
    with lock(run), pytest.raises(RunInUse):
        remove_runs([run], [run])
    foreign = tmp_path / "foreign"
    shutil.copytree(run, foreign)
    (foreign / "run.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="which pgcli did not write"):
        check_removable(foreign, foreign)
    monkeypatch.chdir(run)
    with pytest.raises(RunDirectoryError, match="is the current folder"):
        check_removable(run, runs)
    assert os.listdir(run)
