"""Threads that take turns: only one of them runs, except while others wait for a disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turns: list[threading.Lock] = []  # the lock that the running thread holds; empty if no threads take turns


@contextmanager
def turns(lock: threading.Lock) -> Iterator[None]:
    """Make the threads of this process take turns: each holds `lock` while it runs."""
    _turns.append(lock)
    try:
        yield
    finally:
        _turns.remove(lock)


def sync_file(descriptor: int) -> None:
    """Make the content of an open file survive a power loss; meanwhile another thread takes its turn."""
    lock = _turns[-1] if _turns else None
    if lock is None:
        os.fsync(descriptor)
        return
    lock.release()
    try:
        os.fsync(descriptor)
    finally:
        lock.acquire()
