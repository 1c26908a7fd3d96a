"""A pool of Ray actors with their own environments and policies.

Actors run whole chunks. The object store carries the parameters, stored once, and the results, chunk by chunk. If an
actor's process or machine dies, Ray restarts the actor and repeats its tasks.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig, PolicyConfig
from pgcli.errors import EnvironmentFailure, PgcliError
from pgcli.policies.policy import Policy, parameters_of
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import HANG_SECONDS, TRIES, Task, build_policy, closing_error, pickled_apart, sendable
from pgcli.system.process_state import environments_turn, kept
from pgcli.system.processes import Check
from pgcli.system.ray_cluster import POLL_SECONDS, check_versions, cpus, versions_and_source

PLACE_SECONDS = 60.0  # to wait for a CPU that others use
PULSE_SECONDS = 2.0  # between two queries of an actor's steps
CLOSE_SECONDS = 5.0

Arrays = list[NDArray[Any]]
Answer = tuple[bytes, Arrays, Exception | None]


class RayPool:
    """Up to `count` actors. `leave` is called at the end.

    Each actor reserves a CPU while the cluster has free ones; the other actors share. An actor that hangs, waits too
    long for a CPU, or was lost for Ray is replaced by one that shares.
    """

    def __init__(
        self, env: EnvConfig, policy: PolicyConfig, count: int, leave: Callable[[], None] = lambda: None
    ) -> None:
        self._env, self._policy, self.count, self._leave = env, policy, count, leave
        self._versions = versions_and_source()
        self._actors: dict[int, _ActorHandle] = {}
        self._arrays: Arrays = []
        self._parameters: Any = None  # reference in the object store

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run the tasks, see WorkerPool. A task may run again after later tasks of its actor."""
        import ray

        self._put(policy)
        self._start({number % self.count for number in tasks})
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        losses = Counter[int]()
        pending: dict[Any, int] = {}
        unsent = sorted(tasks)
        try:
            while unsent or pending:
                for number in unsent:
                    reference = self._actors[number % self.count].submit(tasks[number], self._parameters)
                    pending[reference] = number
                check()
                done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_SECONDS)
                gone: dict[int, str] = {}  # index of an actor → what happened to it
                for reference in done:
                    number = pending[reference]
                    answer = _answer(reference)
                    if answer is None:
                        gone[number % self.count] = "was lost"
                        continue
                    data, buffers, failure = answer
                    del pending[reference]
                    if failure is None:
                        results[number] = pickle.loads(data, buffers=[buffer.copy() for buffer in buffers])
                    else:
                        failures[number] = failure
                for index in {number % self.count for number in pending.values()} - gone.keys():
                    if self._actors[index].is_stuck():
                        gone[index] = f"made no step in {HANG_SECONDS:g} s"
                unsent = sorted(number for number in pending.values() if number % self.count in gone)
                pending = {reference: number for reference, number in pending.items() if number not in unsent}
                for index, reason in gone.items():
                    losses[index] += 1
                    if losses[index] == TRIES:
                        number = next(number for number in unsent if number % self.count == index)
                        raise _lost(number, reason)
                    self._actors[index].end()
                    self._actors[index] = self._new_actor(cpus=0)
        except BaseException:
            for index in {number % self.count for number in tasks.keys() - results.keys() - failures.keys()}:
                self._actors.pop(index).end()
            raise
        if failures:
            raise failures[min(failures)]
        return results

    def close(self) -> None:
        """Close the actors' environments, end the actors, and leave the cluster."""
        import ray
        from ray.exceptions import RayError

        failure: Exception | None = None
        try:
            if references := [actor.close() for actor in self._actors.values()]:
                for reference in ray.wait(references, num_returns=len(references), timeout=CLOSE_SECONDS)[0]:
                    with contextlib.suppress(RayError):
                        failure = failure or ray.get(reference)
        finally:
            while self._actors:
                self._actors.popitem()[1].end()
            self._parameters = None
            self._leave()
        if failure is not None:
            raise failure

    def _put(self, policy: Policy) -> None:
        """Put the parameters into the object store if they have changed."""
        import ray

        arrays = [tensor.numpy() for tensor in parameters_of(policy, None).values()]
        if self._parameters is None or any(
            old.tobytes() != new.tobytes() for old, new in zip(self._arrays, arrays, strict=True)
        ):
            self._arrays = [array.copy() for array in arrays]
            self._parameters = ray.put(self._arrays)

    def _start(self, indices: set[int]) -> None:
        """Start the missing actors."""
        missing = sorted(indices - self._actors.keys())
        if missing:
            free = cpus() - sum(actor.cpus for actor in self._actors.values())
            for n, index in enumerate(missing):
                self._actors[index] = self._new_actor(cpus=int(n < free))

    def _new_actor(self, cpus: int) -> _ActorHandle:
        return _ActorHandle(self._env, self._policy, self._versions, cpus)


def _answer(reference: Any) -> Answer | None:
    """Return an actor's answer, or None if Ray lost the actor.

    Ray counts a refused connection as a try, so a lost machine can use up all tries before the cluster notices.

    Raises: EnvironmentFailure if the actor could not start.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        answer: Answer = ray.get(reference)
    except RayTaskError as error:  # the task or its parameters could not be read
        return b"", [], RuntimeError(str(error))
    except RayError as error:
        if "creation task" not in str(error):
            return None
        reason = str(error).strip().splitlines()[-1]
        hint = "install the same version of pgcli on all machines of the cluster"
        raise EnvironmentFailure(f"an actor failed to start: {reason}", hint) from error
    return answer


def _lost(number: int, reason: str) -> EnvironmentFailure:
    message = f"the actor of chunk {number} {reason}, {TRIES} times in a row"
    return EnvironmentFailure(message, "sampling.workers=0 runs the environments in this process and shows the cause")


class _ActorHandle:
    """The owner's handle of one actor."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, versions: dict[str, str], cpus: int) -> None:
        import ray

        self.cpus = cpus
        # The actor answers a pulse while a task runs. All tasks run in one thread, as some simulators require.
        options: Any = {"num_cpus": cpus, "concurrency_groups": {"pulse": 1}}
        options |= {"max_restarts": -1, "max_task_retries": TRIES - 1}
        remote: Any = ray.remote(**options)
        self._handle: Any = remote(_RemoteWorker).remote(env, policy, versions, os.getcwd(), sys.path)
        self._pulse: Any = None
        self._is_up, self._steps, self._asked = False, -1, 0.0
        self._since = time.monotonic()

    def submit(self, task: Task, parameters: object) -> object:
        """Send a task; return the reference of its answer. Raises an error if pickling fails."""
        self._since = self._asked = time.monotonic()
        reference: object = self._handle.run.remote(pickle.dumps(task), parameters)
        return reference

    def is_stuck(self) -> bool:
        """Return whether the actor made no step, or waited for a CPU, for too long."""
        import ray
        from ray.exceptions import RayError

        now = time.monotonic()
        if self._pulse is None:
            if now - self._asked > PULSE_SECONDS:
                self._pulse, self._asked = self._handle.steps.options(concurrency_group="pulse").remote(), now
        elif ray.wait([self._pulse], timeout=0)[0]:
            with contextlib.suppress(RayError):
                steps = ray.get(self._pulse)
                self._is_up = True
                if steps != self._steps:
                    self._steps, self._since = steps, now
            self._pulse = None
        if self._is_up:
            return now - self._since > HANG_SECONDS
        return self.cpus > 0 and now - self._since > PLACE_SECONDS

    def close(self) -> object:
        """Ask the actor to close its environments; return the reference of its answer."""
        reference: object = self._handle.close.remote()
        return reference

    def end(self) -> None:
        """Kill the actor permanently."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(self._handle)


# ------------------------------------------------------------------------------------------------- on the cluster


class _RemoteWorker:
    """The actor itself. It imports modules from its owner's folders if these exist."""

    def __init__(
        self, env: EnvConfig, config: PolicyConfig, owner: dict[str, str], folder: str, path: list[str]
    ) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        sys.path += [entry for entry in path if entry not in sys.path]
        torch.set_num_threads(1)
        self._state = contextlib.ExitStack()
        self._state.enter_context(kept())
        gc.freeze()  # as in a run
        self._env, self._config = env, config
        self._policy: Policy | None = None
        self._environments = EnvironmentCache(env)
        self._steps = 0
        self._refusal: PgcliError | None = None
        try:
            check_versions(owner, versions_and_source(), platform.node())
        except PgcliError as error:
            self._refusal = error

    def steps(self) -> int:
        """Return the number of steps so far."""
        return self._steps

    def run(self, task: bytes, parameters: Arrays) -> Answer:
        """Run a task; return its pickled result, the bytes of its arrays, and its error."""
        try:
            if self._refusal is not None:
                raise self._refusal
            if self._policy is None:
                self._policy = build_policy(self._env, self._config)
            for tensor, array in zip(parameters_of(self._policy, None).values(), parameters, strict=True):
                tensor.numpy()[...] = array
            with environments_turn():
                result = pickle.loads(task)(self._environments, self._policy, self._check)
            data, buffers = pickled_apart(result)
        except BaseException as error:
            return b"", [], sendable(error)
        return data, [np.frombuffer(buffer, np.uint8) for buffer in buffers], None

    def close(self) -> Exception | None:
        """Close the environments; return the error, if any."""
        return closing_error(self._environments)

    def _check(self) -> None:
        self._steps += 1
