"""Signals: asked to stop, a run stops between two steps, at its last completed iteration; asked to save, it saves."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import ClassVar

from pgcli.errors import Interrupted

STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVE = getattr(signal, "SIGUSR1", None)
_SHOW_CURSOR = "\x1b[?25h"


class Stopped(SystemExit):
    """A signal ends a command that has nothing to save."""

    came: ClassVar[int | None] = None  # a library's bare `except:` may swallow the exception, but not this

    @classmethod
    def by(cls, number: int) -> Stopped:
        """Give the exception, and remember the signal."""
        cls.came = number
        return cls(128 + number)


class StopOnSignal:
    """Within this context, a signal to stop makes the next `check()` raise Interrupted; a second one exits at once.

    SIGUSR1 asks for a checkpoint. The handlers only take a note, so no state is ever half changed.
    """

    def __init__(self, signals: Sequence[int] = STOP) -> None:
        self._signals = signals
        self._received: int | None = None
        self._save = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopOnSignal:
        self._received = Stopped.came
        for number in self._signals:
            self._before[number] = signal.signal(number, self._note)
        if SAVE is not None:
            self._before[SAVE] = signal.signal(SAVE, self._note_save)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def check(self) -> None:
        """Raise Interrupted if a signal to stop has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    def asked_to_save(self) -> bool:
        """Say whether a checkpoint was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR.encode())
            os._exit(128 + number)
        self._received = number
