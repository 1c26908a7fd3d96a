"""Suite files: the same configs on several environments. Each environment is a comparison in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pgcli.config.messages import dotted
from pgcli.config.names import as_text, folder_name
from pgcli.config.seeds import parse_seeds
from pgcli.config.yaml import parse, read_bytes
from pgcli.errors import ConfigError, Problem, UsageError, closest
from pgcli.studies.variants import Comparison, parse_comparison


def _listed(value: Any) -> Any:
    """Turn a list of ids into a mapping without settings."""
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return dict.fromkeys(value) if is_list else value


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    configs: list[str] = Field(min_length=1)
    environments: Annotated[dict[str, dict[str, Any] | None], BeforeValidator(_listed)] = Field(min_length=1)
    settings: dict[str, Any] = {}
    seeds: str | int = "0-4"
    scores: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}


@dataclass(frozen=True)
class Suite:
    """A suite file: configs, the settings of each environment, seeds, and known scores (random, reference)."""

    name: str
    configs: list[str]
    environments: dict[str, list[str]]
    settings: list[str]
    seeds: list[int]
    scores: dict[str, tuple[float, float]]


def is_suite(location: str) -> bool:
    """Return whether a file is a suite: a mapping with `configs` or `environments`."""
    path = Path(location)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    data = parse(read_bytes(path), str(path)).data
    return isinstance(data, dict) and not {"configs", "environments"}.isdisjoint(data)


def read_suite(locations: Sequence[str]) -> Suite:
    """Read the only suite file. Raises: UsageError for several files; ConfigError with all problems."""
    if len(locations) > 1:
        raise UsageError("a suite is compared alone", "list its configs in the file, under `configs`")
    path = Path(locations[0])
    try:
        file = _File.model_validate(parse(read_bytes(path), str(path)).data)
    except ValidationError as error:
        raise ConfigError([_problem(str(path), one["loc"], one["msg"]) for one in error.errors()]) from None
    problems = []
    for name, (random, reference) in file.scores.items():
        if name not in file.environments:
            close = closest(name, file.environments)
            hint = f"did you mean `{close}`?" if close else f"use one of {', '.join(file.environments)}"
            problems.append(Problem(str(path), f"`scores.{name}`: not an environment of the suite", hint))
        elif not random < reference:
            hint = "write the random return, then the reference return"
            problems.append(Problem(str(path), f"`scores.{name}`: the reference must be above the random return", hint))
    if problems:
        raise ConfigError(problems)
    return Suite(
        path.stem,
        file.configs,
        {name: _words(settings or {}) for name, settings in file.environments.items()},
        _words(file.settings),
        parse_seeds(str(file.seeds)),
        {name: (random, reference) for name, (random, reference) in file.scores.items()},
    )


def _problem(file: str, where: tuple[int | str, ...], message: str) -> Problem:
    close = closest(str(where[0]), _File.model_fields)
    known = str(where[0]) in _File.model_fields
    hint = f"did you mean `{close}`?" if close and not known else f"a suite has {', '.join(_File.model_fields)}"
    what = f"{message[0].lower()}{message[1:]}" if known else "not a key of a suite"
    return Problem(file, f"`{dotted(where)}`: {what}", hint)


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={as_text(value)}" for key, value in settings.items()]


def plan_suite(suite: Suite, words: Sequence[str], seeds: list[int] | None, folder: Path) -> dict[str, Comparison]:
    """Plan the comparison of each environment; `words`, of the command line, hold for all.

    Raises: ConfigError, UsageError.
    """
    plans = {}
    for name, settings in suite.environments.items():
        own = [f"env.id={name}", *suite.settings, *settings, *words]
        plans[name] = parse_comparison(suite.configs, own, seeds or suite.seeds, folder / folder_name(name))
    return plans
