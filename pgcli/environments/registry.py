"""Environments and wrappers by name: Gymnasium's, other packages', and those of modules and files beside the user."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, find_highest_version, parse_env_id

from pgcli.config.schema import EnvConfig
from pgcli.environments.dependencies import missing_dependency
from pgcli.environments.modules import hidden_file, is_file, module_of, suggestion
from pgcli.errors import EnvironmentFailure
from pgcli.system.packages import install_command

ATARI = "ALE"  # the namespace of the package that is imported without being named
OLD_GYM = (
    'its class must derive from gymnasium.Env; one for `gym` runs by `pip install "shimmy[gym-v26]"` and '
    "env: {id: GymV26Environment-v0, kwargs: {env_id: …}}"
)


def spec(config: EnvConfig) -> EnvSpec:
    """Return the entry of the environment in Gymnasium's registry, after importing the module that its id names.

    Raises: EnvironmentFailure, with a hint that fixes it.
    """
    name, module = config.id.rpartition(":")[2], module_of(config.id)
    if module is None and name not in gym.registry:
        _import_atari(name)
    if name in gym.registry:
        return gym.registry[name]
    found = getattr(module, name, None) if module is not None else None
    if module is not None and (_is_environment(found) or (callable(found) and not inspect.isclass(found))):
        file = config.id.rpartition(":")[0]
        return (
            EnvSpec(f"{Path(file).stem}:{name}", entry_point=found)
            if is_file(file)
            else EnvSpec(config.id, entry_point=config.id)
        )
    raise _unknown(config.id, name, module)


def reward_threshold(config: EnvConfig) -> float | None:
    """Return the mean return at which the environment counts as solved, by its entry in Gymnasium's registry.

    An entry holds for its own arguments and time limit, so another entry of the same class may be the right one:
    LunarLander-v3 with `continuous: true` is LunarLanderContinuous-v3. None holds where a wrapper may change rewards or
    where episodes end: under any but those that only convert observations or actions.
    """
    found = spec(config)
    if not all(_keeps_rewards(find_wrapper(wrapper.name)) for wrapper in config.wrappers):
        return None
    arguments, limit = found.kwargs | config.kwargs, config.max_episode_steps or found.max_episode_steps
    entries = [found, *gym.registry.values()]
    same = [
        one
        for one in entries
        if (one.entry_point, one.kwargs, one.max_episode_steps) == (found.entry_point, arguments, limit)
    ]
    return same[0].reward_threshold if same else None


def _keeps_rewards(wrapper: Any) -> bool:
    """Return whether a wrapper leaves the steps of an environment as they are, but for observations and actions."""
    if wrapper in (gym.wrappers.FrameStackObservation, gym.wrappers.TimeAwareObservation):
        return True
    bases = (gym.ObservationWrapper, gym.ActionWrapper)
    return inspect.isclass(wrapper) and any(
        issubclass(wrapper, base) and (wrapper.step, wrapper.reset) == (base.step, base.reset) for base in bases
    )


def newer_version(found: EnvSpec) -> int | None:
    """Return the newest registered version of an environment, if it is newer than `found`."""
    newest = find_highest_version(found.namespace, found.name)
    return newest if newest and found.version is not None and newest > found.version else None


def _is_environment(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, gym.Env)


def _unknown(env_id: str, name: str, module: ModuleType | None) -> EnvironmentFailure:
    """Describe an unknown name, with the most similar known one."""
    prefix = env_id.removesuffix(name)
    if module is not None and (file := hidden_file(module)):
        return _hidden(env_id, name, module, file)
    if module is not None and hasattr(module, name):
        return EnvironmentFailure(f"{env_id} is no gymnasium.Env", OLD_GYM)
    try:
        namespace, bare, version = parse_env_id(name)
    except gym.error.Error:
        namespace, bare, version = None, name, None
    if versions := _versions(namespace, bare):
        newest = max(versions, key=lambda one: (one.version == version, one.version or 0, one.namespace is None))
        known = ", ".join(f"`{_short(one, namespace)}`" for one in versions)
        spelled = {one.name for one in versions}
        message = f"{env_id} does not exist, but {known} of it"
        if bare not in spelled:
            message = f"no environment `{name}` is registered"
        return EnvironmentFailure(message, f"did you mean `{prefix}{newest.id}`?")
    namespaces = {one.namespace for one in gym.registry.values() if one.namespace} | {ATARI}
    if namespace and namespace not in namespaces:
        hint = suggestion(namespace, namespaces, suffix=f"/{name.partition('/')[2]}")
        hint = hint or f"`module:{name}` imports the module that registers it"
        return EnvironmentFailure(f"no environment has the namespace `{namespace}`", hint)
    classes = [key for key, value in vars(module).items() if _is_environment(value)] if module else []
    hint = suggestion(name, [*classes, *gym.registry], prefix)
    if module:
        own = f"its classes of gymnasium.Env: {', '.join(classes[:8])}"
        hint = hint or (own if classes else "it has no class of gymnasium.Env")
        return EnvironmentFailure(f"`{module.__name__}` has no environment `{name}`", hint)
    hint = hint or f"name one of another package or of a file as `module:{name}`, `module:Class` or `FILE.py:Class`"
    return EnvironmentFailure(f"no environment `{name}` is registered", hint)


def _versions(namespace: str | None, name: str) -> list[EnvSpec]:
    """Return the registered versions of a name, ignoring case; without a namespace, those of all namespaces."""
    return [
        one for one in gym.registry.values() if one.name.lower() == name.lower() and namespace in (None, one.namespace)
    ]


def _short(found: EnvSpec, namespace: str | None) -> str:
    return found.id if found.version is None or found.namespace != namespace else f"v{found.version}"


def _hidden(wanted: str, name: str, module: ModuleType, file: str) -> EnvironmentFailure:
    """Describe a file of the current folder that an installed module of the same name hides."""
    where = getattr(module, "__file__", None) or "built in"
    message = f"{wanted}: the installed module `{module.__name__}` ({where}) hides {file} in the current folder"
    return EnvironmentFailure(message, f"name the file: `{file}:{name}`")


def _import_atari(name: str) -> None:
    """Import Atari's package, which registers its environments; only they need it."""
    try:
        importlib.import_module("ale_py")
    except ImportError as error:
        if name.startswith(f"{ATARI}/"):
            message = f"{name}: Atari's package `ale_py` is not installed"
            raise EnvironmentFailure(message, install_command("atari")) from error


def find_wrapper(name: str) -> Callable[..., Any]:
    """Find a wrapper: a class of Gymnasium's by its name, any other callable as `module:Class`."""
    module, attribute = module_of(name), name.rpartition(":")[2]
    if module is not None and callable(found := getattr(module, attribute, None)):
        return found  # type: ignore[no-any-return]  # it is called with the environment, whatever its type
    if module is not None and (file := hidden_file(module)):
        raise _hidden(f"wrapper {name}", attribute, module, file)
    if module is None:
        try:
            found = getattr(gym.wrappers, attribute, None)
        except (ImportError, gym.error.DependencyNotInstalled) as error:  # of those for jax and torch, imported lazily
            raise missing_dependency(f"wrapper {name}", error) from error
        if inspect.isclass(found) and issubclass(found, gym.Wrapper):
            return found
    place, names = (gym.wrappers, gym.wrappers.__all__) if module is None else (module, vars(module))
    candidates = [one for one in names if one in vars(place) and inspect.isclass(vars(place)[one])]
    hint = suggestion(attribute, candidates, name.removesuffix(attribute))
    hint = hint or "Gymnasium's wrappers go by their name, others as `module:Class`"
    raise EnvironmentFailure(f"wrapper `{name}` not found", hint)
