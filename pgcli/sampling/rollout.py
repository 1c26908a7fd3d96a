"""Rollouts: play episodes in N columns and stack the steps into trajectories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pgcli.environments.make import Environments
from pgcli.errors import EnvironmentFailure
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.policy import ActingState, Actor
from pgcli.system.process_state import restore_modes
from pgcli.system.processes import Check

Array = NDArray[Any]


class EndedEpisode(NamedTuple):
    """An episode that ended, or was cut at the horizon: returns in reward units, length in steps."""

    episode_return: float
    discounted_return: float
    length: int
    how: str  # terminated | truncated | horizon
    info: dict[str, float] = {}  # noqa: RUF012 - numbers in the info of the last step


class Rollout(NamedTuple):
    """The trajectories of one iteration, and the episodes that ended in it."""

    trajectories: Trajectories
    episodes: list[EndedEpisode]


class Transition(NamedTuple):
    """One step of all columns. `running` is False where the episode had ended before."""

    obs: Array
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    running: Array
    next_obs: Array
    info: Array | None = None  # [N, K], numbers reported by episodes that end here; nan elsewhere


def play(
    envs: Environments,
    actor: Actor,
    seeds: Sequence[int],
    generator: np.random.Generator,
    horizon: int | None,
    check: Check,
    names: Sequence[str] = (),
) -> Iterator[Transition]:
    """Play one episode per column from its reset to its end, or to `horizon`.

    The last step of an episode has the numbers that the environment reports under `names`.
    `check` is called before every step; an exception in it, such as a signal, ends the rollout.
    """
    obs = envs.reset(seeds)
    restore_modes()
    running, acting = np.ones(len(seeds), bool), ActingState(actor, generator, len(seeds))
    for t in range(envs.longest_episode if horizon is None else horizon):
        check()
        actions = acting.act(obs)
        next_obs, rewards, terminated, truncated = envs.step(actor.for_environment(actions), running)
        restore_modes()  # rounding, which would apply to what pgcli computes of the step
        over = running & (terminated | truncated)
        ending = running if t + 1 == horizon else over
        info = envs.reported(names, ending) if names and ending.any() else None
        yield Transition(obs, actions, rewards, terminated, truncated, running, next_obs, info)
        running = running & ~over
        if not running.any():
            return
        obs = next_obs
    if horizon is None:
        raise endless_episode(envs.longest_episode)


def reported(transitions: Iterable[Transition], num_envs: int, num_names: int) -> Array:
    """Return the numbers that each whole episode reported at its end, [N, K]."""
    infos = [transition.info for transition in transitions if transition.info is not None]
    ends: Array = np.fmax.reduce([np.full((num_envs, num_names), np.nan), *infos])  # at most one is a number
    return ends


def named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Return the values by name, without nan."""
    return {name: value for name, value in zip(names, values, strict=True) if value == value}


def endless_episode(steps: int) -> EnvironmentFailure:
    """Return the error for an episode that has not ended after `steps` steps."""
    return EnvironmentFailure(
        f"an episode has not ended after {steps} steps",
        "set env.max_episode_steps, which may exceed this; rollout.horizon cuts training episodes only",
    )


def to_trajectories(transitions: Sequence[Transition]) -> Trajectories:
    """Stack the steps of one chunk, time first."""
    obs, actions, rewards, terminated, truncated, running, next_obs, _ = zip(*transitions, strict=True)
    mask = _stacked(running)
    return Trajectories(
        obs=torch.from_numpy(_stacked((*obs, next_obs[-1]))),
        actions=torch.from_numpy(_stacked(actions)),
        rewards=torch.from_numpy(np.where(mask, _stacked(rewards).astype(np.float64, copy=False), 0.0)),
        terminated=torch.from_numpy(_stacked(terminated) & mask),
        truncated=torch.from_numpy(_stacked(truncated) & mask),
        mask=torch.from_numpy(mask),
    )


def _stacked(rows: Sequence[Array]) -> Array:
    """Stack rows; for many small ones in half the time of np.stack."""
    return np.concatenate(rows).reshape(len(rows), *rows[0].shape)
