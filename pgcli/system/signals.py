"""Signals: stop a run between two steps, at its last completed iteration, or save it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from pgcli.errors import Interrupted
from pgcli.system import process_state
from pgcli.system.leaving import SAVE, STOP, leave

_SHOW_CURSOR = "\x1b[?25h"


class StopOnSignal:
    """Make the next `check()` raise Interrupted after a stop signal.

    A second one has the effect that it had before; by default, it ends the process.

    SIGUSR1 requests a checkpoint. The handlers only record a signal, so no state is ever half changed. Python also
    writes each signal to a pipe, where `check` finds those that arrived while an environment had its own handlers.
    """

    def __init__(self, signals: Sequence[int] = STOP) -> None:
        self._signals, self._restored = signals, 0
        self._is_main = threading.current_thread() is threading.main_thread()
        self._received: int | None = None
        self._save = False
        self._handlers: dict[int, Any] = {}
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        if not self._is_main:  # Python gives signals to the main thread only
            return self
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = process_state.handlers()
        self._handlers = dict.fromkeys(self._signals, self._note) | dict.fromkeys(SAVE, self._note_save)
        if self._before[STOP[-1]] == signal.SIG_IGN:  # SIGHUP, under `nohup`
            self._handlers.pop(STOP[-1], None)
        self._handlers = self._before | self._handlers
        process_state.require("signal handlers", self._handlers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            process_state.require("signal handlers", self._before)
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def request(self, number: int) -> None:
        """Make the next `check()` raise Interrupted, as the signal `number` would."""
        self._received = self._received or number

    def check(self) -> None:
        """Raise Interrupted if a stop signal has arrived."""
        process_state.restore_handlers()
        if (restored := process_state.handlers_restored()) != self._restored:  # an environment had its own handlers
            self._restored = restored
            self._read_signals()
        if self._received is not None:
            raise Interrupted(self._received)

    def asked_to_save(self) -> bool:
        """Return whether a checkpoint was requested since the last call."""
        self._read_signals()
        asked, self._save = self._save, False
        return asked

    def _read_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():  # only the main thread may
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)  # asyncio removes it
        with suppress(BlockingIOError):
            for number in os.read(self._reader, 4096):
                if number in SAVE:
                    self._save = True
                elif self._handlers.get(number) == self._note:
                    self._received = self._received or number

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR.encode())
            if callable(
                before := self._before.get(number)
            ):  # of pgcli's commands: `leave`; of a notebook: an exception
                before(number, frame)
            leave(128 + number)
        self._received = number
