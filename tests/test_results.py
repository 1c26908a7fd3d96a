"""docs/results.md: the page has the measurements, and results of other settings or other code are noticed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pgcli.config import load_config, shipped_suites

ROOT = Path(__file__).parent.parent


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import results

    yield results
    for name in ("results", "results_page", "results_curves", "suites", "general"):
        sys.modules.pop(name, None)


def test_the_page_matches_the_measurements(results: ModuleType) -> None:
    rows = results.read()
    assert results.PAGE.read_text() == results.page(rows)
    assert {row["config"] for row in rows} | results.WAITING == set(results.MEASURED)


def test_every_row_was_measured_with_these_settings_and_this_code(results: ModuleType) -> None:
    """After a change of a shipped config or of the arithmetic: `make results`."""
    assert results.stale_configs(results.read()) == results.WAITING
    curves = results.results_curves.read()
    assert results.stale_configs(curves) == results.WAITING, (
        "`results.py --render --folder FOLDER` reads them from runs"
    )


def test_tables_of_the_configs_for_any_environment_were_measured_with_this_code(results: ModuleType) -> None:
    """After a change of such a config, a suite or the arithmetic: `make suites general`."""
    import general
    import suites

    assert results.mark(general.MEASURED) in general.PAGE.read_text()
    page = suites.PAGE.read_text()
    for name in (name.removeprefix("suites/") for name in shipped_suites()):
        text = page.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
        assert results.mark(suites.measured(name)) in text, name


def test_the_figure_matches_the_curves(results: ModuleType) -> None:
    """`results.py --render` draws it."""
    curves = results.results_curves.read()
    with Image.open(results.results_curves.FIGURE) as figure:
        assert figure.info["Comment"] == results.results_curves.source(curves, results.stale_configs(curves))
    drawn = [config for _, _, configs in results.results_curves.panels(curves) for config in configs]
    assert sorted(drawn) == sorted({curve["config"] for curve in curves})


def test_nothing_remains_to_be_measured_unless_it_waits(results: ModuleType) -> None:
    assert set(results.remaining(results.MEASURED)) == results.WAITING
    assert results.remaining(["pong/ppo"], range(4)) == {"pong/ppo": [3]}


def test_published_results_of_the_figure_are_in_the_text(results: ModuleType) -> None:
    page = sys.modules["results_page"]
    for task, (label, value) in page.PUBLISHED.items():
        algorithm, _, steps, unit, source = label.split()
        text = page.TARGETS[task][1]
        assert all(part in text for part in (algorithm, f"{value:g}", f"{steps} {unit}", source)), label


def test_curves_come_from_runs_once_all_runs_of_the_rows_are_there(results: ModuleType, tmp_path: Path) -> None:
    key = {"config": "cartpole", "settings": "new", "arithmetic": "same"}
    rows = [key | {"seed": seed, "sampled": "500"} for seed in ("0", "1")]
    old = [row | {"settings": "old", "env_steps": "0", "returns": "9"} for row in rows]

    def run(seed: int) -> None:
        (tmp_path / f"seed-{seed}").mkdir()
        # A rule that stops a run evaluates again, after the same steps.
        text = "iteration,env_steps,return_mean\n0,0,21.25\n1,640,123.4567\n1,640,130.0\n"
        (tmp_path / f"seed-{seed}/evaluations.csv").write_text(text)

    run(0)
    assert results.results_curves.curves_of(rows, old, tmp_path) == old
    run(1)
    new = results.results_curves.curves_of(rows, old, tmp_path)
    assert new == [key | {"seed": seed, "env_steps": "0 640", "returns": "21.25 130"} for seed in ("0", "1")]
    assert results.results_curves.curves_of(rows, new, tmp_path / "elsewhere") == new


@pytest.mark.slow("trains every shipped config for two iterations")
def test_the_arithmetic_is_that_of_the_measurements(results: ModuleType) -> None:
    assert set(results.short_trainings()) == set(results.SHORTENED)
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER")
def test_the_time_of_processes_that_outlive_their_parent_counts() -> None:
    work = "import os, time\nif not os.fork():\n    os.close(1)\n    while time.process_time() < 0.5: pass"
    code = f"import results, sys; print(results.timed([sys.executable, '-c', {work!r}])[1])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests/benchmarks", stdout=subprocess.PIPE, text=True, check=True
    )
    assert float(done.stdout) >= 0.5
