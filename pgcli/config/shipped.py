"""The shipped configs and suites, for `pgcli init`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pgcli.config import shipped_configs, shipped_suites
from pgcli.config.yaml import parse
from pgcli.errors import RunDirectoryError, UsageError, closest, typed
from pgcli.system.packages import install_command

LIST = "`pgcli init --list` shows the shipped configs"
ANY = "any environment, with env.id=…"
SUITES = "suites, for pgcli compare"
_EXTRAS = {  # beginning of an id → the extra of pgcli with the environment
    "ALE/": "atari",
    "BipedalWalker": "box2d",
    "HalfCheetah": "mujoco",
    "Hopper": "mujoco",
    "InvertedPendulum": "mujoco",
    "LunarLander": "box2d",
    "Walker2d": "mujoco",
}


class Group(NamedTuple):
    """The shipped configs of an environment, or the suites, with summaries and an installation command."""

    env_id: str
    install: str
    configs: list[tuple[str, str]]


def groups() -> list[Group]:
    """Return the shipped configs by environment, then the suites.

    The second comment line of a file is its summary.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for name, path in shipped_configs().items():
        env_id = parse(path.read_bytes(), path.name).data.get("env", {}).get("id", ANY)
        found.setdefault(env_id, []).append((name, _summary(path)))
    first = sorted(found, key=lambda env_id: (_install(env_id) != "", env_id != ANY, env_id != "CartPole-v1", env_id))
    suites = Group(SUITES, "", [(name, _summary(path)) for name, path in shipped_suites().items()])
    return [*(Group(env_id, _install(env_id), sorted(found[env_id])) for env_id in first), suites]


def _install(env_id: str) -> str:
    """Return the command that installs an environment, or "" if pgcli includes it."""
    extra = next((extra for start, extra in _EXTRAS.items() if env_id.startswith(start)), "")
    module = env_id.rpartition(":")[0]
    return install_command(extra) if extra else f"pip install {module}" if module else ""


def copy(name: str, destination: Path | None) -> Path:
    """Copy a shipped config or suite to `destination`: a file, a folder, or None for `./NAME.yaml`.

    The first line names the copy itself; the path of the JSON Schema is absolute, so that editors find it.

    Raises: UsageError for an unknown name; RunDirectoryError if the file exists or cannot be written.
    """
    configs = shipped_configs() | shipped_suites()
    if name not in configs:
        guess = closest(name, configs)
        raise UsageError(f"no shipped config has the name `{name}`", f"did you mean `{guess}`?" if guess else LIST)
    source = configs[name]
    target = destination or Path(source.name)
    if target.is_dir():
        target = target / source.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            raise FileExistsError
        with TemporaryDirectory(prefix=".writing-", dir=target.parent) as folder:  # whole or not at all
            (Path(folder) / target.name).write_text(_as_copy(source, target), encoding="utf-8", newline="\n")
            (Path(folder) / target.name).rename(target)
    except FileExistsError:
        raise RunDirectoryError(f"{target}: already exists", "choose another file name") from None
    except OSError as error:
        raise RunDirectoryError(f"{target}: cannot be written: {error.strerror}") from None
    return target


def _as_copy(source: Path, target: Path) -> str:
    """Return the text of a config, with `target` in its command and a URI of the schema."""
    text = source.read_text(encoding="utf-8")
    text = re.sub(r"\A# pgcli (train|compare) \S+", lambda found: f"# pgcli {found[1]} {typed(target)}", text)
    return re.sub(
        r"(?m)^(# yaml-language-server: \$schema=)(\S+)$",
        lambda found: found[1] + (source.parent / found[2]).resolve().as_uri(),
        text,
    )


def _summary(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return comments[1] if len(comments) > 1 else ""
