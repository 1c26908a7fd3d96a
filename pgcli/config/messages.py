"""Messages of config problems: key, rule and value in YAML notation, and a hint with the fix."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pgcli.config.choices import Baseline, Returns
from pgcli.config.schema import Config, WrapperConfig
from pgcli.errors import closest

Path_ = tuple[str | int, ...]

# Names of other libraries that are spelled differently.
_SYNONYMS = {
    "alpha": "learning_rate",
    "batch_size": "episodes",
    "ent_coef": "entropy_coef",
    "env_id": "id",
    "epochs": "update_epochs",
    "eps": "epsilon",
    "gae": "gae_lambda",
    "K": "iterations",
    "lr": "learning_rate",
    "m": "episodes",
    "n_envs": "num_envs",
    "n_epochs": "update_epochs",
    "n_steps": "steps",
    "T": "horizon",
    "timesteps": "env_steps",
    "total_timesteps": "env_steps",
    "vf_coef": "value_coef",
}

# The same for values.
_CHOICE_SYNONYMS = {
    "adamw": "adam",
    "argmax": "greedy",
    "categorical": "softmax",
    "cuda:0": "cuda",
    "deterministic": "greedy",
    "gae": "lambda_return",
    "gpu": "cuda",
    "normal": "gaussian",
    "npg": "natural",
    "gsde": "state_dependent_gaussian",
    "ppo": "clip",
    "reinforce": "policy_gradient",
    "rloo": "leave_one_out",
    "rnn": "gru",
    "sde": "state_dependent_gaussian",
    "squashed_gaussian": "tanh_gaussian",
    "stochastic": "sampled",
    "trpo": "natural",
    "grpo": "group",
    "critic": "value",
}

# pydantic's error type → the expected kind of value. A union has several; null may be one of them.
_KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a section with keys",
    "string_type": "text",
}
_LIMITS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "a valid folder name",
    "string_too_long": "at most {max_length} characters long",
    "string_too_short": "at least {min_length} character long",
    "too_long": "a list of at most {max_length} entries",
    "too_short": "a list of at least {min_length} entries",
}
_EXAMPLES = {
    "bool_type": "write true or false",
    "float_type": "write a number like 0.99, 1e-3 or 200, without quotes or underscores",
    "int_type": "write a whole number like 200 or 1e6, without quotes or underscores",
}
_ESTIMATOR_PARTS = (get_args(Returns), get_args(Baseline), ("batch", "group"))


def path_of(key: str) -> Path_:
    """Return the path of a dotted key; a number is an index: `a.0` gives `("a", 0)`."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def dotted(path: Path_) -> str:
    """Write a path as `policy.hidden_sizes[1]`; quote keys that are not plain words."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[\w-]{1,60}", part) else shown(part))
    return text


def either(names: Sequence[str]) -> str:
    """Join names as alternatives: "`a`, `b` or `c`"."""
    *most, last = [f"`{name}`" for name in names]
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: Any, depth: int = 4) -> str:
    """Write a value as YAML on one line of at most 60 characters."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case float():
            text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
        case int() if value.bit_length() > 1024:
            text = "a number with hundreds of digits"
        case dict() | list() if value and not depth:
            text = "..."
        case dict():
            keys = (key if isinstance(key, str) and key.isidentifier() else shown(key, 0) for key in value)
            items = (f"{key}: {shown(item, depth - 1)}" for key, item in zip(keys, value.values(), strict=True))
            text = "{" + ", ".join(itertools.islice(items, 20)) + "}"
        case list():
            text = "[" + ", ".join(shown(item, depth - 1) for item in value[:20]) + "]"
        case str() if value.isprintable():
            text = "'" + value.replace("'", "''") + "'"
        case _:
            text = repr(value)
    return shortened(text)


def shortened(text: str) -> str:
    """Shorten a text to 60 characters."""
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """Escape the characters that would break a line or a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def explain(errors: Sequence[ErrorDetails], path: Path_) -> tuple[str, str]:
    """Return message and hint for pydantic's errors about one value, one error per branch of a union."""
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return f"unknown key `{dotted(path)}`", _did_you_mean(path)
    if error["type"] == "missing":
        name = str(error["loc"][-1])
        return f"`{dotted(path)}` needs the key `{name}`", f"add `{name}: …`. {about((*path, name))}"
    return f"`{dotted(path)}` should be {_rule(errors, path)}, got {shown(error['input'])}", _hint(error, path)


def _rule(errors: Sequence[ErrorDetails], path: Path_) -> str:
    error = next((error for error in errors if error["type"] in _LIMITS), errors[0])  # the branch with the right type
    if path[:2] == ("diagnostics", "shadows") and error["type"] == "string_pattern_mismatch":
        return "an estimator like total+none"
    if error["type"] in _LIMITS:
        return _LIMITS[error["type"]].format(
            **{name: f"{limit}".removesuffix(".0") for name, limit in error["ctx"].items()}
        )
    if error["type"] not in _KINDS:
        return error["msg"].removeprefix("Input should be ")  # a rule without its own text
    if error["type"] == "model_type" and error["ctx"]["class_name"] == WrapperConfig.__name__:
        return "the name of a wrapper or a mapping of its name and kwargs"
    rules = [_KINDS[error["type"]].format(**error.get("ctx", {})) for error in errors]
    field = _field(path)
    if field and type(None) in get_args(field.annotation):
        rules.append("null")
    *most, last = [word for rule in rules for word in rule.replace(" or ", ", ").split(", ")]
    return f"{', '.join(most)} or {last}" if most else last


def _hint(error: ErrorDetails, path: Path_) -> str:
    value = error["input"]
    match error["type"], value:
        case "string_pattern_mismatch", str() if path[:2] == ("diagnostics", "shadows"):
            parts = [closest(part, choices) for part, choices in zip(value.split("+"), _ESTIMATOR_PARTS, strict=False)]
            if len(parts) > 1 and all(parts):
                return f"did you mean `{'+'.join(map(str, parts))}`?"
        case "literal_error", _:
            choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            word = str(value).lower()
            meant = _CHOICE_SYNONYMS.get(word)
            if close := meant if meant in choices else closest(word, choices):  # null → none, ReLU → relu
                return f"did you mean `{close}`?"
        case "bool_type" | "float_type" | "int_type" as kind, str():
            return _EXAMPLES[kind]
        case "string_type", bool() | int() | float():
            return f"put it in quotes: '{shown(value)}'"
        case "list_type", bool() | int() | float() | str():
            return f"did you mean `[{shown(value)}]`?"
        case "dict_type", _:
            return "write a mapping like {key: value}"
        case "model_type", _ if path == ("env",) and isinstance(value, str):
            return f"did you mean `env: {{id: {shown(value)}}}`?"
        case "model_type", None if isinstance(path[-1], str):
            return f"remove it, or add a key; {about(path)}"
    return about(path)


def about(path: Path_) -> str:
    """Return the description and default of a key, or the keys of a section."""
    keys, field = [key[-1] for key in _fields() if key[:-1] == _names(path)], _field(path)
    is_number = field is not None and isinstance(field.default, float)  # a mapping is an alternative
    if keys and isinstance(path[-1], str) and not is_number:
        return f"the keys are {', '.join(keys)}"
    if field is None:
        return ""
    default = "" if field.is_required() else f" The default is {shown(field.get_default())}."
    return f"{field.description}{default}"


def _did_you_mean(path: Path_) -> str:
    """Suggest a similar key of the same section, or else of another section."""
    *section, name = _names(path)
    keys = [key for key in _fields() if len(key) <= 2]  # without the keys of wrappers
    if tuple(name.split(".")) in keys and "." in name:
        return f"write `{name.replace('.', ': {')}: …}}`; dotted keys work only on the command line"
    if ":" in name:
        return "add a space after the colon"
    words = [_SYNONYMS[name], name] if name in _SYNONYMS else [name]
    if (*section, name) == ("env", "name"):
        words = ["id"]
    siblings = [key[-1] for key in _fields() if key[:-1] == tuple(section)]
    for word in words:
        if close := closest(word, siblings):
            return f"did you mean `{dotted((*path[:-1], close))}`?"
    for word in words:
        if close := closest(word, [key[-1] for key in keys]):
            return f"did you mean {' or '.join(f'`{dotted(key)}`' for key in keys if key[-1] == close)}?"
    return f"the keys here are {', '.join(siblings)}"


def _names(path: Path_) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


def _field(path: Path_) -> FieldInfo | None:
    return _fields().get(_names(path))


@functools.cache
def _fields() -> dict[tuple[str, ...], FieldInfo]:
    """Return all fields by their keys, including those of list entries."""
    return dict(_walk(Config, ()))


def _walk(annotation: Any, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            yield (*prefix, name), info
            yield from _walk(info.annotation, (*prefix, name))
    for argument in get_args(annotation):
        yield from _walk(argument, prefix)
