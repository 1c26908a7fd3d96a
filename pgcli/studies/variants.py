"""The variants of a comparison: their configs and runs; find complete runs and train the others.

A variant is a config with one value for each compared key. The runs are variants × seeds. The name of a variant's
folder has a digest of its config, so comparisons in one folder share the runs of equal variants.
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
from pgcli.config.order import differences, orders_of
from pgcli.config.rules import CONDITIONAL, effective, without_effect
from pgcli.config.schema import DEFAULT_ITERATIONS, PolicyConfig
from pgcli.errors import Diverged, Interrupted, PgcliError, RunDirectoryError, RunInUse, UsageError
from pgcli.runs.information import read_status

if TYPE_CHECKING:
    from pgcli.experiment.jobs import Failure

# Equal for all variants: budget, evaluation and files.
_SHARED = ("name", "seed", "training.", "evaluation.", "checkpoint.", "sampling.", "logging.", "diagnostics.")
_TASK = ("env.id", "env.kwargs", "env.max_episode_steps")
_LONGEST = 60  # characters of a folder's name before its digest


@dataclass(frozen=True)
class Variant:
    """One setting of a comparison: its name, its config for any seed, and the folder of its runs."""

    label: str
    config: Config
    folder: Path

    def run_path(self, seed: int) -> Path:
        """Return the run directory of a seed."""
        return self.folder / f"seed-{seed}"


@dataclass(frozen=True)
class Comparison:
    """Variants, seeds and the folder of their runs and the report."""

    variants: list[Variant]
    seeds: list[int]
    folder: Path
    notices: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[tuple[Config, Path]]:
        """All runs, ordered by seed, so that an interrupted comparison has equal numbers of each variant."""
        return [
            (override(variant.config, [f"seed={seed}"]), variant.run_path(seed))
            for seed in self.seeds
            for variant in self.variants
        ]


def parse_comparison(location: str, overrides: Sequence[str], seeds: list[int], folder: Path | None) -> Comparison:
    """Read a config with `KEY=A,B` for each compared key, and `KEY=VALUE` for others.

    Every run has the same budget of env steps. For segments, it may follow from the number of iterations. Whole
    episodes differ in length, so they need training.env_steps.
    Raises: ConfigError, UsageError.
    """
    fixed, axes = [], []
    for word in overrides:
        key, equals, value = word.partition("=")
        values = split_values(value) if equals else []
        if len(values) > 1:
            axes.append((key, values))
        else:
            fixed.append(word)
    _check_axes(axes, fixed)
    keys = [key for key, _ in axes]
    choices = list(product(*(values for _, values in axes)))
    configs = _load(location, [[*fixed, *map("=".join, zip(keys, chosen, strict=True))] for chosen in choices])
    steps = _equal_budget(configs)
    notices = _notices(configs, keys, steps)
    equal = [f"training.env_steps={steps}", "training.iterations=null"]
    configs = [override(config.without_stopping(), equal) for config in configs]
    names = [key.rpartition(".")[2] for key in keys]
    short = names if len(set(names)) == len(names) else keys
    if folder is None:
        folder = Path("runs") / _folder_name("-".join([f"{configs[0].name}-compare", *short]))
    labels = [", ".join(map("=".join, zip(short, chosen, strict=True))) for chosen in choices]
    _check_different(labels, configs)
    variants = [
        Variant(label, config, folder / "runs" / f"{_folder_name(label)}-{digest(config)}")
        for label, config in zip(labels, configs, strict=True)
    ]
    return Comparison(variants, seeds, folder, notices)


def _load(location: str, overrides: Sequence[Sequence[str]]) -> list[Config]:
    """Load the config of each variant. A key must have an effect in at least one. Raises: ConfigError."""
    idle = [{one.key for one in without_effect(load_config(location, words, CONDITIONAL))} for words in overrides]
    used = CONDITIONAL.difference(set[str].intersection(*idle))
    return [load_config(location, words, used) for words in overrides]


def _check_different(labels: Sequence[str], configs: Sequence[Config]) -> None:
    """Raise UsageError if two variants would train the same run."""
    known: dict[str, int] = {}
    for number, config in enumerate(configs):
        first = known.setdefault(digest(effective(config)), number)
        if first == number:
            continue
        idle = [one for i in (first, number) for one in without_effect(configs[i])]
        raise UsageError(
            f"`{labels[first]}` and `{labels[number]}` train the same run"
            + "".join(f": {one.message}" for one in idle[:1]),
            idle[0].fix if idle else "remove one of the values",
        )


def _check_deviations(variants: Sequence[Variant]) -> None:
    """Raise UsageError if variants differ only in the initial deviation of discrete actions."""
    from gymnasium.spaces import Box

    from pgcli.environments.checks import check_environment

    key = "policy.initial_standard_deviation"
    if len({variant.config.policy.initial_standard_deviation for variant in variants}) == 1:
        return
    space = check_environment(variants[0].config.env).action_space
    if not isinstance(space, Box):
        same = [
            override(variant.config, [f"{key}={PolicyConfig().initial_standard_deviation}"]) for variant in variants
        ]
        try:
            _check_different([variant.label for variant in variants], same)
        except UsageError as error:
            error.message += f": `{key}` has no effect with action space {space}"
            raise


def split_values(text: str) -> list[str]:
    """Split `A,B` at commas outside brackets, braces and quotes.

    Raises: UsageError for an empty value.
    """
    values, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not values[-1].strip():  # an apostrophe within a word is not a quote
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
        raise UsageError(f"{text}: empty value", "write null for no value, and put text with commas in quotes")
    return values


def digest(config: Config) -> str:
    """Return a digest of a config without seed and sampling: eight hexadecimal digits."""
    data = {key: value for key, value in to_data(config).items() if key not in ("seed", "sampling")}
    text = json.dumps(data, sort_keys=True) + (json.dumps(orders) if (orders := orders_of(data)) else "")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_complete(config: Config, path: Path) -> bool:
    """Return whether `path` has a run of `config` that finished or diverged."""
    try:
        if read_status(path)["status"] not in ("finished", "diverged"):
            return False
        found = load_config(str(path / "config.yaml"))
    except PgcliError:
        return False
    found = found.model_copy(update={"sampling": config.sampling})  # sampling does not affect results
    return not differences(to_data(found), to_data(config))


def run_comparison(
    comparison: Comparison, jobs: int, quiet: bool, threshold: float | None, command: list[str]
) -> tuple[dict[str, Any] | None, list[Failure]]:
    """Train the incomplete runs and write the report.

    Returns: the object of `pgcli compare --json`, and the failed runs, which count in it (see `write_report`). None
    instead of the object if a run directory is unusable or in use.
    Raises: Interrupted, after saving the unfinished runs.
    """
    from pgcli.studies.comparison import check_folder, write_report  # imports numpy

    check_folder(comparison.folder)
    missing = [(config, path) for config, path in comparison.runs if not is_complete(config, path)]
    failures = _train(comparison, missing, jobs, quiet) if missing else []
    if any(failure.exit_code in (RunDirectoryError.exit_code, RunInUse.exit_code) for failure in failures):
        return None, failures
    variants = comparison.variants
    paths = {variant.label: {seed: variant.run_path(seed) for seed in comparison.seeds} for variant in variants}
    result = write_report(comparison.folder, variants[0].config, paths, threshold, command)
    return result, [
        failure for failure in failures if failure.exit_code != Diverged.exit_code
    ]  # a diverged run is a result


def _train(comparison: Comparison, missing: list[tuple[Config, Path]], jobs: int, quiet: bool) -> list[Failure]:
    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(missing[0][0].env)  # reports an unknown environment before torch is imported
        _check_deviations(comparison.variants)

        from pgcli.experiment.jobs import Failure, run_all
        from pgcli.experiment.run import Request, check_request
        from pgcli.report.display import ComparisonView, make_display
        from pgcli.report.logs import logged

        requests = [Request(config, path, sys.argv[1:], resume=True) for config, path in missing]
        for request in requests:
            check_request(request)
        labels = {variant.folder: variant.label for variant in comparison.variants}
        complete = len(comparison.runs) - len(missing)
        view = ComparisonView([labels[path.parent] for _, path in missing], complete)
        try:
            with closing(make_display(view, quiet)) as display:
                results = run_all(requests, jobs, display.show, logged)
        except Interrupted as interruption:
            interruption.hint = "run the same command again to continue"
            raise
    return [result for result in results if isinstance(result, Failure)]


def _check_axes(axes: list[tuple[str, list[str]]], fixed: list[str]) -> None:
    keys = [key for key, _ in axes]
    if not keys:
        raise UsageError("nothing to compare", "give a key several values, for example algorithm.baseline=none,mean")
    if len(set(keys)) < len(keys):
        raise UsageError("a key has several values twice", "use one KEY=A,B per key")
    if "seed" in [word.partition("=")[0] for word in fixed]:
        raise UsageError("a comparison does not use seed=…", "set the seeds with --seeds 0-9")
    for key in keys:
        if key.startswith(_SHARED):
            hint = "set the seeds with --seeds 0-9" if key == "seed" else f"give `{key}` one value"
            raise UsageError(f"`{key}` cannot differ between variants: they share budget and evaluation", hint)
        if key.startswith(_TASK):
            raise UsageError(
                f"`{key}` changes the task, and returns of different tasks are not comparable",
                "run one comparison per task",
            )


def _notices(configs: list[Config], keys: list[str], steps: int) -> list[str]:
    """Return notices about replaced settings, and settings that may make returns incomparable."""
    notices = []
    left_out = {
        key: None
        for config in configs
        for key in ("stop_at_return", "stop_at", "patience")
        if getattr(config.evaluation, key)
    }
    if left_out:
        names = ", ".join(f"evaluation.{key}" for key in left_out)
        notices.append(f"{names} {'is' if len(left_out) == 1 else 'are'} ignored: every run uses its whole budget")
    if any(key.startswith("env.wrappers") for key in keys):
        notices.append("the variants have different wrappers: if a wrapper changes rewards, returns are not comparable")
    if any(config.training.env_steps is None for config in configs):
        notices.append(f"every run has {steps:,} env steps: iterations times steps per iteration")
    return notices


def _equal_budget(configs: list[Config]) -> int:
    """Return the env steps of every run.

    Raises: UsageError if the variants' budgets differ or are unknown.
    """
    budgets = set()
    for config in configs:
        training, rollout = config.training, config.rollout
        if training.seconds is not None:
            raise UsageError(
                "with training.seconds, variants have unequal numbers of env steps",
                "add training.seconds=null training.env_steps=100000",
            )
        if training.env_steps is not None:
            if training.iterations is not None:
                raise UsageError(
                    "training.iterations may end a variant before its env steps", "add training.iterations=null"
                )
            budgets.add(training.env_steps)
        elif rollout.steps:
            budgets.add((training.iterations or DEFAULT_ITERATIONS) * rollout.steps * config.env.num_envs)
        else:
            also = "" if training.iterations is None else " training.iterations=null"
            raise UsageError(
                "iterations of whole episodes have unequal numbers of env steps, and variants need the same number",
                f"add training.env_steps=100000{also}; `pgcli doctor` estimates the steps per iteration",
            )
    if len(budgets) > 1:
        most = max(budgets)
        raise UsageError("the variants have unequal numbers of env steps", f"add training.env_steps={most}")
    return int(budgets.pop())


def _folder_name(text: str) -> str:
    """Convert a label to a folder name."""
    return (
        re.sub(r"[^\w.=,-]+", "_", re.sub(r"[\[\]{}'\"]", "", text), flags=re.ASCII).strip("_-.")[:_LONGEST]
        or "variant"
    )
