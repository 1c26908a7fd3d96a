"""Worker processes: the same bytes as in this process, even if workers die or hang."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import Array, Counting, config, is_running
from kills import CASES

from pgcli.config import load_config
from pgcli.errors import EnvironmentFailure, Interrupted
from pgcli.experiment.load import load
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.evaluate import assess
from pgcli.policies.policy import Policy
from pgcli.records import Notice, Record
from pgcli.runs import checkpoints
from pgcli.sampling import process_pool as workers
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import build_policy
from pgcli.system.processes import Check

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


class Troubled(Counting):
    """In a worker: is killed, stopped or ended after `after` steps; once if `once` names a file."""

    steps = 0

    def __init__(self, trouble: str, once: str = "", after: int = 20) -> None:
        super().__init__()
        self.trouble, self.once, self.after = trouble, once, after

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        Troubled.steps += 1
        if parent_process() and Troubled.steps >= self.after and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            match self.trouble:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "exit":
                    os._exit(7)
        return super().step(action)


gym.register("Troubled-v0", entry_point="test_workers:Troubled")


class Personal(Troubled):
    """Observes its process id, so it cannot be restored in another process."""

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        return (obs + np.float32(os.getpid() % 9973)).astype(np.float32), *rest  # type: ignore[return-value]


gym.register("Personal-v0", entry_point="test_workers:Personal")

SHORT = ("evaluation.episodes=3", "evaluation.every=2", "evaluation.stop_at_return=null", "training.env_steps=null")


def run(path: Path, name: str, *overrides: str, resume: bool = False, **how: Any) -> list[Record]:
    shown: list[Record] = []
    run_experiment(Request(load_config(name, list(overrides)), path, [], resume), Context(shown.append, **how))
    return shown


def digests(path: Path) -> dict[str, Any]:
    last = sorted((path / "checkpoints").glob("iteration-*.safetensors"))[-1]
    found: dict[str, Any] = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in ("metrics.csv", "evaluations.csv", "episodes.csv")
    }
    state = checkpoints.load(last)
    return found | {name: (str(x.dtype), x.numpy().tobytes()) for name, x in state.tensors.items()}


THREE = ("env.chunk_size=2", "training.iterations=3")


def three_chunks(*words: str) -> list[str]:
    """Add three chunks to overrides. Of whole episodes, `env.num_envs` would have no effect."""
    others = [word for word in words if not word.startswith("env.num_envs=")]
    segments = any(word.startswith("rollout.steps=") and word != "rollout.steps=null" for word in words)
    return [*others, *THREE, *(["env.num_envs=6"] if segments else [])]


@pytest.mark.parametrize(
    "case", ["native episodes", "segments", "reuse", "a Gaussian, normalised", "memory and a mask"]
)
def test_two_workers_give_the_bytes_of_this_process(case: str, tmp_path: Path) -> None:
    name, *overrides = CASES[case]
    words = three_chunks(*overrides, *(["algorithm.num_minibatches=1"] if "segments" in case else []))
    run(tmp_path / "0", name, *words)
    run(tmp_path / "2", name, *words, "sampling.workers=2")
    assert digests(tmp_path / "2") == digests(tmp_path / "0")


def test_groups_in_one_worker_and_one_chunk_for_three_with_a_notice(tmp_path: Path) -> None:
    overrides = (*SHORT, "training.iterations=2", "env.max_episode_steps=30")
    run(tmp_path / "0", "cartpole/grpo", *overrides)
    run(tmp_path / "1", "cartpole/grpo", *overrides, "sampling.workers=1")
    shown = run(tmp_path / "3", "cartpole/grpo", *overrides, "sampling.workers=3", "env.num_envs=64")
    assert digests(tmp_path / "1") == digests(tmp_path / "0")
    notices = [record.text for record in shown if isinstance(record, Notice)]
    assert "3 workers share 1 chunks; a smaller `env.chunk_size` gives more chunks" in notices


def troubled(trouble: str, once: str, *more: str) -> tuple[str, ...]:
    kwargs = f"env.kwargs={{trouble: {trouble}, once: '{once}', after: {70 if SEGMENTS[1] in more else 20}}}"
    return ("cartpole", "env.id=test_workers:Troubled-v0", kwargs, *three_chunks(*SHORT, *more))


EPISODES = ("rollout.episodes=6",)
SEGMENTS = ("rollout.episodes=null", "rollout.steps=9", "algorithm.baseline=value", "algorithm.returns=lambda_return")


@pytest.mark.parametrize(
    ("trouble", "rollout"),
    [
        pytest.param("kill", SEGMENTS, id="kill-segments"),
        pytest.param("stop", EPISODES, id="stop-episodes"),
        pytest.param("kill", EPISODES, id="kill-episodes", marks=pytest.mark.slow("each of the two is above")),
        pytest.param("stop", SEGMENTS, id="stop-segments", marks=pytest.mark.slow("each of the two is above")),
    ],
)
def test_a_worker_that_dies_or_hangs_is_replaced_without_effect(
    trouble: str, rollout: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    once.touch()
    run(tmp_path / "0", *troubled(trouble, str(once), *rollout))
    once.unlink()
    if trouble == "stop":
        monkeypatch.setattr(workers, "HANG_SECONDS", 3.0)
    run(tmp_path / "2", *troubled(trouble, str(once), *rollout, "sampling.workers=2"))
    assert once.exists()
    assert digests(tmp_path / "2") == digests(tmp_path / "0")


def test_workers_measure_a_policy_like_this_process_even_if_one_is_killed(tmp_path: Path) -> None:
    once = tmp_path / "once"
    run(tmp_path / "run", *troubled("kill", str(once), *EPISODES))
    assert not once.exists()
    here, there = (
        assess(load(tmp_path / "run", trust=True), 12, "sampled", 1.0, None, 0, workers) for workers in (0, 2)
    )
    assert once.exists()
    assert there == here


def test_a_run_with_environments_lost_in_a_new_worker_is_marked(tmp_path: Path) -> None:
    once = tmp_path / "once"
    words = troubled("kill", str(once), *SEGMENTS, "sampling.workers=2")
    told = run(tmp_path / "run", *(word.replace("Troubled-v0", "Personal-v0") for word in words))
    assert once.exists()
    assert any(isinstance(one, Notice) and "could not be restored in a new worker" in one.text for one in told)
    assert json.loads((tmp_path / "run/run.json").read_text())["exact"] is False


def test_a_chunk_whose_worker_dies_three_times_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match=r"worker process of chunk \d exited with code 7, 3 times"):
        run(tmp_path / "run", *troubled("exit", "", *EPISODES, "sampling.workers=1"))


def test_a_fault_in_a_worker_is_reported_as_in_this_process(tmp_path: Path) -> None:
    faults = []
    for count in (0, 2):
        with pytest.raises(EnvironmentFailure) as caught:
            run(
                tmp_path / str(count),
                *(
                    "cartpole",
                    "env.id=helpers:Counting-v0",
                    "env.kwargs={fault: inf reward, at: 3}",
                    *three_chunks(*SHORT),
                ),
                *("rollout.episodes=6", f"sampling.workers={count}"),
            )
        fault = caught.value
        faults.append((fault.message.replace(f"/{count}/", "/"), fault.hint, fault.seed, fault.reproduction))
    assert "non-finite reward" in faults[0][0]
    assert faults[0][3]
    assert [str(x).replace("/2", "/0") for x in faults[1]] == [str(x).replace("/2", "/0") for x in faults[0]]


def test_a_run_is_resumed_with_another_number_of_workers(tmp_path: Path) -> None:
    name, *overrides = CASES["Box2D"]
    settings = three_chunks(*overrides, "algorithm.num_minibatches=1")
    run(tmp_path / "whole", name, *settings)

    def stop() -> None:
        if (tmp_path / "cut/metrics.csv").is_file() and (tmp_path / "cut/metrics.csv").read_bytes().count(b"\n") > 2:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", name, *settings, "sampling.workers=1", check=stop)
    run(tmp_path / "cut", name, *settings, "sampling.workers=2", resume=True)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def large(environments: EnvironmentCache, policy: Policy, check: Check) -> Array:
    check()
    return np.arange(100_000)


@dataclass(frozen=True)
class Leaving:
    """Returns `large`; once, the worker gets a signal before or after it calls a C function to send the result."""

    number: int
    event: str
    name: str
    once: Path

    def __call__(self, environments: EnvironmentCache, policy: Policy, check: Check) -> Array:
        def profile(frame: object, event: str, called: object) -> None:
            if (event, getattr(called, "__name__", "")) == (self.event, self.name):
                self.once.touch()
                os.kill(os.getpid(), self.number)

        if not self.once.exists():
            sys.setprofile(profile)
        return large(environments, policy, check)


@pytest.mark.skipif(sys.platform != "linux", reason="sends results without waiting on Linux only")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGSTOP, marks=pytest.mark.slow("waits for four workers")), signal.SIGKILL]
)
def test_a_worker_that_stops_while_it_sends_blocks_no_other_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HANG_SECONDS", 3.0)
    settings, moments = config(), [(event, name) for name in ("dump", "sendmsg") for event in ("c_call", "c_return")]
    with closing(workers.ProcessPool(settings.env, settings.policy, len(moments))) as pool:
        tasks = {n: Leaving(number, *moment, tmp_path / str(n)) for n, moment in enumerate(moments)}
        for _ in range(2):
            results = pool.map(build_policy(settings.env, settings.policy), tasks, lambda: None)
            assert all((results[n] == np.arange(100_000)).all() for n in tasks)
    assert len(list(tmp_path.iterdir())) == len(moments)


IN_LITTLE_SHARED_MEMORY = """
import os, resource, sys
import numpy as np, test_workers
from helpers import config
from pgcli.sampling.pool import build_policy
from pgcli.sampling.process_pool import ProcessPool

settings, size = config(), int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # a shared block is a file
pool = ProcessPool(settings.env, settings.policy, 2)
try:
    for _ in range(2):
        policy = build_policy(settings.env, settings.policy)
        results = pool.map(policy, dict.fromkeys(range(3), test_workers.large), int)
        assert all((results[n] == np.arange(100_000)).all() for n in range(3))
finally:
    pids = {str(os.getpid()), *(str(worker._process.pid) for worker in pool._workers.values())}
    print(*(name for name in os.listdir("/dev/shm") if set(name.split("_")) & pids), end="")
    pool.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is a file")
@pytest.mark.parametrize(
    ("size", "error"),
    [
        (10, "error: no shared memory is left for worker processes"),
        (200_000, "error: no memory is left for the data of worker processes: File too large"),
        pytest.param(2**30, "", marks=pytest.mark.slow("shows that the program itself works, as other tests do")),
    ],
    ids=["no room", "no room for results", "room"],
)
def test_too_little_shared_memory_is_reported(size: int, error: str) -> None:
    command = [sys.executable, "-c", IN_LITTLE_SHARED_MEMORY, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.returncode == bool(error), done.stderr
    assert error in done.stderr
    assert done.stdout == "", "files left in shared memory"


def children_of(pid: int) -> list[int]:
    """Return the processes started by the fork server of a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    servers = {child for child, parent in parents if parent == pid}
    return [child for child, parent in parents if parent in servers]


@pytest.mark.skipif(sys.platform != "linux", reason="ps")
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pgcli", "train", "lunar-lander/ppo", "env.chunk_size=8", "sampling.workers=2"]
    with subprocess.Popen([*command, "--run-dir", str(tmp_path / "run")], stderr=subprocess.DEVNULL) as parent:
        metrics = tmp_path / "run/metrics.csv"
        while not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 1):
            assert parent.poll() is None
            time.sleep(0.1)
        found = children_of(parent.pid)
        parent.kill()
    assert len(found) == 2
    stop = time.monotonic() + 60
    while any(map(is_running, found)) and time.monotonic() < stop:
        time.sleep(0.1)
    assert not any(map(is_running, found))
