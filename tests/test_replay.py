"""Replay simulates a training episode again, exactly, and can film it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import pgcli
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from helpers import Counting, mostly_slow
from PIL import Image

from pgcli.config import load_config
from pgcli.errors import EnvironmentFailure, RunDirectoryError, UsageError
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.replay import replay, replay_text
from pgcli.runs import checkpoints
from pgcli.seeding import Purpose, derived_seed

SETTINGS = (
    *("training.iterations=7", "training.env_steps=null", "evaluation.every=4", "evaluation.episodes=2"),
    *("evaluation.stop_at_return=null", "checkpoint.every=3", "checkpoint.keep=2", "env.max_episode_steps=20"),
    "optimizer.schedule=constant",
)
PPO = ("algorithm.num_minibatches=4", "env.num_envs=3")
KINDS: dict[str, tuple[str, ...]] = {
    "native episodes": ("cartpole", "rollout.episodes=5", "env.num_envs=3"),
    "native segments": ("cartpole/ppo", "rollout.steps=8", *PPO, "env.chunk_size=2"),
    "groups": ("cartpole/grpo", "rollout.episodes=8", "env.num_envs=4"),
    "segments": ("lunar-lander/ppo", "rollout.steps=8", *PPO, "policy.memory=gru", "policy.normalize_obs=true"),
    "masks": ("taxi/ppo", "rollout.steps=8", *PPO),
    "wrappers": (
        *("cartpole", "rollout.episodes=3", "rollout.horizon=9", "env.num_envs=2", "env.rebuild=true"),
        "env.wrappers=[{name: FrameStackObservation, kwargs: {stack_size: 2}}]",
    ),
    "reuse": ("cartpole/importance_sampling", "rollout.episodes=4", "env.num_envs=4", "algorithm.reuse=2"),
    "continuous": ("pendulum/ppo", "rollout.steps=8", *PPO, "policy.memory=lstm"),
}


def train(path: Path, name: str, *overrides: str, resume: bool = False) -> Path:
    run_experiment(Request(load_config(name, overrides), path, ["train"], resume=resume))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home = tmp_path_factory.mktemp("runs")

    def made(kind: str) -> Path:
        name, *overrides = KINDS[kind]
        return home / kind if (home / kind).exists() else train(home / kind, name, *SETTINGS, *overrides)

    return made


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "episodes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def again(path: Path, row: dict[str, str], video: Path | None = None) -> dict[str, Any]:
    return replay(path, f"{row['iteration']}:{row['episode']}", video, trust=False, tell=lambda text: None)


def chosen(told: list[dict[str, str]]) -> list[dict[str, str]]:
    """Some of the first and last episodes, and the longest one."""
    return [told[0], told[-1], max(told, key=lambda row: int(row["length"]))]


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["native episodes", "segments"], "films whole episodes"))
def test_a_training_episode_is_repeated_and_filmed_completely(
    kind: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    path = runs(kind)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    for row in (told := chosen(rows(path))):
        film = tmp_path / "film.gif" if row is told[-1] else None
        result = again(path, row, film)
        assert result["matches"], result
        assert (repr(result["return"]), repr(result["discounted_return"])) == (row["return"], row["discounted_return"])
        assert (str(result["length"]), result["ended"]) == (row["length"], row["ended"])
        assert 0 <= result["repeated_iterations"] <= int(row["iteration"])
    with Image.open(tmp_path / "film.gif") as picture:
        shown = getattr(picture, "n_frames", 1)
    assert shown <= result["length"] + 1
    if "cartpole" in KINDS[kind][0]:
        assert shown == result["length"] + 1, "no two pictures of a moving pole are the same"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before, "a replay writes nothing into the run"


def test_the_nearest_checkpoint_or_the_start_is_used(runs: Callable[[str], Path]) -> None:
    path, told = runs("wrappers"), rows(runs("wrappers"))
    kept = [checkpoints.iteration_of(file) for file in checkpoints.list_checkpoints(path / "checkpoints")]
    for row in told[::3]:
        iteration = int(row["iteration"])
        nearest = max((number for number in kept if number <= iteration), default=None)
        result = again(path, row)
        assert result["repeated_iterations"] == iteration - (nearest or 0)
        assert (result["checkpoint"] is None) == (nearest is None)


class Shown(Counting):
    """Counting with rendered frames that encode (k in bytes, t)."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium has it

    def render(self) -> Any:
        return np.full((4, 4, 3), (int(self.k * 255), 20 * self.t, 0), np.uint8)


gym.register("Shown-v0", entry_point="test_replay:Shown")


def pixels(file: Path) -> list[tuple[int, ...]]:
    with Image.open(file) as film:
        found = []
        for number in range(getattr(film, "n_frames", 1)):
            film.seek(number)
            found.append(tuple(film.convert("RGB").getpixel((0, 0)))[:2])  # type: ignore[arg-type]
    return found


def test_the_filmed_episode_may_have_begun_iterations_earlier(tmp_path: Path) -> None:
    overrides = ("env.id=Shown-v0", "env.num_envs=2", "env.chunk_size=1", "rollout.steps=3")
    minibatches = "algorithm.num_minibatches=1"
    path = train(tmp_path / "run", "cartpole/ppo", *SETTINGS, *overrides, minibatches)
    number, earlier = dict.fromkeys(range(2), 0), 0
    facts = {}  # which episode ends when, by hand: a column's lengths follow from its seeds, and a reset costs a row
    for column in range(2):
        row = 0
        while row < 21:
            seed = derived_seed(0, Purpose.RESET, column, number[column])
            k, length, _ = Counting.facts(seed)
            end = row + length - 1
            if end < 21:
                facts[end // 3, column, end] = (k, length)  # a chunk's episodes come after those of the one before it
                earlier += row // 3 < end // 3
            number[column], row = number[column] + 1, end + 2
    assert earlier > 3, "some episodes run over the end of a segment"
    told = rows(path)
    assert len(told) == len(facts)
    for row_, ((iteration, _, _), (k, length)) in zip(told, sorted(facts.items()), strict=True):
        assert int(row_["iteration"]) == iteration
        assert again(path, row_, tmp_path / "film.gif")["length"] == length
        assert pixels(tmp_path / "film.gif") == [(int(k * 255), 20 * t) for t in range(length + 1)]


def test_a_vector_form_is_rendered_in_the_states_of_its_column(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def render(self: CartPoleVectorEnv) -> Any:
        assert self.state is not None
        drawn.append(self.state.T.astype(np.float32).copy())
        return [np.zeros((4, 4, 3), np.uint8)] * self.num_envs

    monkeypatch.setattr(CartPoleVectorEnv, "render", render)
    path = runs("native segments")
    row = max(rows(path), key=lambda row: int(row["length"]))
    assert int(row["length"]) > 9, "it began at least one segment ago"
    again(path, row, tmp_path / "film.gif")
    states = np.concatenate(drawn[1:])  # the first one shows whether there is a picture at all
    assert len(states) == int(row["length"]) + 1
    assert np.abs(states[0]).max() <= 0.05, "where CartPole starts"
    steps = states[1:, [0, 2]] - states[:-1, [0, 2]]
    np.testing.assert_allclose(
        steps, 0.02 * states[:-1, [1, 3]], atol=1e-6
    )  # x' = x + τ dx/dt: no gap, no other column


class Blind(CartPoleVectorEnv):
    """A vector form without rendering."""

    def render(self) -> Any:
        return None


class Heavy(CartPoleEnv):
    """A single form with other dynamics."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.masspole = 0.5
        self.total_mass = self.masspole + self.masscart
        self.polemass_length = self.masspole * self.length


for name, single in (
    ("Blind-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv"),
    ("BlindHeavy-v0", "test_replay:Heavy"),
):
    gym.register(name, entry_point=single, vector_entry_point="test_replay:Blind")


def test_the_single_form_is_rendered_if_the_vector_form_cannot_be(tmp_path: Path) -> None:
    small = ("rollout.steps=8", *PPO)
    path = train(tmp_path / "blind", "cartpole/ppo", *SETTINGS, *small, "env.id=Blind-v0")
    row = rows(path)[3]
    assert again(path, row, tmp_path / "film.gif")["matches"]
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (600, 400)
        assert getattr(film, "n_frames", 1) == int(row["length"]) + 1
    path = train(tmp_path / "heavy", "cartpole/ppo", *SETTINGS, *small, "env.id=BlindHeavy-v0")
    with pytest.raises(EnvironmentFailure, match="cannot be filmed"):
        again(path, rows(path)[3], tmp_path / "none.gif")
    assert again(path, rows(path)[3])["matches"], "without a film there is nothing that cannot be done"
    assert not (tmp_path / "none.gif").exists()


def test_an_episode_before_a_change_of_the_config_needs_a_checkpoint_from_before_it(tmp_path: Path) -> None:
    settings = [one for one in SETTINGS if "keep" not in one]
    name, *overrides = KINDS["native episodes"]
    path = train(tmp_path / "run", name, *settings, *overrides, "checkpoint.keep=2")
    more = ("checkpoint.keep=2", "training.iterations=14", "optimizer.learning_rate=0.05")
    train(path, name, *(one for one in settings if "iterations" not in one), *overrides, *more, resume=True)
    told = rows(path)
    kept = [checkpoints.iteration_of(file) for file in checkpoints.list_checkpoints(path / "checkpoints")]
    for row in (told[-1], next(row for row in told if row["iteration"] == str(max(kept[-2], 7)))):
        assert again(path, row)["matches"]
    with pytest.raises(RunDirectoryError, match="resumed with another config at iteration 7"):
        again(path, told[0])


def test_an_unknown_episode_is_reported(runs: Callable[[str], Path], tmp_path: Path) -> None:
    path = runs("native episodes")
    for which, words in (("5", "not ITERATION:EPISODE"), ("1:x", "not ITERATION"), ("2:3", "has no episode 3")):
        with pytest.raises(UsageError, match=words):
            replay(path, which, None, trust=False, tell=lambda text: None)
    with pytest.raises(UsageError, match="unsupported video format"):
        replay(path, "0:0", tmp_path / "film.avi", trust=False, tell=lambda text: None)
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        replay(tmp_path, "0:0", None, trust=False, tell=lambda text: None)


def test_the_command_line_reports_both_values_if_they_differ(runs: Callable[[str], Path], tmp_path: Path) -> None:
    path = runs("native episodes")

    again = partial(pgcli, "eval", path, "--replay", "6:32", cwd=tmp_path)
    done = again("--json", "--video", tmp_path / "film.mp4")
    result = json.loads(done.stdout)
    assert result["matches"]
    assert result["video"] == str(tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").stat().st_size > 1000
    assert "0 iterations to recompute" in done.stderr
    assert "cannot be used with --replay" in again("--episodes", 3, code=2).stderr
    text = (path / "episodes.csv").read_text()
    lines = text.splitlines()
    iteration, episode, _, discounted, *rest = lines[33].split(",")
    lines[33] = ",".join([iteration, episode, "1234.5", discounted, *rest])
    (path / "episodes.csv").write_text("\n".join(lines) + "\n")
    try:
        done = again("--video", tmp_path / "other.mp4", code=7)
    finally:
        (path / "episodes.csv").write_text(text)
    assert "1234.5" in done.stdout
    assert repr(result["return"]) in done.stdout
    assert not (tmp_path / "other.mp4").exists()
    assert "differs from the recorded episode" in replay_text(result | {"matches": False})
