"""Find environments and wrappers by name: in Gymnasium, other packages, modules and files."""

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

ATARI = "ALE"  # the namespace of ale_py, which is imported automatically
OLD_GYM = (
    'its class must derive from gymnasium.Env; to run one for the older `gym`: `pip install "shimmy[gym-v26]"` and '
    "env: {id: GymV26Environment-v0, kwargs: {env_id: …}}"
)


def spec(config: EnvConfig) -> EnvSpec:
    """Import the module in an environment's id; return its entry in Gymnasium's registry.

    Raises: EnvironmentFailure, with a hint.
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
    """Return the mean return that solves the environment, from Gymnasium's registry.

    A threshold applies to one set of arguments and one time limit. Another entry of the same class may fit better:
    LunarLander-v3 with `continuous: true` is LunarLanderContinuous-v3. Returns None if a wrapper may change rewards
    or the ends of episodes, that is for all wrappers that do more than convert observations or actions.
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
    """Return whether a wrapper changes nothing but observations and actions."""
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
        return EnvironmentFailure(f"{env_id} is not a gymnasium.Env", OLD_GYM)
    try:
        namespace, bare, version = parse_env_id(name)
    except gym.error.Error:
        namespace, bare, version = None, name, None
    if versions := _versions(namespace, bare):
        newest = max(versions, key=lambda one: (one.version == version, one.version or 0, one.namespace is None))
        known = ", ".join(f"`{_short(one, namespace)}`" for one in versions)
        spelled = {one.name for one in versions}
        message = f"{env_id} does not exist; its versions are {known}"
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
        own = f"its subclasses of gymnasium.Env: {', '.join(classes[:8])}"
        hint = hint or (own if classes else "it has no subclass of gymnasium.Env")
        return EnvironmentFailure(f"`{module.__name__}` has no environment `{name}`", hint)
    hint = hint or f"write `module:{name}`, `module:Class` or `FILE.py:Class` for another package or a file"
    return EnvironmentFailure(f"no environment `{name}` is registered", hint)


def _versions(namespace: str | None, name: str) -> list[EnvSpec]:
    """Return the registered versions of a name, ignoring case; namespace None is any."""
    return [
        one for one in gym.registry.values() if one.name.lower() == name.lower() and namespace in (None, one.namespace)
    ]


def _short(found: EnvSpec, namespace: str | None) -> str:
    return found.id if found.version is None or found.namespace != namespace else f"v{found.version}"


def _hidden(wanted: str, name: str, module: ModuleType, file: str) -> EnvironmentFailure:
    """Describe a file in the current folder that an installed module hides."""
    where = getattr(module, "__file__", None) or "built in"
    message = f"{wanted}: the installed module `{module.__name__}` ({where}) hides {file} in the current folder"
    return EnvironmentFailure(message, f"name the file: `{file}:{name}`")


def _import_atari(name: str) -> None:
    """Import Atari's package, which registers the Atari environments."""
    try:
        importlib.import_module("ale_py")
    except ImportError as error:
        if name.startswith(f"{ATARI}/"):
            message = f"{name}: Atari's package `ale_py` is not installed"
            raise EnvironmentFailure(message, install_command("atari")) from error


def find_wrapper(name: str) -> Callable[..., Any]:
    """Find a Gymnasium wrapper by its name, or any other callable as `module:Class`."""
    module, attribute = module_of(name), name.rpartition(":")[2]
    if module is not None and callable(found := getattr(module, attribute, None)):
        return found  # type: ignore[no-any-return]  # any callable of an environment
    if module is not None and (file := hidden_file(module)):
        raise _hidden(f"wrapper {name}", attribute, module, file)
    if module is None:
        try:
            found = getattr(gym.wrappers, attribute, None)
        except (
            ImportError,
            gym.error.DependencyNotInstalled,
        ) as error:  # wrappers for jax and torch are imported lazily
            raise missing_dependency(f"wrapper {name}", error) from error
        if inspect.isclass(found) and issubclass(found, gym.Wrapper):
            return found
    place, names = (gym.wrappers, gym.wrappers.__all__) if module is None else (module, vars(module))
    candidates = [one for one in names if one in vars(place) and inspect.isclass(vars(place)[one])]
    hint = suggestion(attribute, candidates, name.removesuffix(attribute))
    hint = hint or "write the name of a Gymnasium wrapper, or `module:Class`"
    raise EnvironmentFailure(f"wrapper `{name}` not found", hint)
