"""Evaluation: play whole episodes to measure a policy, without learning."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.config.choices import Mode
from pgcli.config.schema import Config
from pgcli.policies.policy import Policy
from pgcli.records import Evaluation, Sample
from pgcli.sampling.episodes import MeasureEpisodes
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import named
from pgcli.seeding import Purpose
from pgcli.system.process_state import restore_handlers, restore_process
from pgcli.system.processes import Check

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Episodes:
    """Evaluation episodes: returns in reward units, lengths in steps, each [n]."""

    returns: Array
    discounted_returns: Array
    lengths: Array
    info: list[dict[str, float]] = field(default_factory=list)  # numbers reported at the end of each


def sample(values: Sequence[float] | NDArray[Any]) -> Sample:
    """Compute statistics of a sample.

    The standard deviation divides by n - 1; the standard error is the standard deviation / √n. Both are None for a
    single value, and if the squares overflow.
    """
    x = np.asarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    deviation = spread if math.isfinite(spread) else None
    return Sample(
        n=len(x),
        mean=float(x.mean()),
        standard_error=None if deviation is None else deviation / len(x) ** 0.5,
        standard_deviation=deviation,
        median=float(np.median(x)),
        min=float(x.min()),
        max=float(x.max()),
    )


def info_means(infos: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over the episodes that reported it."""
    names = dict.fromkeys(name for info in infos for name in info)
    return {name: fmean(info[name] for info in infos if name in info) for name in names}


def evaluate(
    policy: Policy,
    executor: ChunkExecutor,
    episodes: int,
    mode: Mode,
    gamma: float,
    horizon: int | None,
    seed: int,
    purposes: tuple[Purpose, Purpose],
    indices: tuple[int, ...] = (),
    check: Check = restore_handlers,
    names: tuple[str, ...] = (),
) -> Episodes:
    """Play `episodes` whole episodes with seeds derived for `purposes` = (reset, act).

    `gamma` discounts `discounted_returns`. `horizon` cuts episodes; None keeps the environment's own limit. `names` are
    keys to read from the info of each episode's last step.

    Raises: EnvironmentFailure if a return is not finite.
    """
    restore_process()
    measure = MeasureEpisodes(mode, gamma, horizon, seed, purposes, indices, names)
    returns, discounted, lengths, *info = np.concatenate(executor.map(measure, episodes, policy, check), axis=1)
    return Episodes(returns, discounted, lengths, [named(names, row) for row in zip(*info, strict=True)])


class Evaluator:
    """Evaluates the policy during a run, in separate environments.

    Does not affect training.
    """

    def __init__(self, config: Config, executor: ChunkExecutor) -> None:
        env = config.evaluation.env.applied_to(executor.environments.config)
        self._config, self._executor = config, executor.for_evaluation(env)

    def is_due(self, iteration: int) -> bool:
        """Return whether an evaluation is due after `iteration` updates."""
        every = self._config.evaluation.every
        return iteration == 0 or (every is not None and iteration % every == 0)

    def evaluate(
        self, policy: Policy, iteration: int, env_steps: int, check: Check, stopped_by: str = ""
    ) -> Evaluation:
        """Evaluate the policy after `iteration` updates.

        With `stopped_by`, it uses fresh episodes.

        The evaluation that triggers a stop is selected, so it overestimates the return. Fresh seeds give an unbiased
        estimate.
        """
        purposes = (Purpose.EVALUATION_RESET, Purpose.EVALUATION_ACT)
        begin, settings = time.perf_counter(), self._config.evaluation
        episodes = evaluate(
            policy,
            self._executor,
            settings.episodes,
            settings.mode,
            gamma=self._config.algorithm.gamma,
            horizon=None,
            seed=self._config.seed,
            purposes=(Purpose.AFTER_STOP_RESET, Purpose.AFTER_STOP_ACT) if stopped_by else purposes,
            indices=(iteration,),
            check=check,
            names=self._config.info_names,
        )
        return Evaluation(
            iteration=iteration,
            env_steps=env_steps,
            mode=settings.mode,
            returns=sample(episodes.returns),
            length_mean=float(episodes.lengths.mean()),
            discounted_return_mean=float(episodes.discounted_returns.mean()),
            seconds=time.perf_counter() - begin,
            info=info_means(episodes.info),
            stopped_by=stopped_by,
        )
