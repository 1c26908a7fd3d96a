"""Messages for errors caused by limits of the process or the system."""

from __future__ import annotations

import errno
import sys

if sys.platform != "win32":
    import resource  # imported here: a process without free descriptors cannot import


def limit_of(error: OSError) -> tuple[str, str] | None:
    """Return message and hint if a limit of the process or system caused an error."""
    match error.errno:
        case errno.EMFILE:
            message = f"too many open files in this process (limit: {_soft('RLIMIT_NOFILE')})"
            return message, "`ulimit -n 1024` raises the limit"
        case errno.ENFILE:
            return "the system cannot open more files", "close other programs: they have too many files open"
        case errno.EAGAIN:
            message = f"cannot start a process: too many processes and threads (limit: {_soft('RLIMIT_NPROC')})"
            return message, "use fewer workers and jobs; `ulimit -u` shows the limit"
        case errno.ENOMEM:
            return "the system is out of memory", "use fewer workers and jobs"
    return None


def open_files() -> int:
    """Return how many files this process may have open."""
    if sys.platform == "win32":
        return 512
    limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if limit == resource.RLIM_INFINITY else limit


def _soft(name: str) -> str:
    if sys.platform == "win32":
        return "unknown"
    limit = resource.getrlimit(getattr(resource, name))[0]
    return "none" if limit == resource.RLIM_INFINITY else str(limit)
