"""The command line: one module per command.

Heavy imports live inside the commands.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pgcli import __version__
from pgcli.cli import check, compare, doctor, eval, export, init, ls, plot, resume, rm, show, train, verify

__all__ = ["app"]

_VALUES = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}  # by type


class _Help:
    """Names the values of options in help texts as a user types them; flags have none."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)  # type: ignore[misc]  # a mixin of click commands
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None  # its name says what it is
            elif getattr(parameter, "is_flag", False):
                parameter.metavar = ""
            elif parameter.metavar is None:
                parameter.metavar = _VALUES.get(parameter.bare_type())
        return parameters


class _Group(_Help, TyperGroup):
    """The `pgcli` command group."""


class _Command(_Help, TyperCommand):
    """A command of `pgcli`."""


app = typer.Typer(
    cls=_Group,
    name="pgcli",
    help="A command-line laboratory for policy gradients: from a YAML config to learning curves.",
    epilog="Start with `pgcli init --list`, then `pgcli train cartpole`.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="With --version: also print the versions of packages that affect results."
        ),
    ] = False,
) -> None:
    if version:
        from pgcli.system.packages import versions

        typer.echo(f"pgcli {__version__}")
        for name, number in versions().items() if verbose else ():
            typer.echo(f"{name} {number}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        _check_folder()


def _check_folder() -> None:
    """Raise UsageError if the current folder was deleted, because every path would fail."""
    from pgcli.errors import UsageError

    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder was deleted", "change to an existing folder with `cd`") from None


def _add(panel: str, command: Callable[..., None], *examples: str) -> None:
    app.command(cls=_Command, rich_help_panel=panel, epilog="\n  ".join(("Examples:", *examples)))(command)


_RUN, _LOOK, _COMPARE, _CHECK, _FILES = "Run", "Look", "Compare", "Check", "Files"
_add(
    _RUN,
    train.train,
    "pgcli train cartpole",
    "pgcli train cartpole/ppo algorithm.gamma=0.99 --seeds 0-4 --jobs 2",
    "pgcli train my.yaml --run-dir runs/mine --resume",
)
_add(
    _RUN,
    resume.resume,
    "pgcli resume runs/cartpole/seed-0",
    "pgcli resume runs/cartpole/seed-0 training.iterations=200",
    "pgcli resume runs/cartpole/seed-0 --which 20",
)
_add(
    _LOOK,
    eval.eval,
    "pgcli eval runs/cartpole/seed-0",
    "pgcli eval runs/cartpole/seed-0 --mode greedy --video agent.gif",
    "pgcli eval runs/cartpole/seed-0 --replay 12:345",
)
_add(
    _LOOK,
    plot.plot,
    "pgcli plot runs/cartpole -o curve.png",
    "pgcli plot runs/a runs/b --label PPO --label RLOO --size 3.3x2.5 -o figure.pdf",
    "pgcli plot runs/cartpole -y entropy --show",
)
_add(_LOOK, show.show, "pgcli show runs/cartpole/seed-0", "pgcli show runs/a/seed-0 runs/b/seed-0")
_add(
    _COMPARE,
    compare.compare,
    "pgcli compare cartpole optimizer.learning_rate=0.03,0.12 training.env_steps=20000 --seeds 0-9",
    "pgcli compare cartpole/ppo cartpole/rloo training.env_steps=100000 --seeds 0-9 --jobs 2",
    "pgcli compare runs/a runs/b -y is_success",
)
_add(
    _CHECK,
    check.check,
    "pgcli check cartpole/rloo",
    "pgcli check my.py:reinforce",
    "pgcli check --all",
)
_add(_CHECK, doctor.doctor, "pgcli doctor lunar-lander/ppo", "pgcli doctor my.yaml env.num_envs=16")
_add(_CHECK, verify.verify, "pgcli verify runs/cartpole/seed-0", "pgcli verify runs/cartpole/seed-0 --all")
_add(
    _FILES,
    ls.ls,
    "pgcli ls",
    "pgcli ls runs --where status=finished --where 'return>=400' --sort return",
    "pgcli ls --sort optimizer.learning_rate --json",
)
_add(_FILES, rm.rm, "pgcli rm runs/cartpole/seed-0", "pgcli rm runs/cartpole --yes")
_add(
    _FILES,
    init.init,
    "pgcli init --list",
    "pgcli init cartpole/ppo my.yaml",
    "pgcli init algorithm --keys",
)
_add(_FILES, export.export, "pgcli export runs/cartpole/seed-0 agent.onnx")
