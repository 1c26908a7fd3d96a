"""The loop: collect, update, evaluate. It yields records and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from pgcli.algorithm.gradient_variance import measure
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.config.schema import DEFAULT_ITERATIONS, Config, TrainingConfig
from pgcli.records import Episode, Evaluation, Iteration, Notice, Record, Timing, Update
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import Rollout
from pgcli.sampling.sampler import Sampler
from pgcli.seeding import Purpose
from pgcli.training.evaluation import evaluate, sample

COLLAPSED = 1e-3  # nats: of two actions, the rarer one is taken once in ten thousand steps


@dataclass
class Counters:
    """How far a run is; with the agent's tensors, all of its state."""

    iteration: int = 0
    env_steps: int = 0
    episodes: int = 0
    seconds: float = 0.0

    def progress(self, budget: TrainingConfig) -> float:
        """Give the share of the budget that is used; the run ends at 1."""
        if budget.iterations is budget.env_steps is budget.seconds is None:
            return self.iteration / DEFAULT_ITERATIONS
        shares = (
            (self.iteration, budget.iterations),
            (self.env_steps, budget.env_steps),
            (self.seconds, budget.seconds),
        )
        return max(used / limit for used, limit in shares if limit is not None)


def train(
    config: Config,
    agent: PolicyGradient,
    executor: ChunkExecutor,
    sampler: Sampler,
    counters: Counters,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Record]:
    """Train `agent` from `counters` to the end of the budget, and yield what happens.

    At every yield the agent and the counters are the state after the last completed iteration. `check` is called
    before every step, of an environment or of an optimizer; what it raises leaves them so.
    """
    torch.set_num_threads(config.training.threads)
    agent.recall(counters.iteration, lambda policy, iteration: sampler.collect(policy, iteration, check).trajectories)
    started = time.perf_counter() - counters.seconds
    every, target = config.evaluation.every, config.evaluation.stop_at_return
    explores = agent.policy.distribution.is_discrete
    while True:
        finished = counters.progress(config.training) >= 1
        evaluate_seconds = 0.0
        if finished or counters.iteration == 0 or (every is not None and counters.iteration % every == 0):
            evaluation = _evaluate(config, agent, executor, counters, check)
            evaluate_seconds = evaluation.seconds
            yield evaluation
            if target is not None and evaluation.returns.mean >= target:
                return
        if finished:
            return
        begin = time.perf_counter()
        rollout = sampler.collect(agent.policy, counters.iteration, check)
        collected = time.perf_counter()
        progress = min(counters.progress(config.training), 1.0)
        measured = config.diagnostics.every is not None and counters.iteration % config.diagnostics.every == 0
        look = partial(measure, agent, progress=progress, check=check) if measured else None
        try:
            spare_core = executor.pool.count > 0  # they wait
            update = agent.update(rollout.trajectories, counters.iteration, progress, check, look, spare_core)
        except BaseException:
            check()  # Ctrl-C also ends a compiler, whose failure is then this
            raise
        now = time.perf_counter()
        counters.iteration += 1
        counters.env_steps += rollout.trajectories.num_steps
        counters.episodes += len(rollout.episodes)
        counters.seconds = now - started
        timing = Timing(counters.seconds, collected - begin, now - collected, evaluate_seconds)
        yield _describe(config, rollout, update, counters, timing)
        if explores and update.entropy < COLLAPSED:
            explores = False
            yield Notice(
                f"the entropy fell to {update.entropy:.1g} nats in iteration {counters.iteration - 1}: the policy "
                "hardly explores any more; a lower optimizer.learning_rate or an algorithm.entropy_coef helps"
            )


def _evaluate(
    config: Config, agent: PolicyGradient, executor: ChunkExecutor, counters: Counters, check: Callable[[], None]
) -> Evaluation:
    begin = time.perf_counter()
    episodes = evaluate(
        agent.policy,
        executor,
        config.evaluation.episodes,
        config.evaluation.mode,
        gamma=config.algorithm.gamma,
        horizon=None,
        seed=config.seed,
        purposes=(Purpose.EVALUATION_RESET, Purpose.EVALUATION_ACT),
        indices=(counters.iteration,),
        check=check,
    )
    return Evaluation(
        iteration=counters.iteration,
        env_steps=counters.env_steps,
        mode=config.evaluation.mode,
        returns=sample(episodes.returns),
        length_mean=float(episodes.lengths.mean()),
        discounted_return_mean=float(episodes.discounted_returns.mean()),
        seconds=time.perf_counter() - begin,
    )


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
    )
