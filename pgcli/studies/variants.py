"""The arms of a comparison: which runs they are, which of them are there already, and training the rest.

An arm is a config: one choice of every key that was given several values. Arms × seeds are the runs. Each arm's folder
bears a digest of its config, so that a run that is there is the run that is wanted, whatever was compared before.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgcli.config import Config, load_config, override, to_data
from pgcli.config.schema import DEFAULT_ITERATIONS
from pgcli.errors import Diverged, Interrupted, PgcliError, RunDirectoryError, RunInUse, UsageError
from pgcli.runs.files import read_json

if TYPE_CHECKING:
    from pgcli.experiment.jobs import Failure

# What is the same for all arms: it says how long, how measured and where, not what is learned.
_SHARED = ("name", "seed", "training.", "evaluation.", "checkpoint.", "sampling.")
_TASK = ("env.id", "env.kwargs", "env.max_episode_steps")
_LONGEST = 60  # characters of a folder's name before its digest


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: its name, its config, whose seed is yet to be chosen, and the folder of its runs."""

    label: str
    config: Config
    folder: Path

    def run_path(self, seed: int) -> Path:
        """Give the run directory of a seed."""
        return self.folder / f"seed-{seed}"


@dataclass(frozen=True)
class Comparison:
    """Arms, seeds and the folder that holds their runs and the report."""

    arms: list[Arm]
    seeds: list[int]
    folder: Path
    notices: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[tuple[Config, Path]]:
        """Every run, seed by seed, so that what is there after an interruption is balanced."""
        return [
            (override(arm.config, [f"seed={seed}"]), arm.run_path(seed)) for seed in self.seeds for arm in self.arms
        ]


def plan(location: str, words: Sequence[str], seeds: list[int], folder: Path | None) -> Comparison:
    """Read what is to be compared: a config, and `KEY=A,B` for each key that tells arms apart, `KEY=VALUE` for others.

    Every run has the same budget of env steps. Without one in the config it follows, for segments, from the number of
    iterations; whole episodes are as long as they get, so that nothing follows and a budget must be given.
    Raises: ConfigError, UsageError.
    """
    fixed, axes = [], []
    for word in words:
        key, equals, value = word.partition("=")
        values = split_values(value) if equals else []
        if len(values) > 1:
            axes.append((key, values))
        else:
            fixed.append(word)
    _check_axes(axes, fixed)
    choices = [[f"{key}={value}" for (key, _), value in zip(axes, chosen, strict=True)] for chosen in _products(axes)]
    configs = [load_config(location, [*fixed, *chosen]) for chosen in choices]
    notices = _notices(configs, axes)
    steps = _equal_budget(configs)
    equal = [f"training.env_steps={steps}", "training.iterations=null", "evaluation.stop_at_return=null"]
    configs = [override(config, equal) for config in configs]
    if len({digest(config) for config in configs}) < len(configs):
        raise UsageError("two of the arms are the same config", "give each value once")
    keys = [key for key, _ in axes]
    names = [key.rpartition(".")[2] for key in keys]
    short = names if len(set(names)) == len(names) else keys
    if folder is None:
        folder = Path("runs") / _folder_name("-".join([f"{configs[0].name}-compare", *short]))
    arms = [
        Arm(label, config, folder / "runs" / f"{_folder_name(label)}-{digest(config)}")
        for config, chosen in zip(configs, choices, strict=True)
        for label in [", ".join(f"{n}={c.partition('=')[2]}" for n, c in zip(short, chosen, strict=True))]
    ]
    return Comparison(arms, seeds, folder, notices)


def split_values(text: str) -> list[str]:
    """Split `A,B` at its commas, but not at those within brackets, braces or quotes.

    Raises: UsageError for an empty value; null is written out.
    """
    values, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not values[-1].strip():  # within a plain word, an apostrophe is one
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth <= 0:
            values.append("")
            continue
        values[-1] += char
    values = [value.strip() for value in values]
    if len(values) > 1 and "" in values:
        raise UsageError(f"{text}: an empty value between commas", "write null for none, and quotes around a comma")
    return values


def digest(config: Config) -> str:
    """Give eight hexadecimal digits of what a config makes of its seeds; who samples is no part of that."""
    data = {key: value for key, value in to_data(config).items() if key not in ("seed", "sampling")}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def is_there(config: Config, path: Path) -> bool:
    """Say whether the run in `path` is over and is that of `config`; one that diverged would only diverge again."""
    try:
        over = read_json(path / "status.json").get("status") in ("finished", "diverged")
        return over and _without_sampling(load_config(str(path / "config.yaml"))) == _without_sampling(config)
    except PgcliError:
        return False


def compare(
    comparison: Comparison, jobs: int, quiet: bool, threshold: float | None, command: list[str]
) -> tuple[dict[str, Any] | None, list[Failure]]:
    """Train the runs that are not there yet, and write the report: the object of `pgcli compare --json`.

    A run that failed counts in it (see `report`), and is told as well. There is no report, but None, while a run
    directory cannot be used, or another process trains in it: that says nothing of an arm.
    Raises: Interrupted, once the runs under way are saved.
    """
    missing = [(config, path) for config, path in comparison.runs if not is_there(config, path)]
    failures = _train(comparison, missing, jobs, quiet) if missing else []
    if any(failure.exit_code in (RunDirectoryError.exit_code, RunInUse.exit_code) for failure in failures):
        return None, failures
    from pgcli.studies.comparison import report  # imports numpy

    paths = {arm.label: {seed: arm.run_path(seed) for seed in comparison.seeds} for arm in comparison.arms}
    result = report(comparison.folder, comparison.arms[0].config, paths, threshold, command)
    return result, [failure for failure in failures if failure.exit_code != Diverged.exit_code]  # that is a result


def _train(comparison: Comparison, missing: list[tuple[Config, Path]], jobs: int, quiet: bool) -> list[Failure]:
    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(missing[0][0].env)  # an unknown environment is told before torch is imported

        from pgcli.experiment.jobs import Failure, run_all
        from pgcli.experiment.run import Request, check_request
        from pgcli.report.display import ComparisonView, make_display
        from pgcli.report.logs import logged

        requests = [Request(config, path, sys.argv[1:], resume=True) for config, path in missing]
        for request in requests:
            check_request(request)
        labels = {arm.folder: arm.label for arm in comparison.arms}
        there = len(comparison.runs) - len(missing)
        view = ComparisonView([labels[path.parent] for _, path in missing], there)
        try:
            with closing(make_display(view, quiet)) as display:
                results = run_all(requests, jobs, display.show, logged)
        except Interrupted as interruption:
            interruption.hint = "the same command again goes on"
            raise
    return [result for result in results if isinstance(result, Failure)]


def _products(axes: list[tuple[str, list[str]]]) -> list[tuple[str, ...]]:
    return list(product(*(values for _, values in axes)))


def _check_axes(axes: list[tuple[str, list[str]]], fixed: list[str]) -> None:
    keys = [key for key, _ in axes]
    if not keys:
        raise UsageError("nothing to compare", "give a key several values: algorithm.baseline=none,mean")
    if len(set(keys)) < len(keys):
        raise UsageError("a key is given several values twice", "one KEY=A,B for each key")
    if "seed" in [word.partition("=")[0] for word in fixed]:
        raise UsageError("seed=… has no place in a comparison", "--seeds 0-9 says which")
    for key in keys:
        if key.startswith(_SHARED):
            hint = "--seeds 0-9 says which" if key == "seed" else f"give `{key}` one value"
            raise UsageError(f"`{key}` is the same for all arms: they share budget and measure", hint)
        if key.startswith(_TASK):
            raise UsageError(
                f"`{key}` makes another task of it, whose returns are on another scale",
                "compare on each task by itself",
            )


def _notices(configs: list[Config], axes: list[tuple[str, list[str]]]) -> list[str]:
    """Say what is not as the config has it, or not comparable without care."""
    notices = []
    if any(config.evaluation.stop_at_return is not None for config in configs):
        notices.append("evaluation.stop_at_return is left out: every run uses the whole budget")
    if any(key.startswith("env.wrappers") for key, _ in axes):
        notices.append("the arms have other wrappers: if one changes rewards, their returns are on different scales")
    if any(config.training.env_steps is None for config in configs):
        notices.append(f"every run has {_equal_budget(configs):,} env steps, those of its segments over all iterations")
    return notices


def _equal_budget(configs: list[Config]) -> int:
    """Find the env steps that every arm is given."""
    budgets = set()
    for config in configs:
        training, rollout = config.training, config.rollout
        if training.seconds is not None:
            raise UsageError(
                "training.seconds gives the arms unequal numbers of env steps",
                "training.seconds=null training.env_steps=100000",
            )
        if training.env_steps is not None:
            if training.iterations is not None:
                raise UsageError("training.iterations may end an arm before its env steps", "training.iterations=null")
            budgets.add(training.env_steps)
        elif rollout.steps:
            budgets.add((training.iterations or DEFAULT_ITERATIONS) * rollout.steps * config.env.num_envs)
        else:
            also = "" if training.iterations is None else " training.iterations=null"
            raise UsageError(
                "iterations of whole episodes have unequal numbers of env steps, and a comparison needs equal ones",
                f"add training.env_steps=100000{also}; `pgcli doctor` says how many an iteration begins with",
            )
    if len(budgets) > 1:
        most = max(budgets)
        raise UsageError("the arms' iterations have unequal numbers of env steps", f"training.env_steps={most}")
    return int(budgets.pop())


def _without_sampling(config: Config) -> dict[str, Any]:
    return {key: value for key, value in to_data(config).items() if key != "sampling"}


def _folder_name(text: str) -> str:
    """Write a label as the name of a folder."""
    return re.sub(r"[^\w.=,-]+", "_", re.sub(r"[\[\]{}'\"]", "", text), flags=re.ASCII).strip("_-.")[:_LONGEST] or "arm"
