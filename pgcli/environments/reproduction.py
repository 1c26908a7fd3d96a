"""A standalone Python program that reproduces the fault of an episode."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig
from pgcli.environments.registry import build, spec
from pgcli.errors import PgcliError

_PROGRAM = """\
# {message}
#
# Run this in the folder that the run was started in; it needs gymnasium, and what the environment needs.

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
    print(f"{{step}} gave {{result}}")
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
    """Return a program that builds the environment, resets it with `seed`, and executes exactly these actions.

    `seed` is the reset seed that the environment received, and `actions`, [L, …], are all that followed. With
    `array_actions`, an action of shape () is passed as an array, not as a number. `closes` adds a call of `close`,
    in which the fault happened.
    """
    modules, lines = set[str](), [f"env = {_make(config)}"]
    for wrapper, arguments in zip(config.wrappers, _wrapper_arguments(config), strict=True):
        module, _, name = wrapper.name.rpartition(":")
        modules.add(module or "gymnasium.wrappers")
        lines.append(f"env = {module or 'gymnasium.wrappers'}.{name}(env{_keywords(arguments)})")
    if spec(config).namespace == "ALE":
        modules.add("ale_py")
    imports = "".join(f"import {module}\n" for module in sorted(modules - {"gymnasium.wrappers"}))
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


def _make(config: EnvConfig) -> str:
    """Return the call that builds the environment without its wrappers."""
    made = repr(config.id)
    if spec(config).id == config.id and ":" in config.id:  # a class that is not registered
        made = f"gymnasium.envs.registration.EnvSpec({made}, entry_point={made})"
    limit = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    rendering = {"render_mode": "rgb_array"} if "AddRenderObservation" in str(config.wrappers) else {}
    return f"gymnasium.make({made}, disable_env_checker=True{_keywords(limit | rendering | config.kwargs)})"


def _keywords(arguments: dict[str, Any]) -> str:
    return f", **{arguments!r}" if arguments else ""


def _wrapper_arguments(config: EnvConfig) -> list[dict[str, Any]]:
    """Return the arguments that the wrappers accepted, or those of the config if they cannot be built again."""
    used: list[dict[str, Any]] = []
    if config.wrappers:
        with suppress(PgcliError):
            build(config, used=used)
    return used if len(used) == len(config.wrappers) else [wrapper.kwargs for wrapper in config.wrappers]
