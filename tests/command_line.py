"""Run `pgcli` as a user does, but faster: in a fork of a process that has imported everything.

The template is a separate process, so a command inherits nothing from a test: no modules, no registered environments,
no warning filters. `pgcli(…, real_process=True)` starts Python anew.

The template executes no command. For each one it forks a parent, which forks the command and reports its exit code.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parent.parent
PYTHON_PATH = tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def pgcli(
    *arguments: object,
    cwd: Path,
    code: int | None = 0,
    real_process: bool = False,
    timeout: float = 120,
    **environment: str,
) -> CompletedProcess[str]:
    """Run a command to its end; check its exit code, unless it is None, and that it prints no traceback."""
    words = list(map(str, arguments))
    if real_process:
        done = subprocess.run(
            [sys.executable, "-m", "pgcli", *words],
            cwd=cwd,
            env=whole(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    else:
        done = Command(*words, cwd=cwd, **environment).finished(timeout)
    assert code in (None, done.returncode), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def whole(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment variables of a command, which runs the tested `pgcli`."""
    paths = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT), *PYTHON_PATH)))
    return os.environ | environment | {"PYTHONPATH": paths}


class Command:
    """A running command, as in `subprocess.Popen`; it writes its output to files.

    Args:
        arguments: What follows `pgcli`.
        cwd: The folder in which it runs.
        environment: Variables to add to those of the test.
    """

    def __init__(self, *arguments: object, cwd: Path, **environment: str) -> None:
        self.arguments = list(map(str, arguments))
        self.returncode: int | None = None
        self.stdout, self.stderr = "", ""  # until the end
        self._files: list[IO[bytes]] = [opened(), opened()]
        self._parent, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(template(), [b"fork"], [theirs.fileno(), *(file.fileno() for file in self._files)])
        request = {"arguments": self.arguments, "cwd": str(cwd), "environment": whole(environment)}
        self._parent.sendall(json.dumps(request).encode())
        self._parent.shutdown(socket.SHUT_WR)
        self.pid = number(self._parent.recv(8))

    def poll(self, seconds: float = 0.0) -> int | None:
        """Return the exit code, or None if the command still runs after the timeout."""
        if self.returncode is None and select.select([self._parent], [], [], seconds)[0]:
            self.returncode = number(self._parent.recv(8))
            self._parent.close()
            self.stdout, self.stderr = map(content, self._files)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end and return the exit code. Kills the command and raises TimeoutExpired after `timeout`."""
        code = self.poll(timeout)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.arguments, timeout, *map(content, self._files))
        return code

    def finished(self, timeout: float = 120) -> CompletedProcess[str]:
        """Wait for the end and return the result."""
        code = self.wait(timeout)
        return CompletedProcess(self.arguments, code, self.stdout, self.stderr)

    def send_signal(self, which: int) -> None:
        """Send a signal to the command, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, which)


def opened() -> IO[bytes]:
    """Return a file without a name."""
    return tempfile.TemporaryFile()


def content(file: IO[bytes]) -> str:
    """Return the content of a file, and close it."""
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


def number(reply: bytes) -> int:
    """Return the number sent by the parent of a command."""
    assert len(reply) == 8, "the template has ended: see stderr"
    return int.from_bytes(reply, "little", signed=True)


# ------------------------------------------------------------------------------------------------------- the template

PRELOADED = (
    *("torch", "gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "gymnasium.wrappers", "scipy.stats"),
    *("matplotlib.backends.backend_agg", "PIL.Image", "rich.progress", "typer.rich_utils", "unittest.mock"),
)


@functools.cache
def template() -> socket.socket:
    """Start the template, which ends with this process; return its socket for commands."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.set_inheritable(True)
        no_input = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        words = [sys.executable, __file__, str(theirs.fileno())]
        os.posix_spawn(sys.executable, words, os.environ, file_actions=[no_input])
    return ours


def serve(requests: socket.socket) -> None:
    """Import everything; then fork for each command, until the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the parents of commands
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `pgcli.__main__` does, before numpy is there
    sys.path[:] = [str(ROOT), *(path for path in sys.path[1:] if path not in (*PYTHON_PATH, str(ROOT)))]
    for name in PRELOADED:
        importlib.import_module(name)
    package = importlib.import_module("pgcli")
    for module in pkgutil.walk_packages(package.__path__, "pgcli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(requests, 9, 3)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            start(*files)
        for file in files:
            os.close(file)


def start(channel: int, stdout: int, stderr: int) -> NoReturn:
    """Run as the parent of one command: read it, fork it, report its number and exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=channel) as test:
        with test.makefile("rb") as file:
            request = json.loads(file.read())
        pid = os.fork()
        if pid == 0:
            execute(request, stdout, stderr)
        os.close(stdout)
        os.close(stderr)
        test.sendall(pid.to_bytes(8, "little", signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        test.sendall(code.to_bytes(8, "little", signed=True))
    os._exit(0)


def execute(request: dict[str, Any], stdout: int, stderr: int) -> NoReturn:
    """Turn this process into `python -m pgcli`."""
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.closerange(3, 1024)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[:0] = [request["cwd"], *filter(None, os.environ["PYTHONPATH"].split(os.pathsep))]
        sys.argv = ["pgcli", *request["arguments"]]
        del sys.modules["__main__"], sys.modules["__mp_main__"]  # multiprocessing adds the second
        runpy.run_module("pgcli", run_name="__main__", alter_sys=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
