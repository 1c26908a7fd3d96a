"""How pgcli starts processes of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next minibatch; say whether it is there and does.

    By default it gives large blocks back to the system and asks for fresh pages, which are zeroed one by one: up to a
    third of the time of an update on images.
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
    context.set_forkserver_preload(["pgcli.experiment"])
    if threading.current_thread() is not threading.main_thread():  # only that one has signal handlers
        forkserver.ensure_running()
        return context
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server inherits it: Ctrl-C is for the parent
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context
