"""run.json has the code of a run: commit, uncommitted changes, and digests of the user's imported files."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import pgcli

from pgcli.config import load_config
from pgcli.experiment.user_code import changed, code_of, user_code
from pgcli.system import git

SHORT = ("training.iterations=1", "training.env_steps=null", "evaluation.episodes=2", "rollout.episodes=4")


@pytest.fixture(autouse=True)
def _no_answers_of_other_tests() -> Iterator[None]:
    git.look_again()
    yield
    git.look_again()


def run_git(folder: Path, *words: str) -> None:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *name, *words], cwd=folder, env=os.environ | own, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    run_git(folder, "init", "-q")
    (folder / "a.txt").write_text("one\n")
    run_git(folder, "add", ".")
    run_git(folder, "commit", "-qm", "first")
    return folder


def described(folder: Path) -> dict[str, Any]:
    (found,) = git.describe(git.repositories_of([folder]))
    return found


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_repository_has_its_commit_and_its_uncommitted_changes(repository: Path) -> None:
    clean = described(repository)
    assert (clean["dirty"], clean["diff"], clean.get("note")) == (False, "", None)
    assert len(clean["commit"]) == 40
    (repository / "a.txt").write_bytes(b"two \xff\n")
    git.look_again()
    (repository / "below").mkdir()
    edited = described(repository / "below")
    assert edited | {"diff": ""} == clean | {"dirty": True}
    assert "-one\n+two \ufffd\n" in edited["diff"]
    assert git.commit_of(repository / "below") == clean["commit"]


def test_a_file_with_another_time_does_not_write_the_index(repository: Path) -> None:
    """`git diff` refreshes the index then, and a kill would leave its lock behind."""
    before = (repository / ".git/index").read_bytes()
    os.utime(repository / "a.txt", (1, 1))
    assert (described(repository)["dirty"], described(repository)["diff"]) == (False, "")
    assert (repository / ".git/index").read_bytes() == before


def test_a_folder_without_a_repository_or_a_commit_is_no_error(tmp_path: Path) -> None:
    assert git.repositories_of([tmp_path]) == []
    assert git.commit_of(tmp_path) is None
    run_git(tmp_path, "init", "-q")
    git.look_again()
    found = described(tmp_path)
    assert (found["commit"], found["dirty"], found["note"]) == (None, None, "git names no commit")
    (tmp_path / ".git/HEAD").write_text("nonsense")
    git.look_again()
    assert described(tmp_path)["commit"] is None


def test_a_long_diff_is_cut_with_a_note(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "a.txt").write_text("ü" * 200_000)
    found = described(repository)
    assert found["dirty"]
    assert git.DIFF_BYTES - 4 < len(found["diff"].encode()) <= git.DIFF_BYTES
    assert found["note"] == "the diff is cut after 64,000 bytes"
    both = git.describe([repository, repository])
    assert sum(len(one["diff"].encode()) for one in both) <= git.DIFF_BYTES


def test_no_program_that_a_repository_names_is_executed(repository: Path, tmp_path: Path) -> None:
    trap = program(tmp_path / "bin/trap", f"touch {tmp_path}/sprung; cat; exit 0")
    settings = {
        "core.fsmonitor": trap,
        "core.pager": trap,
        "pager.diff": trap,
        "diff.external": trap,
        "diff.bad.command": trap,
        "diff.bad.textconv": trap,
        "filter.bad.clean": trap,
        "filter.bad.process": trap,
        "filter.bad.required": "true",
        "filter.a=b.c.clean": trap,
        "core.hooksPath": trap.parent,
        "core.sshCommand": trap,
    }
    for key, value in settings.items():
        run_git(repository, "config", key, str(value))
    (repository / ".gitattributes").write_text("*.txt filter=bad diff=bad\n*.md filter=a=b.c\n")
    (repository / ".git/info").mkdir(exist_ok=True)
    (repository / ".git/info/attributes").write_text("*.txt filter=bad diff=bad\n")
    for name in ("post-index-change", "post-checkout"):
        shutil.copy(trap, repository / ".git/hooks" / name)
        shutil.copy(trap, trap.parent / name)
    (repository / "a.txt").write_text("two\n")
    before = (repository / ".git/index").read_bytes()
    found = described(repository)
    assert "+two" in found["diff"]
    assert not (tmp_path / "sprung").exists()
    assert (repository / ".git/index").read_bytes() == before
    subprocess.run(["git", "diff"], cwd=repository, capture_output=True, check=False, timeout=60)
    assert (tmp_path / "sprung").exists(), "the traps work"


def test_variables_of_git_do_not_lead_elsewhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = described(repository)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    git.look_again()
    assert described(repository) == clean


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("sleep 600 & sleep 600", "git took longer than 0.3 s"),
        ("exit 3", "git names no commit"),
        ("case $1 in rev-parse) echo {};; diff) exit 1;; esac".format("a" * 40), "git could not compare"),
        ("case $1 in rev-parse) echo {};; diff) sleep 600;; esac".format("a" * 40), "git took longer"),
    ],
    ids=["hangs", "fails", "has no diff", "has a slow diff"],
)
def test_a_git_that_does_not_answer_costs_a_bounded_time(
    text: str, note: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin/git", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(git, "SECONDS", 0.3 if "sleep" in text else 60.0)
    found = described(repository)
    assert found["note"].startswith(note)
    assert found["dirty"] is None


def test_a_missing_git_is_no_error(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert described(repository)["note"] == "git is not installed"


WORLD = """
import gymnasium as gym
from parts.scale import SCALE

class World(gym.Wrapper):
    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward * SCALE, *rest
"""


def test_every_imported_file_is_recorded_and_a_resume_and_verify_name_those_that_changed(tmp_path: Path) -> None:
    here, elsewhere, bin_ = tmp_path / "here", tmp_path / "elsewhere", tmp_path / "bin"
    (here / "parts").mkdir(parents=True)
    elsewhere.mkdir()
    (here / "world.py").write_text(WORLD)
    (here / "parts/scale.py").write_text("from far import SCALE\n")
    (elsewhere / "far.py").write_text("SCALE = 1.0\n")
    run_git(here, "init", "-q")
    run_git(here, "add", "world.py")
    run_git(here, "commit", "-qm", "first")
    counted = program(bin_ / "git", f'echo "$*" >> {tmp_path}/calls; PATH=${{PATH#*:}} exec git "$@"')
    environment: dict[str, Any] = {
        "PYTHONPATH": str(elsewhere),
        "PATH": f"{counted.parent}{os.pathsep}{os.environ['PATH']}",
    }
    words = ("env.wrappers=[world.py:World]", *SHORT)
    pgcli("train", "cartpole", *words, "--seeds", "0-2", "--run-dir", "r", "-q", cwd=here, **environment)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len([line for line in calls if line.startswith("rev-parse")]) == len(git_repositories(here)), calls
    run = json.loads((here / "r/seed-2/run.json").read_text())
    assert list(run["user_code"]) == [str(elsewhere / "far.py"), "parts/scale.py", "world.py"]
    assert run["git_commit"] == run["git"][0]["commit"]
    assert run["git"][0] == {"repository": str(here), "commit": run["git_commit"], "dirty": False, "diff": ""}
    assert run["git_commit"][:12] in pgcli("show", "r/seed-2", cwd=here).stdout

    assert (
        "3 files of the user's code: unchanged"
        in pgcli("verify", "r/seed-2", "--trust", cwd=here, **environment).stdout
    )
    (elsewhere / "far.py").write_text("SCALE = 2.0\n")
    (here / "world.py").write_text(f"{WORLD}# edited\n")
    verified = json.loads(pgcli("verify", "r/seed-2", "--trust", "--json", cwd=here, code=7, **environment).stdout)
    texts = [finding["text"] for finding in verified["findings"]]
    assert f"{elsewhere / 'far.py'} has changed since the run last started: results may differ" in texts
    done = pgcli("resume", "r/seed-2", "training.iterations=2", cwd=here, **environment)
    assert f"note: {elsewhere / 'far.py'}, world.py have changed since the run last started" in done.stderr
    run = json.loads((here / "r/seed-2/run.json").read_text())
    assert run["exact"] is False
    assert run["resumes"][0]["git"][0]["dirty"] is True
    assert "+# edited" in run["resumes"][0]["git"][0]["diff"]
    again = pgcli("resume", "r/seed-2", "training.iterations=3", cwd=here, **environment)
    assert "changed since" not in again.stderr
    assert "git" not in json.loads((here / "r/seed-2/run.json").read_text())["resumes"][1]


def git_repositories(folder: Path) -> list[Any]:
    """Return the repositories of a run in this folder: its own, and pgcli's in a checkout."""
    found: list[Any] = code_of(load_config("cartpole", []), folder, [])["git"]
    return found


def test_a_file_that_moved_has_not_changed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    now = user_code(load_config("cartpole", ["env.id=a.py:A"]), tmp_path)
    digest = now["a.py"]
    assert changed({"a.py": digest, "gone.py": digest}, now, tmp_path) == []
    assert changed({"a.py": "0", "gone.py": "1"}, now, tmp_path) == ["a.py", "gone.py"]
    assert changed({"a.py": digest}, {}, tmp_path) == []  # not imported now, but still there


def test_modules_of_any_kind_are_looked_at_without_loading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("was loaded")

    strange: dict[str, Any] = {"a": None, "b": 3, "c": Lazy("c"), "d": ModuleType("d"), "e": ModuleType("e")}
    strange["d"].__file__ = str(tmp_path)  # a folder
    strange["e"].__file__ = "no\0file"
    for name, module in strange.items():
        monkeypatch.setitem(sys.modules, f"strange_{name}", module)
    found = user_code(load_config("cartpole", []), tmp_path)
    assert str(tmp_path) not in found
    assert not any("site-packages" in file or f"{os.sep}pgcli{os.sep}system" in file for file in found)
