"""A pool of worker processes with their own environments and policies.

Workers run whole chunks. Pipes carry small messages. Shared tensors carry the parameters and the results of each
worker; the system frees them when the last process that maps them ends, even after a crash.
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
from collections.abc import Mapping, Sequence
from itertools import accumulate
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
from pgcli.system.processes import POLL_SECONDS, Check, ignore_interrupts, process_context, start_process

CLOSE_SECONDS = 5.0
_STEPS, _TASK = 0, 1  # a worker's progress: the number of steps so far, and of its task


class ProcessPool:
    """Up to `count` worker processes."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, count: int) -> None:
        self._env, self._policy, self.count = env, policy, count
        self._workers: dict[int, _Worker] = {}
        self._parameters: Tensor | None = None  # bytes, shared
        self._progress: Tensor | None = None  # [count, 2], shared

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run the tasks, see WorkerPool. Replace workers that die or hang, and repeat their tasks."""
        self._share(policy)
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        losses = Counter[int]()
        shares: dict[int, dict[int, Task]] = {}
        for number, task in tasks.items():
            shares.setdefault(number % self.count, {})[number] = task
        busy: dict[int, _Worker] = {}
        try:
            for index, share in shares.items():
                busy[index] = self._send(index, share)
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
                        busy[index] = self._send(index, shares[index])
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
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
            for worker in self._workers.values():
                failure = failure or worker.closing_error(stop)
        finally:
            for index in list(self._workers):
                self._end(index)
        if failure is not None:
            raise failure

    def _share(self, policy: Policy) -> None:
        """Copy the parameters to the shared memory of the workers."""
        arrays = [tensor.numpy() for tensor in parameters_of(policy, None).values()]
        if self._parameters is None:
            try:
                self._parameters = _shared(torch.empty(sum(array.nbytes for array in arrays), dtype=torch.uint8))
                self._progress = _shared(torch.zeros(self.count, 2, dtype=torch.int64))
            except RuntimeError:
                message = "no shared memory is left for the parameters of the policy"
                raise EnvironmentFailure(message, "sampling.workers=0 needs no shared memory") from None
        for shared, array in zip(_views(self._parameters, arrays), arrays, strict=True):
            shared[...] = array

    def _send(self, index: int, tasks: dict[int, Task]) -> _Worker:
        """Send tasks to a worker; start the worker first if necessary."""
        assert self._parameters is not None
        assert self._progress is not None
        if index not in self._workers:
            self._workers[index] = _Worker(self._env, self._policy, self._parameters, self._progress[index])
        self._workers[index].send(tasks)
        return self._workers[index]

    def _end(self, index: int) -> None:
        if worker := self._workers.pop(index, None):
            worker.end()


class _Worker:
    """The parent's handle of one worker process."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, parameters: Tensor, progress: Tensor) -> None:
        context = process_context()
        self._progress, self._results = progress, torch.empty(0, dtype=torch.uint8)
        self.connection, theirs = context.Pipe()
        alive, self._alive = context.Pipe(duplex=False)  # closed when this process ends
        arguments = (theirs, alive, parameters, progress, env, policy, os.getcwd())
        self._process = start_process(context, _work, arguments, daemon=True)
        theirs.close()
        alive.close()
        self._steps, self._since, self._gone = -1, time.monotonic(), False

    @property
    def task(self) -> int:
        """The number of the current or last task."""
        return int(self._progress[_TASK])

    def send(self, tasks: dict[int, Task]) -> None:
        """Send tasks. Raises an error if pickling fails."""
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # `loss` reports it
            self.connection.send(tasks)

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
            data, parts, larger, failures, changed = self.connection.recv()
        except (EOFError, OSError):
            self._gone = True
            self._process.join(1)  # `loss` reports how it ended
            return None
        report_changes(changed)
        if larger is not None:
            self._results = larger
        if parts and isinstance(parts[0], int):  # sizes in shared memory
            parts = [part.copy() for part in _parts(self._results, parts)]
        return pickle.loads(data, buffers=parts), failures

    def closing_error(self, stop: float) -> Exception | None:
        """Wait until the worker has closed its environments; return the error, if any."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll(max(stop - time.monotonic(), 0)):
                error = self.connection.recv()
                return error if isinstance(error, Exception) else None
        return None

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()
        self._alive.close()


def _shared(tensor: Tensor) -> Tensor:
    """Move a tensor to shared memory. Raises RuntimeError if it is full."""
    try:
        shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    except RuntimeError:
        for file in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):  # torch leaves an empty file
            file.unlink(missing_ok=True)
        raise
    return shared


def _parts(shared: Tensor, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Return views of consecutive parts of shared bytes."""
    array = shared.numpy()
    return [array[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _views(shared: Tensor, like: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return views of shared bytes with the types and shapes of the arrays `like`."""
    parts = _parts(shared, [array.nbytes for array in like])
    return [part.view(array.dtype).reshape(array.shape) for part, array in zip(parts, like, strict=True)]


# ------------------------------------------------------------------------------------------------- in the worker


def _work(
    connection: Connection,
    alive: Connection,
    parameters: Tensor,
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
    block, is_full = torch.empty(0, dtype=torch.uint8), False
    environments = EnvironmentCache(env)

    def check() -> None:
        report[_STEPS] += 1

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
            report[_TASK] = number
            check()
            try:
                if policy is None:
                    policy = build_policy(env, policy_config)
                arrays = [tensor.numpy() for tensor in parameters_of(policy, None).values()]
                for array, shared in zip(arrays, _views(parameters, arrays), strict=True):
                    array[...] = shared
                with environments_turn():
                    results[number] = task(environments, policy, check)
            except BaseException as error:
                failures[number] = sendable(error)
                break
        data, buffers = pickled_apart(results)
        sizes, larger = [len(buffer) for buffer in buffers], None
        if sum(sizes) > len(block) and not is_full:
            try:
                block = larger = _shared(torch.empty(int(1.25 * sum(sizes)), dtype=torch.uint8))
            except RuntimeError:
                is_full = True
        if sum(sizes) > len(block):  # through the pipe
            connection.send((data, list(map(bytearray, buffers)), None, failures, changes()))
            continue
        for part, buffer in zip(_parts(block, sizes), buffers, strict=True):
            part[:] = buffer
        connection.send((data, sizes, larger, failures, changes()))
    with contextlib.suppress(OSError):
        connection.send(closing_error(environments))
    os._exit(0)  # immediately: everything is sent


def _leave_with_parent(alive: Connection) -> None:
    """Exit as soon as the parent has ended for any reason."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)
