"""A standalone Python program that reproduces the fault of an episode."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gymnasium as gym
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig
from pgcli.environments.construction import build
from pgcli.environments.modules import is_file
from pgcli.environments.registry import spec
from pgcli.errors import PgcliError

_PROGRAM = """\
# {message}
#
# Start this program in the folder where training was started. It needs gymnasium and the environment's packages.

import sys

import gymnasium
from numpy import array, inf, nan

sys.path.append(".")  # modules in the current folder
{imports}
{build}
actions = array({actions}, dtype="{dtype}")
step = "the reset"
try:
    result = env.reset(seed={seed})
    for number in range(len(actions)):
        action = actions[{entry}]
        step = f"step {{number}} with action {{action}}"
        result = env.step(action)
    print(f"{{step}} returned {{result}}")
{closing}except BaseException as error:
    print(f"{{step}} raised {{error!r}}")
    raise
"""
_CLOSING = """\
    step = "close"
    env.close()
"""


def reproduction(
    config: EnvConfig, seed: int, actions: NDArray[Any], message: str, array_actions: bool, closes: bool
) -> str:
    """Return a program that builds the environment, resets it and executes actions.

    Args:
        config: the config of the environment.
        seed: the reset seed that the environment received.
        actions: [L, …], all actions since that reset.
        message: the fault, for a comment.
        array_actions: pass an action of shape () as an array, not as a number.
        closes: add a call of `close`, where the fault occurred.
    """
    own, *others = _accepted_arguments(config)
    modules, lines = set[str](), [f"env = {_make(config, own)}"]
    for wrapper, arguments in zip(config.wrappers, others, strict=True):
        module, _, name = wrapper.name.rpartition(":")
        modules.add(module or "gymnasium.wrappers")
        called = _of_file(module, name) if is_file(module) else f"{module or 'gymnasium.wrappers'}.{name}"
        lines.append(f"env = {called}(env{_keywords(arguments)})")
    if spec(config).namespace == "ALE":
        modules.add("ale_py")
    modules = {"runpy" if is_file(module) else module for module in (*modules, config.id.rpartition(":")[0])}
    imports = "".join(f"import {module}\n" for module in sorted(modules - {"gymnasium.wrappers", ""}))
    return _PROGRAM.format(
        message=" ".join(message.split()),
        imports=f"\n{imports}" if imports else "",
        build="\n".join(lines),
        actions=actions.tolist(),
        dtype=actions.dtype,
        entry="number, ..." if array_actions else "number",
        seed=seed,
        closing=_CLOSING if closes else "",
    )


def _make(config: EnvConfig, arguments: dict[str, Any]) -> str:
    """Return the call that builds the environment without its wrappers."""
    module, _, name = config.id.rpartition(":")
    found, made = spec(config), repr(config.id)
    if found.id not in gym.registry:  # a class or a function that is not registered
        entry = _of_file(module, name) if is_file(module) else made
        made = f"gymnasium.envs.registration.EnvSpec({found.id!r}, entry_point={entry})"
    elif is_file(module):
        made = f"runpy.run_path({module!r}) and {found.id!r}"
    limit = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    return f"gymnasium.make({made}, disable_env_checker=True{_keywords(limit | arguments)})"


def _of_file(file: str, name: str) -> str:
    return f"runpy.run_path({file!r})[{name!r}]"


def _keywords(arguments: dict[str, Any]) -> str:
    return f", **{arguments!r}" if arguments else ""


def _accepted_arguments(config: EnvConfig) -> list[dict[str, Any]]:
    """Return the accepted arguments of environment and wrappers, else the config's."""
    used: list[dict[str, Any]] = []
    with suppress(PgcliError):
        build(config, used=used).close()
    return used or [config.kwargs, *(wrapper.kwargs for wrapper in config.wrappers)]
