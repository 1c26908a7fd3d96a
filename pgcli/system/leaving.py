"""Exit the process immediately, on a signal or at the end; only temporary folders are removed.

This module imports only modules that Python has loaded at start, so `pgcli.__main__` can install its handlers first.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # instead of typing's, whose import takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

STOP = tuple(int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVE = tuple(int(getattr(signal, name)) for name in ("SIGUSR1",) if hasattr(signal, name))
_folders: dict[str, tuple[int, Callable[..., None]]] = {}  # temporary folders: their process, and what removes them


def leave_on_signals() -> None:
    """Exit with 128 + number on each signal of STOP, until a command installs its own handlers.

    The handler raises no exception, which an import could swallow, and imports nothing. Ignored signals stay ignored,
    as `nohup` requires.
    """
    for number in STOP:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # for repeated signals of a held key
    leave(128 + number)


def leave(code: int) -> NoReturn:
    """Exit immediately, even if a simulator left threads running. All results are on disk."""
    for folder in list(_folders):
        remove_folder(folder)
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - importing contextlib takes time
            stream.flush()
        except Exception:
            pass
    os._exit(code)  # unloading torch would take a fifth of the time of its import


def temporary_folder(room: int = 0) -> str:
    """Create a folder that `leave` removes, in TMPDIR, or in /tmp if TMPDIR is too long.

    Args: room: characters for the name of a socket in the folder; systems allow about 100 for the whole path.
    Raises: OSError, with the cause.
    """
    import shutil  # here, not in a signal handler
    import tempfile

    prefix = f"pgcli-{os.getpid()}-"
    longest = 103 - room - len(f"/{prefix}12345678")
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    fitting = [place for place in places if not room or len(os.fsencode(place)) <= longest]
    for place in fitting:
        try:
            folder = tempfile.mkdtemp(prefix=prefix, dir=place)
        except OSError:
            if place == fitting[-1]:
                raise
            continue
        _folders[folder] = os.getpid(), shutil.rmtree
        return folder
    raise OSError(36, f"the path of the folder for temporary files is too long for a socket: {places[0]}")


def remove_folder(folder: str) -> None:
    """Remove a temporary folder, only in the process that created it."""
    owner, remove = _folders.pop(folder, (None, None))
    if remove is not None and owner == os.getpid():
        remove(folder, ignore_errors=True)
