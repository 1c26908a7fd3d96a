"""A call from a user's program: it restores the process, and raises errors that fit Python."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgcli.errors import ConfigError, Interrupted, PgcliError

_LOCK = threading.RLock()  # the settings that pgcli keeps belong to the process
_OPTIONS = {  # of the commands, and their names in Python
    "--from": "start_from",
    "--output": "output",
    "--resume": "resume=True",
    "--overwrite": "overwrite=True",
    "--run-dir": "run_dir",
    "--seeds": "seeds",
    "--tag": "tags",
    "--note": "note",
    "--which": "which",
    "--trust, or trust=True in Python,": "trust=True",
    "--trust": "trust=True",
}


@contextmanager
def session() -> Iterator[None]:
    """Run pgcli within a user's program; calls in several threads wait for each other.

    Afterwards, signal handlers, threads of torch, random generators, environment variables, the current folder,
    warning filters and logging are as before. Ctrl-C raises KeyboardInterrupt, after the run has saved its state; any
    other signal that stops a run then has its usual effect.
    """
    try:
        with _LOCK, _as_before():
            yield
    except Interrupted as interruption:
        _deliver(interruption)
        raise
    except ConfigError as error:
        error.hint = error.hint or "; ".join(one.hint for one in error.problems if one.hint)
        raise
    except PgcliError as error:
        error.message, error.hint = in_python(error.message), in_python(error.hint)
        raise


def in_python(text: str) -> str:
    """Return a message with the options of commands under their names in Python."""
    found = "|".join(re.escape(option) for option in sorted(_OPTIONS, key=len, reverse=True))
    return re.sub(rf"(?<![\w`-])({found})(?![\w-])", lambda option: _OPTIONS[option[1]], text)


def _deliver(interruption: Interrupted) -> None:
    """Give a signal that stopped a run its usual effect."""
    number = interruption.exit_code - 128
    handler = signal.getsignal(number)
    if handler is not signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.raise_signal(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt(str(interruption.message)) from None


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore the settings of this process that training, or an environment, may change."""
    import numpy as np
    import torch  # before `kept`, which keeps the settings of imported modules

    from pgcli.system.process_state import kept

    path, variables, root = list(sys.path), dict(os.environ), logging.getLogger()
    levels, handlers, disabled = _levels(), list(root.handlers), logging.root.manager.disable
    states: Any = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with warnings.catch_warnings(), kept():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        sys.path[:] = path
        if os.environ != variables:
            os.environ.clear()
            os.environ.update(variables)
        root.handlers[:] = handlers
        logging.disable(disabled)
        for name, level in _levels().items():
            if level != levels.get(name, logging.NOTSET):
                logging.getLogger(name or None).setLevel(levels.get(name, logging.NOTSET))


def _levels() -> dict[str, int]:
    """Return the levels of all loggers by name; "" is the root."""
    loggers = {name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    return {name: one.level for name, one in {"": logging.getLogger(), **loggers}.items()}
