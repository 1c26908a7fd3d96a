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
        str | None, typer.Argument(help="A shipped config.", autocompletion=completion.shipped_names)
    ] = None,
    dest: Annotated[Path | None, typer.Argument(help="Where to copy it; ./NAME.yaml if left out.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped configs.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a config.")] = False,
) -> None:
    """List and copy the shipped configs."""
    from pgcli.config import Config, shipped

    if schema:
        print_result(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))
    elif list_ or name is None:
        print_result(shipped.describe())
    else:
        print_result(shipped.copy(name, dest))
