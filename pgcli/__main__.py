"""`python -m pgcli` and the console script `pgcli`."""

from __future__ import annotations

import io
import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))  # last, so that files in the current folder hide no package

from pgcli.system.leaving import leave, leave_on_signals

TYPE_CHECKING = False  # instead of typing's, whose import takes time
if TYPE_CHECKING:
    from typing import Any, NoReturn

leave_on_signals()  # before slow imports, which the functions contain; commands that save state replace the handlers


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    import warnings

    from pgcli.system.streams import open_descriptors

    open_descriptors()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy works on few rows; training.threads sets torch's threads
    warnings.showwarning = _warn  # type: ignore[assignment]  # it ignores the other parameters
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print `?` instead of `±` on an ASCII terminal
    leave(_run())


def _run() -> int:
    from pgcli.cli import app
    from pgcli.cli.completion import answer
    from pgcli.errors import PgcliError
    from pgcli.system.streams import print_message

    try:
        if not answer(app, os.environ.get("_PGCLI_COMPLETE", "")):
            code = app(prog_name="pgcli", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except PgcliError as error:
        print_message(str(error))
        return error.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except OSError as error:  # for example a full disk behind `>`
        from pgcli.system.limits import limit_of

        place = f"{error.filename or 'output'}: {error.strerror or error}", ""
        print_message(str(PgcliError(*(limit_of(error) or place))))
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # a typer error; its class has no public name
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
    """Print an argument error and return its exit code."""
    from pgcli.system.streams import print_message

    if message := error.format_message():  # empty if the help was already shown
        command = getattr(error.ctx, "command", None)
        name = "pgcli" if command is None or error.ctx.parent is None else f"pgcli {command.name}"
        example = (getattr(command, "epilog", None) or "").partition("\n")[2].partition("\n")[0].strip()
        hint = f"for example `{example}`; see `{name} --help`" if "Missing" in message else f"see `{name} --help`"
        print_message(f"error: {message}\nhint: {hint}")
    return int(error.exit_code)


def _warn(message: Warning | str, *place: object) -> None:
    """Print a warning of a library as one line."""
    import re

    from pgcli.system.streams import print_message

    text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).removeprefix("WARN: ")
    print_message(f"warning: {text}")


if __name__ == "__main__":
    main()
