"""Values of observations: bounds of images, offsets of numbers, and types."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from helpers import config
from test_spaces import policy_for, returns

import pgcli as api
from pgcli.environments.checks import check_environment
from pgcli.environments.make import make_environments
from pgcli.errors import EnvironmentFailure
from pgcli.inspection.doctor import diagnose
from pgcli.policies.observations import Layout

TESTS = str(Path(__file__).parent)
PATHS = os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH"))))


class Hint(gym.Env[Any, np.int64]):
    """10 steps; the paid action is the sign of a small signal on an offset, or a mark's side in an image."""

    def __init__(self, kind: str = "clock", offset: float = 1.7e9, nested: bool = False) -> None:
        self.kind, self.offset, self.nested = kind, offset, nested
        self.action_space = spaces.Discrete(2)
        space: spaces.Space[Any] = BOXES[kind]
        self.observation_space = spaces.Dict({"a": space, "b": spaces.MultiBinary(2)}) if nested else space

    def shown(self) -> Any:
        side = int(self.np_random.integers(2))
        self.pays = side
        box = BOXES[self.kind]
        if len(box.shape) == 1:
            obs = np.array([self.offset + (2 * side - 1)]).astype(box.dtype)
        else:
            obs = np.zeros(box.shape, box.dtype)
            channel = 0 if box.shape[0] < 6 else int(self.np_random.integers(6))
            obs[channel, int(self.np_random.integers(6)), int(self.np_random.integers(3)) + 3 * side] = 1
        return {"a": obs, "b": np.zeros(2, np.int8)} if self.nested else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.shown(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 1.0 if action == self.pays else -1.0
        self.t += 1
        return self.shown(), reward, self.t >= 10, False, {}


def _wide_channel() -> spaces.Box:
    high = np.ones((3, 6, 6), np.float32)
    high[2] = 1e4
    return spaces.Box(np.zeros_like(high), high)


BOXES: dict[str, spaces.Box] = {
    "clock": spaces.Box(-np.inf, np.inf, (1,), np.float64),
    "counter": spaces.Box(0, 2**62, (1,), np.int64),
    "unknown": spaces.Box(np.iinfo(np.int32).min, np.iinfo(np.int32).max, (3, 6, 6), np.int32),
    "unbounded": spaces.Box(-np.inf, np.inf, (3, 6, 6), np.float64),
    "half bounded": spaces.Box(0, np.inf, (3, 6, 6), np.float32),
    "huge": spaces.Box(0, 1e5, (3, 6, 6), np.float32),
    "wide channel": _wide_channel(),
}


def learned(**kwargs: Any) -> float:
    """Return the mean return of the last evaluation; 10 is the best, and a blind policy earns 0."""
    return returns(
        env={"id": "test_observation_values:Hint", "num_envs": 16, "kwargs": kwargs},
        rollout={"episodes": 32},
        policy={"hidden_sizes": [16], "normalize_obs": kwargs["kind"] in ("clock", "counter")},
        algorithm={"gamma": 0, "standardize": "batch"},
        optimizer={"learning_rate": 0.01},
        training={"iterations": 30},
        evaluation={"every": None, "episodes": 20},
    )[-1]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", BOXES)
def test_a_policy_sees_signals_on_large_offsets_and_under_uninformative_bounds(kind: str, nested: bool) -> None:
    assert learned(kind=kind, nested=nested) > 8


@pytest.mark.parametrize(
    ("low", "high", "divisors"),
    [
        (0, 255, (255.0,)),
        (0, 1, (1.0,)),
        (-1, 0.5, (1.0,)),
        (0, 10, (10.0,)),
        (-100, 200, (200.0,)),
        (0, 256, ()),
        (-np.inf, np.inf, ()),
        (0, np.inf, ()),
        (0, 1e-3, ()),
        (200, 201, ()),
    ],
)
def test_an_image_is_divided_by_informative_bounds(low: float, high: float, divisors: Any) -> None:
    policy = policy_for(spaces.Box(low, high, (1, 6, 6)), spaces.Discrete(2))
    assert policy.encoder.images[0].divisors == divisors
    assert policy.has_statistics is (not divisors), "what bounds do not tell, statistics do"


@pytest.mark.parametrize("last", [False, True])
def test_each_channel_of_an_image_has_its_own_bound(last: bool) -> None:
    high = np.array([1, 10, 200], np.float32)
    high = np.broadcast_to(high if last else high[:, None, None], (6, 6, 3) if last else (3, 6, 6))
    policy = policy_for(spaces.Box(np.zeros_like(high), high), spaces.Discrete(2))
    (seen,) = policy.pictures(torch.from_numpy(high.copy())[None], torch.float32)
    assert (seen == 1).all()


def test_nan_bounds_are_uninformative() -> None:
    space = spaces.Box(0, 1, (1, 6, 6))
    space.high[0, 3, 3] = np.nan
    assert policy_for(space, spaces.Discrete(2)).has_statistics


def test_acting_learning_and_a_notebook_see_a_small_signal_on_a_large_offset(tmp_path: Path) -> None:
    env = ["env.id=test_observation_values:Hint", "env.num_envs=4", "env.max_episode_steps=10"]
    small = [
        "policy={normalize_obs: true, hidden_sizes: [4]}",
        "training.iterations=2",
        "evaluation={every: null, stop_at_return: null}",
    ]
    command = ["train", "cartpole", *env, *small, "rollout.episodes=16", "--run-dir", "run"]
    pgcli(*command, cwd=tmp_path, PYTHONPATH=PATHS)
    agent = api.load(tmp_path / "run", trust=True)
    obs = np.array([[1.7e9 - 1], [1.7e9 + 1]])
    assert agent.policy.normalizer is not None
    normalized = agent.policy.encode(torch.from_numpy(obs))
    assert normalized[:, 0].tolist() == pytest.approx([-1, 1], abs=0.3)
    in_numpy = agent.policy.normalizer.in_numpy()(agent.policy.encoder.in_numpy(obs, np.float64))
    np.testing.assert_array_equal(in_numpy, normalized)


def test_doctor_warns_of_a_signal_that_float32_loses() -> None:
    for offset, normalize, warned in ((1.7e9, False, True), (1.7e9, True, False), (3.0, False, False)):
        settings = config(
            env={"id": "test_observation_values:Hint", "num_envs": 2, "kwargs": {"offset": offset}},
            rollout={"episodes": 2},
            policy={"normalize_obs": normalize},
            training={"iterations": 1},
        )
        findings = diagnose(settings)["findings"]
        assert any("offset" in finding["text"] for finding in findings) is warned


# --------------------------------------------------------------------------------------------------------------- types


class Told(gym.Env[Any, np.int64]):
    """Shows zeros, and `then` from step `at` on, in a named space, alone or in a Dict."""

    def __init__(self, space: str, then: Any, dtype: str, at: int = 0, nested: bool = False) -> None:
        inner = SPACES[space] if space in SPACES else spaces.Box(*_ends(space), (2,), np.dtype(space))
        self.inner, self.then, self.at, self.nested = inner, np.array(then, dtype), at, nested
        self.observation_space = spaces.Dict({"x": inner, "y": spaces.Discrete(2)}) if nested else inner
        self.action_space = spaces.Discrete(2)

    def shown(self) -> Any:
        zero = np.zeros(self.inner.shape or (), self.inner.dtype)
        obs = self.then if self.t >= self.at else zero
        return {"x": obs, "y": 1} if self.nested else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return self.shown(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.shown(), 0.0, self.t >= 9, False, {}


def _ends(dtype: str) -> tuple[int, int]:
    known = np.iinfo(dtype)
    return known.min, known.max


SPACES: dict[str, spaces.Space[Any]] = {
    "bool": spaces.Box(0, 1, (2,), np.bool_),
    "float16": spaces.Box(-np.inf, np.inf, (2,), np.float16),
    "float32": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 300]),
    "MultiBinary": spaces.MultiBinary(2),
}
OUTSIDE = {
    "int8": ([0, 160], "int64", "160"),
    "int16": ([0, -40000], "int32", "-40000"),
    "int32": ([0, 2**31], "int64", "2147483648"),
    "int64": ([0, 2**63], "uint64", "9223372036854775808"),
    "uint8": ([0, -1], "int8", "-1"),
    "uint16": ([0, 70000], "float32", "70000"),
    "uint32": ([0, -5], "int64", "-5"),
    "uint64": ([0, -1], "int64", "-1"),
    "bool": ([0, 2], "int64", "2"),
    "float16": ([0, 1e6], "float64", "1000000"),
    "float32": ([0, 1e39], "float64", "1e[+]39"),
    "Discrete": (3, "int64", "3"),
    "MultiDiscrete": ([0, 300], "int64", "300"),
    "MultiBinary": ([0, 2], "int8", "2"),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("space", OUTSIDE)
def test_a_value_outside_its_type_is_rejected_with_value_space_and_step(space: str, nested: bool) -> None:
    then, dtype, value = OUTSIDE[space]
    kwargs = {"space": space, "then": then, "dtype": dtype, "nested": nested}
    settings = config(env={"id": "test_observation_values:Told", "kwargs": kwargs})
    name = r"observation\['x'\]" if nested else "observation"
    with pytest.raises(EnvironmentFailure, match=rf"{name} of {value}\S* in a space of {space}.* start check"):
        check_environment(settings.env)
    later = settings.env.model_copy(update={"kwargs": kwargs | {"at": 4}})
    envs = make_environments(later, 2)
    envs.reset([5, 6])
    with pytest.raises(EnvironmentFailure, match=rf"of {value}\S* in a space of {space}.* in step 3 .* reset seed 5"):
        [envs.step(np.zeros(2, int), np.ones(2, bool)) for _ in range(5)]
    batch = np.stack([np.zeros_like(np.array(then, dtype)), np.array(then, dtype)])
    with pytest.raises(ValueError, match=rf"of {value}"):
        Layout(envs.observation_space).pack({"x": batch, "y": np.zeros(2, int)} if nested else batch, batch=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "float64", "float16", "bool"])
@pytest.mark.parametrize("space", [*OUTSIDE])
def test_values_of_another_type_are_accepted_if_representable(space: str, dtype: str) -> None:
    envs = make_environments(
        config(
            env={
                "id": "test_observation_values:Told",
                "kwargs": {"space": space, "then": [1, 0] if space != "Discrete" else 1, "dtype": dtype},
            }
        ).env,
        1,
    )
    assert envs.reset([0])[0].ravel()[0] == 1
    assert envs.step(np.zeros(1, int), np.ones(1, bool)).obs.dtype == envs.layout.dtype


def test_the_command_line_rejects_a_value_with_exit_code_3(tmp_path: Path) -> None:
    kwargs = json.dumps({"space": "int8", "then": [0, 160], "dtype": "int64", "at": 6, "nested": True})
    options = ["env.id=test_observation_values:Told", f"env.kwargs={kwargs}", "env.max_episode_steps=9"]
    done = pgcli("train", "cartpole", *options, cwd=tmp_path, code=3, PYTHONPATH=PATHS)
    assert "returned an observation['x'] of 160 in a space of int8 in step 5" in done.stderr


def test_rollouts_store_images_as_bytes_next_to_real_numbers() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (84, 84, 3), np.uint8), "x": spaces.Box(0, 1, (1,), np.float64)})
    layout = Layout(space)
    assert layout.shape[0] * layout.dtype.itemsize == 84 * 84 * 3 + 8
