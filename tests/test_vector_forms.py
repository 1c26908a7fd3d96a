"""A vector form is used only if it is equivalent to the single form; else a reason is given."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import pgcli
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from helpers import config, segment_sampler
from numpy.typing import NDArray
from test_segments import collect, policy_for

from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.make import make_environments
from pgcli.environments.single import SingleEnvironments
from pgcli.environments.vector import native_trial
from pgcli.environments.vector.native import VectorEnvironments
from pgcli.environments.vector.native_trial import vector_form_fault, vector_form_notice
from pgcli.errors import UsageError
from pgcli.inspection.doctor import _environment_findings

Array = NDArray[Any]
OBSERVATIONS = spaces.Box(-100, 100, (1,), np.float32)
LENGTH = 5


class One(gym.Env[Array, np.int64]):
    """Shows t and pays t for the step that leads to t: 15 in five steps; with `random`, starts from the seed."""

    def __init__(self, random: bool = False, pays: bool = True) -> None:
        self.observation_space, self.action_space = OBSERVATIONS, spaces.Discrete(2)
        self.random, self.paying = random, pays

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.start = 0, float(self.np_random.uniform(-1, 0)) if self.random else 0.0
        return self.obs(), {}

    def obs(self) -> Array:
        return np.array([self.start + self.t], np.float32)

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.obs(), float(self.t) * self.paying, self.t >= LENGTH, False, {}


class Form(gym.vector.VectorEnv[Any, Any, Any]):
    """Its vector form, correct for NEXT_STEP except for the fault `how`."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self, num_envs: int, max_episode_steps: int = 99, random: bool = False, pays: bool = True, how: str = ""
    ) -> None:
        if how == "raises":
            raise RuntimeError("the engine is missing")
        declared = {"same": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED, "text": "NextStep"}
        self.metadata = {} if how == "undeclared" else {"autoreset_mode": declared.get(how, AutoresetMode.NEXT_STEP)}
        self.num_envs, self.how, self.random, self.paying = num_envs, how, random, pays
        self.limit = 10**6 if how == "no limit" else max_episode_steps
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float32) if how == "spaces" else OBSERVATIONS
        self.single_action_space = spaces.Discrete(2)
        self.calls = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self.how == "narrow seeds":
            np.random.RandomState(seed)
        super().reset(seed=None if self.how == "unseeded" else seed)
        self.t = np.zeros(self.num_envs)
        self.over = np.zeros(self.num_envs, bool)
        self.start = self.starts()
        return self.obs(), {}

    def starts(self) -> Array:
        return self.np_random.uniform(-1, 0, self.num_envs) if self.random else np.zeros(self.num_envs)

    def obs(self) -> Array:
        return (self.start + self.t)[:, None].astype(np.float32)

    def step(self, actions: Any) -> Any:
        self.calls += 1
        acts = self.how == "acts in the reset"
        self.start = np.where(self.over, self.starts() - acts * actions, self.start)
        self.t = np.where(self.over, 0, self.t + 1)
        terminated = self.t >= (LENGTH - 1 if self.how == "short" else LENGTH)
        truncated = self.t >= self.limit
        if self.how == "limit terminates":
            terminated, truncated = terminated | truncated, truncated & False
        rewards, info = self.t * self.paying, {}
        self.over = terminated | truncated
        if self.how in ("same", "really same", "really same, with info"):
            self.start, self.t = np.where(self.over, self.starts(), self.start), np.where(self.over, 0, self.t)
            info = {"final_obs": self.obs()} if self.how.endswith("info") else {}
            self.over = self.over & False
        if self.how in ("disabled", "really disabled"):
            self.over = self.over & False
        if self.how == "remembers" and self.calls > 15:
            rewards = rewards + 1 * (self.t > 0)
        if self.how == "faulty":
            raise RuntimeError("the motor is on fire")
        return self.obs(), rewards, terminated, truncated, info


FAULTS = {
    "same": "has autoreset mode SAME_STEP, and pgcli needs NEXT_STEP",
    "disabled": "has autoreset mode DISABLED, and pgcli needs NEXT_STEP",
    "undeclared": "declares no autoreset mode, and pgcli needs NEXT_STEP",
    "text": "has autoreset mode NextStep, and pgcli needs NEXT_STEP",
    "really same": "does not reset in the step after the end of an episode, although it declares this",
    "really same, with info": "returned the last observation of an episode in its info",
    "really disabled": "does not reset in the step after the end of an episode, although it declares this",
    "acts in the reset": "does not reset in the step after the end of an episode, although it declares this",
    "no limit": "ignores the time limit",
    "limit terminates": "",
    "spaces": "has other spaces",
    "raises": "cannot be built: RuntimeError: the engine is missing",
    "narrow seeds": "does not accept 63-bit seeds",
    "unseeded": "does not repeat its episodes for the same seed",
    "remembers": "does not repeat its episodes for the same seed",
    "faulty": "raised RuntimeError: the motor is on fire",
}


def register(how: str, **options: Any) -> str:
    """Register both forms, and return the id."""
    env_id = f"Form{len(gym.registry)}-v0"
    form: Any = partial(Form, how=how)
    gym.register(env_id, entry_point=One, vector_entry_point=form, **options)  # type: ignore[arg-type]
    return env_id


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "registry", gym.registry)
    monkeypatch.setattr(native_trial, "_faults", {})


@pytest.mark.parametrize("random", [False, True], ids=["known", "random"])
@pytest.mark.parametrize("how", FAULTS)
def test_a_form_of_another_environment_is_rejected_or_replaced_with_a_reason(how: str, random: bool) -> None:
    env = EnvConfig(id=register(how, max_episode_steps=9), kwargs={"random": random})
    fault = FAULTS[how] or ("plays other episodes" if not random else "reports the time limit as a terminal state")
    if how in ("unseeded", "acts in the reset") and not random:
        fault = "" if how == "unseeded" else "plays other episodes"
    notice = vector_form_notice(env, resumable=False)
    if not fault:
        assert notice is None
        return
    assert notice is not None
    assert notice.startswith(f"{env.id} does not use its vector form, which {fault}"), notice
    first = next(_environment_findings(config(env=env.model_dump()), 9, check_environment(env)))
    assert first.text == notice
    assert isinstance(make_environments(env, 2), SingleEnvironments)
    with pytest.raises(UsageError) as caught:
        make_environments(env.model_copy(update={"vectorization": "native"}), 2)
    assert caught.value.message.startswith(f"env.vectorization: the vector form of {env.id} {fault}")


@pytest.mark.parametrize("options", [{}, {"max_episode_steps": 3}, {"max_episode_steps": 99}], ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"random": True}, {"pays": False}], ids=str)
def test_a_form_with_next_step_autoreset_is_used(options: dict[str, Any], kwargs: dict[str, Any]) -> None:
    env = EnvConfig(id=register("", **options), kwargs=kwargs)
    assert vector_form_fault(env, resumable=True) == ""
    assert isinstance(make_environments(env, 2, resumable=True), VectorEnvironments)


def test_a_same_step_reset_is_detected_without_rewards() -> None:
    env = EnvConfig(id=register("really same"), kwargs={"pays": False})
    assert "plays other episodes than the single form" in str(vector_form_fault(env))
    assert "plays other episodes than the single form" in str(vector_form_fault(EnvConfig(id=register("short"))))


def test_a_form_whose_episodes_never_end_in_the_trial_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_trial, "_MOST_ROWS", 4)
    form = partial(Form, how="no limit")
    gym.register("Unlimited-v0", entry_point=partial(One, random=True), vector_entry_point=partial(form, random=True))
    assert "ends no episode in 4 steps" in str(vector_form_fault(EnvConfig(id="Unlimited-v0")))
    assert vector_form_fault(EnvConfig(id="CartPole-v1", wrappers=[{"name": "FlattenObservation"}])) is None  # type: ignore[list-item]
    with pytest.raises(UsageError, match="Acrobot-v1 has no vector form"):
        make_environments(EnvConfig(id="Acrobot-v1", vectorization="native"), 1)


def test_segments_of_a_form_equal_those_of_the_single_form() -> None:
    returns = []
    env_id = register("", max_episode_steps=4)
    for form in ("native", "sync"):
        settings = config(
            env={"id": env_id, "num_envs": 3, "vectorization": form},
            rollout={"episodes": None, "steps": 12},
            algorithm={"returns": "lambda_return", "baseline": "value", "gamma": 1.0},
        )
        rollouts = collect(segment_sampler(settings), policy_for(settings), range(2))
        returns.append([(one.episode_return, one.length, one.how) for part in rollouts for one in part.episodes])
    assert returns[0] == returns[1]
    assert set(returns[0]) == {(10.0, 4, "truncated")}


def test_a_run_names_the_reason_once(tmp_path: Path) -> None:
    (tmp_path / "forms.py").write_text(
        "import functools, gymnasium\nfrom test_vector_forms import Form, One\n"
        "gymnasium.register('Late-v0', One, vector_entry_point=functools.partial(Form, how='same'))\n"
    )
    (tmp_path / "c.yaml").write_text("env: {id: 'forms:Late-v0', num_envs: 2}\nrollout: {episodes: 4}\n")
    words = ("training.iterations=1", "evaluation.episodes=2")
    path: dict[str, Any] = {"PYTHONPATH": str(Path(__file__).parent)}
    done = pgcli("train", "c.yaml", *words, cwd=tmp_path, **path)
    assert done.stderr.count("does not use its vector form, which has autoreset mode SAME_STEP") == 1
    refused = pgcli("train", "c.yaml", *words, "env.vectorization=native", "--overwrite", cwd=tmp_path, code=2, **path)
    assert "hint: use `sync` or `auto`" in refused.stderr


# ------------------------------------------------------------------------------------------------ the longest episode


class Long(One):
    """Ends after `length` steps."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t >= self.length, False, {}


@pytest.mark.parametrize("steps", [None, 120])
def test_an_episode_may_be_as_long_as_the_time_limit(steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_sampling import collect as collect_episodes

    from pgcli.environments import checks

    monkeypatch.setattr(checks, "MAX_EPISODE_STEPS", 100)
    monkeypatch.setattr(checks, "_checked", {})
    for limit in (150, 110):
        env = {"id": "test_vector_forms:Long", "kwargs": {"length": 120}, "max_episode_steps": limit, "num_envs": 1}
        settings = config(env=env, rollout={"episodes": 2})
        assert check_environment(settings.env).longest_episode == limit
        assert collect_episodes(settings).lengths.tolist() == [min(limit, 120)] * 2
