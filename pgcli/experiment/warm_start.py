"""Warm starts: a run takes its first weights and observation normalizer from a checkpoint.

Counters start at 0, the optimizer and all random streams are new. run.json names the checkpoint with its SHA-256, which
is part of the run's identity. The run's own checkpoint of iteration 0 is always kept, so the run does not need the
source any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gymnasium import spaces

from pgcli.algorithm.learner import Learner
from pgcli.config import Config
from pgcli.config.rules import effective
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.errors import CheckpointError, EnvironmentFailure, RunDirectoryError, UsageError, typed
from pgcli.experiment.load import foreign_modules
from pgcli.runs import checkpoints
from pgcli.runs.directory import find_checkpoint, is_run
from pgcli.runs.information import WarmStart, recorded_start

# Keys that change what the weights mean; shapes of tensors are compared, too.
_POLICY = (
    *("hidden_sizes", "activation", "layer_norm", "residual", "network", "network_kwargs", "normalize_obs"),
    *("memory", "memory_size", "distribution"),
)
_VALUE = ("hidden_sizes", "shared_trunk")
_LONGEST = 200  # characters of a space in a message


def find_start(source: Path) -> WarmStart:
    """Return a checkpoint, or the last one of a run. Raises: RunDirectoryError."""
    file = find_checkpoint(source)
    iteration = checkpoints.load(file).counters["iteration"]
    return WarmStart(str(source.absolute()), str(file.absolute()), checkpoints.digest_of(file), iteration)


def starts_of(paths: Sequence[Path], source: Path, *, resume: bool) -> list[WarmStart]:
    """Return the start that `source` names for each run; it is the same for all.

    A resumed run that named the same source keeps its start, also if the source was changed or deleted.
    Raises: RunDirectoryError if another run would start from what the source is now.
    """
    named = [recorded_start(path) if resume else None for path in paths]
    own = [one if one is not None and one.source == str(source.absolute()) else None for one in named]
    found = None if all(own) else find_start(source)
    for path, one in zip(paths, own, strict=True):
        if one is not None and found is not None and one.sha256 != found.sha256:
            raise RunDirectoryError(
                f"{path}: the run started from {one}, and the others would start from {found}",
                "the source has changed; use another --run-dir",
            )
    return [start for start in (one or found for one in own) if start is not None]


def check_same_start(start: WarmStart | None, path: Path) -> None:
    """Raise RunDirectoryError unless the run in `path` has this start; None: new weights."""
    recorded = recorded_start(path)
    if (start and start.sha256) == (recorded and recorded.sha256):
        return
    asked = "this command has no --from" if start is None else f"this command starts from {start}"
    raise RunDirectoryError(
        f"{path}: the run started from {recorded or 'new weights'}, but {asked}",
        f"`pgcli resume {typed(path)}` continues it; use another --run-dir, or --overwrite this one",
    )


def initialize(learner: Learner, start: WarmStart) -> list[str]:
    """Copy weights and observation normalizer of a checkpoint into a new learner; return notices.

    Raises: UsageError for other spaces or networks, with the difference; CheckpointError for a file that is damaged
    or has changed.
    """
    name, config = start.checkpoint, learner.config
    checkpoint = checkpoints.load(Path(name))
    if checkpoints.digest_of(Path(name)) != start.sha256:
        raise CheckpointError(f"{name}: has changed since the run was started from it (sha256 {start.sha256[:12]})")
    source = checkpoint.read_config(name)
    notices = list(_check_spaces(config.env, source.env, name))
    parts = [part for part in ("policy", "value") if part == "policy" or (config.has_value and source.has_value)]
    _check_keys(config, source, parts, name)
    prefixes = tuple(f"{part}." for part in parts)
    own, found = (
        {key: tensor for key, tensor in tensors.items() if key.startswith(prefixes)}
        for tensors in (learner.state_dict(), checkpoint.agent)
    )
    _check_shapes(own, found, name)
    checkpoints.check_tensors(found, own, name)
    learner.load_state_dict(found)
    if config.has_value and not source.has_value:
        notices.append(f"{name} has no value function: that of this run starts with new weights")
    return notices


def _check_spaces(env: EnvConfig, source: EnvConfig, name: str) -> Iterator[str]:
    """Raise UsageError if the source has other spaces; yield a notice if they cannot be compared.

    The source's environment is built only if it imports no module that this run does not import.
    """
    keys = ("id", "kwargs", "wrappers")
    if all(getattr(env, key) == getattr(source, key) for key in keys):
        return
    unknown = set(foreign_modules([source])) - set(foreign_modules([env]))
    try:
        if unknown:
            raise EnvironmentFailure(f"it imports {', '.join(sorted(unknown))}")
        found, own = check_environment(source), check_environment(env)
    except (EnvironmentFailure, UsageError) as error:
        yield f"the spaces of {source.id}, the environment of {name}, were not compared: {error.message}"
        return
    for key in ("observation_space", "action_space"):
        theirs, ours = getattr(found, key), getattr(own, key)
        if theirs != ours:
            where, theirs, ours = _first_difference(key.replace("_", " "), theirs, ours)
            raise UsageError(
                f"--from {name}: its {where} is {_short(theirs)}, but {env.id} has {_short(ours)}",
                "the weights fit only an environment with the same observation and action space",
            )


def _first_difference(where: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """Return the innermost part in which two spaces differ, with its place."""
    if isinstance(a, spaces.Dict) and isinstance(b, spaces.Dict) and a.spaces.keys() == b.spaces.keys():
        pairs: list[Any] = [(key, a[key], b[key]) for key in a.spaces]
    elif isinstance(a, spaces.Tuple) and isinstance(b, spaces.Tuple) and len(a) == len(b):
        pairs = [(number, one, other) for number, (one, other) in enumerate(zip(a, b, strict=True))]
    else:
        return where, a, b
    key, one, other = next(pair for pair in pairs if pair[1] != pair[2])
    return _first_difference(f"{where}[{key!r}]", one, other)


def _short(space: object) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _check_keys(config: Config, source: Config, parts: list[str], name: str) -> None:
    """Raise UsageError, with keys and values, unless the networks of both configs are equal."""
    ours, theirs = effective(config), effective(source)
    keys = [f"policy.{key}" for key in _POLICY if key != "memory_size" or ours.policy.memory != "none"]
    keys += [f"value.{key}" for key in _VALUE] if "value" in parts else []
    values = [(key, _value(theirs, key), _value(ours, key)) for key in keys]
    different = [f"{key} is {there} there and {here} here" for key, there, here in values if there != here]
    if different:
        raise UsageError(f"--from {name}: another network: {'; '.join(different)}", "give these keys the same values")


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    if value is None and name == "hidden_sizes":
        return config.policy.hidden_sizes
    if name == "distribution":  # the others follow from the action space
        return value if value in ("tanh_gaussian", "state_dependent_gaussian") else "auto"
    return value


def _check_shapes(own: dict[str, Any], found: dict[str, Any], name: str) -> None:
    """Raise UsageError, with the first difference, unless tensors have the same names and shapes."""
    optional = {key for key in own if key.endswith(checkpoints.OPTIONAL)}
    for key in [*own, *(key for key in found if key not in own)]:
        theirs, ours = (list(side[key].shape) if key in side else "missing" for side in (found, own))
        if theirs != ours and key not in optional:
            raise UsageError(
                f"--from {name}: another network: {key} is {theirs} there and {ours} here",
                "the weights fit only the same network; `pgcli show RUN` prints the config of a run",
            )


def has_own_state(path: Path) -> bool:
    """Return whether a run has a checkpoint, and so does not need its source any more."""
    return is_run(path) and bool(checkpoints.list_checkpoints(path / "checkpoints"))
