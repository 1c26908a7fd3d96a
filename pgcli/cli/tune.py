"""`pgcli tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import AsJson, Config, Quiet, Stack
from pgcli.cli.output import print_report
from pgcli.config.choices import PrunerName, SamplerName


def tune(
    config: Config,
    spaces: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=SPACE",
            help="Keys to search: KEY=1e-4..1e-1:log, KEY=0.8..1, KEY=8..64:step=8, or values KEY=A,B. "
            "KEY=VALUE sets a key for all trials.",
            autocompletion=completion.overrides,
        ),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials of the study, with those that exist.")] = 20,
    seeds: Annotated[
        str, typer.Option(help="Seeds of every trial: 100-102 or 100,107. Report results on other seeds.")
    ] = "100-102",
    sampler: Annotated[SamplerName, typer.Option(help="How the values of a trial are drawn.")] = "tpe",
    pruner: Annotated[
        PrunerName, typer.Option(help="Ends trials that are worse than earlier ones at the same number of env steps.")
    ] = "median",
    confirm: Annotated[
        int,
        typer.Option(min=0, help="Number of fresh seeds on which the best trial and CONFIG are compared; 0: none."),
    ] = 10,
    y: Annotated[
        str, typer.Option("-y", help="Column of evaluations.csv to maximise; the value of a trial is its final mean.")
    ] = "evaluation.return_mean",
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs to train in parallel.")] = 1,
    stack: Stack = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the study.", show_default="runs/NAME-tune-KEYS"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Database of the trials, for several machines.", show_default="a journal file"
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search the values of keys that give the highest final return, and confirm them on fresh seeds."""
    from pgcli.config.seeds import parse_seeds
    from pgcli.studies.execution import without_password
    from pgcli.studies.search import check_folder, plan_search
    from pgcli.system.packages import require
    from pgcli.system.streams import print_message

    require("optuna", "tune", "`pgcli tune`")
    search = plan_search(config, spaces, parse_seeds(seeds), trials, sampler, pruner, y, output)
    check_folder(search)
    for notice in [] if quiet else dict.fromkeys(search.notices):
        print_message(f"note: {notice}")

    from pgcli.studies.search_report import search_text  # imports numpy, after the config is checked
    from pgcli.studies.tuning import run_search

    command = without_password(sys.argv[1:])
    result, failures = run_search(search, storage, jobs, quiet, command, stack, confirm)
    for failure in failures:
        print_message(failure.text)
    print_report(result, as_json, search_text)
    if failures:
        raise typer.Exit(failures[0].exit_code)
