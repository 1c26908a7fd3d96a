"""Run one experiment: build it, open its run directory, train, and record what happens."""

from __future__ import annotations

import gc
import math
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pgcli.algorithm.gradients.autograd import check_compiler
from pgcli.algorithm.gradients.closed_form import ClosedForm
from pgcli.algorithm.learner import Learner
from pgcli.algorithm.second_process import SecondProcess
from pgcli.config import Config
from pgcli.config.rules import without_effect
from pgcli.config.schema import EvaluationConfig, PolicyConfig
from pgcli.environments.checks import check_environment, check_evaluation
from pgcli.environments.registry import reward_threshold
from pgcli.environments.vector.native_trial import vector_form_notice
from pgcli.errors import PgcliError, RunDirectoryError, UsageError, typed
from pgcli.experiment.build import build_learner, columns_of, environments_of, released, restore, worker_pool
from pgcli.experiment.loggers import check_loggers
from pgcli.experiment.recorder import Context, Outcome, Recorder
from pgcli.experiment.resume import changes_of, is_exact
from pgcli.experiment.user_code import changed, code_of
from pgcli.experiment.warm_start import check_same_start, has_own_state, initialize
from pgcli.records import Iteration, Notice, Record
from pgcli.runs import checkpoints
from pgcli.runs.directory import (
    RunDirectory,
    check_owner,
    elapsed_seconds,
    find_checkpoint,
    is_run,
    move_aside,
)
from pgcli.runs.files import make_folder, storage
from pgcli.runs.information import Labels, WarmStart, config_of_run, read_information, read_status
from pgcli.runs.lock import lock
from pgcli.runs.tables import check_info_names
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.sampler import make_sampler
from pgcli.sampling.stack import StackedPool
from pgcli.system.locations import split
from pgcli.system.memory import memory_error
from pgcli.system.packages import require
from pgcli.system.process_state import kept, restore_process
from pgcli.system.processes import keep_freed_memory
from pgcli.training.loop import Counters, Training, train

MOST_NAMES = 5  # of changed files in a notice


@dataclass(frozen=True)
class Failure:
    """How a run failed. `error` is missing where it comes from another process and is not pgcli's."""

    exit_code: int
    text: str
    error: Exception | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:  # an exception of the user's may not be picklable
        known = self.error if isinstance(self.error, PgcliError) else None
        return Failure, (self.exit_code, self.text, known)


Result = Outcome | Failure


@dataclass(frozen=True)
class Request:
    """A requested run.

    `folder` is the current folder at that time; environments may change it.
    """

    config: Config
    path: Path
    command: list[str]
    resume: bool = False
    overwrite: bool = False
    which: str = "latest"  # the checkpoint that a resumed run starts from
    folder: Path = field(default_factory=Path.cwd)
    labels: Labels | None = None
    warm_start: WarmStart | None = None
    share: int = 1  # runs that share the cores of this machine or of the cluster
    until: int | None = None  # env steps after which the run pauses

    def pauses_after(self, record: Record) -> bool:
        """Return whether the run pauses after this record: an iteration beyond `until`, before the last one."""
        if self.until is None or not isinstance(record, Iteration):
            return False
        return record.env_steps > self.until and record.progress < 1


def failure_of(error: Exception) -> Failure:
    """Return the message of a user's mistake, or the traceback of a bug."""
    known = error if isinstance(error, PgcliError) else memory_error(error)
    if known is not None:
        return Failure(known.exit_code, str(known), known)
    return Failure(1, "".join(traceback.format_exception(error)), error)


def run_experiment(request: Request, context: Context = Context()) -> Outcome:  # noqa: B008 - immutable
    """Train into the run directory `request.path`.

    With `resume`, continue an existing run.

    Raises: RunDirectoryError, RunInUse, EnvironmentFailure, Diverged, Interrupted.
    """
    check_request(request)
    path = request.folder / request.path
    process = kept() if context.stack is None else nullcontext()  # one for all seeds of a stack
    with process, _paths_as_typed(request, path), storage(path), ExitStack() as resources:
        run = _built(request, path, context, resources)
        check_owner(path)
        if is_run(path) and request.overwrite:
            with lock(path):
                move_aside(path)
        make_folder(path)
        check_owner(path)
        with lock(path) as folder, closing(RunDirectory(folder)) as directory:
            if not _opened(request, path, run, directory, context):
                reason = "already finished: " + "; ".join(_what_ended(request, run.counters, directory))
                return Outcome(request.path, reason, None, None, 0.0)
            recorder = Recorder(run, directory, context)
            with recorder.status():
                recorder.save()
                for record in train(run, context.check):
                    recorder.add(record)
                    if request.pauses_after(record):
                        return replace(recorder.pause(), path=request.path)
                recorder.save()
            return replace(recorder.outcome(), path=request.path)


def _built(request: Request, path: Path, context: Context, resources: ExitStack) -> Training:
    """Build everything that the run needs, before any file is written."""
    config = request.config
    environments = resources.enter_context(released(EnvironmentCache(environments_of(config))))
    check_evaluation(config.evaluation_env, config.env)
    learner = build_learner(config, environments)
    notices = _ignored(config, learner)
    if request.warm_start is not None and (request.overwrite or not has_own_state(path)):
        notices += initialize(learner, request.warm_start)
    keep_freed_memory()
    pool = worker_pool(config, environments, request.share, context.check)
    if pool.count:  # workers wait during an update
        learner.run = SecondProcess()
    elif context.stack is not None:
        pool = StackedPool(environments, context.stack)
    executor = resources.enter_context(released(ChunkExecutor(environments, pool)))
    form = vector_form_notice(environments_of(config), resumable=config.rollout.steps is not None)
    for notice in (*notices, *check_environment(config.env).notices, *([form] if form else [])):
        context.watch(Notice(notice))
    if learner.policy.masked:
        context.watch(Notice("actions are masked; `policy.action_mask: none` ignores the mask"))
    parts = len(chunk_ranges(config.env, columns_of(config)))
    if parts < pool.count:
        context.watch(
            Notice(f"{pool.count} workers share {parts} chunks; a smaller `env.chunk_size` gives more chunks")
        )
    restore_process()
    gc.freeze()  # the collector would spend 0.1 s on imported modules
    resources.callback(gc.unfreeze)
    return Training(config, executor, learner, make_sampler(config, executor), Counters())


def check_start(requests: Sequence[Request]) -> None:
    """Raise UsageError or CheckpointError for an unsuitable warm start. Writes nothing."""
    for request in requests:
        if request.warm_start is not None and (request.overwrite or not has_own_state(request.path)):
            environments = EnvironmentCache(environments_of(request.config))
            with _paths_as_typed(request, request.path), released(environments):
                initialize(build_learner(request.config, environments, user_code=False), request.warm_start)
            return  # the others differ in their seed only


def _ignored(config: Config, learner: Learner) -> list[str]:
    """Describe the keys without effect in this run that are valid in its config."""
    found = [f"{one.message} and is ignored" for one in without_effect(config)]
    policy, default = config.policy, PolicyConfig()
    for key in ("initial_standard_deviation", "log_std_bounds"):
        if learner.policy.distribution.is_discrete and getattr(policy, key) != getattr(default, key):
            found.append(f"`policy.{key}` has no effect: the actions are not continuous")
    if config.training.compile and isinstance(learner.agent.gradient, ClosedForm):
        found.append("`training.compile` has no effect: these networks have closed-form gradients")
    return found


_COUNTER = {"iterations": "iteration", "env_steps": "env_steps", "seconds": "seconds"}  # of each budget


def _what_ended(request: Request, counters: Counters, directory: RunDirectory) -> tuple[str, str]:
    """Return why a run finished, and the command that extends it."""
    again = f"`pgcli resume {typed(request.path)}"
    if used := counters.used_up(request.config.training):
        larger = " ".join(f"training.{name}={2 * math.ceil(getattr(counters, _COUNTER[name]))}" for name in used)
        settings = " and ".join(f"training.{name}={limit}" for name, limit in used.items())
        return f"{settings} {'is' if len(used) == 1 else 'are'} used up", f"{again} {larger}` extends it"
    reason = directory.status.get("reason") or "stopped early"
    rules = {"stop_at_return": "null", "stop_at": "'{}'", "stop_evaluations": "1", "patience": "null"}
    default = EvaluationConfig()
    on = [name for name in rules if getattr(request.config.evaluation, name) != getattr(default, name)]
    off = " ".join(f"evaluation.{name}={rules[name]}" for name in on)
    return str(reason), f"{again} {off}` uses the rest of the budget"


def _opened(request: Request, path: Path, run: Training, directory: RunDirectory, context: Context) -> bool:
    """Start a run directory or restore its state; return False for a finished run."""
    config = request.config
    code = code_of(config, request.folder, request.command)
    if directory.is_new and request.which == "latest":
        if is_run(path):
            changes_of(config, config_of_run(path), path)
        threshold = reward_threshold(config.evaluation_env)
        directory.start(config, request.command, threshold, request.labels, code, request.warm_start)
        return True
    file = find_checkpoint(path, request.which)
    checkpoint = checkpoints.load(file)
    changes = changes_of(config, checkpoint.read_config(str(file)), path)
    finished = directory.status.get("status") == "finished" and request.which == "latest"
    if finished:
        iteration = checkpoint.counters["iteration"]
        run.counters = Counters(**checkpoint.counters, seconds=elapsed_seconds(path, iteration))
        if not changes:
            return False
        if run.counters.used_up(config.training):
            ended, hint = _what_ended(request, run.counters, directory)
            raise UsageError(f"{path}: the run is finished: {ended}; {', '.join(changes)} would not continue it", hint)
    lost = restore(run, checkpoint, str(file), path)
    if lost:
        context.watch(
            Notice(f"{lost} of {config.env.num_envs} environments did not repeat their episodes and started new ones")
        )
    edited = changed(read_information(path).get("user_code") or {}, code["user_code"], request.folder)
    if edited:
        names = ", ".join(edited[:MOST_NAMES]) + (f" and {len(edited) - MOST_NAMES} more" * (len(edited) > MOST_NAMES))
        have = "has" if len(edited) == 1 else "have"
        context.watch(Notice(f"{names} {have} changed since the run last started, so its results may differ"))
    exact = is_exact(config, changes) and not lost and not edited
    threshold = reward_threshold(config.evaluation_env)
    directory.restart(config, request.command, changes, exact, checkpoint.counters, threshold, request.labels, code)
    return True


@contextmanager
def _paths_as_typed(request: Request, path: Path) -> Iterator[None]:
    """Write the run directory in errors as the user typed it."""
    try:
        yield
    except PgcliError as error:
        name = f"./{request.path}" if str(request.path).startswith("-") else str(request.path)  # not an option
        error.message, error.hint = (text.replace(str(path), name) for text in (error.message, error.hint))
        if not request.path.is_absolute():
            error.message = error.message.replace(f"{request.folder}/", "")  # a folder above it
        raise


def check_request(request: Request) -> None:
    """Raise RunDirectoryError for an unusable directory, UsageError for missing packages or devices."""
    path = request.path
    check_info_names(request.config)
    check_loggers(request.config.logging)
    if request.config.sampling.backend == "ray":
        require("ray", "ray", "sampling.backend: ray")
    if request.config.training.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"training.device: cuda, but torch {torch.__version__} finds no GPU",
            "use `training.device=cpu`",
        )
    with storage(path):
        if os.path.lexists(path) and not path.is_dir():
            raise RunDirectoryError(f"{path}: is {'a file' if path.exists() else 'a link to nothing'}, not a folder")
        check_owner(path)
        run = is_run(path)
    if request.config.algorithm.estimator is not None:
        split(request.config.algorithm.estimator)
    if run and request.resume:
        with _paths_as_typed(request, request.folder / path):
            check_same_start(request.warm_start, path)
    if run and not (request.resume or request.overwrite):
        raise RunDirectoryError(
            f"{path}: a run already exists",
            "--overwrite moves it aside and starts a new run"
            if (path / "status.json").exists() and read_status(path)["status"] == "failed"
            else "--resume continues it; --overwrite moves it aside and starts a new run",
        )
    if request.config.training.compile:
        check_compiler(request.config.training.device)
