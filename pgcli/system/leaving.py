"""Leave the process at once: on a signal, or at the end. Temporary folders are removed, and nothing else is undone.

This module imports only what Python itself has loaded, so that `pgcli.__main__` can set its handlers first of all.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as typing's, which takes a while to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

STOP = tuple(int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVE = tuple(int(getattr(signal, name)) for name in ("SIGUSR1",) if hasattr(signal, name))
_folders: dict[str, int] = {}  # temporary ones → the process that made them


def leave_on_signals() -> None:
    """Leave with 128 + number on each signal of STOP, until a command that saves its state takes over.

    The handler neither raises an exception, which an import could swallow, nor imports anything. A signal that is
    ignored stays so: `nohup` asks for it.
    """
    for number in STOP:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a key that is held down
    leave(128 + number)


def leave(code: int) -> NoReturn:
    """Leave at once, whatever threads a simulator has left behind. Everything that must last is on disk."""
    for folder in list(_folders):
        remove_folder(folder)
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - contextlib takes a while to import
            stream.flush()
        except Exception:
            pass
    os._exit(code)  # taking torch apart would cost a fifth of what importing it does


def temporary_folder(room: int = 0) -> str:
    """Make a folder that `leave` removes, in TMPDIR, or in /tmp where TMPDIR leaves less than `room` for a socket.

    Args: room: the characters below it that the name of a socket needs; systems allow about 100 in all.
    Raises: OSError, with the cause.
    """
    import shutil  # noqa: F401 - here, so that a signal handler need not
    import tempfile

    longest = 103 - room - len("/pgcli-12345678")
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    fitting = [place for place in places if not room or len(os.fsencode(place)) <= longest]
    for place in fitting:
        try:
            folder = tempfile.mkdtemp(prefix="pgcli-", dir=place)
        except OSError:
            if place == fitting[-1]:
                raise
            continue
        _folders[folder] = os.getpid()
        return folder
    raise OSError(36, f"the folder of temporary files has a name that is too long for a socket: {places[0]}")


def remove_folder(folder: str) -> None:
    """Remove a temporary folder, in the process that made it alone."""
    if _folders.pop(folder, None) == os.getpid():
        sys.modules["shutil"].rmtree(folder, ignore_errors=True)
