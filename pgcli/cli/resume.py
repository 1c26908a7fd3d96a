"""`pgcli resume`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pgcli.cli.arguments import Overrides, Quiet, RunDir
from pgcli.cli.train import train_all


def resume(
    run_dir: RunDir,
    overrides: Overrides = None,
    which: Annotated[
        str, typer.Option(help="Continue from: latest, best, or an iteration's number; what came after it is deleted.")
    ] = "latest",
    quiet: Quiet = False,
) -> None:
    """Continue an interrupted run, or extend a finished one by a larger budget: the one that ended it."""
    from pgcli.config import override
    from pgcli.experiment.resume import stored_config
    from pgcli.experiment.run import Request

    config = override(stored_config(run_dir), overrides or [])
    train_all([Request(config, run_dir, sys.argv[1:], resume=True, which=which)], 1, quiet)
