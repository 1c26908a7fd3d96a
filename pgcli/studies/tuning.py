"""Run a search: train its trials, write what they show, and confirm the best one on fresh seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from pgcli.config import Config
from pgcli.environments.checks import check_environment
from pgcli.errors import RunDirectoryError, RunInUse
from pgcli.experiment.run import Failure, Request, check_request
from pgcli.report.display import SearchView, make_display
from pgcli.runs.files import json_bytes, make_folder, storage, write_whole
from pgcli.runs.lock import lock
from pgcli.studies.execution import is_complete, run_comparison, train_runs
from pgcli.studies.search import STUDY, Search, check_folder, study_data
from pgcli.studies.search_report import best_of, write_search
from pgcli.studies.summaries import RunSummary, read_run
from pgcli.studies.trials import Claim, Trials, open_trials
from pgcli.studies.variants import Comparison, result_digest, variant_of
from pgcli.system.streams import print_message, results_only

POLL_SECONDS = 0.2
ATTEMPTS = 3  # to train runs whose process is killed
Train = Callable[[Sequence[tuple[Config, Path]], Sequence[str], int | None], list[Failure | Any]]


def run_search(
    search: Search, url: str | None, jobs: int, quiet: bool, command: list[str], stack: int | None, confirm: int
) -> tuple[dict[str, Any], list[Failure]]:
    """Train the missing trials, write the results, and compare the best one with the start config.

    Args: url: of the database with the trials; None: the journal in the folder. confirm: number of fresh seeds.
    Returns: the object of `pgcli tune --json`, and the failed runs of the comparison.
    Raises: Interrupted, after saving the unfinished runs; PgcliError if no trial is complete.
    """
    with results_only():
        check_environment(search.start.env)
        check_request(Request(search.start, search.folder / "runs", command))
        trials = _opened(search, url, quiet, command)
        _train_all(search, trials, jobs, quiet, stack)
    home = search.folder / "confirmation"
    with storage(home):
        make_folder(home)
    with lock(home, wait=True):
        result = write_search(search, trials.all, command)
        best = best_of(trials.all)
        comparison = _confirmation(search, best, confirm, home)
        if comparison is None:
            return result, []
        found, failures = run_comparison(comparison, jobs, quiet, None, command, search.column, stack)
        return result | {"confirmation": found}, failures


def _opened(search: Search, url: str | None, quiet: bool, command: Sequence[str]) -> Trials:
    """Create the folder of a search, or open an existing one. Raises: RunDirectoryError, UsageError."""
    check_folder(search)
    with storage(search.folder):
        make_folder(search.folder)
    with lock(search.folder, wait=True), storage(search.folder):
        check_folder(search)
        if not (search.folder / STUDY).exists():  # first, because it marks the other files as pgcli's
            write_whole(search.folder / STUDY, json_bytes(study_data(search, command)))
        trials, notices = open_trials(search, url)
    for notice in [] if quiet else notices:
        print_message(f"note: {notice}")
    return trials


def _train_all(search: Search, trials: Trials, jobs: int, quiet: bool, stack: int | None) -> None:
    """Train trials until all have ended. Wait for those of other processes."""
    view, size = SearchView(search.trials), -(-jobs // len(search.seeds))
    with closing(make_display(view, quiet)) as display:

        def train(runs: Sequence[tuple[Config, Path]], labels: Sequence[str], until: int | None) -> list[Any]:
            view.begin(labels)
            return list(train_runs(runs, jobs, display.show, stack, until))

        while True:
            view.ended = [_ending(trial) for trial in trials.all if trial.state.is_finished()]
            claims = trials.claim(size)
            try:
                if claims:
                    _train_batch(search, trials, claims, train)
                elif trials.unfinished:
                    time.sleep(POLL_SECONDS)
                else:
                    return
            finally:
                for claim in claims:
                    claim.lock.close()


def _ending(trial: FrozenTrial) -> tuple[str, float | None]:
    return trial.state.name.lower(), trial.value if trial.state == TrialState.COMPLETE else None


def _train_batch(search: Search, trials: Trials, claims: Sequence[Claim], train: Train) -> None:
    """Train trials to each rung, where the pruner may end them, and then to the end of the budget."""
    alive, values = list(claims), {claim.number: dict[int, float]() for claim in claims}
    for rung in (*search.rungs, None):
        failures = _train_to(alive, rung, train)
        for claim in list(alive):
            runs = [read_run(path, seed, search.column) for seed, path in claim.variant.runs]
            value = float(np.mean([_value_at(run, rung) for run in runs]))
            reason = next(filter(None, (_reason(run, failures.get(run.path)) for run in runs)), "")
            if reason or (rung is None and not np.isfinite(value)):
                reason = reason or f"no evaluation has a number in `{search.column}`"
                trials.finish(claim, TrialState.FAIL, reason=reason)
            elif rung is None:
                trials.finish(claim, TrialState.COMPLETE, value)
            else:
                if np.isfinite(value):
                    values[claim.number][rung] = value
                if not trials.is_worse(claim, values[claim.number]):
                    continue
                trials.finish(claim, TrialState.PRUNED, reason=f"pruned at {rung:,} env steps")
            alive.remove(claim)


def _train_to(claims: Sequence[Claim], rung: int | None, train: Train) -> dict[Path, Failure]:
    """Train the runs of trials to a rung, and return those that failed, by path.

    Runs are trained again if their process is killed, or after another process has saved them.
    Raises: RunDirectoryError, Interrupted.
    """
    attempt = 0
    while True:
        todo = [
            (claim.variant.label, run)
            for claim in claims
            for run in Comparison([claim.variant], Path(), None).runs
            if not _has_reached(*run, rung)
        ]
        results = train([run for _, run in todo], [label for label, _ in todo], rung) if todo else []
        failures = {path: one for (_, (_, path)), one in zip(todo, results, strict=True) if isinstance(one, Failure)}
        codes = {failure.exit_code for failure in failures.values()}
        if RunDirectoryError.exit_code in codes:
            unusable = next(one for one in failures.values() if one.exit_code == RunDirectoryError.exit_code)
            message, _, hint = unusable.text.removeprefix("error: ").partition("\nhint: ")
            raise RunDirectoryError(message, hint)
        attempt += max(codes, default=0) > 128
        if RunInUse.exit_code in codes:
            time.sleep(POLL_SECONDS)
        elif max(codes, default=0) <= 128 or attempt == ATTEMPTS:
            return failures


def _has_reached(config: Config, path: Path, rung: int | None) -> bool:
    """Return whether a run is complete, or has trained beyond a rung."""
    if is_complete(config, path):
        return True
    try:
        return rung is not None and read_run(path, config.seed).steps > rung
    except RunDirectoryError:  # which training reports
        return False


def _value_at(run: RunSummary, rung: int | None) -> float:
    """Return the value of the last evaluation of a run, or of the last one up to a rung; nan without any."""
    at = len(run.values) if rung is None else int(np.searchsorted(run.env_steps, rung, "right"))
    return float(run.values[at - 1]) if at else np.nan


def _reason(run: RunSummary, failure: Failure | None) -> str:
    """Return why a run failed, or ""."""
    if run.status in ("diverged", "failed"):
        return f"seed {run.seed} {run.status}: {run.reason}"
    if failure is not None:
        lines = failure.text.strip().splitlines()
        return f"seed {run.seed} failed: " + (lines[0] if failure.text.startswith("error") else lines[-1]).removeprefix(
            "error: "
        )
    return ""


def _confirmation(search: Search, best: FrozenTrial, number: int, home: Path) -> Comparison | None:
    """Plan the comparison of the best trial with the start config on seeds that the search did not use."""
    config = search.variant(best.params).config
    if number == 0 or result_digest(config) == result_digest(search.start):
        return None
    seeds = list(islice((seed for seed in count() if seed not in search.seeds), number))
    variants = [variant_of(label, one, seeds, home) for label, one in (("start", search.start), ("best", config))]
    return Comparison(variants, home, search.env_steps)
