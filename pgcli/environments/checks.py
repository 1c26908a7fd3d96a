"""The start check: one reset and one step of an instance that is thrown away, before anything is built on it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import find_highest_version
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig
from pgcli.environments.failures import Broken, flag, is_fault, number, told, words
from pgcli.environments.masks import MaskedObservation, choices, draw, read_mask, shown_mask
from pgcli.environments.registry import build, spec
from pgcli.errors import EnvironmentFailure
from pgcli.policies.observations import ACTION_MASK, Layout

MAX_EPISODE_STEPS = 100_000  # a guard against episodes without end, not a time limit
SEED_BITS, NARROW_BITS = 63, 31  # of the seeds of resets
_RESET = "begin with `def reset(self, *, seed=None, options=None)` and `super().reset(seed=seed)`; return obs, {}"
_STEP = "return obs, reward, terminated, truncated, info from step"


@dataclass(frozen=True)
class Examination:
    """What a throwaway instance showed, and what the user should know of it."""

    observation_space: spaces.Space[Any]  # as the environment has it: without the mask that pgcli adds
    action_space: spaces.Space[Any]
    adds_mask: bool  # it says what it permits, and not in its observation
    time_limit: int | None
    oddities: tuple[str, ...]
    env_id: str
    seed_bits: int

    def seed(self, derived: int) -> int:
        """Give the part of a derived seed that the environment takes."""
        return derived & ((1 << self.seed_bits) - 1)

    @property
    def notices(self) -> list[str]:
        """What a user should know before a run."""
        guard = (
            f"{self.env_id} has no time limit: an episode of {MAX_EPISODE_STEPS:,} steps would stop the run; "
            "env.max_episode_steps sets one"
        )
        return [*self.oddities, *([guard] if self.time_limit is None else [])]


_examined: dict[str, Examination] = {}


def examine(config: EnvConfig) -> Examination:
    """Hold an environment against Gymnasium's contract, once per process and config.

    Raises: EnvironmentFailure for what would break a run; UsageError for an argument that it does not take.
    """
    parts = {"id", "kwargs", "wrappers", "max_episode_steps"}
    key = json.dumps(config.model_dump(include=parts, warnings=False), sort_keys=True, default=repr)
    if key not in _examined:
        _examined[key] = _examine(config)
    return _examined[key]


def make(config: EnvConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build one environment as the policy meets it: examined, with its wrappers, its action mask observed.

    Raises: EnvironmentFailure, UsageError.
    """
    env = build(config, render_mode)
    return MaskedObservation(env) if examine(config).adds_mask else env


def time_limit(config: EnvConfig, env: gym.Env[Any, Any]) -> int | None:
    """Give the steps after which an episode of `env` is cut, if it says so."""
    arguments = spec(config).kwargs | config.kwargs
    skipped = arguments.get("frameskip", 1)
    frames_per_step = skipped if isinstance(skipped, int) else 1
    limits, layer = list[int](), env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit):
            limits.append(int(layer._max_episode_steps))  # it has no public name
        elif isinstance(layer, gym.wrappers.AtariPreprocessing):
            frames_per_step *= layer.frame_skip
        layer = layer.env
    if isinstance(frames := arguments.get("max_num_frames_per_episode"), int):  # Atari counts frames
        limits.append(frames // frames_per_step)
    return min(limits, default=None)


def _examine(config: EnvConfig) -> Examination:
    env, doing = build(config), "reset"
    try:
        observation_space, action_space = (_space(config, env, name) for name in ("observation_space", "action_space"))
        layout = Layout(observation_space)
        first, seed_bits = _reset(env)
        if not (isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], dict)):
            raise Broken(f"{_kind(first)} instead of (obs, info)", _RESET)
        obs, info = first
        outside = _outside(layout, obs)
        in_obs = isinstance(observation_space, spaces.Dict) and ACTION_MASK in observation_space.spaces
        shown = obs[ACTION_MASK] if in_obs else shown_mask(env, info)
        fits = bool(choices(action_space)) and not (in_obs and np.size(shown) != sum(choices(action_space)))
        mask = read_mask(shown, action_space) if fits and shown is not None else None
        doing = "step"
        if mask is not None and not mask.any():
            raise Broken("an action mask that permits nothing", "after a reset there must be something to do")
        result = env.step(draw(action_space, mask, np.random.default_rng(0)))
        if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], dict)):
            raise Broken(f"{_kind(result)} instead of (obs, reward, terminated, truncated, info)", _STEP)
        obs, reward, terminated, truncated, _ = result
        outside = outside or _outside(layout, obs)
        if not math.isfinite(number(reward)):
            raise Broken(f"a non-finite reward: {reward}", "a reward is a finite number")
        flag(terminated, "terminated")
        flag(truncated, "truncated")
        limit = time_limit(config, env)
        doing = "close"
        env.close()
    except Broken as error:
        raise EnvironmentFailure(f"{config.id} gave {error} at the {doing} of the start check", error.hint) from error
    except BaseException as error:
        if not is_fault(error):
            raise
        _explain(config, doing, error)
    oddities = (_outdated(config), f"{config.id} gave {outside}; nothing is clipped" if outside else "")
    adds_mask = mask is not None and not in_obs
    told_of = tuple(filter(None, oddities))
    return Examination(observation_space, action_space, adds_mask, limit, told_of, config.id, seed_bits)


def _reset(env: gym.Env[Any, Any]) -> tuple[Any, int]:
    """Reset with a seed of 63 bits or, where the environment's generator takes no such seed, of 31; say which."""
    try:
        return env.reset(seed=2**SEED_BITS - 1), SEED_BITS
    except Exception:
        return env.reset(seed=2**NARROW_BITS - 1), NARROW_BITS  # a fault that has other reasons comes again


def _space(config: EnvConfig, env: gym.Env[Any, Any], name: str) -> spaces.Space[Any]:
    space = getattr(env, name, None)
    if not isinstance(space, spaces.Space):
        what = "has no" if space is None else f"has a {type(space).__name__} for its"
        hint = f"set self.{name} in its constructor to a space of gymnasium.spaces"
        raise EnvironmentFailure(f"{config.id} {what} {name}", hint)
    return space


def packed(layout: Layout, obs: Any, *, batch: bool = False) -> NDArray[Any]:
    """Give an observation as its layout holds it; raise Broken if it does not fit its space."""
    try:
        return layout.pack(obs, batch=batch)
    except ValueError as error:
        raise Broken(str(error), "make it what observation_space says") from error


def _outside(layout: Layout, obs: Any) -> str:
    """Say of an observation which part leaves the bounds of its space, if one does; raise Broken if it is not in it."""
    row = packed(layout, obs)
    if row.dtype.kind == "f" and not np.isfinite(row).all():
        raise Broken("a non-finite observation", "every number of it is to be finite")
    for leaf in layout.leaves:
        part = row[leaf.numbers].reshape(leaf.space.shape or ()) if layout.nested else row
        if isinstance(leaf.space, spaces.Box) and (out := (part < leaf.space.low) | (part > leaf.space.high)).any():
            return f"an {leaf.name} of {part[out].flat[0]:g} outside the bounds of its space"
    return ""


def _kind(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else f"one {type(result).__name__}"


def _explain(config: EnvConfig, doing: str, error: BaseException) -> NoReturn:
    """Tell what an environment raised, and of `gym`'s old ways what has become of them."""
    said = words(error)
    if doing == "reset" and "unexpected keyword argument" in said:
        raise EnvironmentFailure(f"{config.id}: its reset takes no seed or no options", _RESET) from error
    if doing == "step" and isinstance(error, ValueError) and "(expected 5, got 4)" in said:
        message = f"{config.id}: its step gives 4 values, as those of `gym` did, and Gymnasium's gives 5"
        raise EnvironmentFailure(message, _STEP) from error
    raise EnvironmentFailure(f"{config.id} raised {told(error)} at the {doing} of the start check") from error


def _outdated(config: EnvConfig) -> str:
    found = spec(config)
    newest = None if found.version is None else find_highest_version(found.namespace, found.name)
    if newest is None or newest <= (found.version or 0):
        return ""
    return f"{found.id} is out of date: there is a v{newest}"
