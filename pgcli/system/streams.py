"""The standard streams: results on stdout, all else on stderr; and text that is safe to print."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, except tab and line feed
    "\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # directions, invisible
    "\ud800-\udfff]"  # lone surrogates: bytes of a name that are not UTF-8
)

_PASSWORD = re.compile(r"(://[^\s/@:]*:)[^\s]*@|([?&;]\w*(?:pass|pwd|token|secret|key)\w*=)[^\s&;]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return `text` with asterisks for passwords in addresses: of user:password@, or of ?password=…."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def printable(text: str) -> str:
    r"""Return `text` with escapes for characters that a terminal executes, hides or cannot encode.

    All text from files, environments and file names passes through here before pgcli adds its own styles.
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def print_message(text: str) -> None:
    """Print a text to stderr, unless it is closed or full."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{printable(without_passwords(text))}\n")
        sys.stderr.flush()


def open_descriptors() -> None:
    """Open the null device as stdin, stdout and stderr where they are closed.

    Otherwise the next opened file, such as a table of a run, could become descriptor 1 or 2, and simulators would print
    into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115


@contextmanager
def results_only() -> Iterator[Callable[[str], None]]:
    """Redirect stdout to stderr, for Python, children and C, and keep the process-wide settings.

    Yields: a function that writes a text to the real stdout at once. It raises OSError, such as BrokenPipeError.
    """
    from pgcli.system.process_state import kept

    try:
        sys.stdout.flush()
        if sys.stdout.fileno() != 1 or sys.stderr.fileno() != 2:
            raise OSError
        stdout = os.dup(1)
    except (OSError, ValueError, AttributeError):  # closed, full or replaced
        with kept():
            yield partial(print, end="", flush=True)
        return
    os.dup2(2, 1)
    try:
        with kept():
            yield partial(_write, stdout)
    finally:
        try:
            sys.stdout.flush()
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)


def _write(descriptor: int, text: str) -> None:
    rest = text.encode(errors="backslashreplace")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
