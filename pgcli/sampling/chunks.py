"""Chunks of columns, the unit of work of a rollout, and the environments that a process keeps for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from pgcli.config.schema import EnvConfig
from pgcli.environments.make import Environments, make_environments
from pgcli.system.memory import check_memory
from pgcli.system.process_state import restore_process

T = TypeVar("T")
EPISODE_BYTES = 24  # return, discounted return and length


def chunk_ranges(env: EnvConfig, columns: int) -> list[range]:
    """Split columns into chunks of `env.chunk_size`, by default `env.num_envs`; the last may be narrower."""
    check_memory(columns * EPISODE_BYTES, f"{columns:,} episodes at once", "play fewer episodes")
    width = env.chunk_size or env.num_envs
    return [range(start, min(start + width, columns)) for start in range(0, columns, width)]


class EnvironmentCache:
    """Environments that one process builds at first use, keeps for later tasks, and closes together.

    Those of evaluations are in a cache of their own, so that an environment that remembers cannot tell training
    whether it was evaluated.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return the object of `key`, which has a method `close`; build it at the first call."""
        if key not in self._kept:
            self._kept[key] = build()
            restore_process()
        kept: T = self._kept[key]
        return kept

    def of_width(self, width: int) -> Environments:
        """Return `width` environments for whole episodes, the same objects at every call."""
        return self.get(width, partial(make_environments, self.config, width))

    def for_evaluation(self, config: EnvConfig) -> EnvironmentCache:
        """Return the environments of evaluations, the same objects at every call; `config` describes them."""
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
