"""What pgcli asks of the process that it is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
