"""`train --json`: one JSON object per line for each iteration, each evaluation and the end of each run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, pgcli, whole

from pgcli.runs.information import read_status

SHORT = (
    *("training.env_steps=null", "evaluation.episodes=3", "rollout.episodes=4", "env.num_envs=4"),
    *("env.max_episode_steps=20", "evaluation.stop_at_return=null", "evaluation.every=2"),
)
LONG = (*SHORT, "training.iterations=1000000")


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def rows(table: Path) -> list[dict[str, Any]]:
    """The rows of a table as in JSON."""

    def value(cell: str) -> Any:
        try:
            return json.loads(cell)
        except ValueError:
            return cell or None

    with table.open(newline="") as file:
        return [{name: value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def test_the_lines_of_two_seeds_have_the_rows_of_their_tables(tmp_path: Path) -> None:
    words = ("training.iterations=3", "--seeds", "4,7", "--run-dir", "r", "--json", "--quiet")
    done = pgcli("train", "cartpole", *SHORT, *words, cwd=tmp_path)
    lines = lines_of(done.stdout)
    assert done.stderr == ""
    for seed in (4, 7):
        run, own = tmp_path / f"r/seed-{seed}", [line for line in lines if line["seed"] == seed]
        *records, end = own
        assert {line["run"] for line in own} == {f"r/seed-{seed}"}
        assert [line["type"] for line in records] == [
            *("evaluation", "iteration", "iteration", "evaluation", "iteration", "evaluation")
        ]
        metrics, timing = rows(run / "metrics.csv"), rows(run / "timing.csv")
        expected = [{**row, **clock} for row, clock in zip(metrics, timing, strict=True)]
        names = expected[0].keys()
        assert [{key: line[key] for key in names} for line in records if line["type"] == "iteration"] == expected
        evaluations = rows(run / "evaluations.csv")
        names = evaluations[0].keys()
        found = [{key: line[key] for key in names} for line in records if line["type"] == "evaluation"]
        assert found == evaluations
        assert (end["type"], end["status"], end["exit_code"]) == ("end", "finished", 0)
        assert (end["iterations"], end["env_steps"]) == (3, metrics[-1]["env_steps"])
        assert end["return_mean"] == evaluations[-1]["return_mean"]
        assert end["reason"] == "training.iterations=3 reached"
        best = max(evaluations, key=lambda row: row["return_mean"])
        assert end["best"] == {"return_mean": best["return_mean"], "iteration": best["iteration"]}
    pages = (Path(__file__).parent.parent / "docs/tools.md").read_text()
    assert all(f"`{name}`" in pages for name in end)


def test_a_failed_run_ends_with_its_error_and_a_wrong_config_prints_no_line(tmp_path: Path) -> None:
    words = ("env.id=helpers:Counting-v0", "env.kwargs={fault: inf reward, at: 3}", "training.iterations=3", "--json")
    paths: dict[str, Any] = {"PYTHONPATH": str(Path(__file__).parent)}
    done = pgcli("train", "reinforce", *SHORT, *words, "--run-dir", "r", cwd=tmp_path, code=3, **paths)
    end = lines_of(done.stdout)[-1]
    assert (end["type"], end["status"], end["exit_code"]) == ("end", "failed", 3)
    assert "non-finite reward" in end["reason"]
    assert f"error: {end['reason']}" in done.stderr
    assert pgcli("train", "cartpole", "no.key=1", "--json", cwd=tmp_path, code=2).stdout == ""


@pytest.mark.parametrize("more", [(), ("--seeds", "0-1"), ("--seeds", "0-1", "--jobs", "2", "--stack", "1")])
@pytest.mark.slow("starts processes")
def test_a_closed_pipe_ends_the_runs_quietly_and_resumably(more: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pgcli", "train", "cartpole", *LONG, "--run-dir", "r", *more, "--json", "--quiet"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=whole({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(5):
            json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.wait(timeout=200) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    for run in [tmp_path / "r"] if not more else (tmp_path / "r").iterdir():
        assert read_status(run)["status"] == "interrupted"


@pytest.mark.slow("waits for a run")
def test_a_signal_ends_with_a_line_and_a_resume_continues(tmp_path: Path) -> None:
    command = Command("train", "cartpole", *LONG, "--run-dir", "r", "--json", cwd=tmp_path)
    metrics = tmp_path / "r/metrics.csv"
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 3):
        assert command.poll(0.1) is None, command.stderr
    command.send_signal(signal.SIGTERM)
    done = command.finished()
    assert done.returncode == 143
    end = lines_of(done.stdout)[-1]
    assert (end["type"], end["status"], end["exit_code"]) == ("end", "interrupted", 143)
    assert end["iterations"] == read_status(tmp_path / "r")["iteration"] == len(rows(metrics))
    again = pgcli("resume", "r", f"training.iterations={end['iterations'] + 1}", "--json", cwd=tmp_path)
    assert [line["iteration"] for line in lines_of(again.stdout) if line["type"] == "iteration"] == [end["iterations"]]


@pytest.mark.slow("starts a process")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_full_disk_behind_stdout_does_not_end_the_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pgcli", "train", "cartpole", *SHORT, "training.iterations=2", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*words, "--run-dir", "r"], cwd=tmp_path, env=whole({}), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: output: No space left on device; training continues without --json\n"
    assert read_status(tmp_path / "r")["status"] == "finished"
