"""Comparisons of existing runs, in folders: nothing is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from pgcli.config import Config
from pgcli.config.names import as_text
from pgcli.config.schema import DEFAULT_ITERATIONS
from pgcli.errors import UsageError, typed
from pgcli.report.curves import find_runs
from pgcli.runs.information import stored_config
from pgcli.runs.tables import read_header
from pgcli.studies.summaries import RunSummary
from pgcli.studies.variants import (
    Comparison,
    Variant,
    budget,
    check_comparable,
    default_folder,
    differing_settings,
    digest,
    result_digest,
)

UNEQUAL = 0.05  # relative difference of env steps that is too large, where budgets are not given in env steps

Found = tuple[Config, Path]


def existing_comparison(folders: Sequence[Path], seeds: Collection[int] | None, output: Path | None) -> Comparison:
    """Make a variant of each folder, or of each config in it; copies of a run count once.

    Args: seeds: the runs to compare; None: all.
    Raises: UsageError if the variants have different tasks or evaluations; RunDirectoryError.
    """
    groups: dict[tuple[Path, str], list[Found]] = {}
    for folder in folders:
        for path in find_runs([folder]):
            config = stored_config(path)
            if seeds is None or config.seed in seeds:
                groups.setdefault((folder, digest(config)), []).append((config, path))
    copies = _copies([found for group in groups.values() for found in group])
    kept = {key: [(config, path) for config, path in group if path not in copies] for key, group in groups.items()}
    kept = {key: group for key, group in kept.items() if group}
    notices = [f"skipped: {path} is a copy of {original}" for path, original in copies.items()]
    if len(kept) < 2:
        why = f": {notices[0].removeprefix('skipped: ')}" if notices else f": all runs of {folders[0]} have one config"
        raise UsageError(f"nothing to compare{why}", "name folders of runs with different configs or seeds")
    configs = [group[0][0] for group in kept.values()]
    labels = _labels([folder for folder, _ in kept], configs)
    notices += check_comparable(configs)
    if keys := differing_settings(configs):
        notices.append(f"the runs differ in {', '.join(keys)}; report.md lists the values")
    variants = [
        Variant(label, group[0][0], sorted((config.seed, path) for config, path in group))
        for label, group in zip(labels, kept.values(), strict=True)
    ]
    steps = {budget(config) for config in configs}
    homes = list(dict.fromkeys(folder for folder, _ in kept))
    names = [home.name for home in homes]
    folder = output or default_folder(names if len(set(names)) == len(names) else list(map(str, homes)))
    return Comparison(variants, folder, steps.pop() if len(steps) == 1 else None, exists=True, notices=notices)


def _copies(runs: Sequence[Found]) -> dict[Path, Path]:
    """Return the copies in `runs`, with their originals: the same config, seed and evaluations.

    Evaluations that are the beginning of others belong to an unfinished copy.
    """
    known: dict[tuple[str, int], list[tuple[bytes, Path]]] = {}
    copies = {}
    contents = [(file.read_bytes() if (file := path / "evaluations.csv").is_file() else b"") for _, path in runs]
    for (config, path), content in sorted(zip(runs, contents, strict=True), key=lambda one: -len(one[1])):
        same = known.setdefault((result_digest(config), config.seed), [])
        if original := next((other for longer, other in same if longer.startswith(content)), None):
            copies[path] = original
        else:
            same.append((content, path))
    return copies


def _labels(folders: Sequence[Path], configs: Sequence[Config]) -> list[str]:
    """Label variants by their folders; by names or differences where a folder has several configs."""
    labels = []
    for folder, config in zip(folders, configs, strict=True):
        twins = [other for other, home in zip(configs, folders, strict=True) if home == folder]
        if len(twins) == 1:
            labels.append(str(folder))
            continue
        values = differing_settings([config, *twins])
        name = ", ".join(f"{key.rpartition('.')[2]}={as_text(value)}" for key, (value, *_) in values.items())
        if len({twin.name for twin in twins}) == len(twins) or not name:
            name = config.name
        labels.append(name if len(twins) == len(configs) else f"{folder}: {name}")
    return labels if len(set(labels)) == len(labels) else [f"{label} ({n})" for n, label in enumerate(labels, 1)]


def columns_of(comparison: Comparison) -> list[str]:
    """Return the columns of evaluations.csv in any of the runs."""
    runs = [path for variant in comparison.variants for _, path in variant.runs]
    return list(dict.fromkeys(name for path in runs for name in read_header(path / "evaluations.csv")))


def check_budget(comparison: Comparison, runs: Mapping[str, Sequence[RunSummary]]) -> None:
    """Raise UsageError unless all variants have comparable budgets.

    They have the same budget, or used about the same number of env steps.
    """
    if len({_declared(variant.config) for variant in comparison.variants}) == 1:
        return
    whole = {label: [run.steps for run in one if run.finished and not run.stopped] for label, one in runs.items()}
    used = {label: float(np.mean(steps)) for label, steps in whole.items() if steps}
    if len(used) == len(runs) and max(used.values()) <= (1 + UNEQUAL) * min(used.values()):
        return
    budgets = ", ".join(f"`{variant.label}` {_words(variant.config)}" for variant in comparison.variants)
    raise UsageError(
        f"the variants have unequal budgets: {budgets}",
        "`pgcli resume` extends a run; or compare the configs, which trains them: "
        f"`pgcli compare {' '.join(typed(one.runs[0][1] / 'config.yaml') for one in comparison.variants)} "
        "training.env_steps=…`",
    )


def _declared(config: Config) -> object:
    training, rollout = config.training, config.rollout
    per_iteration = rollout.episodes or (rollout.steps or 0) * config.env.num_envs
    return budget(config) or (training.iterations, training.env_steps, training.seconds, per_iteration)


def _words(config: Config) -> str:
    limits = {name: getattr(config.training, name) for name in ("iterations", "env_steps", "seconds")}
    found = [f"{value:,} {name.replace('_', ' ')}" for name, value in limits.items() if value is not None]
    return " or ".join(found) or f"{DEFAULT_ITERATIONS} iterations"
