"""Which runs share their rollouts in one process, and how many."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from pgcli.config import Config, to_data
from pgcli.environments.checks import check_environment
from pgcli.environments.make import is_stackable
from pgcli.errors import PgcliError
from pgcli.experiment.build import ROW_BYTES, columns_of, environments_of
from pgcli.policies.observations import Layout
from pgcli.system.limits import open_files
from pgcli.system.memory import total_memory

MOST = 100  # more gain nothing: the arithmetic of a step then takes longer than its overhead
RUN_BYTES = 4e6  # of a run without its trajectories
USUAL_STEPS = 1000  # of an episode without a limit
COPIES = 4  # of the trajectories, during a rollout and an update
FILES = 12  # that a run has open


def stacks(configs: Sequence[Config], jobs: int, most: int | None) -> list[list[int]]:
    """Divide runs, by number, into groups that share their rollouts; `jobs` groups run at a time.

    Args: most: runs of a group; None: as many as the memory and the limit of open files allow.
    """
    alike: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = _key(config) if most != 1 and len(configs) > 1 else ""
        alike.setdefault(key or str(number), []).append(number)
    groups = []
    for numbers in alike.values():
        size = 1 if len(numbers) == 1 else most or _room(configs[numbers[0]], jobs)
        count = jobs * -(-len(numbers) // (jobs * size))  # a multiple of `jobs`, so that all end at about the same time
        size = -(-len(numbers) // count)
        groups += [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return sorted(groups)


def _key(config: Config) -> str:
    """Return what runs of one group have in common; "" for a run that must be alone."""
    policy, training, sampling, logging = config.policy, config.training, config.sampling, config.logging
    if (
        sampling.workers not in (0, "auto")
        or sampling.backend != "local"
        or training.device != "cpu"
        or training.compile
        or training.threads != 1  # each thread of Python would have as many of its own
        or training.seconds is not None  # in a group, a run would have a part of its time
        or config.algorithm.estimator is not None
        or logging.tools
        or policy.network is not None
        or policy.layer_norm
        or policy.residual
        or policy.memory != "none"
        or policy.distribution == "state_dependent_gaussian"
    ):
        return ""
    try:
        segments = config.rollout.steps is not None
        if not (is_stackable(environments_of(config), segments) and is_stackable(config.evaluation_env)):
            return ""
    except PgcliError:  # which each run reports
        return ""
    data = to_data(config)
    return json.dumps([data["env"], data["policy"], data["evaluation"]["env"], columns_of(config)])


def _room(config: Config, jobs: int) -> int:
    """Return how many runs of a process fit into half of the memory and of the open files."""
    checked, rollout = check_environment(config.env), config.rollout
    layout = Layout(checked.observation_space)
    steps = rollout.steps or rollout.horizon or checked.time_limit or USUAL_STEPS
    row = math.prod(layout.shape) * layout.dtype.itemsize + ROW_BYTES
    size = RUN_BYTES + COPIES * config.algorithm.reuse * columns_of(config) * steps * row
    memory = (total_memory() or 2**33) / 2 / jobs
    return max(min(MOST, int(memory / size), open_files() // 2 // FILES), 1)
