"""`pgcli plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import Overwrite
from pgcli.cli.output import print_result, terminal
from pgcli.config.choices import Band, Stat, XAxis

_BAND = (
    "Band around the line. ci95: 95 % interval (Student's t for a mean, trimmed mean for an IQM, order "
    "statistics for a median); bootstrap: percentile bootstrap over runs, too narrow for few runs; standard_error: ± 1 "
    "standard error; none."
)


def plot(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR",
            help="Run directories, or folders that contain them.",
            autocompletion=completion.run_directories,
        ),
    ],
    x: Annotated[
        XAxis, typer.Option("-x", metavar="UNIT", help=f"Unit of the x-axis: {', '.join(get_args(XAxis))}.")
    ] = "env_steps",
    y: Annotated[
        str, typer.Option("-y", help="Column to draw: of metrics.csv, or evaluation.COLUMN or gradients.COLUMN.")
    ] = "evaluation.return_mean",
    stat: Annotated[Stat, typer.Option(help="Statistic over seeds.")] = "mean",
    band: Annotated[Band, typer.Option(metavar="BAND", help=_BAND)] = "ci95",
    smooth: Annotated[int, typer.Option(min=1, help="Moving average over this many points; 1: none.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write: .png, .svg, .pdf or .csv.",
            show_default="plots/COLUMN.png",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw in the terminal; write a file only with -o.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Plot learning curves with confidence intervals. Runs that ended early keep their last value."""
    if show:
        from pgcli.report.terminal_plots import show as draw_here

        width, color, unicode = terminal()
        text = draw_here(run_dirs, x, y, stat, band, smooth, width=width, color=color, ascii_only=not unicode)
        print_result(text, styled=color)
        if output is None:
            return

    from pgcli.report.plots import plot as draw

    print_result(draw(run_dirs, x, y, stat, band, smooth, output, overwrite=overwrite))
