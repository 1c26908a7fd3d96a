"""Kill runs at random instants. Runs are forks of this process, so that a kill costs little.

`python tests/kills.py 200 soak.json` is a part of the long sweep: 200 kills over all cases, which are added to those
that soak.json counts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pgcli.config import load_config, override
from pgcli.experiment.jobs import run_all
from pgcli.experiment.run import Request, run_experiment
from pgcli.report.logs import logged
from pgcli.runs.lock import is_held

SMALL = ("evaluation.episodes=3", "evaluation.every=3", "evaluation.stop_at_return=null", "checkpoint.every=2")
SEGMENTS = ("training.env_steps=null", "training.iterations=8", "rollout.steps=24", "env.num_envs=3")
MORE = ("training.env_steps=null", "training.iterations=8", "rollout.episodes=6")
EPISODES = (*MORE, "env.num_envs=3")
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


WORKERS = ("sampling.workers=2", "env.chunk_size=3")
SLOW: dict[str, tuple[str, ...]] = {  # they start processes, or are variants of the cases above
    "workers": ("cartpole", *SMALL, *MORE, *WORKERS, "env.max_episode_steps=40"),
    "segments of workers": ("cartpole/ppo", *SMALL, *SEGMENTS, *WORKERS, "env.num_envs=6", "env.vectorization=sync"),
    "vector segments": ("cartpole/ppo", *SMALL, *SEGMENTS, "env.vectorization=native", "env.num_envs=8"),
    "jobs": ("cartpole", *SMALL, *EPISODES, "env.max_episode_steps=40"),
    "resume --which": ("cartpole/ppo", *SMALL, *SEGMENTS, "checkpoint.keep=9"),
    "--overwrite": ("cartpole", *SMALL, *EPISODES, "env.max_episode_steps=40"),
}
if find_spec("ray"):
    SLOW["Ray"] = ("cartpole", *SMALL, *MORE, *WORKERS, "sampling.backend=ray", "env.max_episode_steps=40")


def request(case: str, path: Path) -> Request:
    name, *overrides = (CASES | SLOW)[case]
    return Request(load_config(name, overrides), path, ["kills"], resume=True)


def start(case: str, path: Path) -> None:
    """Run the work that is killed."""
    one = request(case, path)
    if case == "jobs":
        await_ends(path)
        run_all(pair(one), 2, lambda record, number: None, logged)
    elif case == "resume --which":
        run_experiment(replace(one, which="2"))
    elif case == "--overwrite":
        run_experiment(replace(one, resume=False, overwrite=True))
    else:
        run_experiment(one)


def await_ends(path: Path) -> None:
    """Wait until the processes of jobs whose parent was killed have saved their runs."""
    while any(is_held(run) for run in path.glob("seed-*")):
        time.sleep(0.01)


def pair(one: Request) -> list[Request]:
    """Return the requests of two seeds, in folders below that of one."""
    return [replace(one, config=override(one.config, [f"seed={n}"]), path=one.path / f"seed-{n}") for n in (0, 1)]


def finish(case: str, path: Path) -> None:
    """Run or resume to the end."""

    def work() -> None:
        await_ends(path)
        one = request(case, path)
        for each in pair(one) if case == "jobs" else [one]:
            run_experiment(each)

    code = ended(child(work if case != "--overwrite" or not path.exists() else lambda: start(case, path)))
    assert code == 0, f"{case}: exit {code}"


def child(work: Callable[[], object]) -> int:
    """Fork a process that does some work; return its pid."""
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
    """Wait for a child and return its exit code; None if it still runs after `within` seconds."""
    stop = None if within is None else time.monotonic() + within
    while stop is not None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= stop:
            return None
        time.sleep(0.0005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digests(path: Path) -> dict[str, str]:
    """Return the names that the promise covers."""
    if not (path / "checkpoints").is_dir():  # of several runs
        return {f"{run.name}/{name}": x for run in path.iterdir() for name, x in digests(run).items()}
    last = sorted((path / "checkpoints").glob("iteration-*.safetensors"))[-1]
    files = [path / "metrics.csv", path / "evaluations.csv", path / "episodes.csv", last]
    files += path.glob("gradients.csv")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kill_after(case: str, path: Path, seconds: float) -> bool:
    """Kill a run after a delay in seconds; return whether it was still running."""
    pid = child(lambda: start(case, path))
    if ended(pid, seconds) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


def kill_in(case: str, path: Path, iteration: int, seconds: float) -> bool:
    """Kill a run a delay after an iteration is written; return whether it was still running."""
    pid, metrics = child(lambda: run_experiment(request(case, path))), path / "metrics.csv"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > iteration):
        if ended(pid, 0.002) is not None:
            return False
    time.sleep(seconds)
    if ended(pid, 0.002) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


# Calls that change files. A kill falls before or after the k-th call.
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
    """Kill a run at its `number`-th call that writes; return whether it made this call."""
    return ended(child(lambda: counting(lambda: start(case, path), number, after))) == -signal.SIGKILL


def counting(work: Callable[[], object], number: int, after: bool) -> int:
    """Do some work and kill this process at the `number`-th call that writes; otherwise return the number of calls."""
    count, opens = 0, os.open

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            if call is opens and not arguments[1] & os.O_CREAT:
                return call(*arguments, **keywords)
            count += 1
            if count == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **keywords)
            finally:  # also if it fails, as unlink does without a file
                if count == number and after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapper

    for module, name in CALLS:
        setattr(module, name, counted(getattr(module, name)))
    work()
    return count


def commit() -> str:
    """Return the version of the code, with `+` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def prepare(case: str, whole: Path, cut: Path) -> dict[str, str]:
    """Prepare the folder `cut` of a case; return the digests that must not be lost."""
    if case == "resume --which":
        shutil.copytree(whole, cut)
    elif case == "--overwrite":
        other = request(case, cut)
        assert ended(child(lambda: run_experiment(replace(other, config=override(other.config, ["seed=1"]))))) == 0
        return digests(cut)
    return {}


def measure(case: str, path: Path) -> tuple[float, int]:
    """Run a case; return its time in seconds and its number of calls that write."""
    calls, begin = mmap.mmap(-1, 8), time.monotonic()  # shared with the child

    def work() -> None:
        calls[:] = counting(lambda: start(case, path), 0, after=False).to_bytes(8, "little")

    assert ended(child(work)) == 0, case
    return time.monotonic() - begin, int.from_bytes(calls[:], "little")


def sweep(instants: int, state: Path, seconds: float) -> None:
    """Kill runs of every case, resume them, compare, and add the kills to the state; each case gets the same time.

    Half of the kills fall at a random time, and half before or after a random call that writes.
    """
    counts: dict[str, dict[str, int]] = json.loads(state.read_text()) if state.exists() else {}
    done = counts.setdefault(commit(), {})
    before = sum(sum(one.values()) for one in counts.values())
    draw, kills, names, stop = random.Random(before), 0, [*CASES, *SLOW], time.monotonic() + seconds
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a kill loses nothing that was written
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home, costs = Path(folder), dict[str, tuple[float, int]]()
        tempfile.tempdir = folder  # killed processes leave folders for their sockets
        while kills < instants and time.monotonic() < stop:
            case = min(names, key=lambda name: (done.get(name, 0) * costs[name][0] if name in costs else 0, name))
            if case not in costs:
                finish(case, home / case)
                prepare(case, home / case, home / "timed")
                costs[case] = measure(case, home / "timed")
                remove(home, "timed")
            cut = home / "cut"
            kept, (longest, calls), killed = prepare(case, home / case, cut), costs[case], True
            while killed:
                if draw.random() < 0.5:
                    killed = kill_after(case, cut, draw.uniform(0, longest))
                else:
                    killed = kill_at_call(case, cut, draw.randint(1, calls), draw.random() < 0.5)
                kills, done[case] = kills + killed, done.get(case, 0) + killed
                if draw.random() < 0.2:
                    break  # otherwise once more, in the middle of what was resumed
            finish(case, cut)
            assert digests(cut) == digests(home / case), case
            asides = [digests(path) for path in home.glob("cut~*") if any(path.glob("checkpoints/iteration-*"))]
            assert not kept or any(kept == one for one in asides), f"{case}: the old run is lost"
            remove(home, "cut")
            state.write_text(json.dumps(counts, indent=1) + "\n")
            print(f"\r{kills} kills", end="", file=sys.stderr, flush=True)
    total, least = before + kills, min(sum(one.get(name, 0) for one in counts.values()) for name in names)
    print(
        f"{kills} kills; {total} in all, at least {least} in each of {len(names)} cases: the bytes are always the same"
    )


def remove(home: Path, name: str) -> None:
    for path in (home / name, *home.glob(f"{name}~*")):
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("state", type=Path, nargs="?", default=Path("soak.json"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after this time, with a part of the kills")
    words = parser.parse_args()
    sweep(words.kills, words.state, words.seconds)
