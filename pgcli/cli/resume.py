"""`pgcli resume`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pgcli.cli.arguments import AsLines, Overrides, Quiet, RunDir
from pgcli.cli.train import train_all


def resume(
    run_dir: RunDir,
    overrides: Overrides = None,
    which: Annotated[
        str,
        typer.Option(help="Checkpoint to continue from: latest, best, or an iteration number. Deletes later results."),
    ] = "latest",
    quiet: Quiet = False,
    as_json: AsLines = False,
) -> None:
    """Resume an interrupted run, or extend a finished one with a larger budget."""
    from pgcli.experiment.plan import plan_resume

    train_all([plan_resume(run_dir, overrides or [], which, sys.argv[1:])], 1, quiet, as_json=as_json)
