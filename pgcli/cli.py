"""The commands. Each parses, calls one function and prints one result; heavy imports live inside.

stdout carries the result, stderr everything else.
"""

from __future__ import annotations

import contextlib
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli import __version__

if TYPE_CHECKING:
    from pgcli.experiment import Outcome, Request

app = typer.Typer(
    name="pgcli",
    help="A command-line laboratory for policy gradients: YAML in, learning curves out.",
    epilog="Start with `pgcli init --list`, then `pgcli train cartpole`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Mode(StrEnum):
    """How evaluation acts."""

    sampled = "sampled"
    greedy = "greedy"


class Stat(StrEnum):
    """What the line of a figure is."""

    mean = "mean"
    iqm = "iqm"
    median = "median"


class Band(StrEnum):
    """What the band of a figure is."""

    ci95 = "ci95"
    standard_error = "standard_error"
    none = "none"


class Axis(StrEnum):
    """What a figure's x axis counts."""

    iteration = "iteration"
    env_steps = "env_steps"
    episodes = "episodes"
    seconds = "seconds"


Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config (`pgcli init --list`).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Config keys to change, like algorithm.gamma=0.9."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Which = Annotated[str, typer.Option(help="Of a run directory: latest, best, or an iteration's number.")]


def _show(result: object, if_closed: int = 128 + 13) -> None:
    """Print a result to stdout; leave with SIGPIPE's exit code, or another, if nobody reads it."""
    try:
        typer.echo(result)
    except BrokenPipeError:
        raise typer.Exit(if_closed) from None


def _tell(text: str) -> None:
    """Print to stderr, if anybody reads it."""
    with contextlib.suppress(OSError):
        typer.echo(text, err=True)


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
    pass


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where to write; runs/NAME/seed-SEED if left out.", show_default=False)
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several runs, one per seed: 0-4 or 0,3,7.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many seeds to train at a time.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run if there is one, else start.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move an existing run aside and start anew.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a policy and write a run directory."""
    from pgcli.config import load_config, override
    from pgcli.errors import UsageError

    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other")
    base = load_config(config, overrides or [])
    if seeds is not None and any(text.startswith("seed=") for text in overrides or []):
        raise UsageError("--seeds and seed=… contradict each other")
    configs = [base] if seeds is None else [override(base, [f"seed={seed}"]) for seed in _seeds(seeds)]

    from pgcli.sampling.registry import spec
    from pgcli.streams import results_only

    with results_only():
        spec(base.env)  # an unknown environment is told before torch is imported

    from pgcli.experiment import Request, check_request

    requests = []
    for one in configs:
        folder = run_dir or Path("runs") / one.name
        path = folder if run_dir and seeds is None else folder / f"seed-{one.seed}"
        requests.append(Request(one, path, sys.argv[1:], resume, overwrite))
    for request in requests:
        check_request(request)  # all of them before the first one starts
    _train(requests, jobs, quiet)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    overrides: Overrides = None,
    which: Annotated[
        str, typer.Option(help="Go on from: latest, best, or an iteration's number; what came after it is dropped.")
    ] = "latest",
    quiet: Quiet = False,
) -> None:
    """Go on with an interrupted run, or extend a finished one by a larger training.iterations."""
    from pgcli.config import override
    from pgcli.experiment import Request, stored_config

    config = override(stored_config(run_dir), overrides or [])
    _train([Request(config, run_dir, sys.argv[1:], resume=True, which=which)], 1, quiet)


def _seeds(text: str) -> list[int]:
    """Read `0-4` or `0,3,7`, or both mixed."""
    from pgcli.errors import UsageError

    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first + last) > 20:
            raise UsageError(f"--seeds {text}: not a list of seeds", "write them like 0-4 or 0,3,7")
        if int(last or first) - int(first) >= 10_000:
            raise UsageError(f"--seeds {text}: more than 10,000 seeds")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {text}: empty, or a seed twice", "write them like 0-4 or 0,3,7")
    return seeds


def _train(requests: list[Request], jobs: int, quiet: bool) -> None:
    from pgcli.errors import typed
    from pgcli.jobs import Failure, run_all
    from pgcli.report.display import make_display
    from pgcli.streams import results_only

    with results_only():
        display = make_display([request.config for request in requests], quiet)
        try:
            results = run_all(requests, jobs, display.show)
        finally:
            display.close()
    for result in results:
        if isinstance(result, Failure):
            _tell(result.text)
        elif not quiet:
            _tell(_summary(result))
    done = [result.path for result in results if not isinstance(result, Failure)]
    if done and not quiet:
        path, agent = typed(done[0] if len(done) == 1 else done[0].parent), typed(done[0])
        _tell(f"next:\n  pgcli plot {path}\n  pgcli eval {agent} --video agent.gif")
    for one in done:
        _show(one, if_closed=0)  # the training is done, and safe
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _summary(outcome: Outcome) -> str:
    from pgcli.report.display import duration, mean_and_error, short

    last = outcome.last
    if last is None:
        return f"{outcome.path}: {outcome.reason}\n  `pgcli resume` with a larger training.iterations extends it"
    best = "" if outcome.best is None else f"; best {short(outcome.best[0])} at iteration {outcome.best[1]}"
    return (
        f"{outcome.path}: {outcome.reason}\n"
        f"  {last.iteration} iterations, {last.env_steps:,} env steps, {duration(outcome.seconds)}\n"
        f"  return {mean_and_error(last.returns)} ({last.returns.n} episodes, {last.mode}){best}"
    )


@app.command()
def eval(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint file or a run directory.")],
    which: Which = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 100,
    mode: Annotated[Mode, typer.Option(help="Draw actions from the policy, or take the most probable one.")] = (
        Mode.sampled
    ),
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Discount per step; 1 counts rewards as they are.")] = 1.0,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Cut episodes here; the environment's own limit if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which episodes; never those of training.")] = 0,
    video: Annotated[Path | None, typer.Option(help="Film one more episode: FILE.gif or FILE.mp4.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import modules that Gymnasium does not ship.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a trained policy on fresh episodes, and film it."""
    from pgcli.assessment import assess, table
    from pgcli.loading import load
    from pgcli.streams import results_only

    film_path = video and video.absolute()  # an environment may leave this folder
    with results_only():
        agent = load(checkpoint, which, trust=trust)
        result = assess(agent, episodes, mode.value, gamma, horizon, seed)
        if film_path is not None:
            from pgcli.report.video import film

            episode = film(agent, film_path, mode.value, seed, horizon)
            result |= {
                "video": str(video),
                "video_return": episode.episode_return,
                "video_length": episode.length,
            }
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))


@app.command()
def doctor(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine a config and its environment before a long run; writes nothing."""
    from pgcli.config import load_config

    loaded = load_config(config, overrides or [])

    from pgcli.sampling.registry import spec
    from pgcli.streams import results_only

    with results_only():
        spec(loaded.env)  # an unknown environment is told before torch is imported

        from pgcli.doctor import diagnose, table

        result = diagnose(loaded)
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))


@app.command()
def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Compute every iteration since the oldest kept checkpoint again, not one.")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Import modules that Gymnasium does not ship.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold the files of a run against each other, and compute an iteration again."""
    from pgcli.streams import results_only
    from pgcli.verification import table
    from pgcli.verification import verify as examine

    with results_only():
        result = examine(run_dir, everything=everything, trust=trust)
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))
    if not result["passed"]:
        raise typer.Exit(7)


@app.command()
def plot(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Run directories, or folders of them.")],
    x: Annotated[Axis, typer.Option("-x", help="What to count.")] = Axis.env_steps,
    y: Annotated[
        str, typer.Option("-y", help="A column of metrics.csv, or evaluation.COLUMN of evaluations.csv.")
    ] = "evaluation.return_mean",
    stat: Annotated[Stat, typer.Option(help="Of the runs that differ only in their seed.")] = Stat.mean,
    band: Annotated[Band, typer.Option(help="Around it.")] = Band.ci95,
    smooth: Annotated[int, typer.Option(min=1, help="Moving average over so many points; 1: none.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="FILE.png, .svg, .pdf or .csv; a default place if left out."),
    ] = None,
) -> None:
    """Draw learning curves with honest intervals."""
    from pgcli.report.curves import plot as draw

    _show(draw(run_dirs, x.value, y, stat.value, band.value, smooth, output))


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(help="A shipped config.")] = None,
    dest: Annotated[Path | None, typer.Argument(help="Where to copy it; ./NAME.yaml if left out.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped configs.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a config.")] = False,
) -> None:
    """List and copy the shipped configs."""
    from pgcli import shipped
    from pgcli.config.schema import Config as Schema

    if schema:
        _show(json.dumps(Schema.model_json_schema(), indent=2, ensure_ascii=False))
    elif list_ or name is None:
        _show(shipped.describe())
    else:
        _show(shipped.copy(name, dest))


@app.command()
def check(
    target: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG | FILE.py:NAME", help="A config, or a function or policy class of your own."),
    ] = None,
    overrides: Overrides = None,
    everything: Annotated[bool, typer.Option("--all", help="All cells of returns × baseline × objective.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Of your own code: a known bias fails too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold a gradient estimator against gradients that are known; exit 7 if it is wrong."""
    from pgcli.errors import UsageError
    from pgcli.streams import results_only

    own = target is not None and (target.endswith(".py") or ".py:" in target)
    if own and (everything or overrides):
        raise UsageError("--all and KEY=VALUE are for configs", "leave them out")
    if strict and not own:
        raise UsageError("--strict is for your own code", "name it: `pgcli check my.py:reinforce --strict`")
    if own and target is not None:
        from pgcli.location import split

        split(target)  # what is not there is told before torch is imported
        with results_only():
            from pgcli.oracle.judgement import judge_own

            result = judge_own(target)
    else:
        from pgcli.config import load_config, override
        from pgcli.config.schema import Config as Schema

        if target is None:
            exact = ["algorithm.average=episodes", "algorithm.discount_weighting=true", "policy.distribution=softmax"]
            loaded = override(Schema(), [*(exact if everything else exact[2:]), *(overrides or [])])
        else:
            loaded = load_config(target, overrides or [])
        with results_only():
            from pgcli.oracle.measurement import actions_of, check_all
            from pgcli.oracle.measurement import check as examine

            if loaded.algorithm.estimator is None:
                kind = actions_of(loaded)
                result = check_all(loaded, kind) if everything else examine(loaded, kind)
            else:  # the config names it, and the user this config
                from pgcli.oracle.judgement import judge_own

                result = judge_own(loaded.algorithm.estimator)
    from pgcli.oracle.report import table

    _show(json.dumps(result, allow_nan=False) if as_json else table(result, sys.stdout.isatty()))
    if result["verdict"] == "wrong" or (strict and result["verdict"] != "unbiased"):
        raise typer.Exit(7)
