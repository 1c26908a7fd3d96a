"""`pgcli verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson, RunDir, Trust
from pgcli.cli.output import print_report


def verify(
    run_dir: RunDir,
    everything: Annotated[
        bool, typer.Option("--all", help="Recompute all iterations since the oldest checkpoint, not only one.")
    ] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Check a run's files for consistency, and recompute one iteration byte for byte.

    Exits with 4 if a file is missing or cannot be read, and with 7 if a check fails.
    """
    from pgcli.inspection.verify import verification_text
    from pgcli.inspection.verify import verify as verify_run
    from pgcli.system.streams import results_only

    with results_only():
        result = verify_run(run_dir, everything=everything, trust=trust)
    print_report(result, as_json, verification_text)
    if not result["passed"]:
        raise typer.Exit(4 if result["unreadable"] else 7)
