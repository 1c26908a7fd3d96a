"""The training loop: collect, update, evaluate.

Yields records and writes no files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from pgcli.algorithm.learner import Learner
from pgcli.config.schema import DEFAULT_ITERATIONS, Config, TrainingConfig
from pgcli.records import Episode, Iteration, Record, Timing, Update
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import Rollout
from pgcli.sampling.sampler import Sampler
from pgcli.system.process_state import require
from pgcli.system.processes import Check
from pgcli.training.evaluation import Evaluator, info_means, sample
from pgcli.training.stopping import Stopping, Values


@dataclass
class Counters:
    """Progress counters of a run."""

    iteration: int = 0
    env_steps: int = 0
    episodes: int = 0
    seconds: float = 0.0

    def progress(self, budget: TrainingConfig) -> float:
        """Return the used share of the budget in [0, 1]; the run ends at 1."""
        if budget.iterations is budget.env_steps is budget.seconds is None:
            return min(self.iteration / DEFAULT_ITERATIONS, 1.0)
        shares = (
            (self.iteration, budget.iterations),
            (self.env_steps, budget.env_steps),
            (self.seconds, budget.seconds),
        )
        return min(max(used / limit for used, limit in shares if limit is not None), 1.0)

    def used_up(self, budget: TrainingConfig) -> dict[str, float]:
        """Return the limits that the run has reached, by key."""
        limits = {"iterations": budget.iterations, "env_steps": budget.env_steps, "seconds": budget.seconds}
        if not any(limits.values()):
            limits["iterations"] = DEFAULT_ITERATIONS
        used = {"iterations": self.iteration, "env_steps": self.env_steps, "seconds": self.seconds}
        return {name: limit for name, limit in limits.items() if limit is not None and used[name] >= limit}

    def add(self, rollout: Rollout, seconds: float) -> None:
        """Count a completed iteration; `seconds` is the time since the run began."""
        self.iteration += 1
        self.env_steps += rollout.trajectories.num_steps
        self.episodes += len(rollout.episodes)
        self.seconds = seconds


@dataclass
class Training:
    """The state of a run in memory, with its counters."""

    config: Config
    executor: ChunkExecutor
    learner: Learner
    sampler: Sampler
    counters: Counters
    evaluations: Sequence[Values] = ()  # earlier than `counters.iteration`


def train(run: Training, check: Check = lambda: None) -> Iterator[Record]:
    """Train from `run.counters` to the end of the budget; yield a record per event.

    At every yield and after every exception, learner, sampler and counters have the state after the last completed
    iteration. `check` is called before every step of an environment or an optimizer, and may raise.
    """
    config, learner, sampler, counters = run.config, run.learner, run.sampler, run.counters
    require("torch's threads", config.training.threads)
    learner.past.collect_again(counters.iteration, lambda policy, k: sampler.collect(policy, k, check).trajectories)
    evaluator, stopping = Evaluator(config, run.executor), Stopping(config.evaluation, run.evaluations)
    started = time.perf_counter() - counters.seconds
    while True:
        progress, evaluate_seconds = counters.progress(config.training), 0.0
        if progress == 1 or evaluator.is_due(counters.iteration):
            evaluation = evaluator.evaluate(learner.policy, counters.iteration, counters.env_steps, check)
            evaluate_seconds = evaluation.seconds
            yield evaluation
            stopped_by = stopping.add(evaluation)
            if progress < 1 and stopped_by:
                yield evaluator.evaluate(learner.policy, counters.iteration, counters.env_steps, check, stopped_by)
                return
        if progress == 1:
            return
        begin = time.perf_counter()
        rollout = sampler.collect(learner.policy, counters.iteration, check)  # τ ~ π_θ
        collected = time.perf_counter()
        update = learner.update(rollout.trajectories, counters.iteration, progress, check)  # θ ← θ + α ĝ(τ)
        now = time.perf_counter()
        counters.add(rollout, now - started)
        timing = Timing(counters.seconds, collected - begin, now - collected, evaluate_seconds)
        yield _describe(config, rollout, update, counters, timing)


def _describe(config: Config, rollout: Rollout, update: Update, counters: Counters, timing: Timing) -> Iteration:
    ended = rollout.episodes
    first = counters.episodes - len(ended)
    return Iteration(
        iteration=counters.iteration - 1,
        env_steps=counters.env_steps,
        episode_count=counters.episodes,
        steps=rollout.trajectories.num_steps,
        returns=sample([one.episode_return for one in ended]) if ended else None,
        length_mean=fmean(one.length for one in ended) if ended else None,
        discounted_return_mean=fmean(one.discounted_return for one in ended) if ended else None,
        update=update,
        episodes=[Episode(first + n, *one) for n, one in enumerate(ended)],
        timing=timing,
        progress=counters.progress(config.training),
        info=info_means([one.info for one in ended]),
    )
