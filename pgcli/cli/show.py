"""`pgcli show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson
from pgcli.cli.output import print_report


def show(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Second run to compare with.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Summarize a run: results, problems, and which keys to change. With OTHER, compare two runs."""
    from pgcli.inspection import explain

    if other is None:
        print_report(explain.show(run_dir), as_json, explain.explanation_text)
    else:
        print_report(explain.differ(run_dir, other), as_json, explain.difference_text)
