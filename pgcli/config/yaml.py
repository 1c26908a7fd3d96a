"""Read YAML as plain data with the position of each key and value; write YAML.

Configs are plain mappings: tags and multiple documents are rejected. Anchors, aliases and merge keys (`<<`) are
expanded. Size, depth and the number of values after expansion are limited before anything is built. Scalars follow
YAML 1.2: `1e-3` is a number; `yes`, `017`, `0o17`, `1_000` and `1:30` are text. Keys are text.
"""

from __future__ import annotations

import os
import pickle
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pgcli.config.messages import Path_, dotted, printable
from pgcli.errors import ConfigError, Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 10_000  # after the expansion of aliases

Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where installed

# The core schema of YAML 1.2, plus exponents without a dot; a number with a leading zero is text, not octal.
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
_LONGEST_INT = 309  # digits of the largest float; a longer number is infinite, as 1e400 is

_NOT_YAML = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_INDENTATION = "indent all keys of a section equally, and close quotes and brackets"

# Part of libyaml's message → our message and hint.
_SYNTAX_ERRORS = (
    ("another document", "a second document begins here", "a config file has one document; remove the others"),
    (
        "mapping values are not allowed",
        "unexpected `:`",
        "put text with `: ` in quotes, check that the line above is `key: value`, and indent all keys of a section "
        "equally",
    ),
    ("expected ':'", "expected `key: value`", "add a colon and a space after the key"),
    *(
        (part, "expected `key: value`, indented like the keys above", _INDENTATION)
        for part in ("<document start>", "expected key", "expected <block end>")
    ),
    ("second occurrence", "this anchor (`&…`) exists already", "choose another name"),
    (
        "undefined alias",
        "this alias (`*…`) has no anchor (`&…`) above it",
        "define the anchor first; if it is text, put it in quotes",
    ),
    ("unexpected end of stream", "unclosed quote", "close it on the same line"),
    ("node content", "a value is missing", "add a value, or close the open bracket"),
)

Place = tuple[int, int]  # line and column, from 1


@dataclass
class Source:
    """Plain data and the position of each key and value in the text that they were read from."""

    name: str
    data: Any = None
    positions: dict[Path_, Place] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    lines: bool = True  # False: one value of the command line, or data without a text

    def place(self, path: Path_) -> Place:
        """Return line and column of `path`, or of the closest enclosing section in the text."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))

    def problem(self, place: Place, message: str, hint: str) -> Problem:
        """Return a problem at `place`, written `file:line:column`."""
        return Problem(f"{self.name}:{place[0]}:{place[1]}" if self.lines else self.name, message, hint)

    def error(self, place: Place, message: str, hint: str) -> ConfigError:
        """Return an error with one problem, which prevents reading the rest."""
        return ConfigError([self.problem(place, message, hint)])


def scalar_kind(text: str) -> str:
    """Return the YAML 1.2 type of a plain scalar: null, bool, int, float, merge or str."""
    return next((kind for kind, pattern in _SCALARS if pattern.match(text)), "str")


def read_bytes(path: Path) -> bytes:
    """Read a config: a regular file of at most MAX_BYTES.

    Raises: FileNotFoundError; ConfigError for everything else.
    """
    where, hint = printable(str(path)), "a config is a YAML file of about one page"
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError([Problem(where, "is not a regular file", hint)])
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise ConfigError([Problem(where, "is a directory", hint)]) from None
    except OSError as error:
        fix = "check that it is a file and that you have permission to read it"
        raise ConfigError([Problem(where, f"cannot be read: {error.strerror}", fix)]) from None
    if len(content) > MAX_BYTES:
        raise ConfigError([Problem(where, f"is larger than {MAX_BYTES // 1024} KiB", hint)])
    return content


def parse(content: bytes | str, name: str, within: Path_ = ()) -> Source:
    """Parse YAML into a Source.

    `within` is the KEY whose VALUE this is on the command line.

    Raises: ConfigError: if the text cannot be parsed. Duplicate keys and keys that are not text are problems of
        the Source instead, to be reported together with the others.
    """
    source = Source(name, lines=not within)
    text = _decode(content, source) if isinstance(content, bytes) else content
    if found := _NOT_YAML.search(text):
        message = f"the character U+{ord(found[0]):04X} is not allowed"
        raise source.error(_place_of(found.start(), text), message, "remove it, or save the file as UTF-8 text")
    try:
        _check_tokens(text, source)
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise source.error(*_explain(error, text, source)) from None
    if node is not None:
        _check_size(node, source)
        source.data = _construct(node, within, source)
    return source


def _decode(content: bytes, source: Source) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        before = error.object[: error.start].decode()
        message = f"{'UTF-16' if utf16 else 'this'} is not UTF-8"
        raise source.error(_place_of(len(before), before), message, "save it as UTF-8 text") from None


def _place_of(index: int, text: str) -> Place:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _check_tokens(text: str, source: Source) -> None:
    """Raise ConfigError for tags and deep nesting, before anything is built from the text."""
    depth = 0
    for token in yaml.scan(text, Loader=Loader):
        match token:
            case yaml.TagToken():
                raise source.error(_place(token), "YAML tags (`!…`) are not allowed", "write the plain value")
            case (
                yaml.BlockMappingStartToken()
                | yaml.BlockSequenceStartToken()
                | yaml.FlowMappingStartToken()
                | yaml.FlowSequenceStartToken()
            ):
                depth += 1
                if depth > MAX_DEPTH:
                    raise source.error(_place(token), f"nested deeper than {MAX_DEPTH} levels", "use fewer levels")
            case yaml.BlockEndToken() | yaml.FlowMappingEndToken() | yaml.FlowSequenceEndToken():
                depth -= 1


def _check_size(root: yaml.Node, source: Source) -> None:
    """Raise ConfigError if aliases expand to too much.

    That is to more than MAX_VALUES values, to twice MAX_DEPTH levels, or to themselves.
    """
    sizes: dict[int, tuple[int, int]] = {}  # values and depth of each node; (0, 0) while it is being measured

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            if sizes[id(node)] == (0, 0):
                raise source.error(_place(node), "this value contains itself", "remove the alias inside it")
            return sizes[id(node)]
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        sizes[id(node)] = (0, 0)
        pairs = isinstance(node, yaml.MappingNode)
        parts = [measure(child) for entry in node.value for child in (entry if pairs else (entry,))]
        values, depth = 1 + sum(size for size, _ in parts), 1 + max((deep for _, deep in parts), default=0)
        if values > MAX_VALUES:
            message = f"aliases expand to more than {MAX_VALUES:,} values"
            raise source.error(_place(node), message, "repeat only what is needed")
        if depth > 2 * MAX_DEPTH:  # a depth up to this is reported with its key
            raise source.error(_place(node), f"nested deeper than {MAX_DEPTH} levels", "use fewer levels")
        sizes[id(node)] = values, depth
        return values, depth

    measure(root)


def _explain(error: yaml.MarkedYAMLError, text: str, source: Source) -> tuple[Place, str, str]:
    """Return place, message and hint of a syntax error, in plain words."""
    at = error.problem_mark
    assert at is not None, error  # every error of the scanner and the parser has a mark
    begun = error.context_mark or at
    context, problem = error.context or "", error.problem or ""
    place, start = (at.line + 1, at.column + 1), (begun.line + 1, begun.column + 1)
    character = text[at.index : at.index + 1]
    if character == "\t":
        return place, "indentation with a tab", "indent with spaces"
    if "cannot start any token" in problem:
        return place, f"a value cannot begin with {character!r}", "put it in quotes"
    for kind, bracket, end in (("flow mapping", "{", "}"), ("flow sequence", "[", "]")):
        if kind in context:
            before = f" before line {place[0]}, column {place[1]}" if source.lines else ""
            return start, f"unclosed `{bracket}`: expected `,` or `{end}`{before}", f"close it with `{end}`"
    if "simple key" in context or ("quoted scalar" in context and "end of stream" in problem):
        place = start
    for part, message, hint in _SYNTAX_ERRORS:
        if part in problem:
            return place, message, hint
    return place, f"not valid YAML: {problem or context}", _INDENTATION


def _construct(node: yaml.Node, path: Path_, source: Source) -> Any:
    source.positions.setdefault(path, _place(node))
    match node:
        case yaml.MappingNode():
            return _mapping(node, path, source)
        case yaml.SequenceNode():
            return [_construct(child, (*path, i), source) for i, child in enumerate(node.value)]
        case yaml.ScalarNode():
            return _scalar(node)
    raise AssertionError(node)


def _mapping(node: yaml.MappingNode, path: Path_, source: Source) -> dict[str, Any]:
    """Return a mapping whose own keys precede those merged with `<<`."""
    merges = [(key, value) for key, value in node.value if _is_merge(key)]
    own = dict(_items(node, path, source))
    merged: dict[str, Any] = {}
    for number, (key, value) in enumerate(merges):
        place = _place(key)
        maps = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if number or not all(isinstance(one, yaml.MappingNode) for one in maps):
            message = "a second `<<`" if number else "`<<` merges a mapping, or a list of mappings"
            hint = "merge a list: `<<: [*a, *b]`" if number else "define it with `&name`, and write `<<: *name`"
            source.problems.append((place, source.problem(place, message, hint)))
            continue
        for one in maps:  # an earlier mapping precedes a later one
            taken = own.keys() | merged.keys()
            entries = [pair for pair in one.value if not (pair[0].id == "scalar" and pair[0].value in taken)]
            rest = yaml.MappingNode(one.tag, entries, one.start_mark, one.end_mark)
            merged |= {name: x for name, x in _mapping(rest, path, source).items() if name not in taken}
    return merged | own


def _is_merge(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and scalar_kind(node.value) == "merge"


def _items(node: yaml.MappingNode, path: Path_, source: Source) -> Iterator[tuple[str, Any]]:
    for key_node, value_node in node.value:
        if _is_merge(key_node):
            continue
        place, at = _place(key_node), (*path, key_node.value)
        problem = _key_problem(key_node)
        if problem is None and at in source.positions:
            first = f", first on line {source.positions[at][0]}" if source.lines else ""
            problem = f"duplicate key `{dotted(at)}`{first}", "keep one of them"
        if problem is not None:
            source.problems.append((place, source.problem(place, *problem)))
        else:
            source.positions[at] = place
            yield key_node.value, _construct(value_node, at, source)


def _key_problem(node: yaml.Node) -> tuple[str, str] | None:
    """Return message and hint for a key that is not text."""
    if not isinstance(node, yaml.ScalarNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        return f"a key must be text, got {kind}", "write `key: value`"
    if node.style or scalar_kind(node.value) == "str":
        return None
    got = node.value or "nothing"
    return f"a key must be text, got {got}", f"put it in quotes: '{node.value}'"


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
    """Quotes text that `parse` or a YAML 1.1 reader would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    **yaml.SafeDumper.yaml_implicit_resolvers,
    None: [(f"tag:yaml.org,2002:{kind}", pattern) for kind, pattern in _SCALARS],
}
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
# Double quotes escape each unprintable character; an unescaped U+0085 would end the line.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def dump(data: dict[str, Any]) -> str:
    """Return plain data as YAML; `parse` reads the same data back."""
    return "".join(_dumped(pickle.dumps(entry)) for entry in data.items()) or "{}\n"


@lru_cache(256)
def _dumped(entry: bytes) -> str:
    """Return one entry of a mapping as YAML.

    The configs of a study share most entries, and PyYAML takes 0.1 ms a line.
    """
    key, value = pickle.loads(entry)
    text: str = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
