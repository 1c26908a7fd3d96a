"""Build environments and wrappers from the arguments in a config.

Each constructor receives a deep copy of its arguments, so it may change them. YAML has no tuples or arrays, so a list
is converted to the type of the parameter's default or annotation. If a constructor rejects lists, tuples and then
arrays are tried.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator

from pgcli.config import flat
from pgcli.config.schema import EnvConfig, WrapperConfig
from pgcli.environments.dependencies import missing_dependency
from pgcli.environments.failures import describe, is_user_error, mentions, message_of
from pgcli.environments.modules import suggestion
from pgcli.environments.registry import OLD_GYM, find_wrapper, spec
from pgcli.errors import EnvironmentFailure, PgcliError, UsageError

# Exceptions that constructors raise for a list instead of another type, or for a missing render_mode.
_REJECTIONS = (TypeError, ValueError, AssertionError, AttributeError, KeyError)
_RENDER_MODE = "render_mode"


def build(
    config: EnvConfig, render_mode: str | None = None, used: list[dict[str, Any]] | None = None
) -> gym.Env[Any, Any]:
    """Build one environment with its wrappers.

    Args: used: a list that receives the accepted arguments of the environment, then of each wrapper.
    Raises: EnvironmentFailure or UsageError, with a hint.
    """
    found = spec(config)
    if render_mode is None and any(wrapper.name.endswith("AddRenderObservation") for wrapper in config.wrappers):
        render_mode = "rgb_array"
    make = partial(gym.make, found, max_episode_steps=config.max_episode_steps, disable_env_checker=True)
    env: gym.Env[Any, Any]
    env, accepted = _constructed(config, found.entry_point, make, render_mode)
    arguments = [accepted]
    for wrapper in config.wrappers:
        env, accepted = _wrap(env, wrapper)
        arguments.append(accepted)
    if used is not None:
        used += arguments
    return env


def build_vector(
    config: EnvConfig, num_envs: int, render_mode: str | None = None
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Build the environment's own vector form. Raises: EnvironmentFailure or UsageError, with a hint."""
    found = spec(config)
    limit: dict[str, Any] = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    make = partial(gym.make_vec, found, num_envs, vectorization_mode="vector_entry_point", **limit)
    envs: gym.vector.VectorEnv[Any, Any, Any]
    envs, _ = _constructed(config, found.vector_entry_point, make, render_mode)
    return envs


def _refuse_fifos(where: str, arguments: dict[str, Any]) -> None:
    """Raise UsageError for an argument that names a FIFO: an environment that opens it would wait forever."""
    for key, value in flat(arguments).items():
        if isinstance(value, str) and "\0" not in value and Path(value).is_fifo():
            raise UsageError(f"{where}.{key}: {value} is a FIFO, not a regular file", "name a regular file")


def _constructed(
    config: EnvConfig, constructor: Any, make: Callable[..., Any], render_mode: str | None
) -> tuple[Any, dict[str, Any]]:
    """Return the environment that `make` builds from `env.kwargs`, and the accepted arguments."""
    _refuse_fifos("env.kwargs", config.kwargs)
    first: BaseException | None = None
    try:
        if isinstance(constructor, str):
            constructor = load_env_creator(constructor)
        _redirect_warnings_of_mujoco()
        for rendering in _renderings(constructor, render_mode):
            for form in _forms(config.kwargs, constructor):
                try:
                    arguments = form | rendering
                    return make(**copy.deepcopy(arguments)), arguments
                except _REJECTIONS as error:
                    first = first or error
            if first is None or not mentions(first, _RENDER_MODE):
                break
    except BaseException as error:
        if not is_user_error(error):
            raise
        first = first or error
    assert first is not None
    raise _unbuildable(config, constructor, first) from first


def _renderings(constructor: Any, render_mode: str | None) -> Iterator[dict[str, str | None]]:
    """Yield the ways to pass `render_mode`, in the order of trial.

    Without a mode, the argument is omitted; it is None if the constructor requires it or opens a window by default.
    The remaining ways are for constructors that reject the first.
    """
    if render_mode is not None:
        yield {_RENDER_MODE: render_mode}
        return
    parameter = _parameters(constructor).get(_RENDER_MODE)
    if parameter is None or parameter.default not in (inspect.Parameter.empty, "human"):
        yield {}
    yield {_RENDER_MODE: None}
    yield {_RENDER_MODE: "rgb_array"}


def _forms(kwargs: dict[str, Any], constructor: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments in the parameters' types, then with other types for lists."""
    parameters = _parameters(constructor)
    yield {key: _converted(value, _type_of(parameters.get(key))) for key, value in kwargs.items()}
    if _has_list(kwargs):
        for form in (tuple, _array):
            yield {key: _converted(value, form) for key, value in kwargs.items()}


def _parameters(constructor: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(constructor).parameters
    except (TypeError, ValueError):  # written in C
        return {}


def _type_of(parameter: inspect.Parameter | None) -> Callable[[Any], Any]:
    """Return the type for a list, by a parameter's default or annotation, else list."""
    if parameter is None:
        return list
    if isinstance(parameter.default, np.ndarray):
        return partial(np.asarray, dtype=parameter.default.dtype)
    note = "" if parameter.annotation is parameter.empty else str(parameter.annotation).lower()
    if isinstance(parameter.default, tuple) or (re.search(r"\btuple\b", note) and not re.search(r"\blist\b", note)):
        return tuple
    return list


def _has_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and any(map(_has_list, value.values())))


def _array(numbers: list[Any]) -> np.ndarray[Any, Any]:
    """Return an array, with real numbers as float32, the usual type of a Box."""
    array = np.asarray(numbers)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _converted(value: Any, form: Callable[[Any], Any]) -> Any:
    """Return a copy of a YAML value with `form` applied to each list."""
    if isinstance(value, dict):
        return {key: _converted(item, form) for key, item in value.items()}
    return form([_converted(item, form) for item in value]) if isinstance(value, list) else value


def _unbuildable(config: EnvConfig, constructor: Any, error: BaseException) -> PgcliError:
    """Convert a constructor's error to an error about the environment or `env.kwargs`."""
    if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
        return missing_dependency(config.id, error)
    if isinstance(error, TypeError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_code is gym.make.__code__ and error.__context__ is None:  # gym.make rejects the object
            return EnvironmentFailure(f"{config.id} does not return a gymnasium.Env", OLD_GYM)
        error = error.__cause__ or error.__context__ or error  # Gymnasium adds text
        if needed := re.search("missing .* argument.*?: '(.+?)'", message_of(error)):
            return UsageError(f"env.kwargs: {config.id} needs `{needed[1]}`", f"set `env.kwargs.{needed[1]}`")
        unknown = _unexpected_argument(error)
        if unknown == _RENDER_MODE:
            message = f"{config.id} cannot be filmed: its constructor takes no render_mode"
            return EnvironmentFailure(
                message, "add a `render_mode` parameter; render() must return images for `rgb_array`"
            )
        if unknown in config.kwargs:
            hint = _accepted_arguments(unknown, constructor)
            return UsageError(f"env.kwargs: {config.id} has no parameter `{unknown}`", hint)
    return EnvironmentFailure(f"{config.id} cannot be built: {describe(error)}")


def _unexpected_argument(error: BaseException) -> str:
    """Return the name of an unexpected keyword argument, which Python reports in the message only."""
    found = re.search("unexpected keyword argument '(.+?)'", message_of(error))
    return found[1] if found else ""


def _accepted_arguments(name: str, constructor: Any) -> str:
    """Suggest the argument most similar to `name`, or list all arguments."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [
        one.name
        for one in _parameters(constructor).values()
        if one.kind in kinds and one.name not in ("env", "render_mode")
    ]
    return suggestion(name, known) or (f"its parameters: {', '.join(known)}" if known else "it has no parameters")


def _wrap(env: gym.Env[Any, Any], wrapper: WrapperConfig) -> tuple[gym.Env[Any, Any], dict[str, Any]]:
    """Wrap `env`; return the wrapped environment and the arguments that the wrapper accepted."""
    _refuse_fifos(f"env.wrappers: {wrapper.name}", wrapper.kwargs)
    constructor, first = find_wrapper(wrapper.name), list[Exception]()
    for arguments in _forms(wrapper.kwargs, constructor):
        try:
            wrapped = constructor(env, **copy.deepcopy(arguments))
            if not isinstance(wrapped, gym.Env):
                raise EnvironmentFailure(
                    f"wrapper {wrapper.name} returned no gymnasium.Env", "a wrapper must return a gymnasium.Env"
                )
            return wrapped, arguments
        except _REJECTIONS as error:
            first.append(error)
        except BaseException as error:
            if not is_user_error(error):
                raise
            if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
                raise missing_dependency(f"wrapper {wrapper.name}", error) from error
            raise EnvironmentFailure(f"wrapper {wrapper.name}: {describe(error)}", "check its kwargs") from error
    if (unknown := _unexpected_argument(first[0])) in wrapper.kwargs:
        message = f"env.wrappers: wrapper {wrapper.name} has no parameter `{unknown}`"
        raise UsageError(message, _accepted_arguments(unknown, constructor)) from first[0]
    raise EnvironmentFailure(f"wrapper {wrapper.name}: {describe(first[0])}", "check its kwargs") from first[0]


def _redirect_warnings_of_mujoco() -> None:
    """Turn MuJoCo's warnings into Python warnings; by default they go to stderr and MUJOCO_LOG.TXT."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    text = text.partition(" Time = ")[0]  # identical texts are shown once
    with suppress(Warning):  # if warnings are errors: an exception cannot pass through MuJoCo
        warnings.warn(text, DeprecationWarning if "deprecated" in text else RuntimeWarning, stacklevel=1)
