"""An unusable mask gives one notice and is ignored; `action_mask: none` ignores all masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import config
from test_sampling import collect

from pgcli.algorithm.learner import build_agent
from pgcli.config.schema import EnvConfig
from pgcli.environments import checks
from pgcli.environments.checks import check_environment
from pgcli.environments.make import make_environments
from pgcli.errors import EnvironmentFailure


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_checked", {})


UNUSED = [
    ("MaskArguments", {}, "its method `action_masks` requires `obs`, `strict`"),
    ("MaskMissing", {}, "its method `action_masks` is not implemented"),
    ("MaskOfSteps", {}, "the info of `step` has it, the info of `reset` does not"),
    ("MaskedBox", {"where": "info"}, "Box actions have no choices to mask"),
    ("MaskedBox", {"where": "method"}, "Box actions have no choices to mask"),
    ("MaskedBox", {"where": "obs"}, "Box actions have no choices to mask"),
]


def settings(name: str, kwargs: dict[str, Any], mask: str = "auto") -> Any:
    env = {"id": f"built_worlds:{name}", "kwargs": kwargs, "num_envs": 2, "max_episode_steps": 9}
    return config(env=env, rollout={"episodes": 4}, policy={"hidden_sizes": [4], "action_mask": mask})


@pytest.mark.parametrize(("name", "kwargs", "reason"), UNUSED)
def test_an_unusable_mask_gives_a_notice(name: str, kwargs: dict[str, Any], reason: str) -> None:
    auto = settings(name, kwargs)
    assert collect(auto).lengths.tolist() == [4] * 4
    assert check_environment(auto.env).notices == [f"the action mask of {auto.env.id} is not used: {reason}"]
    envs = make_environments(auto.env, 2)
    assert not build_agent(envs.observation_space, envs.action_space, auto).policy.masked
    none = settings(name, kwargs, mask="none")
    assert collect(none).lengths.tolist() == [4] * 4
    assert check_environment(none.env).notices == []


def test_a_mask_may_be_a_property() -> None:
    auto = settings("MaskProperty", {})
    assert check_environment(auto.env).adds_mask
    assert collect(auto).rewards.sum() == 16
    free = settings("MaskProperty", {}, mask="none")
    assert not check_environment(free.env).adds_mask
    assert 0 < collect(free).rewards.sum() < 16


@pytest.mark.parametrize("kwargs", [{"mask": [1, 0]}, {"mask": [0, 0, 0]}, {"mask": [0.5, 0, 1]}, {"at": 1}], ids=str)
def test_a_faulty_mask_is_ignored_without_masks(kwargs: dict[str, Any]) -> None:
    for name in ("Masked", "Shown"):
        if name == "Shown" and "mask" in kwargs:
            continue
        env = {"id": f"worlds:{name}", "kwargs": kwargs, "num_envs": 2}
        parts: dict[str, Any] = {"env": env, "rollout": {"episodes": 2}}
        assert len(collect(config(**parts, policy={"action_mask": "none"})).lengths) == 2
        with pytest.raises(EnvironmentFailure, match="action mask"):
            collect(config(**parts))


def test_parts_of_a_mask_may_be_lists() -> None:
    env = EnvConfig(id="worlds:Masked", kwargs={"mask": [True, False, True]})
    assert make_environments(env, 1).reset([0])[0, :3].tolist() == [1, 0, 1]
    assert np.asarray(collect(settings("MaskProperty", {})).actions).min() == 1
