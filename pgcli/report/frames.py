"""Convert rendered frames to byte arrays of one size, for videos."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgcli.errors import EnvironmentFailure

Frame = NDArray[np.uint8]  # [height, width, 3], never written again
DEFAULT_FPS = 30.0  # for environments without a frame rate
SLOWEST_FPS = 0.01  # GIF counts up to 655 seconds a frame
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB and opacity
_ROUNDING = 1e-3  # blended floats may leave [0, 1] by this
_HINT = "return a uint8 array [height, width, 3] from render() where render_mode is `rgb_array`"


class FrameReader:
    """Reads the frames of one environment, with values in [0, 1] or [0, 255].

    The range is decided once per film.
    """

    def __init__(self, env_id: str) -> None:
        self._env_id, self._is_unit = env_id, True

    def read(self, rendered: Any) -> Frame:
        """Return a copy of a frame: an array or image, grey, RGB or RGBA, channels last or first.

        Drops opacity. Raises: EnvironmentFailure for other types and shapes.
        """
        if isinstance(rendered, Image.Image):
            rendered = rendered.convert("RGB")
        try:
            pixels = np.asarray(rendered)
        except Exception:  # arrays of several shapes, or not an array
            raise self._refused(f"a {type(rendered).__name__}") from None
        if pixels.dtype.kind not in "biuf":
            raise self._refused("nothing" if rendered is None else f"a {type(rendered).__name__}")
        while pixels.ndim > 3 and len(pixels) == 1:
            pixels = pixels[0]  # a list of one frame
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        elif pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
            pixels = np.moveaxis(pixels, 0, 2)
        if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or not pixels.size:
            raise self._refused(f"an array of shape {np.shape(rendered)}")
        colors = self._bytes(pixels)[:, :, :3]
        return np.array(np.broadcast_to(colors, (*colors.shape[:2], 3)))

    def _bytes(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        if pixels.dtype == np.uint8:
            return pixels
        if pixels.dtype == np.bool_:
            return pixels.astype(np.uint8) * np.uint8(255)
        low, high = float(pixels.min()), float(pixels.max())
        if not (math.isfinite(low) and math.isfinite(high)) or low < -_ROUNDING or high > 255 + _ROUNDING:
            values = f"numbers from {low:g} to {high:g}, neither in [0, 1] nor in [0, 255]"
            raise self._refused(f"a {pixels.dtype} picture with {values}")
        self._is_unit = self._is_unit and high <= 1 + _ROUNDING
        scaled = pixels * 255.0 if self._is_unit else pixels
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    def _refused(self, given: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self._env_id} cannot be filmed: it rendered {given}", _HINT)


def rate(metadata: Any) -> float:
    """Return the frames per second in an environment's metadata, or the default."""
    try:
        fps = float(metadata.get("render_fps") or DEFAULT_FPS)
    except (AttributeError, TypeError, ValueError):
        return DEFAULT_FPS
    return max(fps, SLOWEST_FPS) if 0 < fps < math.inf else DEFAULT_FPS


def of_one_size(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield the frames; scale frames of other sizes to fit the first one, on black."""
    size: tuple[int, int] | None = None  # width, height
    for frame in frames:
        height, width = frame.shape[:2]
        size = size or (width, height)
        if (width, height) == size:
            yield frame
            continue
        scale = min(size[0] / width, size[1] / height)
        fitted = Image.fromarray(frame).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.NEAREST
        )
        whole = Image.new("RGB", size)
        whole.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
        yield np.asarray(whole)
