"""`pgcli ls`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import AsJson
from pgcli.cli.output import print_report


def ls(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            help="Folders of runs.",
            show_default="runs",
            autocompletion=completion.run_directories,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="List runs that meet it: status=finished, return>=400, tags=NAME, optimizer.learning_rate=0.01. "
            "May be repeated.",
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column or config key: numbers from the largest, texts from A to Z.")
    ] = "run",
    as_json: AsJson = False,
) -> None:
    """List runs with their state, last and best return, tags and note."""
    from pgcli.studies.listing import list_runs, listing_text

    rows = list_runs(folders or [Path("runs")], where or [], sort)
    print_report({"runs": rows}, as_json, lambda result: listing_text(result["runs"], [sort]))
