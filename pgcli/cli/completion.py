"""Shell completion of shipped configs, keys, values and run directories.

Imports no torch and no gymnasium.

File names are untrusted, and shells evaluate completions. So every word is quoted for its shell.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from typer._click.shell_completion import ShellComplete

Offer = tuple[str, str]  # a word and its description
_PLAIN = frozenset(string.ascii_letters + string.digits + "._/=-")  # zsh does not interpret these


def answer(app: typer.Typer, request: str) -> bool:
    """Answer a completion request such as `complete_bash`; return False for other requests.

    The shell scripts are typer's: bash splits the answer into lines and inserts them unchanged, zsh evaluates
    it, fish and PowerShell read lines. `tests/test_completion.py` pins the private names.
    """
    from typer._completion_classes import BashComplete, FishComplete, PowerShellComplete, ZshComplete

    shells: dict[str, tuple[type[ShellComplete], Callable[[list[Offer]], str]]] = {
        "complete_bash": (BashComplete, for_bash),
        "complete_zsh": (ZshComplete, for_zsh),
        "complete_fish": (FishComplete, for_fish),
        "complete_powershell": (PowerShellComplete, for_powershell),
        "complete_pwsh": (PowerShellComplete, for_powershell),
    }
    if request not in shells:
        return False
    kind, written = shells[request]
    shell = kind(typer.main.get_command(app), {}, "pgcli", "_PGCLI_COMPLETE")
    found = [(str(item.value), item.help or "") for item in shell.get_completions(*shell.get_completion_args())]
    if os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        raise SystemExit(not found)  # fish offers files if there are no other words
    typer.echo(written([offer for offer in found if offer[0].isprintable()]))  # a line break would split a word
    return True


def for_bash(offers: list[Offer]) -> str:
    """Write one word per line, with a backslash before each character that bash would interpret.

    Files with a wildcard in their names are skipped: bash 5.0 expands them despite the backslash.
    """
    wild = re.compile(r"[*?[\]]")
    plain = (word for word, _ in offers if not (wild.search(word) and os.path.lexists(os.path.expanduser(word))))
    return "\n".join(re.sub(r"([^\w@%+=:,./~-]|(?<!^)~|~(?!/))", r"\\\1", word) for word in plain)


def for_zsh(offers: list[Offer]) -> str:
    """Write a command that zsh evaluates.

    Words are `$'…'` of plain characters and hexadecimal bytes.

    `_describe` splits word and description at the first colon without a backslash; zsh itself quotes the word.
    """
    if not offers:
        return "_files"

    def quoted(text: str) -> str:
        return "".join(chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in text.encode())

    lines = (re.sub(r"([\\:])", r"\\\1", word) + (f":{about}" if about else "") for word, about in offers)
    words = " ".join(f"$'{quoted(line)}'" for line in lines)
    return f"local -a _pgcli_words; _pgcli_words=({words}); _describe pgcli _pgcli_words"


def for_fish(offers: list[Offer]) -> str:
    """Write one word per line, with its description after a tab; fish itself quotes the word."""
    return "\n".join(f"{word}\t{about}" if about else word for word, about in offers)


def for_powershell(offers: list[Offer]) -> str:
    """Write one word per line, with its description after `:::`, quoted where PowerShell needs it."""

    def quoted(word: str) -> str:
        return word if re.fullmatch(r"[\w+=:./\\~-]*", word) else "'" + re.sub("(['‘’‚‛])", r"\1\1", word) + "'"

    return "\n".join(f"{quoted(word)}:::{about or ' '}" for word, about in offers)


def configs(incomplete: str) -> list[Offer]:
    """Offer the names of shipped configs, YAML files, and folders."""
    return shipped_names(incomplete) + _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml"))


def shipped_names(incomplete: str) -> list[Offer]:
    """Offer the names of shipped configs."""
    from pgcli.config import shipped_configs

    return [(name, "shipped config") for name in shipped_configs() if name.startswith(incomplete)]


def copied(incomplete: str) -> list[Offer]:
    """Offer the names of shipped configs and suites."""
    return shipped_names(incomplete) + _suites(incomplete)


def compared(context: typer.Context, incomplete: str) -> list[Offer]:
    """Offer configs, suites and folders of runs; after a config, also `KEY=`."""
    before = list(context.params.get("variants") or [])
    keys = overrides(context, incomplete) if before else _suites(incomplete)
    return [*configs(incomplete), *keys]


def _suites(incomplete: str) -> list[Offer]:
    from pgcli.config import shipped_suites

    return [(name, "shipped suite") for name in shipped_suites() if name.startswith(incomplete)]


def run_directories(incomplete: str) -> list[Offer]:
    """Offer run directories and other folders."""
    return _paths(incomplete, lambda path: False)


def checkpoints(incomplete: str) -> list[Offer]:
    """Offer run directories, checkpoints, and other folders."""
    return _paths(incomplete, lambda path: path.suffix == ".safetensors")


def overrides(context: typer.Context, incomplete: str) -> list[Offer]:
    """Offer `KEY=`, or the values of the key if only one matches: the choices, or the default.

    bash splits `KEY=VALUE` into three words and completes only the last.
    """
    before: list[str] = next(filter(None, map(context.params.get, ("overrides", "variants", "spaces"))), [])
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
    """Yield every config key: dotted name, description, field."""
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
    """Return the values of a key, starting with the default."""
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
    """Offer the folders and wanted files that complete a path; mark run directories."""
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
        word = f"./{word}" if word.startswith("-") else word  # not an option
        if path.is_dir():
            is_run = (path / "config.yaml").is_file() and (path / "metrics.csv").is_file()
            offers.append((word, "run directory") if is_run else (f"{word}/", "folder"))
        elif wanted(path):
            offers.append((word, "file"))
    return offers
