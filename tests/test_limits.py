"""The surroundings of a command: temporary folders, limits, current folder, fork server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from command_line import ROOT, Command, pgcli, whole
from helpers import is_running

from pgcli.errors import EnvironmentFailure
from pgcli.system import processes
from pgcli.system.leaving import temporary_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX: signals, sockets, limits")
TINY = (
    *(
        "env.chunk_size=2",
        "rollout.episodes=4",
        "env.max_episode_steps=20",
        "training.env_steps=null",
    ),
    *("training.iterations=2", "evaluation.episodes=2", "evaluation.stop_at_return=null", "--quiet"),
)


def shell(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", script.replace("PGCLI", f"{sys.executable} -m pgcli")]
    return subprocess.run(
        command, cwd=cwd, env=whole(environment), capture_output=True, text=True, check=False, timeout=90
    )


def test_jobs_leave_no_folder_and_need_no_short_tmpdir(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 150)
    long.mkdir()
    words = ("train", "cartpole", *TINY, "--seeds", "0,1", "--jobs", "2")
    before = set(Path("/tmp").glob("pgcli-*"))  # a killed process with the same id may have left one
    command = Command(*words, cwd=tmp_path, TMPDIR=str(long))
    done = command.finished()
    assert done.returncode == 0, done.stderr
    assert not list(long.iterdir())
    assert not set(Path("/tmp").glob(f"pgcli-{command.pid}-*")) - before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_temporary_folder(number: signal.Signals, tmp_path: Path) -> None:
    pgcli("train", "cartpole", *TINY, "--run-dir", "run", cwd=tmp_path)
    words = ["eval", "run", "--workers", "2", "--episodes", "1000000"]
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        process = Command(*words, cwd=tmp_path, TMPDIR=short)
        stop = time.monotonic() + 60
        while process.poll(0.02) is None and not list(Path(short).glob("pgcli-*/*/*")) and time.monotonic() < stop:
            pass
        process.send_signal(number)
        done = process.finished(20)
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
        assert not list(Path(short).iterdir())


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    words = ["train", "cartpole", *TINY, "training.iterations=30", "--run-dir", "run"]
    command = f"trap '' HUP; exec PGCLI {' '.join(words)}"
    command = command.replace("PGCLI", f"{sys.executable} -m pgcli")
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env=whole({}), stdout=subprocess.DEVNULL) as process:
        stop = time.monotonic() + 60
        while process.poll() is None and not (tmp_path / "run/metrics.csv").exists() and time.monotonic() < stop:
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0


def test_a_deleted_current_folder_is_reported(tmp_path: Path) -> None:
    done = shell("mkdir gone; cd gone; rmdir ../gone; PGCLI train cartpole; PGCLI --version", tmp_path)
    assert done.stderr == "error: the current folder was deleted\nhint: change to an existing folder with `cd`\n"
    assert done.stdout.startswith("pgcli ")


@pytest.mark.parametrize("limit", [14, 22])
def test_too_few_descriptors_are_reported_as_the_cause(limit: int, tmp_path: Path) -> None:
    done = shell(f"ulimit -n {limit}; PGCLI train cartpole {' '.join(TINY)} sampling.workers=2", tmp_path)
    assert done.returncode in (3, 4)
    assert f"too many open files in this process (limit: {limit})" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_fork_server_is_restarted_and_finally_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, **_: object) -> None: ...

        def start(self) -> None:
            starts.append(1)
            if len(starts) < needed:
                raise EOFError

    starts: list[int] = []
    monkeypatch.setattr(processes, "process_context", lambda: None)
    context = type("Context", (), {"Process": Process})
    needed = 2
    processes.start_process(context, print, ())  # type: ignore[arg-type]  # it only starts processes
    assert len(starts) == 2
    starts, needed = [], 100
    with pytest.raises(EnvironmentFailure, match="was killed 3 times in a row"):
        processes.start_process(context, print, ())  # type: ignore[arg-type]


START = """
import os, signal, time
from multiprocessing import forkserver
from pgcli.system.processes import process_context
came = []
signal.signal(signal.SIGINT, lambda *_: came.append(1))
real = forkserver.ensure_running
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    real()
forkserver.ensure_running = interrupted
process_context()
print(came, flush=True)
os._exit(0)
"""


def test_an_interrupt_while_the_fork_server_starts_is_not_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, env=whole({}), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[1]\n", done.stderr


LEAVES = """
import os, time
from pathlib import Path
from pgcli.system.processes import process_context
process_context()
while not (Path("pid").exists() and Path("pid").read_text()):
    time.sleep(0.01)
os._exit(0)
"""
INTERRUPTED = """
import os, signal, threading, time
from pathlib import Path
from pgcli.errors import Interrupted
from pgcli.system.processes import interruptible, process_context, start_process
from pgcli.system.signals import StopOnSignal

def interrupt():
    while not (Path("pid").exists() and Path("pid").read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

with StopOnSignal() as stop:
    threading.Thread(target=interrupt, daemon=True).start()
    for call in (lambda: start_process(process_context(), print, ()), stop.check):
        try:
            with interruptible():
                call()
        except Interrupted as interrupted:
            print(interrupted.exit_code, flush=True)
os._exit(0)
"""
IMPORTED = """
import os, time
from pathlib import Path
Path(__file__).with_name("pid").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent")
def test_an_interrupt_does_not_wait_for_a_fork_server_that_still_imports(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(IMPORTED)
    command, environment = [sys.executable, "-c", INTERRUPTED], whole({"PYTHONPATH": str(tmp_path)})
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "130\n130\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent")
def test_a_fork_server_that_still_imports_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(IMPORTED)
    command, paths = [sys.executable, "-c", LEAVES], {"PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=whole(paths), check=True, timeout=60)
    server, stop = int((tmp_path / "pid").read_text()), time.monotonic() + 60
    while is_running(server) and time.monotonic() < stop:
        time.sleep(0.01)
    assert not is_running(server)


def test_modules_in_the_current_folder_never_hide_installed_ones(tmp_path: Path) -> None:
    for name in ("torch", "signal", "enum", "random", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the current folder hides a module')")
    script = tmp_path / "bin/pgcli"  # as pip writes it
    script.parent.mkdir()
    script.write_text("if __name__ == '__main__':\n    from pgcli.__main__ import main\n    main()\n")
    train: list[str | Path] = [
        sys.executable,
        script,
        "train",
        "cartpole",
        *TINY,
        "sampling.workers=2",
        "--run-dir",
        "run",
    ]
    for command in (train, [sys.executable, "-m", "pgcli", "show", "run"]):
        done = subprocess.run(
            command, cwd=tmp_path, env=whole({}), capture_output=True, text=True, check=False, timeout=90
        )
        assert done.returncode == 0, done.stderr
        assert "hides" not in done.stderr


def test_a_socket_path_that_is_too_long_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="too long for a socket"):
        temporary_folder(room=200)
