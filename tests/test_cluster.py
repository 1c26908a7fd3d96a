"""On a Ray cluster: the same bytes as in this process, even after losses of actors and machines.

Ray runs in child processes, because of its threads and warnings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import Array, Counting
from kills import CASES
from test_workers import EPISODES, SEGMENTS, SHORT, THREE, digests, run

from pgcli.config import load_config
from pgcli.errors import EnvironmentFailure, RunDirectoryError, UsageError
from pgcli.experiment.build import environments_of, worker_pool
from pgcli.experiment.cluster import _RunActor
from pgcli.experiment.jobs import run_all
from pgcli.experiment.recorder import Outcome
from pgcli.experiment.run import Request, check_request
from pgcli.records import Iteration, Record
from pgcli.report.logs import logged
from pgcli.sampling import ray_pool as actors
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import WorkerPool, worker_count
from pgcli.sampling.process_pool import ProcessPool
from pgcli.system import ray_cluster as cluster
from pgcli.system.packages import install_command
from pgcli.system.ray_cluster import check_versions, cores, join, versions_and_source

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray")
HERE = Path(__file__).parent
ONE = ("sampling.workers=1", "sampling.backend=ray")
TWO = ("sampling.workers=2", "sampling.backend=ray")


class Fragile(Counting):
    """In an actor: is killed, stopped or ended after `after` steps; once if `once` names a file.

    Or it waits there for the file.
    """

    steps = 0

    def __init__(self, trouble: str, once: str = "", after: int = 20) -> None:
        super().__init__()
        self.trouble, self.once, self.after = trouble, once, after

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        Fragile.steps += 1
        is_actor = "default_worker" in sys.argv[0]
        if is_actor and Fragile.steps >= self.after and not (self.once and Path(self.once).exists()):
            if self.once and self.trouble != "wait":
                Path(self.once).touch()
            match self.trouble:
                case "wait":
                    while not Path(self.once).exists():
                        time.sleep(0.05)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "exit":
                    os._exit(7)
        return super().step(action)


gym.register("Fragile-v0", entry_point="test_cluster:Fragile")


def fragile(trouble: str, once: str, *more: str) -> tuple[str, ...]:
    kwargs = f"env.kwargs={{trouble: {trouble}, once: '{once}', after: {70 if SEGMENTS[1] in more else 20}}}"
    return ("cartpole", "env.id=test_cluster:Fragile-v0", kwargs, *SHORT, *THREE, *more)


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a child, which finds pgcli and these tests, but no cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    return kept | {"PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))} | more


def in_child(work: Callable[[Path], None], path: Path) -> None:
    program = f"import sys, pathlib, test_cluster as t; t.{work.__name__}(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=path,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr, done.stderr


# ------------------------------------------------------------------------------------------------- one machine

SAME: dict[str, tuple[str, ...]] = {
    "native episodes": (*(word for word in CASES["native episodes"] if "num_envs" not in word), *THREE),
    "LunarLander, whole episodes": (
        *("lunar-lander/baseline", *SHORT, *THREE, "rollout.episodes=6", "env.max_episode_steps=60"),
    ),
    "LunarLander, segments": (*CASES["Box2D"], *THREE, "algorithm.num_minibatches=1"),
}
LOST = {
    "killed, episodes": ("kill", EPISODES, TWO),
    "stopped, segments": ("stop", SEGMENTS, TWO),
    "killed in its third chunk, segments": ("kill", (*SEGMENTS, "env.kwargs.after=98"), ONE),
}


def on_one_machine(path: Path) -> None:
    """Start one Ray for all tests of this process."""
    leave = join(2, lambda: None)
    for case, words in SAME.items():
        run(path / case / "ray", *words, *TWO)
    patch = pytest.MonkeyPatch()
    patch.setattr(actors, "HANG_SECONDS", 6.0)
    patch.setattr(actors, "PULSE_SECONDS", 0.5)
    for case, (trouble, rollout, workers) in LOST.items():
        run(path / case / "ray", *fragile(trouble, str(path / case / "once"), *rollout), *workers)
    patch.undo()
    answers = [None, None]  # as from a lost machine that the cluster still counts as alive
    ask = actors._answer
    patch.setattr(actors, "_answer", lambda reference: answers.pop() if answers else ask(reference))
    run(path / "LunarLander, segments/given up", *SAME["LunarLander, segments"], *ONE)
    assert not answers
    patch.undo()
    with pytest.raises(EnvironmentFailure, match=r"the actor of chunk \d was lost, 3 times in a row"):
        run(path / "exit", *fragile("exit", "", *EPISODES, "env.kwargs.after=1"), *ONE)
    faults = []
    for more in ((), ONE):
        words = ("env.id=helpers:Counting-v0", "env.kwargs={fault: inf reward, at: 3}", *SHORT, *THREE)
        with pytest.raises(EnvironmentFailure, match="non-finite reward") as caught:
            run(path / f"fault-{len(more)}", "cartpole", *words, *EPISODES, *more)
        faults.append((caught.value.seed, caught.value.reproduction))
    assert faults[0] == faults[1]
    assert faults[0][1]
    patch.setattr("pgcli.__version__", "9.9")
    with pytest.raises(EnvironmentFailure, match=r"has pgcli 0\.\S+ \(here 9\.9"):
        run(path / "versions", *SAME["native episodes"], *ONE)
    leave()


@pytest.mark.slow("starts a Ray cluster and loses parts of it")
def test_actors_give_the_bytes_of_this_process_even_if_killed_or_hung(tmp_path: Path) -> None:
    for case, words in SAME.items():
        run(tmp_path / case / "0", *words)
    for case, (trouble, rollout, _) in LOST.items():
        run(tmp_path / case / "0", *fragile(trouble, str(tmp_path / case / "once"), *rollout))
    in_child(on_one_machine, tmp_path)
    for case in (*SAME, *LOST):
        assert digests(tmp_path / case / "ray") == digests(tmp_path / case / "0"), case
    lost = tmp_path / "LunarLander, segments"
    assert digests(lost / "given up") == digests(lost / "0")
    for case in LOST:
        assert (tmp_path / case / "once").exists(), case


# ------------------------------------------------------------------------------------------------- several machines

LANDER = (*SAME["LunarLander, segments"], "training.iterations=6", "optimizer.schedule=constant")
SEEDS = (0, 1)


def seeds(path: Path, *more: str) -> list[Request]:
    """Return requests that wait near their fifth iteration until a machine is lost."""
    words = [*fragile("wait", str(path.parent / "lost"), *EPISODES), "checkpoint.every=2", "training.iterations=9"]
    words += ["env.kwargs.after=150", *more]
    configs = [load_config(words[0], [*words[1:], f"seed={seed}"]) for seed in SEEDS]
    return [Request(config, path / f"seed-{config.seed}", []) for config in configs]


def on_several_machines(path: Path) -> None:
    """Remove a machine during collection, and another one during a whole run."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    machines = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
        shutdown_at_exit=False,
    )
    os.environ["RAY_ADDRESS"] = machines.address
    try:
        second: Any = machines.add_node(num_cpus=1)

        def lose_the_second() -> None:
            nonlocal second
            metrics = path / "actors/metrics.csv"
            if second is not None and metrics.is_file() and metrics.read_bytes().count(b"\n") > 2:
                machines.remove_node(second, allow_graceful=False)
                second = None

        run(path / "actors", *LANDER, "sampling.workers=auto", "sampling.backend=ray", check=lose_the_second)
        assert second is None

        third: Any = machines.add_node(num_cpus=1)
        told: dict[int, int] = {}

        def watch(record: Record, number: int) -> None:
            nonlocal third
            told[number] = told.get(number, 0) + isinstance(record, Iteration)
            if third is not None and len(told) == 2 and min(told.values()) > 1:
                machines.remove_node(third, allow_graceful=False)
                third = None
                threading.Timer(15, (path / "lost").touch).start()  # its processes live on until they miss the machine

        results = run_all(seeds(path / "runs", "sampling.backend=ray"), 2, watch, logged)
        assert third is None
        assert all(isinstance(result, Outcome) for result in results), results
    finally:
        machines.shutdown()  # type: ignore[no-untyped-call]  # Ray's


@pytest.mark.slow("starts a Ray cluster and loses parts of it")
def test_a_lost_machine_does_not_change_results(tmp_path: Path) -> None:
    run(tmp_path / "0", *LANDER)
    local = run_all(seeds(tmp_path / "local"), 1, lambda record, number: None, logged)
    assert all(isinstance(result, Outcome) for result in local)
    in_child(on_several_machines, tmp_path)
    assert digests(tmp_path / "actors") == digests(tmp_path / "0")
    lines = []
    for seed in SEEDS:
        there = tmp_path / f"runs/seed-{seed}"
        assert digests(there) == digests(tmp_path / f"local/seed-{seed}")
        lines.append((there / "run.json").read_text())
    assert sum('"resumes"' in text for text in lines) == 1


@pytest.mark.slow("starts Ray")
def test_a_comparison_places_its_runs_on_the_cluster_with_equal_bytes_and_logs(tmp_path: Path) -> None:
    words = ("cartpole", "optimizer.learning_rate=0.1,0.01", "--seeds", "0-1", *SHORT, *EPISODES, "--json")
    budget = ("env.chunk_size=2", "training.iterations=null", "training.env_steps=300", "logging.tensorboard=true")
    found = {}
    for name, more in (("local", ()), ("ray", ("--jobs", "2", "sampling.backend=ray"))):
        command = [sys.executable, "-m", "pgcli", "compare", *words, *budget, *more, "-o", str(tmp_path / name)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    runs = sorted(file.parent.relative_to(tmp_path / "ray") for file in (tmp_path / "ray").rglob("metrics.csv"))
    assert len(runs) == 4
    for run_path in runs:
        assert digests(tmp_path / "ray" / run_path) == digests(tmp_path / "local" / run_path)
        assert list((tmp_path / "ray" / run_path / "tensorboard").iterdir())
    assert found["ray"]["pairs"] == found["local"]["pairs"]


def test_a_folder_that_is_not_shared_is_reported(tmp_path: Path) -> None:
    remote = _RunActor()
    remote.run(
        Request(load_config("cartpole", []), tmp_path / "run", []),
        versions_and_source(),
        [],
        str(tmp_path / "no-such-sign"),
        0.0,
        logged,
    )
    _, result = remote.news()
    assert not isinstance(result, Outcome)
    assert result is not None
    assert result.exit_code == RunDirectoryError.exit_code
    assert "sees another folder there" in result.text
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- the command


def session_of(pid: int) -> list[str]:
    """Return the living processes of a session, without its leader."""
    listed = subprocess.run(["ps", "-wweo", "pid=,sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    return [row[3] for row in rows if row[1] == str(pid) and row[0] != str(pid) and not row[2].startswith("Z")]


@pytest.mark.slow("starts a Ray cluster and loses parts of it")
def test_ctrl_c_leaves_a_resumable_run_and_no_process(tmp_path: Path) -> None:
    run(tmp_path / "whole", *LANDER)
    name, *overrides = LANDER
    command = [sys.executable, "-m", "pgcli", "train", name, *overrides, *TWO, "training.iterations=500", "--quiet"]
    with subprocess.Popen(
        [*command, "--run-dir", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
        start_new_session=True,
    ) as process:
        metrics = tmp_path / "cut/metrics.csv"
        while not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 2):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        assert any("raylet" in line for line in session_of(process.pid)), (process.poll(), session_of(process.pid))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "hint"]
    stop = time.monotonic() + 20
    while (left := session_of(process.pid)) and time.monotonic() < stop:
        time.sleep(0.2)
    assert not left
    rows = metrics.read_bytes().count(b"\n") - 1
    run(tmp_path / "cut", *LANDER, f"training.iterations={max(rows, 6)}", resume=True)
    if rows > 6:
        run(tmp_path / "whole", *LANDER, f"training.iterations={rows}", resume=True)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_missing_cluster_is_reported_before_any_file_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgcli", "train", "cartpole", *TWO, "--run-dir", "run"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(RAY_ADDRESS="127.0.0.1:1"),
        cwd=tmp_path,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: no Ray cluster at 127.0.0.1:1: Connection refused\nhint: `ray start --head`")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://127.0.0.1:10001", "is for Ray clients"),
        ("somewhere", "is not an address"),
        ("127.0.0.1:99999999", "no Ray cluster at"),
        ("no-such-host.invalid:6379", "no Ray cluster at"),
    ],
)
def test_an_unreachable_address_is_reported_before_ray_is_imported(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(cluster, "require", lambda *_: None)
    with pytest.raises(EnvironmentFailure, match=reason):
        join(1, lambda: None)


def test_a_missing_ray_is_reported_with_its_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_request(Request(load_config("cartpole", ["sampling.backend=ray"]), tmp_path / "run", []))
    assert caught.value.exit_code == 2
    assert caught.value.hint == install_command("ray")
    check_request(Request(load_config("cartpole", []), tmp_path / "run", []))


def test_other_versions_are_rejected_with_the_difference() -> None:
    check_versions(versions_and_source(), versions_and_source(), "there")
    with pytest.raises(EnvironmentFailure, match=r"there has torch 1\.0 \(here \d.*, extra 5 \(here none\)"):
        check_versions(versions_and_source(), versions_and_source() | {"torch": "1.0", "extra": "5"}, "there")


# ------------------------------------------------------------------------------------------------- auto


@pytest.mark.parametrize(
    ("cores", "chunks", "native", "workers"),
    [(8, 4, False, 4), (4, 8, False, 4), (8, 1, False, 0), (1, 8, False, 0), (0, 8, False, 0), (8, 8, True, 0)],
)
def test_auto_has_one_core_and_one_chunk_per_worker(cores: int, chunks: int, native: bool, workers: int) -> None:
    assert worker_count(cores, chunks, native) == workers


def automatic_pool(share: int, *words: str) -> WorkerPool:
    config = load_config(words[0], [*words[1:], "sampling.workers=auto"])
    environments = EnvironmentCache(environments_of(config))
    pool = worker_pool(config, environments, share, lambda: None)
    environments.close()
    assert isinstance(pool, ProcessPool) == (pool.count > 0)
    return pool


def test_auto_depends_on_cores_chunks_and_the_vector_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgcli.experiment.build.cores", lambda: 4)
    eight = ("env.chunk_size=1", "rollout.episodes=8", "env.vectorization=sync")
    assert automatic_pool(1, "acrobot/baseline", *eight).count == 4
    assert automatic_pool(2, "acrobot/baseline", *eight).count == 2
    assert automatic_pool(4, "acrobot/baseline", *eight).count == 0
    for form in ("numpy", "native"):
        assert automatic_pool(1, "cartpole", *eight[:2], f"env.vectorization={form}").count == 0
    one = ("env.num_envs=8", "env.chunk_size=null", *eight[1:])
    assert automatic_pool(1, "acrobot/baseline", *one).count == 0


def test_the_cores_are_those_that_this_process_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= cores() <= len(before)


def test_auto_gives_the_bytes_of_this_process(tmp_path: Path) -> None:
    words = (*CASES["Box2D"], *THREE, "algorithm.num_minibatches=1")
    run(tmp_path / "0", *words)
    run(tmp_path / "auto", *words, "sampling.workers=auto")
    assert digests(tmp_path / "auto") == digests(tmp_path / "0")
