"""The commands. Each parses, calls one function and prints one result; heavy imports live inside.

stdout carries the result, stderr everything else.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli import __version__
from pgcli.cli import completion
from pgcli.config.choices import Band, Mode, Stat, XAxis

if TYPE_CHECKING:
    from pgcli.experiment.recorder import Outcome
    from pgcli.experiment.run import Request

app = typer.Typer(
    name="pgcli",
    help="A command-line laboratory for policy gradients: YAML in, learning curves out.",
    epilog="Start with `pgcli init --list`, then `pgcli train cartpole`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def _terminal() -> tuple[int, bool, bool]:
    """Say what can be drawn on stdout: its columns, whether in colour, whether in Unicode."""
    import codecs
    import os
    import shutil

    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    utf = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    return shutil.get_terminal_size((80, 24)).columns, wanted and sys.stdout.isatty(), utf


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

    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(base.env)  # an unknown environment is told before torch is imported

    from pgcli.experiment.run import Request, check_request

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
    run_dir: RunDir,
    overrides: Overrides = None,
    which: Annotated[
        str, typer.Option(help="Go on from: latest, best, or an iteration's number; what came after it is dropped.")
    ] = "latest",
    quiet: Quiet = False,
) -> None:
    """Go on with an interrupted run, or extend a finished one by a larger training.iterations."""
    from pgcli.config import override
    from pgcli.experiment.resume import stored_config
    from pgcli.experiment.run import Request

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
    from pgcli.experiment.jobs import Failure, run_all
    from pgcli.report.display import make_display
    from pgcli.report.logs import logged
    from pgcli.system.streams import results_only

    with results_only():
        display = make_display([request.config for request in requests], quiet)
        try:
            results = run_all(requests, jobs, display.show, logged)
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
    trust: Annotated[bool, typer.Option("--trust", help="Import modules that Gymnasium does not ship.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a trained policy on fresh episodes, and film it; or replay an episode of its training."""
    if replay is not None:
        _replay(context, checkpoint, replay, video, trust, as_json)
        return

    from pgcli.experiment.load import load
    from pgcli.inspection.evaluate import assess, table
    from pgcli.system.streams import results_only

    film_path = video and video.absolute()  # an environment may leave this folder
    with results_only():
        agent = load(checkpoint, which, trust=trust)
        result = assess(agent, episodes, mode, gamma, horizon, seed, workers)
        if film_path is not None:
            from pgcli.report.video import film

            episode = film(agent, film_path, mode, seed, horizon)
            result |= {
                "video": str(video),
                "video_return": episode.episode_return,
                "video_length": episode.length,
            }
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))


def _replay(context: typer.Context, run: Path, which: str, video: Path | None, trust: bool, as_json: bool) -> None:
    from pgcli.errors import UsageError
    from pgcli.system.streams import results_only

    for name in ("which", "episodes", "mode", "gamma", "horizon", "seed", "workers"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(
                f"--{name} and --replay contradict each other",
                "a replayed episode is the one of the training, as it was",
            )

    from pgcli.inspection.replay import replay, table

    film_path = video and video.absolute()  # an environment may leave this folder
    with results_only():
        result = replay(run, which, film_path, trust=trust, tell=_tell)
    if "video" in result:
        result["video"] = str(video)
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))
    if not result["matches"]:
        raise typer.Exit(7)


@app.command()
def doctor(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine a config and its environment before a long run; writes nothing."""
    from pgcli.config import load_config

    loaded = load_config(config, overrides or [])

    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(loaded.env)  # an unknown environment is told before torch is imported

        from pgcli.inspection.doctor import diagnose, table

        result = diagnose(loaded)
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))


@app.command()
def verify(
    run_dir: RunDir,
    everything: Annotated[
        bool, typer.Option("--all", help="Compute every iteration since the oldest kept checkpoint again, not one.")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Import modules that Gymnasium does not ship.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold the files of a run against each other, and compute an iteration again."""
    from pgcli.inspection.verify import table
    from pgcli.inspection.verify import verify as examine
    from pgcli.system.streams import results_only

    with results_only():
        result = examine(run_dir, everything=everything, trust=trust)
    _show(json.dumps(result, allow_nan=False) if as_json else table(result))
    if not result["passed"]:
        raise typer.Exit(7)


@app.command()
def plot(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR",
            help="Run directories, or folders of them.",
            autocompletion=completion.run_directories,
        ),
    ],
    x: Annotated[XAxis, typer.Option("-x", help="What to count.")] = "env_steps",
    y: Annotated[
        str, typer.Option("-y", help="A column of metrics.csv, or evaluation.COLUMN, or gradients.COLUMN.")
    ] = "evaluation.return_mean",
    stat: Annotated[Stat, typer.Option(help="Of the runs that differ only in their seed.")] = "mean",
    band: Annotated[Band, typer.Option(help="Around it.")] = "ci95",
    smooth: Annotated[int, typer.Option(min=1, help="Moving average over so many points; 1: none.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="FILE.png, .svg, .pdf or .csv; a default place if left out."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw in the terminal; a file too only with -o.")] = False,
) -> None:
    """Draw learning curves with honest intervals."""
    if show:
        from pgcli.report.terminal_plots import show as draw_here

        width, color, unicode = _terminal()
        text = draw_here(run_dirs, x, y, stat, band, smooth, width=width, color=color, ascii_only=not unicode)
        _show(text)
        if output is None:
            return

    from pgcli.report.plots import plot as draw

    _show(draw(run_dirs, x, y, stat, band, smooth, output))


@app.command()
def init(
    name: Annotated[
        str | None, typer.Argument(help="A shipped config.", autocompletion=completion.shipped_names)
    ] = None,
    dest: Annotated[Path | None, typer.Argument(help="Where to copy it; ./NAME.yaml if left out.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped configs.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a config.")] = False,
) -> None:
    """List and copy the shipped configs."""
    from pgcli.config import shipped
    from pgcli.config.schema import Config as Schema

    if schema:
        _show(json.dumps(Schema.model_json_schema(), indent=2, ensure_ascii=False))
    elif list_ or name is None:
        _show(shipped.describe())
    else:
        _show(shipped.copy(name, dest))


@app.command()
def export(
    checkpoint: CheckpointOrRun,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Where to write.")],
    which: Which = "latest",
    trust: Annotated[bool, typer.Option("--trust", help="Import modules that Gymnasium does not ship.")] = False,
) -> None:
    """Write a policy, with its normaliser, as an ONNX file."""
    from pgcli.experiment.export import check_extra
    from pgcli.experiment.export import export as write
    from pgcli.experiment.load import load
    from pgcli.system.streams import results_only

    check_extra()
    target = file.absolute()  # an environment may leave this folder
    with results_only():
        write(load(checkpoint, which, trust=trust), target)
    _show(file)


@app.command()
def compare(
    config: Config,
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=A,B",
            help="Keys with the values to compare, and KEY=VALUE for what all arms have.",
        ),
    ],
    seeds: Annotated[str, typer.Option(help="The same for every arm: 0-9 or 0,3,7.")] = "0-4",
    jobs: Annotated[int, typer.Option(min=1, help="How many runs to train at a time.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of runs and report; runs/NAME-compare-KEYS if left out."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Return whose first reaching is timed; the environment's if left out.")
    ] = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train arms side by side over the same seeds, and report what differs; what is there already is reused."""
    from pgcli.studies.variants import parse_comparison, run_comparison

    comparison = parse_comparison(config, overrides, _seeds(seeds), output)
    for notice in [] if quiet else comparison.notices:
        _tell(f"note: {notice}")

    from pgcli.studies.page import plain, table  # imports numpy: errors of the config come before

    result, failures = run_comparison(comparison, jobs, quiet, threshold, sys.argv[1:])
    for failure in failures:
        _tell(failure.text)
    if result is not None:
        _show(json.dumps(plain(result), allow_nan=False) if as_json else table(result))
    if failures:
        raise typer.Exit(failures[0].exit_code)


@app.command()
def show(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Another, to be told apart from it.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Explain a run from its directory alone: what it reached, what went wrong, which key to change."""
    from pgcli.inspection.explain import differ, difference_table, table
    from pgcli.inspection.explain import show as explain
    from pgcli.studies.page import plain

    result = explain(run_dir) if other is None else differ(run_dir, other)
    written = table if other is None else difference_table
    _show(json.dumps(plain(result), allow_nan=False) if as_json else written(result))


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
    from pgcli.system.streams import results_only

    own = target is not None and (target.endswith(".py") or ".py:" in target)
    if own and (everything or overrides):
        raise UsageError("--all and KEY=VALUE are for configs", "leave them out")
    if strict and not own:
        raise UsageError("--strict is for your own code", "name it: `pgcli check my.py:reinforce --strict`")
    if own and target is not None:
        from pgcli.system.locations import split

        split(target)  # what is not there is told before torch is imported
        with results_only():
            from pgcli.inspection.gradient_check.user_estimators import check_user_code

            result = check_user_code(target)
    else:
        from pgcli.config import load_config, override
        from pgcli.config.schema import Config as Schema

        if target is None:
            exact = ["algorithm.average=episodes", "algorithm.discount_weighting=true", "policy.distribution=softmax"]
            loaded = override(Schema(), [*(exact if everything else exact[2:]), *(overrides or [])])
        else:
            loaded = load_config(target, overrides or [])
        with results_only():
            from pgcli.inspection.gradient_check.measurement import action_kind, check_config, check_grid

            if loaded.algorithm.estimator is None:
                kind = action_kind(loaded)
                result = check_grid(loaded, kind) if everything else check_config(loaded, kind)
            else:  # the config names it, and the user this config
                from pgcli.inspection.gradient_check.user_estimators import check_user_code

                result = check_user_code(loaded.algorithm.estimator)
    from pgcli.inspection.gradient_check.tables import table

    _show(json.dumps(result, allow_nan=False) if as_json else table(result, sys.stdout.isatty()))
    if result["verdict"] == "wrong" or (strict and result["verdict"] != "unbiased"):
        raise typer.Exit(7)
