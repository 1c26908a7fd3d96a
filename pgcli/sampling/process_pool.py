"""Worker processes: each owns environments and a copy of the policy, and does whole chunks; nothing passes per step.

Messages are small and go through pipes. Parameters, and what was collected, go through shared memory, all of it made
and freed by the parent. A worker that dies or hangs is replaced, and its chunks are done again, to the same bytes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
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
from pgcli.sampling.pool import HANG_SECONDS, TRIES, Job, build_policy, close_all, pickled, sendable, taken_apart
from pgcli.system.processes import POLL_SECONDS, Check, process_context

CLOSE_SECONDS = 5.0
_HEAD = 2 * 8  # bytes per worker in the block of parameters: steps so far, the job that it is at


class Workers:
    """Up to `count` worker processes; one is started when there is a first job for it."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, count: int) -> None:
        self._env, self._policy, self.count = env, policy, count
        self._workers: dict[int, _Worker] = {}
        self._shared: SharedMemory | None = None

    def of(self, number: int) -> object:
        """Give the worker that does job `number`: another object if it was replaced."""
        return self._workers.get(number % self.count)

    def run(self, policy: Policy, count: int, job: Callable[[int, object], Job], check: Check) -> list[Any]:
        """Do jobs 0, …, count - 1, job n at worker n mod `self.count`; give their results in that order.

        `job(n, worker)` is asked for when it is sent: to a replaced worker once more. `check` is called while waiting;
        what it raises ends the workers that are busy. Of several jobs that fail, the first one's error is raised.
        """
        self._write(policy)
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        deaths = dict.fromkeys(range(min(self.count, count)), 0)
        busy: dict[int, _Worker] = {}
        try:
            for place in deaths:
                busy[place] = self._ask(place, count, job)
            while busy:
                check()
                wait([worker.connection for worker in busy.values()], POLL_SECONDS)
                for place, worker in list(busy.items()):
                    lost = worker.lost()
                    if not lost:
                        done = worker.answer()
                        if done is None:
                            continue
                        results |= done[0]
                        failures |= done[1]
                        del busy[place]
                        continue
                    deaths[place] += 1
                    at = worker.job
                    self._end(place)
                    if deaths[place] == TRIES:
                        del busy[place]
                        raise EnvironmentFailure(
                            f"the worker process of chunk {at} {lost}, {TRIES} times in a row",
                            "with 0 workers it happens in this process, which shows more",
                        )
                    busy[place] = self._ask(place, count, job)
        except BaseException:
            for place in busy:
                self._end(place)
            raise
        if failures:
            raise failures[min(failures)]
        return [results[number] for number in range(count)]

    def close(self) -> None:
        """Let the workers close their environments, and end them."""
        workers, stop = list(self._workers.values()), time.monotonic() + CLOSE_SECONDS
        failure: Exception | None = None
        try:
            for worker in workers:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
            for worker in workers:
                failure = failure or worker.farewell(stop)
        finally:
            for place in list(self._workers):
                self._end(place)
            if self._shared is not None:
                _free(self._shared)
                self._shared = None
        if failure is not None:
            raise failure

    def _write(self, policy: Policy) -> None:
        """Put the parameters where every worker reads them."""
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

    def _ask(self, place: int, count: int, job: Callable[[int, object], Job]) -> _Worker:
        assert self._shared is not None
        if place not in self._workers:
            self._workers[place] = _Worker(self._env, self._policy, self._shared, place, self.count)
        worker = self._workers[place]
        worker.ask({number: job(number, worker) for number in range(place, count, self.count)})
        return worker

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
    def job(self) -> int:
        """The number of the job that it is at, or was last."""
        return self._head(1)

    def ask(self, jobs: dict[int, Job]) -> None:
        """Send jobs. Raises what cannot be pickled."""
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # `lost` finds out
            self.connection.send(jobs)

    def lost(self) -> str:
        """Say what became of it, if it is dead or hangs."""
        if not self._gone and self.connection.poll():
            return ""  # an answer, or the end of the pipe, which `answer` finds
        if self._gone or not self._process.is_alive():
            code = self._process.exitcode
            return "was killed" if code is None or code < 0 else f"ended itself with exit code {code}"
        steps = self._head(0)
        if steps != self._steps:
            self._steps, self._since = steps, time.monotonic()
        return f"made no step in {HANG_SECONDS:g} s" if time.monotonic() - self._since > HANG_SECONDS else ""

    def answer(self) -> tuple[dict[int, Any], dict[int, Exception]] | None:
        """Give results and failures, or None while there are none."""
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
            self._process.join(1)  # `lost` tells how it ended
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

    def farewell(self, stop: float) -> Exception | None:
        """Wait until its environments are closed; give what was wrong with that."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll(max(stop - time.monotonic(), 0)):
                error = self.connection.recv()
                return error if isinstance(error, Exception) else None
        return None

    def end(self) -> None:
        """End it, whatever it does, and free what it shared."""
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
    """Do what the parent asks until it asks no more, or is gone."""
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
    kept: dict[Any, Any] = {}

    def check() -> None:
        head[0] += 1

    while True:
        try:
            jobs: dict[int, Job] | None = connection.recv()
        except EOFError:
            os._exit(0)
        if jobs is None:
            break
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        for number, job in jobs.items():
            head[1] = number
            check()
            try:
                if policy is None:
                    policy = build_policy(env, policy_config)
                _read(policy, shared, _HEAD * count)
                results[number] = job(kept, policy, check)
            except BaseException as error:
                failures[number] = sendable(error)
                break
        data, buffers = taken_apart(results)
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
        connection.send(close_all(kept))
    os._exit(0)  # at once: everything is told, and the views of shared memory need no order


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
