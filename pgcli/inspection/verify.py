"""Verify a run for `pgcli verify`: check its files for consistency, and recompute iterations byte for byte."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from math import isclose, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from pgcli.config import Config
from pgcli.errors import PgcliError, RunDirectoryError
from pgcli.experiment.load import refuse_foreign_modules
from pgcli.experiment.repeat import changed_iterations, follows_the_clock, repeated, without_clock
from pgcli.experiment.resume import changes_of, stored_config
from pgcli.records import TABLES, Evaluation, Iteration, Notice
from pgcli.report.text import Finding, table
from pgcli.runs import checkpoints
from pgcli.runs.directory import is_run, versions
from pgcli.runs.files import read_json
from pgcli.runs.lock import lock
from pgcli.runs.tables import as_csv, more_of, read_table, rows_of, tables_of
from pgcli.training.evaluation import sample
from pgcli.training.loop import train

Rows = list[dict[str, str]]


class _Failed(Exception):
    """A check failed; the message says where."""


def verify(path: Path, *, everything: bool = False, trust: bool = False) -> dict[str, Any]:
    """Verify the run in `path` and return the object that `pgcli verify --json` prints. Writes nothing.

    Recomputes one iteration, from the newest checkpoint that has an iteration after it; with `everything`, all
    iterations from the oldest checkpoint.
    Raises: RunDirectoryError without a run, RunInUse while it is being written, EnvironmentFailure for modules that
    Gymnasium does not ship, without `trust`.
    """
    if not is_run(path):
        raise RunDirectoryError(f"{path}: no run is there", "name a run directory that `pgcli train` made")
    with ExitStack() as locked:
        with suppress(OSError):  # a read-only folder needs no lock
            locked.enter_context(lock(path))
        config = stored_config(path)
        if not trust:
            refuse_foreign_modules(config, path)
        findings: list[Finding] = []
        tables = _read_tables(path, config, findings)
        kept = _read_checkpoints(path, config, findings)
        _check("tables", findings, _compare_tables(config, tables))
        if (path / "gradients.csv").exists():
            _check("gradients", findings, _compare_gradients(config, _measured_since(path), tables))
        _check("checkpoints", findings, _compare_checkpoints(path, kept, tables))
        _check("status", findings, _compare_status(path, tables))
        recomputed: list[int] = []
        if not any(finding.level == "failed" for finding in findings):
            _check("iterations", findings, _recompute(path, config, kept, tables, everything, recomputed))
    return {
        "run": str(path),
        "passed": not any(finding.level == "failed" for finding in findings),
        "rows": {name: len(rows) for name, rows in tables.items()},
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
        findings.append(Finding("failed", error.message if isinstance(error, PgcliError) else str(error)))
    except (KeyError, ValueError, TypeError) as error:  # a cell or a field is missing or not a number
        findings.append(Finding("failed", f"the {name} hold something unreadable: {error}"))


# ------------------------------------------------------------------------------------------------------------ reading
def _read_tables(path: Path, config: Config, findings: list[Finding]) -> dict[str, Rows]:
    tables: dict[str, Rows] = {}
    for name in TABLES if (path / "gradients.csv").exists() else tables_of(config):
        tables[name] = []
        try:
            table = read_table(path / f"{name}.csv", as_text=True)
        except RunDirectoryError as error:
            findings.append(Finding("failed", error.message))
            continue
        if more_of(name, table.header) is None:
            findings.append(Finding("failed", f"{name}.csv: does not begin with the columns that pgcli writes"))
            continue
        cells = zip(*(table.words[column] for column in table.header), strict=True)
        tables[name] = [dict(zip(table.header, row, strict=True)) for row in cells]
        if table.cut:
            findings.append(Finding("note", f"{name}.csv ends with half a line, which a resume cuts off"))
    return tables


def _by_iteration(table: Rows) -> dict[int, Rows]:
    rows: dict[int, Rows] = defaultdict(list)
    for row in table:
        rows[int(row["iteration"])].append(row)
    return rows


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
def _compare_tables(config: Config, tables: dict[str, Rows]) -> Iterator[Finding]:
    metrics, episodes, evaluations = tables["metrics"], tables["episodes"], tables["evaluations"]
    for name in ("metrics", "timing"):
        for number, row in enumerate(tables[name]):
            if row["iteration"] != str(number):
                raise _Failed(f"{name}.csv: iteration {row['iteration']} stands where {number} should")
    for number, row in enumerate(episodes):
        if row["episode"] != str(number):
            raise _Failed(f"episodes.csv: episode {row['episode']} stands where {number} should")
    ended = _by_iteration(episodes)
    if len(episodes) and int(episodes[-1]["iteration"]) > len(metrics):
        raise _Failed("episodes.csv: goes further than metrics.csv")
    steps = count = 0
    for number, row in enumerate(metrics):
        collected = ended.get(number, [])
        count += len(collected)
        took = int(row["env_steps"]) - steps
        steps += took
        returns = [float(one["return"]) for one in collected]
        mean = repr(sample(returns).mean) if returns else ""
        discounted = repr(fmean(float(one["discounted_return"]) for one in collected)) if collected else ""
        if (row["episodes"], row["return_mean"], row["discounted_return_mean"]) != (str(count), mean, discounted):
            raise _Failed(f"metrics.csv: iteration {number} is not what episodes.csv tells of it")
        if took <= 0 or (config.rollout.episodes and took != sum(int(one["length"]) for one in collected)):
            raise _Failed(f"metrics.csv: the env_steps of iteration {number} are not those of its episodes")
    yield Finding("ok", f"{len(metrics):,} iterations and {len(episodes):,} episodes follow each other, and agree")
    for before, row in pairwise(evaluations):
        fresh = bool(row.get("stopped_by"))  # after the evaluation that ended the run
        if int(row["iteration"]) < int(before["iteration"]) + (not fresh):
            raise _Failed(f"evaluations.csv: iteration {row['iteration']} after {before['iteration']}")
    for row in evaluations:
        number = int(row["iteration"])
        if number > len(metrics) or row["env_steps"] != (metrics[number - 1]["env_steps"] if number else "0"):
            raise _Failed(f"evaluations.csv: the env_steps of iteration {number} are not those of metrics.csv")
    yield Finding("ok", f"{len(evaluations):,} evaluations stand where metrics.csv has their env_steps")


def _measured_since(path: Path) -> int:
    """Return the iteration since which the run has had the diagnostics of its config."""
    resumes = read_json(path / "run.json").get("resumes", [])
    changed = [one for one in resumes if any(change.startswith("diagnostics.") for change in one["overrides"])]
    return max((one["iteration"] for one in changed), default=0)


def _compare_gradients(config: Config, since: int, tables: dict[str, Rows]) -> Iterator[Finding]:
    metrics, names = tables["metrics"], [config.estimator, *config.diagnostics.shadows]
    found = _by_iteration(tables["gradients"])
    numbers = list(found)
    if numbers != sorted(numbers):
        raise _Failed("gradients.csv: its iterations are not in order")
    expected = set(range(0, len(metrics), config.diagnostics.every or len(metrics) + 1))
    if config.diagnostics.every is None:
        expected = set()
    if wrong := {n for n in expected ^ set(numbers) if since <= n < len(metrics)}:
        what = "is not there" if min(wrong) in expected else "was not to be measured"
        raise _Failed(f"gradients.csv: iteration {min(wrong)} {what}")
    if numbers and numbers[-1] > len(metrics):
        raise _Failed("gradients.csv: goes further than metrics.csv")
    for number, rows in found.items():
        update = metrics[number : number + 1]  # the last may be missing, after a kill
        if since <= number < len(metrics) and [row["estimator"] for row in rows] != names:
            raise _Failed(f"gradients.csv: iteration {number} has not the estimators of the config")
        for row in rows:
            if update and row["env_steps"] != update[0]["env_steps"]:
                raise _Failed(f"gradients.csv: the env_steps of iteration {number} are not those of metrics.csv")
            if not _fit_together(row):
                raise _Failed(f"gradients.csv: the columns of {row['estimator']} in iteration {number} contradict")
        own = rows[0]
        if update and _is_plain(config) and since <= number and own["trajectory_variance"]:
            norm, taken = float(own["gradient_norm"]), float(update[0]["grad_norm"])
            rounding = 1e-3 * float(own["trajectory_variance"]) ** 0.5  # of terms that cancel
            if not isclose(norm, taken, rel_tol=1e-2, abs_tol=rounding + 1e-9):
                raise _Failed(
                    f"gradients.csv: the gradient_norm of iteration {number} is not the grad_norm of metrics.csv"
                )
    yield Finding("ok", f"{len(found):,} iterations of gradients.csv agree with metrics.csv")


def _fit_together(row: dict[str, str]) -> bool:
    """Return whether snr = |g|² / v - 1 and N v is the variance of one trajectory, for the cells that are filled."""
    try:
        norm, v, of_one, snr = (
            float(row[name]) for name in ("gradient_norm", "gradient_variance", "trajectory_variance", "snr")
        )
    except ValueError:
        return all(not cell or isfinite(float(cell)) for name, cell in row.items() if name != "estimator")
    return isclose(norm**2, (snr + 1) * v, rel_tol=1e-9) and isclose(int(row["trajectories"]) * v, of_one, rel_tol=1e-9)


def _is_plain(config: Config) -> bool:
    """Return whether an update is one step along the gradient of the policy's objective alone."""
    algorithm, shared = config.algorithm, config.has_value and config.value.shared_trunk
    one_step = algorithm.update_epochs == algorithm.num_minibatches == 1
    return one_step and algorithm.entropy_coef == algorithm.kl_coef == 0 and not shared


def _compare_checkpoints(
    path: Path, kept: dict[Path, checkpoints.Checkpoint], tables: dict[str, Rows]
) -> Iterator[Finding]:
    metrics, folder = tables["metrics"], path / "checkpoints"
    if not kept:
        raise _Failed(f"{folder}: has no checkpoint that can be read")
    for file, checkpoint in kept.items():
        counters, number = checkpoint.counters, checkpoint.counters["iteration"]
        if number > len(metrics):
            raise _Failed(f"{file}: metrics.csv has {len(metrics)} rows, and it is the state after {number}")
        row = metrics[number - 1] if number else {"env_steps": "0", "episodes": "0"}
        if (row["env_steps"], row["episodes"]) != (str(counters["env_steps"]), str(counters["episodes"])):
            raise _Failed(f"{file}: its env_steps and episodes are not those of metrics.csv")
    names = ", ".join(str(checkpoints.iteration_of(file)) for file in kept)
    yield Finding("ok", f"checkpoints {names} prove themselves by their sha256, and their counters agree with the rows")
    if not (folder / "latest.json").exists():
        yield Finding("note", "latest.json is missing, which costs nothing: the newest checkpoint is taken")
    elif checkpoints.follow(folder / "latest.json") != max(kept, key=checkpoints.iteration_of):
        yield Finding("note", "latest.json points to an older checkpoint than the newest, as after a kill")
    if (folder / "best.json").exists():
        best = checkpoints.iteration_of(checkpoints.follow(folder / "best.json"))
        scheduled = [row for row in tables["evaluations"] if not row.get("stopped_by")]
        returns = {int(row["iteration"]): float(row["return_mean"]) for row in scheduled}
        if returns.get(best) != max(returns.values()):
            yield Finding("note", f"best.json points to iteration {best}, which is not the best of evaluations.csv")


def _compare_status(path: Path, tables: dict[str, Rows]) -> Iterator[Finding]:
    run, status = read_json(path / "run.json"), read_json(path / "status.json")
    state, number = status.get("status"), status.get("iteration")
    if state == "running":
        yield Finding("note", "it was killed, and `pgcli resume` goes on from the newest checkpoint")
    elif number != len(tables["metrics"]):
        raise _Failed(f"status.json: {state} after {number} iterations, and metrics.csv has {len(tables['metrics'])}")
    if not run.get("exact", True):
        yield Finding("note", "run.json: exact is false, for it was resumed with changes, or not to where it was")
    for name, installed in versions().items():
        recorded = run.get("versions", {}).get(name)
        if recorded != installed:
            yield Finding("note", f"made with {name} {recorded}, verified with {installed}: last digits may differ")


# --------------------------------------------------------------------------------------------------------- repetition
def _recompute(
    path: Path,
    config: Config,
    kept: dict[Path, checkpoints.Checkpoint],
    tables: dict[str, Rows],
    everything: bool,
    recomputed: list[int],
) -> Iterator[Finding]:
    if config.algorithm.estimator is not None:
        yield Finding("note", "its gradients come from code of the user's, which is not run: none computed again")
        return
    changed = max(changed_iterations(path, config), default=0)  # since then, config.yaml holds
    starts = [file for file, one in kept.items() if changed <= one.counters["iteration"] < len(tables["metrics"])]
    if not starts:
        yield Finding(
            "note", "no checkpoint has an iteration after it under the config it has now: none computed again"
        )
        return
    if follows_the_clock(config):
        yield Finding("note", "its schedules follow the clock: no iteration computed again")
        return
    since = _measured_since(path)
    rows = {name: _by_iteration(table) for name, table in tables.items()}
    rows["gradients"] = {number: found for number, found in rows.get("gradients", {}).items() if number >= since}
    file = min(starts) if everything else max(starts)
    first, last, name = kept[file].counters["iteration"], len(tables["metrics"]), file.name
    with repeated(path, without_clock(config.without_stopping(), last), file) as (run, lost):
        if lost:
            yield Finding("note", f"{lost} environments do not repeat themselves: no iteration computed again")
            return
        for record in train(run):
            if not isinstance(record, Notice):
                _compare(record, rows)
            if isinstance(record, Iteration):
                recomputed.append(record.iteration)
                later = path / "checkpoints" / checkpoints.file_name(run.counters.iteration)
                if later in kept:
                    tensors = run.learner.state_dict() | run.sampler.state_dict(run.counters.iteration)
                    _compare_tensors(later, kept[later].tensors, tensors)
                if run.counters.iteration == (last if everything else first + 1):
                    break
    which = f"iteration {first}" if len(recomputed) == 1 else f"iterations {first} to {recomputed[-1]}"
    yield Finding("ok", f"{which}, computed again from {name}, gave the same bytes")


def _compare(record: Iteration | Evaluation, tables: dict[str, dict[int, Rows]]) -> None:
    """Raise _Failed unless a record, computed again, has the bytes of its rows in the tables."""
    more = {name: more_of(name, list(rows[0])) or () for name, by in tables.items() for rows in list(by.values())[:1]}
    for name, again in rows_of(record, more).items():
        if name == "timing":
            continue
        rows = tables[name].get(record.iteration, [])
        if isinstance(record, Evaluation):
            rows = [row for row in rows if row.get("stopped_by", "") == record.stopped_by]
        if not rows and name in ("evaluations", "gradients"):  # a resume may have changed when these are made
            continue
        for row, line in zip(rows, as_csv(again).splitlines(), strict=True):
            for (column, cell), found in zip(row.items(), line.split(","), strict=True):
                if cell != found:
                    raise _Failed(
                        f"{name}.csv: iteration {record.iteration} has {column} {cell or 'empty'}, and computed again "
                        f"it is {found or 'empty'}"
                    )


def _compare_tensors(file: Path, saved: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    checkpoints.check_tensors(saved, again, str(file))
    for name, tensor in again.items():
        if tensor.contiguous().numpy().tobytes() != saved[name].contiguous().numpy().tobytes():
            raise _Failed(f"{file}: {name} is not what comes out when its iteration is computed again")
