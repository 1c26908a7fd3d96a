"""Spaces, networks and batches larger than memory are rejected with their size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import pgcli
from gymnasium import spaces
from helpers import Array, config, executor_for

from pgcli.algorithm.learner import build_agent
from pgcli.errors import UsageError
from pgcli.experiment.build import build_learner
from pgcli.sampling.pool import sendable
from pgcli.system.memory import in_bytes, memory_error

PATHS = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
HUGE = spaces.Discrete(10**12)
SMALL = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("space", "actions", "policy"),
    [
        (HUGE, spaces.Discrete(2), {}),
        (spaces.Dict({"a": HUGE, "b": SMALL}), spaces.Discrete(2), {}),
        (spaces.MultiDiscrete([10**9] * 999), spaces.Discrete(2), {}),
        (spaces.MultiBinary(10**12), spaces.Discrete(2), {}),
        (SMALL, HUGE, {}),
        (SMALL, spaces.MultiBinary(10**12), {}),
        (SMALL, SMALL, {"hidden_sizes": [65536] * 32}),
        (SMALL, SMALL, {"hidden_sizes": [65536] * 32, "init": "orthogonal"}),
        (SMALL, SMALL, {"hidden_sizes": [65536] * 32, "distribution": "tanh_gaussian"}),
        (SMALL, SMALL, {"memory": "lstm", "memory_size": 65536}),
        (spaces.Box(0, 255, (3999, 3999), np.uint8), SMALL, {"image_network": "small"}),
    ],
    ids=lambda value: " ".join(str(value).split())[:60],
)
def test_networks_larger_than_memory_are_rejected_with_their_size(
    space: spaces.Space[Any], actions: spaces.Space[Any], policy: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"parameters.* [GT]B, but the machine has .*GB of memory") as refusal:
        build_agent(space, actions, config(policy=policy, algorithm={"baseline": "value"}))
    assert "hidden_sizes" in refusal.value.hint


@pytest.mark.parametrize(
    ("sections", "hint"),
    [
        ({"rollout": {"episodes": 10**12}}, "play fewer"),
        ({"evaluation": {"episodes": 10**12}}, "play fewer"),
        ({"rollout": {"episodes": None, "steps": 10**11}}, "rollout.steps"),
    ],
    ids=str,
)
def test_batches_larger_than_memory_are_rejected_before_collection(sections: dict[str, Any], hint: str) -> None:
    settings = config(algorithm={"returns": "lambda_return", "baseline": "value"}, **sections)
    with pytest.raises(UsageError, match="TB, but the machine has") as refusal:
        build_learner(settings, executor_for(settings).environments)
    assert hint in refusal.value.hint


class Hoard(gym.Env[Array, np.int64]):
    """Allocates more than the available memory, in its constructor or in step 3."""

    def __init__(self, at: int | None = 3) -> None:
        self.observation_space, self.action_space, self.at = SMALL, spaces.Discrete(2), at
        if at is None:
            self.observation_space = spaces.Box(0, 1, (10**7, 10**6))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(2 if self.t < 3 else 10**15, np.float32), 0.0, self.t >= 9, False, {}


@pytest.mark.parametrize("at", ["null", "3"])
def test_an_environment_that_runs_out_of_memory_fails_as_an_environment(tmp_path: Path, at: str) -> None:
    options = ["env.id=test_memory_limits:Hoard", f"env.kwargs.at={at}", "env.max_episode_steps=9"]
    run = pgcli("train", "cartpole", *options, cwd=tmp_path, code=3, PYTHONPATH=PATHS)
    assert "MemoryError: Unable to allocate" in run.stderr


def test_failed_allocations_of_numpy_and_torch_become_one_sentence() -> None:
    for error in (
        MemoryError("Unable to allocate 7.28 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ):
        known = memory_error(error)
        assert known is not None
        assert str(error) in known.message
        assert isinstance(sendable(error), UsageError)
    assert memory_error(RuntimeError("another")) is None
    assert memory_error(OSError("out of memory")) is None


def test_bytes_are_printed_with_a_unit() -> None:
    assert [in_bytes(n) for n in (5e5, 1.5e6, 25e9, 64e12, 1e16)] == [
        "0.5 MB",
        "1.5 MB",
        "25.0 GB",
        "64.0 TB",
        "10,000.0 TB",
    ]
