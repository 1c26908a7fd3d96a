"""A film of one episode, written frame by frame at the environment's own rate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.GifImagePlugin import getdata, getheader

from pgcli.errors import EnvironmentFailure, PgcliError, UsageError
from pgcli.loading import Agent
from pgcli.policies.observations import Layout
from pgcli.policies.policy import Mode
from pgcli.randomness import Purpose, derived_seed, generator
from pgcli.runs.files import storage
from pgcli.sampling.examination import examine, make
from pgcli.sampling.faults import is_fault, told

Frame = NDArray[np.uint8]  # [height, width, 3]
DEFAULT_FPS = 30.0  # for environments that do not say
GIF_TICK = 100  # per second: GIF counts in hundredths
GIF_SHORTEST = 2  # ticks; browsers slow anything faster down to ten frames a second


@dataclass
class Episode:
    """The filmed episode; its return and length are known once its frames are taken."""

    fps: float = DEFAULT_FPS
    episode_return: float = 0.0
    length: int = 0


def film(agent: Agent, path: Path, mode: Mode, seed: int, horizon: int | None) -> Episode:
    """Play one episode, from a seed that neither training nor evaluation uses, into a .gif or .mp4.

    Raises: UsageError for another suffix, PgcliError for a missing ffmpeg, EnvironmentFailure for an environment
    that gives no pictures.
    """
    writers = {".gif": _write_gif, ".mp4": _write_mp4}
    if path.suffix.lower() not in writers:
        raise UsageError(f"{path}: a video is a .gif or an .mp4")
    unfinished = path.with_name(f".writing-{path.name}")
    episode = Episode()
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writers[path.suffix.lower()](_frames(agent, mode, seed, horizon, episode), episode, unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return episode


def _frames(agent: Agent, mode: Mode, seed: int, horizon: int | None, episode: Episode) -> Iterator[Frame]:
    """Play the episode and give its frames, the one after the reset first."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame must not look for a screen
    config = agent.config.env
    random = generator(seed, Purpose.VIDEO)
    actor, layout = agent.policy.actor(mode), agent.policy.encoder.layout
    try:
        with closing(make(config, render_mode="rgb_array")) as env:
            episode.fps = float(env.metadata.get("render_fps") or DEFAULT_FPS)
            layout = Layout(env.observation_space)
            obs, _ = env.reset(seed=examine(config).seed(derived_seed(seed, Purpose.VIDEO)))
            yield _picture(env.render(), config.id)
            over, memory = False, actor.start(1)
            while not over and episode.length != horizon:
                drawn, memory = actor.respond(layout.pack(obs)[None], actor.noise(random, 1, 1)[0], memory)
                obs, reward, terminated, truncated, _ = env.step(actor.for_environment(drawn)[0])
                over = bool(terminated or truncated)
                episode.episode_return += float(reward)
                episode.length += 1
                yield _picture(env.render(), config.id)
    except OSError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        raise EnvironmentFailure(f"{config.id} cannot be filmed: {told(error)}") from error


def _picture(rendered: Any, env_id: str) -> Frame:  # noqa: ANN401 - whatever the environment renders
    if not isinstance(rendered, np.ndarray) or rendered.ndim != 3 or rendered.shape[2] != 3:
        raise EnvironmentFailure(f"{env_id} renders no pictures as `rgb_array`")
    return rendered.astype(np.uint8, copy=False)


def _write_gif(frames: Iterator[Frame], episode: Episode, path: Path) -> None:
    """Write each frame as the box that changed, with a palette of its own; only one frame is held."""
    with path.open("wb") as file:
        previous: Image.Image | None = None
        for ticks, frame in _timed(frames, episode):
            picture = Image.fromarray(frame)
            if previous is None:
                first = picture.quantize(256, dither=Image.Dither.NONE)
                file.writelines(getheader(first, info={"loop": 0})[0])
                file.writelines(getdata(first, duration=1000 * ticks // GIF_TICK))
            else:
                box = ImageChops.difference(previous, picture).getbbox() or (0, 0, 1, 1)
                part = picture.crop(box).quantize(256, dither=Image.Dither.NONE)
                duration = 1000 * ticks // GIF_TICK
                file.writelines(getdata(part, offset=box[:2], duration=duration, include_color_table=True))
            previous = picture
        file.write(b";")


def _timed(frames: Iterator[Frame], episode: Episode) -> Iterator[tuple[int, Frame]]:
    """Give each frame its duration in ticks, leaving out what would be too short to be shown."""
    shown: tuple[int, Frame] | None = None
    for number, frame in enumerate(frames):
        start = round(number * GIF_TICK / episode.fps)
        if shown is None:
            shown = (start, frame)
        elif start - shown[0] >= GIF_SHORTEST:
            yield start - shown[0], shown[1]
            shown = (start, frame)
    if shown is not None:
        yield GIF_TICK, shown[1]  # the last picture stays for a second


def _write_mp4(frames: Iterator[Frame], episode: Episode, path: Path) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise PgcliError("an .mp4 needs ffmpeg", 'pip install "pgcli[video]", or write a .gif') from None
    first = next(frames)
    height, width = first.shape[:2]
    # a macro block of 2 keeps the size: H.264 wants even sides, no more
    writer = imageio_ffmpeg.write_frames(
        str(path.with_suffix(".mp4")), (width, height), fps=episode.fps, macro_block_size=2, quality=8
    )
    writer.send(None)
    writer.send(np.ascontiguousarray(first))
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
