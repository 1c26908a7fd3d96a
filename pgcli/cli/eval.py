"""`pgcli eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson, CheckpointOrRun, Trust, Which
from pgcli.cli.output import print_report
from pgcli.config.choices import Mode


def eval(
    context: typer.Context,
    checkpoint: CheckpointOrRun,
    which: Which = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 100,
    mode: Annotated[Mode, typer.Option(help="Draw actions from the policy, or take the most probable one.")] = (
        "sampled"
    ),
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Discount per step; 1 counts rewards as they are.")] = 1.0,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Cut episodes here; the environment's own limit if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which episodes; never those of training.")] = 0,
    workers: Annotated[
        int, typer.Option(min=0, max=1024, help="How many processes play, for the same result; 0: this one.")
    ] = 0,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="ITERATION:EPISODE",
            help="Instead: simulate a training episode again, as numbered in episodes.csv, and film it.",
            show_default=False,
        ),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Film one more episode: FILE.gif or FILE.mp4.")] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Measure a trained policy on fresh episodes, and film it; or replay an episode of its training."""
    if replay is not None:
        _replay(context, checkpoint, replay, video, trust, as_json)
        return

    from pgcli.inspection.evaluate import evaluate_checkpoint, evaluation_text
    from pgcli.system.streams import results_only

    with results_only():
        result = evaluate_checkpoint(checkpoint, which, episodes, mode, gamma, horizon, seed, workers, video, trust)
    print_report(result, as_json, evaluation_text)


def _replay(context: typer.Context, run: Path, which: str, video: Path | None, trust: bool, as_json: bool) -> None:
    from pgcli.errors import UsageError
    from pgcli.system.streams import print_message, results_only

    for name in ("which", "episodes", "mode", "gamma", "horizon", "seed", "workers"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(
                f"--{name} and --replay contradict each other",
                "a replayed episode is the one of the training, as it was",
            )

    from pgcli.inspection.replay import replay, replay_text

    film_path = video and video.absolute()  # an environment may leave this folder
    with results_only():
        result = replay(run, which, film_path, trust=trust, tell=print_message)
    if "video" in result:
        result["video"] = str(video)
    print_report(result, as_json, replay_text)
    if not result["matches"]:
        raise typer.Exit(7)
