"""Packages that only some commands need."""

from __future__ import annotations

import importlib.util

from pgcli.errors import UsageError


def require(package: str, extra: str, what: str, otherwise: str = "") -> None:
    """Raise UsageError if `package`, without which there is no `what`, is not installed; import nothing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{what} needs the package {package}", f"pip install 'pgcli[{extra}]'{otherwise}")
