"""Read a YAML file and overrides into a Config, or raise every problem at once.

Imports no torch, no gymnasium.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pgcli.config.messages import Path_, about, dotted, either, explain, printable, shortened, shown
from pgcli.config.problems import Problems
from pgcli.config.rules import violations, without_effect
from pgcli.config.schema import Config
from pgcli.config.yaml import MAX_DEPTH, Source, dump, parse, read_bytes
from pgcli.errors import ConfigError, Problem, closest, typed

# Every config.yaml of a run has these keys, in all versions; a user's file never has all of them.
_OF_EVERY_RUN = {
    *("seed", "env.chunk_size", "env.rebuild", "rollout.horizon", "policy.activation", "algorithm.gae_lambda"),
    *("algorithm.value_coef", "optimizer.max_grad_norm", "sampling.backend", "training.threads", "checkpoint.keep"),
}

ON_COMMAND_LINE = "command line: "  # beginning of the place of a problem with an override
_SUITES = "suites/"  # beginning of the names of shipped suites

Origin = str | Mapping[str, Any] | Config  # of a config: a path or a shipped name, plain data, or another config


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs as `{name: file}`, sorted by name."""
    return {name: file for name, file in _shipped_files().items() if not name.startswith(_SUITES)}


def shipped_suites() -> dict[str, Path]:
    """Return the shipped suites of `pgcli compare` as `{name: file}`, sorted by name."""
    return {name: file for name, file in _shipped_files().items() if name.startswith(_SUITES)}


def _shipped_files() -> dict[str, Path]:
    package = Path(__file__).parent.parent
    for folder in (package / "configs", package.parent / "configs"):  # in a wheel; in a checkout
        if folder.is_dir():
            files = sorted(folder.rglob("*.yaml"))
            return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return {}


def is_suite(data: Any) -> bool:
    """Return whether the data of a YAML file is a suite: a mapping with `configs` or `environments`."""
    return isinstance(data, dict) and not {"configs", "environments"}.isdisjoint(data)


def load_config(location: str, overrides: Sequence[str] = (), ignored: Collection[str] = ()) -> Config:
    """Read a config by path or shipped name, apply `KEY=VALUE` overrides, and validate it.

    Args: ignored: keys that may be set where they have no effect.
    Raises: ConfigError with all problems, each with `file:line:column`.
    """
    path, content = _read(location)
    source = parse(content, printable(str(path)))
    _check_no_suite(source, location)
    base: dict[str, Any] = {}
    if isinstance(source.data, dict):
        if "base" in source.data:
            base = _base(source, path.parent)
        source.data.setdefault("name", path.stem)
    return _validate(source, overrides, ignored, base)


def _base(source: Source, folder: Path) -> dict[str, Any]:
    """Remove the key `base` from a config.

    Return the keys of the config that it names, without its name.

    A base is a valid config without a base. Raises: ConfigError.
    """
    location, place = source.data.pop("base"), source.place(("base",))
    if not isinstance(location, str) or not location:
        message = f"`base` should be a shipped config or a YAML file, got {shown(location)}"
        raise source.error(place, message, "for example `base: cartpole/ppo`")
    beside = str(folder / location)
    try:
        path, content = _read(beside if Path(beside).is_file() else location)
    except ConfigError as error:
        problem = error.problems[0]
        raise source.error(place, f"`base: {printable(location)}`: {problem.message}", problem.hint) from None
    found = parse(content, printable(str(path)))
    _check_no_suite(found, location)
    if isinstance(found.data, dict) and "base" in found.data:
        message = f"`base: {printable(location)}` has a base itself"
        raise source.error(
            place, message, f"use `base: {printable(str(found.data['base']))}`, and repeat the keys that differ"
        )
    data = deepcopy(found.data)
    _validate(found, ())
    return {key: value for key, value in data.items() if key != "name"}


def _check_no_suite(source: Source, location: str) -> None:
    if is_suite(source.data):
        hint = (
            f"compare its variants: `pgcli compare {typed(Path(location))}`; to train one, name a config of the suite"
        )
        raise ConfigError([Problem(source.name, "is a suite of several configs, not a config", hint)])


def _merged(base: dict[str, Any], own: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `base`, replaced by `own` ones; sections are merged key by key."""
    merged = base | own
    for key in base.keys() & own.keys():
        if sections.get(key) and all(isinstance(one[key], dict) for one in (base, own, sections)):
            merged[key] = _merged(base[key], own[key], sections[key])
    return merged


def override(config: Config, overrides: Sequence[str], ignored: Collection[str] = ()) -> Config:
    """Return `config` with `KEY=VALUE` overrides applied.

    `ignored` keys may be set where they have no effect.
    """
    return _validate(Source("config.yaml", to_data(config), lines=False), overrides, ignored)


def config_from_data(data: Any, name: str) -> Config:
    """Validate plain data, for example from a checkpoint; `name` appears in messages."""
    return _validate(Source(printable(name), data, lines=False), ())


def read_config(origin: Origin, overrides: Sequence[str] = (), ignored: Collection[str] = ()) -> Config:
    """Return a config from a path, a shipped name, plain data or another config. Raises: ConfigError."""
    if isinstance(origin, str):
        return load_config(origin, overrides, ignored)
    config = origin if isinstance(origin, Config) else config_from_data(origin, "config")
    return override(config, overrides, ignored)


def to_data(config: Config) -> dict[str, Any]:
    """Return the whole config as plain data, including defaults."""
    return config.model_dump(mode="json")


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten plain data: `{env: {id: a}}` becomes `{"env.id": "a"}`. An empty mapping is a value."""
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    inner = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in data.items()]
    return {key: value for part in inner for key, value in part.items()}


def to_yaml(config: Config) -> str:
    """Return the whole config as YAML, including defaults. Training on it repeats the run."""
    return dump(to_data(config))


def file_of(location: str) -> Path:
    """Return the file that a path or the name of a shipped config or suite names; it may not exist."""
    path, shipped = Path(location), shipped_configs() | shipped_suites()
    return shipped[location] if location in shipped and not path.is_file() else path  # a folder hides no config


def _read(location: str) -> tuple[Path, bytes]:
    path = file_of(location)
    try:
        return path, read_bytes(path)
    except (FileNotFoundError, ValueError):  # ValueError: not a possible file name
        close = _similar_names(location, shipped_configs() | shipped_suites())
        fix = "name a YAML file or a shipped config; `pgcli init --list` shows them"
        more = f" (`pgcli init --list` shows {len(close) - 3} more)" if len(close) > 3 else ""
        hint = f"did you mean {either(close[:3])}?{more}" if close else fix
        message = "no such file or shipped config"
        raise ConfigError([Problem(printable(location), message, hint)]) from None


def _similar_names(location: str, shipped: Collection[str]) -> list[str]:
    """Return the most similar shipped config, or all configs of the named environment or algorithm."""
    parts = {part for name in shipped for part in name.split("/")}
    named = location if "/" in location or "-" in location else closest(location, parts)
    if named not in shipped and (found := [name for name in shipped if named in name.split("/")]):
        return sorted(found, key=lambda name: not name.startswith("cartpole/"))
    path = Path(location)
    if path.suffix and path.parent != Path() and path.parent.is_dir():
        shipped = [str(file) for file in path.parent.glob("*.y*ml")]
    close = closest(location, shipped)
    return [close] if close else []


def _validate(
    source: Source, overrides: Sequence[str], ignored: Collection[str] = (), base: dict[str, Any] | None = None
) -> Config:
    """Apply config and overrides to the base and build the Config; raise all problems together."""
    if not isinstance(source.data, dict):
        empty = source.data is None and source.lines
        message = "empty config" if empty else f"expected a mapping of keys to values, got {shown(source.data)}"
        raise source.error(source.place(()), message, "a minimal config is `env: {id: CartPole-v1}`")
    problems = Problems(source)
    written = set(flat(source.data)) if base else set()
    if base:
        source.data = _merged(base, source.data, to_data(Config()))
    idle = _idle_in_file(source)
    if base:
        idle &= written
    for text in overrides:
        _apply(text, source.data, problems)
    data = _plain(source.data, (), problems)
    config, errors = _build(data)
    for path in problems.first_new(errors):
        problems.add(path, *explain(errors[path], path))
    if config is None:
        config = _build_valid(data)
    refused = set[str]()
    for violation in violations(config):
        problems.add_conflict(violation.keys, violation.message, violation.fix)
        refused.update(violation.keys)
    for key, under, message, fix, is_refused in without_effect(config):
        chosen = key in idle or problems.is_overridden(key)
        if is_refused and chosen and key not in refused and key not in ignored:
            problems.add_conflict((key, *under), message, fix, at=key)
    problems.raise_if_any()
    return config


def _idle_in_file(source: Source) -> set[str]:
    """Return the keys that a user's file sets without effect, before overrides.

    The config of a run is skipped: it has all keys, and earlier versions allowed keys without effect.
    """
    if not source.lines or flat(source.data).keys() >= _OF_EVERY_RUN:
        return set()
    return {one.key for one in without_effect(_build_valid(_plain(source.data, (), Problems(source))))}


def _build_valid(data: dict[str, Any]) -> Config:
    """Build the Config with defaults instead of invalid values."""
    config, errors = _build(data)
    while config is None:
        for path in errors:
            _delete(data, path)
        config, errors = _build(data)
    return config


def _apply(text: str, data: dict[str, Any], problems: Problems) -> None:
    """Apply the override `text`, KEY=VALUE, to the data."""
    key, equals, value = text.partition("=")
    path = tuple(key.split("."))
    source = Source(f"{ON_COMMAND_LINE}{shortened(printable(text))}", lines=False)
    problems.begin_override(path, source)
    if not equals or not all(path) or len(path) > MAX_DEPTH:
        message = f"{shown(key)} is not a key" if equals else "expected KEY=VALUE"
        problems.add(path, message, "for example algorithm.gamma=0.99")
        return
    try:
        parsed = parse(value, source.name, path)
    except ConfigError as error:
        problems.add_to_override(error.problems)
        return
    if parsed.problems:
        problems.add_to_override(problem for _, problem in parsed.problems)
    if whole := _set(data, path, parsed.data):
        name = dotted(whole)
        problems.add(path, f"`{name}` has no keys", f"set the whole value: `{name}=…`")


def _set(data: Any, path: tuple[str, ...], value: Any) -> Path_:
    """Write `value` at `path`; return the part of `path` that is not a mapping, if any."""
    default: Any = to_data(Config())
    for depth, part in enumerate(path[:-1], 1):
        default = default.get(part, {}) if isinstance(default, dict) else {}
        data = data.setdefault(part, {} if isinstance(default, dict) else default)
        if not isinstance(data, dict):
            return path[:depth]
    data[path[-1]] = value
    return ()


def _plain(value: Any, path: Path_, problems: Problems) -> Any:
    """Copy the data; report and drop values that JSON in a checkpoint cannot contain."""
    match value:
        case dict() | list() if len(path) >= MAX_DEPTH:
            message = f"`{dotted(path[:3])}` is nested deeper than {MAX_DEPTH} levels"
            problems.add(path[:3], message, "use fewer levels")
        case dict():
            for key in value:
                if not _is_text(key):
                    name = shown(key)
                    problems.add((*path, name), f"a key must be text, got {name}", "put it in quotes")
            return {key: _plain(item, (*path, key), problems) for key, item in value.items() if _is_text(key)}
        case list():
            return [_plain(item, (*path, i), problems) for i, item in enumerate(value)]
        case None | bool():
            return value
        case int() | float() if abs(value) <= sys.float_info.max:
            return value
        case str() if _is_text(value):
            return value
        case _:
            rules = {int: "a number below 1.8e308", float: "a finite number", str: "Unicode text"}
            rule = rules.get(type(value), "text, a number, true, false, null, a list or a mapping")
            hint = about(path) or "remove it; instead of infinity, use 1e308"
            problems.add(path, f"`{dotted(path)}` should be {rule}, got {shown(value)}", hint)
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _build(data: dict[str, Any]) -> tuple[Config | None, dict[Path_, list[ErrorDetails]]]:
    """Build the Config, or return pydantic's errors by the path of the value that each rejects."""
    try:
        return Config.model_validate(data), {}
    except ValidationError as error:
        errors: dict[Path_, list[ErrorDetails]] = {}
        details = error.errors(include_url=False)
        inside = [_path_in(data, detail) for detail in details if not _is_other_kind(data, detail)]
        for detail in details:
            path = _path_in(data, detail)
            if not (_is_other_kind(data, detail) and any(one[: len(path)] == path for one in inside)):
                errors.setdefault(path, []).append(detail)
        return None, errors


def _is_other_kind(data: Any, error: ErrorDetails) -> bool:
    """Return whether a branch of a union rejects a value only because it is of another kind."""
    path, loc = _path_in(data, error), error["loc"]
    kinds = error["type"].endswith("_type") or error["type"] == "literal_error"
    return kinds and len(loc) > len(path) and loc[-1] != path[-1]


def _path_in(data: Any, error: ErrorDetails) -> Path_:
    """Return the location of an error, without the union branches and the missing key that pydantic adds."""
    path: Path_ = ()
    for part in error["loc"]:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            data = data[part]
            path = (*path, part)
    return path


def _delete(data: Any, path: Path_) -> None:
    """Remove the entry at `path`, or the whole list that contains it, so that the default applies."""
    *sections, key = itertools.takewhile(lambda part: isinstance(part, str), path)
    for part in sections:
        data = data.get(part, {})
    data.pop(key, None)
