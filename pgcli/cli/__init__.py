"""The command line: one module per command. Heavy imports live inside the commands."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pgcli import __version__
from pgcli.cli import check, compare, doctor, eval, export, init, plot, resume, show, train, verify

__all__ = ["app"]

app = typer.Typer(
    name="pgcli",
    help="A command-line laboratory for policy gradients: YAML in, learning curves out.",
    epilog="Start with `pgcli init --list`, then `pgcli train cartpole`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgcli {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    from pgcli.errors import UsageError

    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder was deleted", "go to one that exists, with `cd`") from None


for command in (
    *(train.train, resume.resume, eval.eval, doctor.doctor, verify.verify, plot.plot),
    *(init.init, export.export, compare.compare, show.show, check.check),
):
    app.command()(command)
