"""Missing packages of environments and wrappers, and the commands that install them."""

from __future__ import annotations

import re

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version

from pgcli.environments.failures import message_of
from pgcli.errors import EnvironmentFailure
from pgcli.system.packages import install_command

_EXTRAS = ("box2d", "mujoco", "atari")  # pgcli's extras, named as Gymnasium's


def missing_dependency(name: str, error: BaseException) -> EnvironmentFailure:
    """Describe a missing package, with the command that installs it."""
    message = message_of(error)
    if not isinstance(error, ImportError):  # Gymnasium's own: "X is not installed, run `pip install …`"
        message = re.split(r",|\btherefore\b", message)[0].strip()
    found = gym.registry.get(name)
    if (
        found and getattr(found.entry_point, "__module__", "") == gym.envs.__name__
    ):  # Gymnasium's placeholder for a removed version
        hint = f"did you mean `{name.rpartition('-v')[0]}-v{find_highest_version(found.namespace, found.name)}`?"
        return EnvironmentFailure(f"{name}: {message}", hint)
    return EnvironmentFailure(f"{name}: {message}", _install_command(error))


def _install_command(error: BaseException) -> str:
    """Return how to install a missing requirement; "" if it is installed but broken."""
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
    return "install the package that provides it" if absent else ""
