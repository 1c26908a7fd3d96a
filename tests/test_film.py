"""Films: rendered images are converted or rejected, and each frame shows its own step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pictures
import pytest
from command_line import pgcli
from PIL import Image

from pgcli.config import load_config
from pgcli.errors import EnvironmentFailure, RunDirectoryError
from pgcli.experiment.load import Agent, load
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.replay import replay
from pgcli.report.frames import FrameReader, rate
from pgcli.report.video import FilmedEpisode, film, write

HEIGHT, WIDTH, LENGTH, LIGHT = 12, 50, 8, 200
gym.register("Bar-v0", entry_point="pictures:Bar")
SMALL = (
    *("env.id=Bar-v0", "env.num_envs=2", "rollout.episodes=2", "training.iterations=1", "evaluation.episodes=2"),
    *("evaluation.stop_at_return=null", "policy.hidden_sizes=[2]"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "run"
    run_experiment(Request(load_config("cartpole", SMALL), path, ["train"]))
    return path


@pytest.fixture
def agent_of(trained: Path) -> Callable[[str], Agent]:
    def built(kind: str) -> Agent:
        agent = load(trained)
        env = agent.config.env.model_copy(update={"kwargs": {"kind": kind}})
        agent.config = agent.config.model_copy(update={"env": env})
        return agent

    return built


def bars(path: Path) -> list[int]:
    """Count the bright columns of each frame; every pixel is black or has the bar's colour."""
    with Image.open(path) as picture:
        assert picture.size == (WIDTH, HEIGHT)
        found = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
            bright = pixels[HEIGHT // 2, :, 0] > LIGHT // 2
            assert np.abs(pixels[:, bright] - pixels[0, 0, 0]).max(initial=0) <= 2
            assert not pixels[:, ~bright].any()
            found.append(int(bright.sum()))
    return found


GROWING = [5 * t for t in range(LENGTH + 1)]
CONVERTED = (
    *("", "float", "float32", "float 255", "int64", "RGBA", "float RGBA", "grey", "grey axis", "bool", "CHW", "PIL"),
    *("PIL RGBA", "PIL palette", "list", "rows", "torch", "array", "number", "zero", "flag"),
)


@pytest.mark.parametrize("kind", CONVERTED)
def test_each_frame_shows_the_state_of_its_step(kind: str, agent_of: Callable[[str], Agent], tmp_path: Path) -> None:
    episode = film(agent_of(kind), tmp_path / "film.gif", "sampled", 0, None)
    assert bars(tmp_path / "film.gif") == GROWING
    assert episode.length == LENGTH
    assert episode.episode_return == (0 if kind == "flag" else LENGTH)


@pytest.mark.parametrize("suffix", ["gif", "mp4", "MP4"])
def test_frames_of_another_size_fit_into_the_first(
    suffix: str, agent_of: Callable[[str], Agent], tmp_path: Path
) -> None:
    film(agent_of("grown"), tmp_path / f"film.{suffix}", "sampled", 0, None)
    if suffix == "gif":
        assert bars(tmp_path / "film.gif") == GROWING
    assert [path.name for path in tmp_path.iterdir()] == [f"film.{suffix}"]


REFUSED = {
    "none": "it rendered nothing",
    "text": "it rendered a str",
    "object": "it rendered a object",
    "negative": "a float64 picture with numbers from -1 to -1",
    "nan": "numbers from nan to nan",
    "large": "a uint16 picture with numbers from 0 to 20000",
    "two channels": r"an array of shape \(12, 50, 2\)",
    "four axes": r"an array of shape \(2, 12, 50, 3\)",
    "empty": r"an array of shape \(0, 50, 3\)",
    "raises": r"ZeroDivisionError: division by zero",
    "missing": r"FileNotFoundError: .*sprites/agent.npy",
}


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
@pytest.mark.parametrize("kind", REFUSED)
def test_an_invalid_frame_is_rejected_and_leaves_no_file(
    kind: str, suffix: str, agent_of: Callable[[str], Agent], tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentFailure, match=f"Bar-v0 cannot be filmed: .*{REFUSED[kind]}"):
        film(agent_of(kind), tmp_path / f"film.{suffix}", "sampled", 0, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["", "float", "array", "PIL", "grown", "missing"])
def test_a_replayed_episode_is_filmed(kind: str, tmp_path: Path) -> None:
    run_experiment(Request(load_config("cartpole", [*SMALL, f"env.kwargs={{kind: {kind!r}}}"]), tmp_path / "run", []))

    def filmed() -> dict[str, Any]:
        return replay(tmp_path / "run", "0:1", tmp_path / "film.gif", trust=False, tell=lambda text: None)

    if kind == "missing":
        with pytest.raises(EnvironmentFailure, match="Bar-v0 cannot be filmed: FileNotFoundError"):
            filmed()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    else:
        assert filmed()["matches"]
        assert bars(tmp_path / "film.gif") == GROWING


def test_a_missing_file_of_the_environment_is_reported_with_its_line(tmp_path: Path) -> None:
    source = Path(pictures.__file__).read_text()
    (tmp_path / "world.py").write_text(source)
    line = next(n for n, text in enumerate(source.splitlines(), 1) if "sprites/agent.npy" in text)
    pgcli("train", "cartpole", *SMALL[1:], "env.id=world:Bar", "env.kwargs={kind: missing}", "name=bar", cwd=tmp_path)
    words = ("runs/bar/seed-0", "--episodes", 1, "--trust", "--video", "film.mp4")
    done = pgcli("eval", *words, cwd=tmp_path, code=3)
    assert "world:Bar cannot be filmed: FileNotFoundError" in done.stderr
    assert f"(world.py:{line})" in done.stderr
    assert not [*tmp_path.glob(".writing*"), *tmp_path.glob("film*")]


def test_an_unwritable_film_is_reported_for_its_folder(agent_of: Callable[[str], Agent], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("film.gif", "film.mp4"):
        with pytest.raises(RunDirectoryError, match="file"):
            film(agent_of(""), tmp_path / "file" / name, "sampled", 0, None)


def test_a_film_keeps_one_scale_for_its_frames() -> None:
    reader = FrameReader("X")
    dark = np.full((2, 2), 1e-4)
    assert reader.read(np.zeros((2, 2))).max() == 0
    assert reader.read(np.full((2, 2), 200.0)).max() == 200
    assert reader.read(dark + 1).max() == 1, "not 255: it is a dark frame of a film in [0, 255]"
    assert FrameReader("X").read(dark + 1).min() == 255, "rounding beyond 1"


@pytest.mark.parametrize(
    ("metadata", "fps"),
    [
        ({"render_fps": 12}, 12),
        ({"render_fps": "24"}, 24),
        *((odd, 30) for odd in ({}, {"render_fps": None}, {"render_fps": -3}, {"render_fps": float("nan")}, None)),
        ({"render_fps": [1]}, 30),
        ({"render_fps": 1e-9}, 0.01),
    ],
)
def test_a_film_has_a_frame_rate_for_any_declared_value(metadata: Any, fps: float, tmp_path: Path) -> None:
    assert rate(metadata) == fps
    write(iter([np.zeros((2, 2, 3), np.uint8)] * 3), FilmedEpisode(fps), tmp_path / "film.gif")
    assert (tmp_path / "film.gif").stat().st_size > 0
