"""Shell completion: shipped configs, keys and their values, run directories. Imports no torch, no gymnasium."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

Offer = tuple[str, str]  # a word and its meaning


def configs(incomplete: str) -> list[Offer]:
    """Offer the names of shipped configs, YAML files, and folders."""
    return shipped_names(incomplete) + _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml"))


def shipped_names(incomplete: str) -> list[Offer]:
    """Offer the names of shipped configs."""
    from pgcli.config import shipped_configs

    return [(name, "shipped config") for name in shipped_configs() if name.startswith(incomplete)]


def run_directories(incomplete: str) -> list[Offer]:
    """Offer run directories, and other folders."""
    return _paths(incomplete, lambda path: False)


def checkpoints(incomplete: str) -> list[Offer]:
    """Offer run directories, checkpoints, and other folders."""
    return _paths(incomplete, lambda path: path.suffix == ".safetensors")


def overrides(context: typer.Context, incomplete: str) -> list[Offer]:
    """Offer `KEY=`, or if one key is left, its values: the choices, or the default.

    bash splits `KEY=VALUE` into three words and completes the last of them alone.
    """
    before = list(context.params.get("overrides") or [])
    if not incomplete and before and (values := _values(before[-1])):  # the word at the cursor is the `=` of a key
        return [(value, "") for value in values]
    if len(before) >= 2 and before[-1] == "=":
        return [(value, "") for value in _values(before[-2]) if value.startswith(incomplete)]
    key, equals, value = incomplete.partition("=")
    if not equals:
        found = [(f"{name}=", about) for name, about, _ in _keys() if name.startswith(incomplete)]
        if len(found) != 1:
            return found
        key = found[0][0][:-1]
    return [(f"{key}={choice}", "") for choice in _values(key) if choice.startswith(value)]


def _keys() -> Iterator[tuple[str, str, Any]]:
    """Yield every key of a config: its dotted name, its description, its field."""
    from pydantic import BaseModel

    from pgcli.config.schema import Config

    def walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, Any]]:
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from walk(field.annotation, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", field.description or "", field

    return walk(Config, "")


def _values(key: str) -> list[str]:
    """Return the values of a key, the default first."""
    field = next((field for name, _, field in _keys() if name == key), None)
    if field is None:
        return []
    default = "null" if field.default is None else field.default
    written = default if isinstance(default, str) else json.dumps(default)
    return list(dict.fromkeys([written, *_choices(field.annotation)]))


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif annotation is bool:
        yield from ("true", "false")
    elif annotation is type(None):
        yield "null"
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[Offer]:
    """Offer the folders (marked if they are run directories) and wanted files that complete a path."""
    head, start = os.path.split(incomplete)
    folder = Path(os.path.expanduser(head)) if head else Path()
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    offers = []
    for path in inside:
        if not path.name.startswith(start) or (path.name.startswith(".") and not start.startswith(".")):
            continue
        word = os.path.join(head, path.name)
        if path.is_dir():
            is_run = (path / "config.yaml").is_file() and (path / "metrics.csv").is_file()
            offers.append((word, "run directory") if is_run else (f"{word}/", "folder"))
        elif wanted(path):
            offers.append((word, "file"))
    return offers
