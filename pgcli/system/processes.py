"""Start processes, from a fork server or as a fork of this process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

from pgcli.errors import EnvironmentFailure, Interrupted
from pgcli.system.leaving import STOP, remove_folder, temporary_folder
from pgcli.system.limits import limit_of

Check = Callable[[], None]
POLL_SECONDS = 0.05
TRIES = 3  # to start a process
PATIENCE_SECONDS = 60.0  # for the result of a fork

T = TypeVar("T")


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next minibatch; return whether that succeeded.

    By default, glibc returns large blocks to the system and requests new pages, which the system fills with zeros. This
    takes up to a third of an update on images, and a quarter of an update on many steps of CartPole.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # numbers of these options in malloc.h
    settings = ((mmap_threshold, 2**30), (trim_threshold, 2**30), (top_pad, 2**26))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def process_context() -> ForkServerContext | SpawnContext:
    """Return the multiprocessing context: if possible, forks of a server that has imported torch."""
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pgcli.system.fork_server", "pgcli.experiment.run"])
    folder, tempfile.tempdir = tempfile.tempdir, _folder_of_sockets()
    here = os.getcwd()
    os.chdir("/")  # the server searches its folder for modules first
    try:
        resource_tracker.ensure_running()  # first, because it unblocks SIGINT
        blocked = signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGINT]
        )  # inherited by the server: only this process handles Ctrl-C
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # a pending Ctrl-C arrives now
    except OSError as error:
        raise cannot_start(error) from None
    finally:
        tempfile.tempdir = folder
        os.chdir(here)
    return context


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at once on a stop signal that a command only notes.

    A fork server that imports answers late.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in STOP} if is_main else {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        handlers[number](number, frame)  # type: ignore[operator, misc]  # a function
        raise Interrupted(number)

    try:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)


@cache
def _folder_of_sockets() -> str:
    """Create the folder for the fork server's sockets, which must be removed on an immediate exit."""
    try:
        folder = temporary_folder(room=len("/pymp-12345678/listener-12345678"))
    except OSError as error:
        raise cannot_start(error) from None
    # A script or a notebook ends without `leave`; multiprocessing removes its own folder in it first, at -100
    util.Finalize(None, remove_folder, (folder,), exitpriority=-200)
    return folder


def start_process(
    context: ForkServerContext | SpawnContext,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    daemon: bool = False,
) -> BaseProcess:
    """Start a process; restart the fork server if it was killed. Raises EnvironmentFailure."""
    error: Exception | None = None
    for _ in range(TRIES):
        process: BaseProcess = context.Process(target=work, args=arguments, daemon=daemon)
        try:
            with without_main():
                process.start()
            return process
        except (EOFError, ConnectionError) as lost:
            error = lost
            time.sleep(POLL_SECONDS)  # until the system has noticed the end of the server
            process_context()
        except OSError as failed:
            raise cannot_start(failed) from None
    raise cannot_start(error)


@contextmanager
def without_main() -> Iterator[None]:
    """Keep a new process from importing the main module: a script would call pgcli once more."""
    main = sys.modules["__main__"]
    names: dict[str, Any] = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    vars(main).update(__file__=None, __spec__=None)
    try:
        yield
    finally:
        vars(main).pop("__file__", None)
        vars(main).update(names)


def cannot_start(error: Exception | None) -> EnvironmentFailure:
    """Describe why a process cannot be started."""
    if isinstance(error, OSError) and (limit := limit_of(error)):
        return EnvironmentFailure(*limit)
    if isinstance(error, EOFError | ConnectionError):
        message = f"the fork server, which starts processes, was killed {TRIES} times in a row"
        return EnvironmentFailure(message, "memory may be low: sampling.workers=0 and 1 job need no other process")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return EnvironmentFailure(f"cannot start a process: {reason}", "set TMPDIR to another folder for temporary files")


def ignore_interrupts() -> None:
    """Ignore SIGINT, which the fork server has blocked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def may_fork() -> bool:
    """Return whether this process has a single thread: a fork would copy locks of other threads."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # not on Linux
        return False


class ForkedTask(Generic[T]):
    """Runs `work` in a fork until the end of this context. `work` calls its argument repeatedly."""

    def __init__(self, work: Callable[[Check], T]) -> None:
        self._work = work

    def __enter__(self) -> ForkedTask[T]:
        context = multiprocessing.get_context("fork")
        self._connection, child = context.Pipe(duplex=False)
        self._process = context.Process(target=self._run, args=(child, os.getpid()), daemon=True)
        self._process.start()
        child.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def result(self, check: Check) -> T | None:
        """Wait for the result of `work`, calling `check`; None if the fork fails, dies or hangs."""
        stop = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self._connection.poll(POLL_SECONDS):
                check()
                if time.monotonic() > stop:
                    return None
            result: T = pickle.loads(self._connection.recv_bytes())
            return result
        except (EOFError, OSError):
            return None

    def _run(self, connection: Connection, parent: int) -> None:
        def check() -> None:
            if os.getppid() != parent:
                os._exit(1)

        try:
            self._connection.close()  # so that writing fails if the parent has ended
            connection.send_bytes(pickle.dumps(self._work(check)))
        finally:
            os._exit(0)  # drop the exception: the parent repeats the work and raises it there
