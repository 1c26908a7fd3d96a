"""`pgcli train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli.cli import completion
from pgcli.cli.arguments import AsLines, Config, Overrides, Quiet, Stack
from pgcli.cli.output import print_result

if TYPE_CHECKING:
    from pgcli.experiment.run import Request


def train(
    config: Config,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory to write to.", show_default="runs/NAME/seed-SEED")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Train one run per seed: 0-4 or 0,3,7.", show_default=False)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs to train in parallel.")] = 1,
    stack: Stack = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an existing run; start a new one if there is none.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move an existing run to NAME~1, and start a new one.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN|CHECKPOINT",
            help="Start with the weights and the observation normalizer of a checkpoint, or of a run's last one.",
            show_default=False,
            autocompletion=completion.checkpoints,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Tag of the run, for `pgcli ls`. May be repeated.")
    ] = None,
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="Note of the run, for `pgcli ls`.", show_default=False)
    ] = "",
    quiet: Quiet = False,
    as_json: AsLines = False,
) -> None:
    """Train a policy and write a run directory."""
    from pgcli.experiment.plan import plan_runs
    from pgcli.runs.information import check_labels
    from pgcli.system.streams import results_only

    labels = check_labels(tag or [], note)
    with results_only():
        requests = plan_runs(
            *(config, overrides or []),
            run_dir=run_dir,
            seeds=seeds,
            resume=resume,
            overwrite=overwrite,
            start=start,
            labels=labels,
            command=sys.argv[1:],
        )
    train_all(requests, jobs, quiet, stack, as_json)


def train_all(
    requests: Sequence[Request], jobs: int, quiet: bool, stack: int | None = None, as_json: bool = False
) -> None:
    """Train `jobs` runs at a time and print their directories, or records as JSON.

    Exit with the code of the first failure.
    """
    from pgcli.api.commands import train_requests
    from pgcli.errors import typed
    from pgcli.experiment.run import Failure
    from pgcli.report.text import outcome_text
    from pgcli.system.streams import print_message, results_only

    if as_json:
        _train_as_json(requests, jobs, quiet, stack)
        return
    with results_only():
        results = train_requests(requests, jobs, quiet=quiet, stack=stack)
    for result in results:
        if isinstance(result, Failure):
            print_message(result.text)
        elif not quiet:
            print_message(outcome_text(result))
    done = [result.path for result in results if not isinstance(result, Failure)]
    if done and not quiet:
        path, agent = typed(done[0] if len(done) == 1 else done[0].parent), typed(done[0])
        print_message(f"next:\n  pgcli plot {path}\n  pgcli eval {agent} --video agent.gif")
    for one in done:
        print_result(one, if_closed=0)  # the runs are complete and saved
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _train_as_json(requests: Sequence[Request], jobs: int, quiet: bool, stack: int | None) -> None:
    from pgcli.errors import Interrupted
    from pgcli.experiment.jobs import PIPE, Failure, run_all
    from pgcli.report.lines import JsonLines
    from pgcli.report.logs import logged
    from pgcli.system.streams import print_message, results_only

    try:
        with results_only() as write:
            lines = JsonLines(requests, write, quiet)
            try:
                results = run_all(requests, jobs, lines.show, logged, stack)
            except Interrupted as interruption:
                lines.interrupted(interruption)
                raise
            lines.end(results)
    except BrokenPipeError:
        raise typer.Exit(128 + PIPE) from None
    except Interrupted as interruption:
        if interruption.exit_code == 128 + PIPE:
            raise typer.Exit(interruption.exit_code) from None
        raise
    failures = [result for result in results if isinstance(result, Failure)]
    for failure in failures:
        print_message(failure.text)
    if failures or lines.failed:
        raise typer.Exit(failures[0].exit_code if failures else 1)
