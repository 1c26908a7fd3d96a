"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli.cli import completion

if TYPE_CHECKING:
    from pgcli.config.schema import EnvConfig

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, or name of a shipped config (see `pgcli init --list`).",
        autocompletion=completion.configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to override, such as algorithm.gamma=0.9.",
        autocompletion=completion.overrides,
    ),
]
RunDir = Annotated[
    Path,
    typer.Argument(metavar="RUN_DIR", help="Run directory.", autocompletion=completion.run_directories),
]
RunDirs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN_DIR",
        help="Run directories, or folders that contain them.",
        autocompletion=completion.run_directories,
    ),
]
CheckpointOrRun = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="Checkpoint file or run directory.", autocompletion=completion.checkpoints
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Also replace a file that pgcli did not write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as a JSON object.")]
AsLines = Annotated[
    bool, typer.Option("--json", help="Print a line of JSON for each iteration, evaluation and end of a run.")
]


def _stack(text: str) -> int | None:
    """Parse `--stack`: a number, or None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number from 1")
    return int(text)


Stack = Annotated[
    int | None,
    typer.Option(
        parser=_stack,
        metavar="auto|N",
        help="Most seeds that share their rollouts in one process; 1: none. Does not affect results.",
        show_default="auto",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Allow imports of modules named in the config: environments, wrappers, networks."),
]
Which = Annotated[str, typer.Option(help="Checkpoint of the run directory: latest, best, or an iteration number.")]


def check_environment(env: EnvConfig) -> None:
    """Raise EnvironmentFailure if the environment is not registered, before importing torch."""
    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(env)
