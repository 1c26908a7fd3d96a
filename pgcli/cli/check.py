"""`pgcli check`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson, Overrides
from pgcli.cli.output import print_report


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG | FILE:NAME",
            help="Config, or your own function or policy class in a .py or .ipynb file.",
        ),
    ] = None,
    overrides: Overrides = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Check all combinations of returns, baseline and objective.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="For your own code: exit with 7 for known biases, too.")
    ] = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, help="Time limit for one call of your own code, in seconds.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Compare a gradient estimator with exact gradients. Exits with 7 if it is wrong."""
    from pgcli.errors import UsageError
    from pgcli.inspection.gradient_check.targets import check_target, is_user_code

    own = is_user_code(target)
    if own and (everything or overrides):
        raise UsageError("--all and KEY=VALUE apply to configs only", "remove them to check your own code")
    if strict and not own:
        raise UsageError("--strict applies to your own code only", "for example `pgcli check my.py:reinforce --strict`")
    result = check_target(target, overrides or [], everything, time_limit)

    from pgcli.inspection.gradient_check.tables import check_text

    terminal = sys.stdout.isatty()
    print_report(result, as_json, partial(check_text, terminal=terminal), styled=terminal)
    if result["verdict"] == "wrong" or (strict and result["verdict"] != "unbiased"):
        raise typer.Exit(7)
