"""Verify a run for `pgcli verify`: check its files for consistency, and recompute iterations byte for byte."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import fsum, isclose, isfinite, isnan
from pathlib import Path
from sys import maxsize
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pgcli.config import Config
from pgcli.errors import PgcliError, RunDirectoryError
from pgcli.experiment.load import refuse_foreign_modules
from pgcli.experiment.repeat import changed_iterations, follows_the_clock, repeated, without_clock
from pgcli.experiment.resume import changes_of, stored_config
from pgcli.records import TABLES, Evaluation, Iteration, Notice
from pgcli.report.text import Finding, table
from pgcli.runs import checkpoints
from pgcli.runs.digests import DIGESTS, ITSELF, changed_files, is_sealed
from pgcli.runs.directory import is_run, versions
from pgcli.runs.files import MAX_JSON_BYTES, open_file
from pgcli.runs.information import find_run_hint, read_information, read_status
from pgcli.runs.lock import lock_to_read
from pgcli.runs.tables import as_csv, more_of, read_header, read_table, rows_of, table_file, tables_of
from pgcli.sampling.segments import in_todays_form
from pgcli.training.evaluation import Evaluator
from pgcli.training.loop import train

Row = dict[str, str]
Array = NDArray[np.float64]


class _Failed(Exception):
    """A check failed; the message says where."""


def verify(path: Path, *, everything: bool = False, trust: bool = False) -> dict[str, Any]:
    """Verify the run in `path` and return the object that `pgcli verify --json` prints. Writes nothing.

    Recomputes one iteration, from the newest checkpoint that has an iteration after it; with `everything`, all
    iterations from the oldest checkpoint.
    Raises: RunDirectoryError without a run; RunInUse during training; EnvironmentFailure for modules outside
    Gymnasium, without `trust`.
    """
    if not is_run(path):
        raise RunDirectoryError(f"{path}: not a run directory", find_run_hint(path))
    with lock_to_read(path):
        config = stored_config(path)
        if not trust:
            refuse_foreign_modules(config, path)
        findings: list[Finding] = []
        _check("digests", findings, _compare_digests(path))
        counts = _count_rows(path, config, findings)
        kept = _read_checkpoints(path, config, findings)
        _check("tables", findings, _compare_tables(path, config))
        _check("evaluations", findings, _compare_evaluations(path))
        if "gradients" in counts:
            _check("gradients", findings, _compare_gradients(path, config))
        _check("checkpoints", findings, _compare_checkpoints(path, kept))
        _check("status", findings, _compare_status(path, counts["metrics"]))
        recomputed: list[int] = []
        if not any(finding.level == "failed" for finding in findings):
            _check("iterations", findings, _recompute(path, config, kept, counts["metrics"], everything, recomputed))
            _check("evaluations", findings, _recompute_evaluation(path, config, kept, counts["metrics"]))
    return {
        "run": str(path),
        "passed": not any(finding.level == "failed" for finding in findings),
        "rows": counts,
        "checkpoints": [checkpoints.iteration_of(file) for file in kept],
        "recomputed": recomputed,
        "findings": [finding.select("level", "text") for finding in findings],
    }


def verification_text(result: dict[str, Any]) -> str:
    """Return the findings of a verification as text in 80 columns."""
    rows = ((finding["level"], finding["text"]) for finding in result["findings"])
    return "\n".join([result["run"], *table(rows, 8)])


def _check(name: str, findings: list[Finding], found: Iterator[Finding]) -> None:
    """Add the findings of a check, up to its first failure."""
    try:
        findings += found
    except (_Failed, PgcliError) as error:
        failed = Finding("failed", error.message if isinstance(error, PgcliError) else str(error))
        findings += [] if failed in findings else [failed]
    except OSError as error:
        findings.append(Finding("failed", f"{error.filename}: {error.strerror}"))
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:  # a cell is missing or not a number
        findings.append(Finding("failed", f"the {name} cannot be read: {error}"))


# ------------------------------------------------------------------------------------------------------------ reading
def _count_rows(path: Path, config: Config, findings: list[Finding]) -> dict[str, int]:
    """Return the number of rows of each table; report unreadable tables and wrong columns."""
    counts: dict[str, int] = {}
    for name in TABLES if (path / "gradients.csv").exists() else tables_of(config):
        counts[name] = 0
        try:
            with table_file(path / f"{name}.csv") as file:
                if more_of(name, file.header) is None:
                    raise RunDirectoryError(f"{name}.csv: the first columns are not those that pgcli writes")
                counts[name] = sum(lines.count(b"\n") + 1 for lines in file.blocks())
                if file.cut:
                    findings.append(Finding("note", f"{name}.csv ends with an incomplete line; resuming removes it"))
        except RunDirectoryError as error:
            findings.append(Finding("failed", error.message))
    return counts


def _rows(path: Path, name: str, since: int = 0) -> Iterator[Row]:
    """Yield the rows of a table from an iteration on; skip earlier blocks by their last lines."""
    with table_file(path / f"{name}.csv") as file:
        for lines in file.blocks():
            if int(lines.rpartition(b"\n")[2].partition(b",")[0]) < since:
                continue
            for line in lines.decode().split("\n"):
                row = dict(zip(file.header, line.split(","), strict=True))
                if int(row["iteration"]) >= since:
                    yield row


class _RowsByIteration:
    """The rows of the tables by iteration; each table is read once, forwards."""

    def __init__(self, path: Path, names: Iterable[str], since: int) -> None:
        groups = (groupby(_rows(path, name, since), lambda row: int(row["iteration"])) for name in names)
        self._tables = dict(zip(names, groups, strict=True))
        self.more = {name: more_of(name, read_header(path / f"{name}.csv")) or () for name in names}
        self._next: dict[str, tuple[int, list[Row]]] = {}

    def of(self, name: str, iteration: int) -> list[Row]:
        """Return the rows of an iteration; calls for a table must be in increasing order."""
        number, rows = self._next.get(name, (-1, []))
        while number < iteration:
            number, group = next(self._tables[name], (maxsize, iter(())))
            rows = list(group)
        self._next[name] = number, rows
        return rows if number == iteration else []


def _read_checkpoints(path: Path, config: Config, findings: list[Finding]) -> dict[Path, checkpoints.Checkpoint]:
    """Load every checkpoint; report and skip the damaged ones."""
    kept: dict[Path, checkpoints.Checkpoint] = {}
    for file in checkpoints.list_checkpoints(path / "checkpoints"):
        try:
            checkpoint = checkpoints.load(file)
            changes_of(config, checkpoint.read_config(str(file)), path)
        except PgcliError as error:
            findings.append(Finding("failed", error.message))
            continue
        kept[file] = checkpoint
    return kept


# -------------------------------------------------------------------------------------------------------- consistency
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


@dataclass
class _Collected:
    """Statistics of episodes.csv by iteration, [iterations]; nan if no episode ended."""

    episodes: Array  # ended so far
    return_mean: Array
    discounted_return_mean: Array
    length: Array  # sum


def _compare_tables(path: Path, config: Config) -> Iterator[Finding]:
    metrics = read_table(path / "metrics.csv")
    for name, one in (("metrics", metrics), ("timing", read_table(path / "timing.csv", ()))):
        wrong = np.flatnonzero(one["iteration"] != np.arange(one.rows))
        if len(wrong):
            at = int(wrong[0])
            found = _shown(one["iteration"][at])
            raise _Failed(f"{name}.csv: line {at + 2}: iteration is {found}, expected {at}")
    rows = metrics.rows
    collected = _collect(path / "episodes.csv", rows)
    steps = np.diff(metrics["env_steps"], prepend=0.0)
    expected: dict[str, Array] = {
        "episodes": collected.episodes,
        "return_mean": collected.return_mean,
        "discounted_return_mean": collected.discounted_return_mean,
        "env_steps": metrics["env_steps"] - steps + collected.length,
    }
    if not config.rollout.episodes:  # a segment has steps of episodes that have not ended
        expected["env_steps"] = np.where(steps > 0, metrics["env_steps"], metrics["env_steps"] - steps + 1)
    for name, column in expected.items():
        different = (metrics[name] != column) & ~(np.isnan(metrics[name]) & np.isnan(column))
        if different.any():
            at = int(np.argmax(different))
            found, other = (_shown(one[at]) for one in (metrics[name], column))
            raise _Failed(
                f"metrics.csv: line {at + 2} (iteration {at}): {name} is {found}, but {other} according to episodes.csv"
            )
    count = int(collected.episodes[-1]) if rows else 0
    yield Finding("ok", f"{rows:,} iterations and {count:,} episodes are complete and consistent")


def _collect(file: Path, iterations: int) -> _Collected:
    """Read episodes.csv block by block, and compute the statistics of each iteration."""
    counts, means, discounted, lengths = (np.zeros(iterations + 1) for _ in range(4))
    means[:], discounted[:] = np.nan, np.nan
    number, last = 0, -1

    def add(iteration: int, returns: Array, weighted: Array, steps: Array) -> None:
        counts[iteration], lengths[iteration] = len(returns), steps.sum()
        means[iteration] = returns.sum() / len(returns)
        discounted[iteration] = fsum(weighted.tolist()) / len(weighted)

    names = ("return", "discounted_return", "length")
    waiting: list[Array] = [
        np.empty(0) for _ in names
    ]  # rows of the last iteration, which may continue in the next block
    with table_file(file) as open_table:
        for block in open_table.read(open_table.columns(("episode", *names))):
            k, episodes = block["iteration"], block["episode"]
            wrong = np.flatnonzero((episodes != np.arange(number, number + len(k))) | (np.diff(k, prepend=last) < 0))
            if len(wrong):
                at = int(wrong[0])
                found = f"episode {_shown(episodes[at])} of iteration {_shown(k[at])}"
                raise _Failed(f"episodes.csv: line {number + at + 2}: {found} follows episode {number + at - 1}")
            if k[-1] > iterations:
                raise _Failed(f"episodes.csv: has iteration {_shown(k[-1])}, but metrics.csv has {iterations} rows")
            parts = [np.concatenate([old, block[name]]) for old, name in zip(waiting, names, strict=True)]
            k = np.concatenate([np.full(len(waiting[0]), last), k])
            starts = np.flatnonzero(np.diff(k, prepend=-1)).tolist()
            for start, end in pairwise(starts):
                add(int(k[start]), *(part[start:end] for part in parts))
            waiting = [part[starts[-1] :].copy() for part in parts]
            number, last = number + len(episodes), int(k[-1])
    if number:
        add(last, *waiting)
    return _Collected(np.cumsum(counts)[:iterations], means[:iterations], discounted[:iterations], lengths[:iterations])


def _shown(value: float) -> str:
    return "empty" if isnan(value) else f"{value:.0f}" if value.is_integer() else repr(float(value))


def _compare_evaluations(path: Path) -> Iterator[Finding]:
    steps = read_table(path / "metrics.csv", ("env_steps",))["env_steps"]
    last, count = -1, 0
    for row in _rows(path, "evaluations"):
        number, count = int(row["iteration"]), count + 1
        if number < last + (not row.get("stopped_by")):  # stopped_by: repeats the evaluation that ended the run
            raise _Failed(f"evaluations.csv: line {count + 1}: iteration {number} follows {last}")
        last = number
        if number > len(steps) or float(row["env_steps"]) != (steps[number - 1] if number else 0):
            raise _Failed(
                f"evaluations.csv: line {count + 1}: env_steps is {row['env_steps']}, which differs from metrics.csv "
                f"after {number} iterations"
            )
    yield Finding("ok", f"{count:,} evaluations agree with metrics.csv")


def _measured_since(path: Path) -> int:
    """Return the iteration from which on the diagnostics of the config apply."""
    resumes = read_information(path).get("resumes", [])
    changed = [one for one in resumes if any(change.startswith("diagnostics.") for change in one["overrides"])]
    return max((one["iteration"] for one in changed), default=0)


def _compare_gradients(path: Path, config: Config) -> Iterator[Finding]:
    since, names = _measured_since(path), [config.estimator, *config.diagnostics.shadows]
    metrics = read_table(path / "metrics.csv", ("env_steps", "grad_norm"))
    found = {
        number: list(rows) for number, rows in groupby(_rows(path, "gradients"), lambda row: int(row["iteration"]))
    }
    numbers = list(found)
    if numbers != sorted(numbers):
        raise _Failed("gradients.csv: iterations are not in order")
    expected = set(range(0, metrics.rows, config.diagnostics.every or metrics.rows + 1))
    if config.diagnostics.every is None:
        expected = set()
    if wrong := {n for n in expected ^ set(numbers) if since <= n < metrics.rows}:
        what = "is missing" if min(wrong) in expected else "should not be there"
        raise _Failed(f"gradients.csv: iteration {min(wrong)} {what}")
    if numbers and numbers[-1] > metrics.rows:
        raise _Failed("gradients.csv: has more iterations than metrics.csv")
    for number, rows in found.items():
        has_update = number < metrics.rows  # the last may be missing, after a kill
        if since <= number < metrics.rows and [row["estimator"] for row in rows] != names:
            raise _Failed(f"gradients.csv: iteration {number} has other estimators than the config")
        for row in rows:
            if has_update and float(row["env_steps"]) != metrics["env_steps"][number]:
                raise _Failed(f"gradients.csv: the env_steps of iteration {number} differ from metrics.csv")
            if not _fit_together(row):
                raise _Failed(
                    f"gradients.csv: the columns of {row['estimator']} in iteration {number} contradict each other"
                )
        own = rows[0]
        if has_update and _is_plain(config) and since <= number and own["trajectory_variance"]:
            norm, taken = float(own["gradient_norm"]), float(metrics["grad_norm"][number])
            rounding = 1e-3 * float(own["trajectory_variance"]) ** 0.5  # of terms that cancel
            if not isclose(norm, taken, rel_tol=1e-2, abs_tol=rounding + 1e-9):
                raise _Failed(
                    f"gradients.csv: the gradient_norm of iteration {number} differs from grad_norm in metrics.csv"
                )
    yield Finding("ok", f"{len(found):,} iterations of gradients.csv agree with metrics.csv")


def _fit_together(row: dict[str, str]) -> bool:
    """Return whether snr = |g|² / v - 1 and trajectory_variance = N v; ignore empty cells."""
    try:
        norm, v, of_one, snr = (
            float(row[name]) for name in ("gradient_norm", "gradient_variance", "trajectory_variance", "snr")
        )
    except ValueError:
        return all(not cell or isfinite(float(cell)) for name, cell in row.items() if name != "estimator")
    return isclose(norm**2, (snr + 1) * v, rel_tol=1e-9) and isclose(int(row["trajectories"]) * v, of_one, rel_tol=1e-9)


def _is_plain(config: Config) -> bool:
    """Return whether an update is one step along the gradient of the policy objective."""
    algorithm = config.algorithm
    shared = config.has_value and (config.value.shared_trunk or config.optimizer.clip_gradients == "together")
    one_step = algorithm.update_epochs == algorithm.num_minibatches == 1
    return one_step and algorithm.entropy_coef == algorithm.kl_coef == 0 and not shared


def _compare_checkpoints(path: Path, kept: dict[Path, checkpoints.Checkpoint]) -> Iterator[Finding]:
    metrics, folder = read_table(path / "metrics.csv", ("env_steps", "episodes")), path / "checkpoints"
    if not kept:
        raise _Failed(f"{folder}: has no readable checkpoint")
    for file, checkpoint in kept.items():
        counters, number = checkpoint.counters, checkpoint.counters["iteration"]
        if number > metrics.rows:
            raise _Failed(f"{file}: is the state after {number} iterations, but metrics.csv has {metrics.rows} rows")
        for name in ("env_steps", "episodes"):
            if counters[name] != (metrics[name][number - 1] if number else 0):
                raise _Failed(f"{file}: its {name} are {counters[name]}, which differs from metrics.csv")
    names = ", ".join(str(checkpoints.iteration_of(file)) for file in kept)
    yield Finding("ok", f"checkpoints {names}: checksums match, and counters agree with metrics.csv")
    if not (folder / "latest.json").exists():
        yield Finding("note", "latest.json is missing: the newest checkpoint is used")
    elif checkpoints.follow(folder / "latest.json") != max(kept, key=checkpoints.iteration_of):
        yield Finding("note", "latest.json does not point to the newest checkpoint, as after a kill")
    if (folder / "best.json").exists():
        best = checkpoints.iteration_of(checkpoints.follow(folder / "best.json"))
        scheduled = (row for row in _rows(path, "evaluations") if not row.get("stopped_by"))
        returns = {int(row["iteration"]): float(row["return_mean"]) for row in scheduled}
        if returns.get(best) != max(returns.values()):
            yield Finding("note", f"best.json points to iteration {best}, which is not the best in evaluations.csv")


def _compare_status(path: Path, iterations: int) -> Iterator[Finding]:
    run, status = read_information(path), read_status(path)
    state, number = status["status"], status.get("iteration")
    if state == "running":
        yield Finding("note", "the run was killed; `pgcli resume` continues from the newest checkpoint")
    elif number != iterations:
        raise _Failed(f"status.json: {state} after {number} iterations, but metrics.csv has {iterations} rows")
    if not run.get("exact", True):
        yield Finding(
            "note",
            "run.json: exact is false: the run was resumed with changes, or its environments could not be restored",
        )
    for name, installed in versions().items():
        recorded = run.get("versions", {}).get(name)
        if recorded != installed:
            yield Finding("note", f"trained with {name} {recorded}, verified with {installed}: last digits may differ")


# --------------------------------------------------------------------------------------------------------- repetition
def _recompute(
    path: Path,
    config: Config,
    kept: dict[Path, checkpoints.Checkpoint],
    last: int,
    everything: bool,
    recomputed: list[int],
) -> Iterator[Finding]:
    if config.algorithm.estimator is not None:
        yield Finding("note", "the user's estimator was not loaded: no iteration recomputed")
        return
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
    since = _measured_since(path)
    file = min(starts) if everything else max(starts)
    first, name = kept[file].counters["iteration"], file.name
    rows = _RowsByIteration(path, ["metrics", "episodes", "evaluations", *_measured(path)], first)
    with repeated(path, without_clock(config.without_stopping(), last), file) as (run, lost):
        if lost:
            yield Finding("note", f"{lost} environments are not reproducible: no iteration recomputed")
            return
        for record in train(run):
            if not isinstance(record, Notice):
                _compare(record, rows, since)
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


def _measured(path: Path) -> list[str]:
    return ["gradients"] if (path / "gradients.csv").exists() else []


def _recompute_evaluation(
    path: Path, config: Config, kept: dict[Path, checkpoints.Checkpoint], iterations: int
) -> Iterator[Finding]:
    """Repeat the evaluation in the last row of evaluations.csv, if its checkpoint exists."""
    row = next(iter(deque(_rows(path, "evaluations"), maxlen=1)), None)
    if row is None:
        return
    number, stopped_by = int(row["iteration"]), row.get("stopped_by", "")
    file = path / "checkpoints" / checkpoints.file_name(number)
    if file not in kept:
        yield Finding("note", f"the last evaluation, after {number} iterations, has no checkpoint: not recomputed")
        return
    if any(one["iteration"] >= number for one in _evaluation_changes(path)):
        yield Finding(
            "note", f"the evaluation settings changed after {number} iterations, the last row: not recomputed"
        )
        return
    with repeated(path, without_clock(config, max(iterations, 1)), file) as (run, _):
        again = Evaluator(config, run.executor).evaluate(
            run.learner.policy, number, run.counters.env_steps, lambda: None, stopped_by
        )
    _compare(again, _RowsByIteration(path, ["evaluations"], number), number)
    yield Finding("ok", f"the last evaluation, after {number} iterations, recomputed: identical, byte for byte")


def _evaluation_changes(path: Path) -> list[dict[str, Any]]:
    resumes: list[dict[str, Any]] = read_information(path).get("resumes", [])
    return [one for one in resumes if any(change.startswith("evaluation.") for change in one["overrides"])]


def _compare(record: Iteration | Evaluation, tables: _RowsByIteration, since: int) -> None:
    """Raise _Failed unless a recomputed record has the same bytes as its rows in the tables.

    A resume may change the schedule of evaluations and gradients; gradients are compared from `since` on.
    """
    for name, again in rows_of(record, tables.more).items():
        if name == "timing" or not again or (name == "gradients" and record.iteration < since):
            continue
        rows = tables.of(name, record.iteration)
        if isinstance(record, Evaluation):
            rows = [row for row in rows if row.get("stopped_by", "") == record.stopped_by]
        if not rows and name in ("evaluations", "gradients"):
            continue
        for row, line in zip(rows, as_csv(again).splitlines(), strict=True):
            for (column, cell), found in zip(row.items(), line.split(","), strict=True):
                if cell != found:
                    raise _Failed(
                        f"{name}.csv: iteration {record.iteration} has {column} {cell or 'empty'}, but recomputed "
                        f"it is {found or 'empty'}"
                    )


def _compare_tensors(file: Path, saved: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    checkpoints.check_tensors(saved, again, str(file))
    for name, tensor in again.items():
        if name in saved and tensor.contiguous().numpy().tobytes() != saved[name].contiguous().numpy().tobytes():
            raise _Failed(f"{file}: {name} differs from the recomputed state")
