"""Whole runs on a Ray cluster, each in an actor of its own; their folders are on a file system that all machines share.

A run whose actor is lost goes on from its last checkpoint in another one, to the bytes of a run that was never lost.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pgcli.errors import EnvironmentFailure, Interrupted, PgcliError, RunDirectoryError, RunInUse
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, Result, failure_of, run_experiment
from pgcli.records import Iteration, Record
from pgcli.runs.files import make_folder, storage
from pgcli.system.ray_cluster import check_versions, join, versions
from pgcli.system.signals import StopOnSignal

POLL_SECONDS = 0.2
RELEASE_SECONDS = 60.0  # until the machines know that a lost run holds its folder no more
STOP_SECONDS = 60.0  # to save what there is
TRIES = 3  # without an iteration between


def run_on_cluster(
    requests: Sequence[Request], jobs: int, watch: Callable[[Record, int], None], stop: StopOnSignal
) -> list[Result]:
    """Run every request, `jobs` at a time, on the cluster at RAY_ADDRESS, or on a Ray started here.

    Raises: Interrupted, once every run that was under way has saved its state; UsageError, EnvironmentFailure.
    """
    workers = requests[0].config.sampling.workers
    leave = join(min(jobs, len(requests)) * (1 if workers == "auto" else 1 + workers), stop.check)
    try:
        return _run(requests, jobs, watch, stop)
    finally:
        leave()


def _run(
    requests: Sequence[Request], jobs: int, watch: Callable[[Record, int], None], stop: StopOnSignal
) -> list[Result]:
    waiting = list(range(len(requests)))
    running: dict[int, _Run] = {}
    results: dict[int, Result] = {}
    interruption: Interrupted | None = None
    give_up = 0.0
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop(0)
            try:
                running[number] = _Run(requests[number])
            except PgcliError as error:
                results[number] = failure_of(error)
        save = stop.asked_to_save()
        for number, run in list(running.items()):
            if save:
                run.ask("save")
            records, result = run.news()
            for record in records:
                watch(record, number)
            if result is not None:
                results[number] = result
                del running[number]
        if interruption is None:
            try:
                stop.check()
            except Interrupted as received:
                interruption, give_up = received, time.monotonic() + STOP_SECONDS
                waiting.clear()
                for run in running.values():
                    run.ask("stop", received.exit_code - 128)
        elif time.monotonic() > give_up or not any(run.is_up for run in running.values()):
            break
        time.sleep(POLL_SECONDS)
    for run in running.values():
        run.end()
    if interruption is not None:
        interruption.hint = "the same command with --resume goes on"
        raise interruption
    return [results[number] for number in range(len(requests))]


class _Run:
    """One run, as the process that asked for it sees it; placed anew when it is lost."""

    _answer: Any  # where what it was asked for last will be

    def __init__(self, request: Request) -> None:
        self._request, self._losses, self._has_begun, self.is_up = request, 0, False, False
        folder = (request.folder / request.path).parent
        with storage(folder):
            make_folder(folder)
            self._sign = tempfile.NamedTemporaryFile(prefix=".pgcli-", dir=folder)  # noqa: SIM115 - closed at the end
        self._place()

    def news(self) -> tuple[list[Record], Result | None]:
        """Give the records since the last time, and the result if there is one."""
        import ray
        from ray.exceptions import RayError

        records, result = list[Record](), None
        try:
            if not ray.wait([self._answer], timeout=0)[0]:
                return records, result
            answer = ray.get(self._answer)
            if self.is_up:
                records, result = answer
            else:
                check_versions(*answer)
                self.is_up = True
                self._handle.run.remote(self._request, self._sign.name, RELEASE_SECONDS if self._losses else 0.0)
            self._answer = self._handle.news.options(concurrency_group="talk").remote()
        except (RayError, RuntimeError) as error:
            result = self._after_loss(error)
        except PgcliError as error:
            result = failure_of(error)
        self._has_begun = self._has_begun or bool(records)
        if any(isinstance(record, Iteration) for record in records):
            self._losses = 0
        if result is not None:
            self.end()
        return records, result

    def ask(self, what: str, *arguments: object) -> None:
        """Ask it to `save`, or to `stop` for a signal."""
        with contextlib.suppress(Exception):  # it may be lost, which `news` finds out
            getattr(self._handle, what).options(concurrency_group="talk").remote(*arguments)

    def end(self) -> None:
        """End its actor, whatever it does."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(self._handle)
        with contextlib.suppress(OSError):
            self._sign.close()

    def _place(self) -> None:
        import ray

        options: Any = {"num_cpus": 1, "concurrency_groups": {"talk": 1}}
        remote: Any = ray.remote(**options)
        self._handle: Any = remote(_Remote).remote()
        self._answer = self._handle.hello.remote(str(self._request.folder), sys.path)
        self.is_up = False

    def _after_loss(self, error: Exception) -> Result | None:
        """Place it anew; what was to be overwritten is aside already if it has told anything."""
        self._losses += 1
        if self._losses == TRIES:
            reason = str(error).strip().splitlines()[-1]
            what = f"{self._request.path}: its actor was lost, {TRIES} times in a row: {reason}"
            hint = "pgcli must be installed on all machines of the cluster; the same command with --resume goes on"
            return failure_of(EnvironmentFailure(what, hint))
        if self._has_begun or not self._request.overwrite:
            self._request = replace(self._request, resume=True, overwrite=False)
        self._place()
        return None


class _Remote:
    """A run where it runs: news and wishes pass while it does."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._result: Result | None = None
        self._signal: int | None = None
        self._save = False

    def hello(self, folder: str, path: list[str]) -> tuple[dict[str, str], str]:
        """Look for modules where the owner does, if these folders exist; give the machine's versions and its name."""
        with contextlib.suppress(OSError):
            os.chdir(folder)
        sys.path += [entry for entry in path if entry not in sys.path]
        return versions(), platform.node()

    def run(self, request: Request, sign: str, patience: float) -> None:
        """Run; wait for so many seconds while the folder is still held, by the actor before this one."""
        stop = time.monotonic() + patience
        try:
            if not os.path.exists(sign):
                what = f"{request.folder / request.path}: {platform.node()} sees another folder there"
                raise RunDirectoryError(what, "--run-dir names a folder that all machines of the cluster share")
            context = Context(self._records.append, self._check, self._asked_to_save)
            while self._result is None:
                try:
                    self._result = run_experiment(request, context)
                except RunInUse:
                    if time.monotonic() > stop:
                        raise
                    self._check()
                    time.sleep(POLL_SECONDS)
        except Exception as error:
            self._result = failure_of(error)

    def news(self) -> tuple[list[Record], Result | None]:
        """Give the records since the last time, and the result if there is one."""
        result = self._result  # before the records: all of them are there if it is
        return [self._records.popleft() for _ in range(len(self._records))], result

    def stop(self, number: int) -> None:
        """Let the run stop as if a signal had come."""
        self._signal = number

    def save(self) -> None:
        """Let the run save a checkpoint after this iteration."""
        self._save = True

    def _check(self) -> None:
        if self._signal is not None:
            raise Interrupted(self._signal)

    def _asked_to_save(self) -> bool:
        asked, self._save = self._save, False
        return asked
