"""A run killed at any instant or write, then resumed, ends with the bytes of a complete run."""

from __future__ import annotations

import os
import random
from pathlib import Path

import kills
import pytest
from helpers import mostly_slow

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are shown where processes can be forked")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each case, run once without a kill at first use."""
    home = tmp_path_factory.mktemp("whole")

    class Runs(dict[str, Path]):
        def __missing__(self, case: str) -> Path:
            kills.finish(case, home / case)
            self[case] = home / case
            return self[case]

    return Runs()


@pytest.mark.parametrize("case", mostly_slow(kills.CASES, ["segments", "reuse", "jobs"], "runs each case seven times"))
def test_a_run_that_is_killed_three_times_ends_with_the_same_bytes(
    case: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    draw = random.Random(case)
    killed = [kills.kill_in(case, tmp_path / "cut", k, draw.uniform(0, 0.02)) for k in (1, 3, 6)]
    assert any(killed), "it was too quick to be killed"
    kills.finish(case, tmp_path / "cut")
    assert kills.digests(tmp_path / "cut") == kills.digests(whole[case])


AFTER = pytest.param(True, id="after", marks=pytest.mark.slow("the other half of a sweep"))


@pytest.mark.parametrize("after", [pytest.param(False, id="before"), AFTER])
@pytest.mark.parametrize("first", range(1, 9))
def test_a_kill_at_a_call_that_writes_loses_nothing(
    first: int, after: bool, whole: dict[str, Path], tmp_path: Path
) -> None:
    """Every eighth call of a run, and of all that follow it, from each of eight places."""
    case, number, resumes = "native episodes", first, 0
    while kills.kill_at_call(case, tmp_path / "cut", number, after):
        number, resumes = 8 + (number + 5) % 16, resumes + 1  # resumed, it gets further each time
        if resumes == 12:
            break
    assert resumes > 1
    kills.finish(case, tmp_path / "cut")
    assert kills.digests(tmp_path / "cut") == kills.digests(whole[case])
