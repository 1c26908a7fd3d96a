"""`pgcli check`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson, Overrides
from pgcli.cli.output import print_report, print_result


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
        bool, typer.Option("--all", help="Check all combinations of returns, baseline, objective and ratios.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="For your own code: exit with 7 for known biases, too.")
    ] = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, help="Time limit for one call of your own code, in seconds.")
    ] = 10.0,
    age: Annotated[
        int | None,
        typer.Option(
            "--age",
            min=1,
            max=100,
            metavar="N",
            help="Draw the bias over the age of the data, up to N updates; needs -o.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="With --age: .png, .svg or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a gradient estimator with exact gradients. Exits with 7 if it is wrong."""
    from pgcli.errors import UsageError
    from pgcli.inspection.gradient_check.targets import check_age, check_target, is_user_code

    own = is_user_code(target)
    if strict and not own:
        raise UsageError("--strict applies to your own code only", "for example `pgcli check my.py:reinforce --strict`")
    if age is not None or output is not None:
        if own or everything or as_json or age is None or output is None:
            raise UsageError(
                "--age and -o draw the estimator of a config together",
                "for example `pgcli check lesson/ratios --age 8 -o ratios.png`",
            )
        print_result(check_age(target, overrides or [], age, output))
        return
    result = check_target(target, overrides or [], everything, time_limit)

    from pgcli.inspection.gradient_check.tables import check_text

    terminal = sys.stdout.isatty()
    print_report(result, as_json, partial(check_text, terminal=terminal), styled=terminal)
    if result["verdict"] == "wrong" or (strict and result["verdict"] != "unbiased"):
        raise typer.Exit(7)
