"""The git repositories of a run's code: commit, uncommitted changes, and their diff.

A repository may belong to somebody else, and its config may name programs. No command here runs one of them, asks a
question, uses the network or writes a file, and all commands of a repository share one time limit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

DIFF_BYTES = 64_000  # of all repositories together
SECONDS = 5.0  # for one repository
_KEPT = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_CEILING_DIRECTORIES")
_DIFF = (
    *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=all"),
    *("--src-prefix=a/", "--dst-prefix=b/", "-O", os.devnull, "HEAD", "--"),
)
_SAFE = {
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.hooksPath": os.devnull,
    "diff.autoRefreshIndex": "false",  # writes the index, also without optional locks
    "core.bigFileThreshold": "10m",  # larger files are compared without reading their lines
}


def repositories_of(paths: Iterable[Path]) -> list[Path]:
    """Return the top folders of the repositories that contain these files or folders."""
    found = dict.fromkeys(map(_top, dict.fromkeys(path if path.is_dir() else path.parent for path in paths)))
    return [top for top in found if top is not None]


def describe(tops: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for each repository its folder, commit, `dirty`, and the diff of tracked files.

    `dirty` is None if git did not answer. A `note` reports a diff that is cut or missing.
    """
    found, room = [], DIFF_BYTES
    for top in tops:
        one = dict(_describe(top))
        diff = one["diff"].encode(errors="replace")
        if len(diff) > room:
            one |= {"diff": diff[:room].decode(errors="ignore"), "note": f"the diff is cut after {room:,} bytes"}
        room -= min(len(diff), room)
        found.append(one)
    return found


def commit_of(folder: Path) -> str | None:
    """Return the commit of the repository that contains a folder, if there is one."""
    top = _top(folder)
    commit: str | None = None if top is None else _describe(top)["commit"]
    return commit


def look_again() -> None:
    """Forget all answers. They are kept for one command, because its runs have the same code."""
    _describe.cache_clear()
    _top.cache_clear()


@cache
def _top(folder: Path) -> Path | None:
    folder = folder.absolute()
    return next((one for one in (folder, *folder.parents) if os.path.lexists(one / ".git")), None)


@cache
def _describe(top: Path) -> dict[str, Any]:
    stop = time.monotonic() + SECONDS
    found: dict[str, Any] = {"repository": str(top), "commit": None, "dirty": None, "diff": ""}
    git = shutil.which("git")
    if git is None:
        return found | {"note": "git is not installed"}
    head, _ = _ask([git, "rev-parse", "--verify", "--quiet", "HEAD"], top, _SAFE, stop)
    if not re.fullmatch(rb"[0-9a-f]{40,64}\n", head):
        return found | {"note": _why(stop, "git names no commit")}
    found["commit"] = head.decode().strip()
    names, _ = _ask([git, "config", "-z", "--name-only", "--get-regexp", r"^filter\."], top, _SAFE, stop)
    filters = {name.rpartition(".")[0] for name in os.fsdecode(names).split("\0") if name}
    off = {f"{one}.{key}": "" for one in filters for key in ("clean", "smudge", "process")}
    optional = {f"{one}.required": "false" for one in filters}
    diff, code = _ask([git, *_DIFF], top, _SAFE | off | optional, stop)
    if code != 0 and len(diff) <= DIFF_BYTES:
        return found | {"note": _why(stop, "git could not compare the files with the commit")}
    return found | {"dirty": bool(diff), "diff": diff.decode(errors="replace")}


def _why(stop: float, otherwise: str) -> str:
    return f"git took longer than {SECONDS:g} s" if time.monotonic() >= stop else otherwise


def _ask(words: list[str], top: Path, settings: dict[str, str], stop: float) -> tuple[bytes, int | None]:
    """Return the first `DIFF_BYTES` + 1 bytes of git's output, and its exit code: None if it was stopped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _KEPT}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none"}
    environment |= {"GIT_PAGER": "cat", "GIT_NO_LAZY_FETCH": "1", "GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    output, null = b"", subprocess.DEVNULL
    if os.name != "posix":  # no process groups
        return output, None
    try:
        process = subprocess.Popen(
            words, cwd=top, env=environment, stdin=null, stdout=subprocess.PIPE, stderr=null, start_new_session=True
        )
    except (OSError, ValueError):  # for example no permission, or too many processes
        return output, None
    assert process.stdout is not None
    with process.stdout as pipe, DefaultSelector() as selector:
        selector.register(pipe, EVENT_READ)
        while len(output) <= DIFF_BYTES and selector.select(max(stop - time.monotonic(), 0)):
            part = os.read(pipe.fileno(), DIFF_BYTES + 1 - len(output))
            if not part:
                with suppress(subprocess.TimeoutExpired):
                    return output, process.wait(max(stop - time.monotonic(), 0))
                break
            output += part
        _kill(process)
    return output, None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command with its children. One that does not end, as on a hung disk, is left."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
