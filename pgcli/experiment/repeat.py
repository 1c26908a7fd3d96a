"""A run computed again, from one of its checkpoints or from its start: the same bytes, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.config import Config, override
from pgcli.experiment.run import build_agent, environments_of, has_constant_schedules, is_exact
from pgcli.records import Record
from pgcli.runs import checkpoints
from pgcli.runs.directory import elapsed_seconds
from pgcli.runs.files import read_json
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.sampler import Sampler, make_sampler
from pgcli.training.loop import Counters, train


@dataclass
class Repetition:
    """A run where one of its checkpoints left it; `lost` of its environments could not be brought back there."""

    config: Config
    agent: PolicyGradient
    executor: ChunkExecutor
    sampler: Sampler
    counters: Counters
    lost: int

    def records(self) -> Iterator[Record]:
        """Go on, and yield what happens, to the end of the budget."""
        return train(self.config, self.agent, self.executor, self.sampler, self.counters)


@contextmanager
def repeated(path: Path, config: Config, file: Path | None) -> Iterator[Repetition]:
    """Give the run of `path` as the checkpoint `file` has it, or as it was at its start.

    Raises: CheckpointError, EnvironmentFailure.
    """
    with closing(ChunkExecutor(EnvironmentCache(environments_of(config)))) as executor:
        agent, counters, tensors = build_agent(config, executor.environments), Counters(), {}
        if file is not None:
            checkpoint = checkpoints.load(file)
            checkpoints.check_tensors(checkpoint.agent, agent.state_dict(), str(file))
            agent.load_state_dict(checkpoint.agent)
            tensors = checkpoint.sampler
            seconds = elapsed_seconds(path, checkpoint.counters["iteration"])
            counters = Counters(**checkpoint.counters, seconds=seconds)
        sampler = make_sampler(config, executor)
        lost = sampler.load_state_dict(tensors, agent.policy, counters.iteration)
        yield Repetition(config, agent, executor, sampler, counters, lost)


def changed_iterations(path: Path, config: Config) -> list[int]:
    """List the iterations at which a run went on under a config that makes it another run than one from the start."""
    resumes = read_json(path / "run.json").get("resumes", [])
    return [one["iteration"] for one in resumes if not is_exact(config, one["overrides"])]


def follows_the_clock(config: Config) -> bool:
    """Say whether what is learned depends on how many seconds it took."""
    return config.training.seconds is not None and not has_constant_schedules(config)


def without_clock(config: Config, iterations: int) -> Config:
    """Give a budget of `iterations` the place of one of seconds, where no schedule sees the difference."""
    if config.training.seconds is None:
        return config
    return override(config, ["training.seconds=null", f"training.iterations={iterations}"])
