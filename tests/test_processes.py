"""What pgcli asks of the process that it is."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import config

from pgcli.experiment import Request, run_experiment

PAGES = """
import resource, sys
from pgcli.processes import keep_freed_memory
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
def test_memory_that_was_freed_is_used_again_without_fresh_pages() -> None:
    assert faults("keep") < faults("leave") / 10


def test_a_run_spares_the_collector_what_was_there_before_it_and_gives_it_back(tmp_path: Path) -> None:
    settings = config(env={"num_envs": 2}, rollout={"episodes": 2}, training={"iterations": 1})
    during: list[int] = []
    request = Request(settings, Path("run"), [], folder=tmp_path)
    run_experiment(request, lambda record: during.append(gc.get_freeze_count()))
    assert min(during) > 10_000
    assert gc.get_freeze_count() == 0
