"""Test whether an environment's vector form is equivalent to its single form.

pgcli requires Gymnasium's NEXT_STEP autoreset: the last step of an episode returns the true last observation. The
next step ignores its action, has reward 0 and returns the first observation of the next episode.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import StartCheck, check_environment
from pgcli.environments.construction import build, build_vector
from pgcli.environments.failures import InvalidOutput, describe_outcome, is_user_error
from pgcli.environments.masks import MaskColumns, draw
from pgcli.environments.outputs import Array, pack_observation
from pgcli.environments.registry import spec
from pgcli.environments.vector.native import VectorEnvironments, is_restorable
from pgcli.errors import PgcliError
from pgcli.policies.observations import Layout

_COLUMNS = 3
_LIMITS = (3, 5)  # time limits of the trial, in steps
_ROWS, _MOST_ROWS = 300, 3000  # steps of a trial; the larger number if no episode has ended
_SEED = 2**63 - 1  # the largest derived seed
_NOT_NEXT_STEP = "does not reset in the step after the end of an episode, although it declares this"

Choose = Callable[[int, Array], Any]  # an action from the number of steps since the reset, and the observation


class _Row(NamedTuple):
    """The result of one step or reset of a form."""

    obs: Array  # [N, …]
    rewards: Array  # [N]
    terminated: Array  # bool [N]
    truncated: Array  # bool [N]
    age: Array  # steps since the reset, [N]; 0 in a row that resets


_faults: dict[str, str] = {}


def vector_form_fault(config: EnvConfig, *, resumable: bool = False) -> str | None:
    """Return why the vector form is unusable, as a predicate; "" if usable, None without a form.

    A pure function of the config, so all workers agree. Computed once per process.

    Args: resumable: the form must continue from its arrays in a new process.
    """
    if spec(config).vector_entry_point is None or config.wrappers or config.rebuild is True:
        return None
    checked = check_environment(config)
    trials = [partial(_fault, config, checked), *([partial(_fault_of_restoring, config)] if resumable else [])]
    for number, trial in enumerate(trials):
        key = json.dumps([number, config.id, config.kwargs, config.max_episode_steps], default=repr)
        if key not in _faults:
            _faults[key] = _guarded(trial, config)
        if _faults[key]:
            return _faults[key]
    return ""


def vector_form_notice(config: EnvConfig, *, resumable: bool) -> str | None:
    """Return a notice if `env.vectorization: auto` skips an unusable vector form."""
    if config.vectorization != "auto" or config.shares_seeds or check_environment(config).adds_mask:
        return None
    fault = vector_form_fault(config, resumable=resumable)
    return f"{config.id} does not use its vector form, which {fault}" if fault else None


def _guarded(trial: Callable[[], str], config: EnvConfig) -> str:
    """Return the result of a trial, or the description of its exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium warns about the form, which may not be used
            return trial()
    except BaseException as error:
        if isinstance(error, PgcliError):
            return error.message.removeprefix(f"{config.id} ").removeprefix(f"the vector form of {config.id} ")
        if not is_user_error(error):
            raise
        return describe_outcome(error)


def _fault_of_restoring(config: EnvConfig) -> str:
    one, other = (VectorEnvironments(config, _COLUMNS) for _ in range(2))
    with closing(one):
        return "" if is_restorable(one, other) else "has state outside its arrays, and cannot be resumed"


def _fault(config: EnvConfig, checked: StartCheck) -> str:
    with closing(build_vector(config, _COLUMNS)) as envs:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.NEXT_STEP:
            name = getattr(mode, "name", mode)
            declared = "declares no autoreset mode" if mode is None else f"has autoreset mode {name}"
            return f"{declared}, and pgcli needs NEXT_STEP"
        spaces = (envs.single_observation_space, envs.single_action_space)
        if spaces != (checked.observation_space, checked.action_space):
            return "has other spaces than the single form"
        if fault := _fault_of_seeds(envs):
            return fault
        choose = _chooser(checked)
        known = _known_episode(config, checked, choose)
        ended = 0
        for fault, count in _trials_of_limits(config, checked, choose):
            if fault:
                return fault
            ended += count
        rows = _play(envs, checked, choose, _ROWS if ended else _MOST_ROWS)
        fault = _fault_of(rows, known)
        if fault:
            return fault
        if not ended and not any((row.terminated | row.truncated).any() for row in rows):
            return f"ends no episode in {_MOST_ROWS:,} steps, so its autoreset is unknown"
        if not _equal(rows, _play(envs, checked, choose, len(rows) - 1)):
            return "does not repeat its episodes for the same seed"
        if not _equal(rows, _play(envs, checked, choose, len(rows) - 1, altered=True)):
            return _NOT_NEXT_STEP
    return ""


def _fault_of_seeds(envs: gym.vector.VectorEnv[Any, Any, Any]) -> str:
    try:
        envs.reset(seed=_SEED)
    except Exception:
        envs.reset(seed=2**31 - 1)  # raises again if the seed was not the cause
        return "does not accept 63-bit seeds"
    return ""


def _chooser(checked: StartCheck) -> Choose:
    """Return a function that chooses actions by the age of an episode and the mask alone."""
    masks = MaskColumns(Layout(checked.observation_space), checked.action_space)
    drawn: dict[int, Any] = {}

    def choose(age: int, obs: Array) -> Any:
        if (permitted := masks.of(obs[None])) is not None:
            mask = permitted[0] if permitted.any() else None
            return draw(checked.action_space, mask, np.random.default_rng(age))
        if age not in drawn:
            drawn[age] = draw(checked.action_space, None, np.random.default_rng(age))
        return drawn[age]

    return choose


def _trials_of_limits(config: EnvConfig, checked: StartCheck, choose: Choose) -> Iterator[tuple[str, int]]:
    """Yield the fault of the form, and the number of ended episodes, for each short time limit."""
    limited = (config.max_episode_steps or spec(config).max_episode_steps) is not None
    by_termination = []
    for limit in _LIMITS:
        short = config.model_copy(update={"max_episode_steps": limit})
        try:
            envs = build_vector(short, _COLUMNS)
        except PgcliError:
            if limited:
                raise
            return  # no time limit is accepted or needed
        with closing(envs):
            rows = _play(envs, checked, choose, 4 * (limit + 1))
        if max(row.age.max() for row in rows) > limit:
            yield ("ignores the time limit" if limited else ""), 0
            return
        yield (
            _fault_of(rows, _known_episode(short, checked, choose)),
            sum(int((row.terminated | row.truncated).sum()) for row in rows),
        )
        at_limit = [row.truncated[row.age == limit] for row in rows if (row.age == limit).any()]
        by_termination.append(bool(at_limit) and not np.concatenate(at_limit).any())
    if limited and all(by_termination):
        yield "reports the time limit as a terminal state", 0


def _known_episode(config: EnvConfig, checked: StartCheck, choose: Choose) -> list[_Row] | None:
    """Return an episode of the single form if five seeds give the same one, else None."""
    layout, episodes = Layout(checked.observation_space), list[list[_Row]]()
    with closing(build(config)) as env:
        for seed in range(5):
            obs, never = pack_observation(layout, env.reset(seed=seed)[0]).copy(), np.zeros(1, bool)
            rows = [_Row(obs[None], np.zeros(1), never, never, np.zeros(1, int))]
            for age in range(_ROWS):
                next_obs, reward, *flags, _ = env.step(choose(age, obs))
                obs = pack_observation(layout, next_obs).copy()
                terminated, truncated = (np.asarray(flag, bool).reshape(1) for flag in flags)
                pay = np.asarray(reward, float).reshape(1)
                rows.append(_Row(obs[None], pay, terminated, truncated, np.full(1, age + 1)))
                if terminated or truncated:
                    break
            if episodes and not _equal(rows, episodes[0]):
                return None
            episodes.append(rows)
    return episodes[0]


def _play(
    envs: gym.vector.VectorEnv[Any, Any, Any], checked: StartCheck, choose: Choose, rows: int, altered: bool = False
) -> list[_Row]:
    """Return the rows from a reset with the largest seed until every column ended two episodes.

    Args: altered: choose other actions in the steps that reset; this must have no effect.
    """
    layout, n = Layout(checked.observation_space), _COLUMNS
    result, never = envs.reset(seed=_SEED), np.zeros(n, bool)
    played = [_Row(_packed(layout, result[0], n), np.zeros(n), never, never, np.zeros(n, int))]
    ends = np.zeros(n, int)
    for _ in range(rows):
        last = played[-1]
        over = last.terminated | last.truncated
        actions = [np.asarray(choose(*one)) for one in zip(last.age.tolist(), last.obs, strict=True)]
        for column in np.flatnonzero(over).tolist() if altered else ():
            other = (np.asarray(choose(age, last.obs[column])) for age in range(_ROWS, _ROWS + 20))
            actions[column] = next((x for x in other if not np.array_equal(x, actions[column])), actions[column])
        obs, *others, info = envs.step(np.stack(actions))
        if {"final_obs", "final_observation", "final_info"} & set(info):
            raise InvalidOutput("the last observation of an episode in its info, as autoreset mode SAME_STEP does")
        rewards, terminated, truncated = (np.array(x).reshape(n) for x in others)
        played.append(_Row(_packed(layout, obs, n), rewards, terminated, truncated, np.where(over, 0, last.age + 1)))
        ends += terminated | truncated
        if ends.min() >= 2:
            break
    return played


def _packed(layout: Layout, obs: Any, n: int) -> Array:
    packed = pack_observation(layout, obs, batch=True).copy()
    if len(packed) != n:
        raise InvalidOutput(f"{len(packed)} observations for {n} columns")
    return packed


def _fault_of(rows: list[_Row], known: list[_Row] | None) -> str:
    """Compare the rows of a form with NEXT_STEP and with a known episode of the single form."""
    for before, row in pairwise(rows):
        resets = before.terminated | before.truncated
        if (resets & (row.terminated | row.truncated)).any() or row.rewards[resets].any():
            return _NOT_NEXT_STEP
    if known is None:
        return ""
    for row in rows:
        for column, age in enumerate(row.age.tolist()):
            if age >= len(known):
                return ""  # the known episode ends here
            like, terminated = known[age], row.terminated[column]
            if terminated != like.terminated[0] or (not terminated and row.truncated[column] != like.truncated[0]):
                return f"plays other episodes than the single form: the end flags differ in step {age}"
            if not all(
                np.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)
                for x, y in ((row.obs[column], like.obs[0]), (row.rewards[column], like.rewards[0]))
            ):
                return f"plays other episodes than the single form: the first difference is in step {age}"
    return ""


def _equal(some: list[_Row], others: list[_Row]) -> bool:
    """Return whether two lists of rows are equal, bit for bit."""
    return [[x.tobytes() for x in row] for row in some] == [[x.tobytes() for x in row] for row in others]
