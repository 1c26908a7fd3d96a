"""Limits of the system that a process meets, told by their cause."""

from __future__ import annotations

import errno

from pgcli.errors import PgcliError

LIMITS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def limit_error(error: OSError) -> PgcliError:
    """Describe an OSError whose number is in LIMITS: no file and no folder is to blame for it."""
    match error.errno:
        case errno.EMFILE:
            return PgcliError(f"this process may not open more than {_soft('RLIMIT_NOFILE')} files", "`ulimit -n 1024`")
        case errno.ENFILE:
            return PgcliError("the system has no room for more open files", "close other programs")
        case errno.EAGAIN:
            message = f"no process or thread can be started: you may have {_soft('RLIMIT_NPROC')}"
            return PgcliError(message, "`ulimit -u` shows the limit; fewer workers and jobs need fewer processes")
        case _:
            return PgcliError("the system has no memory left", "fewer workers and jobs need less")


def _soft(name: str) -> str:
    import resource

    limit = resource.getrlimit(getattr(resource, name))[0]
    return "as many as the system allows" if limit == resource.RLIM_INFINITY else str(limit)
