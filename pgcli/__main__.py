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

from pgcli.system.streams import leave, print_message


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy acts on few rows; torch's threads are training.threads
    signal.signal(signal.SIGINT, _leave)  # until a command that has something to save takes over
    warnings.showwarning = _warn  # type: ignore[assignment]  # it ignores the other arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets `?` for `±`, not a traceback
    leave(_run())


def _run() -> int:
    from pgcli.cli import app
    from pgcli.errors import PgcliError

    try:
        app()
    except PgcliError as error:
        print_message(str(error))
        return error.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except OSError as error:  # say, a full disk behind `>`
        print_message(f"error: {error.filename or 'output'}: {error.strerror or error}")
        return 1
    except Exception as error:
        import traceback

        from pgcli.system.memory import memory_error

        if (known := memory_error(error)) is not None:
            print_message(str(known))
            return known.exit_code

        print_message(traceback.format_exc().rstrip())
        return 1
    return 0


def _warn(message: Warning | str, *place: object) -> None:
    """Print a library's warning as one plain line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).removeprefix("WARN: ")
    print_message(f"warning: {text}")


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    from pgcli.system.signals import Stopped

    raise Stopped.by(number)


if __name__ == "__main__":
    main()
