"""The errors that a user can cause, with their exit codes.

PgcliError 1
├── UsageError 2             a command-line argument
├── ConfigError 2            YAML, an override, or a combination of keys
├── EnvironmentFailure 3     Gymnasium or the environment
├── RunDirectoryError 4      the run directory
│   └── CheckpointError 4    one checkpoint
├── Diverged 5               a non-finite number in training
├── RunInUse 6               another process is writing the run directory
└── Interrupted 130, 143     a signal; resumable
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PgcliError(Exception):
    """A user's mistake with a known fix: printed as `error: …` and `hint: …`, without a traceback."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:  # errors of other processes keep their hint and all else
        return _again, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        message, hint = (
            text.replace("\n", "\\n") for text in (self.message, self.hint)
        )  # a name may contain line breaks
        return f"error: {message}" + (f"\nhint: {hint}" if hint else "")


def _again(kind: type[PgcliError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> PgcliError:
    """Build an error that was pickled."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(attributes)
    return error


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most similar to `word`, or None if none is similar."""
    import difflib  # imported only after a mistake

    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), None)


def typed(path: Path) -> str:
    """Quote a path for a command in a hint."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


class UsageError(PgcliError):
    """A command-line argument is invalid."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """A problem of a config: its location (`file:line:column`), a message and a fix."""

    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where, message, hint = (text.replace("\n", "\\n") for text in (self.where, self.message, self.hint))
        return f"error: {where}: {message}" + (f"\nhint: {hint}" if hint else "")


class ConfigError(PgcliError):
    """All problems of a config."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class EnvironmentFailure(PgcliError):
    """The environment is unknown, cannot be built, or violated the Gymnasium API.

    For a fault in an episode, `seed` is the reset seed, and `reproduction` a program that repeats the fault.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "", seed: int | None = None, reproduction: str = "") -> None:
        super().__init__(message, hint)
        self.seed = seed
        self.reproduction = reproduction


class RunDirectoryError(PgcliError):
    """The run directory cannot be used."""

    exit_code = 4


class CheckpointError(RunDirectoryError):
    """A checkpoint is missing, damaged, or not a pgcli checkpoint."""


class Diverged(PgcliError):
    """A number that must be finite is not. The last good checkpoint is kept."""

    exit_code = 5

    def __init__(
        self,
        message: str,
        hint: str = "lower optimizer.learning_rate, or set optimizer.max_grad_norm; at the start of a run, check the "
        "rewards",
    ) -> None:
        super().__init__(message, hint)


class RunInUse(PgcliError):
    """Another process is using the run directory."""

    exit_code = 6


class Interrupted(PgcliError):
    """A signal stopped the run. The last completed iteration is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number  # as shells do


def counted(number: int, what: str) -> str:
    """Return `1 run` or `2 runs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
