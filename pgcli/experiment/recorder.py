"""Write the records of the training loop to a run directory: rows, checkpoints, status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pgcli.errors import Diverged, EnvironmentFailure, Interrupted, PgcliError, counted, typed
from pgcli.experiment.resume import result_config
from pgcli.records import Evaluation, Iteration, Notice, Record
from pgcli.runs import checkpoints
from pgcli.runs.directory import RunDirectory
from pgcli.sampling.stack import Stack
from pgcli.system.process_state import changes, restore_process
from pgcli.system.processes import Check
from pgcli.training.loop import Training
from pgcli.training.stopping import stop_reason

COLLAPSED = 1e-3  # nats: of two actions, the rarer one has probability 1e-4


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    path: Path
    reason: str
    last: Evaluation | None
    best: tuple[float, int] | None
    seconds: float


@dataclass(frozen=True)
class Context:
    """Callbacks of a run: for records, and to stop or save it."""

    watch: Callable[[Record], None] = lambda record: None
    check: Check = lambda: None  # called before every step; may raise Interrupted
    asked_to_save: Callable[[], bool] = lambda: False  # called after every iteration
    stack: Stack | None = None  # the seeds that this run shares its rollouts with


class Recorder:
    """Writes the records of one session of a run, and passes them to the watcher."""

    def __init__(self, run: Training, directory: RunDirectory, context: Context) -> None:
        self._run, self._directory, self._context = run, directory, context
        self._last: Evaluation | None = None
        self._started = run.counters.seconds
        self._changed = set[str]()
        self._explores = run.learner.policy.distribution.is_discrete

    def save(self, *, best: bool = False) -> None:
        """Save a checkpoint of the state after the last completed iteration. Raises: Diverged."""
        config, counters, learner = self._run.config, self._run.counters, self._run.learner
        learner.check_finite()
        tensors = learner.state_dict() | self._run.sampler.state_dict(counters.iteration)
        progress = {"iteration": counters.iteration, "env_steps": counters.env_steps, "episodes": counters.episodes}
        checkpoint = checkpoints.Checkpoint(result_config(config), progress, tensors)
        self._directory.save(checkpoint, best=best, keep=config.checkpoint.keep, every=config.checkpoint.every)

    def add(self, record: Record) -> None:
        """Write a record, and a checkpoint if one is due."""
        restore_process()
        self._notice_changes()
        every, iteration = self._run.config.checkpoint.every, self._run.counters.iteration
        if isinstance(record, Iteration):
            if lost := self._run.sampler.failed_restores:
                self._directory.mark_inexact()
                self._notice(f"{counted(lost, 'environment')} could not be restored in a new worker: new episodes")
            self._directory.add_iteration(record)
            if self._context.asked_to_save() or (every is not None and iteration % every == 0):
                self.save()
        elif isinstance(record, Evaluation):
            self._last = record
            if self._directory.add_evaluation(record):
                self.save(best=True)
        self._context.watch(record)
        if isinstance(record, Iteration):
            self._watch_entropy(record)
        self._context.check()

    def outcome(self) -> Outcome:
        """Mark the run as finished and return how it ended."""
        counters, rule = self._run.counters, self._last.stopped_by if self._last is not None else ""
        used = counters.used_up(self._run.config.training)
        budget = " and ".join(f"training.{name}={limit}" for name, limit in used.items()) + " reached"
        reason = stop_reason(self._run.config.evaluation, rule) if rule else budget
        return self._ended("finished", reason)

    def pause(self) -> Outcome:
        """Save the run, mark it as interrupted, and return how far it came."""
        self.save()
        return self._ended("interrupted", f"paused after {self._run.counters.env_steps:,} env steps")

    def _ended(self, status: str, reason: str) -> Outcome:
        counters = self._run.counters
        self._directory.set_status(status, iteration=counters.iteration, reason=reason)
        seconds = counters.seconds - self._started
        return Outcome(self._directory.path, reason, self._last, self._directory.best, seconds)

    @contextmanager
    def status(self) -> Iterator[None]:
        """Write the cause of an exception to status.json; add to its hint how to continue."""
        directory, counters = self._directory, self._run.counters
        try:
            try:
                yield
            except (EnvironmentFailure, KeyboardInterrupt, SystemExit):
                self._context.check()  # an environment's own handler of a signal may have raised it
                raise
            finally:
                restore_process()
                self._notice_changes()
        except Interrupted as interruption:
            self.save()
            directory.set_status("interrupted", iteration=counters.iteration, reason=interruption.message)
            interruption.message = (
                f"{directory.path}: {interruption.message} after {counted(counters.iteration, 'iteration')}"
            )
            interruption.hint = f"`pgcli resume {typed(directory.path)}` continues the run"
            raise
        except Diverged as error:  # nothing is saved: the cause is in the state
            directory.set_status("diverged", iteration=counters.iteration, reason=error.message)
            size = self._run.config.optimizer.step_key
            again = f"pgcli resume {typed(directory.path)} {size}=…"
            error.message += f" in iteration {counters.iteration} of {directory.path}"
            error.hint = error.hint.replace("optimizer.learning_rate", size)
            error.hint += f"; `{again}` continues from the last checkpoint"
            raise
        except EnvironmentFailure as fault:
            self.save()
            file = fault.reproduction and directory.add_reproduction(f"episode-{fault.seed}", fault.reproduction)
            directory.set_status("failed", iteration=counters.iteration, reason=fault.message)
            if file:
                hint = f"once it is fixed, `pgcli resume {typed(directory.path)}` continues the run"
                fault.message += f"; {file} reproduces it"
                fault.hint = f"{fault.hint}; {hint}" if fault.hint else hint
            raise
        except BaseException as error:
            reason = error.message if isinstance(error, PgcliError) else f"{type(error).__name__}: {error}"
            with suppress(OSError):  # on a full disk, only the first error counts
                directory.set_status("failed", iteration=directory.iterations, reason=reason)
            raise

    def _watch_entropy(self, record: Iteration) -> None:
        entropy = record.update.entropy
        if self._explores and entropy is not None and entropy < COLLAPSED:
            self._explores = False
            self._notice(
                f"the entropy fell to {entropy:.1g} nats in iteration {record.iteration}: the policy hardly "
                f"explores any more; lower {self._run.config.optimizer.step_key} or raise algorithm.entropy_coef"
            )

    def _notice_changes(self) -> None:
        """Report once each process-wide setting that environments changed and pgcli restored."""
        if names := [name for name in changes() if name not in self._changed]:
            self._changed |= set(names)
            self._notice(f"an environment changed {', '.join(names)}; pgcli restored it for its own work")

    def _notice(self, text: str) -> None:
        self._context.watch(Notice(text))
