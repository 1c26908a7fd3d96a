"""Runs that are killed: in a forked child of this process, which has imported everything, so that a kill costs little.

`python tests/kills.py 200` is the long sweep: so many random instants over all of CASES.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgcli.config import load_config
from pgcli.experiment.run import Request, run_experiment

SMALL = ("evaluation.episodes=3", "evaluation.every=3", "evaluation.stop_at_return=null", "checkpoint.every=2")
SEGMENTS = ("training.env_steps=null", "training.iterations=8", "rollout.steps=24", "env.num_envs=3")
EPISODES = ("training.env_steps=null", "training.iterations=8", "rollout.episodes=6", "env.num_envs=3")
MEASURED = ("diagnostics.every=2", "diagnostics.shadows=[reward_to_go+none, total+optimal]")
CASES: dict[str, tuple[str, ...]] = {
    "native episodes": ("cartpole", *SMALL, *EPISODES, *MEASURED, "env.max_episode_steps=40"),
    "segments": ("cartpole/ppo", *SMALL, *SEGMENTS, "algorithm.num_minibatches=4"),
    "reuse": ("cartpole/importance_sampling", *SMALL, *EPISODES, "algorithm.reuse=3", "env.max_episode_steps=40"),
    "a Gaussian, normalised": (
        *("pendulum/ppo", *SMALL, *SEGMENTS, "env.max_episode_steps=50", "algorithm.num_minibatches=4"),
        *("policy.normalize_obs=true", "value.normalize_returns=true"),
    ),
    "Box2D": ("lunar-lander/ppo", *SMALL, *SEGMENTS, "env.max_episode_steps=60", "algorithm.num_minibatches=4"),
    "Box2D that remembers": (
        *(
            "pendulum/ppo",
            *SMALL,
            *EPISODES,
            "env.id=BipedalWalker-v3",
            "rollout.steps=null",
            "policy.distribution=auto",
        ),
        *("env.max_episode_steps=30", "algorithm.num_minibatches=4"),
    ),
    "MuJoCo": ("inverted-pendulum/reinforce", *SMALL, *EPISODES, "env.max_episode_steps=50"),
    "memory and a mask": (
        *("cartpole/ppo", *SMALL, *SEGMENTS, "env.id=Taxi-v4", "policy.memory=lstm", "policy.backpropagation_steps=8"),
        *(
            "algorithm.num_minibatches=4",
            "algorithm.update_epochs=2",
            "env.max_episode_steps=30",
            "diagnostics.every=1",
        ),
    ),
}


def request(case: str, path: Path) -> Request:
    name, *overrides = CASES[case]
    return Request(load_config(name, overrides), path, ["kills"], resume=True)


def child(work: Callable[[], object]) -> int:
    """Fork a process that does some work; give its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            work()
            code = 0
        os._exit(code)
    return pid


def ended(pid: int, within: float | None = None) -> int | None:
    """Wait for a child and give its exit code; None if it is still there after `within` seconds."""
    stop = None if within is None else time.monotonic() + within
    while stop is not None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= stop:
            return None
        time.sleep(0.0005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(case: str, path: Path) -> None:
    """Run or resume to the end."""
    code = ended(child(lambda: run_experiment(request(case, path))))
    assert code == 0, f"{case}: exit {code}"


def digests(path: Path) -> dict[str, str]:
    """Name what the promise covers."""
    last = sorted((path / "checkpoints").glob("iteration-*.safetensors"))[-1]
    files = [path / "metrics.csv", path / "evaluations.csv", path / "episodes.csv", last]
    files += path.glob("gradients.csv")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kill_after(case: str, path: Path, seconds: float) -> bool:
    """Kill a run after so many seconds; say whether it was still running."""
    pid = child(lambda: run_experiment(request(case, path)))
    if ended(pid, seconds) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


def kill_in(case: str, path: Path, iteration: int, seconds: float) -> bool:
    """Kill a run so many seconds after an iteration is written; say whether it was still running."""
    pid, metrics = child(lambda: run_experiment(request(case, path))), path / "metrics.csv"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > iteration):
        if ended(pid, 0.002) is not None:
            return False
    time.sleep(seconds)
    if ended(pid, 0.002) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


# What the system is asked to do to files. A kill falls before the k-th call, and after it.
CALLS = (
    (os, "fsync"),
    (os, "replace"),
    (os, "write"),
    (os, "ftruncate"),
    (os, "unlink"),
    (os, "chmod"),
    (os, "mkdir"),
    (os, "open"),
)


def kill_at_call(case: str, path: Path, number: int, after: bool) -> bool:
    """Kill a run at its `number`-th call that writes; say whether it got there."""

    def work() -> None:
        count, opens = 0, os.open

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*arguments: Any, **keywords: Any) -> Any:
                nonlocal count
                if call is opens and not arguments[1] & os.O_CREAT:
                    return call(*arguments, **keywords)
                count += 1
                if count == number and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*arguments, **keywords)
                if count == number and after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return wrapper

        for module, name in CALLS:
            setattr(module, name, counted(getattr(module, name)))
        run_experiment(request(case, path))

    return ended(child(work)) == -signal.SIGKILL


def sweep(instants: int, seed: int = 0) -> None:
    """Kill runs of every case at random instants, resume them, and compare."""
    draw, kills = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        home, seconds = Path(folder), {}
        for case in CASES:
            begin = time.monotonic()
            finish(case, home / case)
            seconds[case] = time.monotonic() - begin
        while kills < instants:
            case = draw.choice(list(CASES))
            cut = home / "cut"
            while kill_after(case, cut, draw.uniform(0, seconds[case])) and draw.random() < 0.7:
                kills += 1  # and once more, in the middle of what was resumed
            finish(case, cut)
            assert digests(cut) == digests(home / case), case
            shutil.rmtree(cut)
            kills += 1
            print(f"\r{kills} kills", end="", file=sys.stderr, flush=True)
    print(f"{kills} kills over {len(CASES)} cases: every run ended with the bytes of the one that was not killed")


if __name__ == "__main__":
    sweep(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
