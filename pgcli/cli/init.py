"""`pgcli init`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.output import print_result


def init(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Shipped config or suite to copy; with --keys, a section.",
            autocompletion=completion.copied,
        ),
    ] = None,
    dest: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write.", show_default="./NAME.yaml")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped configs and suites.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Explain all config keys, or those of one section.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of configs.")] = False,
) -> None:
    """Copy or list the shipped configs and suites, or explain the config keys."""
    from pgcli.config import Config, reference, shipped, shipped_suites
    from pgcli.errors import typed
    from pgcli.report.text import table
    from pgcli.system.streams import print_message

    if schema:
        print_result(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))
    elif keys:
        for key in reference.keys(name):
            example = f" Example: {key.example}" if key.example else ""
            about = f"{key.rule}. {key.description}{example}"
            print_result("\n".join([f"{key.name}: {key.default}", *table([("", about)], 4)]))
    elif list_ or name is None:
        for group in shipped.groups():
            needs = f"  ({group.install})" if group.install else ""
            print_result("\n".join([group.env_id + needs, *table(group.configs, 32, indent=2)]))
    else:
        path = shipped.copy(name, dest)
        print_result(path)
        command = "compare" if name in shipped_suites() else "train"
        print_message(f"next:\n  pgcli {command} {typed(path)}")
