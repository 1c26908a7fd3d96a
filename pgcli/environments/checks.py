"""The start check: one reset and one step of a new instance, which is then discarded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pgcli.config.schema import EnvConfig
from pgcli.environments.construction import build
from pgcli.environments.failures import InvalidOutput, describe_outcome, is_user_error, message_of
from pgcli.environments.masks import choices, draw, read_mask, reported_anyhow
from pgcli.environments.outputs import non_finite_rows, pack_observation, read_flag, read_reward
from pgcli.environments.registry import newer_version, spec
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.policies.observations import ACTION_MASK, Layout

MAX_EPISODE_STEPS = 100_000  # stops episodes that never end, unless the time limit is longer; not a time limit
_SEED_BITS, _NARROW_SEED_BITS = 63, 31  # of reset seeds
_RESET = "begin with `def reset(self, *, seed=None, options=None)` and `super().reset(seed=seed)`; return obs, {}"
_STEP = "return obs, reward, terminated, truncated, info from step"


@dataclass(frozen=True)
class StartCheck:
    """What the start check found about an environment."""

    observation_space: spaces.Space[Any]  # before pgcli adds a mask
    action_space: spaces.Space[Any]
    adds_mask: bool  # the environment reports a mask outside its observation
    time_limit: int | None
    warnings: tuple[str, ...]
    env_id: str
    seed_bits: int

    @property
    def longest_episode(self) -> int:
        """Return the number of steps after which an episode counts as endless."""
        return max(MAX_EPISODE_STEPS, self.time_limit or 0)

    def seed(self, derived: int) -> int:
        """Return the bits of a derived seed that the environment accepts."""
        return derived & ((1 << self.seed_bits) - 1)

    @property
    def notices(self) -> list[str]:
        """Return the notices to print before a run."""
        guard = (
            f"{self.env_id} has no time limit: an episode of {MAX_EPISODE_STEPS:,} steps would stop the run; "
            "env.max_episode_steps sets one"
        )
        return [*self.warnings, *([guard] if self.time_limit is None else [])]


_checked: dict[str, StartCheck] = {}


def check_environment(config: EnvConfig) -> StartCheck:
    """Check an environment against Gymnasium's interface, once per process and config.

    Raises: EnvironmentFailure: for a fault that would stop a run; UsageError: for an unknown argument.
    """
    parts = {"id", "kwargs", "wrappers", "max_episode_steps"}
    data = config.model_dump(include=parts, warnings=False) | {"reads_mask": config.reads_mask}
    key = json.dumps(data, default=repr)  # the order of kwargs counts
    if key not in _checked:
        _checked[key] = _check(config)
    return _checked[key]


def check_evaluation(config: EnvConfig, training: EnvConfig) -> StartCheck:
    """Check the evaluation environment against the training environment.

    Raises: UsageError if their spaces differ; also the errors of `check_environment`.
    """
    found, expected = check_environment(config), check_environment(training)
    for name in ("observation_space", "action_space", "adds_mask"):
        if getattr(found, name) != getattr(expected, name):
            own, other = (
                f"{'an' if one.adds_mask else 'no'} action mask"
                if name == "adds_mask"
                else f"the {name.replace('_', ' ')} {getattr(one, name)}"
                for one in (found, expected)
            )
            raise UsageError(
                f"evaluation.env: evaluations have {own}, and training has {other}",
                "set wrappers and kwargs that change spaces in both `env` and `evaluation.env`",
            )
    return found


def _check(config: EnvConfig) -> StartCheck:
    env, doing = build(config), "reset"
    try:
        observation_space, action_space = (_space(config, env, name) for name in ("observation_space", "action_space"))
        layout = Layout(observation_space)
        result, seed_bits = _reset(env)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise InvalidOutput(f"{_kind(result)} instead of (obs, info)", _RESET)
        obs, info = result
        outside = _out_of_bounds(layout, obs)
        in_obs = isinstance(observation_space, spaces.Dict) and ACTION_MASK in observation_space.spaces
        reported, unused = None, ""
        if config.reads_mask and in_obs:
            reported = obs[ACTION_MASK]
            if not choices(action_space):
                reported, unused = None, f"{type(action_space).__name__} actions have no choices to mask"
            elif np.size(reported) != sum(choices(action_space)):
                reported = None  # the policy refuses it
        elif config.reads_mask:
            reported, unused = reported_anyhow(env, info, action_space)
        mask = None if reported is None else read_mask(reported, action_space)
        doing = "step"
        if mask is not None and not mask.any():
            raise InvalidOutput(
                "an action mask that permits no action", "the mask after a reset must permit at least one action"
            )
        result = env.step(draw(action_space, mask, np.random.default_rng(0)))
        if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], dict)):
            raise InvalidOutput(f"{_kind(result)} instead of (obs, reward, terminated, truncated, info)", _STEP)
        obs, reward, terminated, truncated, info = result
        if config.reads_mask and reported is None and info.get(ACTION_MASK) is not None and not unused:
            unused = "the info of `step` has it, the info of `reset` does not"
        outside = outside or _out_of_bounds(layout, obs)
        if not math.isfinite(read_reward(reward)):
            raise InvalidOutput(f"a non-finite reward: {reward}", "rewards must be finite numbers")
        read_flag(terminated, "terminated")
        read_flag(truncated, "truncated")
        limit = _time_limit(config, env)
        doing = "close"
        env.close()
    except BaseException as error:
        if not is_user_error(error):
            raise
        raise _failure(config, doing, error) from error
    newest = newer_version(spec(config))
    warnings = [f"{spec(config).id} is out of date: the newest version is v{newest}"] if newest else []
    warnings += [f"{config.id} returned {outside}; nothing is clipped"] if outside else []
    warnings += [f"the action mask of {config.id} is not used: {unused}"] if unused else []
    adds_mask = mask is not None and not in_obs
    return StartCheck(observation_space, action_space, adds_mask, limit, tuple(warnings), config.id, seed_bits)


def _space(config: EnvConfig, env: gym.Env[Any, Any], name: str) -> spaces.Space[Any]:
    space = getattr(env, name, None)
    if not isinstance(space, spaces.Space):
        what = "has no" if space is None else f"has a {type(space).__name__} for its"
        hint = f"set self.{name} in its constructor to a space of gymnasium.spaces"
        raise EnvironmentFailure(f"{config.id} {what} {name}", hint)
    return space


def _reset(env: gym.Env[Any, Any]) -> tuple[Any, int]:
    """Reset with a 63-bit seed, else a 31-bit one; return result and bits."""
    try:
        return env.reset(seed=2**_SEED_BITS - 1), _SEED_BITS
    except Exception:
        return env.reset(seed=2**_NARROW_SEED_BITS - 1), _NARROW_SEED_BITS  # raises again if the seed was not the cause


def _out_of_bounds(layout: Layout, obs: Any) -> str:
    """Describe the first part of an observation outside its bounds; "" if none is.

    Raises: InvalidOutput: if the observation is not finite, or does not have the shape and type of its space.
    """
    rows = pack_observation(layout, obs)[None]
    if len(non_finite_rows(layout, rows)):
        raise InvalidOutput("a non-finite observation", "all numbers of an observation must be finite")
    for leaf in layout.leaves:
        part = leaf.unpack(rows).reshape(leaf.shape)
        if isinstance(leaf.space, spaces.Box) and (out := (part < leaf.space.low) | (part > leaf.space.high)).any():
            return f"an {leaf.name} of {part[out].flat[0]:g} outside the bounds of its space"
    return ""


def _time_limit(config: EnvConfig, env: gym.Env[Any, Any]) -> int | None:
    """Return the time limit of the wrappers or the emulator of `env`, in steps."""
    arguments = spec(config).kwargs | config.kwargs
    skipped = arguments.get("frameskip", 1)
    frames_per_step = skipped if isinstance(skipped, int) else 1
    limits, layer = list[int](), env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit):
            limits.append(int(layer._max_episode_steps))  # no public attribute
        elif isinstance(layer, gym.wrappers.AtariPreprocessing):
            frames_per_step *= layer.frame_skip
        layer = layer.env
    if isinstance(frames := arguments.get("max_num_frames_per_episode"), int):  # Atari counts frames
        limits.append(frames // frames_per_step)
    return min(limits, default=None)


def _kind(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else f"one {type(result).__name__}"


def _failure(config: EnvConfig, doing: str, error: BaseException) -> EnvironmentFailure:
    """Describe an error of the start check, with hints for the older `gym` interface."""
    message = message_of(error)
    if doing == "reset" and "unexpected keyword argument" in message:
        return EnvironmentFailure(f"{config.id}: `reset` does not accept `seed` and `options`", _RESET)
    if doing == "step" and isinstance(error, ValueError) and "(expected 5, got 4)" in message:
        message = f"{config.id}: `step` returned 4 values, as in the older `gym`; Gymnasium requires 5"
        return EnvironmentFailure(message, _STEP)
    hint = error.hint if isinstance(error, InvalidOutput) else ""
    if "unhashable type: 'list'" in message and config.kwargs:
        hint = "YAML has no tuples; a list is passed as a tuple if the parameter's default is one"
    return EnvironmentFailure(f"{config.id} {describe_outcome(error)} at the {doing} of the start check", hint)
