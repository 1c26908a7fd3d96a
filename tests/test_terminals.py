"""Terminals, pipes and signals: training continues, or ends with its state saved."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
from command_line import pgcli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are shown where there are some")
RUN = (
    *("cartpole/ppo", "rollout.steps=16", "env.num_envs=2", "training.env_steps=null", "evaluation.every=null"),
    *("evaluation.episodes=2", "evaluation.stop_at_return=null", "env.max_episode_steps=30", "--run-dir", "run"),
)
LONG = ("train", *RUN, "training.iterations=100000", "checkpoint.every=1000")
SHORT = ("train", *RUN, "training.iterations=5")
BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}


class Terminal:
    """A command on its own terminal; stdout is a pipe."""

    def __init__(self, words: Sequence[str], cwd: Path, size: tuple[int, int], environment: Mapping[str, str]) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.resize(*size)
        command = [sys.executable, "-m", "pgcli", *words]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            env=BARE | {"TERM": "xterm-256color"} | dict(environment),
            start_new_session=True,
        )
        os.close(slave)
        self.shown = b""

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Read the screen until a condition holds, or the end."""
        stop = time.monotonic() + seconds
        while not until() and time.monotonic() < stop:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self.master, 65536)
                except OSError:  # the other side is closed
                    break

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """Return the exit code and stdout."""
        self.read(lambda: self.process.poll() is not None, seconds)
        self.read(lambda: False, 0.1)
        assert self.process.stdout
        with self.process.stdout as pipe:
            return self.process.wait(10), pipe.read().decode()

    @property
    def cursor_is_shown(self) -> bool:
        return self.shown.rfind(b"\x1b[?25h") >= self.shown.rfind(b"\x1b[?25l")


@contextlib.contextmanager
def terminal(
    words: Sequence[str],
    cwd: Path,
    size: tuple[int, int] = (24, 80),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Terminal]:
    shown = Terminal(words, cwd, size, environment)
    try:
        yield shown
    finally:
        if shown.process.poll() is None:
            shown.process.kill()
            shown.process.wait()
        if shown.process.stdout:
            shown.process.stdout.close()
        with contextlib.suppress(OSError):
            os.close(shown.master)


def trains(cwd: Path, rows: int = 0) -> bool:
    """Return whether a run has written this number of rows."""
    table = cwd / "run/metrics.csv"
    return table.exists() and table.read_bytes().count(b"\n") > rows


@pytest.mark.parametrize(
    ("environment", "has"),
    [
        ({"COLUMNS": "20"}, b"\x1b["),
        ({"COLUMNS": "0"}, b""),
        ({"TERM": "dumb"}, b"evaluation at iteration 5"),
        ({"NO_COLOR": "1"}, b""),
        ({"LANG": "C", "PYTHONIOENCODING": "ascii"}, b""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_terminal_of_any_kind_shows_a_run_to_its_end(environment: dict[str, str], has: bytes, tmp_path: Path) -> None:
    with terminal(SHORT, tmp_path, environment=environment) as shown:
        code, result = shown.finish()
    assert (code, result) == (0, "run\n")
    assert has in shown.shown
    assert b"Traceback" not in shown.shown
    assert shown.cursor_is_shown
    if "NO_COLOR" in environment:
        assert b"\x1b[3" not in shown.shown.replace(b"\x1b[?", b"")
    if environment.get("TERM") == "dumb":
        assert b"\x1b" not in shown.shown


def test_a_terminal_may_change_its_size_while_it_trains(tmp_path: Path) -> None:
    with terminal(LONG, tmp_path, (24, 20)) as shown:
        for rows, size in enumerate(((1, 1), (0, 0), (24, 10_000), (2, 3), (24, 80))):
            shown.read(lambda rows=rows: trains(tmp_path, 40 * (rows + 1)))  # type: ignore[misc]
            shown.resize(*size)
            shown.process.send_signal(signal.SIGWINCH)
        before = len(shown.shown)
        shown.read(lambda: len(shown.shown) > before + 2000)
        assert shown.process.poll() is None
        shown.process.send_signal(signal.SIGINT)
        assert shown.finish()[0] == 130
    assert b"Traceback" not in shown.shown
    assert shown.cursor_is_shown


def test_repeated_interrupts_exit_immediately_without_damage(tmp_path: Path) -> None:
    with terminal(LONG, tmp_path) as shown:
        shown.read(lambda: trains(tmp_path, 3))
        begin = time.monotonic()
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                shown.process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        assert shown.finish(5)[0] == 130
        assert time.monotonic() - begin < 2
    assert shown.cursor_is_shown
    pgcli("resume", "run", "training.iterations=3", "--quiet", cwd=tmp_path)


def test_a_terminal_that_is_closed_ends_the_run_with_its_state_saved(tmp_path: Path) -> None:
    with terminal(LONG, tmp_path) as shown:
        shown.read(lambda: trains(tmp_path, 3))
        os.close(shown.master)  # a session's leader receives SIGHUP if this is its terminal; a shell forwards it
        shown.process.send_signal(signal.SIGHUP)
        assert shown.process.wait(5) == 129
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "interrupted"
    assert (tmp_path / f"run/checkpoints/iteration-{status['iteration']:06d}.safetensors").exists()


@pytest.mark.parametrize(
    "redirection",
    [">&-", "2>&-", ">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true", "</dev/null >/dev/null 2>&1 &\nwait $!"],
)
def test_closed_full_or_unread_streams_do_not_stop_a_run(redirection: str, tmp_path: Path) -> None:
    words = " ".join([sys.executable, "-m", "pgcli", *SHORT])
    script = f"set -o pipefail; cd {tmp_path}; {words} {redirection}"
    done = subprocess.run(["bash", "-c", script], env=BARE, capture_output=True, check=False, timeout=90)
    assert done.returncode == ("full" in redirection), "a full disk is an error, a closed stream is not"
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"


def test_a_run_needs_no_home_no_terminal_and_no_folder_for_temporary_files(tmp_path: Path) -> None:
    environment = BARE | {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "MPLCONFIGDIR": "/nonexistent"}
    for words in ([*SHORT, "--quiet"], ["plot", "run"], ["eval", "run", "--episodes", "2"], ["verify", "run"]):
        done = subprocess.run(
            [sys.executable, "-m", "pgcli", *words],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
