"""`pgcli rm`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pgcli.cli.arguments import RunDirs
from pgcli.cli.output import print_result


def rm(
    run_dirs: RunDirs,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove run directories, after asking. Nothing else is removed."""
    from pgcli.errors import UsageError
    from pgcli.report.curves import find_runs
    from pgcli.runs.removal import check_removable, remove_runs
    from pgcli.system.streams import print_message

    found = {run: folder for folder in run_dirs for run in find_runs([folder])}
    for run, folder in found.items():
        others = ", ".join(check_removable(run, folder))
        print_message(f"{run} with {others}, which pgcli did not write" if others else str(run))
    if not yes:
        count = f"{len(found)} run director{'y' if len(found) == 1 else 'ies'}"
        print_message(f"Remove {count}? [y/N]")  # to stderr; the result on stdout is the removed directories
        answer = sys.stdin.readline()
        if not answer:
            raise UsageError("nothing was removed: no answer", "`pgcli rm --yes` does not ask")
        if answer.strip().lower() not in ("y", "yes"):
            print_message("nothing was removed")
            return
    remove_runs(list(found), list(found.values()))
    for run in found:
        print_result(run, if_closed=0)
