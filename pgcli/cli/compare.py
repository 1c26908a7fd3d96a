"""`pgcli compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson, Config, Quiet
from pgcli.cli.output import print_report


def compare(
    config: Config,
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=A,B",
            help="Keys with the values to compare, and KEY=VALUE for what all arms have.",
        ),
    ],
    seeds: Annotated[str, typer.Option(help="The same for every arm: 0-9 or 0,3,7.")] = "0-4",
    jobs: Annotated[int, typer.Option(min=1, help="How many runs to train at a time.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of runs and report; runs/NAME-compare-KEYS if left out."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Return whose first reaching is timed; the environment's if left out.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train arms side by side over the same seeds, and report what differs; what is there already is reused."""
    from pgcli.config.seeds import parse_seeds
    from pgcli.studies.variants import parse_comparison, run_comparison
    from pgcli.system.streams import print_message

    comparison = parse_comparison(config, overrides, parse_seeds(seeds), output)
    for notice in [] if quiet else comparison.notices:
        print_message(f"note: {notice}")

    from pgcli.runs.files import make_folder, storage
    from pgcli.runs.lock import lock
    from pgcli.studies.page import comparison_text  # imports numpy: errors of the config come before

    with storage(comparison.folder):
        make_folder(comparison.folder)
    with lock(comparison.folder):  # two that share it would take runs from each other, and both fail
        result, failures = run_comparison(comparison, jobs, quiet, threshold, sys.argv[1:])
    for failure in failures:
        print_message(failure.text)
    if result is not None:
        print_report(result, as_json, comparison_text)
    if failures:
        raise typer.Exit(failures[0].exit_code)
