"""Process-wide settings that environments change: pgcli restores them before its own work."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
import timeit
from pathlib import Path

import pytest
import torch
from command_line import Command, pgcli

import pgcli as pgcli_package
from pgcli.config import load_config
from pgcli.errors import Interrupted
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment
from pgcli.records import Iteration, Record
from pgcli.system import process_state

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX: masks, descriptors, handlers")
PATHS = str(Path(__file__).parent)
TINY = (
    *(
        "env.chunk_size=2",
        "rollout.episodes=4",
        "env.max_episode_steps=20",
        "training.env_steps=null",
    ),
    *("training.iterations=3", "evaluation.episodes=3", "evaluation.every=2", "evaluation.stop_at_return=null"),
)


def tables(run: Path) -> list[bytes]:
    return [(run / f"{name}.csv").read_bytes() for name in ("metrics", "episodes", "evaluations")]


def train(path: Path, *words: str, world: str = "Sharing") -> str:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    command = ["train", "cartpole", *TINY, f"env.id=worlds:{world}", *words, "--run-dir", path.name]
    return pgcli(*command, cwd=path.parent, PYTHONPATH=PATHS, ELSEWHERE=str(elsewhere)).stderr


@pytest.mark.parametrize("what", ["numbers", "process", "descriptors"])
def test_changes_by_an_environments_constructor_change_no_byte(what: str, tmp_path: Path) -> None:
    train(tmp_path / "plain")
    shown = train(tmp_path / "changed", f"env.kwargs.what={what}")
    assert tables(tmp_path / "changed") == tables(tmp_path / "plain")
    assert shown.count("note: an environment changed ") == (what != "descriptors" or shown.count("descriptors 0 to 2"))
    assert json.loads((tmp_path / "changed/status.json").read_text())["status"] == "finished"
    assert stat.S_IMODE((tmp_path / "changed/run.json").stat().st_mode) & 0o600 == 0o600
    assert not list((tmp_path / "elsewhere").iterdir())


def test_changes_by_an_environments_step_change_no_byte(tmp_path: Path) -> None:
    words = ("env.kwargs.what=numbers", "env.kwargs.in_step=true")
    shown = train(tmp_path / "here", *words)
    assert "torch's precision of float32" in shown
    assert "floating-point modes" in shown
    shown = train(tmp_path / "workers", *words, "sampling.workers=2")
    assert "floating-point modes" in shown, "the workers report it"
    assert tables(tmp_path / "here") == tables(tmp_path / "workers")
    pgcli("verify", "here", "--all", "--trust", cwd=tmp_path, PYTHONPATH=PATHS)


def test_every_setting_is_restored_and_reported_once() -> None:
    torch.set_default_dtype(torch.float64)  # of a notebook
    try:
        with process_state.kept():
            process_state.restore_process()
            assert process_state.changes() == []
            assert torch.get_default_dtype() == torch.float32
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]  # newer than its types
            torch.set_flush_denormal(True)
            torch.autograd.set_detect_anomaly(True)
            sys.path.insert(0, "/nowhere")
            process_state.restore_process()
            changed = process_state.changes()
            assert {"sys.path", "floating-point modes", "torch's precision of float32"} < set(changed)
            assert sys.path[-1] == "/nowhere", "what an environment adds, it still finds"
            process_state.restore_process()
            assert process_state.changes() == []
            assert torch.tensor(1e-40) * 1.0 > 0
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        sys.path.remove("/nowhere")


def test_a_notebook_keeps_its_own_defaults_when_it_loads_an_agent(tmp_path: Path) -> None:
    train(tmp_path / "run")
    torch.set_default_dtype(torch.float64)
    try:
        agent = pgcli_package.load(tmp_path / "run", trust=True)
        assert next(agent.policy.parameters()).dtype == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_environment_keeps_its_own_current_folder(tmp_path: Path) -> None:
    here = Path.cwd()
    with process_state.kept():
        with process_state.environments_turn():
            os.chdir(tmp_path)
        assert Path.cwd() == here
        with process_state.environments_turn():
            assert Path.cwd() == tmp_path
    assert Path.cwd() == here


def test_restoring_takes_microseconds() -> None:
    with process_state.kept():
        seconds = min(timeit.repeat(process_state.restore_process, number=100, repeat=5)) / 100
    assert seconds < 1e-3, "of an iteration of 10 ms or more; 50 µs on an idle machine"


@pytest.mark.parametrize("how", ["swallow", "exit", "raise"])
def test_an_environment_with_a_handler_of_its_own_does_not_swallow_ctrl_c(how: str, tmp_path: Path) -> None:
    words = [f"env.kwargs.how={how}", "training.iterations=100000", "--quiet"]
    command = ["train", "cartpole", *TINY, *words, "env.id=worlds:Handling", "--run-dir", "run"]
    process = Command(*command, cwd=tmp_path, PYTHONPATH=PATHS)
    table = tmp_path / "run/metrics.csv"
    while process.poll(0.02) is None and not (table.exists() and table.read_bytes().count(b"\n") > 1):
        pass
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    done = process.finished(30)
    assert done.returncode == 130, done.stderr
    assert time.monotonic() - begin < 5
    assert "interrupted by SIGINT" in done.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("raised", [SystemExit(0), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_a_handler_that_raises_between_two_steps_does_not_hide_the_signal(
    raised: BaseException, tmp_path: Path
) -> None:
    """The environment's handler runs in pgcli's own code if the signal arrives after its step."""
    arrived = []

    def watch(record: Record) -> None:
        if isinstance(record, Iteration):
            arrived.append(record)
            raise raised

    def check() -> None:
        if arrived:
            raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        run_experiment(Request(load_config("cartpole", TINY), tmp_path / "run", []), Context(watch, check))
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("closed", [">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_opened_before_any_table(closed: str, tmp_path: Path) -> None:
    import subprocess

    train(tmp_path / "plain", world="Printing")
    words = " ".join(["train", "cartpole", *TINY, "env.id=worlds:Printing", "--run-dir", "run"])
    script = f"{sys.executable} -m pgcli {words} {closed}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths()}, check=False)
    assert tables(tmp_path / "run") == tables(tmp_path / "plain")


def paths() -> str:
    return os.pathsep.join([str(Path(__file__).parent.parent), PATHS])
