"""`pgcli eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli.arguments import AsJson, CheckpointOrRun, Overwrite, Trust, Which
from pgcli.cli.output import print_report
from pgcli.config.choices import Mode


def eval(
    context: typer.Context,
    checkpoint: CheckpointOrRun,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes of the environment: env.kwargs.NAME, env.wrappers or env.max_episode_steps.",
        ),
    ] = None,
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
    overwrite: Overwrite = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Measure a trained policy on fresh episodes, and film it; or replay an episode of its training."""
    from pgcli.system.streams import print_message, results_only

    film_path = video and video.absolute()  # an environment may leave this folder
    if video is not None:
        from pgcli.runs.outputs import check_output

        check_output(video, inputs=[checkpoint], overwrite=overwrite)
    if replay is None:
        from pgcli.experiment.load import load
        from pgcli.inspection.evaluate import assess
        from pgcli.inspection.evaluate import evaluation_text as text

        with results_only():
            agent = load(checkpoint, which, trust=trust)
            result = assess(agent, episodes, mode, gamma, horizon, seed, workers, film_path, overrides or [])
    else:
        _check_replay(context, overrides or [])
        from pgcli.inspection.replay import replay as replay_episode
        from pgcli.inspection.replay import replay_text as text

        with results_only():
            result = replay_episode(checkpoint, replay, film_path, trust=trust, tell=print_message)
    if "video" in result:
        result["video"] = str(video)  # as the user wrote it
    print_report(result, as_json, text)
    if not result.get("matches", True):
        raise typer.Exit(7)


def _check_replay(context: typer.Context, overrides: list[str]) -> None:
    """Raise UsageError for an option or an override that a replay does not have."""
    from pgcli.errors import UsageError

    if overrides:
        raise UsageError(
            f"{overrides[0]} and --replay contradict each other", "a replayed episode is the one of the training"
        )
    for name in ("which", "episodes", "mode", "gamma", "horizon", "seed", "workers"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(
                f"--{name} and --replay contradict each other",
                "a replayed episode is the one of the training, as it was",
            )
