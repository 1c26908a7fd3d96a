"""Check a user's code in a process of its own, with a time limit.

The process ends when a call takes too long, in Python or in C.

The kernel's timer ends the process, so neither a loop without bytecode nor a lost parent keeps it alive. Without such
timers (Windows) the check runs in this process, without a limit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pgcli.errors import UsageError
from pgcli.system.processes import may_fork, process_context

LOADING_SECONDS = 60.0
ALL_SECONDS = 300.0  # for all calls together
Report = Callable[[str, float], None]  # what is called now, and the seconds that it may take


Check = Callable[[str, Report, float], dict[str, Any]]  # of the code at a location, with the seconds of one call


def within_time(check: Check, location: str, seconds: float) -> dict[str, Any]:
    """Return the result of `check` on the code at `location`; a call that takes too long makes it wrong.

    Raises: UsageError: if loading the file ends the process or takes too long; what `check` raises.
    """
    if not hasattr(signal, "setitimer"):
        return check(location, lambda what, limit: None, seconds)
    context = multiprocessing.get_context("fork") if may_fork() else process_context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(theirs, check, location, seconds))
    process.start()
    theirs.close()
    what, limit = "it", seconds
    try:
        while True:
            kind, content = ours.recv()
            if kind == "call":
                what, limit = content
            elif kind == "error":
                raise content
            else:
                found: dict[str, Any] = content
                return found
    except EOFError:
        process.join()
        return _ended(location, process.exitcode or 0, what, limit)
    finally:
        process.kill()
        process.join()
        ours.close()


def _ended(location: str, code: int, what: str, limit: float) -> dict[str, Any]:
    """Judge a process that ended without a result. Raises: UsageError: if the file did not load."""
    if code == -signal.SIGALRM:
        text = f"{what} did not return within {limit:g} s: is there an endless loop?"
    else:
        text = f"{what} ended the process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
    if what.startswith("running the file"):
        raise UsageError(f"{location}: {text}", 'code that trains belongs under `if __name__ == "__main__":`')
    return {"estimator": location, "problems": [], "notes": [], "verdict": "wrong", "reasons": [text]}


def _check(connection: Connection, check: Check, location: str, seconds: float) -> None:
    """Check in this process, and send each call and the result."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    started = float("inf")

    def report(what: str, limit: float) -> None:
        nonlocal started
        if not what.startswith("running the file"):
            started = min(started, time.monotonic())
            left = started + ALL_SECONDS - time.monotonic()
            what, limit = (what, limit) if limit <= left else (f"{what}, after many calls,", max(left, 0.1))
        connection.send(("call", (what, limit)))
        signal.setitimer(signal.ITIMER_REAL, limit)

    try:
        result: tuple[str, Any] = ("result", check(location, report, seconds))
    except BaseException as error:
        error.add_note("".join(traceback.format_exception(error)))
        result = ("error", error)
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        connection.send(result)
    except Exception:  # an exception that pickle cannot take
        connection.send(("error", RuntimeError("".join(getattr(result[1], "__notes__", ())))))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # also if the user's code has left threads
