"""The code of a run: digests of the user's files, changes since, and git repositories."""

from __future__ import annotations

import hashlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pgcli
from pgcli.config import Config
from pgcli.runs.files import open_file
from pgcli.system import git
from pgcli.system.locations import SUFFIXES

MAX_BYTES = 2**26  # of a file
_PACKAGE = Path(pgcli.__file__).parent
_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def code_of(config: Config, folder: Path, command: Iterable[str]) -> dict[str, Any]:
    """Return the entries of run.json on the code: `user_code`, `git`, `git_commit`.

    `git` has the repositories of the current folder, whose commit is `git_commit`, of files that the command names,
    and of the user's code, and pgcli's if it is not installed from a package. Call it when environments, policy and
    estimator are built, so that their modules are imported.
    """
    files, named = user_code(config, folder), list[Path]()
    for word in command:
        with suppress(OSError, ValueError):  # a value of an override, which may be long
            named += [folder / word] if (folder / word).is_file() else []
    tops = git.repositories_of([folder, *named, *(folder / file for file in files)])
    if os.path.lexists(_PACKAGE.parent / ".git"):
        tops += [top for top in git.repositories_of([_PACKAGE]) if top not in tops]
    return {"git_commit": git.commit_of(folder), "user_code": files, "git": git.describe(tops)}


def user_code(config: Config, folder: Path) -> dict[str, str]:
    """Return the user's files with their SHA-256: those that a config names, and imported modules.

    A name is relative to `folder`, the current folder of the command, or absolute for a file elsewhere.
    """
    root = Path(os.path.realpath(folder))
    found = {}
    for file in dict.fromkeys([*_named(config, root), *_imported(root)]):
        if (digest := digest_of(file)) is not None:
            found[str(file.relative_to(root) if file.is_relative_to(root) else file)] = digest
    return dict(sorted(found.items()))


def changed(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> list[str]:
    """Return the files of `before` that have other content now; one that moved has not changed."""

    def is_same(file: str, digest: str) -> bool:
        current = now.get(file) or digest_of(folder / file)
        return digest == current if current else digest in now.values()

    return [file for file, digest in before.items() if not is_same(file, digest)]


def digest_of(file: Path) -> str | None:
    """Return the SHA-256 of a file; None if it is missing, not a regular file, or too large for code."""
    try:
        with open_file(file) as content:
            state = os.fstat(content.fileno())
            return None if state.st_size > MAX_BYTES else _digest(str(file), state.st_mtime_ns, state.st_size)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None


@lru_cache(maxsize=10_000)
def _digest(file: str, modified: int, size: int) -> str:
    """Read a file once for all seeds of a command."""
    with open_file(Path(file)) as content:
        return hashlib.sha256(content.read(MAX_BYTES)).hexdigest()


def _named(config: Config, root: Path) -> Iterator[Path]:
    wrappers = [wrapper.name for env in (config.env, config.evaluation_env) for wrapper in env.wrappers]
    ids = (config.env.id, config.evaluation_env.id)
    for location in (config.algorithm.estimator, config.policy.network, *ids, *wrappers):
        file, colon, _ = (location or "").rpartition(":")
        if colon and file.endswith(SUFFIXES):
            yield Path(os.path.realpath(root / file))


def _imported(root: Path) -> Iterator[Path]:
    """Yield the files of imported modules, except those of Python, of packages and of pgcli."""
    for module in list(sys.modules.values()):
        with suppress(AttributeError, ValueError):  # no module; a name that no file can have
            file = object.__getattribute__(module, "__dict__").get("__file__")  # getattr would load a lazy module
            if isinstance(file, str) and not _is_library(file):
                real = os.path.realpath(root / file)
                if not _is_library(real):
                    yield Path(real)


def _is_library(file: str) -> bool:
    return file.startswith(_libraries()) or any(part in file for part in _INSTALLED)


@cache
def _libraries() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in _LIBRARIES} | set(site.getsitepackages())
    paths |= {site.getusersitepackages(), str(_PACKAGE)}
    return tuple(f"{one}{os.sep}" for path in paths for one in {path, os.path.realpath(path)})
