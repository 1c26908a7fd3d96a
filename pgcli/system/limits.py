"""Limits of the system that a process reaches: no file and no folder is to blame for them."""

from __future__ import annotations

import errno
import sys

if sys.platform != "win32":
    import resource  # here: a process without descriptors imports nothing


def limit_of(error: OSError) -> tuple[str, str] | None:
    """Return a message and a hint if a limit of the process or of the system is the cause of an error."""
    match error.errno:
        case errno.EMFILE:
            message = f"too many open files: this process may open only {_soft('RLIMIT_NOFILE')} at a time"
            return message, "`ulimit -n 1024` allows more"
        case errno.ENFILE:
            return "the system has no room for more open files", "other programs have too many"
        case errno.EAGAIN:
            message = f"no process can be started: you may have only {_soft('RLIMIT_NPROC')} of them and their threads"
            return message, "`ulimit -u` shows the limit; fewer workers and jobs need fewer"
        case errno.ENOMEM:
            return "the system has no memory left", "fewer workers and jobs need less"
    return None


def _soft(name: str) -> str:
    if sys.platform == "win32":
        return "so many"
    limit = resource.getrlimit(getattr(resource, name))[0]
    return "so many" if limit == resource.RLIM_INFINITY else str(limit)
