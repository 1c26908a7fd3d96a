"""YAML as data with positions: bounded, safe, and with the scalars of YAML 1.2.

A config is a page of plain mappings, so tags, anchors, aliases, merge keys and several documents are refused,
and size and depth are bounded before anything is composed. `1e-3` is a number; `yes`, `017`, `0o17`, `1_000`
and `1:30` are text. Keys are text.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pgcli.config.messages import Path_, dotted, printable
from pgcli.errors import ConfigError, Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32

Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is there

# The core schema of YAML 1.2, plus an exponent without a dot; a leading zero makes text, not octal.
_SCALARS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
    ("merge", re.compile(r"<<\Z")),
)
_LONGEST_INT = 309  # digits of the largest float: beyond, as with 1e400, the number is infinite

_NOT_YAML = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_INDENTATION = "indent the keys of one section alike, and close each quote and bracket"

# What libyaml says; what that means to somebody who writes a config; the mend.
_MEANINGS = (
    ("another document", "a second document begins; one file is one config", "keep one of them"),
    (
        "mapping values are not allowed",
        "this `:` cannot stand here",
        "put text that holds `: ` in quotes, see that the line above is `key: value`, and indent the keys of "
        "one section alike",
    ),
    ("expected ':'", "this line is not `key: value`", "write a colon and a space after the key"),
    *(
        (said, "expected `key: value`, indented like the keys above", _INDENTATION)
        for said in ("<document start>", "expected key", "expected <block end>")
    ),
    ("unexpected end of stream", "this quote is not closed", "close it on the same line"),
    ("node content", "a value is missing", "write one, or close the bracket that was opened"),
)

Place = tuple[int, int]  # line and column, from 1


@dataclass
class Source:
    """Plain data, and where each key and value of it stands in the text that it was read from."""

    name: str
    data: Any = None
    positions: dict[Path_, Place] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    lines: bool = True  # False: one value of the command line, or data without a text

    def place(self, path: Path_) -> Place:
        """Give line and column of the longest part of `path` that the text has."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))

    def problem(self, place: Place, message: str, hint: str) -> Problem:
        """Say what is wrong at `place`, as `file:line:column`."""
        return Problem(f"{self.name}:{place[0]}:{place[1]}" if self.lines else self.name, message, hint)


def scalar_kind(text: str) -> str:
    """Name the YAML 1.2 type of a plain scalar: null, bool, int, float, merge or str."""
    return next((kind for kind, pattern in _SCALARS if pattern.match(text)), "str")


def read_bytes(path: Path) -> bytes:
    """Read a config file, refusing whatever is not a regular file of a page or so.

    Raises: FileNotFoundError; ConfigError for everything else.
    """
    where, hint = printable(str(path)), "a config is a YAML file of a page or so"
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                kind = "a directory" if path.is_dir() else "not a regular file"
                raise ConfigError([Problem(where, f"is {kind}", hint)])
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        mend = "see that it is a file and that you may read it"
        raise ConfigError([Problem(where, f"cannot be read: {error.strerror}", mend)]) from None
    if len(content) > MAX_BYTES:
        raise ConfigError([Problem(where, f"is larger than {MAX_BYTES // 1024} KiB", hint)])
    return content


def parse(content: bytes | str, name: str, within: Path_ = ()) -> Source:
    """Parse YAML into a Source; `within` is the KEY whose VALUE this is on the command line.

    Raises: ConfigError where the text itself is bad. What a text may hold but not a config, such as a
    duplicate key, becomes one of the Source's problems, so that it is told together with the others.
    """
    source = Source(name, lines=not within)
    text = _decode(content, source) if isinstance(content, bytes) else content
    if found := _NOT_YAML.search(text):
        hint = "remove it, or save the file as UTF-8 text"
        message = f"the character U+{ord(found[0]):04X} is not allowed"
        raise ConfigError([source.problem(_place_of(found.start(), text), message, hint)])
    try:
        _refuse_what_no_config_needs(text, source)
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, text, source)]) from None
    if node is not None:
        source.data = _construct(node, within, source)
    return source


def _decode(content: bytes, source: Source) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        before = error.object[: error.start].decode()
        place = _place_of(len(before), before)
        message = f"{'UTF-16' if utf16 else 'this'} is not UTF-8"
        raise ConfigError([source.problem(place, message, "save it as UTF-8 text")]) from None


def _place_of(index: int, text: str) -> Place:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _refuse_what_no_config_needs(text: str, source: Source) -> None:
    """Walk the tokens once, before anything is composed of them."""
    depth = 0
    problems: dict[str, Problem] = {}  # the first of each kind
    for token in yaml.scan(text, Loader=Loader):
        match token:
            case yaml.TagToken():
                message, hint = "YAML tags (`!…`) are not allowed", "write the plain value"
                problems.setdefault(message, source.problem(_place(token), message, hint))
            case yaml.AnchorToken() | yaml.AliasToken():
                message = "YAML anchors and aliases (`&…`, `*…`) are not allowed"
                hint = "write the value out where it is used; if it is text, in quotes"
                problems.setdefault(message, source.problem(_place(token), message, hint))
            case (
                yaml.BlockMappingStartToken()
                | yaml.BlockSequenceStartToken()
                | yaml.FlowMappingStartToken()
                | yaml.FlowSequenceStartToken()
            ):
                depth += 1
                if depth > MAX_DEPTH:
                    message, hint = f"nested deeper than {MAX_DEPTH} levels", "write it flatter"
                    raise ConfigError([source.problem(_place(token), message, hint)])
            case yaml.BlockEndToken() | yaml.FlowMappingEndToken() | yaml.FlowSequenceEndToken():
                depth -= 1
    if problems:
        raise ConfigError(list(problems.values()))


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, source: Source) -> Problem:
    """Say what the parser says in the words of somebody who writes a config."""
    at = error.problem_mark
    assert at is not None, error  # what refuses a text knows where
    begun = error.context_mark or at
    context, problem = error.context or "", error.problem or ""
    place = (at.line + 1, at.column + 1)
    character = text[at.index : at.index + 1]
    if character == "\t":
        return source.problem(place, "a tab cannot indent", "indent with spaces")
    if "cannot start any token" in problem:
        return source.problem(place, f"a value cannot begin with {character!r}", "put it in quotes")
    for kind, bracket, end in (("flow mapping", "{", "}"), ("flow sequence", "[", "]")):
        if kind in context:
            before = f" before line {place[0]}, column {place[1]}" if source.lines else ""
            place = (begun.line + 1, begun.column + 1)
            message = f"this `{bracket}` is not closed: expected `,` or `{end}`{before}"
            return source.problem(place, message, f"close it with `{end}`")
    if "simple key" in context or ("quoted scalar" in context and "end of stream" in problem):
        place = (begun.line + 1, begun.column + 1)
    for said, message, hint in _MEANINGS:
        if said in problem:
            return source.problem(place, message, hint)
    return source.problem(place, f"not valid YAML: {problem or context}", _INDENTATION)


def _construct(node: yaml.Node, path: Path_, source: Source) -> Any:
    source.positions.setdefault(path, _place(node))
    match node:
        case yaml.MappingNode():
            return dict(_items(node, path, source))
        case yaml.SequenceNode():
            return [_construct(child, (*path, i), source) for i, child in enumerate(node.value)]
        case yaml.ScalarNode():
            return _scalar(node)
    raise AssertionError(node)


def _items(node: yaml.MappingNode, path: Path_, source: Source) -> Iterator[tuple[str, Any]]:
    for key_node, value_node in node.value:
        place = _place(key_node)
        if refusal := _refuse_key(key_node):
            source.problems.append((place, source.problem(place, *refusal)))
            continue
        at = (*path, key_node.value)
        if at in source.positions:
            first = f", first on line {source.positions[at][0]}" if source.lines else ""
            message = f"duplicate key `{dotted(at)}`{first}"
            source.problems.append((place, source.problem(place, message, "keep one of them")))
            continue
        source.positions[at] = place
        yield key_node.value, _construct(value_node, at, source)


def _refuse_key(node: yaml.Node) -> tuple[str, str] | None:
    if not isinstance(node, yaml.ScalarNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        return f"a key must be text, got {kind}", "write `key: value`"
    match "str" if node.style else scalar_kind(node.value):
        case "str":
            return None
        case "merge":
            return "YAML merge keys (`<<`) are not allowed", "write the keys out"
    got = node.value or "nothing"
    return f"a key must be text, got {got}", f"if text is meant, put it in quotes: '{node.value}'"


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text = str(node.value)
    match "str" if node.style else scalar_kind(text):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= _LONGEST_INT:
            return int(text)
        case "float" | "int":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _place(node: yaml.Node | yaml.Token) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


class _Dumper(yaml.SafeDumper):
    """Writes plain what `parse` reads as text, and quoted what it, or a reader of YAML 1.1, would not."""

    yaml_implicit_resolvers: dict[str | None, list[Any]] = {  # noqa: RUF012 - PyYAML's own protocol
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: [(f"tag:yaml.org,2002:{kind}", pattern) for kind, pattern in _SCALARS],
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # in double quotes each unprintable character is escaped: raw, a reader takes U+0085 for the end of a line
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


def dump(data: dict[str, Any]) -> str:
    """Write plain data as YAML that `parse` reads back to the same data."""
    stream = io.StringIO()
    yaml.dump(data, stream, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return stream.getvalue()
