"""The vector form of an environment: all columns in one simulator, with its state in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from pgcli.config.choices import VectorForm
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.construction import build_vector
from pgcli.environments.failures import InvalidOutput, describe_outcome, is_user_error
from pgcli.environments.outputs import Array, Step, is_finite, non_finite_rows, pack_observation, read_vector_info
from pgcli.errors import EnvironmentFailure
from pgcli.policies.observations import Layout


class VectorEnvironments:
    """Environments in one vector form, with one generator seeded by the first column's seed.

    A column whose episode ended starts the next episode automatically in the following step.
    """

    form: VectorForm = "native"

    def __init__(self, config: EnvConfig, num_envs: int, render_mode: str | None = None) -> None:
        self._config = config
        self._envs = build_vector(config, num_envs, render_mode)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self.layout = Layout(self.observation_space)
        self.longest_episode = check_environment(config).longest_episode
        self._seed, self._steps = 0, 0
        self._obs: Array = np.zeros(())
        self._info: Any = None  # of the last step

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column and return the observations, [N, …]."""
        self._seed, self._steps = seeds[0], 0
        try:
            obs = pack_observation(self.layout, self._envs.reset(seed=seeds[0])[0], batch=True).copy()
            if len(non_finite_rows(self.layout, obs)):
                raise InvalidOutput("a non-finite observation")
        except BaseException as error:
            self._raise_failure("at the reset", error)
        self._obs = obs
        return obs

    def seed(self, seed: int) -> None:
        """Seed the generator of all later episodes."""
        self._seed, self._steps = seed, 0
        self._envs.np_random = np.random.default_rng(seed)

    def arrays(self) -> dict[str, Array]:
        """Return copies of the simulator's arrays; these are its full state if `is_restorable`."""
        attributes = sorted(vars(self._envs.unwrapped).items())
        return {name: x.copy() for name, x in attributes if isinstance(x, np.ndarray) and x.dtype.kind in "biuf"}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Restore arrays that `arrays` returned earlier."""
        for name, array in arrays.items():
            setattr(self._envs.unwrapped, name, array.copy())

    def step(self, actions: Array, running: Array) -> Step:
        """Execute the actions in every column; faults of columns that are not running are ignored."""
        try:
            obs, *others, self._info = self._envs.step(actions.copy())
            step = Step(pack_observation(self.layout, obs, batch=True).copy(), *map(np.array, others))
            if not (is_finite(step.rewards) or is_finite(step.rewards[running])):
                raise InvalidOutput("a non-finite reward")
            if running[non_finite_rows(self.layout, step.obs)].any():
                raise InvalidOutput("a non-finite observation")
        except BaseException as error:
            self._raise_failure(f"in step {self._steps}", error)
        self._steps += 1
        self._obs = step.obs
        return step

    def restart(self, columns: Sequence[int], seeds: Sequence[int]) -> Array:
        """Return the observations of the last step; ended columns started an episode without a seed."""
        return self._obs

    def reported(self, names: Sequence[str], columns: Array) -> Array | None:
        """Return the numbers under `names` in the last info, for some columns, [N, K]."""
        if not self._info:
            return None
        return np.where(columns[:, None], read_vector_info(self._info, names, len(columns)), np.nan)

    def render(self) -> Any:
        """Return one image per column; requires a `render_mode`."""
        return self._envs.render()

    @property
    def render_fps(self) -> float | None:
        """Return the declared frames per second of simulated time."""
        return self._envs.metadata.get("render_fps")

    def close(self) -> None:
        """Free the resources of the simulator."""
        try:
            self._envs.close()
        except BaseException as error:
            self._raise_failure("at the close", error)

    def _raise_failure(self, when: str, error: BaseException) -> NoReturn:
        if not is_user_error(error):
            raise error
        what = f"the vector form of {self._config.id} {describe_outcome(error)} {when}"
        message = f"{what} of the episodes with reset seed {self._seed}"
        raise EnvironmentFailure(message, "use env.vectorization=sync to find the episode") from error


class StackedVectorEnvironments(VectorEnvironments):
    """Several sets of environments in one vector form; each set starts as it would alone."""

    def __init__(self, config: EnvConfig, count: int, width: int, one: VectorEnvironments) -> None:
        super().__init__(config, count * width)
        self._width, self._one = width, one

    def reset(self, seeds: Sequence[int]) -> Array:
        """Start an episode in every column, from the seed of the first column of each set."""
        obs, arrays = [], list[dict[str, Array]]()
        for first in range(0, len(seeds), self._width):
            obs.append(self._one.reset([seeds[first]]))
            arrays.append(self._one.arrays())
        super().reset([seeds[0]])
        for name, array in self.arrays().items():
            axes = [axis for axis, (n, m) in enumerate(zip(array.shape, arrays[0][name].shape, strict=True)) if n != m]
            if axes:
                self.restore({name: np.concatenate([one[name] for one in arrays], axes[0])})
        self._obs = np.concatenate(obs)
        return self._obs

    def close(self) -> None:
        """Free the resources of the simulators."""
        self._one.close()
        super().close()


def is_restorable(envs: VectorEnvironments, spare: VectorEnvironments) -> bool:
    """Return whether `spare` continues exactly as `envs` after restoring its arrays and seed.

    Both execute the same 16 rows of random actions and must return the same bytes. Closes `spare`.
    """
    n, rows = len(envs.reset([0])), 16
    spare.reset([1])
    envs.action_space.seed(0)
    actions = np.array([[envs.action_space.sample() for _ in range(n)] for _ in range(4 * rows)])
    running = np.ones(n, bool)
    for row in actions[rows:]:
        envs.step(row, running)
    spare.restore(envs.arrays())
    results = []
    for one in (envs, spare):
        one.seed(2)
        results.append([b"".join(x.tobytes() for x in one.step(row, running)) for row in actions[:rows]])
    spare.close()
    return results[0] == results[1]


def select_column(arrays: dict[str, Array], single: dict[str, Array], column: int) -> dict[str, Array]:
    """Return one column of a vector form's arrays, in the shapes of a form with one column.

    Raises: ValueError: if the shapes do not determine the axis of the columns.
    """
    selected = {}
    for name, one in single.items():
        array = arrays[name]
        axes = [axis for axis, (n, m) in enumerate(zip(array.shape, one.shape, strict=True)) if n != m]
        if len(axes) > 1 or any(one.shape[axis] != 1 for axis in axes):
            raise ValueError(f"{name} of shape {array.shape} has no column of shape {one.shape}")
        selected[name] = array if not axes else np.take(array, [column], axes[0])
    return selected
