"""Reference of all config keys, for `pgcli init --keys` and docs/config.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pgcli.config.load import flat, shipped_configs, to_data
from pgcli.config.schema import Config
from pgcli.config.yaml import parse
from pgcli.errors import UsageError, closest

_NO_BOUND = 10**9  # larger bounds only keep numbers within 64 bits


class Key(NamedTuple):
    """A config key: default, allowed values, description, and an example from a shipped config."""

    name: str
    default: str
    rule: str
    description: str
    example: str


def keys(section: str | None) -> list[Key]:
    """Return the keys of a section, or all keys. Raises: UsageError if there is no such section."""
    schema = Config.model_json_schema()
    sections = [name for name, field in schema["properties"].items() if "$ref" in field]
    if section is not None and section not in sections:
        guess = closest(section, sections)
        raise UsageError(
            f"the config has no section `{section}`",
            f"did you mean `{guess}`?" if guess else f"the sections are {', '.join(sections)}",
        )
    defaults, examples = flat(to_data(Config())), _examples()
    rows = _fields(schema, schema, "")
    return [
        Key(name, _text(defaults[name]), _rule(schema, field), field.get("description", ""), examples.get(name, ""))
        for name, field in rows
        if section is None or name.startswith(f"{section}.")
    ]


def markdown() -> str:
    """Return docs/config.md: one table per section."""
    schema = Config.model_json_schema()
    lines = [
        "# Config keys",
        "",
        "All config keys, with default, allowed values and an example from a shipped config.",
        "`pgcli init SECTION --keys` prints the keys of a section in the terminal.",
        "`make schema` generates this page and configs/schema.json, the JSON Schema for editors.",
        "",
        "## Families of configs",
        "",
        "`base: cartpole/ppo` takes every key that a file does not write from a shipped config or",
        "another file, beside it or by its path. Sections are merged key by key; a list, a text or",
        "`kwargs` replaces the whole value. A base is a valid config and has no base itself. The",
        "config.yaml of a run has all keys and no base.",
        "",
        "```yaml",
        "base: cartpole/ppo",
        "algorithm: {clip_range: 0.1}",
        "```",
        "",
        "YAML anchors (`&name`), aliases (`*name`) and merge keys (`<<: *name`) work within a file, up",
        "to 10,000 values after expansion.",
    ]
    of_section: dict[str, list[Key]] = {}
    for key in keys(None):
        section, dot, _ = key.name.partition(".")  # evaluation.env.kwargs is in the section evaluation
        of_section.setdefault(section if dot else "", []).append(key)
    for section, found in of_section.items():
        title, about = ("Top level", "Keys outside of sections.")
        if section:
            part = schema
            for name in section.split("."):
                part = _referenced(schema, part["properties"][name])
            title, about = section, part["description"].splitlines()[0]
        lines += [
            "",
            f"## {title}",
            "",
            about,
            "",
            "| key | default | values | description | example |",
            "|---|---|---|---|---|",
        ]
        for key in found:
            cells = (f"`{key.name}`", f"`{key.default}`", key.rule, key.description, key.example and f"`{key.example}`")
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def _referenced(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """Return the section that a field of the JSON Schema refers to."""
    found: dict[str, Any] = schema["$defs"][field["$ref"].rpartition("/")[2]]
    return found


def _fields(schema: dict[str, Any], part: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in part["properties"].items():
        if prefix + name == "base":  # of files only
            continue
        if "$ref" in field:
            yield from _fields(schema, _referenced(schema, field), f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _rule(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """Describe the values that a field of the JSON Schema allows."""
    if "anyOf" in field:
        return " or ".join(_rule(schema, one) for one in field["anyOf"])
    if "$ref" in field:
        return "mapping"
    if "const" in field:
        return f"`{_text(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    match field.get("type"):
        case "array":
            return f"list of ({_rule(schema, field['items'])})" if "items" in field else "list"
        case "object":
            return "mapping"
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case "integer":
            return "integer" + _bounds(field)
        case "number":
            return "number" + _bounds(field)
    return "text"


def _bounds(field: dict[str, Any]) -> str:
    """Return the bounds of a number as ` ≥ 0, ≤ 1`."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {_text(field[name])}" for name, sign in signs.items() if field.get(name, _NO_BOUND) < _NO_BOUND]
    return f" {', '.join(found)}" if found else ""


def _examples() -> dict[str, str]:
    """Return for each key the first value of a shipped config that is not the default."""
    defaults, found = flat(to_data(Config())), dict[str, str]()
    for path in shipped_configs().values():
        for name, value in flat(parse(path.read_bytes(), path.name).data).items():
            if name in defaults and value != defaults[name]:
                found.setdefault(name, _text(value))
    return found


def _text(value: Any) -> str:
    """Return a value as YAML in one line."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
