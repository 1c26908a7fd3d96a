"""Memory, garbage collection and forks of pgcli's own process."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import config, is_running

from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment

PAGES = """
import resource, sys
from pgcli.system.processes import keep_freed_memory
import numpy as np

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    np.ones(10_000_000)  # 80 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    shown = subprocess.run([sys.executable, "-c", PAGES, word], capture_output=True, text=True, check=True)
    return int(shown.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_reused_without_new_pages() -> None:
    assert faults("keep") < faults("leave") / 10


RUN = """
import resource, sys
from pathlib import Path
from pgcli.config import Config, override
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, run_experiment

words = ["rollout={episodes: null, steps: 128}", "algorithm={returns: lambda_return, baseline: value}"]
settings = override(Config(), [*words, "training.iterations=12", "evaluation.every=null"])
faults = []
request = Request(settings, Path("run"), [], folder=Path(sys.argv[1]))
run_experiment(request, Context(lambda record: faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)))
print(sorted(after - before for before, after in zip(faults[2:-2], faults[3:-1]))[4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_run_reuses_its_memory(tmp_path: Path) -> None:
    shown = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(shown.stdout) < 20, "pages: the median of an iteration; some grow a table of Python's"


def test_a_run_hides_earlier_objects_from_the_garbage_collector_until_its_end(tmp_path: Path) -> None:
    settings = config(env={"num_envs": 2}, rollout={"episodes": 2}, training={"iterations": 1})
    during: list[int] = []
    request = Request(settings, Path("run"), [], folder=tmp_path)
    run_experiment(request, Context(lambda record: during.append(gc.get_freeze_count())))
    assert min(during) > 10_000
    assert gc.get_freeze_count() == 0


FORKED = """
import os, time
from pgcli.system.processes import ForkedTask

def work(check):
    while {endless}:
        check()
        time.sleep(0.01)
    return bytes(10_000_000)

with ForkedTask(work) as other:
    print(other._process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ps")
@pytest.mark.parametrize("endless", [True, False], ids=["at work", "with an answer that nobody reads"])
def test_a_fork_does_not_outlive_its_parent(endless: bool) -> None:
    code = FORKED.format(endless=endless)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    stop = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < stop:
        time.sleep(0.05)
    assert not is_running(pid)
