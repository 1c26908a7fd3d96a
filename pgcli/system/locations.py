"""Where a user's own code is: FILE.py:NAME or FILE.ipynb:NAME. Nothing is imported here."""

from __future__ import annotations

from pathlib import Path

from pgcli.errors import UsageError

SUFFIXES = (".py", ".ipynb")


def is_location(text: str) -> bool:
    """Return whether a text has the form FILE.py:NAME or FILE.ipynb:NAME."""
    file, colon, name = text.rpartition(":")
    return bool(colon) and file.endswith(SUFFIXES) and name.isidentifier()


def split(location: str) -> tuple[Path, str]:
    """Split FILE.py:NAME or FILE.ipynb:NAME. Raises: UsageError."""
    if not is_location(location):
        raise UsageError(f"{location}: expected FILE.py:NAME or FILE.ipynb:NAME", "for example my.py:reinforce")
    file, _, name = location.rpartition(":")
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{location}: {file}: {what}", f"it is looked for from the current folder, {Path.cwd()}")
    return path, name
