"""The configs that come with pgcli, for `pgcli init`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from pgcli.config import shipped_configs
from pgcli.errors import RunDirectoryError, UsageError


def describe() -> str:
    """List the shipped configs, each with the second comment line of its file (the first is its command)."""
    configs = shipped_configs()
    width = max(map(len, configs), default=0)
    return "\n".join(f"{name:<{width}}  {_summary(path)}" for name, path in configs.items())


def copy(name: str, destination: Path | None) -> Path:
    """Copy a shipped config to `destination`: a file, a folder, or None for `./NAME.yaml`.

    The copy refers to pgcli's JSON Schema by a full path, so that an editor finds it from every folder.

    Raises: UsageError for an unknown name; RunDirectoryError if the file exists or cannot be written.
    """
    configs = shipped_configs()
    if name not in configs:
        raise UsageError(f"no shipped config is called `{name}`", f"there are {', '.join(configs)}")
    source = configs[name]
    target = destination or Path(source.name)
    if target.is_dir():
        target = target / source.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            raise FileExistsError
        with TemporaryDirectory(prefix=".writing-", dir=target.parent) as folder:  # whole or not at all
            (Path(folder) / target.name).write_text(_with_full_schema(source), encoding="utf-8", newline="\n")
            (Path(folder) / target.name).rename(target)
    except FileExistsError:
        raise RunDirectoryError(f"{target}: already there", "name another destination") from None
    except OSError as error:
        raise RunDirectoryError(f"{target}: cannot be written: {error.strerror}") from None
    return target


def _with_full_schema(source: Path) -> str:
    """Return the text of a config with a URI as its `$schema=…` instead of a path relative to the file."""
    return re.sub(
        r"(?m)^(# yaml-language-server: \$schema=)(\S+)$",
        lambda found: found[1] + (source.parent / found[2]).resolve().as_uri(),
        source.read_text(encoding="utf-8"),
    )


def _summary(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return comments[1] if len(comments) > 1 else ""
