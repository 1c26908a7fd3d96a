"""How pgcli comes to Ray: to the cluster at RAY_ADDRESS, or to one of its own on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pgcli import __version__
from pgcli.errors import EnvironmentFailure
from pgcli.system.packages import require
from pgcli.system.signals import STOP

CONNECT_SECONDS = 3.0  # to the port
JOIN_SECONDS = 30.0  # to the cluster behind it
START_SECONDS = 120.0  # of a Ray of its own, on a busy machine
LEAVE_SECONDS = 20.0  # then the end of this process ends what it has started
POLL_SECONDS = 0.05
_PACKAGES = ("torch", "gymnasium", "numpy", "Box2D", "mujoco", "ale-py")  # of those installed, bytes depend on each
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def join(cpus: int, check: Callable[[], None]) -> Callable[[], None]:
    """Join the cluster at RAY_ADDRESS; without one, start Ray on this machine with `cpus`. Give what leaves it again.

    `check` is called while waiting. Within a cluster's own process there is nothing to join or to leave.
    Raises: UsageError without Ray; EnvironmentFailure, within seconds, if there is no cluster.
    """
    require("ray", "ray", "sampling.backend: ray")
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _knock(address)
    import ray

    if ray.is_initialized():
        return lambda: None
    member, limit = _Member(address, cpus), START_SECONDS if address == "local" else JOIN_SECONDS
    stop = time.monotonic() + limit
    try:
        while not member.there.wait(POLL_SECONDS):
            check()
            if time.monotonic() > stop:
                raise EnvironmentFailure(f"no Ray cluster at {address} within {limit:g} s", _mend(address))
        if member.error is not None:
            said = str(member.error).strip().splitlines()
            what = said[0] if said else type(member.error).__name__
            raise EnvironmentFailure(f"no Ray cluster at {address}: {what}", _mend(address)) from member.error
    except BaseException:
        member.leave()
        raise
    finally:
        _take_back_signals()
    return member.leave


class _Member:
    """The thread that holds Ray: not the main one, whose signal handlers Ray would replace.

    It lives as long as its Ray, for the kernel ends what a thread has started when that thread ends.
    """

    def __init__(self, address: str, cpus: int) -> None:
        self.there, self._over, self.error = threading.Event(), threading.Event(), None
        self._thread = threading.Thread(target=self._hold, args=(address, cpus), daemon=True)
        self._folder = tempfile.mkdtemp(prefix="pgcli-") if address == "local" else None  # sockets want short names
        self._thread.start()

    error: BaseException | None

    def leave(self) -> None:
        """Disconnect; end what was started here."""
        self._over.set()
        self._thread.join(0 if self._folder is None and not self.there.is_set() else LEAVE_SECONDS)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _hold(self, address: str, cpus: int) -> None:
        import ray
        from ray._private import worker

        worker.print_to_stdstream = lambda *told, **how: None  # what it tells of every lost process, on stdout
        settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "CRITICAL"}
        if self._folder is not None:
            settings |= {"num_cpus": cpus, "_temp_dir": self._folder}
        try:
            ray.init(address=address, **settings)
        except BaseException as error:
            self.error = error
        self.there.set()
        self._over.wait()
        with contextlib.suppress(Exception):
            ray.shutdown()


def _take_back_signals() -> None:
    """Put Python's handlers back under those that Ray has put in front, which tell stderr of every signal."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP:
            signal.signal(number, signal.getsignal(number))


def _knock(address: str) -> None:
    """Raise EnvironmentFailure where nobody listens: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        message = f"RAY_ADDRESS {address} is that of a Ray client, and pgcli joins the cluster itself"
        raise EnvironmentFailure(message, "run pgcli on a machine of the cluster, with RAY_ADDRESS=HOST:6379")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        if address == "auto":
            return
        raise EnvironmentFailure(f"RAY_ADDRESS {address} is no address", "write it as HOST:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EnvironmentFailure(f"no Ray cluster at {address}: {reason}", _mend(address)) from None


def _mend(address: str) -> str:
    if address == "local":
        return "`ray start --head` shows what keeps it; sampling.backend=local needs no Ray"
    return (
        "`ray start --head` starts one; this machine must be in it, with its RAY_AUTH_TOKEN and RAY_AUTH_MODE=token "
        "if it wants a token; without RAY_ADDRESS pgcli starts its own"
    )


def cpus() -> int:
    """Count the CPUs of the cluster."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray's
    return int(resources.get("CPU", 0))


def cores() -> int:
    """Count the cores that this process may use: those that it is bound to, within the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()  # microseconds; `max` is no number
        bound = min(bound, max(1, int(quota) // int(period)))
    return bound


def versions() -> dict[str, str]:
    """Name the versions that must be the same on all machines, for the same bytes; of pgcli, down to its text."""
    package = Path(__file__).parent
    text = b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))
    found = {
        "python": platform.python_version(),
        "pgcli": f"{__version__}-{hashlib.sha256(text).hexdigest()[:8]}",
    }
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_versions(theirs: dict[str, str], host: str) -> None:
    """Raise EnvironmentFailure if a machine of the cluster has other versions than this one."""
    ours = versions()
    different = [
        f"{name} {theirs.get(name, 'none')} (here {ours.get(name, 'none')})"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    if different:
        raise EnvironmentFailure(
            f"{host} has {', '.join(different)}: its bytes would be others", "install the same versions on all machines"
        )
