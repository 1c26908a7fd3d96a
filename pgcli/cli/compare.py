"""`pgcli compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import AsJson, Quiet, Stack
from pgcli.cli.output import print_report


def compare(
    variants: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|RUNS|KEY=A,B",
            help="One config with KEY=A,B, the values to compare; several configs; or folders of existing runs, of "
            "which nothing is trained; or a suite file. KEY=VALUE sets a key for all configs.",
            autocompletion=completion.compared,
        ),
    ],
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds of every variant: 0-9 or 0,3,7.", show_default="0-4, or all existing runs"),
    ] = None,
    y: Annotated[
        str, typer.Option("-y", help="Column of evaluations.csv to compare; higher values are assumed to be better.")
    ] = "evaluation.return_mean",
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs to train in parallel.")] = 1,
    stack: Stack = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for the runs and the report.", show_default="runs/NAME-compare-KEYS"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Target value; the report has the steps to reach it.",
            show_default="the environment's reward threshold, for returns",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare variants of a config, several configs, or existing runs. Trains the missing runs, with equal seeds."""
    from pgcli.studies.execution import execute, plan
    from pgcli.system.streams import print_message

    planned = plan(variants, seeds, output)
    for notice in [] if quiet else planned.notices:
        print_message(f"note: {notice}")
    result, failures = execute(planned, jobs, quiet, threshold, sys.argv[1:], y, stack)
    for failure in failures:
        print_message(failure.text)
    if result is not None:
        from pgcli.studies.page import comparison_text  # imports numpy
        from pgcli.studies.suite_report import suite_text

        print_report(result, as_json, comparison_text if planned.suite is None else suite_text)
    if failures:
        raise typer.Exit(failures[0].exit_code)
