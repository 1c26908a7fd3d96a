"""Actors on a Ray cluster: each owns environments and a copy of the policy, and does whole chunks.

The parameters are put into the object store once; what was collected comes back through it, chunk by chunk. An actor
that is lost with its process or its machine, or that hangs, is replaced, and its chunks are done again: the same bytes.
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
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig, PolicyConfig
from pgcli.errors import EnvironmentFailure
from pgcli.policies.policy import Policy, parameters_of
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import HANG_SECONDS, TRIES, Task, build_policy, closing_error, pickled_apart, sendable
from pgcli.system.processes import Check
from pgcli.system.ray_cluster import POLL_SECONDS, check_versions, cpus, versions

PLACE_SECONDS = 60.0  # to get a CPU that others use
PULSE_SECONDS = 2.0  # between two looks at what an actor does
CLOSE_SECONDS = 5.0

Arrays = list[NDArray[Any]]
Answer = tuple[bytes, Arrays, Exception | None]


class RayPool:
    """Up to `count` actors; one is started when there is a first task for it. `leave` is called at the end."""

    def __init__(
        self, env: EnvConfig, policy: PolicyConfig, count: int, leave: Callable[[], None] = lambda: None
    ) -> None:
        self._env, self._policy, self.count, self._leave = env, policy, count, leave
        self._actors: dict[int, _Actor] = {}
        self._arrays: Arrays = []
        self._parameters: Any = None  # where these are in the object store

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run task n on worker n mod `count`, in the order of n; return the results by n.

        A task may run more than once, in a new worker, if its worker dies or hangs. `check` is called meanwhile; an
        exception in it ends the busy workers. If several tasks fail, the error of the smallest n is raised.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._put(policy)
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        losses = Counter[int]()
        waiting: dict[Any, int] = {}
        lost: dict[int, str] = {}  # places of actors, and what became of these
        unsent = set(tasks)
        try:
            while unsent or waiting:
                self._start({number % self.count for number in unsent}, check)
                for number in sorted(unsent):  # an actor does its tasks in this order
                    actor = self._actors[number % self.count]
                    waiting[actor.ask(tasks[number], self._parameters)] = number
                unsent.clear()
                check()
                answered, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
                for answer in answered:
                    number = waiting[answer]
                    try:
                        data, buffers, failure = ray.get(answer)
                    except RayTaskError as error:  # of what goes to and fro, for `work` itself raises nothing
                        data, buffers, failure = b"", [], RuntimeError(str(error))
                    except RayError:
                        lost[number % self.count] = "was lost"
                        continue
                    del waiting[answer]
                    if failure is None:
                        results[number] = pickle.loads(data, buffers=[buffer.copy() for buffer in buffers])
                    else:
                        failures[number] = failure
                for place in {number % self.count for number in waiting.values()} - lost.keys():
                    if self._actors[place].hangs():
                        lost[place] = f"made no step in {HANG_SECONDS:g} s"
                for place, what in lost.items():
                    mine = {answer: number for answer, number in waiting.items() if number % self.count == place}
                    at = min(mine.values())
                    losses[at] += 1
                    if losses[at] == TRIES:
                        raise EnvironmentFailure(
                            f"the actor of chunk {at} {what}, {TRIES} times in a row",
                            "sampling.workers=0 shows what happens in this process",
                        )
                    for answer, number in mine.items():
                        del waiting[answer]
                        unsent.add(number)
                    self._end(place)
                lost.clear()
        except BaseException:
            for place in {number % self.count for number in (*waiting.values(), *unsent)}:
                self._end(place)
            raise
        if failures:
            raise failures[min(failures)]
        return results

    def close(self) -> None:
        """Let the actors close their environments, end them, and leave the cluster."""
        import ray
        from ray.exceptions import RayError

        failure: Exception | None = None
        try:
            farewells = [actor.close() for actor in self._actors.values()]
            if farewells:
                for answer in ray.wait(farewells, num_returns=len(farewells), timeout=CLOSE_SECONDS)[0]:
                    with contextlib.suppress(RayError):
                        failure = failure or ray.get(answer)
        finally:
            for place in list(self._actors):
                self._end(place)
            self._parameters = None
            self._leave()
        if failure is not None:
            raise failure

    def _put(self, policy: Policy) -> None:
        """Put the parameters where every actor reads them, unless they are there already."""
        import ray

        arrays = [tensor.numpy() for tensor in parameters_of(policy, None).values()]
        if self._parameters is None or any(
            old.tobytes() != new.tobytes() for old, new in zip(self._arrays, arrays, strict=True)
        ):
            self._arrays = [array.copy() for array in arrays]
            self._parameters = ray.put(self._arrays)

    def _start(self, places: Iterable[int], check: Check) -> None:
        """Start actors where there are none, all at once, and wait until they are there.

        Each has a CPU of its own; where the cluster has too few, or others do not let go of them, they share.
        """
        places = [place for place in sorted(places) if place not in self._actors]
        if not places:
            return
        free = cpus() - sum(actor.cpus for actor in self._actors.values())
        fresh = {place: _Actor(self._env, self._policy, int(n < free)) for n, place in enumerate(places)}
        losses = Counter[int]()
        stop = time.monotonic() + PLACE_SECONDS
        try:
            while fresh:
                check()
                for place, actor in list(fresh.items()):
                    try:
                        there = actor.is_there()
                    except _Lost as loss:
                        losses[place] += 1
                        if losses[place] == TRIES:
                            raise EnvironmentFailure(f"an actor could not be started: {loss}", loss.hint) from loss
                        fresh[place] = _Actor(self._env, self._policy, actor.cpus)
                        continue
                    if there:
                        self._actors[place] = fresh.pop(place)
                    elif actor.cpus and time.monotonic() > stop:
                        actor.end()
                        fresh[place] = _Actor(self._env, self._policy, cpus=0)
                if fresh:
                    time.sleep(POLL_SECONDS / 10)
        except BaseException:
            for actor in fresh.values():
                actor.end()
            raise

    def _end(self, place: int) -> None:
        if place in self._actors:
            self._actors.pop(place).end()


class _Lost(Exception):
    """An actor that is not there any more, or never was."""

    hint = ""


class _Actor:
    """One actor, as its owner sees it."""

    def __init__(self, env: EnvConfig, policy: PolicyConfig, cpus: int) -> None:
        import ray

        self.cpus = cpus
        # The count of steps is asked for while a job is done, which is always in the same thread: simulators want that.
        options: Any = {"num_cpus": cpus, "concurrency_groups": {"pulse": 1}}
        remote: Any = ray.remote(**options)
        self._handle: Any = remote(_Remote).remote(env, policy)
        self._hello = self._handle.hello.remote(os.getcwd(), sys.path)
        self._steps, self._since, self._asked = -1, 0.0, 0.0
        self._pulse: Any = None

    def is_there(self) -> bool:
        """Say whether it is up. Raises: EnvironmentFailure if it has other versions; _Lost."""
        import ray
        from ray.exceptions import RayError

        if not ray.wait([self._hello], timeout=0)[0]:
            return False
        try:
            theirs, host = ray.get(self._hello)
        except (RayError, RuntimeError) as error:
            loss = _Lost(str(error).strip().splitlines()[-1])
            if "import" in str(error):
                loss.hint = "pgcli must be installed on all machines of the cluster, in the same version"
            raise loss from error
        check_versions(theirs, host)
        return True

    def ask(self, job: Task, parameters: object) -> object:
        """Send a job; give where its answer will be. Raises what cannot be pickled."""
        self._since = self._asked = time.monotonic()
        answer: object = self._handle.work.remote(pickle.dumps(job), parameters)
        return answer

    def hangs(self) -> bool:
        """Say whether it has made no step for too long; whether it is lost, its answers tell."""
        import ray
        from ray.exceptions import RayError

        now = time.monotonic()
        if self._pulse is None:
            if now - self._asked > PULSE_SECONDS:
                self._pulse, self._asked = self._handle.steps.options(concurrency_group="pulse").remote(), now
        elif ray.wait([self._pulse], timeout=0)[0]:
            with contextlib.suppress(RayError):
                steps = ray.get(self._pulse)
                if steps != self._steps:
                    self._steps, self._since = steps, now
            self._pulse = None
        return now - self._since > HANG_SECONDS

    def close(self) -> object:
        """Ask it to close its environments; give where its answer will be."""
        answer: object = self._handle.close.remote()
        return answer

    def end(self) -> None:
        """End it, whatever it does."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(self._handle)


# ------------------------------------------------------------------------------------------------- on the cluster


class _Remote:
    """What an actor is where it runs."""

    def __init__(self, env: EnvConfig, config: PolicyConfig) -> None:
        self._env, self._config = env, config
        self._policy: Policy | None = None
        self._environments = EnvironmentCache(env)
        self._steps = 0

    def hello(self, folder: str, path: list[str]) -> tuple[dict[str, str], str]:
        """Look for modules where the owner does, if these folders exist; give the machine's versions and its name."""
        with contextlib.suppress(OSError):
            os.chdir(folder)
        sys.path += [entry for entry in path if entry not in sys.path]
        torch.set_num_threads(1)
        gc.freeze()  # as in a run
        return versions(), platform.node()

    def steps(self) -> int:
        """Count the steps so far."""
        return self._steps

    def work(self, job: bytes, parameters: Arrays) -> Answer:
        """Do a job: its pickled result, the bytes of its arrays, and how it failed."""
        try:
            if self._policy is None:
                self._policy = build_policy(self._env, self._config)
            for tensor, array in zip(parameters_of(self._policy, None).values(), parameters, strict=True):
                tensor.numpy()[...] = array
            data, buffers = pickled_apart(pickle.loads(job)(self._environments, self._policy, self._check))
        except BaseException as error:
            return b"", [], sendable(error)
        return data, [np.frombuffer(buffer, np.uint8) for buffer in buffers], None

    def close(self) -> Exception | None:
        """Close the environments; give what was wrong with that."""
        return closing_error(self._environments)

    def _check(self) -> None:
        self._steps += 1
