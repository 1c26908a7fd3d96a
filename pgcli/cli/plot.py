"""`pgcli plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from pgcli.cli.arguments import Overwrite, RunDirs
from pgcli.cli.output import print_result, terminal
from pgcli.config.choices import Band, Stat, XAxis

_BAND = (
    "Band around the line. ci95: 95 % interval (Student's t for a mean, trimmed mean for an IQM, order "
    "statistics for a median); bootstrap: percentile bootstrap over runs, too narrow for few runs; standard_error: ± 1 "
    "standard error; none."
)
_FIGURE: Any = {"rich_help_panel": "Appearance"}


def plot(
    run_dirs: RunDirs,
    x: Annotated[
        XAxis, typer.Option("-x", metavar="UNIT", help=f"Unit of the x-axis: {', '.join(get_args(XAxis))}.")
    ] = "env_steps",
    y: Annotated[
        str,
        typer.Option(
            "-y", metavar="COLUMN", help="Column to draw: of metrics.csv, or evaluation.COLUMN or gradients.COLUMN."
        ),
    ] = "evaluation.return_mean",
    stat: Annotated[Stat, typer.Option(help="Statistic over seeds.")] = "mean",
    band: Annotated[Band, typer.Option(metavar="BAND", help=_BAND)] = "ci95",
    smooth: Annotated[int, typer.Option(min=1, metavar="N", help="Moving average over this many points; 1: none.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write: .png, .svg, .pdf or .csv.",
            show_default="plots/COLUMN.png",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Label of a line, once per line in the order of the legend.", **_FIGURE),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Title.", show_default="label of a single line", **_FIGURE)
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width and height in inches.", show_default="6.4x4", **_FIGURE)
    ] = None,
    log: Annotated[
        bool | None,
        typer.Option(
            "--log/--no-log",
            help="Logarithmic y-axis; points at or below 0 are left out and counted.",
            show_default="if the column spans powers of ten",
            **_FIGURE,
        ),
    ] = None,
    no_caption: Annotated[bool, typer.Option("--no-caption", help="Draw no caption.", **_FIGURE)] = False,
    no_threshold: Annotated[
        bool, typer.Option("--no-threshold", help="Draw no line at the return that counts as solved.", **_FIGURE)
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Draw in the terminal; write a file only with -o.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Plot learning curves with confidence intervals. After its end, a run keeps its last value."""
    from pgcli.report.appearance import Appearance, check_effects, parse_size

    shape = None if size is None else parse_size(size)
    appearance = Appearance(label or (), title, shape, not no_caption, not no_threshold, log)
    check_effects(appearance, output, show)
    if show:
        from pgcli.report.terminal_plots import show as draw_here

        width, color, unicode = terminal()
        options: Any = {"width": width, "color": color, "ascii_only": not unicode, "appearance": appearance}
        print_result(draw_here(run_dirs, x, y, stat, band, smooth, **options), styled=color)
        if output is None:
            return

    from pgcli.report.plots import plot as draw

    print_result(draw(run_dirs, x, y, stat, band, smooth, output, overwrite=overwrite, appearance=appearance))
