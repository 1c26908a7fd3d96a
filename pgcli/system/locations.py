"""Locations of user code: FILE.py:NAME or FILE.ipynb:NAME. Nothing is imported here."""

from __future__ import annotations

from pathlib import Path

from pgcli.errors import UsageError

SUFFIXES = (".py", ".ipynb")


def split(location: str) -> tuple[Path, str]:
    """Split FILE.py:NAME or FILE.ipynb:NAME. Raises: UsageError."""
    file, colon, name = location.rpartition(":")
    if not colon or not file.endswith(SUFFIXES) or not name.isidentifier():
        raise UsageError(f"{location}: expected FILE.py:NAME or FILE.ipynb:NAME", "for example my.py:reinforce")
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{location}: {file}: {what}", f"the path is relative to the current folder, {Path.cwd()}")
    return path, name
