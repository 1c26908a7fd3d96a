"""Optional packages of some commands, and the versions that affect results."""

from __future__ import annotations

import importlib.util
import platform
import re
from contextlib import suppress
from functools import cache
from importlib import metadata

from pgcli.errors import UsageError

_PACKAGES = ("torch", "gymnasium", "numpy", "Box2D", "mujoco", "ale-py")  # results depend on them if installed
DISTRIBUTION = "policy-gradient-cli"  # `pgcli` on PyPI is the PostgreSQL client


def require(package: str, extra: str, what: str, otherwise: str = "") -> None:
    """Raise UsageError if `package`, which `what` needs, is not installed. Imports nothing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{what} needs the package {package}", install_command(extra) + otherwise)


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from the installed metadata."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        lines = []
    of_extra = re.compile(rf"""^(.+?)\s*;\s*extra\s*==\s*['"]{extra}['"]$""")
    found = [match[1] for line in lines if (match := of_extra.match(line))]
    names = " ".join(f'"{name}"' for name in found) or f"-c constraints.txt '.[{extra}]'"
    return f"pip install {names}"


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect results.

    Imports none of them.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
