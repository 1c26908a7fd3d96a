"""Summarize a run, or compare two runs, from their files, for `pgcli show`.

Builds no environment, imports no user code and no torch; safetensors reads the checkpoints.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.config import Config, flat, override, to_data
from pgcli.config.order import differences
from pgcli.errors import ConfigError, RunDirectoryError, counted, typed
from pgcli.inspection import findings
from pgcli.inspection.findings import Array
from pgcli.report.text import Finding, duration, percent, short, table
from pgcli.runs.files import open_file
from pgcli.runs.information import config_of_run, find_run_hint, read_information, read_status
from pgcli.runs.lock import is_held
from pgcli.runs.tables import Table, first_difference, read_table

TEXT_COLUMN = 13
FIELDS = ("name", "level", "text", "iteration", "key")  # of a finding
TABLES = ("metrics.csv", "evaluations.csv", "episodes.csv")  # identical in identical runs
_CHECKPOINT = re.compile(r"iteration-([0-9]{6,18})\.safetensors")
_STATISTICS = (".count", ".mean", ".variance")  # running statistics, not learned
_MOST_KEYS = 12  # differing keys shown in a terminal


def show(path: Path) -> dict[str, Any]:
    """Summarize the run in `path`; return the object that `pgcli show --json` prints.

    Writes nothing.

    Raises: RunDirectoryError if there is no run, or a file is missing, truncated or damaged.
    """
    config, status, state = _open(path)
    ended = state not in ("running", "killed")
    metrics, timing, evaluations = (
        read_table(path / f"{name}.csv", whole=ended) for name in ("metrics", "timing", "evaluations")
    )
    episodes = read_table(path / "episodes.csv", ("ended",), whole=ended)
    if ended and (told := status.get("iteration")) != metrics.rows:
        raise RunDirectoryError(
            f"{path}/metrics.csv: has {counted(metrics.rows, 'row')}, but status.json reports {told} iterations",
            f"`pgcli verify {typed(path)}` checks the other files of the run",
        )
    information = read_information(path)
    checks = list(_checks(path, ended, config, metrics, timing, evaluations, episodes))
    looked = {name: check() for name, there, check in checks if there}
    threshold = information.get("reward_threshold")
    reached = _reached(evaluations, threshold)
    found = [
        replace(finding, name=name, key=_new_advice(finding.key, config)) for name, finding in looked.items() if finding
    ]
    if information.get("warm_start"):
        found = [
            replace(one, text=one.text.replace("the untrained policy", "the policy at the start")) for one in found
        ]
    last = reached["evaluation"]
    if last is not None and isinstance(threshold, int | float) and last["return_mean"] >= threshold:
        # warnings become notes once the environment is solved
        found = [replace(finding, level="note") for finding in found]
    default, settings = (flat(to_data(one)) for one in (Config(), config))
    for key in ("name", "seed", "env.id"):
        del settings[key]
    return {
        "run": str(path),
        "status": state,
        "reason": status.get("reason") or "",
        "name": config.name,
        "env": config.env.id,
        "seed": config.seed,
        "config": settings,
        "changed": {key: value for key, value in settings.items() if value != default.get(key)},
        "iterations": metrics.rows,
        "env_steps": _count(metrics, "env_steps", -1) if metrics.rows else 0,
        "episodes": episodes.rows,
        "seconds": float(timing["elapsed_seconds"][-1]) if timing.rows else None,
        "shares": _shares(timing),
        "threshold": threshold,
        **reached,
        "versions": information.get("versions", {}),
        "exact": bool(information.get("exact", True)),
        "warm_start": information.get("warm_start"),
        "resumes": len(information.get("resumes", [])),
        "tags": information.get("tags", []),
        "note": information.get("note", ""),
        "code": _code(information),
        "findings": [one.select(*FIELDS) for one in (*_of_status(path, state, status, information, config), *found)],
        "checked": list(looked),
        "not_applicable": [name for name, there, _ in checks if not there],
    }


def _open(path: Path) -> tuple[Config, dict[str, Any], str]:
    """Read config, status and state: that of status.json, or killed."""
    if not path.is_dir():
        what = "a file, not a run directory" if path.exists() else "no such run directory"
        raise RunDirectoryError(f"{path}: {what}", find_run_hint(path))
    config, status = config_of_run(path), read_status(path)
    state = status["status"]
    return config, status, "killed" if state == "running" and is_held(path) is False else state


def _code(information: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the repositories of the last start, without diffs; of an earlier version, one commit."""
    starts = [information, *information.get("resumes", [])]
    found: list[dict[str, Any]] = next((one["git"] for one in reversed(starts) if one.get("git")), [])
    if not found and (commit := information.get("git_commit")):
        found = [{"commit": commit}]
    return [{key: one.get(key) for key in ("repository", "commit", "dirty")} for one in found]


def _shares(timing: Table) -> dict[str, float]:
    parts = {name: float(np.nansum(timing[f"{name}_seconds"])) for name in ("collect", "update", "evaluate")}
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()} if total else {}


def _reached(evaluations: Table, threshold: Any) -> dict[str, Any]:
    """Return the last, best and first evaluations, and the first that reaches the threshold."""
    returns = evaluations["return_mean"]
    names = ("iteration", "env_steps", "return_mean", "return_standard_error", "evaluation_episodes")

    def row(number: int) -> dict[str, Any]:
        values = {name: float(evaluations[name][number]) for name in names}
        whole = {name: _count(evaluations, name, number) for name in ("iteration", "env_steps", "evaluation_episodes")}
        mode = evaluations.words["mode"][number] if "mode" in evaluations.words else None
        error = values["return_standard_error"]
        return {**values, **whole, "return_standard_error": None if math.isnan(error) else error, "mode": mode}

    if not evaluations.rows:
        return {"evaluation": None, "best": None, "untrained": None, "solved": None}
    goal = threshold if isinstance(threshold, int | float) else math.inf
    good = np.flatnonzero(returns >= goal)
    return {
        "evaluation": row(-1),
        "best": row(int(np.argmax(returns))),
        "untrained": row(0),
        "solved": row(int(good[0])) if len(good) else None,
    }


def _count(table: Table, column: str, row: int) -> int:
    """Return an integer cell. Raises: RunDirectoryError."""
    value = float(table[column][row])
    if not (math.isfinite(value) and value >= 0):
        line = 2 + row % table.rows
        raise RunDirectoryError(f"{table.path}: damaged: line {line} has the value `{value}` in column `{column}`")
    return int(value)


# ------------------------------------------------------------------------------------------------------------ findings


def _of_status(
    path: Path, state: str, status: dict[str, Any], information: dict[str, Any], config: Config
) -> Iterator[Finding]:
    """Describe the end of a run, resumes that changed it, and its user code."""
    at, again = status.get("iteration"), f"pgcli resume {typed(path)}"
    reason = status.get("reason") or "no reason recorded"
    if state == "diverged":
        again += f" {config.optimizer.step_key}=… (a lower one)"
        yield Finding("warning", f"diverged: {reason}", at, again, "status")
    elif state == "failed":
        yield Finding("warning", f"failed: {reason}", at, f"{again} (after fixing the cause)", "status")
    elif state == "interrupted":
        yield Finding("note", f"interrupted: {reason}", at, again, "status")
    elif state == "killed":
        yield Finding("note", "the process was killed; the saved state is intact", None, again, "status")
    if not information.get("exact", True):
        text = "resumed with changes, or its environments could not be restored: its config alone does not reproduce it"
        yield Finding("note", text, name="exact")
    if (location := config.algorithm.estimator) is not None:
        text = f"gradients come from {location}; a learning curve does not prove them right"
        yield Finding("note", text, None, f"pgcli check {typed(Path(location))}", "estimator")


def _new_advice(advice: str, config: Config) -> str:
    """Drop the parts of an advice that the run already follows or that its config forbids.

    `KEY=VALUE` becomes "a larger KEY" or "a lower KEY" if the run already has VALUE or beyond.
    """
    kept = []
    for part in advice.replace("optimizer.learning_rate", config.optimizer.step_key).split(", or "):
        key, equals, _ = part.partition("=")
        if not equals or " " in key:
            kept.append(part)
            continue
        try:
            own, new = (attrgetter(key)(one) for one in (config, override(config, [part])))
        except ConfigError:  # invalid with the other keys of the run
            continue
        if isinstance(own, int | float) and isinstance(new, int | float):
            lower = key == "algorithm.target_kl"
            followed = own <= new if lower else own >= new
            kept.append(f"a {'lower' if lower else 'larger'} {key}" if followed else part)
        elif own != new and not (key.endswith("schedule") and own != "constant"):
            kept.append(part)
    return ", or ".join(kept)


def _checks(
    path: Path, ended: bool, config: Config, metrics: Table, timing: Table, evaluations: Table, episodes: Table
) -> Iterator[tuple[str, bool, Callable[[], Finding | None]]]:
    """Yield every check: its name, whether its data exist, and its function."""
    algorithm, k = config.algorithm, metrics["iteration"]
    entropy, deviation, clipped, zero, size, fraction, explained, kl = (
        metrics[name]
        for name in (
            *("entropy", "action_standard_deviation", "action_clip_fraction", "zero_variance_groups"),
            *("effective_sample_size", "clip_fraction", "explained_variance", "approx_kl"),
        )
    )
    steps = algorithm.update_epochs * algorithm.num_minibatches * algorithm.reuse
    groups = (config.rollout.episodes or config.env.num_envs) / config.group_size
    taken = np.concatenate((np.zeros(algorithm.reuse), metrics["env_steps"]))
    weighted = taken[algorithm.reuse :] - taken[: -algorithm.reuse]
    if algorithm.ratios != "step":
        weighted = np.minimum(k + 1, algorithm.reuse) * (config.rollout.episodes or 0)
    yield "entropy_collapse", _there(entropy) and not _there(deviation), lambda: findings.entropy_collapse(k, entropy)
    yield "narrow_actions", _there(deviation), lambda: findings.narrow_actions(k, deviation)
    yield "clipped_actions", _there(clipped), lambda: findings.clipped_actions(k, clipped)
    gradients = _gradients(path, ended)
    yield "low_snr", gradients is not None, lambda: findings.low_snr(*(gradients or (k, k, k)))
    yield (
        *("cut_by_horizon", config.rollout.horizon is not None and episodes.rows > 0),
        lambda: findings.cut_by_horizon(episodes["iteration"], episodes.words["ended"]),
    )
    has_groups = config.group_size > 1 and _there(zero)
    yield "zero_variance_groups", has_groups, lambda: findings.zero_variance_groups(k, zero, groups)
    yield (
        *("low_effective_sample_size", _there(size) and steps > 1),
        lambda: findings.low_effective_sample_size(k, size, weighted),
    )
    greedy = config.evaluation.mode == "greedy" and config.rollout.horizon is None
    yield "greedy_gap", greedy and metrics.rows > 0, lambda: _greedy_gap(metrics, evaluations)
    yield "clip_fraction", _there(fraction), lambda: findings.clip_fraction(k, fraction, steps)
    yield "explained_variance", _there(explained), lambda: findings.explained_variance(k, explained)
    kept = _kept(path)
    yield "small_steps", len(kept) > 1, lambda: _small_steps(kept, metrics, algorithm.num_minibatches)
    collect, update, evaluate = (timing[f"{name}_seconds"] for name in ("collect", "update", "evaluate"))
    every = config.evaluation.every
    is_timed = timing.rows > 0 and every is not None
    yield "evaluation_time", is_timed, lambda: findings.evaluation_time(collect, update, evaluate, every)
    yield "large_kl", _there(kl), lambda: findings.large_kl(k, kl)
    evaluated = [evaluations[name] for name in ("iteration", "return_mean", "return_standard_error")]
    yield "fell_after_best", evaluations.rows > 2, lambda: findings.fell_after_best(*evaluated)
    yield "no_gain", evaluations.rows > 1, lambda: findings.no_gain(*evaluated)


def _there(column: Array) -> bool:
    return bool(np.isfinite(column).any())


def _gradients(path: Path, ended: bool) -> tuple[Array, Array, Array] | None:
    """Return iterations, snr and variances of the estimator that gradients.csv names first."""
    if not (path / "gradients.csv").exists():
        return None
    table = read_table(path / "gradients.csv", ("estimator", "gradient_variance", "snr"), whole=ended)
    names = table.words.get("estimator", np.full(table.rows, ""))
    chosen = np.isfinite(table["snr"]) & (names == names[:1])
    one = table.pick(chosen)
    return (one["iteration"], one["snr"], one["gradient_variance"]) if chosen.any() else None


def _greedy_gap(metrics: Table, evaluations: Table) -> Finding | None:
    """Compare each greedy evaluation with the rollout of the same policy, after k updates."""
    rows = evaluations["iteration"].astype(np.int64)
    both = rows < metrics.rows
    pick = rows[both]
    return findings.greedy_gap(
        evaluations["iteration"][both],
        evaluations["return_mean"][both],
        evaluations["return_standard_error"][both],
        metrics["return_mean"][pick],
        metrics["return_standard_error"][pick],
    )


def _kept(path: Path) -> list[tuple[int, Path]]:
    files = (path / "checkpoints").glob("*.safetensors")
    return sorted((int(match[1]), file) for file in files if (match := _CHECKPOINT.fullmatch(file.name)))


def _small_steps(kept: Sequence[tuple[int, Path]], metrics: Table, minibatches: int) -> Finding | None:
    """Compare the policies of the oldest and the newest checkpoint."""
    (first, old), (last, new) = kept[0], kept[-1]
    rates = metrics["learning_rate"]
    if last > metrics.rows or np.nanmean(rates[first:last]) < rates[0] / 10:
        return None  # a schedule lowered the learning rate
    before, after = _policy(old), _policy(new)
    if before.keys() != after.keys():
        return None
    moved = math.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before))
    size = math.sqrt(sum(float(np.square(x).sum()) for x in before.values()))
    steps = int(np.nansum(metrics["update_epochs"][first:last])) * minibatches
    return findings.small_steps(first, moved, size, steps)


def _policy(file: Path) -> dict[str, Array]:
    """Read the policy's parameters from a checkpoint, without executing anything."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(file), safe_open(file, "numpy") as tensors:  # open_file: a FIFO would block
            names = [name for name in tensors.keys() if name.startswith("policy.")]  # noqa: SIM118 - no mapping
            return {
                name: tensors.get_tensor(name).astype(np.float64) for name in names if not name.endswith(_STATISTICS)
            }
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        hint = f"`pgcli verify {typed(file.parent.parent)}` checks the other files of the run"
        raise RunDirectoryError(f"{file}: damaged, or not a checkpoint: {error}", hint) from None


def steps_text(result: dict[str, Any]) -> str:
    """Return how long a run is: `21 iterations, 5,152 env steps, 224 episodes`."""
    names = {"iterations": "iteration", "env_steps": "env step", "episodes": "episode"}
    return ", ".join(counted(result[key], name) for key, name in names.items())


def explanation_text(result: dict[str, Any]) -> str:
    """Return the summary of a run as text in 80 columns."""
    seconds = "" if result["seconds"] is None else f", {duration(result['seconds'])}"
    changed = ", ".join(f"{key}={_value(value)}" for key, value in result["changed"].items())
    shares = " · ".join(f"{name} {percent(share)}" for name, share in result["shares"].items())
    reason = f": {result['reason']}" if result["reason"] and result["status"] == "finished" else ""
    rows = [
        ("status", f"{result['status']}{reason}"),
        ("trained", f"{result['name']} on {result['env']}, seed {result['seed']}: {steps_text(result)}{seconds}"),
        ("config", changed or "all defaults"),
        *([("started from", _start(start))] if (start := result["warm_start"]) else []),
        *((name, text) for name, text in (("tags", " ".join(result["tags"])), ("note", result["note"])) if text),
        *(("commit", _commit_text(one)) for one in result["code"]),
        *_reached_rows(result),
        ("time", shares or "none yet"),
    ]
    for finding in result["findings"]:
        where = "" if finding["iteration"] is None else f"iteration {finding['iteration']}: "
        rows.append((finding["level"], where + finding["text"]))
        if finding["key"]:
            rows.append(("", f"→ {finding['key']}"))
    rows.append(("checked", checked_text(result)))
    return "\n".join([result["run"], *table(rows, TEXT_COLUMN, break_on_hyphens=False)])


def checked_text(result: dict[str, Any]) -> str:
    """Return how many checks were made, and which do not apply."""
    checked, absent = len(result["checked"]), len(result["not_applicable"])
    none = "no problems: " if not result["findings"] else ""
    rest = f"; {absent} do not apply: {', '.join(result['not_applicable'])}" if absent else ""
    return f"{none}{checked} checks{rest}"


def _commit_text(repository: dict[str, Any]) -> str:
    place, dirty = repository["repository"], repository["dirty"]
    changes = {True: ", with uncommitted changes: see run.json", False: ", without changes", None: ""}[dirty]
    return (repository["commit"] or "none")[:12] + (f" of {place}" if place else "") + changes


def _reached_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    last, best, first, goal = (result[name] for name in ("evaluation", "best", "untrained", "threshold"))
    if last is None:
        yield "reached", "no evaluation yet"
        return
    error = "" if last["return_standard_error"] is None else f" ± {last['return_standard_error']:.2g}"
    how = f"{counted(last['evaluation_episodes'], 'episode')}, {last['mode']}"
    yield (
        "reached",
        f"{short(last['return_mean'])}{error} after {last['iteration']} updates ({how}); best "
        f"{short(best['return_mean'])} after {best['iteration']}; "
        f"{'at the start' if result['warm_start'] else 'untrained'} {short(first['return_mean'])}",
    )
    if goal is not None:
        solved = result["solved"]
        when = "not reached" if solved is None else f"first reached after {solved['env_steps']:,} env steps"
        yield "solved at", f"a return of {goal:g}: {when}"


def _start(start: dict[str, Any] | None) -> str:
    return f"{start['checkpoint']} (sha256 {start['sha256'][:12]})" if start else "new weights"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------- two runs apart


def differ(a: Path, b: Path) -> dict[str, Any]:
    """Compare two runs; return the object that `pgcli show A B --json` prints.

    Writes nothing.

    Raises: RunDirectoryError if one of them cannot be read.
    """
    (one, _, state), (other, _, other_state) = _open(a), _open(b)
    information = [read_information(path) for path in (a, b)]
    versions = [
        {"pgcli": x.get("pgcli"), **x.get("versions", {}), "git_commit": x.get("git_commit")} for x in information
    ]
    try:
        tables = {name: first_difference(a / name, b / name) for name in TABLES}
    except OSError as error:
        hint = "both runs need metrics.csv, evaluations.csv and episodes.csv"
        raise RunDirectoryError(f"{error.filename or a}: {error.strerror}", hint) from None
    return {
        "a": str(a),
        "b": str(b),
        "status": [state, other_state],
        "config": {key: list(values) for key, values in differences(to_data(one), to_data(other)).items()},
        "versions": {
            key: [one.get(key) for one in versions]
            for key in {**versions[0], **versions[1]}
            if versions[0].get(key) != versions[1].get(key)
        },
        "warm_start": [one.get("warm_start") for one in information],
        "tables": tables,
        "same": all(part["same"] for part in tables.values()),
        "better": _better(a, b, one, other),
    }


def _better(a: Path, b: Path, one: Config, other: Config) -> dict[str, Any]:
    """Compare the last evaluations of two runs: the difference b - a with a 95 % interval (Welch's t).

    The interval is over evaluation episodes of these two policies. `unlike` names the keys that make returns
    incomparable.
    """
    before, after = (_reached(read_table(path / "evaluations.csv"), None)["evaluation"] for path in (a, b))
    differing = [name for name in ("env", "evaluation.mode") if _compared(one, name) != _compared(other, name)]
    if before is None or after is None or differing:
        return {"better": None, "unlike": differing or ["evaluations"], "difference": None, "low": None, "high": None}
    from scipy import stats

    means, errors, n = (
        [row[name] for row in (before, after)]
        for name in ("return_mean", "return_standard_error", "evaluation_episodes")
    )
    difference, interval = means[1] - means[0], (None, None)
    if None not in errors and any(errors):
        variance = sum(error**2 for error in errors)
        freedom = variance**2 / sum(error**4 / (count - 1) for error, count in zip(errors, n, strict=True))
        reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
        interval = (difference - reach, difference + reach)
    elif errors == [0, 0]:
        interval = (difference, difference)
    low, high = interval
    better = None if low is None or high is None or low <= 0 <= high else "b" if difference > 0 else "a"
    returns = {"a": means[0], "b": means[1]}
    return {"better": better, "unlike": [], "difference": difference, "low": low, "high": high, "returns": returns}


def _compared(config: Config, name: str) -> Any:
    """Return the part of a config that must be equal for returns to be comparable."""
    if name == "env":
        env = config.evaluation_env
        return [env.id, env.kwargs, env.wrappers, env.max_episode_steps]
    return attrgetter(name)(config)


def _better_text(part: dict[str, Any]) -> str:
    """Describe which of two runs is better, and the limits of the comparison."""
    if part["unlike"]:
        if part["unlike"] == ["evaluations"]:
            return "unknown: a run has no evaluation"
        return f"unknown: the returns are not comparable: the runs differ in {' and '.join(part['unlike'])}"
    returns, difference = part["returns"], part["difference"]
    text = f"a {short(returns['a'])}, b {short(returns['b'])} in the last evaluations: "
    if part["low"] is None:
        text += "single episodes have no interval"
    elif part["better"] is None:
        text += f"no significant difference, b minus a is {short(part['low'])} to {short(part['high'])} (95 %)"
    else:
        interval = f"{short(part['low'])} to {short(part['high'])} (95 %)"
        text += f"{part['better']} is better, b minus a is {short(difference)}, {interval}"
    return f"{text}. This compares two policies; to compare configs over seeds, use `pgcli compare`"


def difference_text(result: dict[str, Any]) -> str:
    """Return the difference of two runs as text in 80 columns."""
    heads = [f"{run}  {result[run]}  ({status})" for run, status in zip("ab", result["status"], strict=True)]
    config = list(result["config"].items())
    count = "1 key differs:" if len(config) == 1 else f"{len(config)} keys differ:"
    rows = [("config", count if config else "the same")]
    rows += (("", f"{key}: {_value(x)} → {_value(y)}") for key, (x, y) in config[:_MOST_KEYS])
    if len(config) > _MOST_KEYS:
        rows.append(("", f"… and {len(config) - _MOST_KEYS} more; see --json"))
    versions = ", ".join(f"{key} {x} → {y}" for key, (x, y) in result["versions"].items())
    rows.append(("versions", versions or "the same"))
    if any(result["warm_start"]):
        rows.append(("started from", " → ".join(map(_start, result["warm_start"]))))
    rows += ((name.removesuffix(".csv"), _difference(part)) for name, part in result["tables"].items())
    if not result["same"]:
        rows.append(("better", _better_text(result["better"])))
    if result["same"]:
        rows.append(("result", "identical: metrics.csv, evaluations.csv and episodes.csv are equal byte for byte"))
    return "\n".join([*heads, *table(rows, TEXT_COLUMN, break_on_hyphens=False)])


def _difference(part: dict[str, Any]) -> str:
    if part["same"]:
        return "identical"
    at = part["iteration"]
    where = f"identical before iteration {at}, where " if at else ""
    cells = list(part["columns"].items())
    columns = ", ".join(f"{name} {x or 'empty'} → {y or 'empty'}" for name, (x, y) in cells[:3])
    more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
    return f"{where}{part['why']}" + (f": {columns}{more}" if cells else "")
