"""How pgcli starts processes of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from types import TracebackType
from typing import Generic, TypeVar

Check = Callable[[], None]
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60.0  # for an answer, once it is waited for

T = TypeVar("T")


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next minibatch; say whether it is there and does.

    By default it gives large blocks back to the system and asks for fresh pages, which are zeroed one by one: up to a
    third of the time of an update on images, a quarter of one on many steps of CartPole.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # their numbers in malloc.h
    settings = ((mmap_threshold, 2**30), (trim_threshold, 2**30), (top_pad, 2**26))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def process_context() -> ForkServerContext | SpawnContext:
    """Fork from a server that has imported torch once, where the system can."""
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pgcli.experiment.run"])
    if threading.current_thread() is not threading.main_thread():  # only that one has signal handlers
        forkserver.ensure_running()
        return context
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server inherits it: Ctrl-C is for the parent
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def may_fork() -> bool:
    """Say whether this process may be copied: it has one thread, so that no other one's lock is copied closed."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # the system does not tell
        return False


class Aside(Generic[T]):
    """Do `work` in a fork of this process, until the end of this context. `work` calls its argument now and then."""

    def __init__(self, work: Callable[[Check], T]) -> None:
        self._work = work

    def __enter__(self) -> Aside[T]:
        context = multiprocessing.get_context("fork")
        self._answer, there = context.Pipe(duplex=False)
        self._process = context.Process(target=self._do, args=(there, os.getpid()), daemon=True)
        self._process.start()
        there.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._answer.close()

    def result(self, check: Check) -> T | None:
        """Wait for what `work` gives; None if it failed, was lost or does not answer. `check` is called meanwhile."""
        stop = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self._answer.poll(POLL_SECONDS):
                check()
                if time.monotonic() > stop:
                    return None
            result: T = pickle.loads(self._answer.recv_bytes())
            return result
        except (EOFError, OSError):
            return None

    def _do(self, there: Connection, parent: int) -> None:
        def check() -> None:
            if os.getppid() != parent:
                os._exit(1)

        try:
            self._answer.close()  # or nobody would be told that the parent reads no more
            there.send_bytes(pickle.dumps(self._work(check)))
        finally:
            os._exit(0)  # with whatever was raised: who waits does the work, and sees
