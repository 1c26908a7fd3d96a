"""docs/slurm.sh under a fake Slurm: tasks that are stopped and queued again end with the bytes of one run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import pgcli, whole
from test_workers import digests

from pgcli.runs.information import read_status

SCRIPT = Path(__file__).parent.parent / "docs/slurm.sh"
WORLD = """
import time
import gymnasium as gym

class Slow(gym.Wrapper):
    def step(self, action):
        time.sleep(0.001)
        return self.env.step(action)
"""
WORDS = (
    *("cartpole", "env.wrappers=[slow.py:Slow]", "env.num_envs=4", "rollout.episodes=4", "env.max_episode_steps=30"),
    *("training.iterations=40", "training.env_steps=null", "evaluation.every=null", "evaluation.episodes=2"),
    "evaluation.stop_at_return=null",
)
FAKE = {  # of Slurm, and the command in the virtual environment
    "scontrol": 'echo "$*" >> calls; [ "$1" = requeue ] || echo "   JobState=$STATE Reason=None"',
    "pgcli": f'exec {sys.executable} -m pgcli "$@"',
}


def sbatch(folder: Path, task: int, state: str = "RUNNING") -> subprocess.Popen[str]:
    """Start one task of the array, as Slurm does."""
    variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": f"10{task}", "RUNS": "out", "STATE": state}
    path = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *WORDS], cwd=folder, env=whole(variables | path), stderr=subprocess.PIPE, text=True
    )


def rows(run: Path) -> int:
    metrics = run / "metrics.csv"
    return metrics.read_bytes().count(b"\n") - 1 if metrics.is_file() else 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(WORLD)
    (tmp_path / "bin").mkdir()
    for name, text in FAKE.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def stopped(folder: Path, task: int, number: int, state: str = "RUNNING") -> int:
    """Start a task, send a signal to its script after two more iterations, and return its exit code."""
    run = folder / f"out/cartpole/seed-{task}"
    before = rows(run)
    with sbatch(folder, task, state) as script:
        while rows(run) < before + 2:
            assert script.poll() is None
            time.sleep(0.01)
        script.send_signal(number)
        return script.wait(timeout=200)


@pytest.mark.slow("trains in several tries")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["time limit", "preemption"])
def test_a_task_that_is_queued_again_has_the_bytes_of_an_uninterrupted_run(number: int, folder: Path) -> None:
    assert re.search(r"^#SBATCH --signal=B:USR1@\d+$", SCRIPT.read_text(), re.MULTILINE)
    run = folder / "out/cartpole/seed-3"
    for _ in range(2):
        assert stopped(folder, 3, number) == 143
        assert read_status(run)["status"] == "interrupted"
    assert (folder / "calls").read_text().splitlines() == ["show job 103", "requeue 103"] * 2
    with sbatch(folder, 3) as script:
        assert script.wait(timeout=200) == 0
    assert len((folder / "calls").read_text().splitlines()) == 4, "a finished task is not queued again"
    assert read_status(run)["status"] == "finished"
    pgcli("train", *WORDS, "seed=3", "--run-dir", "whole", "-q", cwd=folder)
    assert digests(run) == digests(folder / "whole")


@pytest.mark.slow("starts processes")
def test_a_cancelled_or_failed_task_is_not_queued_again(folder: Path) -> None:
    assert stopped(folder, 0, signal.SIGTERM, state="CANCELLED") == 143
    (folder / "slow.py").write_text("nonsense(")
    with sbatch(folder, 0) as script:
        assert script.wait(timeout=200) == 3
    assert (folder / "calls").read_text().splitlines() == ["show job 100"]
