"""Whole runs on a Ray cluster, one actor per run.

All machines must share the folders of the runs. If an actor is lost, its run continues from the last checkpoint in a
new actor, with the same bytes.
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
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from pgcli.errors import EnvironmentFailure, Interrupted, PgcliError, RunDirectoryError, RunInUse
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, Result, failure_of, run_experiment
from pgcli.records import Iteration, Record
from pgcli.runs.files import make_folder, storage
from pgcli.system.ray_cluster import check_versions, join, versions_and_source
from pgcli.system.signals import StopOnSignal

Logs = Callable[[Request, Callable[[Record], None]], AbstractContextManager[Callable[[Record], None]]]
POLL_SECONDS = 0.2
RELEASE_SECONDS = 60.0  # until all machines see that a lost run has released its folder
STOP_SECONDS = 60.0  # for the runs to save their state
TRIES = 3  # without an iteration between


def run_on_cluster(
    requests: Sequence[Request], jobs: int, watch: Callable[[Record, int], None], logs: Logs, stop: StopOnSignal
) -> list[Result]:
    """Run every request, `jobs` at a time, on the cluster at RAY_ADDRESS or on a new local Ray.

    `logs` writes the records of a run for other tools, in the actor of the run.
    Raises: Interrupted, once every running run has saved its state; UsageError, EnvironmentFailure.
    """
    workers = [request.config.sampling.workers for request in requests]  # which variants of a study may change
    largest = max(0 if count == "auto" else count for count in workers)
    leave = join(min(jobs, len(requests)) * (1 + largest), stop.check)
    try:
        return _run(requests, jobs, watch, logs, stop)
    finally:
        leave()


def _run(
    requests: Sequence[Request], jobs: int, watch: Callable[[Record, int], None], logs: Logs, stop: StopOnSignal
) -> list[Result]:
    waiting = list(range(len(requests)))
    running: dict[int, _PlacedRun] = {}
    results: dict[int, Result] = {}
    interruption: Interrupted | None = None
    give_up = 0.0
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop(0)
            try:
                running[number] = _PlacedRun(requests[number], logs)
            except PgcliError as error:
                results[number] = failure_of(error)
        save = stop.asked_to_save()
        for number, run in list(running.items()):
            if save:
                run.send("save")
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
                    run.send("stop", received.exit_code - 128)
        elif time.monotonic() > give_up or not any(run.is_up for run in running.values()):
            break
        time.sleep(POLL_SECONDS)
    for run in running.values():
        run.end()
    if interruption is not None:
        interruption.hint = "the same command with --resume continues"
        raise interruption
    return [results[number] for number in range(len(requests))]


class _PlacedRun:
    """The owner's handle of a run on the cluster.

    Ray's own retries would count the losses of the whole run and repeat the same call. Here the count restarts with
    every iteration, and the repeated call resumes the run.
    """

    _answer: Any  # the reference of the next answer

    def __init__(self, request: Request, logs: Logs) -> None:
        self._logs, self._request, self._losses, self._has_begun, self.is_up = logs, request, 0, False, False
        folder = (request.folder / request.path).parent
        with storage(folder):
            make_folder(folder)
            self._sign = tempfile.NamedTemporaryFile(prefix=".pgcli-", dir=folder)  # noqa: SIM115 - closed at the end
        self._place()

    def news(self) -> tuple[list[Record], Result | None]:
        """Return the records since the last call, and the result if any."""
        import ray
        from ray.exceptions import RayError

        records, result = list[Record](), None
        try:
            if not ray.wait([self._answer], timeout=0)[0]:
                return records, result
            records, result = ray.get(self._answer)
        except (RayError, RuntimeError) as error:
            result = self._replace(error)
        else:
            self.is_up = True
            self._ask_for_news()
        self._has_begun = self._has_begun or bool(records)
        if any(isinstance(record, Iteration) for record in records):
            self._losses = 0
        if result is not None:
            self.end()
        return records, result

    def send(self, message: str, *arguments: object) -> None:
        """Send `save`, or `stop` for a signal, to the run."""
        with contextlib.suppress(Exception):  # it may be lost, which `news` reports
            getattr(self._handle, message).options(concurrency_group="talk").remote(*arguments)

    def end(self) -> None:
        """Kill the actor."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(self._handle)
        with contextlib.suppress(OSError):
            self._sign.close()

    def _place(self) -> None:
        import ray

        options: Any = {"num_cpus": 1, "concurrency_groups": {"talk": 1}}
        remote: Any = ray.remote(**options)
        self._handle: Any = remote(_RunActor).remote()
        patience = RELEASE_SECONDS if self._losses else 0.0
        self._handle.run.remote(self._request, versions_and_source(), sys.path, self._sign.name, patience, self._logs)
        self._ask_for_news()
        self.is_up = False

    def _ask_for_news(self) -> None:
        self._answer = self._handle.news.options(concurrency_group="talk").remote()

    def _replace(self, error: Exception) -> Result | None:
        """Place the run again without `overwrite`, or return a failure after too many losses."""
        self._losses += 1
        if self._losses == TRIES:
            reason = str(error).strip().splitlines()[-1]
            message = f"{self._request.path}: its actor was lost, {TRIES} times in a row: {reason}"
            hint = "install pgcli on all machines of the cluster; the same command with --resume continues"
            return failure_of(EnvironmentFailure(message, hint))
        if self._has_begun or not self._request.overwrite:
            self._request = replace(self._request, resume=True, overwrite=False)
        self._place()
        return None


class _RunActor:
    """The actor of a run, which answers calls during the run."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._result: Result | None = None
        self._signal: int | None = None
        self._save = False

    def run(
        self, request: Request, owner: dict[str, str], path: list[str], sign: str, patience: float, logs: Logs
    ) -> None:
        """Run, with the owner's module path; wait `patience` seconds for a previous actor's lock."""
        stop, place = time.monotonic() + patience, request.folder / request.path
        with contextlib.suppress(OSError):
            os.chdir(request.folder)
        sys.path += [entry for entry in path if entry not in sys.path]
        try:
            check_versions(owner, versions_and_source(), platform.node())
            if not os.path.exists(sign):
                message = f"{place}: {platform.node()} sees another folder there"
                raise RunDirectoryError(message, "set --run-dir to a folder that all machines of the cluster share")
            while self._result is None:
                try:
                    with logs(request, self._records.append) as watch:
                        result = run_experiment(request, Context(watch, self._check, self._asked_to_save))
                    self._result = result  # after the last notice of a log
                except RunInUse:
                    if time.monotonic() > stop:
                        raise
                    self._check()
                    time.sleep(POLL_SECONDS)
        except Exception as error:
            self._result = failure_of(error)

    def news(self) -> tuple[list[Record], Result | None]:
        """Return the records since the last call, and the result if any."""
        result = self._result  # read before the records, so that none is missing
        return [self._records.popleft() for _ in range(len(self._records))], result

    def stop(self, number: int) -> None:
        """Stop the run as a signal would."""
        self._signal = number

    def save(self) -> None:
        """Save a checkpoint after this iteration."""
        self._save = True

    def _check(self) -> None:
        if self._signal is not None:
            raise Interrupted(self._signal)

    def _asked_to_save(self) -> bool:
        asked, self._save = self._save, False
        return asked
