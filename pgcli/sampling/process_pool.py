"""A pool of worker processes: each has environments and a copy of the policy, and runs whole chunks.

Messages are small and go through pipes. Parameters and results go through shared memory, which the parent makes and
frees. A worker that dies or hangs is replaced, and its chunks run again, with the same bytes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig, PolicyConfig
from pgcli.errors import EnvironmentFailure
from pgcli.policies.policy import Policy, parameters_of
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import (
    HANG_SECONDS,
    TRIES,
    Task,
    build_policy,
    closing_error,
    pickled,
    pickled_apart,
    sendable,
)
from pgcli.system.processes import POLL_SECONDS, Check, process_context

CLOSE_SECONDS = 5.0
_HEAD = 2 * 8  # bytes per worker in the block of parameters: steps so far, the task that it runs


class ProcessPool:
    """Up to `count` worker processes."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, count: int) -> None:
        self._env, self._policy, self.count = env, policy, count
        self._workers: dict[int, _Worker] = {}
        self._shared: SharedMemory | None = None

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run task n on worker n mod `count`, in the order of n; return the results by n.

        A task may run more than once, in a new worker, if its worker dies or hangs. `check` is called meanwhile; an
        exception in it ends the busy workers. If several tasks fail, the error of the smallest n is raised.
        """
        self._write(policy)
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        losses: Counter[int] = Counter()
        shares: dict[int, dict[int, Task]] = {}
        for number, task in tasks.items():
            shares.setdefault(number % self.count, {})[number] = task
        busy: dict[int, _Worker] = {}
        try:
            for place, share in shares.items():
                busy[place] = self._send(place, share)
            while busy:
                check()
                wait([worker.connection for worker in busy.values()], POLL_SECONDS)
                for place, worker in list(busy.items()):
                    if reason := worker.loss():
                        losses[place] += 1
                        at = worker.task
                        self._end(place)
                        if losses[place] == TRIES:
                            del busy[place]
                            raise EnvironmentFailure(
                                f"the worker process of chunk {at} {reason}, {TRIES} times in a row",
                                "with 0 workers it happens in this process, which shows more",
                            )
                        busy[place] = self._send(place, shares[place])
                    elif answer := worker.receive():
                        results |= answer[0]
                        failures |= answer[1]
                        del busy[place]
        except BaseException:
            for place in busy:
                self._end(place)
            raise
        if failures:
            raise failures[min(failures)]
        return results

    def close(self) -> None:
        """Close the workers' environments and end the workers."""
        workers, stop = list(self._workers.values()), time.monotonic() + CLOSE_SECONDS
        failure: Exception | None = None
        try:
            for worker in workers:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
            for worker in workers:
                failure = failure or worker.closing_error(stop)
        finally:
            for place in list(self._workers):
                self._end(place)
            if self._shared is not None:
                _free(self._shared)
                self._shared = None
        if failure is not None:
            raise failure

    def _write(self, policy: Policy) -> None:
        """Copy the parameters to where every worker reads them."""
        arrays = [tensor.numpy() for tensor in parameters_of(policy, None).values()]
        head = _HEAD * self.count
        if self._shared is None:
            self._shared = _reserve(head + sum(array.nbytes for array in arrays))
            if self._shared is None:
                raise EnvironmentFailure(
                    "there is no shared memory for the parameters of the policy", "0 workers need none"
                )
        start = head
        for array in arrays:
            _view(self._shared, array.dtype, array.size, start)[:] = array.ravel()
            start += array.nbytes

    def _send(self, place: int, tasks: dict[int, Task]) -> _Worker:
        """Send tasks to a worker, which is started if there is none."""
        assert self._shared is not None
        if place not in self._workers:
            self._workers[place] = _Worker(self._env, self._policy, self._shared, place, self.count)
        self._workers[place].send(tasks)
        return self._workers[place]

    def _end(self, place: int) -> None:
        self._workers.pop(place).end()


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, shared: SharedMemory, place: int, count: int) -> None:
        context = process_context()
        self._shared, self._place = shared, place
        self._block: SharedMemory | None = None
        self.connection, there = context.Pipe()
        alive, self._alive = context.Pipe(duplex=False)  # ends when this process does
        arguments = (there, alive, shared.name, place, count, env, policy, os.getcwd())
        self._process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        there.close()
        alive.close()
        self._steps, self._since, self._gone = -1, time.monotonic(), False

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return self._process.pid

    @property
    def task(self) -> int:
        """The number of the task that it runs, or ran last."""
        return self._head(1)

    def send(self, tasks: dict[int, Task]) -> None:
        """Send tasks. Raises: an error if they cannot be pickled."""
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # `loss` finds out
            self.connection.send(tasks)

    def loss(self) -> str:
        """Return how it died, or that it hangs; nothing if it works."""
        if not self._gone and self.connection.poll():
            return ""  # an answer, or the end of the pipe, which `receive` finds
        if self._gone or not self._process.is_alive():
            code = self._process.exitcode
            return "was killed" if code is None or code < 0 else f"ended itself with exit code {code}"
        steps = self._head(0)
        if steps != self._steps:
            self._steps, self._since = steps, time.monotonic()
        return f"made no step in {HANG_SECONDS:g} s" if time.monotonic() - self._since > HANG_SECONDS else ""

    def receive(self) -> tuple[dict[int, Any], dict[int, Exception]] | None:
        """Return results and errors by task, or None while there are none."""
        try:
            if not self.connection.poll():
                return None
            kind, *content = self.connection.recv()
            if kind == "room":  # for so many bytes
                if self._block is not None:
                    _free(self._block)
                self._block = _reserve(int(1.25 * content[0]))
                self.connection.send(None if self._block is None else self._block.name)
                return None
        except (EOFError, OSError):
            self._gone = True
            self._process.join(1)  # `loss` reports how it ended
            return None
        data, sizes, failures = content
        if kind == "pipe":
            return pickle.loads(data), failures
        assert self._block is not None
        buffers, start = [], 0
        for size in sizes:
            copy = np.empty(size, np.uint8)
            copy[:] = _view(self._block, np.uint8, size, start)
            buffers.append(copy)
            start += size
        return pickle.loads(data, buffers=buffers), failures

    def closing_error(self, stop: float) -> Exception | None:
        """Wait until it has closed its environments; return the error, if there is one."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll(max(stop - time.monotonic(), 0)):
                error = self.connection.recv()
                return error if isinstance(error, Exception) else None
        return None

    def end(self) -> None:
        """Kill it, and free its shared memory."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()
        self._alive.close()
        if self._block is not None:
            _free(self._block)

    def _head(self, entry: int) -> int:
        return int(_view(self._shared, np.int64, 1, _HEAD * self._place + 8 * entry)[0])


def _reserve(size: int) -> SharedMemory | None:
    """Make a shared block; None where there is no room, which would otherwise show at the first write, as a crash."""
    try:
        block = SharedMemory(create=True, size=max(size, 1))
    except OSError:
        return None
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(block._fd, 0, block.size)  # type: ignore[attr-defined]  # it has no public name
    except OSError:
        _free(block)
        return None
    return block


def _view(block: SharedMemory, dtype: Any, count: int, start: int) -> NDArray[Any]:
    assert block.buf is not None
    return np.frombuffer(block.buf, dtype, count, start)


def _free(block: SharedMemory) -> None:
    with contextlib.suppress(BufferError):
        block.close()
    with contextlib.suppress(FileNotFoundError):
        block.unlink()


# ------------------------------------------------------------------------------------------------- in the worker


def _work(
    connection: Connection,
    alive: Connection,
    shared_name: str,
    place: int,
    count: int,
    env: EnvConfig,
    policy_config: PolicyConfig,
    folder: str,
) -> None:
    """Run the parent's tasks until it sends None, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, args=(alive,), daemon=True).start()
    os.dup2(2, 1)  # stdout is for results
    os.chdir(folder)
    torch.set_num_threads(1)
    gc.freeze()  # as in a run
    shared = SharedMemory(shared_name)
    head: NDArray[np.int64] = _view(shared, np.int64, 2, _HEAD * place)
    head[:] = 0
    policy: Policy | None = None
    block: SharedMemory | None = None
    environments = EnvironmentCache(env)

    def check() -> None:
        head[0] += 1

    while True:
        try:
            tasks: dict[int, Task] | None = connection.recv()
        except EOFError:
            os._exit(0)
        if tasks is None:
            break
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        for number, task in tasks.items():
            head[1] = number
            check()
            try:
                if policy is None:
                    policy = build_policy(env, policy_config)
                _read(policy, shared, _HEAD * count)
                results[number] = task(environments, policy, check)
            except BaseException as error:
                failures[number] = sendable(error)
                break
        data, buffers = pickled_apart(results)
        sizes = [len(buffer) for buffer in buffers]
        if block is None or block.size < sum(sizes):
            if block is not None:
                block.close()
            connection.send(("room", sum(sizes)))
            name = connection.recv()
            block = None if name is None else SharedMemory(name)
        if block is None:
            connection.send(("pipe", pickled(results), [], failures))
            continue
        start = 0
        for buffer in buffers:
            _view(block, np.uint8, len(buffer), start)[:] = buffer
            start += len(buffer)
        connection.send(("shared", data, sizes, failures))
    with contextlib.suppress(OSError):
        connection.send(closing_error(environments))
    os._exit(0)  # at once: everything is sent, and the views of shared memory need no order


def _leave_with_parent(alive: Connection) -> None:
    """Leave as soon as the parent is gone, however it went."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _read(policy: Policy, shared: SharedMemory, start: int) -> None:
    """Take the parameters that the parent wrote."""
    for tensor in parameters_of(policy, None).values():
        array = tensor.numpy()
        array[...] = _view(shared, array.dtype, array.size, start).reshape(array.shape)
        start += array.nbytes
