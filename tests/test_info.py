"""Numbers in info at the end of episodes: table columns with equal bytes for all collectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import pgcli
from test_cli import contents, rows
from test_evaluation_env import HERE, SEGMENTS, WORLDS, train

from pgcli.environments.outputs import read_info, read_vector_info

REPORTING = f"env.id={WORLDS}:Reporting"
ALL = "logging.info=[is_success, steps, nested.half, text, nothing, infinite, list, absent]"


def test_success_is_a_column_by_default(tmp_path: Path) -> None:
    train("run", REPORTING, "evaluation.every=1", cwd=tmp_path)
    episodes, metrics = rows(tmp_path / "run/episodes.csv"), rows(tmp_path / "run/metrics.csv")
    assert list(episodes[0])[-2:] == ["ended", "is_success"]
    assert [row["is_success"] for row in episodes] == [str(float(int(row["length"]) % 2 == 0)) for row in episodes]
    for number, row in enumerate(metrics):
        found = [float(one["is_success"]) for one in episodes if one["iteration"] == str(number)]
        assert float(row["is_success"]) == pytest.approx(sum(found) / len(found))
    assert all(0 <= float(row["is_success"]) <= 1 for row in rows(tmp_path / "run/evaluations.csv"))
    pgcli("plot", "run", "-y", "is_success", "-o", "m.csv", cwd=tmp_path)
    pgcli("plot", "run", "-y", "evaluation.is_success", "-o", "e.csv", cwd=tmp_path)
    drawn = [float(row["center"]) for row in rows(tmp_path / "m.csv")]
    assert drawn == pytest.approx([float(row["is_success"]) for row in metrics])
    done = pgcli("eval", "run", "--trust", "--episodes", 5, "--json", cwd=tmp_path, PYTHONPATH=HERE)
    assert set(json.loads(done.stdout)["info"]) == {"is_success"}
    assert "is_success" in pgcli("eval", "run", "--trust", cwd=tmp_path, PYTHONPATH=HERE).stdout


def test_an_environment_without_info_has_the_standard_columns(tmp_path: Path) -> None:
    train("run", cwd=tmp_path)
    assert not {"is_success", "success", "stopped_by"} & set(rows(tmp_path / "run/evaluations.csv")[0])
    assert list(rows(tmp_path / "run/episodes.csv")[0])[-1] == "ended"


def test_requested_numbers_are_columns_and_other_values_empty_cells(tmp_path: Path) -> None:
    train("run", REPORTING, ALL, cwd=tmp_path)
    for row in rows(tmp_path / "run/episodes.csv"):
        assert (row["steps"], row["nested.half"]) == (f"{row['length']}.0", str(int(row["length"]) / 2))
        assert {row[name] for name in ("text", "nothing", "infinite", "list", "absent")} == {""}
    last = rows(tmp_path / "run/evaluations.csv")[-1]
    assert last["steps"] == last["length_mean"]
    train("none", REPORTING, "logging.info=[]", cwd=tmp_path)
    assert list(rows(tmp_path / "none/episodes.csv")[0])[-1] == "ended"


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), id="whole episodes"),
        pytest.param(SEGMENTS, id="segments", marks=pytest.mark.slow("the same with segments")),
    ],
)
def test_workers_and_a_resumed_run_write_the_same_bytes(how: tuple[str, ...], tmp_path: Path) -> None:
    words = (REPORTING, *how, "env.chunk_size=2", "checkpoint.every=1", "evaluation.every=1")
    train("one", *words, "training.iterations=4", cwd=tmp_path)
    train("workers", *words, "training.iterations=4", "sampling.workers=2", cwd=tmp_path)
    train("resumed", *words, "training.iterations=2", cwd=tmp_path)
    pgcli("resume", "resumed", "training.iterations=4", cwd=tmp_path, PYTHONPATH=HERE)
    one, workers, resumed = (contents(tmp_path / run) for run in ("one", "workers", "resumed"))
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv"):
        assert b"is_success" in one[name]
        assert one[name] == workers[name] == resumed[name], name
    done = pgcli("verify", "resumed", "--all", "--trust", cwd=tmp_path, PYTHONPATH=HERE)
    assert "failed" not in done.stdout


@pytest.mark.parametrize("how", [(), SEGMENTS], ids=["whole episodes", "segments"])
def test_a_vector_form_reports_by_column(how: tuple[str, ...], tmp_path: Path) -> None:
    native = (f"env.id={WORLDS}:ReportingVector-v0", "env.vectorization=native", "logging.info=[score]")
    train("run", *native, *how, "rollout.steps=9" if how else "rollout.episodes=4", cwd=tmp_path)
    found = {(row["length"], row["score"]) for row in rows(tmp_path / "run/episodes.csv")}
    assert found == {("2", "0.0"), ("3", "1.0"), ("4", "2.0"), ("5", "3.0")}


def test_a_cut_episode_reports_the_info_of_its_last_step(tmp_path: Path) -> None:
    train("run", REPORTING, "logging.info=[steps]", "rollout.horizon=2", cwd=tmp_path)
    assert {(row["length"], row["steps"]) for row in rows(tmp_path / "run/episodes.csv")} == {("2", "2.0")}


MASKED = np.array([True, False, False])


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, [None, None, None]),
        ({"x": np.array([1, 2, 3])}, [1, 2, 3]),
        ({"x": [True, False, True]}, [1, 0, 1]),
        ({"x": np.array([1.0, 0.0, 0.0]), "_x": MASKED}, [1, None, None]),
        ({"x": np.array([0.5, None, "no"], object)}, [0.5, None, None]),
        ({"x": 4}, [4, 4, 4]),
        ({"x": np.ones((3, 2))}, [None, None, None]),
        ({"final_info": {"x": np.array([7, 0, 0]), "_x": MASKED}, "_final_info": MASKED, "x": [1, 2, 3]}, [7, 2, 3]),
        ({"final_info": np.array([{"x": 7}, None, None], object), "x": np.zeros(3)}, [7, 0, 0]),
        ({"final_info": [{"y": 7}, None, None], "_final_info": MASKED, "x": np.zeros(3)}, [None, 0, 0]),
        ("nothing of the kind", [None, None, None]),
    ],
)
def test_every_form_of_a_vector_info_is_read(info: Any, expected: list[float | None]) -> None:
    found = read_vector_info(info, ["x"], 3)[:, 0].tolist()
    assert [None if np.isnan(x) else x for x in found] == expected


def test_a_name_with_a_dot_is_an_entry_or_an_entry_of_an_entry() -> None:
    assert read_info({"a.b": 1, "a": {"b": 2, "c": {"d": 3}}}, ["a.b", "a.c.d"]) == [1, 3]
    nested = {"a": {"b": np.array([1, 2]), "_b": np.array([True, False])}, "_a": np.array([True, True])}
    assert read_vector_info(nested, ["a.b"], 2)[0, 0] == 1
    assert np.isnan(read_vector_info(nested, ["a.b"], 2)[1, 0])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("logging.info=[length]", "the column `length` already exists"),
        ("logging.info=[stopped_by]", "the column `stopped_by` already exists"),
        ("logging.info=['a,b']", "logging.info"),
        ("evaluation.stop_at={is_succes: 1}", "did you mean `is_success`?"),
        ("evaluation.stop_at={mode: 1}", "no column `mode`"),
    ],
)
def test_an_invalid_column_name_is_rejected(key: str, message: str, tmp_path: Path) -> None:
    error = train("run", REPORTING, key, cwd=tmp_path, code=2)
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_cannot_change_the_info_columns(tmp_path: Path) -> None:
    train("run", REPORTING, "logging.info=[steps]", cwd=tmp_path)
    done = pgcli("resume", "run", "logging.info=[is_success]", cwd=tmp_path, code=4, PYTHONPATH=HERE)
    assert "logging.info" in done.stderr
