"""`pgcli verify`: check a run's files for consistency, and recompute iterations byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise, zip_longest
from math import fsum, isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pgcli.config import Config
from pgcli.errors import CheckpointError, PgcliError, RunDirectoryError, counted
from pgcli.experiment.load import refuse_foreign_modules
from pgcli.experiment.repeat import changed_iterations, follows_the_clock, repeated, without_clock
from pgcli.experiment.resume import changes_of
from pgcli.experiment.user_code import digest_of
from pgcli.records import Evaluation, Iteration, Notice
from pgcli.report.text import Finding, table
from pgcli.runs import checkpoints
from pgcli.runs.digests import DIGESTS, ITSELF, changed_files, is_sealed
from pgcli.runs.directory import is_run
from pgcli.runs.files import MAX_JSON_BYTES, open_file, storage
from pgcli.runs.information import config_of_run, find_run_hint, read_information, read_status, recorded_start
from pgcli.runs.lock import lock_to_read
from pgcli.runs.tables import Table, as_csv, more_of, read_table, rows_of, table_file, tables_of
from pgcli.sampling.segments import in_todays_form
from pgcli.system.packages import versions
from pgcli.training.evaluation import Evaluator
from pgcli.training.loop import train

Array = NDArray[np.float64]
Checkpoints = dict[Path, checkpoints.Checkpoint]


def verify(path: Path, *, everything: bool = False, trust: bool = False) -> dict[str, Any]:
    """Verify the run in `path` and return the object that `pgcli verify --json` prints. Writes nothing.

    Recomputes one iteration, from the newest checkpoint that has an iteration after it; with `everything`, all
    iterations from the oldest checkpoint. `unreadable` has an error for each file that cannot be checked.
    Raises: RunDirectoryError without a run; RunInUse during training; EnvironmentFailure for modules outside
    Gymnasium, without `trust`.
    """
    if not is_run(path):
        raise RunDirectoryError(f"{path}: not a run directory", find_run_hint(path))
    with lock_to_read(path):
        config = config_of_run(path)
        if not trust:
            refuse_foreign_modules(config, path)
        unreadable = list(_unreadable(path, config))
        findings = [Finding("failed", text) for text in unreadable]
        tables, kept, recomputed = _Tables(path), Checkpoints(), list[int]()
        _check(findings, _compare_digests(path))
        _check(findings, _read_checkpoints(path, config, kept))
        _check(findings, _compare_tables(path, config, tables))
        _check(findings, _compare_evaluations(tables))
        if tables.has_gradients or config.diagnostics.every is not None:
            _check(findings, _compare_gradients(path, config, tables))
        _check(findings, _compare_checkpoints(path, kept, tables))
        _check(findings, _compare_status(path, tables))
        _check(findings, _compare_start(path, kept))
        _check(findings, _compare_user_code(path))
        if not any(finding.level == "failed" for finding in findings):
            _check(findings, _recompute(path, config, kept, tables, everything, recomputed))
            _check(findings, _recompute_evaluation(path, config, kept, tables))
    return {
        "run": str(path),
        "passed": not any(finding.level == "failed" for finding in findings),
        "unreadable": unreadable,
        "rows": tables.rows,
        "checkpoints": [checkpoints.iteration_of(file) for file in kept],
        "recomputed": recomputed,
        "findings": [finding.select("level", "text") for finding in findings],
    }


def verification_text(result: dict[str, Any]) -> str:
    """Return the findings of a verification as text in 80 columns."""
    rows = ((finding["level"], finding["text"]) for finding in result["findings"])
    return "\n".join([result["run"], *table(rows, 8)])


def _check(findings: list[Finding], found: Iterator[Finding]) -> None:
    """Add the findings of a check, up to its first error; skip those that an earlier check has added."""
    try:
        findings += [finding for finding in found if finding not in findings]
    except PgcliError as error:
        failed = Finding("failed", error.message)
        findings += [] if failed in findings else [failed]


# ------------------------------------------------------------------------------------------------------------ reading
def _unreadable(path: Path, config: Config) -> Iterator[str]:
    """Yield an error for each file that is missing, not regular, or not JSON of the expected types."""
    folder = path / "checkpoints"
    files: list[tuple[Callable[[Path], object], Path]] = [(read_information, path), (read_status, path)]
    pointers = (folder / name for name in ("latest.json", "best.json"))
    files += [(checkpoints.target_of, pointer) for pointer in pointers if os.path.lexists(pointer)]
    files += [(_open, path / f"{name}.csv") for name in tables_of(config)]
    kept = checkpoints.list_checkpoints(folder)
    files += [(_open, file) for file in kept]
    for read, file in files:
        try:
            with storage(file):
                read(file)
        except RunDirectoryError as error:
            yield error.message
    if not kept:
        yield f"{folder}: has no checkpoint"


def _open(file: Path) -> None:
    with table_file(file) if file.suffix == ".csv" else open_file(file):
        pass


class _Tables:
    """The tables of a run; each is read once. Attributes: rows, the number of rows by table."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, int] = {}
        self.has_gradients = (path / "gradients.csv").exists()
        self._path, self._tables = path, dict[str, Table]()

    def __getitem__(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = read_table(self._path / f"{name}.csv", None)
            self.rows[name] = self._tables[name].rows
            _check_columns(name, self._tables[name].header)
        return self._tables[name]

    def cut(self) -> Iterator[str]:
        """Yield the names of the tables that end with an incomplete line."""
        return (name for name, one in self._tables.items() if one.cut)


def _check_columns(name: str, header: list[str]) -> None:
    if more_of(name, header) is None:
        raise RunDirectoryError(f"{name}.csv: the first columns are not those that pgcli writes")


class _Recorded(NamedTuple):
    """The header of a table, and its rows from an iteration on."""

    header: list[str]
    rows: dict[int, list[list[str]]]

    @staticmethod
    def read(path: Path, name: str, since: int) -> _Recorded:
        """Read a table; skip blocks before `since` by their last lines."""
        rows = dict[int, list[list[str]]]()
        with table_file(path / f"{name}.csv") as file:
            for lines in file.blocks():
                if _iteration(lines.rpartition(b"\n")[2]) >= since:
                    for line in lines.split(b"\n"):
                        if (number := _iteration(line)) >= since:
                            rows.setdefault(number, []).append(line.decode().split(","))
        return _Recorded(file.header, rows)


def _iteration(line: bytes) -> int:
    return int(line.partition(b",")[0])


def _read_checkpoints(path: Path, config: Config, kept: Checkpoints) -> Iterator[Finding]:
    """Load every checkpoint into `kept`; yield the errors of damaged ones."""
    for file in checkpoints.list_checkpoints(path / "checkpoints"):
        try:
            checkpoint = checkpoints.load(file)
            changes_of(config, checkpoint.read_config(str(file)), path)
            kept[file] = checkpoint
        except PgcliError as error:
            yield Finding("failed", error.message)


# -------------------------------------------------------------------------------------------------------- consistency
def _first(wrong: NDArray[np.bool_]) -> int | None:
    """Return the index of the first True; None without one."""
    return int(np.argmax(wrong)) if wrong.any() else None


def _compare_digests(path: Path) -> Iterator[Finding]:
    """Compare the files of an ended run with their digests in status.json."""
    status = read_status(path)
    if not {DIGESTS, ITSELF} & status.keys():
        if status["status"] != "running":
            yield Finding("note", "status.json has no digests: it was written by an earlier version of pgcli")
        return
    with open_file(path / "status.json") as file:
        content = file.read(MAX_JSON_BYTES)
    changed = [] if is_sealed(content, status) else ["status.json: changed since the run wrote it"]
    changed += changed_files(path, status.get(DIGESTS, {}))
    for sentence in changed:
        yield Finding("failed", sentence)
    if not changed and DIGESTS in status:
        yield Finding("ok", f"{len(status[DIGESTS]) + 1} files are unchanged since the run (sha256)")


def _compare_tables(path: Path, config: Config, tables: _Tables) -> Iterator[Finding]:
    metrics = tables["metrics"]
    for name in ("metrics", "timing"):
        numbers = tables[name]["iteration"]
        if (n := _first(numbers != np.arange(len(numbers)))) is not None:
            raise RunDirectoryError(f"{name}.csv: line {n + 2}: iteration is {_shown(numbers[n])}, expected {n}")
    episodes = _collect(path / "episodes.csv", metrics.rows)
    tables.rows["episodes"] = episodes.rows
    steps = np.diff(metrics["env_steps"], prepend=0.0)
    expected: dict[str, Array] = {
        "episodes": episodes.ended,
        "return_mean": episodes.return_mean,
        "discounted_return_mean": episodes.discounted_return_mean,
        "env_steps": metrics["env_steps"] - steps + episodes.length,
    }
    if not config.rollout.episodes:  # a segment has steps of episodes that have not ended
        expected["env_steps"] = np.where(steps > 0, metrics["env_steps"], metrics["env_steps"] - steps + 1)
    for name, column in expected.items():
        if (n := _first((metrics[name] != column) & ~(np.isnan(metrics[name]) & np.isnan(column)))) is not None:
            found, other = (_shown(one[n]) for one in (metrics[name], column))
            raise RunDirectoryError(
                f"metrics.csv: line {n + 2} (iteration {n}): {name} is {found}, but {other} according to episodes.csv"
            )
    count = int(episodes.ended[-1]) if metrics.rows else 0
    yield Finding(
        "ok", f"{counted(metrics.rows, 'iteration')} and {counted(count, 'episode')}: complete and consistent"
    )


class _Episodes(NamedTuple):
    """Statistics of episodes.csv by iteration, [iterations]; nan if no episode ended."""

    rows: int
    ended: Array  # so far
    return_mean: Array
    discounted_return_mean: Array
    length: Array  # sum


def _collect(file: Path, iterations: int) -> _Episodes:
    """Read episodes.csv block by block, and compute the statistics of each iteration."""
    counts, means, discounted, lengths = (np.zeros(iterations + 1) for _ in range(4))
    means[:], discounted[:] = np.nan, np.nan
    number, last = 0, -1

    def add(iteration: int, returns: Array, weighted: Array, steps: Array) -> None:
        counts[iteration], lengths[iteration] = len(returns), steps.sum()
        means[iteration] = returns.sum() / len(returns)
        discounted[iteration] = fsum(weighted.tolist()) / len(weighted)

    names = ("return", "discounted_return", "length")
    waiting: list[Array] = [np.empty(0) for _ in names]  # of the last iteration, which may continue in the next block
    with table_file(file) as table_of_episodes:
        _check_columns("episodes", table_of_episodes.header)
        for block in table_of_episodes.read(table_of_episodes.columns(("episode", *names))):
            k, episodes = block["iteration"], block["episode"]
            wrong = (episodes != np.arange(number, number + len(k))) | (np.diff(k, prepend=last) < 0)
            if (n := _first(wrong)) is not None:
                found = f"episode {_shown(episodes[n])} of iteration {_shown(k[n])}"
                raise RunDirectoryError(
                    f"episodes.csv: line {number + n + 2}: {found} follows episode {number + n - 1}"
                )
            if k[-1] > iterations:
                raise RunDirectoryError(
                    f"episodes.csv: has iteration {_shown(k[-1])}, but metrics.csv has {counted(iterations, 'row')}"
                )
            parts = [np.concatenate([old, block[name]]) for old, name in zip(waiting, names, strict=True)]
            k = np.concatenate([np.full(len(waiting[0]), last), k])
            starts = np.flatnonzero(np.diff(k, prepend=-1)).tolist()
            for start, end in pairwise(starts):
                add(int(k[start]), *(part[start:end] for part in parts))
            waiting = [part[starts[-1] :].copy() for part in parts]
            number, last = number + len(episodes), int(k[-1])
    if number:
        add(last, *waiting)
    return _Episodes(number, np.cumsum(counts)[:-1], means[:-1], discounted[:-1], lengths[:-1])


def _shown(value: float) -> str:
    return "empty" if isnan(value) else f"{value:.0f}" if value.is_integer() else repr(float(value))


def _compare_evaluations(tables: _Tables) -> Iterator[Finding]:
    evaluations, steps = tables["evaluations"], tables["metrics"]["env_steps"]
    at, found = evaluations["iteration"].astype(np.int64), evaluations["env_steps"]
    repeated_stop = evaluations.words.get("stopped_by", np.full(len(at), "")) != ""  # on new episodes, after a stop
    if (n := _first(np.diff(at, prepend=-1) < np.where(repeated_stop, 0, 1))) is not None:
        raise RunDirectoryError(f"evaluations.csv: line {n + 2}: iteration {at[n]} follows {at[n - 1]}")
    before = np.concatenate(([0.0], steps))
    if (n := _first((at > len(steps)) | (found != before[np.minimum(at, len(steps))]))) is not None:
        raise RunDirectoryError(
            f"evaluations.csv: line {n + 2}: env_steps is {_shown(found[n])}, which differs from metrics.csv "
            f"after {counted(at[n], 'iteration')}"
        )
    yield Finding("ok", f"{counted(len(at), 'evaluation')} checked against metrics.csv")


def _changed_at(path: Path, section: str) -> list[int]:
    """Return the iterations at which a resume changed a section of the config."""
    resumes = read_information(path).get("resumes", [])
    return [one["iteration"] for one in resumes if any(change.startswith(section) for change in one["overrides"])]


def _compare_gradients(path: Path, config: Config, tables: _Tables) -> Iterator[Finding]:
    gradients, metrics = tables["gradients"], tables["metrics"]
    at, names = gradients["iteration"].astype(np.int64), gradients.words["estimator"]
    since = max(_changed_at(path, "diagnostics."), default=0)  # diagnostics of the config apply from here on
    if _first(np.diff(at, prepend=0) < 0) is not None:
        raise RunDirectoryError("gradients.csv: iterations are not in order")
    if _first(at > metrics.rows) is not None:
        raise RunDirectoryError("gradients.csv: has more iterations than metrics.csv")
    measured = range(0, metrics.rows, config.diagnostics.every) if config.diagnostics.every else ()
    estimators = [config.estimator, *config.diagnostics.shadows]
    expected = [(number, name) for number in measured for name in estimators if number >= since]
    known = (since <= at) & (at < metrics.rows)  # the last iteration has no update, after a kill
    for pair in zip_longest(zip(at[known].tolist(), names[known], strict=True), expected):
        if pair[0] != pair[1]:
            number = min(one[0] for one in pair if one)
            found = ", ".join(names[at == number]) or "no rows"
            raise RunDirectoryError(f"gradients.csv: iteration {number} has {found}, expected {', '.join(estimators)}")
    updates = {name: np.append(metrics[name], np.nan)[at] for name in ("env_steps", "grad_norm")}
    if (n := _first((at < metrics.rows) & (gradients["env_steps"] != updates["env_steps"]))) is not None:
        raise RunDirectoryError(f"gradients.csv: the env_steps of iteration {at[n]} differ from metrics.csv")
    if (n := _first(~_agree(gradients))) is not None:
        raise RunDirectoryError(f"gradients.csv: the columns of {names[n]} in iteration {at[n]} contradict each other")
    norm, rounding = gradients["gradient_norm"], 1e-3 * gradients["trajectory_variance"] ** 0.5  # of canceling terms
    close = np.isclose(norm, updates["grad_norm"], rtol=1e-2, atol=rounding + 1e-9)
    if (
        _is_plain(config)
        and (n := _first(known & (names == config.estimator) & ~np.isnan(rounding) & ~close)) is not None
    ):
        raise RunDirectoryError(
            f"gradients.csv: the gradient_norm of iteration {at[n]} differs from grad_norm in metrics.csv"
        )
    yield Finding("ok", f"{counted(len(np.unique(at)), 'iteration')} of gradients.csv checked against metrics.csv")


def _agree(gradients: Table) -> NDArray[np.bool_]:
    """Return by row whether |g|² = (snr + 1) v and trajectory_variance = N v; ignore empty cells."""
    norm, v, of_one, snr, count = (
        gradients[name] for name in ("gradient_norm", "gradient_variance", "trajectory_variance", "snr", "trajectories")
    )
    with np.errstate(all="ignore"):
        first = np.isclose(norm**2, (snr + 1) * v, rtol=1e-9, atol=0)
        second = np.isclose(count * v, of_one, rtol=1e-9, atol=0)
        infinite = np.any([np.isinf(column) for column in gradients.numbers.values()], axis=0)
        agree: NDArray[np.bool_] = ~infinite & (first & second | np.isnan(norm + v + of_one + snr))
    return agree


def _is_plain(config: Config) -> bool:
    """Return whether an update is one step along the gradient of the policy objective."""
    algorithm = config.algorithm
    shared = config.has_value and (config.value.shared_trunk or config.optimizer.clip_gradients == "together")
    one_step = algorithm.update_epochs == algorithm.num_minibatches == 1
    return one_step and algorithm.entropy_coef == algorithm.kl_coef == 0 and not shared


def _compare_checkpoints(path: Path, kept: Checkpoints, tables: _Tables) -> Iterator[Finding]:
    metrics, folder = tables["metrics"], path / "checkpoints"
    if not kept:
        raise RunDirectoryError(f"{folder}: has no readable checkpoint")
    for file, checkpoint in kept.items():
        counters, number = checkpoint.counters, checkpoint.counters["iteration"]
        if number > metrics.rows:
            raise RunDirectoryError(
                f"{file}: is the state after {counted(number, 'iteration')}, "
                f"but metrics.csv has {counted(metrics.rows, 'row')}"
            )
        for name in ("env_steps", "episodes"):
            if counters[name] != (metrics[name][number - 1] if number else 0):
                raise RunDirectoryError(f"{file}: its {name} are {counters[name]}, which differs from metrics.csv")
    names = ", ".join(str(checkpoints.iteration_of(file)) for file in kept)
    yield Finding("ok", f"checkpoints {names}: checksums match, and counters agree with metrics.csv")
    if not (folder / "latest.json").exists():
        yield Finding("note", "latest.json is missing: the newest checkpoint is used")
    elif checkpoints.follow(folder / "latest.json") != max(kept, key=checkpoints.iteration_of):
        yield Finding("note", "latest.json does not point to the newest checkpoint, as after a kill")
    if (folder / "best.json").exists():
        best, found = checkpoints.iteration_of(checkpoints.follow(folder / "best.json")), tables["evaluations"]
        found = found.pick(found.words.get("stopped_by", np.full(found.rows, "")) == "")
        highest = found["iteration"][found["return_mean"] == found["return_mean"].max(initial=-np.inf)]
        if best not in highest:
            yield Finding("note", f"best.json points to iteration {best}, which is not the best in evaluations.csv")


def _compare_start(path: Path, kept: Checkpoints) -> Iterator[Finding]:
    """Compare the first weights of a run with the checkpoint that they came from, if it still exists."""
    if (start := recorded_start(path)) is None:
        return
    file, source = path / "checkpoints" / checkpoints.file_name(0), Path(start.checkpoint)
    if file not in kept:
        raise RunDirectoryError(f"{file}: is missing; the run started from it, a copy of {start}")
    try:
        found = checkpoints.load(source).agent if checkpoints.digest_of(source) == start.sha256 else None
    except CheckpointError as error:
        yield Finding("note", f"the run started from {start}, which cannot be compared: {error.message}")
        return
    if found is None:
        yield Finding("note", f"the run started from {start}, which has changed since; the run has its own copy")
        return
    for name, tensor in kept[file].agent.items():
        if name.startswith(("policy.", "value.")) and name in found and not tensor.equal(found[name]):
            raise RunDirectoryError(f"{file}: {name} differs from {start}, which the run started from")
    yield Finding("ok", f"the run started with the weights of {start}")


def _compare_status(path: Path, tables: _Tables) -> Iterator[Finding]:
    run, status, iterations = read_information(path), read_status(path), tables["metrics"].rows
    state, number = status["status"], status.get("iteration")
    for name in tables.cut():
        yield Finding("note", f"{name}.csv ends with an incomplete line; resuming removes it")
    if state == "running":
        yield Finding("note", "the run was killed; `pgcli resume` continues from the newest checkpoint")
    elif number != iterations:
        raise RunDirectoryError(
            f"status.json: {state} after {number} iterations, but metrics.csv has {counted(iterations, 'row')}"
        )
    if not run.get("exact", True):
        yield Finding(
            "note",
            "run.json: exact is false: the run was resumed with changes, or its environments could not be restored",
        )
    here = versions()
    for name, recorded in run.get("versions", {}).items():
        if recorded != (installed := here.get(name)):
            yield Finding("note", f"trained with {name} {recorded}, verified with {installed}: last digits may differ")


def _compare_user_code(path: Path) -> Iterator[Finding]:
    """Compare the user's files with their digests in run.json, without executing them."""
    recorded = read_information(path).get("user_code", {})
    found = {file: digest_of(Path(file)) for file in recorded}
    for file, digest in recorded.items():
        if found[file] is None:
            yield Finding("note", f"{file}, which the run imported, is not readable from here: not compared")
        elif found[file] != digest:
            yield Finding("note", f"{file} has changed since the run last started: results may differ")
    if same := sum(found[file] == digest for file, digest in recorded.items()):
        yield Finding("ok", f"{same} {'file' if same == 1 else 'files'} of the user's code: unchanged")


# --------------------------------------------------------------------------------------------------------- repetition
def _recompute(
    path: Path, config: Config, kept: Checkpoints, tables: _Tables, everything: bool, recomputed: list[int]
) -> Iterator[Finding]:
    if config.algorithm.estimator is not None:
        yield Finding("note", "the user's estimator was not loaded: no iteration recomputed")
        return
    last = tables["metrics"].rows
    changed = max(changed_iterations(path, config), default=0)  # config.yaml applies from here on
    starts = [file for file, one in kept.items() if changed <= one.counters["iteration"] < last]
    if not starts:
        yield Finding(
            "note", "no checkpoint is followed by an iteration with the current config: no iteration recomputed"
        )
        return
    if follows_the_clock(config):
        yield Finding("note", "schedules depend on elapsed time: no iteration recomputed")
        return
    since = max(_changed_at(path, "diagnostics."), default=0)
    file = min(starts) if everything else max(starts)
    first, name = kept[file].counters["iteration"], file.name
    names = ["metrics", "episodes", "evaluations", *(["gradients"] if tables.has_gradients else [])]
    recorded = {name: _Recorded.read(path, name, first) for name in names}
    with repeated(path, without_clock(config.without_stopping(), last), file) as (run, lost):
        if lost:
            yield Finding("note", f"{counted(lost, 'environment')} not reproducible: no iteration recomputed")
            return
        for record in train(run):
            if not isinstance(record, Notice):
                _compare(record, recorded, since)
            if isinstance(record, Iteration):
                recomputed.append(record.iteration)
                later = path / "checkpoints" / checkpoints.file_name(run.counters.iteration)
                if later in kept:
                    tensors = run.learner.state_dict() | run.sampler.state_dict(run.counters.iteration)
                    saved = in_todays_form(kept[later].tensors, run.learner.policy.encoder.layout)
                    _compare_tensors(later, saved, tensors)
                if run.counters.iteration == (last if everything else first + 1):
                    break
    which = f"iteration {first}" if len(recomputed) == 1 else f"iterations {first} to {recomputed[-1]}"
    yield Finding("ok", f"{which}, recomputed from {name}: identical, byte for byte")


def _recompute_evaluation(path: Path, config: Config, kept: Checkpoints, tables: _Tables) -> Iterator[Finding]:
    """Repeat the evaluation in the last row of evaluations.csv, if its checkpoint exists."""
    evaluations = tables["evaluations"]
    if not evaluations.rows:
        return
    number = int(evaluations["iteration"][-1])
    stopped_by = evaluations.words["stopped_by"][-1] if "stopped_by" in evaluations.words else ""
    file = path / "checkpoints" / checkpoints.file_name(number)
    if file not in kept:
        yield Finding(
            "note", f"the last evaluation, after {counted(number, 'iteration')}, has no checkpoint: not recomputed"
        )
        return
    if any(iteration >= number for iteration in _changed_at(path, "evaluation.")):
        yield Finding(
            "note",
            f"the evaluation settings changed after {counted(number, 'iteration')}, the last row: not recomputed",
        )
        return
    with repeated(path, without_clock(config, max(tables["metrics"].rows, 1)), file) as (run, _):
        again = Evaluator(config, run.executor).evaluate(
            run.learner.policy, number, run.counters.env_steps, lambda: None, stopped_by
        )
    _compare(again, {"evaluations": _Recorded.read(path, "evaluations", number)}, number)
    yield Finding(
        "ok", f"the last evaluation, after {counted(number, 'iteration')}, recomputed: identical, byte for byte"
    )


def _compare(record: Iteration | Evaluation, recorded: dict[str, _Recorded], since: int) -> None:
    """Raise RunDirectoryError unless a recomputed record has the same bytes as its rows in the tables.

    A resume may change the schedule of evaluations and gradients; gradients are compared from `since` on.
    """
    more = {name: more_of(name, one.header) or () for name, one in recorded.items()}
    for name, again in rows_of(record, more).items():
        if name == "timing" or not again or (name == "gradients" and record.iteration < since):
            continue
        header, rows = recorded[name].header, recorded[name].rows.get(record.iteration, [])
        if isinstance(record, Evaluation) and "stopped_by" in header:
            rows = [row for row in rows if row[header.index("stopped_by")] == record.stopped_by]
        if not rows and name in ("evaluations", "gradients"):
            continue
        lines, where = as_csv(again).splitlines(), f"{name}.csv: iteration {record.iteration} has"
        if len(rows) != len(lines):
            raise RunDirectoryError(f"{where} {counted(len(rows), 'row')}, but recomputed it has {len(lines)}")
        for row, line in zip(rows, lines, strict=True):
            for column, cell, found in zip(header, row, line.split(","), strict=True):
                if cell != found:
                    what = f"{column} {cell or 'empty'}, but recomputed it is {found or 'empty'}"
                    raise RunDirectoryError(f"{where} {what}")


def _compare_tensors(file: Path, saved: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    checkpoints.check_tensors(saved, again, str(file))
    for name, tensor in again.items():
        if name in saved and tensor.contiguous().numpy().tobytes() != saved[name].contiguous().numpy().tobytes():
            raise RunDirectoryError(f"{file}: {name} differs from the recomputed state")
