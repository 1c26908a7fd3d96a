"""The variants of a comparison: settings of one config, several configs, or folders of existing runs.

The runs of a trained comparison are variants × seeds. The name of a variant's folder has a digest of its config, so
comparisons in one folder share the runs of equal variants.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

from pgcli.config import Config, flat, load_config, override, shipped_configs, shipped_suites, to_data
from pgcli.config.names import OTHER_KEYS, as_text, folder_name, short_keys
from pgcli.config.order import differences, orders_of
from pgcli.config.rules import CONDITIONAL, effective, without_effect
from pgcli.config.schema import DEFAULT_ITERATIONS
from pgcli.errors import RunDirectoryError, UsageError
from pgcli.runs.information import find_run_hint

_UNLISTED = ("name", "seed", "checkpoint.", "sampling.", "logging.")  # without effect on results
_NOTHING = "for example `pgcli compare CONFIG algorithm.baseline=none,mean`, two configs, or two folders of runs"


@dataclass(frozen=True)
class Variant:
    """One setting of a comparison: its label, its config for any seed, and its runs.

    Runs are pairs of seed and directory.
    """

    label: str
    config: Config
    runs: list[tuple[int, Path]]

    @property
    def start_states(self) -> object:
        """What the reset seeds of episodes depend on, in addition to the seed of a run."""
        return "segments" if self.config.rollout.steps is not None else self.config.group_size


@dataclass(frozen=True)
class Comparison:
    """Variants, the folder of the report, and whether their runs exist already.

    `env_steps` is their budget.
    """

    variants: list[Variant]
    folder: Path
    env_steps: int | None
    exists: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """The seeds of all variants, in order of their first run."""
        return list(dict.fromkeys(seed for variant in self.variants for seed, _ in variant.runs))

    @property
    def runs(self) -> list[tuple[Config, Path]]:
        """All runs, ordered by seed, so that an interrupted comparison has equal numbers of each variant."""
        return [
            (override(variant.config, [f"seed={seed}"]), path)
            for at in self.seeds
            for variant in self.variants
            for seed, path in variant.runs
            if seed == at
        ]


# From words to configs


def sorted_words(words: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """Sort words into configs, folders of runs, and `KEY=VALUE`.

    Raises: UsageError for a mixture, RunDirectoryError.

    A folder has runs, unless its name is that of a shipped config or suite and it has none.
    """
    configs, folders, settings = [], [], []
    shipped = shipped_configs() | shipped_suites()
    for word in words:
        path = Path(word)
        if path.is_dir() and (word not in shipped or any(path.rglob("metrics.csv"))):
            folders.append(path)
        elif "=" in word and not path.is_file():
            settings.append(word)
        else:
            configs.append(word)
    if folders and (other := next(iter([*settings, *configs]), None)):
        if other in configs and not (Path(other).exists() or other in shipped):
            raise RunDirectoryError(f"{other}: no such directory", find_run_hint(Path(other)))
        what = "a setting" if other in settings else "a config"
        raise UsageError(
            f"`{folders[0]}` is a folder of existing runs, and `{other}` is {what}: they cannot be combined",
            f"compare folders of runs, or configs, which are trained; {folders[0]}/…/config.yaml is a config",
        )
    return configs, folders, settings


def parse_comparison(
    configs: Sequence[str], settings: Sequence[str], seeds: list[int], folder: Path | None
) -> Comparison:
    """Plan a comparison of configs, named by their locations, as `plan_comparison`."""
    if twice := next((one for one in configs if configs.count(one) > 1), None):
        raise UsageError(f"`{twice}` occurs twice: both would train the same run", "name each config once")
    names = location_names(configs)
    return plan_comparison({names[one]: (one, []) for one in configs}, settings, seeds, folder)


def plan_comparison(
    configs: Mapping[str, tuple[str, list[str]]], settings: Sequence[str], seeds: list[int], folder: Path | None
) -> Comparison:
    """Plan the runs of all combinations of configs and values; `KEY=A,B` has several values.

    Every run has the same budget of env steps. For segments, it may follow from the number of iterations. Whole
    episodes differ in length, so they need training.env_steps.

    Args: configs: by label, location and overrides; settings: of all configs, after their own.
    Raises: ConfigError, UsageError.
    """
    fixed, axes = [], []
    for word in settings:
        key, equals, value = word.partition("=")
        values = split_values(value) if equals else []
        if len(values) > 1:
            axes.append((key, values))
        else:
            fixed.append(word)
    keys = [key for key, _ in axes]
    _check_compared(configs, keys, fixed)
    short, labels, variants = short_keys(keys), [], []
    for label, *values in product(configs, *(values for _, values in axes)):
        named = map("=".join, zip(short, values, strict=True))
        labels.append(", ".join([label, *named] if len(configs) > 1 else named))
        location, own = configs[label]
        variants.append((location, [*own, *fixed, *map("=".join, zip(keys, values, strict=True))]))
    ready, steps, notices = comparable_configs(variants)
    if len(configs) > 1 and (differing := differing_settings(ready)):
        notices.append(f"the configs differ in {', '.join(differing)}; report.md lists the values")
    if folder is None:
        names = list(dict.fromkeys(config.name for config in ready))
        folder = default_folder([*names, *short] if len(configs) > 1 else [names[0], *short])
    check_different(labels, ready)
    planned = [variant_of(label, config, seeds, folder) for label, config in zip(labels, ready, strict=True)]
    return Comparison(planned, folder, steps, notices=notices)


def comparable_configs(variants: Sequence[tuple[str, list[str]]]) -> tuple[list[Config], int, list[str]]:
    """Load the config of each variant, and give all of them the same budget, without stopping rules.

    Args: variants: location and overrides of each.
    Returns: the configs, the env steps of every run, and notices.
    Raises: ConfigError; UsageError unless they have one task, one evaluation and one budget.
    """
    loaded = _load(variants)
    doubts = check_comparable(loaded)
    steps = _equal_budget(loaded)
    equal = [f"training.env_steps={steps}", "training.iterations=null"]
    ready = [override(config.without_stopping(), equal) for config in loaded]
    return ready, steps, [*_notices(loaded, steps), *doubts]


def variant_of(label: str, config: Config, seeds: Sequence[int], folder: Path) -> Variant:
    """Return a variant with its runs in `folder`/runs; equal configs with equal labels share runs."""
    home = folder / "runs" / f"{folder_name(label)}-{digest(config)}"
    return Variant(label, config, [(seed, home / f"seed-{seed}") for seed in seeds])


def location_names(locations: Sequence[str]) -> dict[str, str]:
    """Return short names of configs: without `.yaml`, if they stay different."""
    names = {one: re.sub(r"\.ya?ml$", "", one) for one in locations}
    return names if len(set(names.values())) == len(names) else {one: one for one in locations}


def _load(variants: Sequence[tuple[str, list[str]]]) -> list[Config]:
    """Load the config of each variant. A key must have an effect in at least one. Raises: ConfigError."""
    idle = [{one.key for one in without_effect(load_config(name, words, CONDITIONAL))} for name, words in variants]
    used = CONDITIONAL.difference(set[str].intersection(*idle))
    return [load_config(name, words, used) for name, words in variants]


def split_values(text: str) -> list[str]:
    """Split `A,B` at commas outside brackets, braces and quotes. Raises: UsageError for an empty value."""
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


# Fair comparisons


def _check_compared(configs: Mapping[str, tuple[str, list[str]]], keys: Sequence[str], fixed: Sequence[str]) -> None:
    if not configs or not (keys or len(configs) > 1):
        for location, words in configs.values():
            load_config(location, words)  # a misspelt name is reported first
        raise UsageError("nothing to compare", _NOTHING)
    check_axes(keys)
    if "seed" in [word.partition("=")[0] for word in chain(fixed, *(words for _, words in configs.values()))]:
        raise UsageError("a comparison does not use seed=…", "set the seeds with --seeds 0-9")


def check_axes(keys: Sequence[str]) -> None:
    """Raise UsageError if a key cannot have several values, or has them twice."""
    if len(set(keys)) < len(keys):
        raise UsageError("a key has several values twice", "use one KEY=A,B per key")
    for key in keys:
        if key.startswith(OTHER_KEYS):
            hint = "set the seeds with --seeds 0-9" if key == "seed" else f"give `{key}` one value"
            raise UsageError(f"`{key}` cannot differ between variants: they share budget and evaluation", hint)


def check_comparable(configs: Sequence[Config]) -> list[str]:
    """Raise UsageError unless all variants have one task and one evaluation.

    Return notices of doubtful differences.
    """
    environments = [config.evaluation_env for config in configs]
    for name in ("id", "kwargs", "max_episode_steps"):
        if len({json.dumps(getattr(env, name)) for env in environments}) > 1:
            raise UsageError(
                f"`env.{name}` changes the task, and returns of different tasks are not comparable",
                "compare variants on one task; `evaluation.env` evaluates all of them on the same one",
            )
    for name in ("episodes", "mode"):
        values = list(dict.fromkeys(getattr(config.evaluation, name) for config in configs))
        if len(values) > 1:
            found = " and ".join(map(str, values))
            raise UsageError(
                f"the variants have different evaluations: `evaluation.{name}` is {found}",
                f"compare their configs with evaluation.{name}={values[0]}",
            )
    evaluated = [config.model_copy(update={"env": config.evaluation_env}) for config in configs]
    if len({json.dumps(to_data(config)["env"]["wrappers"]) for config in evaluated}) > 1:
        return ["the variants have different wrappers: if a wrapper changes rewards, returns are not comparable"]
    return []


def check_different(labels: Sequence[str], configs: Sequence[Config]) -> None:
    """Raise UsageError if two variants would train the same run."""
    known: dict[str, int] = {}
    for number, config in enumerate(configs):
        first = known.setdefault(result_digest(config), number)
        if first == number:
            continue
        idle = [one for i in (first, number) for one in without_effect(configs[i])]
        raise UsageError(
            f"`{labels[first]}` and `{labels[number]}` train the same run"
            + "".join(f": {one.message}" for one in idle[:1]),
            idle[0].fix if idle else "remove one of them",
        )


def _notices(configs: Sequence[Config], steps: int) -> Iterator[str]:
    """Yield notices about replaced settings."""
    rules = ("stop_at_return", "stop_at", "patience")
    if left_out := [key for key in rules if any(getattr(config.evaluation, key) for config in configs)]:
        names = ", ".join(f"evaluation.{key}" for key in left_out)
        yield f"{names} {'is' if len(left_out) == 1 else 'are'} ignored: every run uses its whole budget"
    if any(config.training.env_steps is None for config in configs):
        yield f"every run has {steps:,} env steps: iterations times steps per iteration"


def budget(config: Config) -> int | None:
    """Return the env steps of a run, or None if they depend on the lengths of episodes or on the clock."""
    training, rollout = config.training, config.rollout
    if training.seconds is not None or (training.env_steps is not None and training.iterations is not None):
        return None
    if training.env_steps is None and rollout.steps:
        return (training.iterations or DEFAULT_ITERATIONS) * rollout.steps * config.env.num_envs
    return training.env_steps


def _equal_budget(configs: Sequence[Config]) -> int:
    """Return the env steps of every run. Raises: UsageError if budgets differ or are unknown."""
    budgets = set()
    for config in configs:
        training = config.training
        if training.seconds is not None:
            raise UsageError(
                "with training.seconds, variants have unequal numbers of env steps",
                "add training.seconds=null training.env_steps=100000",
            )
        if training.env_steps is not None and training.iterations is not None:
            raise UsageError(
                "training.iterations may end a variant before its env steps", "add training.iterations=null"
            )
        steps = budget(config)
        if steps is None:
            also = "" if training.iterations is None else " training.iterations=null"
            raise UsageError(
                "iterations of whole episodes have unequal numbers of env steps, and variants need the same number",
                f"add training.env_steps=100000{also}; `pgcli doctor` estimates the steps per iteration",
            )
        budgets.add(steps)
    if len(budgets) > 1:
        most = max(budgets)
        raise UsageError("the variants have unequal numbers of env steps", f"add training.env_steps={most}")
    return int(budgets.pop())


# Names and digests


def digest(config: Config) -> str:
    """Return a digest of a config without seed and sampling: eight hexadecimal digits."""
    data = {key: value for key, value in to_data(config).items() if key not in ("seed", "sampling")}
    text = json.dumps(data, sort_keys=True) + (json.dumps(orders) if (orders := orders_of(data)) else "")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def result_digest(config: Config) -> str:
    """Return a digest of the settings that results depend on, without the seed.

    Configs with equal digests train the same run.
    """
    plain = Config()
    same = {name: getattr(plain, name) for name in ("name", "checkpoint", "logging")}
    return digest(effective(config).model_copy(update=same))


def differing_settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Return the keys in which configs differ, with the value of each config.

    Seeds and output settings are left out.
    """
    data = [to_data(config) for config in configs]
    found: dict[str, list[Any]] = {}
    for number, other in enumerate(data[1:], 1):
        for key, (first, value) in differences(data[0], other).items():
            if not key.startswith(_UNLISTED):
                found.setdefault(key, [first] * len(data))[number] = value
    order = list(flat(data[0]))
    return dict(sorted(found.items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order)))


def default_folder(names: Sequence[str], command: str = "compare") -> Path:
    """Return the folder of a study: `runs/FIRST-compare-OTHERS`."""
    first, *others = names
    return Path("runs") / folder_name("-".join([first, command, *others]))


def settings_table(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return the settings in which variants differ: a row for each key and variant."""
    return [
        {"key": key, "arm": variant.label, "value": as_text(value)}
        for key, values in differing_settings([variant.config for variant in variants]).items()
        for variant, value in zip(variants, values, strict=True)
    ]
