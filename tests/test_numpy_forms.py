"""pgcli's vector forms in numpy have the results of Gymnasium's single environments, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import pgcli
from numpy.typing import NDArray

from pgcli.config.schema import EnvConfig
from pgcli.environments.make import make_environments, make_episode_environments
from pgcli.environments.masks import MaskColumns, draw
from pgcli.environments.single import SingleEnvironments, make_environment
from pgcli.environments.vector import forms
from pgcli.environments.vector.arrays import ArrayEnvironments, NativeArrayEnvironments
from pgcli.environments.vector.native import StackedVectorEnvironments, VectorEnvironments
from pgcli.environments.vector.pendulum import Pendulum
from pgcli.environments.vector.streams import Streams
from pgcli.errors import UsageError
from pgcli.seeding import DerivedSeeds, Purpose, derived_seed

Array = NDArray[Any]
Environments = ArrayEnvironments | SingleEnvironments
COLUMNS = 50
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Acrobot": ("Acrobot-v1", {}),
    "CartPole": ("CartPole-v1", {}),
    "CartPole, 200 steps": ("CartPole-v0", {}),
    "CartPole, rewards of the book": ("CartPole-v1", {"sutton_barto_reward": True}),
    "MountainCar": ("MountainCar-v0", {}),
    "MountainCar, moving goal": ("MountainCar-v0", {"goal_velocity": 0.02}),
    "MountainCarContinuous": ("MountainCarContinuous-v0", {}),
    "MountainCarContinuous, moving goal": ("MountainCarContinuous-v0", {"goal_velocity": 0.02}),
    "Pendulum": ("Pendulum-v1", {}),
    "Pendulum, other gravity": ("Pendulum-v1", {"g": 9.81}),
    "FrozenLake": ("FrozenLake-v1", {}),
    "FrozenLake, dry": ("FrozenLake-v1", {"is_slippery": False}),
    "FrozenLake, large": ("FrozenLake-v1", {"map_name": "8x8"}),
    "FrozenLake, own map": ("FrozenLake-v1", {"desc": ["SFFS", "FFHF", "FFFG"]}),
    "FrozenLake, other rates": ("FrozenLake-v1", {"success_rate": 0.7, "reward_schedule": [2, -1, -0.1]}),
    "FrozenLake8x8": ("FrozenLake8x8-v1", {}),
    "CliffWalking": ("CliffWalking-v1", {}),
    "CliffWalking, slippery": ("CliffWalking-v1", {"is_slippery": True}),
    "Taxi": ("Taxi-v4", {}),
    "Taxi, rainy": ("Taxi-v4", {"is_rainy": True, "rainy_probability": 0.6}),
    "Blackjack": ("Blackjack-v1", {}),
    "Blackjack, natural": ("Blackjack-v1", {"sab": False, "natural": True}),
    "Blackjack, plain": ("Blackjack-v1", {"sab": False}),
}


def numpy_environments(config: EnvConfig, num_envs: int) -> ArrayEnvironments:
    form = forms.numpy_form(config)
    assert form is not None, config
    return ArrayEnvironments(config, num_envs, form)


def seeds_of(number: int, count: int) -> list[int]:
    return [int(seed) for seed in np.random.default_rng(number).integers(0, 2**63, count)]


def chooser(envs: Environments) -> Callable[[Array], Array]:
    """Return a function that draws legal actions; real ones exceed their bounds in one of two rows."""
    masks, random = MaskColumns(envs.layout, envs.action_space), np.random.default_rng(0)

    def choose(obs: Array) -> Array:
        permitted = masks.of(obs)
        rows = [None] * len(obs) if permitted is None else permitted
        actions = np.array([draw(envs.action_space, row, random) for row in rows])
        return actions * np.float32(random.choice([1, 3])) if actions.dtype == np.float32 else actions

    return choose


def assert_equal_steps(config: EnvConfig, steps: int) -> None:
    ours, original = numpy_environments(config, COLUMNS), SingleEnvironments(config, COLUMNS)
    seeds, choose, running = seeds_of(1, COLUMNS), chooser(ours), np.ones(COLUMNS, bool)
    obs, same = ours.reset(seeds), original.reset(seeds)
    for number in range(steps):
        actions = choose(obs)
        pairs = [(obs, same), *zip(ours.step(actions, running), original.step(actions, running), strict=True)]
        over = pairs[3][0] | pairs[4][0]
        names = ["prob", "absent"]
        pairs.append((ours.reported(names, running), original.reported(names, running)))  # type: ignore[arg-type]
        for one, other in pairs:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        obs, same = pairs[1]
        running = running & ~over
        if number % 3 == 0 and not running.all():  # in other rows, columns that have ended are not stepped
            columns = (~running).nonzero()[0].tolist()
            seeds = seeds_of(number, COLUMNS)
            obs, same, running = ours.restart(columns, seeds), original.restart(columns, seeds), np.ones(COLUMNS, bool)


@pytest.mark.parametrize("world", WORLDS)
def test_steps_equal_those_of_the_single_form(world: str) -> None:
    name, kwargs = WORLDS[world]
    assert_equal_steps(EnvConfig(id=name, kwargs=kwargs, max_episode_steps=25), steps=40)


@pytest.mark.slow("a hundred thousand steps of each of Gymnasium's environments")
@pytest.mark.parametrize("world", WORLDS)
def test_a_hundred_thousand_steps_equal_those_of_the_single_form(world: str) -> None:
    name, kwargs = WORLDS[world]
    assert_equal_steps(EnvConfig(id=name, kwargs=kwargs), steps=100_000 // COLUMNS)


def test_streams_and_derived_seeds_equal_those_of_numpy() -> None:
    seeds = np.array([0, 1, 2**32, 2**63 - 1, *seeds_of(2, 500)], np.uint64)
    generators = [np.random.default_rng(int(seed)) for seed in seeds]
    streams, narrow = Streams(seeds, 3), Streams(seeds, 3, narrow=True)
    drawn = [streams.uniform(-0.1, 0.3) for _ in range(10)]
    assert np.array_equal(np.transpose(drawn), [one.uniform(-0.1, 0.3, 10) for one in generators])
    generators = [np.random.default_rng(int(seed)) for seed in seeds]
    large = 3 * 2**30  # a fourth of the draws is rejected
    chosen = [[narrow.choice(13), narrow.choice(large)] for _ in range(10)]
    expected = [[[one.choice(13), one.choice(large)] for _ in range(10)] for one in generators]
    assert np.array_equal(np.transpose(chosen, (2, 0, 1)), expected)
    columns = np.array([0, 3, 2**32 - 1])
    for seed in (0, 7, 2**70):
        derived = DerivedSeeds(seed, Purpose.RESET, columns, 2**31)
        assert derived.array().tolist() == list(derived)
        assert derived[1] == derived_seed(seed, Purpose.RESET, 3, 2**31)
    long = DerivedSeeds(2**140, Purpose.RESET, np.array([2**40]))
    assert long.array().tolist() == [derived_seed(2**140, Purpose.RESET, 2**40)]


@pytest.mark.parametrize("name", ["Acrobot-v1", "Taxi-v4", "Blackjack-v1", "MountainCar-v0", "Pendulum-v1"])
def test_first_states_equal_those_of_gymnasium(name: str) -> None:
    ours, seeds = numpy_environments(EnvConfig(id=name), 300), seeds_of(4, 300)
    with closing(make_environment(EnvConfig(id=name))) as env:
        rows = [ours.layout.pack(env.reset(seed=seed)[0]).reshape(ours.layout.shape) for seed in seeds]
    assert ours.reset(seeds).tobytes() == np.stack(rows).tobytes()


@pytest.mark.parametrize("name", ["Acrobot-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1", "CartPole-v1"])
def test_a_column_does_not_depend_on_the_others(name: str) -> None:
    config, seeds = EnvConfig(id=name, max_episode_steps=30), seeds_of(5, 64)
    together, alone = numpy_environments(config, 64), numpy_environments(config, 1)
    obs, running, choose = together.reset(seeds), np.ones(64, bool), chooser(together)
    assert alone.reset([seeds[9]])[0].tobytes() == obs[9].tobytes()
    while running[9]:
        actions = choose(obs)
        step, own = together.step(actions, running), alone.step(actions[9:10], np.ones(1, bool))
        assert [x[9].tobytes() for x in step] == [x[0].tobytes() for x in own]
        running, obs = running & ~(step.terminated | step.truncated), step.obs


def test_columns_with_equal_seeds_start_and_slip_alike() -> None:
    envs = numpy_environments(EnvConfig(id="FrozenLake-v1"), 6)
    envs.reset([7, 7, 8, 8, 9, 9])
    for _ in range(5):
        obs = envs.step(np.full(6, 2), np.ones(6, bool)).obs
        assert np.array_equal(obs[::2], obs[1::2])


@pytest.mark.parametrize(
    "settings",
    [
        {"id": "Pendulum-v1", "wrappers": [{"name": "RescaleAction", "kwargs": {"min_action": -1, "max_action": 1}}]},
        {"id": "Pendulum-v1", "kwargs": {"g": 1e308}},
        {"id": "Pendulum-v1", "rebuild": True},
        {"id": "Pendulum-v1", "vectorization": "sync"},
        {"id": "Taxi-v4", "kwargs": {"fickle_passenger": True}},
        {"id": "FrozenLake-v1", "kwargs": {"map_name": None}},  # each instance draws its own map
        {"id": "LunarLander-v3"},
    ],
    ids=["wrapper", "huge argument", "rebuild", "sync", "unsupported argument", "random map", "no form"],
)
def test_single_environments_are_used_where_no_form_fits(settings: dict[str, Any]) -> None:
    assert isinstance(make_environments(EnvConfig.model_validate(settings), 2), SingleEnvironments)


def test_numpy_stops_where_no_form_fits() -> None:
    with pytest.raises(UsageError, match="LunarLander-v3 has no form in numpy"):
        make_environments(EnvConfig(id="LunarLander-v3", vectorization="numpy"), 2)


def test_groups_use_the_form_in_numpy_and_other_runs_the_native_one() -> None:
    config = EnvConfig(id="CartPole-v1")
    assert isinstance(make_environments(config, 2), VectorEnvironments)
    assert isinstance(make_environments(config.with_shared_seeds(), 2), ArrayEnvironments)


def test_stacked_seeds_step_in_numpy_as_in_their_own_form() -> None:
    config = EnvConfig(id="CartPole-v1", max_episode_steps=25)  # some columns fall before, others reach the limit
    ours = make_episode_environments(config, 3, 20)
    assert isinstance(ours, NativeArrayEnvironments)
    native = StackedVectorEnvironments(config, 3, 20, VectorEnvironments(config, 20))
    with closing(ours), closing(native):
        assert ours.reset(range(60)).tobytes() == native.reset(range(60)).tobytes()
        random, running, ended = np.random.default_rng(0), np.ones(60, bool), []
        while running.any():
            actions = random.integers(0, 2, 60)
            step, like = ours.step(actions, running), native.step(actions, running)
            for one, other in zip(step, like, strict=True):
                assert one[running].astype(other.dtype).tobytes() == other[running].tobytes()
            ended += [step.terminated[running].any(), step.truncated[running].any()]
            running = running & ~(step.terminated | step.truncated)
    assert any(ended[::2])
    assert ended[-1]
    minus_zero = EnvConfig(id="CartPole-v1", kwargs={"sutton_barto_reward": True})  # a reward of the native form only
    with closing(make_episode_environments(minus_zero, 2, 3)) as envs:
        assert isinstance(envs, StackedVectorEnvironments)


def test_a_form_with_other_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EnvConfig(id="Pendulum-v1")
    assert isinstance(make_environments(config, 2), ArrayEnvironments)
    monkeypatch.setattr(forms, "_equal", {})
    monkeypatch.setattr(Pendulum, "draws", 32)
    assert isinstance(make_environments(config, 2), ArrayEnvironments)  # equal, though it draws further ahead
    monkeypatch.setattr(forms, "_equal", {})
    step = Pendulum.step
    monkeypatch.setattr(Pendulum, "step", lambda *x: (step(*x)[0], np.nextafter(step(*x)[1], 0), step(*x)[2]))
    assert isinstance(make_environments(config, 2), SingleEnvironments)


@pytest.mark.parametrize(
    "words",
    [
        ["cartpole/ppo", "env.num_envs=5", "rollout.steps=48", "algorithm.num_minibatches=4"],
        ["cartpole/grpo", "rollout.episodes=16", "env.max_episode_steps=40"],
        ["acrobot/baseline", "env.num_envs=4", "rollout.episodes=6", "env.max_episode_steps=60"],
        ["pendulum/ppo", "env.num_envs=3", "rollout.steps=250"],
        ["taxi/ppo", "env.num_envs=4", "rollout.steps=60", "env.max_episode_steps=25"],
        ["frozen-lake/reinforce", "env.num_envs=8", "rollout.episodes=20", "logging.info=[prob]"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_has_the_bytes_of_single_environments(words: list[str], tmp_path: Path) -> None:
    budget = ["training.iterations=2", "training.env_steps=null", "evaluation.episodes=4", "evaluation.every=2"]
    for form in ("numpy", "sync"):
        pgcli("train", *words, *budget, f"env.vectorization={form}", "--run-dir", form, cwd=tmp_path)
    for name in ("metrics.csv", "episodes.csv", "evaluations.csv"):
        assert (tmp_path / "numpy" / name).read_bytes() == (tmp_path / "sync" / name).read_bytes()


def test_prepared_starts_are_those_of_each_episode() -> None:
    """Starts are prepared ahead; another order, another first episode or other columns must not mix them up."""
    config, columns = EnvConfig(id="FrozenLake-v1"), np.arange(3)
    ours, original = numpy_environments(config, 3), SingleEnvironments(config, 3)
    episode, running = np.zeros(3, np.int64), np.ones(3, bool)
    for envs in (ours, original):
        envs.reset(DerivedSeeds(1, Purpose.RESET, columns, episode))
    for number in range(120):
        first = 10 if number > 60 else 0
        chosen = [[0], [0, 2], [1], [2, 1]][number % 4]
        episode[chosen] += 40 if number == 30 else -20 if number == 90 else 1
        seeds = DerivedSeeds(1, Purpose.RESET, columns + first, episode.copy())
        rows = [envs.restart(chosen, seeds)[chosen] for envs in (ours, original)]
        rows += [envs.step(np.full(3, number % 4), running).obs[chosen] for envs in (ours, original)]
        assert rows[0].tobytes() == rows[1].tobytes()
        assert rows[2].tobytes() == rows[3].tobytes()
