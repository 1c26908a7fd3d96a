"""Chunks of columns, the unit of work of a rollout, and a cache of their environments."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from pgcli.config.schema import EnvConfig
from pgcli.environments.make import Environments, make_episode_environments
from pgcli.system.memory import check_memory
from pgcli.system.process_state import restore_process

T = TypeVar("T")
EPISODE_BYTES = 24  # return, discounted return and length


def chunk_ranges(env: EnvConfig, columns: int) -> list[range]:
    """Split columns into chunks of `env.chunk_size` (default `env.num_envs`)."""
    check_memory(columns * EPISODE_BYTES, f"{columns:,} episodes at once", "play fewer episodes")
    width = env.chunk_size or env.num_envs
    return [range(start, min(start + width, columns)) for start in range(0, columns, width)]


class EnvironmentCache:
    """Environments that one process builds at first use, reuses, and closes together.

    Evaluations have a separate cache. So an environment with memory cannot carry state from evaluation to training.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return the object of `key`, which must have `close`; build it at the first call."""
        if key not in self._kept:
            self._kept[key] = build()
            restore_process()
        kept: T = self._kept[key]
        return kept

    def of_width(self, width: int) -> Environments:
        """Return `width` environments for whole episodes; every call returns the same objects."""
        return self.of_stack(1, width)

    def of_stack(self, count: int, width: int) -> Environments:
        """Return the environments of `count` seeds, `width` for each, as one set for whole episodes."""
        return self.get((count, width), partial(make_episode_environments, self.config, count, width))

    def for_evaluation(self, config: EnvConfig) -> EnvironmentCache:
        """Return the cache of evaluation environments; every call returns the same object."""
        return self.get("evaluation", partial(EnvironmentCache, config))

    def close(self) -> None:
        """Close every object, then raise the first error."""
        kept, self._kept = self._kept, {}
        failure: BaseException | None = None
        for environments in kept.values():
            try:
                environments.close()
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
