"""`pgcli report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import Overwrite
from pgcli.cli.output import print_result


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR|STUDY",
            help="Run directories or folders that contain them, or the folder of one comparison.",
            autocompletion=completion.run_directories,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write.",
            show_default="report.html in the only folder, or in the current folder",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write one self-contained HTML page about runs or a comparison: curves, findings, config, conclusions."""
    from pgcli.studies.html_report import write_html

    page = write_html(folders, output, overwrite=overwrite)
    print_result(page)
    if open_:
        import webbrowser

        from pgcli.system.streams import print_message

        if not webbrowser.open(page.resolve().as_uri()):
            print_message("note: no browser was found")
