"""Connect to the Ray cluster at RAY_ADDRESS, or start Ray on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pgcli
from pgcli.errors import EnvironmentFailure
from pgcli.system.leaving import STOP, remove_folder, temporary_folder
from pgcli.system.packages import require, versions

PORT_SECONDS = 3.0  # to connect to the port
CONNECT_SECONDS = 30.0  # to the cluster behind it
START_SECONDS = 120.0  # to a local Ray, on a machine that may be busy
DISCONNECT_SECONDS = 20.0  # then Ray's processes end with this process
POLL_SECONDS = 0.05
_SOCKETS = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")  # characters, in Ray's folder
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def join(cpus: int, check: Callable[[], None]) -> Callable[[], None]:
    """Connect to RAY_ADDRESS or start a local Ray with `cpus`; return a function to disconnect.

    `check` is called while waiting. Inside a process of a cluster, this does nothing.
    Raises: UsageError without Ray; EnvironmentFailure, within seconds, if there is no cluster.
    """
    require("ray", "ray", "sampling.backend: ray")
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _check_port(address)
    import ray

    if ray.is_initialized():
        return lambda: None
    thread, limit = _RayThread(address, cpus), START_SECONDS if address == "local" else CONNECT_SECONDS
    stop = time.monotonic() + limit
    try:
        while not thread.is_done.wait(POLL_SECONDS):
            check()
            if time.monotonic() > stop:
                raise EnvironmentFailure(f"no Ray cluster at {address} within {limit:g} s", _hint(address))
        if thread.error is not None:
            lines = str(thread.error).strip().splitlines()
            reason = lines[0] if lines else type(thread.error).__name__
            raise EnvironmentFailure(f"no Ray cluster at {address}: {reason}", _hint(address)) from thread.error
    except BaseException:
        thread.disconnect()
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in STOP:  # Ray's handlers run before Python's and write every signal to stderr
                signal.signal(number, signal.getsignal(number))
    return thread.disconnect


class _RayThread:
    """The thread that connects to Ray: in the main thread, Ray would replace the signal handlers.

    The thread lives as long as the connection, because the kernel ends Ray's processes with the thread that started
    them.
    """

    error: BaseException | None = None

    def __init__(self, address: str, cpus: int) -> None:
        self.is_done, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address, cpus), daemon=True)
        self._folder = temporary_folder(_SOCKETS) if address == "local" else None
        self._thread.start()

    def disconnect(self) -> None:
        """Disconnect, and stop a Ray that was started here."""
        self._leave.set()
        self._thread.join(0 if self._folder is None and not self.is_done.is_set() else DISCONNECT_SECONDS)
        if self._folder is not None:
            remove_folder(self._folder)

    def _run(self, address: str, cpus: int) -> None:
        import ray
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None  # it reports every lost process on stdout
        settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "CRITICAL"}
        if self._folder is not None:
            settings |= {"num_cpus": cpus, "_temp_dir": self._folder}
        try:
            ray.init(address=address, **settings)
        except BaseException as error:
            self.error = error
        self.is_done.set()
        self._leave.wait()
        with contextlib.suppress(Exception):
            ray.shutdown()


def _check_port(address: str) -> None:
    """Raise EnvironmentFailure if nothing listens at an address; Ray would wait for minutes."""
    if address.startswith("ray://"):
        message = f"RAY_ADDRESS {address} is for Ray clients, which pgcli does not support"
        raise EnvironmentFailure(message, "run pgcli on a machine of the cluster with RAY_ADDRESS=HOST:6379")
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise EnvironmentFailure(f"RAY_ADDRESS {address} is not an address", "write it as HOST:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EnvironmentFailure(f"no Ray cluster at {address}: {reason}", _hint(address)) from None


def _hint(address: str) -> str:
    if address == "local":
        return "`ray start --head` shows the cause; sampling.backend=local needs no Ray"
    return (
        "`ray start --head` starts a cluster with this machine; if it requires a token, set RAY_AUTH_TOKEN "
        "and RAY_AUTH_MODE=token; without RAY_ADDRESS, pgcli starts a local Ray"
    )


def cpus() -> int:
    """Return the number of CPUs of the cluster."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray's
    return int(resources.get("CPU", 0))


def cores() -> int:
    """Return the number of usable cores, by CPU affinity and container quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()  # microseconds; the quota may be `max`
        count = min(count, max(1, int(quota) // int(period)))
    return count


def versions_and_source() -> dict[str, str]:
    """Return the versions that must agree on all machines; pgcli's has a digest of its source."""
    text = b"".join(file.read_bytes() for file in sorted(Path(pgcli.__file__).parent.rglob("*.py")))
    return versions() | {"pgcli": f"{pgcli.__version__}-{hashlib.sha256(text).hexdigest()[:8]}"}


def check_versions(ours: dict[str, str], theirs: dict[str, str], host: str) -> None:
    """Raise EnvironmentFailure if machine `host` of the cluster has other versions."""
    different = [
        f"{name} {theirs.get(name, 'none')} (here {ours.get(name, 'none')})"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    if different:
        raise EnvironmentFailure(
            f"{host} has {', '.join(different)}: its results would differ", "install the same versions on all machines"
        )
