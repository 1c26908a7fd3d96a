"""The trials of a search, in a study of Optuna: a journal in the study folder, or a database.

Each trial is written with all its values in one step. Its values depend on the number of the trial and on earlier
trials only, so a search that was killed draws the same ones again. The process that works on a trial locks the folder
of its runs; a trial whose folder is not locked is continued by the next process.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from pgcli.errors import RunDirectoryError, RunInUse, UsageError
from pgcli.runs.files import make_folder, open_file, storage
from pgcli.runs.lock import lock
from pgcli.seeding import Purpose, derived_seed
from pgcli.studies.search import FILES, REDUCTION, Search
from pgcli.studies.spaces import grid_point
from pgcli.studies.variants import Variant

STARTUP_TRIALS = 5  # complete trials before the median pruner prunes


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on, with the lock of its folder."""

    number: int
    variant: Variant
    before: int  # trials of a lower number are the history that the trial depends on
    lock: ExitStack


class Trials:
    """The trials of one search. Several processes may use them at a time."""

    def __init__(self, search: Search, study: optuna.Study, backend: BaseStorage, place: str) -> None:
        self._search, self._study, self._storage, self._place = search, study, backend, place

    @property
    def all(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    @property
    def unfinished(self) -> list[FrozenTrial]:
        """Trials that a process of this folder works on, or worked on when it was killed."""
        running = [trial for trial in self.all if trial.state == TrialState.RUNNING]
        return [trial for trial in running if trial.user_attrs.get("place", "") == self._place]

    def claim(self, count: int) -> list[Claim]:
        """Return up to `count` trials to work on: unfinished ones of no process, or new ones.

        New trials are drawn in batches of `count`, which have one history: the trials before the batch.
        """
        claims = list[Claim]()
        with lock(self._search.folder, wait=True):
            for trial in self.unfinished:
                if len(claims) < count:
                    claims += self._locked(trial, count)
            number = len(self.all)
            while number < self._search.trials and len(claims) < count:
                if claims and number // count != claims[0].number // count:
                    break
                claims += self._locked(self._create(number, number - number % count), count)
                number += 1
        return claims

    def _locked(self, trial: FrozenTrial, count: int) -> list[Claim]:
        """Lock the folder of a trial and return it, unless another process works on it or finished it."""
        variant = self._search.variant(trial.params)
        home, held = variant.runs[0][1].parent, ExitStack()
        with storage(home):
            make_folder(home)
        try:
            held.enter_context(lock(home))
        except RunInUse:
            return []
        if self.all[trial.number].state.is_finished():
            held.close()
            return []
        return [Claim(trial.number, variant, trial.number - trial.number % count, held)]

    def _create(self, number: int, before: int) -> FrozenTrial:
        """Add a trial with the values that the sampler draws from the trials below `before`."""
        search = self._search
        distributions = {key: space.distribution() for key, space in search.spaces.items()}
        if search.sampler == "grid":
            values = grid_point(search.spaces, number)
        else:
            known = [trial for trial in self.all[:before] if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            with _quiet():
                memory = optuna.create_study(direction="maximize", sampler=self._sampler(number))
                memory.add_trials(known)
                drawn = memory.ask(distributions).params
            values = {key: space.rounded(drawn[key]) for key, space in search.spaces.items()}
        attributes = {"place": self._place} if self._place else {}
        trial = create_trial(
            state=TrialState.RUNNING, params=values, distributions=distributions, user_attrs=attributes
        )
        study = self._storage.get_study_id_from_name(search.name)
        return self._storage.get_trial(self._storage.create_new_trial(study, template_trial=trial))

    def _sampler(self, number: int) -> BaseSampler:
        place = zlib.crc32(self._place.encode())  # two machines may draw at the same time
        seed = derived_seed(self._search.start.seed, Purpose.SEARCH, number, place) % 2**32
        return RandomSampler(seed) if self._search.sampler == "random" else TPESampler(seed=seed, constant_liar=False)

    def is_worse(self, claim: Claim, values: dict[int, float]) -> bool:
        """Record a trial's values at env steps, and return whether the pruner ends it at the last one.

        The pruner compares it with the trials below `claim.before`.
        """
        trial = self.all[claim.number]
        for step, value in values.items():
            if step not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(self._id(claim.number), step, value)
        is_known = [one.state.is_finished() and one.number < claim.before for one in self.all[: claim.number]]
        blank = create_trial(state=TrialState.RUNNING)
        history = [one if known else blank for one, known in zip(self.all, is_known, strict=False)]
        rungs, answer = dict[str, Any](), False
        for last in values:  # again from the first one, so that a killed search decides alike
            seen = {step: value for step, value in values.items() if step <= last}
            with _quiet():
                memory = optuna.create_study(direction="maximize", study_name=self._search.name)
                own = create_trial(state=TrialState.RUNNING, intermediate_values=seen, system_attrs=rungs)
                memory.add_trials([*history, own])
                answer = self._pruner().prune(memory, memory.trials[-1])
                rungs = memory.trials[-1].system_attrs
        for name, value in rungs.items():
            if name not in trial.system_attrs:
                self._storage.set_trial_system_attr(self._id(claim.number), name, value)
        return answer

    def _pruner(self) -> optuna.pruners.BasePruner:
        if self._search.pruner == "median":
            return optuna.pruners.MedianPruner(STARTUP_TRIALS)
        return optuna.pruners.HyperbandPruner(self._search.rungs[0], self._search.env_steps, REDUCTION)

    def finish(self, claim: Claim, state: TrialState, value: float | None = None, reason: str = "") -> None:
        """Record the result of a trial: complete with its value, or pruned or failed with a reason."""
        if reason:
            self._storage.set_trial_user_attr(self._id(claim.number), "reason", reason)
        self._study.tell(claim.number, value, state)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._search.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages and warnings of Optuna."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def importances(search: Search, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the share of each key in the spread of the best trials, by PED-ANOVA; empty with few trials."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len({trial.value for trial in complete}) < 2:
        return {}
    with _quiet():
        memory = optuna.create_study(direction="maximize")
        memory.add_trials(complete)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(memory, evaluator=evaluator)
    return {key: float(found.get(key, 0.0)) for key in search.spaces}


# Storage


def open_trials(search: Search, url: str | None) -> tuple[Trials, list[str]]:
    """Open the trials of a search, or create them. The caller has locked the folder.

    Returns: the trials and notices.
    Raises: RunDirectoryError for a damaged journal; UsageError for a database that cannot be opened.
    """
    path = search.folder / FILES[0]
    if url is not None:
        place = f"{platform.node()}:{search.folder.absolute()}"
        try:
            return Trials(search, *_created(search, RDBStorage(url)), place), []
        except Exception as error:  # of SQLAlchemy, of a driver, or of the network
            first = str(error).strip().partition("\n")[0].replace(url, "…")
            raise UsageError(
                f"--storage: cannot be opened: {first}",
                "for example sqlite:///search.db; without it, a journal is used",
            ) from None
    with storage(path):
        notices = _checked(path)
    try:
        backend = JournalStorage(JournalFileBackend(str(path), _JournalLock(path)))
        return Trials(search, *_created(search, backend), ""), notices
    except (KeyError, ValueError, TypeError, AssertionError, AttributeError) as error:
        what = f"{path}: not a journal of Optuna: {type(error).__name__} {error}"
        raise RunDirectoryError(what, "choose another folder with -o") from None


def _created(search: Search, backend: BaseStorage) -> tuple[optuna.Study, BaseStorage]:
    with _quiet():
        study = optuna.create_study(storage=backend, study_name=search.name, direction="maximize", load_if_exists=True)
    return study, backend


def _checked(path: Path) -> list[str]:
    """Cut off an incomplete end of the journal, and return a notice of it.

    Raises: RunDirectoryError for damage that is followed by whole lines.
    """
    if not path.exists():
        return []
    with open_file(path) as file:
        lines = file.read().splitlines(keepends=True)
    bad = next((at for at, line in enumerate(lines) if not _is_entry(line)), len(lines))
    if any(map(_is_entry, lines[bad + 1 :])):
        raise RunDirectoryError(f"{path}: line {bad + 1} is damaged", "choose another folder with -o")
    if bad == len(lines):
        return []
    os.truncate(path, sum(map(len, lines[:bad])))
    return [f"{path}: the incomplete line at its end was removed; its trial continues"]


def _is_entry(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


class _JournalLock(JournalFileOpenLock):
    """Locks the journal while Optuna appends to it. The system unlocks it when the process is killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._descriptor = path, -1

    def acquire(self) -> bool:
        """Wait for the lock, and cut off the incomplete line of a process that was killed."""
        from filelock import lock_descriptor

        self._descriptor = os.open(self._path, os.O_RDWR)
        lock_descriptor(self._descriptor, blocking=True)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.ftruncate(self._descriptor, os.pread(self._descriptor, size, 0).rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Unlock the journal."""
        os.close(self._descriptor)
