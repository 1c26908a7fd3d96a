"""Environments and wrappers by name: Gymnasium's, other packages', and those of modules in the current folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator, parse_env_id

from pgcli.config.schema import EnvConfig, WrapperConfig
from pgcli.environments.failures import is_fault, told, where, words
from pgcli.errors import EnvironmentFailure, UsageError, closest

HERE = str(Path.cwd())  # before an environment can go elsewhere
_ATARI = "ALE"  # the namespace of the package that is imported without being asked
_EXTRAS = ("box2d", "mujoco", "atari")  # of pgcli, named as Gymnasium names its own
_INSTALL_ATARI = 'pip install "pgcli[atari]"'
_OLD_GYM = (
    'its class must derive from gymnasium.Env; one for `gym` runs by `pip install "shimmy[gym-v26]"` and '
    "env: {id: GymV26Environment-v0, kwargs: {env_id: …}}"
)


def spec(config: EnvConfig) -> EnvSpec:
    """Look up what is known of the environment without building it, once the module that it names is imported.

    Raises: EnvironmentFailure, with what would mend it.
    """
    name, module = config.id.rpartition(":")[2], _module_of(config.id)
    if module is None and name not in gym.registry:
        _import_atari(name)
    if name in gym.registry:
        return gym.registry[name]
    if module is not None and _is_environment(getattr(module, name, None)):
        return EnvSpec(config.id, entry_point=config.id)
    raise _unknown(config.id, name, module)


def build(
    config: EnvConfig, render_mode: str | None = None, used: list[dict[str, Any]] | None = None
) -> gym.Env[Any, Any]:
    """Build one environment with its wrappers. `used` is given the arguments that each wrapper took in the end.

    Raises: EnvironmentFailure or UsageError, with what would mend it.
    """
    found = spec(config)
    wrappers = config.wrappers
    if render_mode is None and any(wrapper.name.endswith("AddRenderObservation") for wrapper in wrappers):
        render_mode = "rgb_array"
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    limit = config.max_episode_steps
    try:
        if isinstance(found.entry_point, str):
            load_env_creator(found.entry_point)
        _take_warnings_of_mujoco()
        env: gym.Env[Any, Any] = gym.make(
            found, max_episode_steps=limit, disable_env_checker=True, **rendering, **config.kwargs
        )
    except BaseException as error:
        _refuse(config, found, error)
    for wrapper in wrappers:
        env, arguments = _wrapped(env, wrapper)
        if used is not None:
            used.append(arguments)
    return env


def build_native(
    config: EnvConfig, num_envs: int, render_mode: str | None = None
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Build the environment's own vector form.

    Raises: EnvironmentFailure or UsageError, with what would mend it.
    """
    found, limit = spec(config), config.max_episode_steps
    more: dict[str, Any] = {} if limit is None else {"max_episode_steps": limit}
    more |= {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gym.make_vec(found, num_envs, vectorization_mode="vector_entry_point", **more, **config.kwargs)
    except BaseException as error:
        _refuse(config, found, error)


def import_module(name: str, wanted_by: str) -> ModuleType:
    """Import a module that a config names. The current folder is looked at last, so that it shadows nothing.

    Raises: EnvironmentFailure, with the line of the module that is to blame.
    """
    if HERE not in sys.path:
        sys.path.append(HERE)
    try:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ModuleNotFoundError(name=name)  # a path, say, or nothing
        return importlib.import_module(name)
    except BaseException as error:
        if not is_fault(error):
            raise
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        at = f" ({where(error)})" if where(error) else ""
        if missing is not None and (
            name == missing or name.startswith(f"{missing}.") or missing.startswith(f"{name}.")
        ):
            hint = _near(name.removeprefix("./").removesuffix(".py"), (one.name for one in pkgutil.iter_modules())) or (
                "install the package that has it, or go to the folder of its file"
            )
            message = f"{wanted_by}: there is no module `{name}`, neither installed nor in the current folder"
            raise EnvironmentFailure(message, hint) from error
        if missing:
            message = f"{wanted_by}: the module `{name}` needs `{missing}`, which is not installed{at}"
            raise EnvironmentFailure(message, "install the package that has it") from error
        if isinstance(error, SystemExit):
            message = f"{wanted_by}: the module `{name}` leaves Python when it is imported{at}"
            hint = 'what is to run as a program belongs under `if __name__ == "__main__":`'
            raise EnvironmentFailure(message, hint) from error
        raise EnvironmentFailure(f"{wanted_by}: importing `{name}` raised {told(error)}") from error


def _take_warnings_of_mujoco() -> None:
    """Let MuJoCo's warnings be Python's. Of itself it prints each one, and adds it to MUJOCO_LOG.TXT in this folder."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    text = text.partition(" Time = ")[0]  # so that each is told once
    with suppress(Warning):  # where warnings are errors: there is no way for one through MuJoCo
        warnings.warn(text, DeprecationWarning if "deprecated" in text else RuntimeWarning, stacklevel=1)


def _module_of(name: str) -> ModuleType | None:
    """Import the module of `module:Name`; a name alone has none."""
    module, colon, _ = name.rpartition(":")
    return import_module(module, f"`{name}`") if colon else None


def _import_atari(name: str) -> None:
    """Import Atari's package, which registers its environments; without it, only they are missed."""
    try:
        importlib.import_module("ale_py")
    except ImportError as error:
        if name.startswith(f"{_ATARI}/"):
            raise EnvironmentFailure(f"{name}: Atari's package `ale_py` is not installed", _INSTALL_ATARI) from error


def _is_environment(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, gym.Env)


def _unknown(env_id: str, name: str, module: ModuleType | None) -> EnvironmentFailure:
    """Tell a name that nothing has, with the nearest one."""
    prefix = env_id.removesuffix(name)
    if module is not None and hasattr(module, name):
        return EnvironmentFailure(f"{env_id} is no gymnasium.Env", _OLD_GYM)
    classes = [key for key, value in vars(module).items() if _is_environment(value)] if module else []
    try:
        namespace, bare, _ = parse_env_id(name)
    except gym.error.Error:
        namespace, bare = None, name
    versions = [one for one in gym.registry.values() if (one.namespace, one.name) == (namespace, bare)]
    if versions:
        newest = max(versions, key=lambda one: one.version or 0)
        have = ", ".join(f"`{f'v{one.version}' if one.version is not None else one.id}`" for one in versions)
        return EnvironmentFailure(f"{env_id} does not exist, but {have} of it", f"did you mean `{prefix}{newest.id}`?")
    spaces_ = {one.namespace for one in gym.registry.values() if one.namespace} | {_ATARI}
    if namespace and namespace not in spaces_:
        spelled = {one.lower(): one for one in spaces_}
        close = closest(namespace.lower(), spelled)
        hint = f"did you mean `{spelled[close]}/{name.partition('/')[2]}`?" if close else ""
        return EnvironmentFailure(
            f"no environment has the namespace `{namespace}`",
            hint or f"`module:{name}` imports the module that registers it",
        )
    hint = _near(name, [*classes, *gym.registry], prefix)
    if module:
        own = (
            f"its classes of gymnasium.Env: {', '.join(classes[:8])}" if classes else "it has no class of gymnasium.Env"
        )
        return EnvironmentFailure(f"`{module.__name__}` has no environment `{name}`", hint or own)
    return EnvironmentFailure(
        f"no environment `{name}` is registered",
        hint or f"one of another package or of a file goes by `module:{name}` or `module:Class`",
    )


def _near(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Ask whether the nearest of `names` is meant, whatever its case; nothing if none is near."""
    spelled = {one.lower(): one for one in names}
    close = closest(name.lower(), spelled)
    return f"did you mean `{prefix}{spelled[close]}`?" if close else ""


def _refuse(config: EnvConfig, found: EnvSpec, error: BaseException) -> NoReturn:
    """Tell in one sentence why an environment cannot be built."""
    if not is_fault(error):
        raise error
    if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
        raise _missing(config.id, error) from error
    if isinstance(error, TypeError):
        if "must inherit from the gymnasium.Env class" in words(error) or "Gym is incompatible" in words(error):
            raise EnvironmentFailure(f"{config.id} builds no gymnasium.Env", _OLD_GYM) from error
        error = error.__cause__ or error.__context__ or error  # Gymnasium adds its own words
        needed = re.search("missing .* argument.*?: '(.+?)'", words(error))
        if needed:
            raise UsageError(f"env.kwargs: {config.id} needs `{needed[1]}`", f"set `env.kwargs.{needed[1]}`") from error
        unknown = re.search("unexpected keyword argument '(.+?)'", words(error))
        if unknown and unknown[1] == "render_mode":
            message = f"{config.id} cannot be filmed: its constructor takes no render_mode"
            raise EnvironmentFailure(
                message, "give it one, and let render() return pictures for `rgb_array`"
            ) from error
        if unknown and unknown[1] in config.kwargs:
            raise UsageError(
                f"env.kwargs: {config.id} takes no `{unknown[1]}`", _arguments(unknown[1], found.entry_point)
            ) from error
    raise EnvironmentFailure(f"{config.id} cannot be built: {told(error)}") from error


def _arguments(name: str, constructor: Any) -> str:
    """Name the argument nearest to `name`, or all that there are."""
    if isinstance(constructor, str):
        constructor = load_env_creator(constructor)
    kinds = inspect.Parameter
    known = [
        parameter.name
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        and parameter.name not in ("env", "render_mode")
    ]
    return _near(name, known) or (f"it takes {', '.join(known)}" if known else "it takes none")


def _missing(name: str, error: BaseException) -> EnvironmentFailure:
    """Tell what is not installed, with the command that does it."""
    commands = re.findall("`(pip install [^`]+)`", str(error))
    what = words(error) if isinstance(error, ImportError) else re.split(r",|\btherefore\b", words(error))[0].strip()
    absent = not isinstance(error, ImportError) or isinstance(error, ModuleNotFoundError)
    if name in gym.registry and "have been moved to" in what:  # Gymnasium's entries for MuJoCo's old versions
        newest = max(one.version or 0 for one in gym.registry.values() if one.name == gym.registry[name].name)
        return EnvironmentFailure(f"{name}: {what}", f"did you mean `{name.rpartition('-v')[0]}-v{newest}`?")
    hint = _extra_of(error) or (commands[-1] if commands else "install the package that has it" if absent else "")
    return EnvironmentFailure(f"{name}: {what}", hint)


def _extra_of(error: BaseException) -> str:
    """Give the command that installs what is missing as an extra of pgcli, if it is one."""
    text = str(error).lower()
    if "opencv" in text or "'cv2'" in text:
        return _INSTALL_ATARI if "atari" in text else "pip install opencv-python-headless"
    if "'jax'" in text:
        return 'pip install "gymnasium[jax]"'
    extras = [one for one in _EXTRAS if one in text]
    return f'pip install "pgcli[{extras[0]}]"' if extras else ""


def _wrapped(env: gym.Env[Any, Any], wrapper: WrapperConfig) -> tuple[gym.Env[Any, Any], dict[str, Any]]:
    """Wrap `env`; give the arguments that it took as well.

    YAML has lists only, so one that refuses them is given tuples, then arrays.
    """
    wrap = _wrapper(wrapper.name)
    first: Exception | None = None
    for form in (list, tuple, _array):
        arguments = {key: _formed(value, form) for key, value in wrapper.kwargs.items()}
        try:
            wrapped = wrap(env, **arguments)
            if not isinstance(wrapped, gym.Env):
                raise EnvironmentFailure(f"wrapper {wrapper.name} gave no gymnasium.Env", "a wrapper returns one")
            return wrapped, arguments
        except (TypeError, ValueError, AssertionError) as error:
            first = first or error
            if not any(isinstance(value, list) for value in wrapper.kwargs.values()):
                break
        except BaseException as error:
            if not is_fault(error):
                raise
            if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
                raise _missing(f"wrapper {wrapper.name}", error) from error
            raise EnvironmentFailure(f"wrapper {wrapper.name}: {told(error)}", "see its kwargs") from error
    assert first is not None
    unknown = re.search("unexpected keyword argument '(.+?)'", words(first))
    if unknown and unknown[1] in wrapper.kwargs:
        message = f"env.wrappers: wrapper {wrapper.name} takes no `{unknown[1]}`"
        raise UsageError(message, _arguments(unknown[1], wrap)) from first
    raise EnvironmentFailure(f"wrapper {wrapper.name}: {told(first)}", "see its kwargs") from first


def _array(numbers: list[Any]) -> np.ndarray[Any, Any]:
    """Give real numbers as those of a Box, which are float32 nearly everywhere."""
    array = np.asarray(numbers)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _formed(value: Any, form: Callable[[Any], Any]) -> Any:
    return form([_formed(item, form) for item in value]) if isinstance(value, list) else value


def _wrapper(name: str) -> Callable[..., Any]:
    """Find a wrapper: a class of Gymnasium's by its name, anything else that can be called as `module:Class`."""
    module, attribute = _module_of(name), name.rpartition(":")[2]
    if module is not None and callable(found := getattr(module, attribute, None)):
        return found  # type: ignore[no-any-return]  # it is called with the environment, whatever it is
    if module is None:
        try:
            found = getattr(gym.wrappers, attribute, None)
        except (ImportError, gym.error.DependencyNotInstalled) as error:  # those for jax and torch come when asked for
            raise _missing(f"wrapper {name}", error) from error
        if inspect.isclass(found) and issubclass(found, gym.Wrapper):
            return found
    place, names = (gym.wrappers, gym.wrappers.__all__) if module is None else (module, vars(module))
    candidates = [one for one in names if one in vars(place) and inspect.isclass(vars(place)[one])]
    prefix = name.removesuffix(attribute)
    hint = _near(attribute, candidates, prefix) or "Gymnasium's wrappers go by their name, others as `module:Class`"
    raise EnvironmentFailure(f"wrapper `{name}` not found", hint)
