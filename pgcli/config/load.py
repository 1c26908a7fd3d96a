"""From a YAML file and overrides to a Config, or to every problem at once. Imports no torch, no gymnasium."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pgcli.config.messages import Path_, about, dotted, explain, printable, shortened, shown
from pgcli.config.report import Report
from pgcli.config.rules import violations
from pgcli.config.schema import Config
from pgcli.config.yaml import MAX_DEPTH, Source, dump, parse, read_bytes
from pgcli.errors import ConfigError, Problem

_EXAMPLE = "a whole config can be as short as `env: {id: CartPole-v1}`"
_NO_MAPPING = "expected a mapping of keys to values"


def shipped_configs() -> dict[str, Path]:
    """Find the configs that come with pgcli: `{name: file}`, sorted by name."""
    package = Path(__file__).parent.parent
    for folder in (package / "configs", package.parent / "configs"):  # in a wheel; in a checkout
        if folder.is_dir():
            files = sorted(folder.rglob("*.yaml"))
            return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return {}


def load_config(location: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config by path or shipped name, apply `KEY=VALUE` overrides, and validate it completely.

    Raises: ConfigError with every problem found, each with `file:line:column`.
    """
    path, content = _read(location)
    source = parse(content, printable(str(path)))
    if not isinstance(source.data, dict):
        message = "empty config" if source.data is None else f"{_NO_MAPPING}, got {shown(source.data)}"
        raise ConfigError([source.problem(source.place(()), message, _EXAMPLE)])
    source.data.setdefault("name", path.stem)
    return _validate(source, overrides)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Give `config` with `KEY=VALUE` overrides applied."""
    return _validate(Source("config.yaml", to_data(config), lines=False), overrides)


def config_from_data(data: Any, name: str) -> Config:
    """Validate plain data, say of a checkpoint called `name`."""
    source = Source(printable(name), data, lines=False)
    if not isinstance(data, dict):
        raise ConfigError([source.problem((1, 1), f"{_NO_MAPPING}, got {shown(data)}", _EXAMPLE)])
    return _validate(source, ())


def to_data(config: Config) -> dict[str, Any]:
    """Give the whole config as plain data, defaults included."""
    return config.model_dump(mode="json")


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Give plain data by dotted keys: `{env: {id: a}}` is `{"env.id": "a"}`. An empty mapping is a value."""
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    inner = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in data.items()]
    return {key: value for part in inner for key, value in part.items()}


def to_yaml(config: Config) -> str:
    """Write the whole config, defaults included, so that training on it repeats the run."""
    return dump(to_data(config))


def _read(location: str) -> tuple[Path, bytes]:
    shipped = shipped_configs()
    path = Path(location)
    if location in shipped and not path.is_file():  # a folder `cartpole` is no obstacle to the config `cartpole`
        path = shipped[location]
    try:
        return path, read_bytes(path)
    except (FileNotFoundError, ValueError):  # ValueError: a name that no file can have
        import difflib  # only a mistake pays for it

        close = difflib.get_close_matches(location, shipped, n=1)
        names = f", or the name of a shipped config: {', '.join(shipped)}" if shipped else ""
        hint = f"did you mean `{close[0]}`?" if close else f"give the path of a YAML file{names}"
        message = "no such file, and no shipped config of that name"
        raise ConfigError([Problem(printable(location), message, hint)]) from None


def _validate(source: Source, overrides: Sequence[str]) -> Config:
    """Apply the overrides and build the Config; collect the problems of every stage before raising."""
    report = Report(source)
    for text in overrides:
        _apply(text, source.data, report)
    data = _plain(source.data, (), report)
    config, errors = _build(data)
    for path in report.to_tell(errors):
        report.refuse(path, *explain(errors[path], path))
    while config is None:  # the rules between keys see the defaults in the place of what was refused
        for path in errors:
            _delete(data, path)
        config, errors = _build(data)
    for violation in violations(config):
        report.refuse_together(*violation)
    report.raise_problems()
    return config


def _plain(value: Any, path: Path_, report: Report) -> Any:
    """Copy plain data, and refuse what YAML or Python can hold, but not the JSON in which checkpoints keep it."""
    match value:
        case dict() | list() if len(path) >= MAX_DEPTH:
            message = f"`{dotted(path[:3])}` is nested deeper than {MAX_DEPTH} levels"
            report.refuse(path[:3], message, "write it flatter")
        case dict():
            for key in value:
                if not _is_text(key):
                    name = shown(key)
                    report.refuse((*path, name), f"a key must be text, got {name}", "put it in quotes")
            return {key: _plain(item, (*path, key), report) for key, item in value.items() if _is_text(key)}
        case list():
            return [_plain(item, (*path, i), report) for i, item in enumerate(value)]
        case None | bool():
            return value
        case int() | float() if abs(value) <= sys.float_info.max:
            return value
        case str() if _is_text(value):
            return value
        case _:
            rules = {int: "a number below 1.8e308", float: "a finite number", str: "Unicode text"}
            rule = rules.get(type(value), "text, a number, true, false, null, a list or a mapping")
            hint = about(path) or "leave it out; in the place of infinity, 1e308 will do"
            report.refuse(path, f"`{dotted(path)}` should be {rule}, got {shown(value)}", hint)
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _apply(text: str, data: dict[str, Any], report: Report) -> None:
    """Write VALUE into the data at KEY."""
    key, equals, value = text.partition("=")
    path = tuple(key.split("."))
    source = Source(f"command line: {shortened(printable(text))}", lines=False)
    report.begin_override(path, source)
    if not equals or not all(path) or len(path) > MAX_DEPTH:
        message = f"{shown(key)} is not a key" if equals else "expected KEY=VALUE"
        report.refuse(path, message, "for example algorithm.gamma=0.99")
        return
    try:
        parsed = parse(value, source.name, path)
    except ConfigError as error:
        report.refuse_override(error.problems)
        return
    if parsed.problems:
        report.refuse_override(problem for _, problem in parsed.problems)
    if whole := _set(data, path, parsed.data):
        name = dotted(whole)
        report.refuse(path, f"`{name}` has no keys of its own", f"give it whole: `{name}=…`")


def _set(data: Any, path: tuple[str, ...], value: Any) -> Path_:
    """Write `value` at `path`; or give the part of `path` that is not a mapping, in the data or by default."""
    default: Any = to_data(Config())
    for depth, part in enumerate(path[:-1], 1):
        default = default.get(part, {}) if isinstance(default, dict) else {}
        data = data.setdefault(part, {} if isinstance(default, dict) else default)
        if not isinstance(data, dict):
            return path[:depth]
    data[path[-1]] = value
    return ()


def _build(data: dict[str, Any]) -> tuple[Config | None, dict[Path_, list[ErrorDetails]]]:
    """Build the Config, or give pydantic's errors by the path of what they refuse."""
    try:
        return Config.model_validate(data), {}
    except ValidationError as error:
        errors: dict[Path_, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            errors.setdefault(_path_in(data, detail), []).append(detail)
        return None, errors


def _path_in(data: Any, error: ErrorDetails) -> Path_:
    """Cut from a location what pydantic adds to it: the branches of a union, the key that is missing."""
    path: Path_ = ()
    for part in error["loc"]:
        if not (part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)):
            break
        data = data[part]
        path = (*path, part)
    return path


def _delete(data: Any, path: Path_) -> None:
    """Remove the refused entry at `path`, so that its default stands; from a list, remove the whole list."""
    path = path[: next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))]
    for part in path[:-1]:
        data = data.get(part, {})
    data.pop(path[-1], None)
