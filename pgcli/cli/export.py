"""`pgcli export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli.arguments import CheckpointOrRun, Overwrite, Trust, Which
from pgcli.cli.output import print_result


def export(
    checkpoint: CheckpointOrRun,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="File to write.")],
    which: Which = "latest",
    trust: Trust = False,
    overwrite: Overwrite = False,
) -> None:
    """Export a policy and its observation normalization to ONNX."""
    from pgcli.experiment.export import check_extra
    from pgcli.experiment.export import export as write
    from pgcli.experiment.load import load
    from pgcli.system.streams import results_only

    check_extra()
    target = file.absolute()  # the environment may change the current folder
    with results_only():
        write(load(checkpoint, which, trust=trust), target, overwrite=overwrite)
    print_result(file)
