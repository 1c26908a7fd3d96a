"""The commands as functions: `train`, `resume`, `evaluate`, `compare`, `check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from pgcli.api.results import Report
from pgcli.api.run import Run
from pgcli.api.session import session
from pgcli.config import Config
from pgcli.config.choices import Mode
from pgcli.config.load import Origin
from pgcli.errors import PgcliError, UsageError
from pgcli.experiment.plan import plan_resume, plan_runs
from pgcli.records import Notice, Record
from pgcli.runs.information import check_labels

if TYPE_CHECKING:
    from pgcli.experiment.load import Agent
    from pgcli.experiment.run import Request, Result

Overrides = Mapping[str, Any] | Sequence[str]  # {"algorithm.gamma": 0.9}, or ["algorithm.gamma=0.9"]


@overload
def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Overrides = ...,
    *,
    run_dir: str | Path | None = ...,
    seeds: None = ...,
    jobs: int = ...,
    stack: int | None = ...,
    start_from: Run | str | Path | None = ...,
    resume: bool = ...,
    overwrite: bool = ...,
    tags: Sequence[str] = ...,
    note: str = ...,
    progress: bool | None = ...,
) -> Run: ...
@overload
def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Overrides = ...,
    *,
    run_dir: str | Path | None = ...,
    seeds: str | Collection[int],
    jobs: int = ...,
    stack: int | None = ...,
    start_from: Run | str | Path | None = ...,
    resume: bool = ...,
    overwrite: bool = ...,
    tags: Sequence[str] = ...,
    note: str = ...,
    progress: bool | None = ...,
) -> list[Run]: ...
def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Overrides = (),
    *,
    run_dir: str | Path | None = None,
    seeds: str | Collection[int] | None = None,
    jobs: int = 1,
    stack: int | None = None,
    start_from: Run | str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tags: Sequence[str] = (),
    note: str = "",
    progress: bool | None = None,
) -> Run | list[Run]:
    """Train a policy and return its run, as `pgcli train`; with `seeds`, a list with the run of each seed.

    Args:
        config: a YAML file, the name of a shipped config, plain data, or a Config.
        overrides: config keys to change: `{"seed": 3, "training.iterations": 5}`, or `["seed=3"]`.
        run_dir: the directory to write to; by default `runs/NAME/seed-SEED`.
        seeds: `"0-4"`, `range(5)` or `[0, 3, 7]`.
        jobs: the number of runs to train in parallel, in processes that do not import your script.
        stack: most seeds that share their rollouts; None: as many as fit. Results do not depend on it.
        start_from: a run or checkpoint, whose weights and observation normalizer the runs start from.
        resume: continue an existing run; start a new one if there is none.
        overwrite: move an existing run to `NAME~1`.
        tags: words for `pgcli ls`.
        note: a text for `pgcli ls`.
        progress: show the progress; None: in a notebook and in a terminal.

    Raises: PgcliError, with a `hint`; of several runs that fail, the first error, after the others have ended.
        KeyboardInterrupt, after the run has saved its state; the same call with `resume=True` continues it.
    """
    with session():
        labels = check_labels(_words("tags", tags), note)
        words = overrides_of(overrides)
        origin: Origin = str(config) if isinstance(config, Path) else config
        if not isinstance(origin, str | Mapping | Config):
            raise UsageError(f"config: {_shown(config)} is not a config", "a path, a shipped name, a dict or a Config")
        requests = plan_runs(
            *(origin, words),
            run_dir=None if run_dir is None else _path("run_dir", run_dir),
            seeds=seeds if seeds is None or isinstance(seeds, str) else _seeds(seeds),
            resume=resume,
            overwrite=overwrite,
            start=None if start_from is None else _path("start_from", start_from),
            labels=labels,
            command=["train", origin if isinstance(origin, str) else "config.yaml", *words],
        )
        runs = _train(requests, _whole("jobs", jobs, 1), _most(stack), progress)
    return runs if seeds is not None else runs[0]


def resume(
    run: Run | str | Path, overrides: Overrides = (), *, which: str | int = "latest", progress: bool | None = None
) -> Run:
    """Continue an interrupted run, or extend a finished one, as `pgcli resume`; return it."""
    with session():
        path, words = _path("run", run), overrides_of(overrides)
        return _train([plan_resume(path, words, str(which), ["resume", str(path), *words])], 1, None, progress)[0]


def train_requests(
    requests: Sequence[Request],
    jobs: int,
    *,
    quiet: bool,
    stack: int | None = None,
    watch: Callable[[Record, int], None] | None = None,
) -> list[Result]:
    """Train `jobs` runs at a time with a display, and return how each one ended. Raises: Interrupted."""
    from pgcli.experiment.jobs import run_all
    from pgcli.report.display import TrainingView, make_display
    from pgcli.report.logs import logged

    with closing(make_display(TrainingView([request.config for request in requests]), quiet)) as display:

        def show(record: Record, run: int) -> None:
            if watch is not None:
                watch(record, run)
            display.show(record, run)

        return run_all(requests, jobs, show, logged, stack)


def _train(requests: Sequence[Request], jobs: int, stack: int | None, progress: bool | None) -> list[Run]:
    from pgcli.experiment.run import Failure

    notices: list[list[str]] = [[] for _ in requests]

    def keep(record: Record, run: int) -> None:
        if isinstance(record, Notice):
            notices[run].append(record.text)

    results = train_requests(requests, jobs, quiet=_is_quiet(progress), stack=stack, watch=keep)
    for result in results:
        if isinstance(result, Failure):
            raise result.error or PgcliError(result.text)
    return [Run(one.path, notices=own, trusted=True) for one, own in zip(requests, notices, strict=True)]


def evaluate(
    run: Run | Agent | str | Path,
    overrides: Overrides = (),
    *,
    which: str | int = "latest",
    episodes: int = 100,
    mode: Mode = "sampled",
    gamma: float = 1.0,
    horizon: int | None = None,
    seed: int = 0,
    workers: int = 0,
    video: str | Path | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> Report:
    """Evaluate a policy on new episodes, as `pgcli eval`: `report["mean_return"]`.

    Args:
        run: a run, a run directory, a checkpoint, or a loaded agent.
        overrides: keys of the environment to change: `{"env.kwargs.gravity": 12}`.
        which: latest, best, or an iteration number.
        episodes: their number.
        mode: sampled or greedy.
        gamma: discount factor of the returns.
        horizon: cut episodes after this many steps; None: at the environment's time limit.
        seed: seed of the episodes; they are never those of training.
        workers: number of worker processes; results do not depend on it.
        video: film one episode: FILE.gif or FILE.mp4.
        overwrite: also replace a film that pgcli did not make.
        trust: also import modules outside Gymnasium. A run of `train` in this process is trusted.

    Raises: PgcliError, with a `hint`.
    """
    from pgcli.inspection.evaluate import evaluate_checkpoint, evaluation_text

    with session():
        result = evaluate_checkpoint(
            *(_path("run", run), overrides_of(overrides)),
            which=str(which),
            episodes=_whole("episodes", episodes, 1),
            mode=_choice("mode", mode, ("sampled", "greedy")),
            gamma=_number("gamma", gamma, 0, 1),
            horizon=None if horizon is None else _whole("horizon", horizon, 1),
            seed=_whole("seed", seed, 0),
            workers=_whole("workers", workers, 0, 1024),
            video=None if video is None else _path("video", video),
            overwrite=overwrite,
            trust=trust or bool(getattr(run, "trusted", not isinstance(run, str | Path))),
        )
    return Report(result, evaluation_text)


def compare(
    *variants: Run | str | Path | Mapping[str, Any],
    seeds: str | Collection[int] | None = None,
    y: str = "evaluation.return_mean",
    jobs: int = 1,
    stack: int | None = None,
    output: str | Path | None = None,
    threshold: float | None = None,
    progress: bool | None = None,
) -> Report:
    """Compare variants of a config, several configs, or existing runs, as `pgcli compare`.

    Args:
        variants: configs, folders of runs, runs, or one suite file; and keys: `"training.env_steps=20000"`, or
            `{"optimizer.learning_rate": [0.03, 0.12]}`, where a list has the values to compare.
        seeds: the seeds of every variant; by default 0-4, or all existing runs.
        y: the column of evaluations.csv to compare.
        jobs: the number of runs to train in parallel.
        stack: most seeds that share their rollouts.
        output: the folder of the runs and the report.
        threshold: target value; the report has the steps to reach it.
        progress: show the progress; None: in a notebook and in a terminal.

    Raises: PgcliError, with a `hint`. KeyboardInterrupt: the same call continues.
    """
    from pgcli.studies.execution import execute, plan
    from pgcli.studies.page import comparison_text
    from pgcli.studies.suite_report import suite_text

    with session():
        words = [word for one in variants for word in _variant(one)]
        numbers = seeds if seeds is None or isinstance(seeds, str) else ",".join(map(str, _seeds(seeds)))
        planned = plan(words, numbers, None if output is None else _path("output", output))
        limit = None if threshold is None else _number("threshold", threshold)
        command = ["compare", *words]
        result, failures = execute(
            *(planned, _whole("jobs", jobs, 1), _is_quiet(progress), limit, command, y, _most(stack))
        )
        for failure in failures:
            raise failure.error or PgcliError(failure.text)
    assert result is not None  # without a failure there is a result
    return Report(result, comparison_text if planned.suite is None else suite_text, planned.notices)


def check(
    target: Callable[..., Any] | str | Path | Mapping[str, Any] | Config | None = None,
    overrides: Overrides = (),
    *,
    everything: bool = False,
    time_limit: float = 10.0,
) -> Report:
    """Compare a gradient estimator with exact gradients, as `pgcli check`: `report["verdict"]`.

    Args:
        target: a config; your own estimator or policy class, as an object or as FILE.py:NAME; None: the defaults.
        overrides: config keys to change.
        everything: check all combinations of returns, baseline, objective and ratios.
        time_limit: seconds that one call of your own code may take.

    Raises: PgcliError, with a `hint`.
    """
    from pgcli.inspection.gradient_check.tables import check_text
    from pgcli.inspection.gradient_check.targets import check_target

    with session():
        one = str(target) if isinstance(target, Path) else target
        if not (one is None or callable(one) or isinstance(one, str | Mapping | Config)):
            raise UsageError(f"{_shown(target)} cannot be checked", "name a config, or your own function or class")
        result = check_target(one, overrides_of(overrides), everything, _number("time_limit", time_limit, 0.1))
    return Report(result, partial(check_text, terminal=False))


# ----------------------------------------------------------------------------------------------------------- arguments


def overrides_of(overrides: Overrides) -> list[str]:
    """Return overrides as `KEY=VALUE`, with values in YAML. Raises: UsageError."""
    if isinstance(overrides, Mapping):
        return [f"{key}={_yaml(str(key), value)}" for key, value in overrides.items()]
    return _words("overrides", overrides)


def _yaml(key: str, value: Any) -> str:
    """Return a value as JSON, which is YAML; numpy's numbers and arrays as Python's."""
    import json

    def plain(other: Any) -> Any:
        if hasattr(other, "tolist"):  # of numpy and torch
            return other.tolist()
        if isinstance(other, Path):
            return str(other)
        raise UsageError(f"{key}: {_shown(other)} cannot be written to a config", "text, a number, a list or a mapping")

    return json.dumps(value, ensure_ascii=False, default=plain)


def _variant(one: Run | str | Path | Mapping[str, Any]) -> list[str]:
    if not isinstance(one, Mapping):
        return [str(_path("variants", one))] if not isinstance(one, str) else [one]
    values = {key: value if isinstance(value, list | tuple) else [value] for key, value in one.items()}
    return [f"{key}={','.join(_yaml(str(key), each) for each in own)}" for key, own in values.items()]


def _words(name: str, words: Any) -> list[str]:
    if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(one, str) for one in words):
        example = '["seed=3"] or {"seed": 3}' if name == "overrides" else '["baseline"]'
        raise UsageError(f"{name}: {_shown(words)} is not a list of words", f"for example {example}")
    return list(words)


def _path(name: str, value: Any) -> Path:
    """Return the path of a run, of an agent, or the given one. Raises: UsageError."""
    found = getattr(value, "path", value)
    if not isinstance(found, str | Path) or not str(found):
        raise UsageError(f"{name}: {_shown(value)} is not a path", "a text or a pathlib.Path")
    return Path(found)


def _seeds(seeds: Any) -> list[int]:
    values = [_whole("seeds", one, 0) for one in ([seeds] if isinstance(seeds, int) else seeds)]
    if not values or len(set(values)) < len(values):
        raise UsageError(f"seeds: {_shown(seeds)} is empty, or a seed occurs twice", "for example range(5)")
    return values


def _most(stack: Any) -> int | None:
    return None if stack is None else _whole("stack", stack, 1)


def _whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    try:
        if isinstance(value, bool) or value < low or (high is not None and value > high) or int(value) != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        limits = f"from {low}" + ("" if high is None else f" to {high}")
        raise UsageError(f"{name}: {_shown(value)} is not a whole number {limits}") from None
    return int(value)


def _number(name: str, value: Any, low: float = -1e308, high: float = 1e308) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        limits = f" from {low:g}" + (f" to {high:g}" if high < 1e308 else "") if low > -1e308 else ""
        raise UsageError(f"{name}: {_shown(value)} is not a number{limits}")
    return float(value)


def _choice(name: str, value: Any, choices: tuple[Mode, ...]) -> Mode:
    if value not in choices:
        raise UsageError(f"{name}: {_shown(value)} is unknown", f"use {' or '.join(choices)}")
    return choices[choices.index(value)]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _is_quiet(progress: bool | None) -> bool:
    from pgcli.report.notebook import in_notebook

    if progress is None:
        progress = in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    return not progress
