"""Run several requests: in sequence in this process, or in parallel in processes or on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pgcli.errors import EnvironmentFailure, Interrupted, PgcliError
from pgcli.experiment.cluster import run_on_cluster
from pgcli.experiment.recorder import Context, Outcome
from pgcli.experiment.run import Failure, Request, Result, failure_of, run_experiment
from pgcli.records import Record
from pgcli.system.leaving import leave
from pgcli.system.processes import ignore_interrupts, process_context, start_process
from pgcli.system.signals import StopOnSignal

__all__ = ["Failure", "Outcome", "run_all"]

Watch = Callable[[Record, int], None]
Logs = Callable[[Request, Callable[[Record], None]], AbstractContextManager[Callable[[Record], None]]]
POLL_SECONDS = 0.2


def run_all(requests: Sequence[Request], jobs: int, watch: Watch, logs: Logs) -> list[Result]:
    """Run every request, `jobs` at a time; one that fails does not stop the others.

    Args: watch: receives every record with the number of its run. logs: `logs(request, watch)` also writes the
    records of a run for other tools, in the process of the run.
    Raises: Interrupted, once every run in progress has saved its state.
    """
    with StopOnSignal() as stop:
        if jobs > 1 and len(requests) > 1:
            shared = [replace(request, share=min(jobs, len(requests))) for request in requests]
            if requests[0].config.sampling.backend == "ray":
                return run_on_cluster(shared, jobs, watch, stop)
            return _run_in_processes(shared, jobs, watch, logs, stop)
        results: list[Result] = []
        for number, request in enumerate(requests):
            try:
                with logs(request, partial(_numbered, watch, number)) as watch_one:
                    context = Context(watch_one, stop.check, stop.asked_to_save)
                    results.append(run_experiment(request, context))
            except Interrupted:
                raise
            except Exception as error:
                results.append(failure_of(error))
        return results


def _numbered(watch: Watch, number: int, record: Record) -> None:
    watch(record, number)


def _run_in_processes(
    requests: Sequence[Request], jobs: int, watch: Watch, logs: Logs, stop: StopOnSignal
) -> list[Result]:
    context = process_context()
    waiting = list(enumerate(requests))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    results: dict[int, Result] = {}
    interruption: Interrupted | None = None
    while waiting or running:
        while waiting and len(running) < jobs and interruption is None:
            number, request = waiting.pop(0)
            here, there = context.Pipe(duplex=False)
            process = start_process(context, _child, (request, there, logs))
            there.close()
            running[here] = (number, process)
        for connection in wait(list(running), POLL_SECONDS):
            assert isinstance(connection, Connection)
            number, process = running[connection]
            try:
                message = connection.recv()
            except EOFError:
                process.join()
                results.setdefault(number, _death(requests[number], process.exitcode or 0))
                del running[connection]
                continue
            if isinstance(message, Outcome | Failure):
                results[number] = message
            else:
                watch(message, number)
        if stop.asked_to_save():
            for _, process in running.values():
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGUSR1)
        if interruption is None:
            try:
                stop.check()
            except Interrupted as received:
                interruption = received
                waiting.clear()
                for _, process in running.values():
                    process.terminate()
    if interruption is not None:
        interruption.hint = "the same command with --resume continues"
        raise interruption
    return [results[number] for number in range(len(requests))]


def _death(request: Request, code: int) -> Failure:
    """Describe why a process sent no result: it was killed, or its environment exited Python."""
    if code < 0:
        error = PgcliError(f"{request.path}: its process was killed by {signal.Signals(-code).name}")
        exit_code = 128 - code  # the shell's convention
    else:
        error = EnvironmentFailure(f"{request.path}: {request.config.env.id} exited Python with code {code}")
        exit_code = error.exit_code
    error.hint = "the same command with --resume continues from the last checkpoint"
    return Failure(exit_code, str(error))


def _child(request: Request, connection: Connection, logs: Logs) -> None:
    """Run one request and send its records and its result to the parent.

    Stop if the parent ends.
    """

    def watch(record: Record) -> None:
        try:
            connection.send(record)
        except OSError:
            raise Interrupted(signal.SIGTERM) from None

    ignore_interrupts()  # a terminal's Ctrl-C reaches the parent, which forwards it
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    result: Result
    try:
        with StopOnSignal((signal.SIGTERM,)) as stop, logs(request, watch) as watch_one:
            result = run_experiment(request, Context(watch_one, stop.check, stop.asked_to_save))
    except Exception as error:
        result = failure_of(error)
    with contextlib.suppress(OSError):  # the parent has ended
        connection.send(result)
    leave(0)  # a simulator's threads would keep the process alive and the parent waiting


def _stop_without_parent() -> None:
    """Wait for the end of the parent, then stop this process like a signal."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
