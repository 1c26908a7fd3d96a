"""The roof: wires config, training, run directory and whoever watches."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, assert_never

import torch

from pgcli.algorithm.gradients import user_code as student
from pgcli.algorithm.losses import check_compiler
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.config import Config, flat, load_config, to_data
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import examine
from pgcli.environments.forms import NativeEnvironments
from pgcli.environments.registry import spec
from pgcli.errors import Diverged, EnvironmentFailure, Interrupted, PgcliError, RunDirectoryError, UsageError, typed
from pgcli.records import Evaluation, Iteration, Notice, Record
from pgcli.runs import checkpoints
from pgcli.runs.directory import RunDirectory, elapsed_seconds, find_checkpoint, is_run, move_aside
from pgcli.runs.files import make_folder, storage
from pgcli.runs.lock import lock
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.pool import LocalPool, WorkerPool, worker_count
from pgcli.sampling.process_pool import ProcessPool
from pgcli.sampling.ray_pool import RayPool
from pgcli.sampling.sampler import Sampler, make_sampler
from pgcli.system.locations import split
from pgcli.system.packages import require
from pgcli.system.processes import keep_freed_memory
from pgcli.system.ray_cluster import cores, cpus, join
from pgcli.training.loop import Counters, train

# What a resumed run may change; and of that, what leaves the bytes to come as one long run would have written them.
CHANGEABLE = ("training.", "optimizer.", "evaluation.", "checkpoint.", "sampling.", "diagnostics.")
BUDGETS = ("training.iterations", "training.env_steps", "training.seconds")
HARMLESS = (*BUDGETS, "evaluation.every", "evaluation.stop_at_return", "checkpoint.", "sampling.", "diagnostics.")


class Closeable(Protocol):
    """Something that holds simulators."""

    def close(self) -> None:
        """Free what they hold."""


T = TypeVar("T", bound=Closeable)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    path: Path
    reason: str
    last: Evaluation | None
    best: tuple[float, int] | None
    seconds: float


@dataclass(frozen=True)
class Failure:
    """How a run failed."""

    exit_code: int
    text: str


Result = Outcome | Failure


@dataclass(frozen=True)
class Request:
    """What a user asks of one run. Its folder is where `path` was when it was asked: environments may go elsewhere."""

    config: Config
    path: Path
    command: list[str]
    resume: bool = False
    overwrite: bool = False
    which: str = "latest"  # the checkpoint that a resumed run goes on from
    folder: Path = field(default_factory=Path.cwd)
    share: int = 1  # how many runs the cores of this machine, or of the cluster, are for


def failure_of(error: Exception) -> Failure:
    """Tell a user's mistake in its own words, and a bug by its traceback."""
    if isinstance(error, PgcliError):
        return Failure(error.exit_code, str(error))
    return Failure(1, "".join(traceback.format_exception(error)))


def run_experiment(
    request: Request,
    watch: Callable[[Record], None] = lambda record: None,
    check: Callable[[], None] = lambda: None,
    asked_to_save: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train into the run directory `request.path`; with `resume`, go on where a run there stopped.

    `watch` is shown every record; `check` is called before every step and may raise Interrupted; `asked_to_save`
    after every iteration, and may ask for a checkpoint besides those of the cadence.
    Raises: RunDirectoryError, RunInUse, EnvironmentFailure, Diverged, Interrupted.
    """
    check_request(request)
    path = request.folder / request.path
    try:
        outcome = _run(replace(request, path=path), watch, check, asked_to_save)
    except PgcliError as error:
        name = f"./{request.path}" if str(request.path).startswith("-") else str(request.path)  # typed, it is no option
        error.message, error.hint = (text.replace(str(path), name) for text in (error.message, error.hint))
        if not request.path.is_absolute():
            error.message = error.message.replace(f"{request.folder}/", "")  # a folder above it
        raise
    return replace(outcome, path=request.path)


def _run(
    request: Request,
    watch: Callable[[Record], None],
    check: Callable[[], None],
    asked_to_save: Callable[[], bool],
) -> Outcome:
    config, path = request.config, request.path
    with storage(path), ExitStack() as resources:
        environments = resources.enter_context(_released(EnvironmentCache(environments_of(config))))
        agent = build_agent(config, environments)  # before anything is written
        let_in(config, agent)
        keep_freed_memory()
        pool = make_pool(config, environments, request.share, check)
        executor = resources.enter_context(_released(ChunkExecutor(environments, pool)))
        for notice in examine(config.env).notices:
            watch(Notice(notice))
        if agent.policy.masked:
            watch(Notice("actions are masked; `policy.action_mask: none` ignores the mask"))
        parts = len(chunk_ranges(config.env, columns_of(config)))
        if parts < pool.count:
            watch(Notice(f"{pool.count} workers share {parts} chunks; a smaller `env.chunk_size` makes more"))
        sampler = make_sampler(config, executor)
        gc.freeze()  # what is imported and built stays: to look through it takes the collector a tenth of a second
        resources.callback(gc.unfreeze)
        if is_run(path) and request.overwrite:
            with lock(path):
                move_aside(path)
        make_folder(path)
        with lock(path), closing(RunDirectory(path)) as directory:
            if directory.is_new and request.which == "latest":
                if is_run(path):
                    changes_of(config, stored_config(path), path)
                directory.start(config, request.command, spec(config.env).reward_threshold)
                return _train(config, directory, agent, executor, sampler, Counters(), watch, check, asked_to_save)
            file = find_checkpoint(path, request.which)
            checkpoint = checkpoints.load(file)
            changes = changes_of(config, checkpoint.read_config(str(file)), path)
            if directory.status.get("status") == "finished" and not changes and request.which == "latest":
                return Outcome(path, "already finished", None, None, 0.0)
            checkpoints.check_tensors(checkpoint.agent, agent.state_dict(), str(file))
            agent.load_state_dict(checkpoint.agent)
            lost = sampler.load_state_dict(checkpoint.sampler, agent.policy, checkpoint.counters["iteration"])
            if lost:
                watch(Notice(f"{lost} of {config.env.num_envs} environments do not repeat themselves: new episodes"))
            exact = is_exact(config, changes) and not lost
            directory.restart(config, request.command, changes, exact, checkpoint.counters)
            seconds = elapsed_seconds(path, checkpoint.counters["iteration"])
            counters = Counters(**checkpoint.counters, seconds=seconds)
            return _train(config, directory, agent, executor, sampler, counters, watch, check, asked_to_save)


@contextmanager
def _released(resource: T) -> Iterator[T]:
    """Close `resource` at the end; a fault in closing does not hide how it came to the end."""
    try:
        yield resource
    except BaseException:
        with suppress(EnvironmentFailure):
            resource.close()
        raise
    try:
        resource.close()
    except EnvironmentFailure as fault:
        fault.hint = "the run had finished, and all of it is saved"
        raise


def check_request(request: Request) -> None:
    """Raise RunDirectoryError if the run directory cannot be used so, UsageError if something is missing."""
    path, logging = request.path, request.config.logging
    for name in ("tensorboard", "wandb"):
        if getattr(logging, name):
            require(name, name, f"logging.{name}")
    if request.config.sampling.backend == "ray":
        require("ray", "ray", "sampling.backend: ray")
    if request.config.training.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"training.device: cuda, and torch {torch.__version__} finds no GPU here",
            "`training.device=cpu` learns without one",
        )
    with storage(path):
        if os.path.lexists(path) and not path.is_dir():
            raise RunDirectoryError(f"{path}: is {'a file' if path.exists() else 'a link to nothing'}, not a folder")
        run = is_run(path)
    if request.config.algorithm.estimator is not None:
        split(request.config.algorithm.estimator)
    if run and not (request.resume or request.overwrite):
        raise RunDirectoryError(
            f"{path}: a run is already there",
            "--overwrite moves it aside and starts anew"
            if RunDirectory(path).status.get("status") == "failed"
            else "--resume continues it; --overwrite moves it aside and starts anew",
        )
    if request.config.training.compile:
        check_compiler(request.config.training.device)


def environments_of(config: Config) -> EnvConfig:
    """Give the environments of a run. Groups are stepped one by one: native columns cannot share a reset seed."""
    return config.env.model_copy(update={"vectorization": "sync"}) if config.group_size > 1 else config.env


def make_pool(config: Config, environments: EnvironmentCache, share: int, check: Callable[[], None]) -> WorkerPool:
    """Build the pool that `sampling` asks for. It starts no worker yet, but it joins a cluster.

    Raises: UsageError, EnvironmentFailure.
    """
    env, count = environments.config, config.sampling.workers
    chunks = chunk_ranges(env, columns_of(config))
    match config.sampling.backend:
        case "local":
            if count == "auto":
                native = isinstance(environments.of_width(len(chunks[0])), NativeEnvironments)
                count = worker_count(max(cores() // share, 1), len(chunks), native)
            return ProcessPool(env, config.policy, count) if count else LocalPool(environments)
        case "ray":
            if count == 0 or (count == "auto" and len(chunks) == 1):
                return LocalPool(environments)
            leave = join(cores() if count == "auto" else count, check)
            own = cpus() // share - (share > 1)  # a run that is placed on the cluster has a CPU itself
            actors = worker_count(own, len(chunks), native=False) if count == "auto" else count
            if actors:
                return RayPool(env, config.policy, actors, leave)
            leave()
            return LocalPool(environments)
        case never:
            assert_never(never)


def columns_of(config: Config) -> int:
    """Count the columns of a rollout."""
    return config.rollout.episodes or config.env.num_envs


def build_agent(config: Config, environments: EnvironmentCache) -> PolicyGradient:
    """Build the policy, and the rule that improves it, for these environments."""
    envs = environments.of_width(len(chunk_ranges(config.env, columns_of(config))[0]))
    return PolicyGradient(envs.observation_space, envs.action_space, config)


def let_in(config: Config, agent: PolicyGradient) -> None:
    """Give the agent the estimator that its config names: this runs the user's code. Raises: UsageError."""
    if config.algorithm.estimator is not None:
        agent.estimator = student.estimator(config.algorithm.estimator, agent.policy, config.algorithm.gamma)


def _train(
    config: Config,
    directory: RunDirectory,
    agent: PolicyGradient,
    executor: ChunkExecutor,
    sampler: Sampler,
    counters: Counters,
    watch: Callable[[Record], None],
    check: Callable[[], None],
    asked_to_save: Callable[[], bool],
) -> Outcome:
    """Consume the records of the loop: rows, checkpoints, status."""
    every, keep = config.checkpoint.every, config.checkpoint.keep

    def save(best: bool = False) -> None:
        state = {
            "iteration": counters.iteration,
            "env_steps": counters.env_steps,
            "episodes": counters.episodes,
        }
        agent.check_finite()
        tensors = agent.state_dict() | sampler.state_dict(counters.iteration)
        checkpoint = checkpoints.Checkpoint(_of_the_result(config), state, tensors)
        directory.save(checkpoint, best=best, keep=keep, every=every)

    last: Evaluation | None = None
    started = counters.seconds
    try:
        save()
        for record in train(config, agent, executor, sampler, counters, check):
            if isinstance(record, Iteration):
                if sampler.failed_restores:
                    directory.mark_inexact()
                    watch(
                        Notice(
                            f"{sampler.failed_restores} environments did not come back in a new worker: new episodes"
                        )
                    )
                directory.add_iteration(record)
                if asked_to_save() or (every is not None and counters.iteration % every == 0):
                    save()
            elif isinstance(record, Evaluation):
                last = record
                if directory.add_evaluation(record):
                    save(best=True)
            watch(record)
            check()
        save()
    except Interrupted as interruption:
        save()
        directory.set_status("interrupted", iteration=counters.iteration, reason=interruption.message)
        interruption.message = f"{directory.path}: {interruption.message} after {counters.iteration} iterations"
        interruption.hint = f"`pgcli resume {typed(directory.path)}` goes on"
        raise
    except Diverged as error:  # nothing is saved: what led to it is in the state
        directory.set_status("diverged", iteration=counters.iteration, reason=error.message)
        again = f"pgcli resume {typed(directory.path)} optimizer.learning_rate=…"
        error.message += f" in iteration {counters.iteration} of {directory.path}"
        error.hint += f"; `{again}` goes on from the last checkpoint"
        raise
    except EnvironmentFailure as fault:
        save()
        directory.set_status("failed", iteration=counters.iteration, reason=fault.message)
        if fault.reproduction:
            file = directory.add_reproduction(f"episode-{fault.seed}", fault.reproduction)
            mended = f"`pgcli resume {typed(directory.path)}` goes on once it is mended"
            fault.message += f"; {file} repeats it"
            fault.hint = f"{fault.hint}; {mended}" if fault.hint else mended
        raise
    except BaseException as error:
        reason = error.message if isinstance(error, PgcliError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # of a disk that is full, say, only the first word counts
            directory.set_status("failed", iteration=counters.iteration, reason=reason)
        raise
    target = config.evaluation.stop_at_return
    solved = last is not None and target is not None and last.returns.mean >= target
    reason = f"reached a return of {target:g}" if solved else "used up its budget"
    directory.set_status("finished", iteration=counters.iteration, reason=reason)
    return Outcome(directory.path, reason, last, directory.best, counters.seconds - started)


def stored_config(path: Path) -> Config:
    """Read the config of the run in `path`."""
    with storage(path):
        there = (path / "config.yaml").is_file()
    if not there:
        what = "has no config.yaml" if is_run(path) else "no run is there"
        raise RunDirectoryError(f"{path}: {what}", "name a run directory that `pgcli train` made")
    return load_config(str(path / "config.yaml"))


def changes_of(config: Config, stored: Config, path: Path) -> list[str]:
    """List what `config` changes in the run of `path`, as `key=value`; raise RunDirectoryError for what may not."""
    before, after = flat(_of_the_result(stored)), flat(_of_the_result(config))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    refused = [key for key in changed if not key.startswith(CHANGEABLE)]
    if refused:
        raise RunDirectoryError(
            f"{path}: its run has another {', '.join(refused)}",
            "a run keeps these for life; train into another --run-dir, or --overwrite this one",
        )
    return [f"{key}={after.get(key)}" for key in changed]


def is_exact(config: Config, changes: list[str]) -> bool:
    """Say whether a run with these changes goes on as if it had had them from the start."""
    rescheduled = not has_constant_schedules(config) and any(change.startswith(BUDGETS) for change in changes)
    return all(change.startswith(HARMLESS) for change in changes) and not rescheduled


def has_constant_schedules(config: Config) -> bool:
    """Say whether nothing depends on how much of the budget is used."""
    algorithm = config.algorithm
    schedules = {config.optimizer.schedule, algorithm.clip_range_schedule, algorithm.entropy_coef_schedule}
    return schedules == {"constant"}


def _of_the_result(config: Config) -> dict[str, Any]:
    """Give the config as plain data, without what other tools are given: a checkpoint is the same with and without."""
    return {key: value for key, value in to_data(config).items() if key != "logging"}
