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


def check_user_code(location: str, seconds: float = 10.0) -> dict[str, Any]:
    """Check a user's function or policy class: the object that `pgcli check FILE:NAME --json` prints.

    Args: seconds: how long one call of the user's code may take.
    Raises: UsageError: if the file cannot be run or has no such name.
    """
    if not hasattr(signal, "setitimer"):
        from pgcli.inspection.gradient_check.user_estimators import check_loaded

        return check_loaded(location, lambda what, limit: None, seconds)
    context = multiprocessing.get_context("fork") if may_fork() else process_context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(theirs, location, seconds))
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
    """Describe a process that ended without a result.

    The result is a verdict, or UsageError if the file did not load.
    """
    if code == -signal.SIGALRM:
        text = f"{what} did not return within {limit:g} s: is there an endless loop?"
    else:
        text = f"{what} ended the process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
    if what.startswith("running the file"):
        raise UsageError(f"{location}: {text}", 'code that trains belongs under `if __name__ == "__main__":`')
    return {"estimator": location, "problems": [], "notes": [], "verdict": "wrong", "reasons": [text]}


def _check(connection: Connection, location: str, seconds: float) -> None:
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
        from pgcli.inspection.gradient_check.user_estimators import check_loaded

        result: tuple[str, Any] = ("result", check_loaded(location, report, seconds))
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
