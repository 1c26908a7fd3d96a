"""`pgcli verify` finds any later change of a run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import pgcli

from pgcli.config import load_config
from pgcli.errors import EnvironmentFailure, Interrupted, PgcliError, RunDirectoryError, RunInUse
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.verify import verification_text, verify
from pgcli.records import Iteration, Record
from pgcli.runs import checkpoints
from pgcli.runs.digests import changed_files, own_files
from pgcli.runs.directory import RunDirectory
from pgcli.runs.information import read_status
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
    """Return a finished run of a kind, created at first use."""
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


@pytest.fixture
def older(run: Path) -> Path:
    """A run of a version without digests."""
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({name: status[name] for name in ("status", "iteration", "reason")}))
    return run


def failures(path: Path, **how: bool) -> list[str]:
    return [finding["text"] for finding in verify(path, **how)["findings"] if finding["level"] == "failed"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_run_passes_and_is_recomputed(kind: str, runs: Callable[[str], Path]) -> None:
    path = runs(kind)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    result = verify(path)
    assert result["passed"], result
    assert result["recomputed"] == [6]
    assert verify(path, everything=True)["recomputed"] == list(range(7))
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def edited(name: str, line: int, column: int, cell: str) -> Callable[[Path], object]:
    """Replace a cell of a table."""

    def edit(path: Path) -> None:
        lines = (path / name).read_text().splitlines()
        cells = lines[line].split(",")
        assert cells[column] != cell
        lines[line] = ",".join([*cells[:column], cell, *cells[column + 1 :]])
        (path / name).write_text("\n".join(lines) + "\n")

    return edit


def without(name: str, line: int) -> Callable[[Path], object]:
    """Remove a line from a table."""

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
    """Change a tensor, and recompute all digests."""
    file = path / "checkpoints/iteration-000006.safetensors"
    checkpoint = checkpoints.load(file)
    file.unlink()
    tensors = checkpoint.tensors | {name: change(checkpoint.tensors[name])}
    latest = (path / "checkpoints/latest.json").read_bytes()
    written = checkpoints.save(path / "checkpoints", replace(checkpoint, tensors=tensors))
    if json.loads((path / "checkpoints/best.json").read_text())["file"] == written.name:
        checkpoints.point(path / "checkpoints", "best.json", written, checkpoints.digest_of(written))
    (path / "checkpoints/latest.json").write_bytes(latest)


def renamed(path: Path) -> None:
    folder = path / "checkpoints"
    (folder / "iteration-000003.safetensors").rename(folder / "iteration-000004.safetensors")


TAMPERED: list[tuple[str, Callable[[Path], object], str]] = [
    ("a return in metrics.csv", edited("metrics.csv", 3, 3, "9.5"), "line 4 (iteration 2): return_mean is 9.5, but"),
    ("a count in metrics.csv", edited("metrics.csv", 3, 1, "1"), "line 4 (iteration 2): env_steps is 1, but"),
    ("a loss in metrics.csv", edited("metrics.csv", 7, 10, "0.5"), "iteration 6 has policy_loss 0.5, but recomputed"),
    ("a row of metrics.csv", without("metrics.csv", 2), "line 3: iteration is 2, expected 1"),
    ("the last row of metrics.csv", without("metrics.csv", 7), "which differs from metrics.csv after 7 iterations"),
    (
        "the last row of timing.csv and half of it",
        edited("timing.csv", 7, 0, "9"),
        "line 8: iteration is 9, expected 6",
    ),
    ("a row of episodes.csv", without("episodes.csv", 5), "line 6: episode 5 of iteration 0 follows episode 3"),
    ("a return in episodes.csv", edited("episodes.csv", 5, 2, "7.0"), "metrics.csv: line 2 (iteration 0): return_mean"),
    ("an end in episodes.csv", edited("episodes.csv", 42, 5, "horizon"), "episodes.csv: iteration 6 has ended horizon"),
    ("a number that is none", edited("episodes.csv", 5, 2, "many"), "line 6 has `many` instead of a number"),
    ("columns", edited("metrics.csv", 0, 3, "mean"), "the first columns are not those"),
    ("a cell more", edited("metrics.csv", 3, 3, "1,2"), "line 4 has 27 cells instead of 26"),
    ("an evaluation", edited("evaluations.csv", 3, 4, "12.5"), "evaluations.csv: iteration 6 has return_mean 12.5"),
    ("the place of an evaluation", edited("evaluations.csv", 2, 1, "7"), "line 3: env_steps is 7"),
    ("evaluations out of order", edited("evaluations.csv", 3, 0, "3"), "line 4: iteration 3 follows 3"),
    ("bytes", lambda path: (path / "metrics.csv").write_bytes(b"\xff\xfe"), "the first columns are not those"),
    ("a table", lambda path: (path / "episodes.csv").unlink(), "episodes.csv: is missing"),
    ("a bit of a checkpoint", flipped, "damaged: the tensors do not match"),
    ("the name of a checkpoint", renamed, "its name does not match its iteration, 3"),
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
        "recomputed",
    ),
    (
        "a moment of the optimizer, signed again",
        lambda path: signed_again(path, "optimizer.network.0.weight.exp_avg_sq", lambda x: x * 2),
        "iteration-000007.safetensors",
    ),
    ("every checkpoint", lambda path: shutil.rmtree(path / "checkpoints"), "has no checkpoint"),
]


@pytest.mark.parametrize(("tamper", "words"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED])
def test_a_change_is_found_without_digests(tamper: Callable[[Path], object], words: str, older: Path) -> None:
    tamper(older)
    (text,) = failures(older)[:1]
    assert words in text, failures(older)


def test_a_run_of_a_version_without_digests_passes_with_a_note(older: Path) -> None:
    result = verify(older)
    assert result["passed"]
    assert result["findings"][0]["text"] == "status.json has no digests: it was written by an earlier version of pgcli"


@pytest.mark.parametrize("name", ["metrics", "timing", "evaluations", "episodes", "gradients"])
def test_a_changed_number_is_reported_with_its_row_and_column(name: str, measured: Path) -> None:
    file = measured / f"{name}.csv"
    lines = [line.split(",") for line in file.read_text().splitlines()]
    draw = random.Random(name)
    for column, title in enumerate(lines[0][1:], 1):
        line = draw.randrange(1, len(lines))
        cell = draw.choice(["-1e5", "0.1234567890123456", "7", ""] if lines[line][column] else ["0"])
        before = file.read_bytes()
        edited(file.name, line, column, cell)(measured)
        assert next(changed_files(measured, read_status(measured)["digests"])) == (
            f"{name}.csv: line {line + 1} (iteration {lines[line][0]}): {title} is {cell or 'empty'}, "
            "but the run wrote another value"
        )
        file.write_bytes(before)
    edited(file.name, 1, 1, "-1e5")(measured)
    edited(file.name, 2, 1, "-1e5")(measured)
    assert f"{name}.csv: several values changed" in next(changed_files(measured, read_status(measured)["digests"]))
    file.write_bytes(before)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has every table."""
    path = tmp_path_factory.mktemp("measured") / "run"
    run_experiment(
        Request(load_config("cartpole", [*SETTINGS, *KINDS["episodes"][1:], "diagnostics.every=1"]), path, [])
    )
    return path


def test_any_changed_byte_is_found(measured: Path) -> None:
    """Every file of the run, ten random bytes each, also of status.json with its digests."""
    draw = random.Random(0)
    files = [measured / name for name in [*own_files(measured), "status.json"]]
    assert {file.name for file in files} > {"config.yaml", "run.json", "latest.json", "best.json", "gradients.csv"}
    for file in files:
        content = file.read_bytes()
        for place in draw.choices(range(len(content)), k=10):
            changed = bytearray(content)
            changed[place] ^= draw.randrange(1, 256)
            file.write_bytes(changed)
            try:
                passed = verify(measured)["passed"]
            except PgcliError:  # a config that cannot be read
                passed = False
            assert not passed, (file, place, changed[place])
        file.write_bytes(content)
    assert verify(measured)["passed"]


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_a_run_that_was_resumed_after_a_kill_or_an_interruption_passes(state: str, run: Path) -> None:
    """A resumed run has no digests until it ends, so a kill leaves no outdated ones."""
    config = load_config(str(run / "config.yaml"), ["training.iterations=11"])

    class Killed(BaseException):
        """Simulate a kill: nothing is written afterwards."""

    def watch(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 8:
            raise Killed if state == "running" else Interrupted(2)

    request = Request(config, run, ["resume"], resume=True)
    with pytest.MonkeyPatch.context() as patch:
        if state == "running":
            patch.setattr(RunDirectory, "set_status", running_only(RunDirectory.set_status))
        with pytest.raises((Killed, Interrupted)):
            run_experiment(request, Context(watch))
    assert read_status(run)["status"] == state
    assert ("digests" in read_status(run)) == (state == "interrupted")
    assert verify(run)["passed"]
    run_experiment(request)
    assert verify(run, everything=True)["passed"]


def running_only(real: Callable[..., None]) -> Callable[..., None]:
    def set_status(directory: RunDirectory, status: str, **more: object) -> None:
        if status == "running":
            real(directory, status, **more)

    return set_status


def test_the_last_evaluation_is_recomputed(older: Path) -> None:
    edited("evaluations.csv", 4, 7, "12.5")(older)
    (text,) = failures(older)
    assert "evaluations.csv: iteration 7 has length_mean 12.5, but recomputed it is" in text


def test_verify_writes_nothing_and_follows_no_link(run: Path, tmp_path: Path) -> None:
    (run / ".lock").unlink()
    assert verify(run)["passed"]
    assert not (run / ".lock").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    (run / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(RunDirectoryError, match=r"\.lock: is a link"):
        verify(run)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_one_iteration_is_recomputed_by_default(older: Path) -> None:
    edited("metrics.csv", 2, 10, "0.25")(older)
    assert not failures(older)
    (text,) = failures(older, everything=True)
    assert "iteration 1 has policy_loss 0.25" in text


def test_leftovers_of_a_killed_run_are_no_fault(run: Path) -> None:
    (run / "status.json").write_text('{"status": "running"}')
    with (run / "metrics.csv").open("a") as file:
        file.write("7,12")
    (run / "checkpoints/latest.json").unlink()
    result = verify(run)
    notes = " ".join(finding["text"] for finding in result["findings"] if finding["level"] == "note")
    assert result["passed"]
    assert all(words in notes for words in ("an incomplete line", "the run was killed", "latest.json is missing"))


def test_a_run_resumed_with_changes_is_recomputed_from_that_point(run: Path) -> None:
    config = load_config(str(run / "config.yaml"), ["training.iterations=11", "optimizer.learning_rate=0.01"])
    run_experiment(Request(config, run, ["resume"], resume=True))
    result = verify(run, everything=True)
    assert result["passed"], result
    assert result["recomputed"] == [7, 8, 9, 10], "the checkpoint where the run had ended is kept"
    assert any("exact is false" in finding["text"] for finding in result["findings"])


def test_a_missing_or_locked_run_is_an_error_not_a_failed_check(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        verify(tmp_path / "nothing")
    with lock(run), pytest.raises(RunInUse):
        verify(run)


def test_foreign_modules_need_trust(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("id: CartPole-v1", "id: tasks:Task-v0"))
    with pytest.raises(EnvironmentFailure, match="--trust"):
        verify(run)


def missing(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


ODD = {
    "not JSON": "{",
    "no object": "[1]",
    "a wrong type": '{"status": 1, "versions": 1, "file": 1}',
    "deep": "[" * 10**5,
    "a number of 5,000 digits": f'{{"iteration": {"9" * 5000}, "status": "finished", "exact": 0, "file": 0}}',
}


@pytest.mark.parametrize("name", ["run.json", "status.json", "metrics.csv", "episodes.csv", "config.yaml"])
@pytest.mark.parametrize("replace", [missing, folder, fifo])
def test_a_file_that_cannot_be_read_is_named_with_exit_4(replace: Callable[[Path], None], name: str, run: Path) -> None:
    replace(run / name)
    assert exit_code(run) == (4, name)


@pytest.mark.parametrize("name", ["run.json", "status.json", "checkpoints/latest.json", "checkpoints/best.json"])
@pytest.mark.parametrize("kind", ODD)
def test_a_json_file_with_odd_content_is_named_with_exit_4(kind: str, name: str, run: Path) -> None:
    (run / name).write_text(ODD[kind])
    assert exit_code(run) == (4, name)


@pytest.mark.parametrize("name", ["metrics.csv", "timing.csv", "evaluations.csv", "checkpoints/latest.json"])
def test_readable_content_that_differs_has_exit_7(name: str, run: Path) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content.replace(b"1", b"2", 1))
    assert exit_code(run) == (7, name)


def exit_code(path: Path) -> tuple[int, str]:
    """Return the exit code of `pgcli verify`, and the name of the file in its first finding or its error."""
    done = pgcli("verify", path, "--json", cwd=path.parent, code=None)
    text = json.loads(done.stdout)["findings"][0]["text"] if done.stdout else done.stderr
    (name,) = re.findall(r"(?:checkpoints/)?[a-z]+\.(?:json|csv|yaml)(?=[:\s])", text)[:1]
    return done.returncode, name


def test_the_command_line_prints_all_findings(run: Path) -> None:
    good = pgcli("verify", run, cwd=run)
    assert good.stderr == ""
    assert "iteration-000006.safetensors: identical" in " ".join(good.stdout.split())
    assert max(map(len, good.stdout.splitlines()[1:])) <= 80
    edited("metrics.csv", 3, 3, "9.5")(run)
    bad = pgcli("verify", run, "--json", cwd=run, code=7)
    told = json.loads(bad.stdout)
    assert not told["passed"]
    assert "failed  metrics.csv" in verification_text(told)
