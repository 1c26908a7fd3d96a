"""Collect the problems of a config file and its overrides, and raise them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgcli.config.messages import Path_, path_of
from pgcli.config.yaml import Place, Source
from pgcli.errors import ConfigError, Problem

MAX_PROBLEMS = 20  # shown at once


class Problems:
    """The problems of a config, each at its place in the file or in an override."""

    def __init__(self, source: Source) -> None:
        self._origins: list[tuple[Path_, Source]] = [((), source)]  # the file, then the overrides
        self._found: list[tuple[int, Place, Problem]] = [(0, *problem) for problem in source.problems]
        self._invalid: set[Path_] = set()
        self._omitted = 0

    def begin_override(self, path: Path_, source: Source) -> None:
        """Assign later problems at `path` to this override."""
        self._origins.append((path, source))

    def add_to_override(self, problems: Iterable[Problem]) -> None:
        """Add syntax problems of the current override."""
        self._found += [(len(self._origins) - 1, (1, 1), problem) for problem in problems]
        self._invalid.add(self._origins[-1][0])

    def add(self, path: Path_, message: str, hint: str) -> None:
        """Add a problem with the value at `path`."""
        self._append(path, message, hint)
        self._invalid.add(path)

    def add_conflict(self, keys: Sequence[str], message: str, fix: str, at: str | None = None) -> None:
        """Add a conflict between keys, at `at` or the key that the user wrote. Skip invalid keys."""
        paths = [path_of(key) for key in keys]
        if not any(map(self._is_invalid, paths)):
            written = max(paths, key=lambda path: (self._origin(path) > 0, path in self._origins[0][1].positions))
            self._append(written if at is None else path_of(at), message, fix)

    def is_overridden(self, key: str) -> bool:
        """Return whether an override wrote `key`."""
        return self._origin(path_of(key)) > 0

    def first_new(self, paths: Iterable[Path_]) -> list[Path_]:
        """Return the first MAX_PROBLEMS paths without a problem; count the others."""
        new = sorted((path for path in paths if path not in self._invalid), key=self._position)
        self._omitted += len(new[MAX_PROBLEMS:])
        self._invalid.update(new[MAX_PROBLEMS:])
        return new[:MAX_PROBLEMS]

    def raise_if_any(self) -> None:
        """Raise ConfigError with at most MAX_PROBLEMS problems and the number of others."""
        problems = [problem for *_, problem in sorted(self._found, key=lambda found: found[:2])]
        if more := self._omitted + len(problems[MAX_PROBLEMS:]):
            message = f"and {more} more problem{'s' if more > 1 else ''}"
            problems[MAX_PROBLEMS:] = [Problem(self._origins[0][1].name, message, "fix these first")]
        if problems:
            raise ConfigError(problems)

    def _append(self, path: Path_, message: str, hint: str) -> None:
        number, place = self._position(path)
        self._found.append((number, place, self._origins[number][1].problem(place, message, hint)))

    def _is_invalid(self, path: Path_) -> bool:
        """Return whether `path`, a part of it, or its container is invalid."""
        return any(path[: len(bad)] == bad[: len(path)] for bad in self._invalid)

    def _position(self, path: Path_) -> tuple[int, Place]:
        number = self._origin(path)
        return number, self._origins[number][1].place(path)

    def _origin(self, path: Path_) -> int:
        """Return the number of the last override that wrote `path` or a key inside it; 0 for the file."""
        file = self._origins[0][1]
        for number, (key, _) in reversed(list(enumerate(self._origins))[1:]):
            if path[: len(key)] == key or (key[: len(path)] == path and path not in file.positions):
                return number
        return 0
