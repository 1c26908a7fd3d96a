"""`python -m pgcli` and the console script `pgcli`."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))  # the current folder comes last, so that it hides no package

from pgcli.system.leaving import leave, leave_on_signals

leave_on_signals()  # before any other import: until a command that saves its state takes over

import io  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import warnings  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from pgcli.system.streams import open_descriptors, print_message  # noqa: E402


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    open_descriptors()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy acts on few rows; torch's threads are training.threads
    warnings.showwarning = _warn  # type: ignore[assignment]  # it ignores the other arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets `?` for `±`, not a traceback
    leave(_run())


def _run() -> int:
    from pgcli.cli import app
    from pgcli.cli.completion import answer
    from pgcli.errors import PgcliError

    try:
        if not answer(app, os.environ.get("_PGCLI_COMPLETE", "")):
            code = app(prog_name="pgcli", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except PgcliError as error:
        print_message(str(error))
        return error.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except OSError as error:  # say, a full disk behind `>`
        from pgcli.system.limits import limit_of

        place = f"{error.filename or 'output'}: {error.strerror or error}", ""
        print_message(str(PgcliError(*(limit_of(error) or place))))
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own, whose class has no public name
            return _usage(error)
        import traceback

        from pgcli.system.memory import memory_error

        if (known := memory_error(error)) is not None:
            print_message(str(known))
            return known.exit_code

        print_message(traceback.format_exc().rstrip())
        return 1
    return 0


def _usage(error: Any) -> int:
    """Print an error of the arguments, and return its exit code."""
    if message := error.format_message():  # none for a command without arguments, which has shown its help
        command = getattr(error.ctx, "command", None)
        name = "pgcli" if command is None or error.ctx.parent is None else f"pgcli {command.name}"
        print_message(f"error: {message}\nhint: `{name} --help` shows what it takes")
    return int(error.exit_code)


def _warn(message: Warning | str, *place: object) -> None:
    """Print a library's warning as one plain line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).removeprefix("WARN: ")
    print_message(f"warning: {text}")


if __name__ == "__main__":
    main()
