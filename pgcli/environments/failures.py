"""One-line descriptions of errors in environments and other user modules."""

from __future__ import annotations

import os
import signal
import sysconfig
import traceback

import gymnasium as gym

from pgcli.errors import PgcliError
from pgcli.system.streams import printable

_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_GYMNASIUM = os.path.dirname(gym.__file__) + os.sep
_MAX_CHARACTERS = 300  # of an exception's message


class InvalidOutput(Exception):
    """An environment returned a value that Gymnasium's interface forbids.

    The message is a noun phrase, as in `returned a non-finite reward`; the hint, if any, names the fix.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def is_user_error(error: BaseException) -> bool:
    """Return whether an exception is an error of the user's code; sys.exit counts as one.

    Errors of pgcli and signals do not count. Under pgcli's signal handlers, Ctrl-C raises no KeyboardInterrupt, so
    a KeyboardInterrupt comes from the user's code.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return not isinstance(error, PgcliError | GeneratorExit)


def describe(error: BaseException) -> str:
    """Return type, message and user line of an exception: `ValueError: text (a.py:3)`."""
    message, line = message_of(error), line_of(error)
    return printable(type(error).__name__ + (f": {message}" if message else "") + (f" ({line})" if line else ""))


def describe_outcome(error: BaseException) -> str:
    """Return a predicate: `returned …` an invalid value, or `raised …` an exception."""
    return f"returned {error}" if isinstance(error, InvalidOutput) else f"raised {describe(error)}"


def line_of(error: BaseException) -> str:
    """Return `file:line` of a syntax error or of the innermost user frame; "" without one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, _PACKAGE, "<"))]
    return f"{_relative(own[-1].filename)}:{own[-1].lineno}" if own else ""


def mentions(error: BaseException, word: str) -> bool:
    """Return whether a word occurs in an exception's message or in the user's code in its traceback."""
    error = error.__cause__ or error  # Gymnasium adds the arguments to a TypeError
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line or "" for frame in frames if not frame.filename.startswith((_PACKAGE, _GYMNASIUM))]
    return any(word in text for text in (*lines, message_of(error)))


def message_of(error: BaseException) -> str:
    """Return an exception's message in one line of limited length."""
    try:
        message = printable(" ".join(str(error.msg if isinstance(error, SyntaxError) else error).split()))
    except Exception:  # its __str__ raises
        return ""
    return message if len(message) <= _MAX_CHARACTERS else f"{message[:_MAX_CHARACTERS]} …"


def _relative(file: str) -> str:
    """Return the path of a file relative to the current folder, if the file is inside it."""
    try:
        here = os.getcwd()
    except OSError:
        return file
    return os.path.relpath(file, here) if file.startswith(here + os.sep) else file
