"""A pool of worker processes with their own environments and policies.

Workers run whole chunks. Parameters, tasks and results are sent as anonymous files in memory once they are complete, so
a process that stops or dies never blocks another one. The system frees this memory when the last process that uses it
ends, even after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.config.schema import EnvConfig, PolicyConfig
from pgcli.errors import EnvironmentFailure
from pgcli.policies.policy import Policy, parameters_of
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import HANG_SECONDS, TRIES, Task, build_policy, closing_error, pickled_apart, sendable
from pgcli.system.process_state import changes, environments_turn, kept, report_changes
from pgcli.system.processes import POLL_SECONDS, Check, ignore_interrupts, interruptible, process_context, start_process

Array = NDArray[Any]
CLOSE_SECONDS = 5.0
WITHOUT_WORKERS = "sampling.workers=0 needs no shared memory"
_STEPS, _TASK = 0, 1  # a worker's progress: the number of steps so far, and of its task


class ProcessPool:
    """Up to `count` worker processes."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, count: int) -> None:
        self._env, self._policy, self.count = env, policy, count
        self._workers: dict[int, _Worker] = {}
        self._progress: Tensor | None = None  # [count, 2], shared

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run the tasks, see WorkerPool. Replace workers that die or hang, and repeat their tasks."""
        parameters = [tensor.numpy() for tensor in parameters_of(policy, None).values()]
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        losses = Counter[int]()
        shares: dict[int, dict[int, Task]] = {}
        for number, task in tasks.items():
            shares.setdefault(number % self.count, {})[number] = task
        busy: dict[int, _Worker] = {}
        try:
            for index, share in shares.items():
                busy[index] = self._send(index, parameters, share)
            while busy:
                check()
                wait([worker.connection for worker in busy.values()], POLL_SECONDS)
                for index, worker in list(busy.items()):
                    if reason := worker.loss():
                        losses[index] += 1
                        self._end(index)
                        if losses[index] == TRIES:
                            raise EnvironmentFailure(
                                f"the worker process of chunk {worker.task} {reason}, {TRIES} times in a row",
                                "sampling.workers=0 runs the environments in this process and shows the cause",
                            )
                        busy[index] = self._send(index, parameters, shares[index])
                    elif answer := worker.receive():
                        results |= answer[0]
                        failures |= answer[1]
                        del busy[index]
        except BaseException:
            for index in busy:
                self._end(index)
            raise
        if failures:
            raise failures[min(failures)]
        return results

    def close(self) -> None:
        """Close the workers' environments and end the workers."""
        stop = time.monotonic() + CLOSE_SECONDS
        failure: Exception | None = None
        try:
            for worker in self._workers.values():
                worker.send(None)
            for worker in self._workers.values():
                failure = failure or worker.closing_error(stop)
        finally:
            for index in list(self._workers):
                self._end(index)
        if failure is not None:
            raise failure

    def _send(self, index: int, parameters: list[Array], tasks: dict[int, Task]) -> _Worker:
        """Send tasks to a worker; start the worker first if necessary."""
        if self._progress is None:
            self._progress = _shared(torch.zeros(self.count, 2, dtype=torch.int64))
        if index not in self._workers:
            self._workers[index] = _Worker(self._env, self._policy, self._progress[index])
        self._workers[index].send((parameters, tasks))
        return self._workers[index]

    def _end(self, index: int) -> None:
        if worker := self._workers.pop(index, None):
            worker.end()


class _Worker:
    """The parent's handle of one worker process."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, progress: Tensor) -> None:
        with interruptible():
            context = process_context()
            self.connection, theirs = context.Pipe()
            alive, self._alive = context.Pipe(duplex=False)  # closed when this process ends
            arguments = (theirs, alive, progress, env, policy, os.getcwd())
            self._process = start_process(context, _work, arguments, daemon=True)
        self._mail, self._progress = _Mail(self.connection), progress
        theirs.close()
        alive.close()
        self._steps, self._since, self._gone = -1, time.monotonic(), False

    @property
    def task(self) -> int:
        """The number of the current or last task."""
        return int(self._progress[_TASK])

    def send(self, work: tuple[list[Array], dict[int, Task]] | None) -> None:
        """Send parameters and tasks, or None to end the worker. Raises an error if pickling fails."""
        self._since = time.monotonic()
        with contextlib.suppress(ConnectionError):  # `loss` reports it
            self._mail.send(work)

    def loss(self) -> str:
        """Return how the worker died, or that it hangs; "" if it works."""
        if not self._gone and self.connection.poll():
            return ""  # an answer, or the end of the pipe: `receive` handles both
        if self._gone or not self._process.is_alive():
            code = self._process.exitcode
            return "was killed" if code is None or code < 0 else f"exited with code {code}"
        steps = int(self._progress[_STEPS])
        if steps != self._steps:
            self._steps, self._since = steps, time.monotonic()
        return f"made no step in {HANG_SECONDS:g} s" if time.monotonic() - self._since > HANG_SECONDS else ""

    def receive(self) -> tuple[dict[int, Any], dict[int, Exception]] | None:
        """Return results and errors by task, or None if nothing has arrived."""
        try:
            if not self.connection.poll():
                return None
            results, failures, changed = self._mail.receive()
        except (EOFError, ConnectionError):
            self._gone = True
            self._process.join(1)  # `loss` reports how it ended
            return None
        report_changes(changed)
        return results, failures

    def closing_error(self, stop: float) -> Exception | None:
        """Wait until the worker has closed its environments; return the error, if any."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll(max(stop - time.monotonic(), 0)):
                error = self._mail.receive()
                return error if isinstance(error, Exception) else None
        return None

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._mail.close()
        self._alive.close()


def _shared(tensor: Tensor) -> Tensor:
    """Move a tensor to shared memory."""
    try:
        shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    except RuntimeError:
        for file in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):  # torch leaves an empty file
            file.unlink(missing_ok=True)
        raise EnvironmentFailure("no shared memory is left for worker processes", WITHOUT_WORKERS) from None
    return shared


class _Mail:
    """One end of a connection. On Linux, an object is written to shared memory before its receiver learns of it.

    The memory is used again for the next object, so the receiver must read each object before it answers.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._memory = open(os.memfd_create("pgcli"), "w+b") if hasattr(os, "memfd_create") else None  # noqa: SIM115

    def send(self, value: object) -> None:
        """Send an object. Raises: ConnectionError; EnvironmentFailure without memory."""
        data, buffers = pickled_apart(value)
        if self._memory is None:  # a large object waits for its receiver
            self.connection.send((data, list(map(bytearray, buffers))))
            return
        try:
            self._memory.seek(0)
            pickle.dump([len(data), *map(len, buffers)], self._memory)
            self._memory.writelines([data, *buffers])
            self._memory.flush()
            with self._socket() as there:
                socket.send_fds(there, [b"\0"], [self._memory.fileno()])
        except ConnectionError:
            raise
        except OSError as error:
            message = f"no memory is left for the data of worker processes: {error.strerror}"
            raise EnvironmentFailure(message, WITHOUT_WORKERS) from None

    def receive(self) -> Any:
        """Receive an object: wait for its message, but not for its bytes. Raises: EOFError, OSError."""
        if self._memory is None:
            data, buffers = self.connection.recv()
            return pickle.loads(data, buffers=buffers)
        with self._socket() as there:
            message, descriptors, *_ = socket.recv_fds(there, 1, 1)
        if not message:
            raise EOFError
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with open(descriptors[0], "rb") as memory:
            memory.seek(0)
            parts = [np.empty(size, np.uint8).data for size in pickle.load(memory)]
            for part in parts:
                memory.readinto(part)
        return pickle.loads(parts[0], buffers=parts[1:])

    def close(self) -> None:
        """Close the connection and the memory."""
        self.connection.close()
        if self._memory is not None:
            self._memory.close()

    def _socket(self) -> socket.socket:
        return socket.fromfd(self.connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


# ------------------------------------------------------------------------------------------------- in the worker


def _work(
    connection: Connection,
    alive: Connection,
    progress: Tensor,
    env: EnvConfig,
    policy_config: PolicyConfig,
    folder: str,
) -> None:
    """Run the parent's tasks until it sends None or ends."""
    ignore_interrupts()  # a terminal's Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, args=(alive,), daemon=True).start()
    os.dup2(2, 1)  # stdout is for results
    os.chdir(folder)
    torch.set_num_threads(1)
    state = contextlib.ExitStack()
    state.enter_context(kept())  # until this process ends
    gc.freeze()  # as in a run
    report = progress.numpy()
    report[:] = 0
    policy: Policy | None = None
    mail, environments = _Mail(connection), EnvironmentCache(env)

    def check() -> None:
        report[_STEPS] += 1

    while True:
        try:
            work: tuple[list[Array], dict[int, Task]] | None = mail.receive()
        except EOFError:
            os._exit(0)
        if work is None:
            break
        parameters, tasks = work
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        for number, task in tasks.items():
            report[_TASK] = number
            check()
            try:
                if policy is None:
                    policy = build_policy(env, policy_config)
                for tensor, array in zip(parameters_of(policy, None).values(), parameters, strict=True):
                    tensor.numpy()[...] = array
                with environments_turn():
                    results[number] = task(environments, policy, check)
            except BaseException as error:
                failures[number] = sendable(error)
                break
        try:
            mail.send((results, failures, changes()))
        except EnvironmentFailure as error:
            mail.send(({}, {min(tasks): error}, []))
    with contextlib.suppress(OSError):
        mail.send(closing_error(environments))
    os._exit(0)  # immediately: everything is sent


def _leave_with_parent(alive: Connection) -> None:
    """Exit as soon as the parent has ended for any reason."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)
