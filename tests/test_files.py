"""Foreign and conflicting files: nothing is written elsewhere, hangs or is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import pgcli

from pgcli.config import load_config
from pgcli.errors import RunDirectoryError
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.explain import show
from pgcli.inspection.verify import verify
from pgcli.records import Iteration, Record
from pgcli.report.plots import plot
from pgcli.report.video import FilmedEpisode, write
from pgcli.runs.files import NotRegular, opened
from pgcli.runs.information import read_status
from pgcli.runs.lock import lock
from pgcli.runs.outputs import check_output
from pgcli.runs.tables import read_table

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, FIFOs and descriptors of folders are POSIX's")

TINY = (
    *("training.env_steps=null", "training.iterations=3", "rollout.episodes=2", "env.num_envs=2"),
    *("env.max_episode_steps=10", "policy.hidden_sizes=[4]", "evaluation.episodes=2", "evaluation.every=2"),
    *("evaluation.stop_at_return=null", "checkpoint.every=1", "checkpoint.keep=1"),
)
DRAWN = ("env_steps", "evaluation.return_mean", "mean", "ci95", 1)


def train(path: Path, *overrides: str, watch: Callable[[Record], None] | None = None, **how: Any) -> None:
    request = Request(load_config("cartpole", (*TINY, *overrides)), path, ["files"], **how)
    run_experiment(request, Context(watch or (lambda record: None)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    train(path)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ------------------------------------------------------------------------------------------- what a run directory names


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["a link", "a hard link"])
@pytest.mark.parametrize("name", [".lock", "metrics.csv", "timing.csv", "episodes.csv", "evaluations.csv"])
def test_nothing_is_written_through_a_link(
    name: str, make: Callable[[Path, Path], None], run: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "thesis.tex"
    if (run / name).exists():
        (run / name).rename(precious)  # it reads as the table that it was
    else:
        precious.write_text("years of work")
    make(precious, run / name)
    before = precious.read_bytes()
    with pytest.raises(RunDirectoryError, match=f"{name}: is a (hard )?link"):
        train(run, "training.iterations=5", resume=True)
    assert precious.read_bytes() == before


def test_a_linked_folder_of_checkpoints_is_rejected_and_unchanged(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="checkpoints: is a link, not a folder"):
        train(run, "training.iterations=5", resume=True)
    assert contents(tmp_path / "elsewhere") == before


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a file of 100 GB": lambda path: os.truncate(os.open(path, os.O_WRONLY | os.O_CREAT), 10**11),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.csv", "episodes.csv", "run.json", "status.json"])
def test_a_special_file_is_one_error_that_names_it(name: str, kind: str, run: Path) -> None:
    (run / name).unlink()
    KINDS[kind](run / name)
    failed = [finding["text"] for finding in verify(run)["findings"] if finding["level"] == "failed"]
    assert any(name in text for text in failed), failed
    with pytest.raises(RunDirectoryError, match=name):
        show(run)
    if name not in ("metrics.csv", "episodes.csv"):  # which this plot does not read
        with pytest.raises(RunDirectoryError, match=name):
            plot([run], *DRAWN, run.parent / "curve.png")


@pytest.mark.parametrize("name", [".lock", "checkpoints/iteration-000003.safetensors", "checkpoints/latest.json"])
@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_an_odd_lock_or_checkpoint_is_named(name: str, kind: str, run: Path) -> None:
    (run / name).unlink()
    KINDS[kind](run / name)
    with pytest.raises(RunDirectoryError, match=rf"{Path(name).name}: is {kind}, not a regular file"):
        train(run, "training.iterations=5", resume=True)


def test_a_lock_of_another_program_is_rejected(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"theirs": 1}')
    with pytest.raises(RunDirectoryError, match="pgcli did not write this file"), lock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == '{"theirs": 1}'


def test_names_are_opened_in_the_folder_that_was_opened(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with opened(tmp_path / "a") as folder:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        folder.write("file", b"1")
        assert [file.name for file in tmp_path.rglob("file")] == ["file"]
        assert (tmp_path / "b/file").read_bytes() == b"1"
        with pytest.raises(RunDirectoryError, match="was deleted, moved or replaced"):
            folder.check()
        os.mkfifo(tmp_path / "b/fifo")
        with pytest.raises(NotRegular, match="a FIFO"):
            folder.open("fifo", os.O_WRONLY)


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "moved"])
@pytest.mark.parametrize("cadence", ["1", "null"])
def test_a_run_whose_folder_is_moved_stops_and_writes_into_no_other(
    replaced: bool, cadence: str, finished: Path, tmp_path: Path
) -> None:
    def move(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 1:
            (tmp_path / "run").rename(tmp_path / "old")
            if replaced:
                shutil.copytree(finished, tmp_path / "run")

    with pytest.raises(RunDirectoryError, match="moved or replaced") as error:
        train(tmp_path / "run", "seed=1", f"checkpoint.every={cadence}", f"evaluation.every={cadence}", watch=move)
    assert error.value.exit_code == 4
    if replaced:
        assert [file.read_bytes() for file in sorted(finished.rglob("*.*"))] == [
            file.read_bytes() for file in sorted((tmp_path / "run").rglob("*.*"))
        ]
    else:
        assert not (tmp_path / "run").exists()
    assert read_status(tmp_path / "old")["status"] == "failed"
    assert verify(tmp_path / "old")["passed"]
    train(tmp_path / "old", "seed=1", resume=True)
    train(tmp_path / "whole", "seed=1")
    for name in ("metrics.csv", "episodes.csv", "checkpoints/iteration-000003.safetensors"):
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_table_that_is_replaced_ends_the_run_at_the_next_checkpoint(tmp_path: Path) -> None:
    def replace(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 1:
            (tmp_path / "run/timing.csv").rename(tmp_path / "taken")
            (tmp_path / "run/timing.csv").write_text("mine")

    with pytest.raises(RunDirectoryError, match=r"timing\.csv: was deleted or replaced"):
        train(tmp_path / "run", watch=replace)
    assert (tmp_path / "run/timing.csv").read_text() == "mine"


# -------------------------------------------------------------------------------------- folders that pgcli did not make


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=["train", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["config.yaml", "episodes.csv", "run.json", "status.json", "checkpoints/mine"])
def test_a_users_files_with_a_runs_names_are_rejected_and_unchanged(
    name: str, how: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "work" / name).parent.mkdir(parents=True)
    (tmp_path / "work" / name).write_text('{"mine": 1}')
    before = contents(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"contains {name.partition('/')[0]}, which pgcli did not write"):
        train(tmp_path / "work", **how)
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    train(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert verify(tmp_path)["passed"]


ODD: dict[tuple[str, str], tuple[Any, ...]] = {
    ("run.json", "reward_threshold"): (10**400, "475", [475], True),
    ("run.json", "versions"): (None, ["torch"], {"torch": 2}),
    ("run.json", "resumes"): (3, [1], [{"iteration": "1", "overrides": []}], [{"iteration": 1}]),
    ("status.json", "iteration"): (-1, 10**400, "3", 2.5),
    ("status.json", "status"): (None, 1, []),
    ("status.json", "digests"): ([], {"metrics.csv": 1}),
}
CASES = [(name, key, value) for (name, key), values in ODD.items() for value in values]


@pytest.mark.parametrize(("name", "key", "value"), CASES, ids=[f"{key} {str(value)[:9]}" for _, key, value in CASES])
def test_a_value_of_a_wrong_type_is_one_error_that_names_file_and_key(
    name: str, key: str, value: object, run: Path
) -> None:
    data = json.loads((run / name).read_text()) | {key: value}
    sys.set_int_max_str_digits(0)
    (run / name).write_text(json.dumps(data))
    for read in (lambda: show(run), lambda: plot([run], *DRAWN, run.parent / "curve.png")):
        with pytest.raises(RunDirectoryError, match=rf"{name}: `{key}"):
            read()
    failed = [finding["text"] for finding in verify(run)["findings"] if finding["level"] == "failed"]
    assert any(f"{name}: `{key}" in text for text in failed), failed


# ------------------------------------------------------------------------------------------- files that a user asks for


@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.csv", "gradients.csv", "config.yaml", "status.json"])
def test_no_output_replaces_a_file_of_a_run(name: str, run: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is a file of the run"):
        check_output(run / name, overwrite=True)


def test_an_input_file_is_never_overwritten_even_through_a_link(run: Path, tmp_path: Path) -> None:
    policy = next(run.glob("checkpoints/*.safetensors"))
    os.link(policy, tmp_path / "film.gif")
    with pytest.raises(RunDirectoryError, match="is an input of this command"):
        check_output(tmp_path / "film.gif", inputs=[policy], overwrite=True)
    done = pgcli("plot", "run", "-o", "run/metrics.csv", cwd=tmp_path, code=4)
    assert "run/metrics.csv: is a file of the run" in done.stderr


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "csv"])
def test_a_figure_replaces_one_of_pgcli_and_no_other_file(suffix: str, run: Path, tmp_path: Path) -> None:
    figure = tmp_path / f"figure.{suffix}"
    figure.write_text("drawn by hand")
    with pytest.raises(RunDirectoryError, match="pgcli did not write it"):
        plot([run], *DRAWN, figure)
    assert figure.read_text() == "drawn by hand"
    plot([run], *DRAWN, figure, overwrite=True)
    before = figure.read_bytes()
    plot([run], *DRAWN, figure)
    assert figure.read_bytes() == before


def test_a_film_and_an_export_replace_only_their_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "film.gif").write_bytes(b"GIF89a by hand")
    film = ["eval", "run", "--episodes", "1", "--horizon", "2", "--video", "film.gif"]
    assert "pgcli did not write it" in pgcli(*film, cwd=tmp_path, code=4).stderr
    assert (tmp_path / "film.gif").read_bytes() == b"GIF89a by hand"
    pgcli(*film, "--overwrite", cwd=tmp_path)
    pgcli(*film, cwd=tmp_path)


def test_no_output_leaves_a_run_through_a_link(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("plots", "videos"):
        (run / name).symlink_to(outside)
    for output in ("plots/figure.png", "plots/deep/figure.png", "videos/figure.svg"):
        with pytest.raises(RunDirectoryError, match="a link in this path leads out of the run"):
            plot([run], *DRAWN, run / output, overwrite=True)
    film = ["eval", "run", "--episodes", "1", "--horizon", "2", "--video", "run/videos/film.gif"]
    assert "leads out of the run" in pgcli(*film, cwd=tmp_path, code=4).stderr
    assert "leads out of the run" in pgcli("export", "run", "run/plots/policy.onnx", cwd=tmp_path, code=4).stderr
    assert [file for file in outside.rglob("*") if file.is_file()] == []
    plot([run], *DRAWN, run / ".." / "figure.png")  # not through a link


@pytest.mark.parametrize("target", [os.mkfifo, Path.mkdir], ids=["a FIFO", "a folder"])
def test_an_output_cannot_be_a_special_file(target: Callable[[Path], object], run: Path, tmp_path: Path) -> None:
    target(tmp_path / "figure.png")
    with pytest.raises(RunDirectoryError, match=r"figure\.png: is (a folder|not a regular file)"):
        plot([run], *DRAWN, tmp_path / "figure.png", overwrite=True)


def test_a_full_disk_leaves_the_previous_output(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = plot([run], *DRAWN, tmp_path / "figure.png")
    before = figure.read_bytes()
    noise = (np.random.default_rng(n).integers(0, 255, (90, 90, 3)).astype(np.uint8) for n in range(3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunDirectoryError, match="File too large"):
            plot([run], *DRAWN, figure)
        with pytest.raises(RunDirectoryError, match="File too large"):
            write(noise, FilmedEpisode(), tmp_path / "film.gif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert figure.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figure.png", "run"]


# ------------------------------------------------------------------------------------------------------- large tables


def test_a_large_table_needs_memory_for_its_columns_only(tmp_path: Path) -> None:
    """Of 20 MB, two columns of 400,000 rows: 6 MB of numbers and places of words."""
    lines = "".join(f"{n // 64},{n},{n % 500}.0,{n / 7!r},{n % 500},terminated\n" for n in range(400_000))
    path = tmp_path / "episodes.csv"
    path.write_text(f"iteration,episode,return,discounted_return,length,ended\n{lines}")
    tracemalloc.start()
    table = read_table(path, ("ended",))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table.rows == 400_000
    assert peak < 40 * 2**20
    numbers = read_table(path, ("discounted_return", "return"))
    assert numbers["discounted_return"].tolist() == [n / 7 for n in range(400_000)], "exact to the last bit"
    assert numbers["return"].tolist() == [float(n % 500) for n in range(400_000)]
