"""Repeat a run from a checkpoint or from its start, with the same bytes, without writing files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pgcli.config import Config, override
from pgcli.experiment.build import build_learner, environments_of, restore
from pgcli.experiment.resume import has_constant_schedules, is_exact
from pgcli.runs import checkpoints
from pgcli.runs.information import read_information
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.sampler import make_sampler
from pgcli.training.loop import Counters, Training


@contextmanager
def repeated(path: Path, config: Config, file: Path | None) -> Iterator[tuple[Training, int]]:
    """Yield the run of `path` in the state of checkpoint `file`, or at its start if None.

    Yields: the run, and the number of its environments that were not restored.
    Raises: CheckpointError, EnvironmentFailure.
    """
    with closing(ChunkExecutor(EnvironmentCache(environments_of(config)))) as executor:
        learner = build_learner(config, executor.environments, user_code=False)
        run = Training(config, executor, learner, make_sampler(config, executor), Counters())
        yield run, 0 if file is None else restore(run, checkpoints.load(file), str(file), path)


def changed_iterations(path: Path, config: Config) -> list[int]:
    """Return the iterations at which a run was resumed with a change that affects its results."""
    resumes = read_information(path).get("resumes", [])
    return [one["iteration"] for one in resumes if not is_exact(config, one["overrides"])]


def follows_the_clock(config: Config) -> bool:
    """Return whether results depend on the time that the run took."""
    return config.training.seconds is not None and not has_constant_schedules(config)


def without_clock(config: Config, iterations: int) -> Config:
    """Return the config with a budget in iterations instead of seconds. Schedules must be constant."""
    if config.training.seconds is None:
        return config
    return override(config, ["training.seconds=null", f"training.iterations={iterations}"])
