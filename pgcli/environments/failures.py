"""What goes wrong inside an environment or a user's module, told in one sentence."""

from __future__ import annotations

import os
import signal
import sysconfig
import traceback
from numbers import Real
from typing import Any

import numpy as np

from pgcli.errors import PgcliError
from pgcli.system.signals import Stopped

NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64})
FLAGS = frozenset({bool, np.bool_})
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LONGEST = 300  # characters of an exception's own words


class Broken(Exception):
    """An environment gave something that it must not: says what, as in `gave …`, and perhaps what would mend it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


def is_fault(error: BaseException) -> bool:
    """Say whether an exception that came out of an environment is its own: also sys.exit, but no signal to pgcli.

    A Ctrl-C is a KeyboardInterrupt only under Python's own handler; under those of pgcli, someone else raised it.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return not isinstance(error, PgcliError | Stopped | GeneratorExit)


def told(error: BaseException) -> str:
    """Tell an exception in one line: its kind, its words, and the line of the user's code that it came from."""
    said, place = words(error), where(error)
    return type(error).__name__ + (f": {said}" if said else "") + (f" ({place})" if place else "")


def where(error: BaseException) -> str:
    """Give `file:line` of the innermost frame that is no library's; of a syntax error, that of the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{_relative(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def words(error: BaseException) -> str:
    """Give an exception's own words, in one line that is not too long."""
    try:
        said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    except Exception:  # there are some that cannot be told
        return ""
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"


def _is_users(file: str) -> bool:
    package = os.path.dirname(os.path.dirname(__file__)) + os.sep
    return not file.startswith((*_LIBRARIES, package, "<"))


def _relative(file: str) -> str:
    """Give a file of the current folder by its path from there."""
    try:
        here = os.getcwd()
    except OSError:
        return file
    return os.path.relpath(file, here) if file.startswith(here + os.sep) else file


def number(reward: Any) -> float:
    """Read a reward that is no plain number: an array of one will do.

    Raises: Broken.
    """
    if isinstance(reward, Real):
        return float(reward)
    try:
        array = np.asarray(reward)
    except Exception:  # what numpy makes nothing of is no number
        array = np.asarray(None)
    if array.size > 1 and array.dtype.kind in "biuf":
        raise Broken(
            f"a reward of shape {array.shape} where one number is wanted",
            "of several objectives, mo-gymnasium makes one: {name: mo_gymnasium.wrappers:LinearReward, "
            "kwargs: {weight: [0.5, 0.5]}} under env.wrappers",
        )
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise Broken(f"a reward that is no number: {_short(reward)}", "the second value of step is a float")
    return float(array.item())


def flag(value: Any, name: str) -> bool:
    """Read `terminated` or `truncated` where it is no bool: 0, 1 and arrays of one will do.

    Raises: Broken.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu" or array.item() not in (0, 1):
        hint = "step gives (obs, reward, terminated, truncated, info)"
        raise Broken(f"a `{name}` that is neither true nor false: {_short(value)}", hint)
    return bool(array.item())


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]} …"
