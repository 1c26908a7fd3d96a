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
            help="Environment keys to override: env.kwargs.NAME, env.wrappers, env.max_episode_steps.",
        ),
    ] = None,
    which: Which = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 100,
    mode: Annotated[Mode, typer.Option(help="Sample actions from the policy, or take the most probable action.")] = (
        "sampled"
    ),
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Discount factor of the returns; 1: undiscounted.")] = 1.0,
    horizon: Annotated[
        int | None,
        typer.Option(min=1, help="Cut episodes after this many steps.", show_default="the environment's time limit"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes; they are never those of training.")] = 0,
    workers: Annotated[
        int,
        typer.Option(min=0, max=1024, help="Number of worker processes; does not affect the result. 0: no workers."),
    ] = 0,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="ITERATION:EPISODE",
            help="Instead of evaluating, replay a training episode, numbered as in episodes.csv.",
            show_default=False,
        ),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Film one episode: FILE.gif or FILE.mp4.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained policy on new episodes, film it, or replay a training episode."""
    from pgcli.system.streams import print_message, results_only

    film_path = video and video.absolute()  # the environment may change the current folder
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
    """Raise UsageError for an option or override that --replay does not support."""
    from pgcli.errors import UsageError

    if overrides:
        raise UsageError(
            f"{overrides[0]} cannot be used with --replay", "a replay repeats the training episode unchanged"
        )
    for name in ("which", "episodes", "mode", "gamma", "horizon", "seed", "workers"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(
                f"--{name} cannot be used with --replay", "a replay repeats the training episode unchanged"
            )
