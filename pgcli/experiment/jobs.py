"""Run several requests: in sequence in this process, or in parallel in processes or on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pgcli.errors import EnvironmentFailure, Interrupted, PgcliError
from pgcli.experiment.build import environments_of, released
from pgcli.experiment.cluster import Logs, run_on_cluster
from pgcli.experiment.recorder import Context, Outcome
from pgcli.experiment.run import Failure, Request, Result, failure_of, run_experiment
from pgcli.experiment.stacks import stacks
from pgcli.records import Notice, Record
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.stack import Stack
from pgcli.system import git
from pgcli.system.leaving import leave
from pgcli.system.process_state import kept, require
from pgcli.system.processes import ignore_interrupts, interruptible, process_context, start_process
from pgcli.system.signals import StopOnSignal

__all__ = ["Failure", "Outcome", "run_all"]

Watch = Callable[[Record, int], None]
POLL_SECONDS = 0.2
PIPE = int(getattr(signal, "SIGPIPE", 13))  # the reader of stdout has ended
_CONTINUE = "the same command with --resume continues"


def run_all(requests: Sequence[Request], jobs: int, watch: Watch, logs: Logs, stack: int | None = None) -> list[Result]:
    """Run every request, `jobs` at a time; one that fails does not stop the others.

    Args: watch: receives every record with the number of its run; the runs stop if its pipe is closed. logs:
    `logs(request, watch)` also writes the records of a run for other tools, in the process of the run. stack: how many
    runs of a process may share their rollouts; None: as many as the memory allows.
    Raises: Interrupted, once every run in progress has saved its state.
    """
    git.look_again()
    with StopOnSignal() as stop:
        watch = partial(_watched, watch, stop)
        if jobs > 1 and len(requests) > 1 and requests[0].config.sampling.backend == "ray":
            return run_on_cluster([_sharing(request, jobs, requests) for request in requests], jobs, watch, logs, stop)
        groups = stacks([request.config for request in requests], jobs, stack)
        if jobs > 1 and len(groups) > 1:
            shared = [_sharing(request, jobs, groups) for request in requests]
            results = _run_in_processes(shared, groups, jobs, watch, logs, stop)
        else:
            results = {}
            for group in groups:
                results |= _run_group({number: requests[number] for number in group}, watch, logs, stop)
        return [results[number] for number in range(len(requests))]


def _watched(watch: Watch, stop: StopOnSignal, record: Record, number: int) -> None:
    try:
        watch(record, number)
    except BrokenPipeError:
        stop.request(PIPE)


def _sharing(request: Request, jobs: int, units: Sequence[object]) -> Request:
    return replace(request, share=min(jobs, len(units)))


def _run_group(requests: Mapping[int, Request], watch: Watch, logs: Logs, stop: StopOnSignal) -> dict[int, Result]:
    """Run one request, or a stack. Raises: Interrupted, once every run has saved its state."""
    results, interruptions, saving = dict[int, Result](), list[Interrupted](), set[int]()

    def asked_to_save(number: int) -> bool:
        if stop.asked_to_save():
            saving.update(requests)
        asked = number in saving
        saving.discard(number)
        return asked

    def run(number: int, stack: Stack | None = None) -> None:
        try:
            with logs(requests[number], lambda record: watch(record, number)) as watch_one:
                context = Context(watch_one, stop.check, partial(asked_to_save, number), stack)
                results[number] = run_experiment(requests[number], context)
        except Interrupted as interruption:
            interruptions.append(interruption)
        except Exception as error:
            results[number] = failure_of(error)

    first, *others = requests
    if others:
        environments = EnvironmentCache(environments_of(requests[first].config))
        with kept(), released(environments):
            require("torch's threads", requests[first].config.training.threads)  # in this thread, which steps
            stack = Stack(environments, stop.check, lambda text: watch(Notice(text), first))
            stack.run([partial(run, number, stack) for number in requests])
    else:
        run(first)
    for interruption in interruptions:
        if others:
            interruption.message, interruption.hint = str(interruption.args[0]), _CONTINUE
        raise interruption
    return results


def _run_in_processes(
    requests: Sequence[Request], groups: list[list[int]], jobs: int, watch: Watch, logs: Logs, stop: StopOnSignal
) -> dict[int, Result]:
    with interruptible():
        context = process_context()
    waiting = list(groups)
    running: dict[Connection, tuple[list[int], BaseProcess]] = {}
    results: dict[int, Result] = {}
    interruption: Interrupted | None = None
    while waiting or running:
        while waiting and len(running) < jobs and interruption is None:
            group = waiting.pop(0)
            here, there = context.Pipe(duplex=False)
            own = {number: requests[number] for number in group}
            try:
                with interruptible():
                    process = start_process(context, _child, (own, there, logs))
            except Interrupted:  # `stop.check` raises it again
                break
            there.close()
            running[here] = (group, process)
        for connection in wait(list(running), POLL_SECONDS):
            assert isinstance(connection, Connection)
            group, process = running[connection]
            try:
                number, message = connection.recv()
            except EOFError:
                process.join()
                for number in group:
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
        interruption.hint = _CONTINUE
        raise interruption
    return results


def _death(request: Request, code: int) -> Failure:
    """Describe why a process sent no result: it was killed, or its environment exited Python."""
    if code < 0:
        error = PgcliError(f"{request.path}: its process was killed by {signal.Signals(-code).name}")
        exit_code = 128 - code  # the shell's convention
    else:
        error = EnvironmentFailure(f"{request.path}: {request.config.env.id} exited Python with code {code}")
        exit_code = error.exit_code
    error.hint = "the same command with --resume continues from the last checkpoint"
    return Failure(exit_code, str(error), error)


def _child(requests: Mapping[int, Request], connection: Connection, logs: Logs) -> None:
    """Run requests and send their records and results to the parent; stop if the parent ends."""

    def watch(record: Record, number: int) -> None:
        try:
            connection.send((number, record))
        except OSError:
            raise Interrupted(signal.SIGTERM) from None

    ignore_interrupts()  # a terminal's Ctrl-C reaches the parent, which forwards it
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    results: dict[int, Result]
    try:
        with StopOnSignal((signal.SIGTERM,)) as stop:
            results = _run_group(requests, watch, logs, stop)
    except Exception as error:
        results = dict.fromkeys(requests, failure_of(error))
    with contextlib.suppress(OSError):  # the parent has ended
        for result in results.items():
            connection.send(result)
    leave(0)  # a simulator's threads would keep the process alive and the parent waiting


def _stop_without_parent() -> None:
    """Wait for the end of the parent, then stop this process like a signal."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
