"""The plan of `pgcli tune`: a config, the spaces of its keys, and how trials are drawn and judged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pgcli import __version__
from pgcli.config import Config, config_from_data, flat, load_config, override, to_data
from pgcli.config.choices import PrunerName, SamplerName
from pgcli.config.names import as_text, short_keys
from pgcli.config.order import differences
from pgcli.config.rules import CONDITIONAL, without_effect
from pgcli.errors import ConfigError, RunDirectoryError, UsageError
from pgcli.runs.files import read_json, storage
from pgcli.studies.spaces import Space, Value, grid_size, parse_space, with_type, words_of
from pgcli.studies.variants import Variant, check_axes, comparable_configs, default_folder, variant_of

STUDY = "study.json"
FILES = ("journal.log", "trials.csv", "best.yaml", "history.png", "importance.png")
MOST_CORNERS = 64  # combinations of the ends of all spaces that are validated before the first trial
PARTS = 4  # of the budget, at whose ends the median pruner compares trials
REDUCTION = 3  # the reduction factor of Hyperband
_NOTHING = "for example `pgcli tune CONFIG optimizer.learning_rate=1e-4..1e-1:log training.env_steps=100000`"


@dataclass(frozen=True)
class Search:
    """A search: the config that it starts from, the spaces, and what a trial is.

    `env_steps` is the budget of each run, and `trials` the number of trials of the study.
    """

    start: Config
    spaces: dict[str, Space]
    seeds: list[int]
    folder: Path
    env_steps: int
    column: str
    trials: int
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    notices: Sequence[str] = ()

    @property
    def rungs(self) -> list[int]:
        """Env steps at which trials are compared, and may be pruned."""
        steps = self.env_steps
        if self.pruner == "median":
            return sorted({steps * part // PARTS for part in range(1, PARTS)} - {0})
        least = steps // REDUCTION**2
        return [least, least * REDUCTION] if self.pruner == "hyperband" and least else []

    def variant(self, values: Mapping[str, Value]) -> Variant:
        """Return the variant of a trial. Raises: ConfigError if its values cannot be combined."""
        config = override(self.start, words_of(values), CONDITIONAL)
        return variant_of(self.label(values), config, self.seeds, self.folder)

    def label(self, values: Mapping[str, Value]) -> str:
        """Return the label of a trial: `learning_rate=0.01, hidden_sizes=[16]`."""
        return ", ".join(map("=".join, zip(short_keys(list(values)), map(str, values.values()), strict=True)))

    @property
    def identity(self) -> dict[str, Any]:
        """What trials depend on, as plain data: two searches with equal identities are one study."""
        return {
            "config": to_data(self.start) | {"sampling": {}},  # sampling does not affect results
            "spaces": {key: space.text for key, space in self.spaces.items()},
            "seeds": self.seeds,
            "column": self.column,
            "sampler": self.sampler,
            "pruner": self.pruner,
        }

    @property
    def name(self) -> str:
        """The name of the study in Optuna's storage, which many studies may share."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"{self.start.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def plan_search(
    location: str,
    words: Sequence[str],
    seeds: list[int],
    trials: int,
    sampler: SamplerName,
    pruner: PrunerName,
    y: str,
    folder: Path | None,
) -> Search:
    """Plan a search from a config and words `KEY=SPACE`; `KEY=VALUE` sets a key for all trials.

    Raises: ConfigError, UsageError.
    """
    from pgcli.studies.execution import compared_column

    fixed, spaces = [], []
    for word in words:
        key, equals, text = word.partition("=")
        space = parse_space(key, text) if equals else None
        if space is None:
            fixed.append(word)
        else:
            spaces.append((key, space))
    keys = [key for key, _ in spaces]
    if not keys:
        load_config(location, fixed)
        raise UsageError("nothing to search", _NOTHING)
    check_axes(keys)
    found = dict(sorted(spaces))
    corners = _valid_corners(location, fixed, found)
    configs, steps, notices = comparable_configs([(location, fixed), *((location, words) for words in corners)])
    start, *others = configs
    data = [flat(to_data(config)) for config in others]
    typed = {key: with_type(key, space, [one.get(key) for one in data]) for key, space in found.items()}
    if sampler == "grid":
        trials = min(trials, grid_size(typed))
    folder = folder or default_folder([start.name, *short_keys(keys)], "tune")
    column = compared_column(y, configs)
    return Search(start, typed, seeds, folder, steps, column, trials, sampler, pruner, notices)


def _valid_corners(location: str, fixed: Sequence[str], spaces: Mapping[str, Space]) -> list[list[str]]:
    """Return the overrides of combinations of the ends of spaces that are valid configs.

    Raises: ConfigError if an end or a choice is valid in none of them, or a key has an effect in none.
    """
    edges = {key: space.edges for key, space in spaces.items()}
    corners = [dict(zip(edges, values, strict=True)) for values in _combinations(list(edges.values()))]
    valid, errors, known = list[list[str]](), dict[tuple[str, Value], ConfigError](), set[tuple[str, Value]]()
    changed, plain = dict[str, list[list[str]]](), flat(to_data(Config()))
    for corner in corners:
        words = [*fixed, *words_of(corner)]
        try:
            config = load_config(location, words, CONDITIONAL)
        except ConfigError as error:
            for one in corner.items():
                errors.setdefault(one, error)
        else:
            valid.append(words)
            known.update(corner.items())
            idle, values = {one.key for one in without_effect(config)}, flat(to_data(config))
            for key in spaces:
                if values.get(key) != plain.get(key):
                    changed.setdefault(key, []).append(words if key in idle else [])
    for one, refused in errors.items():
        if one not in known:
            raise refused
    for without in changed.values():
        if all(without):
            load_config(location, without[0])
    return valid


def _combinations(edges: Sequence[tuple[Value, ...]]) -> list[tuple[Value, ...]]:
    """Return all combinations, or if they are many, each value at least once."""
    count = 1
    for values in edges:
        count *= len(values)
    if count <= MOST_CORNERS:
        return list(product(*edges))
    longest = max(map(len, edges))
    shifted = [[values[(at + shift) % len(values)] for values in edges] for at in range(longest) for shift in (0, 1)]
    firsts = [values[0] for values in edges]
    singles = [[*firsts[:at], value, *firsts[at + 1 :]] for at, values in enumerate(edges) for value in values]
    return list(dict.fromkeys(map(tuple, [*singles, *shifted])))


# The identity of a study folder


def check_folder(search: Search) -> None:
    """Check that the folder has no other study and no files of other programs.

    Raises: RunDirectoryError with the difference.
    """
    path, hint = search.folder / STUDY, "choose another folder with -o"
    with storage(search.folder):
        if search.folder.exists() and not search.folder.is_dir():
            raise RunDirectoryError(f"{search.folder}: is a file, not a folder", hint)
        if not path.exists():
            if found := [name for name in FILES if os.path.lexists(search.folder / name)]:
                what = f"{search.folder}: contains {', '.join(found)}, which pgcli did not write"
                raise RunDirectoryError(what, hint)
            return
    known = read_json(path)
    try:
        config = to_data(config_from_data(known["config"], str(path)))
        before = {key: known[key] for key in search.identity} | {"config": config | {"sampling": {}}}
    except (KeyError, ConfigError):
        raise RunDirectoryError(f"{path}: not a study of `pgcli tune`", hint) from None
    if changed := differences(before, search.identity):
        listed = "; ".join(
            f"`{key.removeprefix('config.').removeprefix('spaces.')}` was {_shown(old)} and is {_shown(new)}"
            for key, (old, new) in changed.items()
        )
        raise RunDirectoryError(f"{search.folder}: belongs to another search: {listed}", hint)


def _shown(value: Any) -> str:
    return "not searched" if value is None else as_text(value)


def study_data(search: Search, command: Sequence[str]) -> dict[str, Any]:
    """Return the content of study.json."""
    return {"pgcli": __version__, "command": list(command), "study": search.name, **search.identity}
