"""Every error that a user can cause, each with the exit code that a script sees.

PgcliError 1
├── ConfigError 2            the YAML, an override, or a combination of keys
├── EnvironmentFailure 3     Gymnasium or the environment
├── RunDirectoryError 4      the run directory
│   └── CheckpointError 4    one checkpoint
├── Diverged 5               a non-finite number
├── RunInUse 6               another process writes the run directory
└── Interrupted 130, 143     a signal; resumable
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class PgcliError(Exception):
    """A mistake with a known mend: shown as `error: …` and `hint: …`, never as a traceback."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        message, hint = (text.replace("\n", "\\n") for text in (self.message, self.hint))  # of a name, say
        return f"error: {message}" + (f"\nhint: {hint}" if hint else "")


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that is spelled most like `word`, for a did-you-mean; None if none is similar."""
    import difflib  # only a mistake needs it

    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), None)


def typed(path: Path) -> str:
    """Write a path for a hint, so that it can be typed after a command."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


class UsageError(PgcliError):
    """An argument of the command line makes no sense."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config: where (`file:line:column`), what, and how to mend it."""

    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where, message, hint = (text.replace("\n", "\\n") for text in (self.where, self.message, self.hint))
        return f"error: {where}: {message}" + (f"\nhint: {hint}" if hint else "")


class ConfigError(PgcliError):
    """All problems of a config at once."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class EnvironmentFailure(PgcliError):
    """The environment is unknown, cannot be built, or broke its contract.

    A fault in an episode has the episode's reset `seed`, and a `reproduction`: a program in which it happens again.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "", seed: int | None = None, reproduction: str = "") -> None:
        super().__init__(message, hint)
        self.seed = seed
        self.reproduction = reproduction


class RunDirectoryError(PgcliError):
    """The run directory cannot be used as asked."""

    exit_code = 4


class CheckpointError(RunDirectoryError):
    """A checkpoint is missing, foreign or damaged."""


class Diverged(PgcliError):
    """A number that must be finite is not; the last good checkpoint stands."""

    exit_code = 5

    def __init__(self, message: str) -> None:
        hint = (
            "lower optimizer.learning_rate, or set max_grad_norm; if it is so from the start, rewards may be too large"
        )
        super().__init__(message, hint)


class RunInUse(PgcliError):
    """Another process holds the run directory."""

    exit_code = 6


class Interrupted(PgcliError):
    """A signal asked the run to stop; the last completed iteration is on disk."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number  # the shell's convention
