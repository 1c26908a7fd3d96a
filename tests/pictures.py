"""An environment with unusual and with invalid images; also copied as a user's file."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


class Bar(gym.Env[Array, np.int64]):
    """A bar that grows by 5 columns per step, drawn into one buffer; `kind` selects the oddity."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, render_mode: str | None = None, kind: str = "") -> None:
        self.observation_space, self.action_space = spaces.Box(0, 10, (1,), np.float32), spaces.Discrete(2)
        self.render_mode, self.kind, self.t = render_mode, kind, 0
        self.canvas = np.zeros((12, 50, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.array([self.t], np.float32), {}

    def step(self, action: np.int64) -> tuple[Array, Any, Any, bool, dict[str, Any]]:
        self.t += 1
        reward, over = PAYS.get(self.kind, lambda: 1.0)(), self.t == 8
        flag = np.array([over]) if self.kind == "flag" else over
        return np.array([self.t], np.float32), reward, flag, False, {}

    def render(self) -> Any:
        self.canvas[:] = 0
        self.canvas[:, : 5 * self.t] = 200
        return DRAWS.get(self.kind, lambda canvas, t: canvas)(self.canvas, self.t)


def missing(canvas: Array, t: int) -> Array:
    if t == 3:
        np.load("sprites/agent.npy")
    return canvas


def grown(canvas: Array, t: int) -> Array:
    return canvas if t < 4 else np.ascontiguousarray(canvas.repeat(2, 0).repeat(2, 1))


PAYS: dict[str, Any] = {
    "array": lambda: np.array([1.0]),
    "number": lambda: np.float32(1),
    "zero": lambda: np.array(1),
    "flag": int,
}
DRAWS: dict[str, Any] = {
    "float": lambda canvas, t: canvas / 255,
    "float32": lambda canvas, t: (canvas / 255).astype(np.float32),
    "float 255": lambda canvas, t: canvas.astype(float),
    "int64": lambda canvas, t: canvas.astype(int),
    "RGBA": lambda canvas, t: np.concatenate((canvas, np.full((12, 50, 1), 255, np.uint8)), 2),
    "float RGBA": lambda canvas, t: np.concatenate((canvas / 255, np.ones((12, 50, 1))), 2),
    "grey": lambda canvas, t: canvas[:, :, 0],
    "grey axis": lambda canvas, t: canvas[:, :, :1],
    "bool": lambda canvas, t: canvas[:, :, 0] > 0,
    "CHW": lambda canvas, t: canvas.transpose(2, 0, 1),
    "PIL": lambda canvas, t: Image.fromarray(canvas),
    "PIL RGBA": lambda canvas, t: Image.fromarray(canvas).convert("RGBA"),
    "PIL palette": lambda canvas, t: Image.fromarray(canvas).quantize(2),
    "list": lambda canvas, t: [canvas],
    "rows": lambda canvas, t: canvas.tolist(),
    "torch": lambda canvas, t: __import__("torch").from_numpy(canvas),
    "grown": grown,
    "missing": missing,
    "none": lambda canvas, t: None,
    "text": lambda canvas, t: "a picture",
    "object": lambda canvas, t: object(),
    "negative": lambda canvas, t: canvas / 100 - 1,
    "nan": lambda canvas, t: canvas * float("nan"),
    "large": lambda canvas, t: canvas.astype(np.uint16) * 100,
    "two channels": lambda canvas, t: canvas[:, :, :2],
    "four axes": lambda canvas, t: np.stack((canvas, canvas)),
    "empty": lambda canvas, t: canvas[:0],
    "raises": lambda canvas, t: 1 / 0,
}
