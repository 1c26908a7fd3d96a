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
        help="A YAML file, or the name of a shipped config (`pgcli init --list`).",
        autocompletion=completion.configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to change, like algorithm.gamma=0.9.",
        autocompletion=completion.overrides,
    ),
]
RunDir = Annotated[
    Path,
    typer.Argument(metavar="RUN_DIR", help="A run directory.", autocompletion=completion.run_directories),
]
CheckpointOrRun = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="A checkpoint file or a run directory.", autocompletion=completion.checkpoints
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file that pgcli did not make; its own are replaced anyway.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Trust = Annotated[bool, typer.Option("--trust", help="Import modules that Gymnasium does not ship.")]
Which = Annotated[str, typer.Option(help="Of a run directory: latest, best, or an iteration's number.")]


def check_environment(env: EnvConfig) -> None:
    """Raise EnvironmentFailure for an environment that is not registered, before torch is imported."""
    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(env)
