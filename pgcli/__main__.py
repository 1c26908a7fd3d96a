"""`python -m pgcli` and the console script `pgcli`."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from types import FrameType
from typing import NoReturn

from pgcli.system.streams import leave


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy acts on few rows; torch's threads are training.threads
    signal.signal(signal.SIGINT, _leave)  # until a command that has something to save takes over
    warnings.showwarning = _warn  # type: ignore[assignment]  # it takes the place as well, and ignores it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets `?` for `±`, not a traceback
    leave(_run())


def _run() -> int:
    from pgcli.cli.commands import app
    from pgcli.errors import PgcliError

    try:
        app()
    except PgcliError as error:
        _tell(f"{error}\n")
        return error.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except OSError as error:  # say, a full disk behind `>`
        _tell(f"error: {error.filename or 'output'}: {error.strerror or error}\n")
        return 1
    except Exception:
        import traceback

        _tell(traceback.format_exc())
        return 1
    return 0


def _tell(text: str) -> None:
    """Write to stderr, if it is still there: a terminal may have been closed."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass


def _warn(message: Warning | str, *place: object) -> None:
    """Write a library's warning as one plain line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).removeprefix("WARN: ")
    _tell(f"warning: {text}\n")


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    from pgcli.system.signals import Stopped

    raise Stopped.by(number)


if __name__ == "__main__":
    main()
