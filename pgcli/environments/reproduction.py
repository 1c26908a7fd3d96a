"""A fault in an episode as a Python program of its own, in which it happens again."""

from __future__ import annotations

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
    config: EnvConfig, seed: int, actions: NDArray[Any], message: str, keeps_arrays: bool, closes: bool
) -> str:
    """Write the program: the environment with its arguments and wrappers, the reset, and the very actions."""
    modules, lines = set[str](), [f"env = {_make(config)}"]
    for wrapper, arguments in zip(config.wrappers, _arguments(config), strict=True):
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
        entry="number, ..." if keeps_arrays else "number",
        seed=seed,
        closing=_CLOSING if closes else "",
    )


def _make(config: EnvConfig) -> str:
    """Write the call that builds the environment without its wrappers."""
    made = repr(config.id)
    if spec(config).id == config.id and ":" in config.id:  # a class that is not registered
        made = f"gymnasium.envs.registration.EnvSpec({made}, entry_point={made})"
    limit = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    rendering = {"render_mode": "rgb_array"} if "AddRenderObservation" in str(config.wrappers) else {}
    return f"gymnasium.make({made}, disable_env_checker=True{_keywords(limit | rendering | config.kwargs)})"


def _keywords(arguments: dict[str, Any]) -> str:
    """Write keyword arguments so that they read back exactly."""
    return f", **{arguments!r}" if arguments else ""


def _arguments(config: EnvConfig) -> list[dict[str, Any]]:
    """Give the arguments that the wrappers took; if they cannot be built once more, those of the config."""
    used: list[dict[str, Any]] = []
    try:
        if config.wrappers:
            build(config, used=used)
    except PgcliError:
        pass
    return used if len(used) == len(config.wrappers) else [wrapper.kwargs for wrapper in config.wrappers]
