"""Evaluation: episodes that only measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.policies.policy import Mode, Policy
from pgcli.records import Sample
from pgcli.sampling.episodes import MeasureEpisodes
from pgcli.sampling.executor import ChunkExecutor
from pgcli.seeding import Purpose

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Episodes:
    """Undiscounted and discounted returns (reward units) and lengths (steps) of evaluation episodes, each [n]."""

    returns: Array
    discounted_returns: Array
    lengths: Array


def sample(values: Sequence[float] | NDArray[Any]) -> Sample:
    """Describe a sample: standard deviation with n - 1, standard error = standard deviation / √n.

    One value has no spread: None. Nor have values whose squares are too large for a float.
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
    check: Callable[[], None] = lambda: None,
) -> Episodes:
    """Play `episodes` whole episodes from seeds derived for `purposes` = (reset, act) alone.

    `gamma` discounts `discounted_returns`; `horizon` cuts episodes, None leaves the environment's own limit.
    Raises: EnvironmentFailure if a return is not finite.
    """
    measure = MeasureEpisodes(mode, gamma, horizon, seed, purposes, indices)
    return Episodes(*np.concatenate(executor.map(measure, episodes, policy, check), axis=1))
