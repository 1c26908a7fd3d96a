"""The memory of this machine, and errors when it is too small."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from pgcli.errors import UsageError

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container, below /sys/fs/cgroup
_MESSAGES = ("allocate memory", "not enough memory", "out of memory")  # of torch


@functools.cache
def total_memory() -> int | None:
    """Return the usable memory in bytes, within container limits; None if unknown."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # Windows has no sysconf
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _LIMITS:
        with contextlib.suppress(ValueError, OSError):  # `max` means no limit
            found.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min((size for size in found if size > 0), default=None)


def check_memory(size: float, what: str, hint: str) -> None:
    """Raise UsageError if `what`, of `size` bytes, exceeds this machine's memory."""
    total = total_memory()
    if total is not None and size > total:
        raise UsageError(f"{what}: this needs {in_bytes(size)}, but the machine has {in_bytes(total)} of memory", hint)


def in_bytes(size: float) -> str:
    """Return a number of bytes with a unit, such as 1.5 GB."""
    for unit in ("MB", "GB", "TB"):
        size /= 1000 if unit != "MB" else 1_000_000
        if size < 1000:
            break
    return f"{size:,.1f} {unit}"


def memory_error(error: BaseException) -> UsageError | None:
    """Return a user error if Python, numpy or torch ran out of memory; None for other errors."""
    message = " ".join(str(error).split())
    is_torchs = isinstance(error, RuntimeError) and any(part in message for part in _MESSAGES)
    if not (isinstance(error, MemoryError) or is_torchs):
        return None
    hint = "make rollout.steps or rollout.episodes, env.num_envs or policy.hidden_sizes smaller"
    return UsageError(f"not enough memory{': ' if message else ''}{message[:200]}", hint)
