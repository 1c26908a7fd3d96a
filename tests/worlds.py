"""Environments that violate Gymnasium's interface in one point, and a few unusual valid ones."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]

Result = tuple[Any, Any, Any, Any, Any]


class TwoWords(TypeError):
    """Cannot be created from one message, like some libraries' exceptions."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raises(error: BaseException) -> Any:
    raise error


REWARDS: dict[str, Any] = {
    "none reward": None,
    "text reward": "1.0",
    "decimal reward": Decimal(1),
    "vector reward": np.ones(3),
    "nan reward": float("nan"),
    "infinite reward": np.float32("inf"),
}
OBSERVATIONS: dict[str, Any] = {
    "wide obs": np.zeros(3, np.float32),
    "text obs": "left",
    "no obs": None,
    "nan obs": np.array([np.nan, 0], np.float32),
    "complex obs": np.zeros(2, complex),
    "far obs": np.array([0, 7], np.float32),
}
ERRORS: dict[str, BaseException] = {
    "error": RuntimeError("the motor is on fire"),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "two words": TwoWords("the motor", "heat"),
    "unspeakable": Unspeakable(),
}
FLAGS: dict[str, Any] = {"none flag": None, "text flag": "yes", "two flags": np.zeros(2, bool), "seven flag": 7}
ODD: dict[str, Any] = {"integer": 1, "array": np.array([1.0]), "fraction": Fraction(1, 1), "bool": True}


class World(gym.Env[Array, np.int64]):
    """Shows (place, t) and pays 1 for 20 steps. Its `fault` occurs in step `at`, at a reset or elsewhere."""

    def __init__(self, fault: str = "", at: int = 0, odd: str = "", length: int = 20, resets: int = 0) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.fault, self.at, self.odd, self.length, self.good_resets = fault, at, odd, length, resets
        self.steps = 0
        if fault == "no space":
            del self.action_space
        if fault == "class for space":
            self.observation_space = spaces.Box  # type: ignore[assignment]
        if fault.startswith("build "):
            raises(ERRORS[fault.removeprefix("build ")])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.place = 0, np.float32(self.np_random.uniform(-1, 1))
        obs: Any = np.array([self.place, 0], np.float32)
        self.good_resets -= 1
        if self.fault.startswith("reset ") and self.good_resets < 0:
            what = self.fault.removeprefix("reset ")
            if what == "old":
                return obs
            obs = OBSERVATIONS[what] if what in OBSERVATIONS else raises(ERRORS[what])
        return obs, {}

    def step(self, action: np.int64) -> Any:
        faulty = self.t == self.at
        self.t += 1
        self.steps += 1
        obs: Any = np.array([self.place, self.t / self.length], np.float32)
        reward = ODD.get(self.odd, 1.0)
        over: Any = {"integer": 0, "array": np.array([False])}.get(self.odd, False)
        if self.t >= self.length:
            over = {"integer": 1, "array": np.array([True])}.get(self.odd, True)
        if faulty and self.fault in ERRORS:
            raises(ERRORS[self.fault])
        if faulty and self.fault == "old step":
            return obs, reward, over, {}
        if faulty:
            obs, reward = OBSERVATIONS.get(self.fault, obs), REWARDS.get(self.fault, reward)
            over = FLAGS.get(self.fault, over)
        return obs, reward, over, False, {}

    def close(self) -> None:
        if self.fault == "close" and self.steps >= self.at:
            raise RuntimeError("the door is stuck")


class Old(World):
    """Does not accept a seed, like environments for `gym`."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class Nothing:
    """Is not an environment."""


class Room(gym.Env[Any, np.int64]):
    """Four places in a row, or a pair of them; reports a place that does not exist in step `at`."""

    def __init__(self, at: int | None = None, pair: bool = False) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Discrete(4, start=1)
        if pair:
            self.observation_space = spaces.MultiDiscrete([4, 4], start=[1, 1])
        self.action_space, self.at, self.pair = spaces.Discrete(2), at, pair

    def shown(self, place: int) -> Any:
        return np.full(2, place) if self.pair else np.int64(place)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return self.shown(1), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.shown(0 if self.t - 1 == self.at else 4), 0.0, self.t == 9, False, {}


class Masked(World):
    """Permits the actions of `mask` in every state; every info but the last has the mask."""

    def __init__(self, mask: Any = (1, 0, 1), space: Any = None, at: int | None = None, then: Any = (0, 0, 0)) -> None:
        super().__init__(length=5)
        self.mask, self.then, self.at_step = mask, then, at
        self.action_space = space or spaces.Discrete(3)

    def info(self) -> dict[str, Any]:
        mask = self.then if self.at_step is not None and self.t > self.at_step else self.mask
        return {"action_mask": tuple(map(np.array, mask)) if isinstance(mask[0], tuple | list) else np.array(mask)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, _ = super().reset(seed=seed)
        return obs, self.info()

    def step(self, action: Any) -> Any:
        *result, _ = super().step(action)
        return *result, {} if result[2] else self.info()


class Asked(World):
    """Reports its mask by a method, in an unusual type; its generator takes 32-bit seeds."""

    def action_masks(self) -> Array:
        return np.array([self.t % 2, 1, 0], np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seeds = np.random.RandomState(seed)
        return super().reset(seed=seed)


class MaskedPairs(Masked):
    """Masks the two parts of its actions."""

    def __init__(self) -> None:
        super().__init__(mask=((1, 0), (0, 1, 1)), space=spaces.MultiDiscrete([2, 3]))


class Shown(World):
    """Has its mask in the observation; it permits no action after step `at`."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.closed_at = at
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {"place": spaces.Box(-1, 1, (2,), np.float32), "action_mask": spaces.MultiBinary(3)}
        )

    def shown(self, obs: Array) -> dict[str, Array]:
        closed = self.closed_at is not None and self.t > self.closed_at
        return {"place": obs, "action_mask": np.full(3, not closed, np.int8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return self.shown(obs), info | {"action_mask": np.ones(3, np.int8)}

    def step(self, action: np.int64) -> Any:
        obs, *rest = super().step(action)
        return self.shown(obs), *rest


class Wanderer(World):
    """Changes the folder, prints, and changes process-wide settings."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        import random

        Path("elsewhere").mkdir(exist_ok=True)
        os.chdir("elsewhere")
        os.umask(0o077)
        print("hello from the constructor")
        os.write(1, b"hello from C\n")
        random.seed(0)
        np.random.seed(0)

    def step(self, action: np.int64) -> Any:
        print("step")
        return super().step(action)


class Stubborn(World):
    """Ignores its seeds."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=7)


class Mindful(World):
    """Shows how many resets it has had: a used instance is not a fresh one."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        (obs, info), self.had = super().reset(seed=seed), getattr(self, "had", 0) + 1
        return obs + np.float32(0.01 * (self.had - 1)), info


class Moody(World):
    """Draws from an unseeded generator."""

    draws: ClassVar[np.random.Generator] = np.random.default_rng()

    def step(self, action: np.int64) -> Any:
        obs, _, *rest = super().step(action)
        return obs, float(self.draws.uniform()), *rest


class Continuous(World):
    """Has actions far from ±1, and returns large numbers in one buffer."""

    def __init__(self, buffered: bool = True) -> None:
        super().__init__()
        self.action_space = spaces.Box(0, 500, (2,), np.float32)  # type: ignore[assignment]
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.buffer, self.buffered = np.zeros(2, np.float32), buffered

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return self.shown(obs), info

    def step(self, action: Any) -> Any:
        action *= 0  # it may write into what it is given
        obs, *rest = super().step(action)
        return self.shown(obs), *rest

    def shown(self, obs: Array) -> Array:
        self.buffer[:] = 3000 * obs
        return self.buffer if self.buffered else self.buffer.copy()


def digest(actions: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(actions).tobytes()).hexdigest()[:16]


class Tracing(World):
    """Its fault in step `at` lists all actions so far."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.end, self.action_space = at, spaces.Box(-1, 1, (2,), np.float32)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.given = list[Array]()
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.given.append(action.copy())
        if self.t == self.end:
            raise RuntimeError(digest(np.array(self.given)))
        return super().step(action)


class Fragile(World):
    """Fails in one episode of a hundred, until it is fixed."""

    def step(self, action: np.int64) -> Any:
        if self.t == 7 and self.place > 0.98 and "MENDED" not in os.environ:
            raise RuntimeError("the floor gives way")
        return super().step(action)


class Leaving(World):
    """Ends the whole process in step 30 of its instance, by exit or by a signal, until it is fixed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def step(self, action: np.int64) -> Any:
        if self.steps == 30 and "MENDED" not in os.environ:
            os._exit(7) if self.how == "_exit" else os.kill(os.getpid(), signal.Signals[self.how])
        return super().step(action)


class Threaded(World):
    """Starts a thread that does not end."""

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=time.sleep, args=(1000,)).start()


class Meddling(Wanderer):
    """Changes process-wide settings in every step."""

    def meddle(self) -> None:
        import locale
        import warnings

        import torch

        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        np.random.seed(3)
        np.seterr(all="raise")
        np.set_printoptions(precision=1)
        warnings.simplefilter("error")
        locale.setlocale(locale.LC_ALL, "C")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.meddle()
        return super().reset(seed=seed)

    def step(self, action: np.int64) -> Any:
        self.meddle()
        return super().step(action)


class Stuck(World):
    """Prints that it hangs, then hangs, in its constructor or in step 30 of its instance."""

    def __init__(self, in_step: bool = False) -> None:
        super().__init__()
        self.in_step = in_step
        self.hang(not in_step)

    def step(self, action: np.int64) -> Any:
        self.hang(self.in_step and self.steps == 30)
        return super().step(action)

    def hang(self, now: bool) -> None:
        if now:
            Path("hanging").touch()
        while now:
            time.sleep(0.01)


class Paying(World):
    """Pays the same for every step, or twice that for action 1."""

    def __init__(self, pay: float, length: int = 20, same: bool = False) -> None:
        super().__init__(length=length)
        self.pay, self.same = pay, same

    def step(self, action: np.int64) -> Any:
        obs, _, *rest = super().step(action)
        return obs, self.pay * (1 if self.same or action != 1 else 2), *rest


class Slow(World):
    """Writes a marker file once its episodes are long, then steps slowly."""

    def step(self, action: np.int64) -> Any:
        if self.steps > 2000:
            Path("stepping").touch()
            time.sleep(0.01)
        return super().step(action)


class Doubled(gym.RewardWrapper[Any, Any]):
    """Multiplies rewards; a wrapper from a module."""

    def __init__(self, env: gym.Env[Any, Any], factor: float = 2.0) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> Any:
        return self.factor * reward


def thousandfold(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return Doubled(env, 1000)


def halved(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return Doubled(env, 0.5)


def useless(env: gym.Env[Any, Any]) -> None:
    return None


gym.register("World-v0", entry_point="worlds:World", max_episode_steps=1000)
gym.register("World-v2", entry_point="worlds:World", max_episode_steps=1000)
for name in ("Nothing", "Old", "Room", "Masked", "Wanderer", "Stubborn", "Mindful", "Moody", "Continuous"):
    gym.register(f"{name}-v0", entry_point=f"worlds:{name}", max_episode_steps=1000)
gym.register("Endless-v0", entry_point="worlds:World")


class Raising(World):
    """Raises an exception with control characters and a lone surrogate."""

    def step(self, action: np.int64) -> Any:
        if self.steps == 2:
            raise type("\x1b]0;X\x07Error", (ValueError,), {})("\x1b]0;X\x07 \ud800 \0 \u202e")
        return super().step(action)


class Sharing(World):
    """Changes numeric or other process-wide settings, in its constructor or in its third step."""

    def __init__(self, what: str = "", in_step: bool = False) -> None:
        super().__init__()
        self.what, self.in_step = what, in_step
        if not in_step:
            self.change()

    def step(self, action: np.int64) -> Any:
        if self.in_step and self.steps == 2:
            self.change()
        return super().step(action)

    def change(self) -> None:
        import ctypes
        import sys
        import warnings

        import torch

        if self.what == "numbers":
            torch.set_float32_matmul_precision("medium")
            torch.set_default_device("meta")
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(True)
            torch.set_grad_enabled(False)
            torch.set_autocast_enabled("cpu", True)
            torch.set_num_threads(3)
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a property of the module
            ctypes.CDLL(None).fesetround({"x86_64": 0x800}.get(os.uname().machine, 0x400000))  # upwards
            np.seterr(all="raise")
        elif self.what == "process":
            elsewhere = Path(os.environ["ELSEWHERE"])
            os.chdir(elsewhere)
            sys.setrecursionlimit(150)
            sys.path[:] = []
            warnings.simplefilter("error")
            os.umask(0o777)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            sys.stdout = sys.stderr = None
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        elif self.what == "descriptors":
            os.closerange(0, 3)


class Handling(World):
    """Installs a SIGINT handler in every step, and steps slowly."""

    def __init__(self, how: str) -> None:
        super().__init__()
        handlers = {"swallow": lambda *_: None, "exit": lambda *_: raises(SystemExit(0))}
        self.handler: Any = handlers.get(how, signal.default_int_handler)

    def step(self, action: np.int64) -> Any:
        signal.signal(signal.SIGINT, self.handler)
        time.sleep(0.002)
        return super().step(action)


class Printing(World):
    """Writes into descriptors 1 and 2, as simulators in C do."""

    def step(self, action: np.int64) -> Any:
        for descriptor in (1, 2):
            os.write(descriptor, b"noise\n")
        return super().step(action)
