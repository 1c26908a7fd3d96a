"""Names of folders, from labels and from the keys in which a config differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgcli.config.load import Origin, read_config, to_data
from pgcli.config.order import differences
from pgcli.config.schema import Config
from pgcli.errors import ConfigError

# Budget, evaluation and files: a run with other ones is the same experiment.
OTHER_KEYS = ("name", "seed", "training.", "evaluation.", "checkpoint.", "sampling.", "logging.", "diagnostics.")
_LONGEST = 60  # characters


def folder_name(text: str) -> str:
    """Convert a label to a folder name."""
    return (
        re.sub(r"[^\w.=,-]+", "_", re.sub(r"[\[\]{}'\"]", "", text), flags=re.ASCII).strip("_-.")[:_LONGEST]
        or "variant"
    )


def short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last part of each dotted key, or all whole keys if parts are equal."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len(set(last)) == len(last) else list(keys)


def as_text(value: Any) -> str:
    """Return the value of a key as on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def with_run_name(config: Config, origin: Origin, overrides: Sequence[str], start: Path | None = None) -> Config:
    """Return the config with a name that lists what was changed: `cartpole,learning_rate=0.01`.

    So a run with another key does not collide with the run of the config itself. Seed, budget, evaluation and output
    are not in the name, because one run may be continued with other ones. A name in `overrides` is kept.

    Args: origin: the config before the overrides; start: the run or the checkpoint that the weights come from.
    """
    if any(text.startswith("name=") for text in overrides):
        return config
    try:
        plain = read_config(origin) if overrides else config
    except ConfigError:  # the file is valid with the overrides only
        plain = Config()
    changed = differences(to_data(plain), to_data(config))
    values = {} if start is None else {"from": _source_name(start)}
    values |= {key: value for key, (_, value) in changed.items() if not key.startswith(OTHER_KEYS)}
    if not values:
        return config
    words = map("=".join, zip(short_keys(list(values)), map(as_text, values.values()), strict=True))
    text = ",".join([config.name, *(folder_name(word.replace(", ", ",")) for word in words)])
    if len(text) > _LONGEST:
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
        text = f"{text[: _LONGEST - len(digest) - 1]}-{digest}"
    return config.model_copy(update={"name": text})


def _source_name(start: Path) -> str:
    """Return the last names of a path: `cartpole_seed-0_iteration-000030`."""
    parts = (start if start.name not in ("", "..") else start.absolute()).with_suffix("").parts
    return "_".join([part for part in parts if part != "checkpoints"][-3 if start.suffix == ".safetensors" else -2 :])
