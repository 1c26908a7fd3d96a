"""Which environments have a vector form in numpy, and a trial that compares it with the single form."""

from __future__ import annotations

import json
import math
from contextlib import closing
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from pgcli.config.schema import EnvConfig
from pgcli.environments.failures import is_user_error
from pgcli.environments.masks import MaskColumns, draw
from pgcli.environments.registry import spec
from pgcli.environments.single import SingleEnvironments, uses_fresh_instances
from pgcli.environments.vector.arrays import ArrayEnvironments, NativeArrayEnvironments
from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.native import StackedVectorEnvironments, VectorEnvironments
from pgcli.errors import PgcliError

_CONTROL, _TOYS = "gymnasium.envs.classic_control", "gymnasium.envs.toy_text"
_LARGEST = 1e6  # of an argument: nothing overflows
_COLUMNS, _STEPS = 2, 80  # of the trial


class _Entry(NamedTuple):
    """A form, `module:Class` in this package, and its supported arguments.

    They are arguments of Gymnasium's constructor.
    """

    form: str
    arguments: frozenset[str] = frozenset()


_ENTRIES = {
    f"{_CONTROL}.acrobot:AcrobotEnv": _Entry("acrobot:Acrobot"),
    f"{_CONTROL}.cartpole:CartPoleEnv": _Entry("cartpole:CartPole", frozenset({"sutton_barto_reward"})),
    f"{_CONTROL}.mountain_car:MountainCarEnv": _Entry("mountain_car:MountainCar", frozenset({"goal_velocity"})),
    f"{_CONTROL}.continuous_mountain_car:Continuous_MountainCarEnv": _Entry(
        "mountain_car:ContinuousMountainCar", frozenset({"goal_velocity"})
    ),
    f"{_CONTROL}.pendulum:PendulumEnv": _Entry("pendulum:Pendulum", frozenset({"g"})),
    f"{_TOYS}.blackjack:BlackjackEnv": _Entry("blackjack:Blackjack", frozenset({"natural", "sab"})),
    f"{_TOYS}.cliffwalking:CliffWalkingEnv": _Entry("tabular:Tabular", frozenset({"is_slippery"})),
    f"{_TOYS}.frozen_lake:FrozenLakeEnv": _Entry(
        "tabular:Tabular", frozenset({"desc", "map_name", "is_slippery", "success_rate", "reward_schedule"})
    ),
    f"{_TOYS}.taxi:TaxiEnv": _Entry("tabular:Tabular", frozenset({"is_rainy", "rainy_probability"})),
}
_equal: dict[str, bool] = {}


def numpy_form(config: EnvConfig) -> type[Form] | None:
    """Return the vector form in numpy of an environment, or None.

    A form needs an environment without wrappers, with arguments that it supports, and with the results of the single
    form in a trial. A pure function of the config, so all workers agree. The trial runs once per process.
    """
    found = spec(config)
    arguments = found.kwargs | config.kwargs
    entry = _ENTRIES.get(str(found.entry_point))
    if entry is None or config.wrappers or found.additional_wrappers or uses_fresh_instances(config):
        return None
    if not entry.arguments.issuperset(arguments) or not all(map(_is_plain, arguments.values())):
        return None
    module, _, name = entry.form.partition(":")
    form: type[Form] = getattr(import_module(f"pgcli.environments.vector.{module}"), name)
    key = json.dumps([found.id, config.kwargs, config.max_episode_steps, config.reads_mask], default=repr)
    if key not in _equal:
        _equal[key] = _equals_single_form(config, form)
    return form if _equal[key] else None


def form_of_native(config: EnvConfig) -> type[Form] | None:
    """Return the form in numpy whose episodes equal those of the environment's own vector form, or None.

    Both start at the same states. The trial runs once per process.
    """
    form, key = numpy_form(config), f"native {config!r}"
    if form is None or form.is_random:
        return None
    if key not in _equal:
        one = VectorEnvironments(config, _COLUMNS)
        native = StackedVectorEnvironments(config, _COLUMNS, _COLUMNS, one)
        with closing(native):
            ours = NativeArrayEnvironments(config, _COLUMNS, _COLUMNS, one, form)
            _equal[key] = _episodes(ours) == _episodes(native)
    return form if _equal[key] else None


def _is_plain(value: Any) -> bool:
    """Return whether an argument has a value of the usual kind: no null, nan or huge number."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | str) or (isinstance(value, int | float) and math.fabs(value) <= _LARGEST)


def _equals_single_form(config: EnvConfig, form: type[Form]) -> bool:
    """Return whether the form plays some episodes as single environments do, to the bit."""
    try:
        with closing(SingleEnvironments(config, _COLUMNS)) as single:
            return _played(single) == _played(ArrayEnvironments(config, _COLUMNS, form))
    except PgcliError:
        return False
    except BaseException as error:
        if not is_user_error(error):
            raise
        return False


def _played(envs: SingleEnvironments | ArrayEnvironments) -> list[bytes]:
    """Return the bytes of a few steps with random actions; each column restarts at the end of its episode."""
    mask, random, running = (
        MaskColumns(envs.layout, envs.action_space),
        np.random.default_rng(0),
        np.ones(_COLUMNS, bool),
    )
    results: list[Array] = [envs.reset(range(_COLUMNS))]
    for number in range(_STEPS):
        permitted = mask.of(results[-1])
        rows = [None] * _COLUMNS if permitted is None else permitted
        actions = np.array([draw(envs.action_space, row, random) for row in rows])
        step = envs.step(actions, running)
        results += step
        results.append(step.obs)
        over = (step.terminated | step.truncated).nonzero()[0].tolist()
        if over:
            results.append(envs.restart(over, [2**62 + number * _COLUMNS + column for column in range(_COLUMNS)]))
    return [x.tobytes() for x in results]


def _episodes(envs: NativeArrayEnvironments | StackedVectorEnvironments) -> list[bytes]:
    """Return the bytes of an episode in each column, with random actions, cut after a few steps."""
    obs = envs.reset(range(_COLUMNS**2))
    random, running = np.random.default_rng(0), np.ones(len(obs), bool)
    results = [obs]
    for _ in range(_STEPS):
        actions = np.array([draw(envs.action_space, None, random) for _ in running])
        step = envs.step(actions, running)
        results += [step.obs[running], step.rewards[running].astype(np.float64), *(one[running] for one in step[2:])]
        running = running & ~(step.terminated | step.truncated)
    return [x.tobytes() for x in results]
