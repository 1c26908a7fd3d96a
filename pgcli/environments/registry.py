"""Environments and wrappers by name: Gymnasium's, other packages', and those of modules in the current folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, find_highest_version, load_env_creator, parse_env_id

from pgcli.config.schema import EnvConfig, WrapperConfig
from pgcli.environments.failures import describe, is_user_error, line_of, message_of
from pgcli.errors import EnvironmentFailure, PgcliError, UsageError, closest
from pgcli.system.packages import install_command

HERE = str(Path.cwd())  # before an environment can change it
_ATARI = "ALE"  # the namespace of the package that is imported without being named
_EXTRAS = ("box2d", "mujoco", "atari")  # of pgcli, with the names of Gymnasium's own
_OLD_GYM = (
    'its class must derive from gymnasium.Env; one for `gym` runs by `pip install "shimmy[gym-v26]"` and '
    "env: {id: GymV26Environment-v0, kwargs: {env_id: …}}"
)


def spec(config: EnvConfig) -> EnvSpec:
    """Return the entry of the environment in Gymnasium's registry, after importing the module that its id names.

    Raises: EnvironmentFailure, with a hint that fixes it.
    """
    name, module = config.id.rpartition(":")[2], _module_of(config.id)
    if module is None and name not in gym.registry:
        _import_atari(name)
    if name in gym.registry:
        return gym.registry[name]
    if module is not None and _is_environment(getattr(module, name, None)):
        return EnvSpec(config.id, entry_point=config.id)
    raise _unknown(config.id, name, module)


def reward_threshold(config: EnvConfig) -> float | None:
    """Return the mean return at which the environment counts as solved, by its entry in Gymnasium's registry.

    An entry holds for its own arguments and time limit, so another entry of the same class may be the right one:
    LunarLander-v3 with `continuous: true` is LunarLanderContinuous-v3. None holds where a wrapper may change rewards or
    where episodes end: under any but those that only convert observations or actions.
    """
    found = spec(config)
    if not all(_keeps_rewards(_wrapper(wrapper.name)) for wrapper in config.wrappers):
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


def build(
    config: EnvConfig, render_mode: str | None = None, used: list[dict[str, Any]] | None = None
) -> gym.Env[Any, Any]:
    """Build one environment with its wrappers. The arguments that each wrapper accepted are appended to `used`.

    Raises: EnvironmentFailure or UsageError, with a hint that fixes it.
    """
    found = spec(config)
    if render_mode is None and any(wrapper.name.endswith("AddRenderObservation") for wrapper in config.wrappers):
        render_mode = "rgb_array"
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    try:
        if isinstance(found.entry_point, str):
            load_env_creator(found.entry_point)
        _redirect_warnings_of_mujoco()
        env: gym.Env[Any, Any] = gym.make(
            found, max_episode_steps=config.max_episode_steps, disable_env_checker=True, **rendering, **config.kwargs
        )
    except BaseException as error:
        _raise_unbuildable(config, found, error)
    for wrapper in config.wrappers:
        env, arguments = _wrap(env, wrapper)
        if used is not None:
            used.append(arguments)
    return env


def build_vector(
    config: EnvConfig, num_envs: int, render_mode: str | None = None
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Build the environment's own vector form.

    Raises: EnvironmentFailure or UsageError, with a hint that fixes it.
    """
    found, options = spec(config), {"max_episode_steps": config.max_episode_steps, "render_mode": render_mode}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        return gym.make_vec(found, num_envs, vectorization_mode="vector_entry_point", **given, **config.kwargs)
    except BaseException as error:
        _raise_unbuildable(config, found, error)


def _is_environment(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, gym.Env)


def _unknown(env_id: str, name: str, module: ModuleType | None) -> EnvironmentFailure:
    """Describe an unknown name, with the most similar known one."""
    prefix = env_id.removesuffix(name)
    if module is not None and hasattr(module, name):
        return EnvironmentFailure(f"{env_id} is no gymnasium.Env", _OLD_GYM)
    try:
        namespace, bare, _ = parse_env_id(name)
    except gym.error.Error:
        namespace, bare = None, name
    if versions := [one for one in gym.registry.values() if (one.namespace, one.name) == (namespace, bare)]:
        newest = max(versions, key=lambda one: one.version or 0)
        known = ", ".join(f"`{one.id if one.version is None else f'v{one.version}'}`" for one in versions)
        return EnvironmentFailure(f"{env_id} does not exist, but {known} of it", f"did you mean `{prefix}{newest.id}`?")
    namespaces = {one.namespace for one in gym.registry.values() if one.namespace} | {_ATARI}
    if namespace and namespace not in namespaces:
        hint = _suggestion(namespace, namespaces, suffix=f"/{name.partition('/')[2]}")
        hint = hint or f"`module:{name}` imports the module that registers it"
        return EnvironmentFailure(f"no environment has the namespace `{namespace}`", hint)
    classes = [key for key, value in vars(module).items() if _is_environment(value)] if module else []
    hint = _suggestion(name, [*classes, *gym.registry], prefix)
    if module:
        own = f"its classes of gymnasium.Env: {', '.join(classes[:8])}"
        hint = hint or (own if classes else "it has no class of gymnasium.Env")
        return EnvironmentFailure(f"`{module.__name__}` has no environment `{name}`", hint)
    hint = hint or f"one of another package or of a file goes by `module:{name}` or `module:Class`"
    return EnvironmentFailure(f"no environment `{name}` is registered", hint)


def _raise_unbuildable(config: EnvConfig, found: EnvSpec, error: BaseException) -> NoReturn:
    """Raise the error of a constructor as a failure of the environment, or of its `env.kwargs`."""
    if not is_user_error(error):
        raise error
    if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
        raise _missing_dependency(config.id, error) from error
    if isinstance(error, TypeError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_code is gym.make.__code__ and error.__context__ is None:  # gym.make rejects what it built
            raise EnvironmentFailure(f"{config.id} builds no gymnasium.Env", _OLD_GYM) from error
        error = error.__cause__ or error.__context__ or error  # Gymnasium adds its own words
        if needed := re.search("missing .* argument.*?: '(.+?)'", message_of(error)):
            raise UsageError(f"env.kwargs: {config.id} needs `{needed[1]}`", f"set `env.kwargs.{needed[1]}`") from error
        unknown = _unexpected_argument(error)
        if unknown == "render_mode":
            message = f"{config.id} cannot be filmed: its constructor takes no render_mode"
            hint = "give it one, and let render() return pictures for `rgb_array`"
            raise EnvironmentFailure(message, hint) from error
        if unknown in config.kwargs:
            hint = _accepted_arguments(unknown, found.entry_point)
            raise UsageError(f"env.kwargs: {config.id} takes no `{unknown}`", hint) from error
    raise EnvironmentFailure(f"{config.id} cannot be built: {describe(error)}") from error


def _unexpected_argument(error: BaseException) -> str:
    """Return the name of the keyword argument that a call does not accept; Python has it in the message only."""
    found = re.search("unexpected keyword argument '(.+?)'", message_of(error))
    return found[1] if found else ""


def _accepted_arguments(name: str, constructor: Any) -> str:
    """Suggest the argument most similar to `name`, or list all arguments."""
    if isinstance(constructor, str):
        constructor = load_env_creator(constructor)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(constructor).parameters.values()
    known = [one.name for one in parameters if one.kind in kinds and one.name not in ("env", "render_mode")]
    return _suggestion(name, known) or (f"it takes {', '.join(known)}" if known else "it takes none")


def _missing_dependency(name: str, error: BaseException) -> EnvironmentFailure:
    """Describe a package that is not installed, with the command that installs it."""
    message = message_of(error)
    if not isinstance(error, ImportError):  # Gymnasium's own: "X is not installed, run `pip install …`"
        message = re.split(r",|\btherefore\b", message)[0].strip()
    found = gym.registry.get(name)
    if found and getattr(found.entry_point, "__module__", "") == gym.envs.__name__:  # its stub for a removed version
        hint = f"did you mean `{name.rpartition('-v')[0]}-v{newer_version(found)}`?"
        return EnvironmentFailure(f"{name}: {message}", hint)
    return EnvironmentFailure(f"{name}: {message}", _install_command(error))


def _install_command(error: BaseException) -> str:
    """Return the command that installs a missing requirement, or an instruction; "" if it is installed but broken."""
    text = str(error).lower()
    if "opencv" in text or "'cv2'" in text:
        return install_command("atari") if "atari" in text else "pip install opencv-python-headless"
    if "'jax'" in text:
        return 'pip install "gymnasium[jax]"'
    if extras := [one for one in _EXTRAS if one in text]:
        return install_command(extras[0])
    if commands := re.findall("`(pip install [^`]+)`", str(error)):
        return str(commands[-1])
    absent = isinstance(error, gym.error.DependencyNotInstalled | ModuleNotFoundError)
    return "install the package that has it" if absent else ""


def _suggestion(name: str, names: Iterable[str], prefix: str = "", suffix: str = "") -> str:
    """Suggest the most similar of `names`, ignoring case; "" if none is similar."""
    spelled = {one.lower(): one for one in names}
    close = closest(name.lower(), spelled)
    return f"did you mean `{prefix}{spelled[close]}{suffix}`?" if close else ""


def _redirect_warnings_of_mujoco() -> None:
    """Turn MuJoCo's warnings into Python's. By default it prints them, and adds them to MUJOCO_LOG.TXT."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    text = text.partition(" Time = ")[0]  # equal texts are shown once
    with suppress(Warning):  # where warnings are errors: an exception cannot pass through MuJoCo
        warnings.warn(text, DeprecationWarning if "deprecated" in text else RuntimeWarning, stacklevel=1)


def import_module(name: str, wanted_by: str) -> ModuleType:
    """Import a module that a config names. The current folder is searched last, so that it hides no package.

    Raises: EnvironmentFailure, with the line of the module that failed.
    """
    if HERE not in sys.path:
        sys.path.append(HERE)
    try:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ModuleNotFoundError(name=name)  # a path, say, or nothing
        return importlib.import_module(name)
    except BaseException as error:
        if not is_user_error(error):
            raise
        raise _import_failure(name, wanted_by, error) from error


def _import_failure(name: str, wanted_by: str, error: BaseException) -> PgcliError:
    line = f" ({line_of(error)})" if line_of(error) else ""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (f"{name}.".startswith(f"{missing}.") or missing.startswith(f"{name}.")):
        known = (one.name for one in pkgutil.iter_modules())
        hint = _suggestion(name.removeprefix("./").removesuffix(".py"), known)
        hint = hint or "install the package that has it, or go to the folder of its file"
        message = f"{wanted_by}: there is no module `{name}`, neither installed nor in the current folder"
        return EnvironmentFailure(message, hint)
    if missing:
        message = f"{wanted_by}: the module `{name}` needs `{missing}`, which is not installed{line}"
        return EnvironmentFailure(message, "install the package that has it")
    if isinstance(error, SystemExit):
        message = f"{wanted_by}: the module `{name}` leaves Python when it is imported{line}"
        return EnvironmentFailure(message, 'what is to run as a program belongs under `if __name__ == "__main__":`')
    return EnvironmentFailure(f"{wanted_by}: importing `{name}` raised {describe(error)}")


def _module_of(name: str) -> ModuleType | None:
    """Import the module of `module:Name`; return None for a name alone."""
    module, colon, _ = name.rpartition(":")
    return import_module(module, f"`{name}`") if colon else None


def _import_atari(name: str) -> None:
    """Import Atari's package, which registers its environments; only they need it."""
    try:
        importlib.import_module("ale_py")
    except ImportError as error:
        if name.startswith(f"{_ATARI}/"):
            raise EnvironmentFailure(
                f"{name}: Atari's package `ale_py` is not installed", install_command("atari")
            ) from error


def _wrap(env: gym.Env[Any, Any], wrapper: WrapperConfig) -> tuple[gym.Env[Any, Any], dict[str, Any]]:
    """Wrap `env`; return the wrapped environment and the arguments that the wrapper accepted.

    YAML has lists only. A wrapper that rejects them gets tuples, then arrays.
    """
    constructor = _wrapper(wrapper.name)
    first: Exception | None = None
    for form in (list, tuple, _array):
        arguments = {key: _converted(value, form) for key, value in wrapper.kwargs.items()}
        try:
            wrapped = constructor(env, **arguments)
            if not isinstance(wrapped, gym.Env):
                raise EnvironmentFailure(f"wrapper {wrapper.name} gave no gymnasium.Env", "a wrapper returns one")
            return wrapped, arguments
        except (TypeError, ValueError, AssertionError) as error:
            first = first or error
            if not any(isinstance(value, list) for value in wrapper.kwargs.values()):
                break
        except BaseException as error:
            if not is_user_error(error):
                raise
            if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
                raise _missing_dependency(f"wrapper {wrapper.name}", error) from error
            raise EnvironmentFailure(f"wrapper {wrapper.name}: {describe(error)}", "see its kwargs") from error
    assert first is not None
    if (unknown := _unexpected_argument(first)) in wrapper.kwargs:
        message = f"env.wrappers: wrapper {wrapper.name} takes no `{unknown}`"
        raise UsageError(message, _accepted_arguments(unknown, constructor)) from first
    raise EnvironmentFailure(f"wrapper {wrapper.name}: {describe(first)}", "see its kwargs") from first


def _array(numbers: list[Any]) -> np.ndarray[Any, Any]:
    """Return an array; real numbers as float32, the type of nearly every Box."""
    array = np.asarray(numbers)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _converted(value: Any, form: Callable[[Any], Any]) -> Any:
    return form([_converted(item, form) for item in value]) if isinstance(value, list) else value


def _wrapper(name: str) -> Callable[..., Any]:
    """Find a wrapper: a class of Gymnasium's by its name, any other callable as `module:Class`."""
    module, attribute = _module_of(name), name.rpartition(":")[2]
    if module is not None and callable(found := getattr(module, attribute, None)):
        return found  # type: ignore[no-any-return]  # it is called with the environment, whatever its type
    if module is None:
        try:
            found = getattr(gym.wrappers, attribute, None)
        except (ImportError, gym.error.DependencyNotInstalled) as error:  # of those for jax and torch, imported lazily
            raise _missing_dependency(f"wrapper {name}", error) from error
        if inspect.isclass(found) and issubclass(found, gym.Wrapper):
            return found
    place, names = (gym.wrappers, gym.wrappers.__all__) if module is None else (module, vars(module))
    candidates = [one for one in names if one in vars(place) and inspect.isclass(vars(place)[one])]
    hint = _suggestion(attribute, candidates, name.removesuffix(attribute))
    hint = hint or "Gymnasium's wrappers go by their name, others as `module:Class`"
    raise EnvironmentFailure(f"wrapper `{name}` not found", hint)
