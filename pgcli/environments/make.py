"""N environments stepped together.

They are stepped in numpy, in the environment's own vector form, or one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gymnasium import spaces

from pgcli.config.choices import VectorForm
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.outputs import Array, Step
from pgcli.environments.registry import spec
from pgcli.environments.single import SingleEnvironments
from pgcli.environments.vector.arrays import ArrayEnvironments, NativeArrayEnvironments
from pgcli.environments.vector.forms import form_of_native, numpy_form
from pgcli.environments.vector.native import StackedVectorEnvironments, VectorEnvironments
from pgcli.environments.vector.native_trial import vector_form_fault
from pgcli.errors import UsageError
from pgcli.policies.observations import Layout

_USE_OTHERS = "use `sync` or `auto`"


class Environments(Protocol):
    """N environments, one per column. Returned arrays are not modified later.

    Every method raises EnvironmentFailure if an environment raises an exception, or returns a value that is not
    finite or not in its space.
    """

    form: VectorForm
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    layout: Layout
    longest_episode: int  # in steps; a longer one counts as endless

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column and return the observations, [N, …]."""

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions, [N, …], in the columns that are running, bool [N]."""

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Start an episode in columns that are not running; return all observations [N, …].

        Args: seeds: of the next episode of each column, [N]; those of other columns are not used.
        """

    def reported(self, names: Sequence[str], columns: Array) -> Array | None:
        """Return the numbers and booleans under `names` in the last infos of `columns`, bool [N].

        Returns: [N, K], nan in other columns and for missing entries; None if all infos are empty.
        """

    def close(self) -> None:
        """Free the resources of the simulators."""


def make_environments(
    config: EnvConfig, num_envs: int, *, resumable: bool = False
) -> ArrayEnvironments | VectorEnvironments | SingleEnvironments:
    """Build `num_envs` environments in the form that `env.vectorization` selects.

    Args: resumable: episodes continue across iterations, and a resumed run can restore them.
    Raises: EnvironmentFailure, UsageError.
    """
    checked = check_environment(config)
    if config.vectorization == "native":
        fault = (
            "does not report the action mask" if checked.adds_mask else vector_form_fault(config, resumable=resumable)
        )
        if fault is None:
            raise UsageError(f"env.vectorization: {config.id} has no vector form", _USE_OTHERS)
        if fault:
            raise UsageError(f"env.vectorization: the vector form of {config.id} {fault}", _USE_OTHERS)
        return VectorEnvironments(config, num_envs)
    if config.vectorization == "numpy":
        if form := numpy_form(config):
            return ArrayEnvironments(config, num_envs, form)
        raise UsageError(
            f"env.vectorization: {config.id} has no form in numpy, or not for these arguments", _USE_OTHERS
        )
    if config.vectorization == "auto":
        own = not checked.adds_mask and not config.shares_seeds
        if own and vector_form_fault(config, resumable=resumable) == "":
            return VectorEnvironments(config, num_envs)
        if form := numpy_form(config):
            return ArrayEnvironments(config, num_envs, form)
    return SingleEnvironments(config, num_envs)


def make_episode_environments(config: EnvConfig, count: int, width: int) -> Environments:
    """Build the environments of `count` seeds, `width` for each, for whole episodes.

    Several seeds must be stackable. Every seed has the episodes that it has alone.
    """
    one = make_environments(config, width)
    if isinstance(one, VectorEnvironments):
        if form := form_of_native(config):
            return NativeArrayEnvironments(config, count, width, one, form)
        return one if count == 1 else StackedVectorEnvironments(config, count, width, one)
    return one if count == 1 else make_environments(config, count * width)


def is_stackable(config: EnvConfig, segments: bool = False) -> bool:
    """Return whether the environments of several seeds can be one set.

    They must have a vector form of known code. The columns of an environment's own form share a generator, so a set of
    several seeds cannot start further episodes in `segments`.
    """
    known = str(spec(config).entry_point).startswith("gymnasium.envs.") and not config.wrappers
    if config.vectorization == "sync" or not known:
        return False
    checked = check_environment(config)
    if not checked.adds_mask and not config.shares_seeds and vector_form_fault(config, resumable=True) == "":
        return not segments
    return config.vectorization == "auto" and numpy_form(config) is not None
