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
            "-o",
            "--output",
            help="Folder for the runs and the report.",
            show_default="runs/NAME-compare-OTHERS",
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
    from pgcli.config.seeds import parse_seeds
    from pgcli.studies.execution import run_comparison, run_suite
    from pgcli.studies.suite import is_suite, plan_suite, read_suite
    from pgcli.studies.variants import default_folder, parse_comparison, sorted_words
    from pgcli.system.streams import print_message

    configs, folders, settings = sorted_words(variants)
    wanted = None if seeds is None else parse_seeds(seeds)
    suite = read_suite(configs) if any(map(is_suite, configs)) else None
    if suite is not None:
        folder = output or default_folder([suite.name])
        plans = plan_suite(suite, settings, wanted, folder)
    elif folders:
        from pgcli.studies.existing import existing_comparison  # imports numpy

        plans = {"": existing_comparison(folders, wanted, output)}
        folder = plans[""].folder
    else:
        plans = {"": parse_comparison(configs, settings, wanted or parse_seeds("0-4"), output)}
        folder = plans[""].folder
    notices = dict.fromkeys(notice for comparison in plans.values() for notice in comparison.notices)
    for notice in [] if quiet else notices:
        print_message(f"note: {notice}")

    from pgcli.runs.files import make_folder, storage
    from pgcli.runs.lock import lock
    from pgcli.studies.page import comparison_text  # imports numpy, after the config is checked
    from pgcli.studies.suite_report import suite_text

    with storage(folder):
        make_folder(folder)
    with lock(folder):  # two comparisons in one folder would disturb each other
        if suite is not None:
            result, failures = run_suite(suite, plans, folder, jobs, quiet, sys.argv[1:], y, stack)
        else:
            result, failures = run_comparison(plans[""], jobs, quiet, threshold, sys.argv[1:], y, stack)
    for failure in failures:
        print_message(failure.text)
    if result is not None:
        print_report(result, as_json, comparison_text if suite is None else suite_text)
    if failures:
        raise typer.Exit(failures[0].exit_code)
