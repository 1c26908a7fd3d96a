"""Third-party environments: lookup by name, start checks and reports of faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import worlds
from command_line import Command, pgcli
from gymnasium import spaces
from helpers import config, is_running, segment_sampler
from test_cli import TINY, contents, rows

from pgcli.config import config_from_data
from pgcli.config.schema import EnvConfig
from pgcli.environments import checks, construction, modules
from pgcli.environments.checks import check_environment
from pgcli.environments.make import Environments, make_environments
from pgcli.environments.outputs import Step
from pgcli.environments.registry import spec
from pgcli.environments.single import SingleEnvironments, make_environment
from pgcli.environments.vector.native import VectorEnvironments
from pgcli.errors import ConfigError, EnvironmentFailure, PgcliError, UsageError
from pgcli.system.packages import install_command

TESTS = str(Path(__file__).parent)
PATHS = os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH"))))
ON = np.ones(2, bool)


def act(envs: Environments, actions: Any) -> list[Step]:
    """Act in all columns, row by row."""
    return [envs.step(np.asarray(row), np.ones(len(row), bool)) for row in actions]


def env_config(env_id: str = "World-v0", *wrappers: Any, **kwargs: Any) -> EnvConfig:
    return config(env={"id": env_id, "kwargs": kwargs, "wrappers": list(wrappers)}).env


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_checked", {})


@pytest.fixture
def _signals_only_set_a_flag() -> Any:
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield
    signal.signal(signal.SIGINT, before)


def failure(settings: EnvConfig, kind: type[PgcliError] = EnvironmentFailure) -> str:
    """Return the error and the hint."""
    with pytest.raises(kind) as caught:
        make_environments(settings, 2)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ by name

NAMES: list[tuple[str, tuple[str, ...]]] = [
    ("CartPole-v7", ("`v0`, `v1`", "did you mean `CartPole-v1`?")),
    ("CartPole", ("did you mean `CartPole-v1`?",)),
    ("cartpole-v1", ("no environment `cartpole-v1`", "did you mean `CartPole-v1`?")),
    ("Cartpol-v1", ("did you mean `CartPole-v1`?",)),
    ("Xyzzyxyzzy-v0", ("no environment `Xyzzyxyzzy-v0`", "`module:Xyzzyxyzzy-v0`")),
    ("AEL/Pong-v5", ("namespace `AEL`", "did you mean `ALE/Pong-v5`?")),
    ("tabullar/Blackjack-v0", ("namespace `tabullar`", "did you mean `tabular/Blackjack-v0`?")),
    ("Strange/Pong-v5", ("namespace `Strange`", "`module:Strange/Pong-v5`")),
    ("no_such_module:X-v0", ("no module `no_such_module`", "install")),
    ("wrlds:World", ("no module `wrlds`", "did you mean `worlds`?")),
    ("wrlds.py:World", ("no file wrlds.py in ",)),
    ("worlds:Wrld", ("`worlds` has no environment `Wrld`", "did you mean `worlds:World`?")),
    ("worlds:World-v1", ("`v0`, `v2`", "did you mean `worlds:World-v2`?")),
    ("worlds:Nothing", ("not a gymnasium.Env", "shimmy")),
    ("worlds:Qqqqqqqq", ("its subclasses of gymnasium.Env: World, Old, Room",)),
    ("json:Foo", ("`json` has no environment `Foo`", "no subclass of gymnasium.Env")),
    ("Nothing-v0", ("does not return a gymnasium.Env", "shimmy")),
    ("Hopper-v2", ("moved to the gymnasium-robotics project", "did you mean `Hopper-v5`?")),
    ("HalfCheetah-v3", ("moved to the gymnasium-robotics project", "did you mean `HalfCheetah-v5`?")),
    (":CartPole-v1", ("no module ``", "install")),
]


@pytest.mark.parametrize(("env_id", "words"), NAMES, ids=[name for name, _ in NAMES])
def test_an_unknown_name_gets_the_most_similar_one(env_id: str, words: tuple[str, ...]) -> None:
    message = failure(env_config(env_id))
    assert all(word in message for word in words), message


def test_an_unregistered_class_can_be_the_environment() -> None:
    with make_environment(env_config("worlds:World", length=3)) as env:
        assert isinstance(env.unwrapped, worlds.World)
        assert env.unwrapped.length == 3
    limited = config(env={"id": "worlds:World", "max_episode_steps": 4}).env
    assert check_environment(limited).time_limit == 4
    assert check_environment(env_config("worlds:World-v0")).time_limit == 1000


KWARGS: list[tuple[EnvConfig, type[PgcliError], tuple[str, ...]]] = [
    (
        env_config("LunarLander-v3", continous=True),
        UsageError,
        ("no parameter `continous`", "did you mean `continuous`?"),
    ),
    (env_config("worlds:World", falt=1), UsageError, ("no parameter `falt`", "did you mean `fault`?")),
    (env_config("CartPole-v1", zzz=1), UsageError, ("no parameter `zzz`", "its parameters: sutton_barto_reward")),
    (env_config("Old-v0", "FlattenObservations"), EnvironmentFailure, ("did you mean `FlattenObservation`?",)),
    (env_config("World-v0", "flattenobservation"), EnvironmentFailure, ("did you mean `FlattenObservation`?",)),
    (env_config("World-v0", "importlib"), EnvironmentFailure, ("wrapper `importlib` not found",)),
    (env_config("World-v0", "utils"), EnvironmentFailure, ("wrapper `utils` not found",)),
    (env_config("World-v0", "nowhere:Doubled"), EnvironmentFailure, ("no module `nowhere`",)),
    (env_config("World-v0", "worlds:Dubled"), EnvironmentFailure, ("did you mean `worlds:Doubled`?",)),
    (env_config("World-v0", "worlds:REWARDS"), EnvironmentFailure, ("wrapper `worlds:REWARDS` not found",)),
    (env_config("World-v0", "worlds:useless"), EnvironmentFailure, ("worlds:useless returned no gymnasium.Env",)),
    (
        env_config("World-v0", {"name": "worlds:Doubled", "kwargs": {"facor": 3}}),
        UsageError,
        ("worlds:Doubled has no parameter `facor`", "did you mean `factor`?"),
    ),
    (
        env_config("World-v0", {"name": "FrameStackObservation", "kwargs": {"stak_size": 3}}),
        UsageError,
        ("has no parameter `stak_size`", "did you mean `stack_size`?"),
    ),
    (env_config("World-v0", "FrameStackObservation"), EnvironmentFailure, ("wrapper FrameStackObservation", "'stack_")),
    (env_config("World-v0", "GrayscaleObservation"), EnvironmentFailure, ("wrapper GrayscaleObservation", "image")),
]


@pytest.mark.parametrize(("settings", "kind", "words"), KWARGS, ids=[words[-1] for *_, words in KWARGS])
def test_an_unknown_argument_or_wrapper_gets_the_most_similar_one(
    settings: EnvConfig, kind: type[PgcliError], words: tuple[str, ...]
) -> None:
    message = failure(settings, kind)
    assert all(word in message for word in words), message


MISSING = [
    ('Box2D is not installed, run `pip install swig` then `pip install "gymnasium[box2d]"`', install_command("box2d")),
    ('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`', install_command("mujoco")),
    (
        'opencv-python package not installed, run `pip install "x"` for atari',
        install_command("atari"),
    ),
    ('opencv (cv2) is not installed, run `pip install "gymnasium[other]"`', "pip install opencv-python-headless"),
    ('MoviePy is not installed, run `pip install "gymnasium[other]"`', 'pip install "gymnasium[other]"'),
]


@pytest.mark.parametrize(("said", "command"), MISSING, ids=[command for _, command in MISSING])
def test_a_missing_package_is_reported_with_its_install_command(said: str, command: str) -> None:
    def build() -> gym.Env[Any, Any]:
        raise gym.error.DependencyNotInstalled(said)

    gym.register("Bare-v0", entry_point=build)  # type: ignore[arg-type]  # Gymnasium names too few kinds
    try:
        message = failure(env_config("Bare-v0"))
    finally:
        del gym.registry["Bare-v0"]
    what, hint = message.splitlines()
    assert said.split(",")[0].split(" to get")[0].split(" package")[0] in what
    assert "pip install" not in what
    assert hint.startswith("hint: pip install ")
    assert command in hint


def test_atari_is_imported_automatically_or_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)  # as if it were not installed
    for name in [name for name in gym.registry if name.startswith("ALE/")]:
        monkeypatch.delitem(gym.registry, name)
    message = failure(env_config("ALE/Pong-v5"))
    assert "`ale_py` is not installed" in message
    assert f"hint: {install_command('atari')}" in message
    assert spec(env_config("CartPole-v1")).id == "CartPole-v1", "nobody else misses it"


def test_mujocos_deprecation_warnings_reach_neither_screen_nor_folder(tmp_path: Path) -> None:
    small = (
        "rollout.steps=32",
        "algorithm.num_minibatches=1",
        "training.env_steps=null",
        "training.iterations=1",
        "evaluation.episodes=1",
    )
    done = pgcli("train", "half-cheetah/ppo", *small, "evaluation.every=null", cwd=tmp_path)
    assert "settotalmass" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_unstable_simulation_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = construction.build(EnvConfig(id="InvertedPendulum-v5"))

    def explode(steps: int) -> None:
        env.reset(seed=0)
        for _ in range(steps):
            env.step(np.zeros(1, np.float32))
        env.unwrapped.data.qpos[:] = np.nan  # type: ignore[attr-defined]
        env.step(np.zeros(1, np.float32))

    with pytest.warns(RuntimeWarning, match="simulation is unstable") as told:
        list(map(explode, (0, 3)))
    assert len({str(one.message) for one in told}) == 1
    assert list(tmp_path.iterdir()) == []


MODULES = {
    "def f(:\n": ("broken.py:1", "SyntaxError"),
    "import numpy\nimport no_such_thing\n": ("needs `no_such_thing`", "broken.py:2"),
    "from numpy import no_such_thing\n": ("ImportError", "broken.py:1"),
    "x = 1\nraise ValueError('not today')\n": ("ValueError: not today", "broken.py:2"),
    "import sys\n\nsys.exit('bye')\n": ("exits Python", "broken.py:3", "__main__"),
}


@pytest.mark.parametrize("text", MODULES, ids=range(len(MODULES)))
def test_a_failing_import_is_reported_with_its_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.setattr(modules, "HERE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    for settings in (env_config("broken:Env"), env_config("World-v0", "broken:Wrapper")):
        message = failure(settings)
        assert "`broken" in message
        assert all(words in message for words in MODULES[text]), message


def test_modules_of_the_current_folder_come_last(tmp_path: Path) -> None:
    """Modules there are found, but never hide installed ones."""
    for name in ("mine", "colorsys"):
        (tmp_path / f"{name}.py").write_text("WHERE = 'here'\n")
    program = (
        "import os, sys; sys.path = [p for p in sys.path if p not in ('', os.getcwd())]\n"
        "from pgcli.environments.modules import import_module\n"
        "print(import_module('mine', 'x').WHERE, hasattr(import_module('colorsys', 'x'), 'WHERE'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "here False\n"


# ------------------------------------------------------------------------------------------------------------ wrappers


class Picture(worlds.World):
    """Has image observations, for wrappers."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (8, 6, 3), np.uint8)
        self.action_space = spaces.Box(-2, 2, (2,), np.float32)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros((8, 6, 3), np.uint8), {}

    def step(self, action: Any) -> Any:
        self.given = action
        return np.zeros((8, 6, 3), np.uint8), 1.0, False, False, {}


@pytest.mark.parametrize(
    ("wrapper", "shape"),
    [
        ({"name": "ReshapeObservation", "kwargs": {"shape": [8, 18]}}, (8, 18)),
        ({"name": "RescaleAction", "kwargs": {"min_action": [-1, -0.5], "max_action": [1, 0.5]}}, (8, 6, 3)),
        (
            {"name": "StickyAction", "kwargs": {"repeat_action_probability": 0.1, "repeat_action_duration": [2, 3]}},
            (8, 6, 3),
        ),
        ({"name": "DiscretizeAction", "kwargs": {"bins": [3, 4]}}, (8, 6, 3)),
        ({"name": "DtypeObservation", "kwargs": {"dtype": "float32"}}, (8, 6, 3)),
        ({"name": "gymnasium.wrappers:FrameStackObservation", "kwargs": {"stack_size": 2}}, (2, 8, 6, 3)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_yaml_lists_become_tuples_or_arrays_for_wrappers(wrapper: Any, shape: tuple[int, ...]) -> None:
    envs = make_environments(env_config("test_environments:Picture", wrapper), 1)
    assert envs.reset([0]).shape == (1, *shape)
    if wrapper["name"] == "RescaleAction":
        assert isinstance(envs, SingleEnvironments)
        envs.step(np.array([[1, -0.5]], np.float32), np.ones(1, bool))
        assert envs._envs[0].get_wrapper_attr("given").tolist() == [2, -2]


def test_a_wrapper_of_a_module_may_be_a_class_or_a_function() -> None:
    doubled = {"name": "worlds:Doubled", "kwargs": {"factor": 6}}
    envs = make_environments(env_config("World-v0", doubled, "worlds:halved"), 1)
    envs.reset([0])
    assert envs.step(np.zeros(1, int), np.ones(1, bool)).rewards.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("NormalizeObservation", "policy.normalize_obs: true"),
        ("gymnasium.wrappers:NormalizeReward", "value.normalize_returns: true"),
        ("RecordVideo", "pgcli eval"),
        ("RecordEpisodeStatistics", "remove it"),
        ("Autoreset", "remove it"),
        ("HumanRendering", "pgcli eval"),
        ("RenderCollection", "remove it"),
        ("TransformReward", "module:Class"),
    ],
)
def test_an_unsupported_wrapper_is_rejected_with_its_replacement(name: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_data({"env": {"wrappers": ["FlattenObservation", name]}}, "c.yaml")
    (problem,) = caught.value.problems
    assert f"`env.wrappers`: {name.rpartition(':')[2]}: " in problem.message
    assert fix in problem.hint
    config_from_data({"env": {"wrappers": [f"mine:{name.rpartition(':')[2]}"]}}, "c.yaml")


def test_pictures_can_be_observations() -> None:
    with make_environment(env_config("CartPole-v1", "AddRenderObservation")) as env:
        assert env.observation_space.shape == (400, 600, 3)


# ------------------------------------------------------------------------------------------------- at the start, later

START: dict[str, tuple[str, ...]] = {
    "wide obs": ("returned an observation of shape (3,) in a space of (2,)",),
    "text obs": ("returned an observation of shape () in a space of (2,)",),
    "no obs": ("returned an observation of shape () in a space of (2,)",),
    "nan obs": ("returned a non-finite observation",),
    "complex obs": ("returned an observation of type complex128 in a space of float32",),
    "none reward": ("returned a reward that is not a number: None",),
    "text reward": ("returned a reward that is not a number: '1.0'",),
    "decimal reward": ("returned a reward that is not a number: Decimal('1')",),
    "vector reward": ("returned a reward of shape (3,)", "mo_gymnasium.wrappers:LinearReward"),
    "nan reward": ("returned a non-finite reward",),
    "infinite reward": ("returned a non-finite reward",),
    "none flag": ("returned a `terminated` that is neither true nor false: None",),
    "text flag": ("returned a `terminated` that is neither true nor false: 'yes'",),
    "two flags": ("returned a `terminated` that is neither true nor false",),
    "seven flag": ("returned a `terminated` that is neither true nor false: 7",),
    "error": ("raised RuntimeError: the motor is on fire (", "worlds.py:"),
    "exit": ("raised SystemExit: 3",),
    "interrupt": ("raised KeyboardInterrupt",),
    "two words": ("raised TwoWords: ('the motor', 'heat')",),
    "unspeakable": ("raised Unspeakable",),
}
ONLY_AT_THE_START: dict[str, tuple[str, ...]] = {
    "old step": ("`step` returned 4 values", "return obs, reward, terminated, truncated, info"),
    "reset old": ("returned one ndarray instead of (obs, info) at the reset", "return obs, {}"),
    "reset wide obs": ("of shape (3,) in a space of (2,) at the reset",),
    "reset error": ("raised RuntimeError: the motor is on fire", "at the reset"),
    "close": ("raised RuntimeError: the door is stuck", "at the close"),
    "no space": ("has no action_space", "set self.action_space"),
    "class for space": ("has a type for its observation_space",),
    "build error": ("cannot be built: RuntimeError: the motor is on fire",),
    "build exit": ("cannot be built: SystemExit: 3",),
    "build interrupt": ("cannot be built: KeyboardInterrupt",),
    "build two words": ("cannot be built: TwoWords: ('the motor', 'heat') (",),
}


@pytest.mark.usefixtures("_signals_only_set_a_flag")
@pytest.mark.parametrize("fault", [*START, *ONLY_AT_THE_START])
def test_the_start_check_finds_faults_before_a_run(fault: str) -> None:
    message = failure(env_config(fault=fault))
    assert "World-v0" in message
    assert all(words in message for words in (START | ONLY_AT_THE_START)[fault]), message


def test_an_old_gym_environment_without_seed_gets_the_signature_of_reset() -> None:
    message = failure(env_config("Old-v0"))
    assert "`reset` does not accept `seed`" in message
    assert "super().reset(seed=seed)" in message


@pytest.mark.usefixtures("_signals_only_set_a_flag")
@pytest.mark.parametrize("fault", START)
def test_a_fault_in_an_episode_is_reported_with_seed_step_and_action(fault: str) -> None:
    envs = make_environments(env_config(fault=fault, at=4), 2)
    envs.reset([11, 12])
    with pytest.raises(EnvironmentFailure) as caught:
        act(envs, [[t % 3, 2] for t in range(6)])
    message = str(caught.value)
    assert "in step 4 with action 1 of the episode with reset seed 11" in message
    assert START[fault][0] in message
    assert caught.value.seed == 11
    assert "array([0, 1, 2, 0, 1]" in caught.value.reproduction


def test_a_real_interrupt_is_not_reported_as_a_fault() -> None:
    envs = make_environments(env_config(fault="interrupt", at=2), 2)
    envs.reset([1, 2])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            act(envs, np.zeros((4, 2), int))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("odd", worlds.ODD)
def test_unusual_but_valid_rewards_and_flags_are_accepted(odd: str) -> None:
    envs = make_environments(env_config(odd=odd, length=3), 2)
    envs.reset([1, 2])
    steps = [envs.step(np.zeros(2, int), ON) for _ in range(3)]
    assert [step.rewards.tolist() for step in steps] == [[1, 1]] * 3
    assert [step.terminated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize("pair", [False, True])
def test_counts_out_of_their_range_are_a_fault(pair: bool) -> None:
    assert "returned an observation of " in failure(env_config("Room-v0", at=0, pair=pair))
    envs = make_environments(env_config("Room-v0", at=2, pair=pair), 2)
    envs.reset([1, 2])
    with pytest.raises(EnvironmentFailure, match=r"of 0 in a space of \w*Discrete\(.*\) in step 2 with action 1"):
        act(envs, np.ones((4, 2), int))


def test_notices_report_limits_bounds_and_versions() -> None:
    assert check_environment(env_config("worlds:World-v2")).notices == []
    (endless,) = check_environment(env_config("Endless-v0")).notices
    assert "100,000" in endless
    assert "env.max_episode_steps" in endless
    limited = config(env={"id": "Endless-v0", "wrappers": [{"name": "TimeLimit", "kwargs": {"max_episode_steps": 9}}]})
    assert check_environment(limited.env).notices == []
    assert check_environment(limited.env).time_limit == 9
    old, far = check_environment(env_config("World-v0", fault="far obs")).notices
    assert old == "World-v0 is out of date: the newest version is v2"
    assert far == "World-v0 returned an observation of 7 outside the bounds of its space; nothing is clipped"


def test_the_start_check_runs_once_per_config(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[EnvConfig] = []
    monkeypatch.setattr(checks, "_check", built.append)
    for env in ({}, {"num_envs": 3}, {"vectorization": "sync", "rebuild": True}, {"kwargs": {"length": 3}}, {}):
        check_environment(config(env={"id": "World-v0"} | env).env)
    assert [settings.kwargs for settings in built] == [{}, {"length": 3}]


def test_the_run_does_not_reuse_the_instance_of_the_start_check() -> None:
    first = make_environments(env_config("Mindful-v0"), 1).reset([3])
    assert first[0, 0] == np.float32(np.random.Generator(np.random.PCG64(np.random.SeedSequence(3))).uniform(-1, 1))


def test_an_environment_may_write_into_its_actions_and_reuse_its_buffer() -> None:
    envs = make_environments(env_config("Continuous-v0"), 2)
    first = envs.reset([1, 2])
    actions, kept = np.full((2, 2), 7, np.float32), first.copy()
    second = envs.step(actions, ON).obs
    assert (actions == 7).all()
    assert (first == kept).all()
    assert (second != first).any()


def test_reused_observation_buffers_do_not_change_trajectories() -> None:
    taken = []
    for kept in (True, False):
        envs = make_environments(env_config("Continuous-v0", buffered=kept), 2)
        envs.reset([1, 2])
        taken.append(act(envs, np.full((4, 2, 2), 7, np.float32)))
    buffered, copied = taken
    for one, other in zip(buffered, copied, strict=True):
        assert one.obs.tobytes() == other.obs.tobytes()
    assert len({step.obs.tobytes() for step in buffered}) == 4


@pytest.mark.parametrize("algorithm", [{"baseline": "leave_one_out"}, {"baseline": "none", "standardize": "batch"}])
@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("pay", [0.0, 1.0, 1e-30, 1e30, -1e30])
def test_rewards_of_any_size_in_episodes_of_any_length_leave_every_number_finite(
    pay: float, length: int, algorithm: dict[str, str]
) -> None:
    from test_spaces import trained

    from pgcli.records import Iteration

    standardized = "standardize" in algorithm
    for same in (True, False) if standardized or abs(pay) <= 1 else (True,):
        records = trained(
            env={"id": "worlds:Paying", "num_envs": 4, "kwargs": {"pay": pay, "length": length, "same": same}},
            rollout={"episodes": 4},
            policy={"hidden_sizes": [4]},
            algorithm=algorithm,
            training={"iterations": 2},
            evaluation={"every": None, "episodes": 2},
        )
        updates = [record.update for record in records if isinstance(record, Iteration)]
        told = [value for update in updates for name, value in vars(update).items() if name != "gradients"]
        numbers = [value for value in told if value is not None]
        assert len(updates) == 2
        assert np.isfinite(numbers).all()
        if same and (length == 1 or not standardized):
            # equal returns teach nothing: whole sums to the last bit, others to rounding
            assert max(update.grad_norm or 0 for update in updates) <= (
                0 if pay in (0, 1) else 1e-14 * length * abs(pay)
            )


def test_rewards_too_large_for_a_gradient_in_float32_end_the_run_before_a_step() -> None:
    from test_spaces import trained

    from pgcli.errors import Diverged

    with pytest.raises(Diverged, match=r"inf|nan|finite"):
        trained(env={"id": "worlds:Paying", "num_envs": 4, "kwargs": {"pay": 1e30}}, rollout={"episodes": 4})


# ------------------------------------------------------------------------------------------------------- reproduction


def reproduced(error: EnvironmentFailure, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "again.py").write_text(error.reproduction)
    for word in error.reproduction.splitlines():
        assert TESTS not in word or word.startswith("#"), "a path of this machine"
    return subprocess.run(
        [sys.executable, "again.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reproduction_repeats_the_episode_exactly(tmp_path: Path) -> None:
    """Actions, wrappers and arguments are exact, so the episode ends in the same state."""
    rescale = {"name": "RescaleAction", "kwargs": {"min_action": [-3, -3], "max_action": [3, 3]}}
    env = {"id": "worlds:Tracing", "kwargs": {"at": 5}, "wrappers": [rescale], "max_episode_steps": 50}
    envs = make_environments(config(env=env).env, 2)
    envs.reset([8, 9])
    given = np.random.default_rng(0).uniform(-1, 1, (7, 2, 2)).astype(np.float32)
    with pytest.raises(
        EnvironmentFailure, match=r"in step 5 with action \[.*\] of the episode with reset seed 8"
    ) as caught:
        act(envs, given)
    done = reproduced(caught.value, tmp_path)
    assert done.returncode == 1
    assert "max_episode_steps" in caught.value.reproduction
    digest = caught.value.message.split("RuntimeError: ")[1][:16]
    assert digest == worlds.digest(given[:6, 0] / np.float32(3)), "what the environment was given in the run"
    assert f"RuntimeError: {digest}" in done.stderr, "and what it is given again"
    assert done.stdout.startswith("step 5 with action [")


def test_a_reproduction_prints_invalid_results(tmp_path: Path) -> None:
    envs = make_environments(config(env={"id": "worlds:World-v0", "kwargs": {"fault": "nan reward", "at": 2}}).env, 1)
    envs.reset([5])
    with pytest.raises(EnvironmentFailure) as caught:
        act(envs, np.ones((3, 1), int))
    done = reproduced(caught.value, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 2 with action 1 returned (array(" in done.stdout
    assert "nan" in done.stdout


def test_a_reproduction_begins_with_the_reset_of_its_own_episode(tmp_path: Path) -> None:
    """In segments, columns restart independently and the earlier history is dropped."""
    envs = SingleEnvironments(env_config("worlds:World", fault="exit", at=3, length=3), 2)
    envs.reset([100, 200])
    running = ON
    for seed in range(1, 400):  # episodes of three steps, never a fourth
        for _ in range(3):
            over = envs.step(np.zeros(2, int), running)
        assert over.terminated.all()
        envs.restart([0, 1], [seed, 1000 + seed])
    assert len(envs._history) <= 1010, "memory is bounded"
    envs._envs[1].set_wrapper_attr("length", 9)  # its episode goes on into its fault
    for action in (2, 1, 0):
        envs.step(np.array([0, action]), running)
        envs.step(np.array([1, 1]), ~ON)  # who is not running is not given its action
    envs.restart([0], [7])
    with pytest.raises(EnvironmentFailure) as caught:
        envs.step(np.array([1, 2]), ON)
    assert caught.value.seed == 1399
    assert "SystemExit: 3" in caught.value.message
    assert "array([2, 1, 0, 2]" in caught.value.reproduction
    done = reproduced(caught.value, tmp_path)
    assert done.returncode == 3
    assert done.stdout == "step 3 with action 2 raised SystemExit(3)\n"


# -------------------------------------------------------------------------------------------------------- action masks


def test_a_mask_in_the_info_becomes_part_of_the_observation() -> None:
    envs = make_environments(env_config("Masked-v0"), 2)
    assert envs.observation_space == spaces.Dict(
        {"observation": spaces.Box(-1, 1, (2,), np.float32), "action_mask": spaces.MultiBinary(3)}
    )
    obs = envs.reset([1, 2])
    mask = envs.layout.action_mask
    assert mask is not None
    assert mask.unpack(obs).tolist() == [[1, 0, 1]] * 2
    for _ in range(5):
        step = envs.step(np.zeros(2, int), ON)
    assert step.terminated.all()
    assert step.obs[:, :3].tolist() == [[1, 1, 1]] * 2, "at the end there is no mask, and nothing is left to choose"


def test_a_mask_of_several_choices_is_one_row() -> None:
    env_id = "worlds:MaskedPairs"
    envs = make_environments(env_config(env_id), 1)
    assert envs.reset([1])[0, :5].tolist() == [1, 0, 0, 1, 1]


def test_the_mask_method_is_called_and_seeds_fit_the_environment() -> None:
    settings = env_config("worlds:Asked")
    envs = make_environments(settings, 1)
    assert envs.reset([2**62 + 5])[0, :3].tolist() == [0, 1, 0]
    assert envs.step(np.ones(1, int), np.ones(1, bool)).obs[0, :3].tolist() == [1, 1, 0]
    found = check_environment(settings)
    assert found.seed(2**62 + 5) == 5
    assert check_environment(env_config("CartPole-v1")).seed(2**62 + 5) == 2**62 + 5


def test_a_dict_observation_with_a_mask_is_unchanged() -> None:
    settings = env_config("worlds:Shown")
    assert not check_environment(settings).adds_mask
    assert set(make_environment(settings).observation_space.spaces) == {"action_mask", "place"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"mask": [1, 0]}, "an action mask of 2 entries for 3 actions at the reset"),
        ({"mask": [0, 0, 0]}, "an action mask that permits no action"),
        ({"mask": [0.5, 0, 1]}, "an action mask with entries other than 0 and 1: [0.5, 0.0, 1.0]"),
        ({"at": 2}, "an action mask that permits no action in step 2 with action 0"),
        ({"at": 2, "then": [1, 1]}, "an action mask of 2 entries for 3 actions in step 2 with action 0"),
    ],
)
def test_a_mask_of_wrong_size_or_without_permitted_actions_is_a_fault(kwargs: dict[str, Any], words: str) -> None:

    def run() -> None:
        envs = make_environments(env_config("Masked-v0", **kwargs), 2)
        envs.reset([1, 2])
        act(envs, np.zeros((4, 2), int))

    with pytest.raises(EnvironmentFailure) as caught:
        run()
    assert words in caught.value.message


def test_a_mask_in_the_observation_is_checked_too() -> None:
    envs = make_environments(env_config("worlds:Shown", at=1), 2)
    envs.reset([1, 2])
    with pytest.raises(EnvironmentFailure, match="permits no action in step 1 with action 2 of the episode with reset"):
        act(envs, np.full((4, 2), 2))


def test_the_last_mask_of_an_episode_may_permit_no_action() -> None:
    envs = make_environments(env_config("worlds:Shown", at=19), 2)
    envs.reset([1, 2])
    mask = envs.layout.action_mask
    *_, last = act(envs, np.zeros((20, 2), int))
    assert last.terminated.all()
    assert mask is not None
    assert (mask.unpack(last.obs) == 1).all()


def test_vector_forms_are_used_only_if_equivalent() -> None:
    assert isinstance(make_environments(env_config("CartPole-v1"), 2), VectorEnvironments)
    assert isinstance(make_environments(env_config("CartPole-v1", "FlattenObservation"), 2), SingleEnvironments)
    assert isinstance(make_environments(env_config("Other-v0"), 2), SingleEnvironments), (
        "its vector form has other spaces"
    )
    masked = config(env={"id": "Masked-v0", "vectorization": "native"}).env
    assert "does not report the action mask" in failure(masked, UsageError)


class Ill(gym.vector.VectorEnv[Any, Any, Any]):
    """A vector form with a fault in step 3 of the last column."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_envs: int, fault: str = "", **kwargs: Any) -> None:
        self.num_envs, self.fault = num_envs, fault
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(3)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t, self.obs = 0, np.zeros((self.num_envs, 2), np.float32)
        return self.obs, {}

    def step(self, actions: Any) -> Any:
        if self.t == 3:
            if self.fault == "error":
                raise RuntimeError("the motor is on fire")
            self.obs[-1] = np.nan
        self.t += 1
        self.obs[:-1] += 0.01
        nothing = np.zeros(self.num_envs, bool)
        return self.obs, np.ones(self.num_envs), nothing, nothing, {}


gym.register("Other-v0", entry_point="worlds:Room", vector_entry_point="test_environments:Ill", max_episode_steps=99)
gym.register("Ill-v0", entry_point="worlds:World", vector_entry_point="test_environments:Ill", max_episode_steps=99)


@pytest.mark.parametrize("fault", ["", "error"])
def test_a_fault_of_a_vector_form_is_reported_for_running_columns_only(fault: str) -> None:
    envs = VectorEnvironments(env_config("Ill-v0", fault=fault, at=99), 3)
    first = envs.reset([4, 5, 6])
    running = np.array([True, True, False])
    seen = [envs.step(np.zeros(3, int), running).obs for _ in range(3)]
    assert first.max() == 0, "arrays handed out are not written again"
    assert seen[0].max() < seen[2].max()
    if not fault:
        envs.step(np.zeros(3, int), running)  # nobody looks at the column that is over
        envs.reset([4, 5, 6])
        for _ in range(3):
            envs.step(np.zeros(3, int), np.ones(3, bool))
    with pytest.raises(EnvironmentFailure, match="in step 3 of the episodes with reset seed 4") as caught:
        envs.step(np.zeros(3, int), np.ones(3, bool))
    assert ("the motor is on fire" if fault else "a non-finite observation") in caught.value.message


# --------------------------------------------------------------------------------------------------- the command line


def test_a_fault_ends_a_run_with_exit_3_a_reproduction_and_a_valid_checkpoint(tmp_path: Path) -> None:
    world = ["env.id=worlds:Fragile", "env.max_episode_steps=50", "training.iterations=50", "checkpoint.every=null"]
    done = pgcli("train", "cartpole", *TINY, *world, "--run-dir", "run", cwd=tmp_path, code=3, PYTHONPATH=PATHS)
    (program,) = (tmp_path / "run/crash").iterdir()
    seed = program.stem.removeprefix("episode-")
    assert f"of the episode with reset seed {seed}; run/crash/{program.name} reproduces it" in done.stderr
    assert "hint: once it is fixed, `pgcli resume run` continues the run" in done.stderr
    assert str(tmp_path) not in done.stderr
    assert done.stdout == ""
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "failed"
    assert status["iteration"] == len(rows(tmp_path / "run/metrics.csv")) > 0
    again = subprocess.run(
        [sys.executable, f"run/crash/{program.name}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "RuntimeError: the floor gives way" in again.stderr
    result = json.loads(
        pgcli("eval", "run", "--json", "--trust", "--horizon", 1, cwd=tmp_path, PYTHONPATH=PATHS).stdout
    )
    assert result["iteration"] == status["iteration"], "what was learned before the fault is saved"
    pgcli("resume", "run", cwd=tmp_path, PYTHONPATH=PATHS, MENDED="yes")
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"


def test_a_fault_in_close_does_not_hide_a_finished_run(tmp_path: Path) -> None:
    world = ["env.id=worlds:World-v2", "env.kwargs={fault: close, at: 30}"]
    done = pgcli("train", "cartpole", *TINY, *world, "--run-dir", "run", cwd=tmp_path, code=3, PYTHONPATH=PATHS)
    assert "raised RuntimeError: the door is stuck" in done.stderr
    assert "the run had finished; all its results are saved" in done.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"
    assert len(rows(tmp_path / "run/metrics.csv")) == 6


def test_an_environment_that_prints_and_changes_folders_affects_nothing(tmp_path: Path) -> None:
    talk = ["env.id=wander:Wanderer", "env.max_episode_steps=20"]
    (tmp_path / "wander.py").write_text("from worlds import Wanderer\nprint('hello from the module')\n")
    command = ["train", "cartpole", *TINY, *talk, "training.iterations=2", "name=cartpole", "--seeds", "0-1"]
    done = pgcli(*command, cwd=tmp_path, PYTHONPATH=PATHS)
    assert done.stdout.split() == ["runs/cartpole/seed-0", "runs/cartpole/seed-1"]
    for words in ("hello from the module", "hello from the constructor", "hello from C", "step"):
        assert words in done.stderr
    for seed in (0, 1):
        assert len(rows(tmp_path / f"runs/cartpole/seed-{seed}/metrics.csv")) == 2
    options = ["--json", "--trust", "--episodes", 2, "--horizon", 3]
    result = pgcli("eval", "runs/cartpole/seed-0", *options, cwd=tmp_path, PYTHONPATH=PATHS).stdout
    assert json.loads(result)["episodes"] == 2


def test_a_class_in_the_current_folder_trains_in_processes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from worlds import World\n\nclass Mine(World):\n    '''Mine.'''\n")
    words = ["env.id=mine:Mine", "training.iterations=2", "name=cartpole", "--seeds", "0,1", "--jobs", "2"]
    command = ["train", "cartpole", *TINY, *words]
    done = pgcli(*command, cwd=tmp_path, PYTHONPATH=PATHS)
    assert len(done.stdout.split()) == 2
    assert "mine:Mine has no time limit" in done.stderr
    refused = pgcli("eval", "runs/cartpole/seed-0", cwd=tmp_path, code=3, PYTHONPATH=PATHS)
    assert "--trust" in refused.stderr


LEAVES = [
    ("_exit", 1, 7, ""),
    ("_exit", 2, 3, "worlds:Leaving exited Python with code 7"),
    ("SIGSEGV", 2, 139, "its process was killed by SIGSEGV"),
]


@pytest.mark.parametrize(("how", "jobs", "code", "words"), LEAVES)
def test_a_run_whose_environment_exits_python_resumes_with_the_same_bytes(
    how: str, jobs: int, code: int, words: str, tmp_path: Path
) -> None:
    world = ["env.id=worlds:Leaving", f"env.kwargs.how={how}", "env.max_episode_steps=50", "checkpoint.every=1"]
    several = ["--seeds", "0,1"] if jobs > 1 else []
    command = ["train", "cartpole", *TINY, *world, *several, "--resume", "--run-dir"]
    done = pgcli(*command, "run", "--jobs", jobs, cwd=tmp_path, code=code, PYTHONPATH=PATHS)
    assert done.stdout == ""
    runs = [f"run/seed-{seed}" for seed in (0, 1)] if several else ["run"]
    for run in runs:
        status = json.loads((tmp_path / run / "status.json").read_text())
        assert status == {"status": "running"}, "nobody was left to say otherwise"
        assert not several or f"error: {run}: {words}\nhint: the same command with --resume continues" in done.stderr
        pgcli("plot", run, cwd=tmp_path)
    pgcli(*command, "run", cwd=tmp_path, PYTHONPATH=PATHS, MENDED="yes")
    pgcli(*command, "whole", cwd=tmp_path, PYTHONPATH=PATHS, MENDED="yes")
    for run in runs:
        assert json.loads((tmp_path / run / "status.json").read_text())["status"] == "finished"
        assert contents(tmp_path / run) == contents(tmp_path / run.replace("run", "whole"))


def test_any_exception_in_a_child_process_is_reported(tmp_path: Path) -> None:
    world = ["env.id=worlds:World-v2", "env.kwargs={fault: two words, at: 15}"]
    command = ["train", "cartpole", *TINY, *world, "--seeds", "0,1", "--jobs", "2", "--run-dir", "run"]
    done = pgcli(*command, cwd=tmp_path, code=3, PYTHONPATH=PATHS)
    assert done.stderr.count("raised TwoWords: ('the motor', 'heat')") == 2


def test_leftover_simulator_threads_do_not_delay_the_end_of_a_run(tmp_path: Path) -> None:
    world = ["env.id=worlds:Threaded", "training.iterations=2"]
    for options in ([], ["--seeds", "0-2", "--jobs", "2"]):
        done = pgcli(
            "train",
            "cartpole",
            *TINY,
            *world,
            *options,
            "--run-dir",
            f"run{len(options)}",
            cwd=tmp_path,
            PYTHONPATH=PATHS,
        )
        assert len(done.stdout.split()) == (3 if options else 1)


def test_process_wide_settings_of_an_environment_change_no_byte(tmp_path: Path) -> None:
    for name in ("World", "Meddling"):
        world = [f"env.id=worlds:{name}", "env.max_episode_steps=50", "--run-dir", tmp_path / name]
        pgcli("train", "cartpole", *TINY, *world, cwd=tmp_path, PYTHONPATH=PATHS)
    for table in ("metrics", "episodes", "evaluations"):
        plain, meddled = ((tmp_path / name / f"{table}.csv").read_bytes() for name in ("World", "Meddling"))
        assert plain == meddled


def begun(command: list[Any], folder: Path, sign: str, count: int = 1) -> Command:
    """Start pgcli and wait until its output matches `sign`."""
    process = Command(*command, cwd=folder, PYTHONPATH=PATHS)
    deadline = time.monotonic() + 60
    while len(list(folder.glob(sign))) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("in_step", [False, True])
def test_a_second_signal_ends_a_run_whose_environment_hangs(in_step: bool, tmp_path: Path) -> None:
    world = ["env.id=worlds:Stuck", f"env.kwargs.in_step={str(in_step).lower()}", "checkpoint.every=1"]
    process = begun(["train", "cartpole", *TINY, *world, "--run-dir", "run"], tmp_path, "hanging")
    try:
        process.send_signal(signal.SIGINT)
        assert process.poll(0.5) is None  # the first one waits for the step to end
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "Traceback" not in process.stderr
    assert (tmp_path / "run").exists() is in_step, "a constructor comes before the run directory"
    if in_step:
        assert json.loads((tmp_path / "run/checkpoints/latest.json").read_text())["iteration"] >= 0


@pytest.mark.slow("starts two jobs and waits for their end; test_workers has workers that exit with their parent")
def test_jobs_save_and_exit_if_their_parent_dies(tmp_path: Path) -> None:
    world = ["env.id=worlds:World", "rollout.episodes=10000000", "--seeds", "0,1", "--jobs", "2"]  # one long iteration
    process = begun(
        ["train", "cartpole", *TINY, *world, "name=cartpole"], tmp_path, "runs/*/seed-*/checkpoints/best.json", 2
    )
    time.sleep(0.5)  # the evaluation is printed, and nothing more for a long time
    locks = [tmp_path / f"runs/cartpole/seed-{seed}/.lock" for seed in (0, 1)]
    children = [json.loads(lock.read_text())["pid"] for lock in locks]
    assert process.pid not in children
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in children if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    for lock in locks:
        assert json.loads((lock.parent / "status.json").read_text())["status"] == "interrupted"


def test_an_outdated_version_is_reported_once_per_run(tmp_path: Path) -> None:
    world = ["env.id=CartPole-v0", "env.vectorization=sync", "training.iterations=1"]
    done = pgcli("train", "cartpole", *TINY, *world, cwd=tmp_path)
    assert done.stderr.count("out of date") == 1


def test_an_endless_episode_stops_a_run_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_segments import collect, policy_for, segments

    monkeypatch.setattr(checks, "MAX_EPISODE_STEPS", 30)
    settings = segments("Endless-v0", kwargs={"length": 1000})
    with pytest.raises(EnvironmentFailure, match="not ended") as caught:
        collect(segment_sampler(settings), policy_for(settings), range(20))
    assert "env.max_episode_steps" in caught.value.hint


def test_ctrl_c_in_an_environment_is_not_reported_as_a_fault(tmp_path: Path) -> None:
    pgcli("train", "cartpole", *TINY, "env.id=worlds:Slow", "--run-dir", "run", cwd=tmp_path, PYTHONPATH=PATHS)
    process = Command("eval", "run", "--trust", "--episodes", "100000", cwd=tmp_path, PYTHONPATH=PATHS)
    while not (tmp_path / "stepping").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.stderr == ""
