"""Film one episode, frame by frame, at the environment's frame rate."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageChops
from PIL.GifImagePlugin import getdata, getheader

from pgcli.config.choices import Mode
from pgcli.config.schema import EnvConfig
from pgcli.environments.checks import check_environment
from pgcli.environments.failures import InvalidOutput, describe, is_user_error
from pgcli.environments.outputs import read_flag, read_reward
from pgcli.environments.single import make_environment
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.experiment.load import Agent
from pgcli.policies.policy import ActingState
from pgcli.report.frames import DEFAULT_FPS, Frame, FrameReader, of_one_size, rate
from pgcli.runs.files import TEMPORARY, make_folder, naming, storage
from pgcli.seeding import Purpose, derived_seed, generator
from pgcli.system.packages import install_command

GIF_TICK = 100  # GIF counts in hundredths of a second
GIF_SHORTEST = 2  # ticks; browsers show faster films at ten frames per second


@dataclass
class FilmedEpisode:
    """The filmed episode; return and length are known after the last frame."""

    fps: float = DEFAULT_FPS
    episode_return: float = 0.0
    length: int = 0


def film(agent: Agent, path: Path, mode: Mode, seed: int, horizon: int | None) -> FilmedEpisode:
    """Film one episode as .gif or .mp4, with a seed that neither training nor evaluation uses.

    Raises: UsageError for another suffix, PgcliError without ffmpeg, EnvironmentFailure if the environment renders
        no frames.
    """
    actor, layout = agent.policy.actor(mode), agent.policy.encoder.layout
    acting = ActingState(actor, generator(seed, Purpose.VIDEO), 1)

    def choose(obs: Any) -> Any:
        return actor.for_environment(acting.act(layout.pack(obs)[None]))[0]

    episode = FilmedEpisode()
    write(
        played(agent.config.evaluation_env, derived_seed(seed, Purpose.VIDEO), choose, horizon, episode), episode, path
    )
    return episode


def check_name(path: Path) -> None:
    """Raise UsageError unless `path` has the suffix of a video."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"{path}: unsupported video format", "use .gif or .mp4")


def write(frames: Iterator[Frame], episode: FilmedEpisode, path: Path) -> None:
    """Write frames as .gif or .mp4, atomically. The first frame sets `episode.fps`.

    Raises: UsageError for another suffix, PgcliError without ffmpeg, and the errors of `frames`.
    """
    check_name(path)
    suffix = path.suffix.lower()  # ffmpeg reads the format from it
    writer = _write_gif if suffix == ".gif" else _write_mp4
    with storage(path):
        make_folder(path.parent)
        with naming(path), TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
            unfinished = Path(folder) / f"film{suffix}"
            writer(of_one_size(frames), episode, unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)


def played(
    config: EnvConfig, seed: int, choose: Callable[[Any], Any], horizon: int | None, episode: FilmedEpisode
) -> Iterator[Frame]:
    """Play the episode of a derived reset seed and yield its frames, starting after the reset.

    Args: choose: returns an action for an observation. Raises: EnvironmentFailure.
    """
    reader = FrameReader(config.id)
    with drawing(config), closing(make_environment(config, render_mode="rgb_array")) as env:
        episode.fps = rate(env.metadata)
        obs, _ = env.reset(seed=check_environment(config).seed(seed))
        yield reader.read(env.render())
        over = False
        while not over and episode.length != horizon:
            obs, reward, terminated, truncated, _ = env.step(choose(obs))
            over = read_flag(terminated, "terminated") | read_flag(truncated, "truncated")
            episode.episode_return += read_reward(reward)
            episode.length += 1
            yield reader.read(env.render())


@contextmanager
def drawing(config: EnvConfig) -> Iterator[None]:
    """Convert exceptions while rendering to EnvironmentFailure.

    Run pygame without a screen.

    Errors of the output file are raised outside.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        yield
    except BaseException as error:
        if not is_user_error(error):
            raise
        what = f"it returned {error}" if isinstance(error, InvalidOutput) else describe(error)
        raise EnvironmentFailure(f"{config.id} cannot be filmed: {what}") from error


def _write_gif(frames: Iterator[Frame], episode: FilmedEpisode, path: Path) -> None:
    """Write the changed box of each frame, with its own palette.

    Keeps only one frame in memory; `Image.save(save_all=True)` would keep all of them.
    """
    with path.open("wb") as file:
        previous: Image.Image | None = None
        for ticks, frame in _timed(frames, episode):
            shown = Image.fromarray(frame)
            if previous is None:
                first = shown.quantize(256, dither=Image.Dither.NONE)
                file.writelines(getheader(first, info={"loop": 0, "comment": b"pgcli"})[0])
                file.writelines(getdata(first, duration=1000 * ticks // GIF_TICK))
            else:
                box = ImageChops.difference(previous, shown).getbbox() or (0, 0, 1, 1)
                part = shown.crop(box).quantize(256, dither=Image.Dither.NONE)
                duration = 1000 * ticks // GIF_TICK
                file.writelines(getdata(part, offset=box[:2], duration=duration, include_color_table=True))
            previous = shown
        file.write(b";")


def _timed(frames: Iterator[Frame], episode: FilmedEpisode) -> Iterator[tuple[int, Frame]]:
    """Yield each frame with its duration in ticks; skip frames that are too short to show."""
    shown: tuple[int, Frame] | None = None
    for number, frame in enumerate(frames):
        start = round(number * GIF_TICK / episode.fps)
        if shown is None:
            shown = (start, frame)
        elif start - shown[0] >= GIF_SHORTEST:
            yield start - shown[0], shown[1]
            shown = (start, frame)
    if shown is not None:
        yield GIF_TICK, shown[1]  # the last frame stays for a second


def _write_mp4(frames: Iterator[Frame], episode: FilmedEpisode, path: Path) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UsageError("an .mp4 needs ffmpeg", f"{install_command('video')}, or write a .gif") from None
    first = next(frames)
    height, width = first.shape[:2]
    # a macro block of 2 keeps the size: H.264 needs even sides only
    frame_writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=episode.fps,
        macro_block_size=2,
        quality=8,
        output_params=["-metadata", "comment=pgcli"],
    )
    with closing(frame_writer) as writer:  # ends ffmpeg, also if a frame raises
        writer.send(None)
        for frame in chain((first,), frames):
            try:
                writer.send(np.ascontiguousarray(frame))
            except OSError:  # its text is the whole output of ffmpeg
                break
    if not path.exists() or b"moov" not in path.read_bytes()[-(2**22) :]:  # ffmpeg writes this index last
        raise OSError(errno.EIO, "ffmpeg failed to complete the video")
