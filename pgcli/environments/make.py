"""N environments that are stepped together, as single environments or as the environment's own vector form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.outputs import Array, Step
from pgcli.environments.registry import spec
from pgcli.environments.single import SingleEnvironments
from pgcli.environments.vector import VectorEnvironments, is_restorable
from pgcli.errors import UsageError
from pgcli.policies.observations import Layout


class Environments(Protocol):
    """N environments, one per column. The arrays that they return are never written again.

    Every method raises EnvironmentFailure if an environment raises an exception, or returns a value that is not
    finite or not in its space.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    layout: Layout

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column and return the observations, [N, …]."""

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions, [N, …], in the columns that are running, bool [N]."""

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start an episode in columns that were not running in the last step; return all observations, [N, …]."""

    def reported(self, names: Sequence[str], columns: Array) -> Array | None:
        """Return the numbers and booleans under `names` in the infos of the last step of some columns, bool [N].

        Returns: [N, K], nan in other columns and where an info has none; None if no info has anything.
        """

    def close(self) -> None:
        """Free the resources of the simulators."""


def make_environments(config: EnvConfig, num_envs: int) -> Environments:
    """Build `num_envs` environments in the form that `env.vectorization` selects.

    Raises: EnvironmentFailure, UsageError.
    """
    checked = check_environment(config)
    if config.vectorization == "native":
        if checked.adds_mask:
            raise UsageError(
                f"env.vectorization: the vector form of {config.id} shows no action mask", "use `sync` or `auto`"
            )
        return VectorEnvironments(config, num_envs)
    if config.vectorization == "auto" and not checked.adds_mask and _has_vector_form(config):
        vector = VectorEnvironments(config, num_envs)
        if (vector.observation_space, vector.action_space) == (checked.observation_space, checked.action_space):
            return vector
        vector.close()  # its spaces show that it is another environment than the single form
    return SingleEnvironments(config, num_envs)


def make_resumable_environments(config: EnvConfig, num_envs: int) -> VectorEnvironments | SingleEnvironments:
    """Build environments that continue across iterations, and whose state a resumed run can restore.

    Raises: EnvironmentFailure, UsageError.
    """
    envs = make_environments(config, num_envs)
    if isinstance(envs, VectorEnvironments):
        if is_restorable(envs, VectorEnvironments(config, num_envs)):
            return envs
        envs.close()
        if config.vectorization == "native":
            message = f"env.vectorization: the vector form of {config.id} keeps more than arrays, and cannot be resumed"
            raise UsageError(message, "use `sync` or `auto`, or whole episodes")
        envs = SingleEnvironments(config, num_envs)
    assert isinstance(envs, SingleEnvironments)
    return envs


def _has_vector_form(config: EnvConfig) -> bool:
    """Return whether the config allows a vector form, and there is one that resets its columns in the next step."""
    entry = spec(config).vector_entry_point
    if entry is None or config.wrappers or config.rebuild is True:
        return False
    try:
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
    except ImportError:  # a requirement of the vector form alone is not installed
        return False
    return getattr(creator, "metadata", {}).get("autoreset_mode") is AutoresetMode.NEXT_STEP
