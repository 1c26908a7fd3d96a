"""Power losses, failing disks and odd folders: a run keeps its saved state or reports the loss."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import storage
from kills import digests

from pgcli.config import load_config
from pgcli.errors import RunDirectoryError
from pgcli.experiment.load import load
from pgcli.experiment.recorder import Context, Outcome
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.evaluate import assess
from pgcli.records import Iteration, Record
from pgcli.runs import checkpoints
from pgcli.runs.directory import find_checkpoint
from pgcli.runs.files import Folder
from pgcli.runs.information import read_status

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are synced, and umasks kept, under POSIX")

TINY = (
    *("training.env_steps=null", "training.iterations=4", "rollout.episodes=2", "env.num_envs=2"),
    *("env.max_episode_steps=10", "policy.hidden_sizes=[4]", "evaluation.episodes=2", "evaluation.every=2"),
    *("evaluation.stop_at_return=null", "checkpoint.every=1", "checkpoint.keep=1"),
)


def run(path: Path, *overrides: str, which: str = "latest", watch: Callable[[Record], None] | None = None) -> Outcome:
    config = load_config("cartpole", (*TINY, *overrides))
    request = Request(config, path, ["storage"], resume=True, which=which)
    return run_experiment(request, Context(watch or (lambda record: None)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("whole") / "run"
    run(path)
    return digests(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test does not need real syncs."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def check_losses(
    home: Path,
    work: Callable[[], Any],
    again: Callable[[Path], Any],
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    saved: list[int],
    count: int,
) -> None:
    """Lose power at every call of some work; try `count` different possible states of the disk."""
    draw, found = random.Random(0), dict[str, tuple[dict[str, bytes | None], int]]()

    def lose() -> None:
        for _ in range(3):
            left = disk.after_power_loss(draw)
            found[repr(sorted(left.items(), key=lambda item: item[0]))] = left, max(saved, default=-1)

    disk = storage.Disk(home, lose)
    save = checkpoints.save

    def saving(folder: Path | Folder, checkpoint: checkpoints.Checkpoint) -> Path:
        path = save(folder, checkpoint)
        saved.append(checkpoint.counters["iteration"])
        return path

    with monkeypatch.context() as patch, disk.watched(monkeypatch):
        patch.setattr(checkpoints, "save", saving)
        work()
    assert len(found) > count
    for number, (left, iteration) in enumerate(draw.sample(list(found.values()), count)):
        other = home.parent / f"{home.name}-{number}"
        storage.lay_out(left, other)
        path = other / "a/run"
        if iteration >= 0:
            assert checkpoints.load(find_checkpoint(path)).counters["iteration"] >= iteration, "what was saved is lost"
        again(path)
        assert digests(path) == whole
        assert not list(other.rglob(".writing-*"))
        shutil.rmtree(other)


def test_a_power_loss_at_any_call_leaves_a_run_that_ends_with_the_same_bytes(
    whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "disk"
    home.mkdir()
    check_losses(home, lambda: run(home / "a/run"), run, whole, monkeypatch, [], 70)


def test_a_power_loss_after_resuming_an_earlier_checkpoint_loses_nothing(
    whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "disk"
    run(home / "a/run", "training.iterations=3", "checkpoint.keep=3")

    def resume(path: Path) -> Outcome:
        return run(path, which="2")

    def again(path: Path) -> Outcome:
        newest = checkpoints.list_checkpoints(path / "checkpoints")[-1]
        return run(path) if checkpoints.iteration_of(newest) != 3 else resume(path)

    check_losses(home, lambda: resume(home / "a/run"), run, whole, monkeypatch, [2], 25)


def count_calls(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with storage.fault(monkeypatch, path.parent, 10**9, errno.EIO) as calls:
        run(path)
    return len(calls)


@pytest.mark.parametrize("first", [1, pytest.param(3, marks=pytest.mark.slow("repeats it at other calls"))])
def test_a_disk_failure_at_any_call_gives_exit_4_and_loses_nothing(
    first: int, whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EINTR)
    (tmp_path / "counted").mkdir()
    total = count_calls(tmp_path / "counted/run", monkeypatch)
    told, numbers = 0, range(first, total + 1, 4)
    for number in numbers:
        code = codes[number // 4 % len(codes)]
        home = tmp_path / str(number)
        home.mkdir()
        path = home / "run"
        error: RunDirectoryError | None = None
        with storage.fault(monkeypatch, home, number, code) as calls:
            try:
                run(path)
            except RunDirectoryError as told_so:
                error = told_so
        if error is None:
            assert calls[number - 1] in ("open", "unlink"), f"{calls[number - 1]} failed silently"
        else:
            told += 1
            assert error.exit_code == 4
            assert (str(path) in error.message) == (code != errno.EMFILE)  # no file is to blame for it
            assert ".writing-" not in error.message
            assert os.strerror(code).lower() in error.message.lower()
            assert ("bytes are free" in error.hint) == (code in (errno.ENOSPC, errno.EDQUOT))
        assert not list(home.rglob(".writing-*"))
        if checkpoints.list_checkpoints(path / "checkpoints"):
            checkpoints.load(find_checkpoint(path))
        run(path)
        assert digests(path) == whole, (number, code)
        shutil.rmtree(home)
    assert told > len(numbers) * 2 / 3


def test_a_disk_too_full_for_checkpoints_stops_the_run(
    whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.write

    def full(folder: Folder, name: str, content: bytes, *, replace: bool = True) -> None:
        if name == "iteration-000002.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.path / name))
        real(folder, name, content, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        with pytest.raises(RunDirectoryError, match=r"iteration-000002.*No space left"):
            run(tmp_path / "run")
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"
    run(tmp_path / "run")
    assert digests(tmp_path / "run") == whole


def test_the_first_file_without_space_is_reported(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 1:
            monkeypatch.setattr(os, "write", full)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunDirectoryError, match=r"run/evaluations\.csv: No space left"):
        run(tmp_path / "run", watch=fill)


def test_short_writes_are_completed(
    whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:100]))
    run(tmp_path / "run")
    assert digests(tmp_path / "run") == whole


@pytest.mark.parametrize("damage", ["flip", "empty", "zeros", "missing", "fifo", "pointer", "pointer elsewhere"])
def test_a_damaged_checkpoint_is_named_with_a_working_command(
    damage: str, whole: dict[str, str], tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "run"
    run(path, "training.iterations=3", "checkpoint.keep=3")
    pointer = path / "checkpoints/latest.json"
    latest = find_checkpoint(path)
    content = latest.read_bytes()
    bad = pointer if damage.startswith("pointer") else latest
    bad.unlink()
    match damage:
        case "flip":
            bad.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "empty":
            bad.touch()
        case "zeros":
            bad.write_bytes(bytes(len(content)))
        case "fifo":
            os.mkfifo(bad)
        case "pointer":
            bad.write_bytes(b"{")
        case "pointer elsewhere":
            bad.write_text('{"file": "../../x"}')
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != ".lock"}
    with pytest.raises(RunDirectoryError, match=bad.name) as error:
        run(path)
    which = "3" if damage.startswith("pointer") else "2"
    assert f"`pgcli resume {path} --which {which}`" in error.value.hint
    assert {file: file.stat().st_mtime_ns for file in before} == before, "nothing is touched, and nothing begins anew"
    run(path, which=which)
    assert digests(path) == whole


def test_measuring_a_run_writes_nothing_and_is_repeatable(tmp_path: Path, quick: None) -> None:
    run(tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    first, second = (assess(load(tmp_path / "run"), 3, "sampled", 1.0, None, 0) for _ in range(2))
    assert first == second
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_resuming_a_missing_checkpoint_does_not_start_a_new_run(tmp_path: Path, quick: None) -> None:
    with pytest.raises(RunDirectoryError, match="no checkpoint for iteration 5"):
        run(tmp_path / "run", which="5")
    assert not (tmp_path / "run/metrics.csv").exists()


def test_a_clock_jump_breaks_no_promise(
    whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: draw.choice([0.0, 1e9, -86400.0, 4e9]))
    run(tmp_path / "run", "training.iterations=2")
    run(tmp_path / "run")
    assert digests(tmp_path / "run") == whole


NAMES = ["a b", 'it\'s "it"', "two\nlines", "\u2028", "🎢", "e\u0301", "%s%d", "-x", "x" * 255, "sub/../run", "\udcff"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_may_have_any_name_and_may_be_moved(
    name: str, whole: dict[str, str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    run(Path(name), "training.iterations=2")
    load_config(str(Path(name) / "config.yaml"))
    run(Path(name), "training.iterations=3")
    Path(name).rename("moved")
    run(Path("moved"))
    assert digests(Path("moved")) == whole
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in Path("moved").rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("mask", "files", "folders"), [(0o077, 0o600, 0o700), (0, 0o664, 0o775), (0o022, 0o644, 0o755)]
)
def test_the_umask_is_respected_and_others_cannot_write(
    mask: int, files: int, folders: int, tmp_path: Path, quick: None
) -> None:
    before = os.umask(mask)
    try:
        run(tmp_path / "a/run")
    finally:
        os.umask(before)
    for path in (tmp_path / "a").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (folders if path.is_dir() else files), path


def test_a_run_with_a_deleted_folder_stops_without_recreating_it(tmp_path: Path, quick: None) -> None:
    def delete(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 1:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(RunDirectoryError, match="was deleted") as error:
        run(tmp_path / "run", "checkpoint.every=null", "evaluation.every=null", "training.iterations=50", watch=delete)
    assert error.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_a_link_to_a_run_is_moved_aside_as_a_link(tmp_path: Path, quick: None) -> None:
    run(tmp_path / "there")
    (tmp_path / "run").symlink_to("there")
    config = load_config("cartpole", TINY)
    run_experiment(Request(config, tmp_path / "run", ["storage"], overwrite=True))
    assert (tmp_path / "run~1").readlink() == Path("there")
    assert digests(tmp_path / "run") == digests(tmp_path / "there")
    (tmp_path / "nothing").symlink_to("nowhere")
    with pytest.raises(RunDirectoryError, match="a link to nothing"):
        run(tmp_path / "nothing")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_reported(
    code: int, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunDirectoryError, match="cannot be locked") as error:
        run(tmp_path / "run")
    assert "--run-dir" in error.value.hint
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_lock_of_a_dead_process_blocks_nobody(whole: dict[str, str], tmp_path: Path, quick: None) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text('{"pid": 999999, "host": "elsewhere"}')
    run(tmp_path / "run")
    assert digests(tmp_path / "run") == whole


def test_temporary_files_of_a_killed_process_are_removed(whole: dict[str, str], tmp_path: Path, quick: None) -> None:
    run(tmp_path / "run", "training.iterations=2")
    for folder in ("", "checkpoints"):
        (tmp_path / "run" / folder / ".writing-x").write_bytes(b"half")
    run(tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".writing-*"))
    assert digests(tmp_path / "run") == whole


def test_checkpoints_of_two_runs_in_one_folder_are_distinguished(tmp_path: Path, quick: None) -> None:
    run(tmp_path / "a", "training.iterations=2")
    run(tmp_path / "b", "seed=5")
    shutil.copytree(tmp_path / "b/checkpoints", tmp_path / "a/checkpoints", dirs_exist_ok=True)
    with pytest.raises(RunDirectoryError, match="another seed"):
        run(tmp_path / "a")
    file = find_checkpoint(tmp_path / "b")
    renamed = file.rename(file.with_name("iteration-000009.safetensors"))
    with pytest.raises(RunDirectoryError, match="its name does not match its iteration"):
        checkpoints.load(renamed)


@pytest.mark.parametrize("which", ["²", "9" * 5000, "0" * 300 + "1", "", "-1"])
def test_an_invalid_choice_of_checkpoint_is_rejected(which: str, tmp_path: Path, quick: None) -> None:
    run(tmp_path / "run", "training.iterations=2")
    with pytest.raises(RunDirectoryError):
        find_checkpoint(tmp_path / "run", which)
    assert read_status(tmp_path / "run")["status"] == "finished"
