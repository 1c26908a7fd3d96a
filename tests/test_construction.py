"""Environments are built with the config's order, own copies and the constructors' types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import pgcli
from gymnasium.envs.registration import EnvSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import pgcli as package
from pgcli.config import Config, config_from_data, load_config, to_data
from pgcli.config.order import arranged, differences, orders_of
from pgcli.config.schema import EnvConfig
from pgcli.environments import modules, registry
from pgcli.environments.checks import check_environment
from pgcli.environments.registry import spec
from pgcli.environments.single import make_environment
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.experiment.load import refuse_foreign_modules
from pgcli.runs import checkpoints
from pgcli.studies.variants import digest

SHORT = ("rollout.episodes=4", "training.iterations=1", "evaluation.every=null", "evaluation.episodes=4", "-q")
UP_FIRST = {"up": 1, "down": -1}


def trained(folder: Path, *overrides: str, code: int = 0, name: str = "run") -> Path:
    """Train for an iteration in a folder that has the tests' worlds, and return the run directory."""
    (folder / "c.yaml").write_text("env: {id: CartPole-v1, num_envs: 4}\n")
    pgcli("train", "c.yaml", "--run-dir", name, *SHORT, *overrides, cwd=folder, code=code, PYTHONPATH=TESTS)
    return folder / name


TESTS = str(Path(__file__).parent)


# ------------------------------------------------------------------------------------------------- the order of kwargs


def returns_of(folder: Path, *words: str) -> float:
    """Evaluate the most probable action, and return the mean return."""
    done = pgcli("eval", *words, "--mode", "greedy", "--trust", "--json", cwd=folder, PYTHONPATH=TESTS)
    return float(json.loads(done.stdout)["mean_return"])


def test_eval_builds_the_environment_of_training_in_the_order_of_its_kwargs(tmp_path: Path) -> None:
    wrapper = "env.wrappers=[{name: built_worlds:Repaid, kwargs: {z: 3, a: -3}}]"
    words = ("env.id=built_worlds:Moves", "env.kwargs={z: {up: 1, down: -1}, moves: {up: 1, down: 1}}", wrapper)
    run = trained(tmp_path, *words)
    written = load_config(str(run / "config.yaml"))
    (run / "config.yaml").unlink()  # only the checkpoint itself is read
    assert returns_of(tmp_path, str(run), "--episodes", "2") == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = package.load(run, trust=True)
    assert json.dumps(to_data(agent.config)) == json.dumps(to_data(written))


def metadata_of(file: Path) -> dict[str, Any]:
    with safe_open(file, "numpy") as content:
        found: dict[str, Any] = json.loads(content.metadata()["pgcli"])
    return found


def test_a_checkpoint_has_an_order_only_where_there_is_one(tmp_path: Path) -> None:
    config = {"env": {"kwargs": {"b": {"y": 1, "x": [{"d": 1, "c": 2}]}, "a": 1}}, "seed": 0}
    counters = {"iteration": 1, "env_steps": 1, "episodes": 1}
    orders = [
        [["env", "kwargs"], ["b", "a"]],
        [["env", "kwargs", "b"], ["y", "x"]],
        [["env", "kwargs", "b", "x", 0], ["d", "c"]],
    ]
    cases: list[tuple[dict[str, Any], Any]] = [
        (config, orders),
        ({"env": {"kwargs": {"a": 1, "b": 2}}}, []),
        ({"seed": 0, "env": {"kwargs": {"a": 1}}}, None),
    ]
    for number, (data, expected) in enumerate(cases):
        (folder := tmp_path / str(number)).mkdir()
        file = checkpoints.save(folder, checkpoints.Checkpoint(data, counters, {}))
        assert metadata_of(file).get("order") == expected
        found = checkpoints.load(file)
        assert json.dumps(found.config["env"]) == json.dumps(data["env"])
        assert not found.unordered


@pytest.mark.parametrize(
    "order",
    [
        [[["env", "kwargs"], ["a"]]],
        [[["env", "nothing"], ["a", "b"]]],
        [[["env", "kwargs"], ["a", "b", "b"]]],
        [[["env", "kwargs"], 1]],
        [[[["env"]], ["a"]]],
        {"env": 1},
        None,
    ],
)
def test_a_wrong_order_of_kwargs_is_a_damaged_checkpoint(order: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        arranged({"env": {"kwargs": {"a": 1, "b": 2}}}, order)


def without_order(file: Path) -> None:
    """Convert a checkpoint to the format of an earlier version."""
    metadata = metadata_of(file)
    del metadata["order"], metadata["metadata_sha256"]
    metadata["metadata_sha256"] = checkpoints._sha256(checkpoints._canonical(metadata))
    save_file(load_file(file), file, {"pgcli": checkpoints._canonical(metadata).decode()})


def test_the_order_of_an_old_checkpoint_is_that_of_its_runs_config_or_a_warning(tmp_path: Path) -> None:
    run = trained(tmp_path, "env.id=built_worlds:Moves", "env.kwargs={moves: {up: 1, down: -1}}")
    file = checkpoints.list_checkpoints(run / "checkpoints")[-1]
    without_order(file)
    assert list(checkpoints.load(file).config["env"]["kwargs"]["moves"]) == ["up", "down"]
    (tmp_path / "alone").mkdir()
    alone = Path(shutil.copy(file, tmp_path / "alone"))
    done = pgcli("eval", alone, "--trust", "--episodes", 2, cwd=tmp_path, PYTHONPATH=TESTS)
    assert done.stderr.count("warning: ") == 1
    assert "did not save the order of env.kwargs.moves" in done.stderr
    shutil.copy(run / "config.yaml", alone.parent)
    done = pgcli("eval", alone, "--trust", "--episodes", 2, cwd=tmp_path, PYTHONPATH=TESTS)
    assert "warning" not in done.stderr


def of_kwargs(**kwargs: Any) -> Config:
    return config_from_data({"env": {"kwargs": kwargs}}, "c")


def test_configs_differ_in_the_order_of_their_kwargs() -> None:
    one, other = of_kwargs(moves=UP_FIRST), of_kwargs(moves={"down": -1, "up": 1})
    found = differences(to_data(one), to_data(other))
    assert list(found) == ["env.kwargs.moves"]
    assert [list(value) for value in found["env.kwargs.moves"]] == [["up", "down"], ["down", "up"]]
    assert digest(one) != digest(other)
    assert not differences(to_data(one), to_data(of_kwargs(moves=UP_FIRST)))
    assert list(differences(to_data(of_kwargs(x=1)), to_data(of_kwargs(x=True)))) == ["env.kwargs.x"]
    assert orders_of(to_data(other)) == []


def test_resume_rejects_kwargs_in_another_order(tmp_path: Path) -> None:
    moves = "env.kwargs={{moves: {{{}}}}}"
    first, second = moves.format("up: 1, down: -1"), moves.format("down: -1, up: 1")
    run = trained(tmp_path, "env.id=built_worlds:Moves", first)
    words = ("c.yaml", "--run-dir", run, *SHORT, "env.id=built_worlds:Moves", "--resume")
    assert (
        "has another env.kwargs.moves" in pgcli("train", *words, second, cwd=tmp_path, code=4, PYTHONPATH=TESTS).stderr
    )
    pgcli("train", *words, first, cwd=tmp_path, PYTHONPATH=TESTS)
    other = trained(tmp_path, "env.id=built_worlds:Moves", second, name="other")
    shown = json.loads(pgcli("show", run, other, "--json", cwd=tmp_path).stdout)
    assert list(shown["config"]) == ["env.kwargs.moves"]
    table = pgcli("plot", run, other, "-o", "x.csv", cwd=tmp_path)
    assert table.returncode == 0
    rows = (tmp_path / "x.csv").read_text().splitlines()[1:]
    assert len({row.rpartition('"')[0] or row.split(",")[0] for row in rows}) == 2, "they are no seeds of one another"


# ------------------------------------------------------------------------------------------------- copies of arguments


def made(env_id: str, *wrappers: Any, **kwargs: Any) -> Any:
    env = config_from_data({"env": {"id": env_id, "kwargs": kwargs, "wrappers": list(wrappers)}}, "c").env
    before = json.dumps(env.model_dump())
    envs = [make_environment(env) for _ in range(3)]
    assert json.dumps(env.model_dump()) == before, "the config is untouched"
    return envs


def test_every_instance_gets_its_own_arguments() -> None:
    wrapper = {"name": "built_worlds:PoppingWrapper", "kwargs": {"options": {"factor": 5.0}}}
    for env in made("built_worlds:Popper", wrapper, config={"length": 10, "sizes": [1]}, sizes=[3]):
        assert env.unwrapped.length == 10
        env.reset(seed=0)
        assert env.step(np.int64(0))[1] == 5


def test_consumed_arguments_do_not_change_a_run_with_workers_or_after_resume(
    tmp_path: Path,
) -> None:
    words = ("env.id=built_worlds:Popper", "env.kwargs={config: {length: 10}}", "env.num_envs=2", "rollout.episodes=4")
    one = trained(tmp_path, *words, "training.iterations=2")
    assert "length: 10" in (one / "config.yaml").read_text()
    assert {row.split(",")[4] for row in (one / "episodes.csv").read_text().splitlines()[1:]} == {"10"}
    two = trained(tmp_path, *words, "sampling.workers=2", name="two")
    pgcli("resume", two, "training.iterations=2", "sampling.workers=0", "-q", cwd=tmp_path, PYTHONPATH=TESTS)
    for table in ("metrics.csv", "episodes.csv", "evaluations.csv"):
        assert (two / table).read_bytes() == (one / table).read_bytes(), table


def test_a_list_is_converted_to_the_type_of_the_constructors_parameter() -> None:
    for env in made("built_worlds:Goal", goal=[2, 3], areas=[[2, 3], [4, 5]], push={"at": [1, 2]}):
        env.reset(seed=0)
        assert env.step(np.int64(0))[1] == 2


# ------------------------------------------------------------------------------------------------------- render_mode


@pytest.mark.parametrize(
    ("name", "mode"),
    [("NeedsRenderMode", None), ("ChecksRenderMode", "rgb_array"), ("ReadsRenderMode", None), ("OpensWindow", None)],
)
def test_an_environment_that_requires_a_render_mode_gets_one(name: str, mode: str | None) -> None:
    assert made(f"built_worlds:{name}")[0].unwrapped.render_mode == mode
    env = EnvConfig(id=f"built_worlds:{name}")
    assert make_environment(env, render_mode="rgb_array").unwrapped.render_mode == "rgb_array"


# ------------------------------------------------------------------------------------------------------------- by name


def test_a_function_can_create_the_environment() -> None:
    env = EnvConfig(id="built_worlds:make_steps", kwargs={"length": 7})
    assert made(env.id, **env.kwargs)[0].unwrapped.length == 7
    assert check_environment(env).time_limit == 2
    with pytest.raises(EnvironmentFailure, match=r"does not return a gymnasium\.Env"):
        make_environment(EnvConfig(id="built_worlds:make_nothing"))


WORLD = """
import gymnasium
from built_worlds import Steps

class Here(Steps):
    length = 9

class Faulty(Steps):
    def pays(self, action):
        return 1 / (self.t < 3)

class Twice(gymnasium.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

if "Registered-v0" not in gymnasium.registry:
    gymnasium.register("Registered-v0", entry_point=Here, max_episode_steps=3)
"""


@pytest.mark.parametrize("file", ["mine.py", "sub/my-world.py"])
def test_a_class_in_a_file_can_be_the_environment(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(WORLD)
    run = trained(tmp_path, f"env.id={file}:Here", f"env.wrappers=['{file}:Twice']")
    assert {row.split(",")[2] for row in (run / "episodes.csv").read_text().splitlines()[1:]} == {"18.0"}
    assert "--trust" in pgcli("eval", run, cwd=tmp_path, code=3, PYTHONPATH=TESTS).stderr
    assert returns_of(tmp_path, str(run), "--episodes", "2") == 18
    registered = trained(tmp_path, f"env.id={file}:Registered-v0", name="registered")
    assert {row.split(",")[2] for row in (registered / "episodes.csv").read_text().splitlines()[1:]} == {"3.0"}


def test_a_fault_in_a_file_has_a_reproduction(tmp_path: Path) -> None:
    (tmp_path / "test.py").write_text(WORLD)
    run = trained(tmp_path, "env.id=test.py:Faulty", "env.wrappers=['test.py:Twice']", code=3)
    (program,) = (run / "crash").iterdir()
    words = {"PYTHONPATH": TESTS, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=words, capture_output=True, text=True, check=False
    )
    assert "raised ZeroDivisionError" in done.stdout, done.stderr


def test_a_file_that_an_installed_module_hides_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text(WORLD)
    monkeypatch.setattr(modules, "HERE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for env in (EnvConfig(id="json:Here"), config_from_data({"env": {"wrappers": ["json:Here"]}}, "c").env):
        with pytest.raises(EnvironmentFailure, match=r"hides json\.py in the current folder") as caught:
            make_environment(env)
        assert caught.value.hint == "name the file: `json.py:Here`"
    assert made("json.py:Here")[0].unwrapped.length == 9
    assert sys.modules["json"] is json
    with pytest.raises(EnvironmentFailure, match=r"no file jsno\.py") as caught:
        make_environment(EnvConfig(id="jsno.py:Here"))
    assert caught.value.hint == "did you mean `json.py:Here`?"


def test_a_file_named_like_gymnasium_needs_trust() -> None:
    with pytest.raises(EnvironmentFailure, match=r"gymnasium\.py"):
        refuse_foreign_modules(Config(env=EnvConfig(id="gymnasium.py:Here")), Path("a"))


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("Pong-v5", "ALE/Pong-v5"),
        ("pong-v5", "ALE/Pong-v5"),
        ("Pong-v9", "ALE/Pong-v5"),
        ("Pong", "ALE/Pong-v5"),
        ("ALE/pong-v5", "ALE/Pong-v5"),
        ("Pendulum-v7", "Pendulum-v1"),
    ],
)
def test_a_near_miss_suggests_the_newest_version(wanted: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_import_atari", lambda name: None)  # it may not be installed
    for known in ("Pong-v0", "Pong-v4", "ALE/Pong-v5"):
        monkeypatch.setitem(gym.registry, known, EnvSpec(known, entry_point="built_worlds:Steps"))
    with pytest.raises(EnvironmentFailure) as caught:
        spec(EnvConfig(id=wanted))
    assert caught.value.hint == f"did you mean `{hint}`?"


def test_a_fifo_as_an_argument_is_rejected_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.xml")
    with pytest.raises(UsageError, match=r"env\.kwargs\.xml_file: .*model\.xml is a FIFO") as caught:
        make_environment(EnvConfig(id="HalfCheetah-v5", kwargs={"xml_file": str(tmp_path / "model.xml")}))
    assert caught.value.hint == "name a regular file"
