"""Extract the definitions that one name needs from a Jupyter notebook, without running the rest."""

from __future__ import annotations

import ast
import dis
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from pgcli.errors import UsageError, closest

KEPT_MAGICS = ("%%time", "%%timeit", "%%capture")  # cells with these magics are Python
MAGIC = re.compile(r"^(\s*)(?:[%!?]|[\w, ]+=\s*[%!]).*$|^(\s*)[\w.]+\?{1,2}\s*$", re.MULTILINE)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Statement(NamedTuple):
    """One statement of a cell that defines names."""

    code: CodeType
    names: frozenset[str]  # defined names
    uses: frozenset[str]  # global names read by it or its functions
    is_definition: bool  # of a function or class


def needed_code(path: Path, name: str) -> list[CodeType]:
    """Return the statements of a notebook that define `name` and its dependencies, in order.

    Raises: UsageError: if the file is not a notebook, or no cell defines the name.
    """
    statements, broken = list[Statement](), list[str]()
    for number, source in enumerate(_sources(path), 1):
        try:
            statements += _statements(source, f"{path.resolve()} (code cell {number})")
        except SyntaxError as error:
            broken.append(f"code cell {number}, line {error.lineno}: {error.msg}")
    own = {one for statement in statements if statement.is_definition for one in statement.names}
    if not any(name in statement.names for statement in statements):
        close = closest(name, own)
        hint = f"did you mean `{close}`?" if close else f"it defines {', '.join(sorted(own)) or 'no functions'}"
        errors = f"; a cell with a syntax error was not read ({'; '.join(broken)})" if broken else ""
        raise UsageError(f"{path}: no cell defines `{name}`{errors}", hint)
    wanted, added = {name}, True
    while added:
        uses = {one for statement in statements if statement.names & wanted for one in statement.uses}
        added = not uses <= wanted
        wanted |= uses
    # top-level calls of the notebook's functions are runs, not constants
    return [
        statement.code
        for statement in statements
        if statement.names & wanted and (statement.is_definition or not statement.uses & own)
    ]


def _sources(path: Path) -> list[str]:
    """Return the source of each code cell. Raises: UsageError."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"] if "cells" in content else content["worksheets"][0]["cells"]
        found = [cell.get("source", cell.get("input", "")) for cell in cells if cell["cell_type"] == "code"]
        return ["".join(source) for source in found]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a readable notebook", "save it again as .ipynb or .py") from error


def _statements(source: str, file: str) -> Iterator[Statement]:
    """Yield the statements of a cell that define names. Raises: SyntaxError."""
    first = source.lstrip().partition("\n")[0].split(" ")[0]
    if first.startswith("%%") and first not in KEPT_MAGICS:
        return
    try:
        tree = ast.parse(source, file)
    except SyntaxError:
        tree = ast.parse(MAGIC.sub(r"\1\2pass", source), file)
    for node in tree.body:
        names = frozenset(_defined([node]))
        if names:
            code = compile(ast.Module([node], []), file, "exec", dont_inherit=True)
            yield Statement(code, names, frozenset(_globals(code)), isinstance(node, DEFINITIONS))


def _defined(nodes: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that definitions, imports and assignments define, also under `if` and `try`."""
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (one.asname or one.name.partition(".")[0] for one in names)
            case ast.Assign(targets=targets):
                yield from (each.id for one in targets for each in ast.walk(one) if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                yield name
            case ast.If(body=body, orelse=orelse):
                yield from _defined([*body, *orelse])
            case ast.Try(body=body, handlers=handlers):
                yield from _defined([*body, *(one for handler in handlers for one in handler.body)])


def _globals(code: CodeType) -> Iterator[str]:
    """Yield the global names that code and the functions in it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
