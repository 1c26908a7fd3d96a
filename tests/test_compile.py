"""`training.compile`, through the real CLI: the same learning, and resumed to the same bytes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli

HERE = str(Path(__file__).parent)
IMAGES = (
    "cartpole/ppo",
    "env.id=tasks:Identity-v0",
    "env.kwargs.observation=image in a dict",
    "rollout.steps=32",  # episodes of 8 steps, and a masked row after each: batches of different sizes
    "policy.normalize_obs=true",
    "algorithm.update_epochs=3",
    "checkpoint.every=1",
    "evaluation.episodes=4",
    "training.env_steps=null",
    "optimizer.schedule=constant",  # so that one that is extended is one that was not interrupted
    "algorithm.clip_range_schedule=constant",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of compiled code for all compiled runs of a session."""
    home = tmp_path_factory.getbasetemp()
    return (home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / "compiled"


@pytest.fixture
def run(tmp_path: Path, cache: Path) -> Callable[..., Any]:
    return partial(pgcli, cwd=tmp_path, timeout=600, PYTHONPATH=HERE, TORCHINDUCTOR_CACHE_DIR=str(cache))


def rows(path: Path) -> list[dict[str, float]]:
    with (path / "metrics.csv").open() as file:
        return [{name: float(x) for name, x in row.items() if x} for row in csv.DictReader(file)]


@pytest.mark.slow("compiles networks")
@pytest.mark.parametrize("shared", ["true", "false"], ids=["a shared trunk", "two networks"])
def test_a_compiled_run_learns_the_same_and_is_resumed_to_the_same_bytes(
    shared: str, run: Callable[..., Any], cache: Path, tmp_path: Path
) -> None:
    train = partial(run, "train", *IMAGES, f"value.shared_trunk={shared}", "--run-dir")
    train("eager", "training.iterations=1")
    train("whole", "training.iterations=3", "training.compile=true")
    assert any("convolution_backward" in file.read_text() for file in cache.rglob("*.py"))
    assert rows(tmp_path / "whole")[0] == pytest.approx(rows(tmp_path / "eager")[0], rel=1e-3)
    train("parts", "training.iterations=1", "training.compile=true")  # sees other sizes first
    run("resume", "parts", "training.iterations=3")
    for name in ("metrics.csv", "episodes.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow("compiles networks")
def test_without_a_compiler_nothing_is_written(run: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--run-dir", "run", "training.compile=true")
    nothing = {"PATH": "/nonexistent", "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}
    done = run("train", *IMAGES, *words, code=2, **nothing)
    assert done.stderr.startswith("error: training.compile: torch.compile does not work here: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow("compiles networks")
def test_ctrl_c_that_also_kills_the_compiler_is_an_interrupt(tmp_path: Path) -> None:
    run, compiler = tmp_path / "run", tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nif [ -e "{run}/evaluations.csv" ]; then kill -INT 0; fi\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "pgcli", "train", *IMAGES, "training.compile=true", "--run-dir", str(run)],
        env=os.environ | {"PYTHONPATH": HERE, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": str(compiler)},
        capture_output=True,
        text=True,
        start_new_session=True,  # a process group, as a terminal has one
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"


def test_recurrent_networks_are_not_compiled(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("train", *IMAGES, "training.compile=true", "policy.memory=gru", code=2)
    assert "torch.compile does not support recurrent networks" in done.stderr
