"""`pgcli plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import Overwrite
from pgcli.cli.output import print_result, terminal
from pgcli.config.choices import Band, Stat, XAxis

_BAND = (
    "Around it. ci95: Student's t for a mean, the trimmed-mean interval for an IQM, order statistics for a median. "
    "bootstrap: percentiles of resampled runs, too narrow for few runs."
)


def plot(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR",
            help="Run directories, or folders of them.",
            autocompletion=completion.run_directories,
        ),
    ],
    x: Annotated[XAxis, typer.Option("-x", help="What to count.")] = "env_steps",
    y: Annotated[
        str, typer.Option("-y", help="A column of metrics.csv, or evaluation.COLUMN, or gradients.COLUMN.")
    ] = "evaluation.return_mean",
    stat: Annotated[Stat, typer.Option(help="Of the runs that differ only in their seed.")] = "mean",
    band: Annotated[Band, typer.Option(help=_BAND)] = "ci95",
    smooth: Annotated[int, typer.Option(min=1, help="Moving average over so many points; 1: none.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="FILE.png, .svg, .pdf or .csv; a default place if left out."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw in the terminal; a file too only with -o.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw learning curves with confidence intervals. A run that ended early keeps its last value."""
    if show:
        from pgcli.report.terminal_plots import show as draw_here

        width, color, unicode = terminal()
        text = draw_here(run_dirs, x, y, stat, band, smooth, width=width, color=color, ascii_only=not unicode)
        print_result(text, styled=color)
        if output is None:
            return

    from pgcli.report.plots import plot as draw

    print_result(draw(run_dirs, x, y, stat, band, smooth, output, overwrite=overwrite))
