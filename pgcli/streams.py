"""stdout is for results: what environments print goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
