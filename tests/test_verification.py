"""A run is held against itself: whatever is changed in it afterwards is found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import pgcli

from pgcli.config import load_config
from pgcli.errors import EnvironmentFailure, RunDirectoryError, RunInUse
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.verify import verification_text, verify
from pgcli.runs import checkpoints
from pgcli.runs.lock import lock

SETTINGS = (
    *("training.iterations=7", "training.env_steps=null", "evaluation.every=3", "evaluation.episodes=3"),
    *("evaluation.stop_at_return=null", "checkpoint.every=3", "checkpoint.keep=9", "env.max_episode_steps=40"),
)
KINDS: dict[str, tuple[str, ...]] = {
    "episodes": ("cartpole", "rollout.episodes=6", "env.num_envs=3"),
    "native segments": ("cartpole/ppo", "rollout.steps=24", "env.num_envs=3", "algorithm.num_minibatches=4"),
    "segments": (
        *("lunar-lander/ppo", "rollout.steps=24", "env.num_envs=2", "algorithm.num_minibatches=4"),
        *("policy.memory=gru", "policy.normalize_obs=true"),
    ),
    "reuse": ("cartpole/importance_sampling", "rollout.episodes=6", "env.num_envs=3", "algorithm.reuse=3"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a finished run of a kind, made when it is first asked for."""
    home = tmp_path_factory.mktemp("runs")

    def made(kind: str) -> Path:
        name, *overrides = KINDS[kind]
        if not (home / kind).exists():
            run_experiment(Request(load_config(name, [*SETTINGS, *overrides]), home / kind, ["train"]))
        return home / kind

    return made


@pytest.fixture
def run(runs: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs("episodes"), tmp_path / "run"))


def failures(path: Path, **how: bool) -> list[str]:
    return [finding["text"] for finding in verify(path, **how)["findings"] if finding["level"] == "failed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_as_it_was_written_passes_and_is_computed_again(kind: str, runs: Callable[[str], Path]) -> None:
    path = runs(kind)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != ".lock"}
    result = verify(path)
    assert result["passed"], result
    assert result["recomputed"] == [6]
    assert verify(path, everything=True)["recomputed"] == list(range(7))
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != ".lock"} == before


def edited(name: str, line: int, column: int, cell: str) -> Callable[[Path], object]:
    """Put another cell into a table."""

    def edit(path: Path) -> None:
        lines = (path / name).read_text().splitlines()
        cells = lines[line].split(",")
        assert cells[column] != cell
        lines[line] = ",".join([*cells[:column], cell, *cells[column + 1 :]])
        (path / name).write_text("\n".join(lines) + "\n")

    return edit


def without(name: str, line: int) -> Callable[[Path], object]:
    """Take a line out of a table."""

    def edit(path: Path) -> None:
        lines = (path / name).read_text().splitlines()
        (path / name).write_text("\n".join(lines[:line] + lines[line + 1 :]) + "\n")

    return edit


def flipped(path: Path) -> None:
    file = path / "checkpoints/iteration-000003.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


def signed_again(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a tensor, with all digests as they should be for it."""
    file = path / "checkpoints/iteration-000006.safetensors"
    checkpoint = checkpoints.load(file)
    file.unlink()
    tensors = checkpoint.tensors | {name: change(checkpoint.tensors[name])}
    latest = (path / "checkpoints/latest.json").read_bytes()
    written = checkpoints.save(path / "checkpoints", replace(checkpoint, tensors=tensors))
    if json.loads((path / "checkpoints/best.json").read_text())["file"] == written.name:
        checkpoints.point(path / "checkpoints/best.json", written, checkpoints.digest_of(written))
    (path / "checkpoints/latest.json").write_bytes(latest)


def renamed(path: Path) -> None:
    folder = path / "checkpoints"
    (folder / "iteration-000003.safetensors").rename(folder / "iteration-000004.safetensors")


TAMPERED: list[tuple[str, Callable[[Path], object], str]] = [
    ("a return in metrics.csv", edited("metrics.csv", 3, 3, "9.5"), "iteration 2 is not what episodes.csv tells"),
    ("a count in metrics.csv", edited("metrics.csv", 3, 1, "1"), "env_steps of iteration 2"),
    ("a loss in metrics.csv", edited("metrics.csv", 7, 10, "0.5"), "iteration 6 has policy_loss 0.5, and computed"),
    ("a row of metrics.csv", without("metrics.csv", 2), "iteration 2 stands where 1 should"),
    ("the last row of metrics.csv", without("metrics.csv", 7), "env_steps of iteration 7"),
    ("the last row of timing.csv and half of it", edited("timing.csv", 7, 0, "9"), "iteration 9 stands where 6"),
    ("a row of episodes.csv", without("episodes.csv", 5), "episode 5 stands where 4 should"),
    ("a return in episodes.csv", edited("episodes.csv", 5, 2, "7.0"), "iteration 0 is not what episodes.csv tells"),
    ("an end in episodes.csv", edited("episodes.csv", 42, 5, "horizon"), "episodes.csv: iteration 6 has ended horizon"),
    ("a number that is none", edited("episodes.csv", 5, 2, "many"), "something unreadable"),
    ("columns", edited("metrics.csv", 0, 3, "mean"), "does not begin with the columns"),
    ("a cell more", edited("metrics.csv", 3, 3, "1,2"), "line 4 has 27 cells instead of 26"),
    ("an evaluation", edited("evaluations.csv", 3, 4, "12.5"), "evaluations.csv: iteration 6 has return_mean 12.5"),
    ("the place of an evaluation", edited("evaluations.csv", 2, 1, "7"), "env_steps of iteration 3"),
    ("evaluations out of order", edited("evaluations.csv", 2, 0, "6"), "iteration 6 after 6"),
    ("bytes", lambda path: (path / "metrics.csv").write_bytes(b"\xff\xfe"), "does not begin with the columns"),
    ("a table", lambda path: (path / "episodes.csv").unlink(), "episodes.csv: is missing"),
    ("a bit of a checkpoint", flipped, "damaged: its tensors do not match"),
    ("the name of a checkpoint", renamed, "is named after another iteration than the one in it, 3"),
    (
        "status.json",
        lambda path: (path / "status.json").write_text('{"status": "finished", "iteration": 5}'),
        "after 5",
    ),
    (
        "the config",
        lambda path: (path / "config.yaml").write_text(
            re.sub(r"gamma: [\d.]+", "gamma: 0.5", (path / "config.yaml").read_text())
        ),
        "another algorithm.gamma",
    ),
    (
        "a weight, signed again",
        lambda path: signed_again(path, "policy.network.0.weight", lambda x: x + 1e-3),
        "computed again",
    ),
    (
        "a moment of the optimizer, signed again",
        lambda path: signed_again(path, "optimizer.network.0.weight.exp_avg_sq", lambda x: x * 2),
        "iteration-000007.safetensors",
    ),
    ("every checkpoint", lambda path: shutil.rmtree(path / "checkpoints"), "has no checkpoint"),
]


@pytest.mark.parametrize(("tamper", "words"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED])
def test_what_is_changed_afterwards_is_found(tamper: Callable[[Path], object], words: str, run: Path) -> None:
    tamper(run)
    (text,) = failures(run)[:1]
    assert words in text, failures(run)


def test_only_one_iteration_is_computed_again_unless_all_are_wanted(run: Path) -> None:
    edited("metrics.csv", 2, 10, "0.25")(run)
    assert not failures(run)
    (text,) = failures(run, everything=True)
    assert "iteration 1 has policy_loss 0.25" in text


def test_what_a_kill_leaves_is_no_fault(run: Path) -> None:
    (run / "status.json").write_text('{"status": "running"}')
    with (run / "metrics.csv").open("a") as file:
        file.write("7,12")
    (run / "checkpoints/latest.json").unlink()
    result = verify(run)
    notes = " ".join(finding["text"] for finding in result["findings"] if finding["level"] == "note")
    assert result["passed"]
    assert all(words in notes for words in ("half a line", "it was killed", "latest.json is missing"))


def test_a_run_that_was_resumed_with_changes_is_computed_from_there(run: Path) -> None:
    config = load_config(str(run / "config.yaml"), ["training.iterations=11", "optimizer.learning_rate=0.01"])
    run_experiment(Request(config, run, ["resume"], resume=True))
    result = verify(run, everything=True)
    assert result["passed"], result
    assert result["recomputed"] == [7, 8, 9, 10], "the checkpoint where the run had ended is kept"
    assert any("exact is false" in finding["text"] for finding in result["findings"])


def test_what_is_no_run_or_is_being_written_is_no_failed_check(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run is there"):
        verify(tmp_path / "nothing")
    with lock(run), pytest.raises(RunInUse):
        verify(run)


def test_foreign_modules_need_trust(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("id: CartPole-v1", "id: tasks:Task-v0"))
    with pytest.raises(EnvironmentFailure, match="--trust"):
        verify(run)


def test_the_command_line_says_all_of_it(run: Path) -> None:
    good = pgcli("verify", run, cwd=run)
    assert good.stderr == ""
    assert "computed again from iteration-000006.safetensors" in " ".join(good.stdout.split())
    assert max(map(len, good.stdout.splitlines()[1:])) <= 80
    edited("metrics.csv", 3, 3, "9.5")(run)
    bad = pgcli("verify", run, "--json", cwd=run, code=7)
    told = json.loads(bad.stdout)
    assert not told["passed"]
    assert "failed  metrics.csv" in verification_text(told)
