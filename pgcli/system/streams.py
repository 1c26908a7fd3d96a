"""The standard streams: stdout has results only, stderr everything else; and leaving the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


def print_message(text: str) -> None:
    """Print a line to stderr, unless it is closed or full."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def results_only() -> Iterator[None]:
    """Within this context, what anyone prints to stdout goes to stderr: Python, its children, and simulators in C."""
    try:
        sys.stdout.flush()
        if sys.stdout.fileno() != 1 or sys.stderr.fileno() != 2:
            raise OSError
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # closed, full, or something else in their place
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def leave(code: int) -> NoReturn:
    """Leave at once, whatever threads a simulator has left behind. Everything that must last is on disk."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # closed by whoever read it
            stream.flush()
    os._exit(code)  # taking torch apart would cost a fifth of what importing it does
