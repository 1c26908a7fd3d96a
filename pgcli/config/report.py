"""Problems on their way to the user: all of them, in the order of the file, then of the command line."""

from __future__ import annotations

from collections.abc import Iterable

from pgcli.config.messages import Path_, dotted
from pgcli.config.yaml import Place, Source
from pgcli.errors import ConfigError, Problem

MAX_PROBLEMS = 20  # told at once: nobody reads more


class Report:
    """What is wrong with a config, each problem at the place of who wrote it: the file, or an override."""

    def __init__(self, source: Source) -> None:
        self._writers: list[tuple[Path_, Source]] = [((), source)]  # the file, then the overrides in their order
        self._found: list[tuple[int, Place, Problem]] = [(0, *problem) for problem in source.problems]
        self._refused: set[Path_] = set()
        self._untold = 0

    def begin_override(self, path: Path_, source: Source) -> None:
        """Take note that the command line writes `path` from here on."""
        self._writers.append((path, source))

    def refuse_override(self, problems: Iterable[Problem]) -> None:
        """Refuse the override just begun, for problems of its text."""
        self._found += [(len(self._writers) - 1, (1, 1), problem) for problem in problems]
        self._refused.add(self._writers[-1][0])

    def refuse(self, path: Path_, message: str, hint: str) -> None:
        """Refuse what stands at `path`."""
        self._tell(path, message, hint)
        self._refused.add(path)

    def refuse_together(self, keys: Iterable[str], reason: str, mend: str) -> None:
        """Refuse a combination of keys, at the first of them that somebody wrote; not if one is refused anyway."""
        paths: list[Path_] = [tuple(int(part) if part.isdigit() else part for part in key.split(".")) for key in keys]
        if not any(map(self.is_refused, paths)):
            names = " and ".join(f"`{dotted(path)}`" for path in paths)
            self._tell(max(paths, key=self._is_written), f"{names}: {reason}", mend)

    def is_refused(self, path: Path_) -> bool:
        """Tell whether `path`, a part of it, or what holds it is refused."""
        return any(path[: len(bad)] == bad[: len(path)] for bad in self._refused)

    def to_tell(self, paths: Iterable[Path_]) -> list[Path_]:
        """Give those of the refused paths that are worth an explanation, in their order; count the others."""
        news = sorted((path for path in paths if path not in self._refused), key=self._order)
        self._untold += len(news[MAX_PROBLEMS:])
        self._refused.update(news[MAX_PROBLEMS:])
        return news[:MAX_PROBLEMS]

    def raise_problems(self) -> None:
        """Raise ConfigError if anything is refused."""
        problems = [problem for *_, problem in sorted(self._found, key=lambda found: found[:2])]
        untold = self._untold + len(problems[MAX_PROBLEMS:])
        if untold:
            message = f"and {untold} more problem{'s' if untold > 1 else ''}"
            problems[MAX_PROBLEMS:] = [Problem(self._writers[0][1].name, message, "mend these first")]
        if problems:
            raise ConfigError(problems)

    def _tell(self, path: Path_, message: str, hint: str) -> None:
        number, place = self._order(path)
        self._found.append((number, place, self._writers[number][1].problem(place, message, hint)))

    def _order(self, path: Path_) -> tuple[int, Place]:
        number = self._writer(path)
        return number, self._writers[number][1].place(path)

    def _is_written(self, path: Path_) -> tuple[bool, bool]:
        return self._writer(path) > 0, path in self._writers[0][1].positions

    def _writer(self, path: Path_) -> int:
        """Find the last override of `path` or of what holds it; or that made it by writing into it; or the file."""
        file = self._writers[0][1]
        for number, (key, _) in reversed(list(enumerate(self._writers))[1:]):
            if path[: len(key)] == key or (key[: len(path)] == path and path not in file.positions):
                return number
        return 0
