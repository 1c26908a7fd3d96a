"""Suite files: the same configs on several environments, each a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pgcli.config import Config, to_data
from pgcli.config.load import ON_COMMAND_LINE, file_of, is_suite
from pgcli.config.messages import dotted, printable, shortened
from pgcli.config.names import as_text, folder_name
from pgcli.config.seeds import parse_seeds
from pgcli.config.yaml import parse, read_bytes
from pgcli.errors import ConfigError, Problem, UsageError, closest
from pgcli.studies.variants import Comparison, location_names, plan_comparison


def _listed(value: Any) -> Any:
    """Turn a list of names into a mapping without settings. Raises: ValueError, a problem for pydantic."""
    if isinstance(value, dict):
        return value
    if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise ValueError("should be a list of names, or a mapping of names to settings")
    if twice := next((one for one in value if value.count(one) > 1), None):
        raise ValueError(f"`{twice}` occurs twice")
    return dict.fromkeys(value)


_Settings = Annotated[dict[str, dict[str, Any] | None], BeforeValidator(_listed), Field(min_length=1)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    configs: _Settings
    environments: _Settings
    settings: dict[str, Any] = {}
    seeds: str | int = "0-4"
    scores: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}


@dataclass(frozen=True)
class Suite:
    """A suite: configs and environments with their own settings, seeds, known (random, reference) returns."""

    path: Path
    configs: dict[str, tuple[str, list[str]]]  # by label: location and settings
    environments: dict[str, list[str]]
    settings: list[str]
    seeds: list[int]
    scores: dict[str, tuple[float, float]]


def names_suite(location: str) -> bool:
    """Return whether a path or shipped name is that of a suite."""
    path = file_of(location)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    return is_suite(parse(read_bytes(path), str(path)).data)


def read_suite(locations: Sequence[str]) -> Suite:
    """Read the only suite file. Raises: UsageError for several files; ConfigError with all problems."""
    if len(locations) > 1:
        raise UsageError("a suite is compared alone", "list its configs in the file, under `configs`")
    path = file_of(locations[0])
    try:
        file = _File.model_validate(parse(read_bytes(path), str(path)).data)
    except ValidationError as error:
        raise ConfigError([_problem(str(path), one["loc"], one["msg"]) for one in error.errors()]) from None
    if problems := list(_wrong_scores(str(path), file)):
        raise ConfigError(problems)
    names = location_names(list(file.configs))
    return Suite(
        path,
        {names[label]: _config(label, settings or {}, path.parent) for label, settings in file.configs.items()},
        {name: _words(settings or {}) for name, settings in file.environments.items()},
        _words(file.settings),
        parse_seeds(str(file.seeds)),
        {name: (random, reference) for name, (random, reference) in file.scores.items()},
    )


def _problem(file: str, where: tuple[int | str, ...], message: str) -> Problem:
    close = closest(str(where[0]), _File.model_fields)
    known = str(where[0]) in _File.model_fields
    hint = f"did you mean `{close}`?" if close and not known else f"a suite has {', '.join(_File.model_fields)}"
    message = message.removeprefix("Value error, ")
    what = f"{message[0].lower()}{message[1:]}" if known else "not a key of a suite"
    return Problem(file, f"`{dotted(where)}`: {what}", hint)


def _wrong_scores(path: str, file: _File) -> Iterator[Problem]:
    for name, (random, reference) in file.scores.items():
        if name not in file.environments:
            close = closest(name, file.environments)
            hint = f"did you mean `{close}`?" if close else f"use one of {', '.join(file.environments)}"
            yield Problem(path, f"`scores.{name}`: not an environment of the suite", hint)
        elif not random < reference:
            hint = "write the random return, then the reference return"
            yield Problem(path, f"`scores.{name}`: the reference must be above the random return", hint)


def _config(label: str, settings: Mapping[str, Any], folder: Path) -> tuple[str, list[str]]:
    """Return location and settings of a config; a file beside the suite precedes other ones of its name."""
    location = str(settings.get("base", label))
    beside = folder / location
    own = {key: value for key, value in settings.items() if key != "base"}
    return str(beside) if beside.is_file() else location, _words(own)


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as `KEY=VALUE`; keys are dotted, or in sections as in a config."""
    words, sections = [], to_data(Config())
    for key, value in settings.items():
        in_section = isinstance(value, dict) and isinstance(sections.get(key), dict)
        keys = {f"{key}.{inside}": one for inside, one in value.items()} if in_section else {key: value}
        words += [f"{name}={as_text(one)}" for name, one in keys.items()]
    return words


def plan_suite(suite: Suite, words: Sequence[str], seeds: list[int] | None, folder: Path) -> dict[str, Comparison]:
    """Plan the comparison of each environment.

    Settings of the command line (`words`) replace those of an environment, which replace those of a config, which
    replace those of the suite.
    Raises: ConfigError, UsageError.
    """
    plans = {}
    for name, settings in suite.environments.items():
        configs = {
            label: (location, [*suite.settings, *own, *settings]) for label, (location, own) in suite.configs.items()
        }
        written = [word for _, own in configs.values() for word in own]
        if task := next((word for word in [*written, *words] if word.partition("=")[0] in ("env", "env.id")), None):
            raise UsageError(f"a suite does not use {task}", "name its environments in the file, under `environments`")
        on_task = {label: (location, [f"env.id={name}", *own]) for label, (location, own) in configs.items()}
        try:
            plans[name] = plan_comparison(on_task, words, seeds or suite.seeds, folder / folder_name(name))
        except ConfigError as error:
            raise ConfigError([_in_suite(one, suite, written) for one in error.problems]) from None
        except UsageError as error:
            error.message = f"{name}: {error.message}"
            raise
    return plans


def _in_suite(problem: Problem, suite: Suite, written: Sequence[str]) -> Problem:
    """Return a problem with a setting as one of the suite, if the suite wrote the setting."""
    word = problem.where.removeprefix(ON_COMMAND_LINE)
    is_written = word in [shortened(printable(one)) for one in written]
    return replace(problem, where=f"{suite.path}: {word}") if is_written else problem
