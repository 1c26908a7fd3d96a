"""docs/results.md: the page has the measurements, and results of other settings or other code are noticed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pgcli.config import load_config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import results

    yield results
    del sys.modules["results"], sys.modules["results_page"]


def test_the_page_matches_the_measurements(results: ModuleType) -> None:
    rows = results.read()
    assert results.PAGE.read_text() == results.page(rows)
    assert {row["config"] for row in rows} | results.WAITING == set(results.MEASURED)


def test_every_row_was_measured_with_these_settings_and_this_code(results: ModuleType) -> None:
    """After a change of a shipped config or of the arithmetic: `make results`."""
    assert results.stale_configs(results.read()) == results.WAITING


@pytest.mark.slow("trains every shipped config for two iterations")
def test_the_arithmetic_is_that_of_the_measurements(results: ModuleType) -> None:
    assert set(results.short_trainings()) == set(results.MEASURED)
    command = [sys.executable, str(ROOT / "tests/benchmarks/results.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"`make results` measures again: {done.stderr}"


def test_a_short_training_notices_a_change_of_one_percent(results: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    known = results.short_trainings()["cartpole/ppo"]
    assert results.are_equal(known, results.short_training("cartpole/ppo"))
    shortened = results.shortened

    def changed(config: str) -> object:
        short = shortened(config)
        rate = short.optimizer.learning_rate * 1.01
        return short.model_copy(update={"optimizer": short.optimizer.model_copy(update={"learning_rate": rate})})

    monkeypatch.setattr(results, "shortened", changed)
    assert not results.are_equal(known, results.short_training("cartpole/ppo"))


def test_rows_become_stale_with_the_settings_of_training_and_the_number_of_episodes(
    results: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results.settings_digest("cartpole/ppo")
    for words, changes in (
        (["seed=5", "name=other", "evaluation.every=7", "checkpoint.keep=2"], False),
        (["algorithm.gamma=0.99"], True),  # a default, which the config overrides
        (["optimizer.learning_rate=0.0011"], True),
    ):
        monkeypatch.setattr(results, "load_config", lambda name, words=words: load_config(name, words))
        assert (results.settings_digest("cartpole/ppo") != before) is changes
    monkeypatch.undo()
    monkeypatch.setitem(results.MORE_EPISODES, "CartPole-v1", 1000)
    assert results.settings_digest("cartpole/ppo") != before
