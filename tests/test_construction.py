"""Environments are built from the config as it is written: its order, its own copies, and what a constructor wants."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import pgcli as package
from pgcli.config import Config, config_from_data, load_config, to_data
from pgcli.config.order import arranged, differences, orders_of
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


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.kwargs={moves: {up: 1, down: -1}}"],
        ["env.kwargs={up: 1, down: -1}"],  # as **kwargs
        ["env.kwargs={z: 1, a: 1}", "env.wrappers=[{name: built_worlds:Repaid, kwargs: {z: 1, a: -1}}]"],
    ],
    ids=["nested", "keywords", "wrapper"],
)
def test_eval_builds_the_environment_of_training_whatever_the_order_of_its_kwargs(
    overrides: list[str], tmp_path: Path
) -> None:
    run = trained(tmp_path, "env.id=built_worlds:Moves", "optimizer.learning_rate=0.5", *overrides)
    (run / "config.yaml").rename(tmp_path / "config.yaml")  # only the checkpoint itself is read
    rewards = [float(row.split(",")[2]) for row in (run / "episodes.csv").read_text().splitlines()[1:]]
    assert {abs(reward) for reward in rewards} <= {0, 2, 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = package.load(run, trust=True)
    assert list(agent.config.env.kwargs) == list(load_config(str(tmp_path / "config.yaml")).env.kwargs)
    assert to_data(agent.config) == to_data(load_config(str(tmp_path / "config.yaml")))


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
def test_an_order_that_does_not_fit_is_a_damaged_checkpoint(order: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        arranged({"env": {"kwargs": {"a": 1, "b": 2}}}, order)


def without_order(file: Path) -> None:
    """Rewrite a checkpoint as an earlier version of pgcli wrote it."""
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
    assert "without the order of env.kwargs.moves" in done.stderr
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


def test_a_run_is_not_resumed_with_its_kwargs_in_another_order(tmp_path: Path) -> None:
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
