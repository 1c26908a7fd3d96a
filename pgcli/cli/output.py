"""The output of commands: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import typer

from pgcli.system.streams import printable


def print_result(result: object, if_closed: int = 128 + 13, *, styled: bool = False) -> None:
    """Print a result to stdout.

    Exit with `if_closed`, by default SIGPIPE's code, if the pipe is closed.

    Args: styled: the result contains pgcli's own colour codes and is already printable.
    """
    try:
        typer.echo(result if styled else printable(str(result)))
    except BrokenPipeError:
        raise typer.Exit(if_closed) from None


def print_report(
    result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str], *, styled: bool = False
) -> None:
    """Print a result as a JSON object, with null for non-finite numbers, or as `text`."""
    from pgcli.report.text import finite

    print_result(json.dumps(finite(result), allow_nan=False) if as_json else text(result), styled=styled)


def terminal() -> tuple[int, bool, bool]:
    """Return the width of the terminal, and whether it shows colours and Unicode."""
    import codecs
    import os
    import shutil

    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    utf = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    return shutil.get_terminal_size((80, 24)).columns, wanted and sys.stdout.isatty(), utf
