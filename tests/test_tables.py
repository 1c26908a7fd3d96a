"""The tables of a run: columns, and rows that round-trip."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import config

from pgcli.errors import RunDirectoryError, UsageError
from pgcli.records import (
    COLUMNS,
    OPTIONAL,
    TABLES,
    Episode,
    Evaluation,
    GradientEstimate,
    Iteration,
    Sample,
    Timing,
    Update,
    axis,
    brief,
)
from pgcli.runs.files import opened
from pgcli.runs.tables import (
    TableWriter,
    check_info_names,
    first_difference,
    header_of,
    optional_metrics,
    read_table,
    rows_of,
)

HEADERS = {
    "metrics": "iteration,env_steps,episodes,return_mean,return_standard_error,return_standard_deviation,return_min,"
    "return_max,length_mean,discounted_return_mean,policy_loss,value_loss,entropy,approx_kl,clip_fraction,"
    "effective_sample_size,explained_variance,grad_norm,learning_rate,update_epochs,clip_range,entropy_coef,"
    "zero_variance_groups,return_scale,action_standard_deviation,action_clip_fraction",
    "timing": "iteration,elapsed_seconds,collect_seconds,update_seconds,evaluate_seconds,steps_per_second",
    "evaluations": "iteration,env_steps,mode,evaluation_episodes,return_mean,return_standard_error,"
    "return_standard_deviation,length_mean,return_median,return_min,return_max,discounted_return_mean",
    "episodes": "iteration,episode,return,discounted_return,length,ended",
    "gradients": "iteration,env_steps,estimator,trajectories,gradient_norm,gradient_variance,trajectory_variance,snr,"
    "trajectories_for_snr_1,variance_removed,cosine",
}
RETURNS = Sample(2, 1 / 3, None, None, 0.5, -1.0, 1e300)
RECORD = Iteration(
    iteration=0,
    env_steps=7,
    episode_count=2,
    steps=7,
    returns=RETURNS,
    length_mean=3.5,
    discounted_return_mean=0.1,
    update=Update(
        entropy=0.5,
        grad_norm=0.25,
        learning_rate=1e-3,
        approx_kl=0.0,
        clip_fraction=0.25,
        gradients=[GradientEstimate("total+none", 2, 0.1, None, None, None, None, None, None)],
    ),
    episodes=[Episode(0, 1 / 3, 0.1, 3, "terminated"), Episode(1, -1.0, -1.0, 4, "horizon")],
    timing=Timing(1.0, 0.5, 0.25, 0.0),
    progress=0.5,
)


def written(folder: Path, *records: Iteration | Evaluation) -> Path:
    with opened(folder) as there:
        for record in records:
            for name, rows in rows_of(record).items():
                table = TableWriter(there, f"{name}.csv", header_of(name))
                table.append(rows)
                table.close()
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_columns_match_earlier_versions(name: str) -> None:
    assert ",".join(header_of(name)) == HEADERS[name]


def test_every_field_of_an_update_is_a_column_in_its_order() -> None:
    names = [field.name for field in fields(Update) if field.name not in ("gradients", *OPTIONAL)]
    assert header_of("metrics")[-len(names) :] == names
    assert [field.name for field in fields(Update) if field.name in OPTIONAL] == list(OPTIONAL)


@pytest.mark.parametrize(
    ("sections", "more"),
    [
        ({}, []),
        ({"algorithm": {"objective": "clip", "kl_coef": 0.1}}, []),
        ({"algorithm": {"objective": "clip", "kl_coef": {"target": 0.01}}}, ["kl_coef"]),
        ({"optimizer": {"name": "natural"}}, ["step_kl", "rejected_steps"]),
        (
            {"optimizer": {"name": "natural", "max_kl": 0.01, "line_search": True}},
            ["step_kl", "backtracks", "rejected_steps"],
        ),
    ],
    ids=str,
)
def test_optional_columns_are_in_the_runs_that_use_them(sections: dict[str, Any], more: list[str]) -> None:
    assert optional_metrics(config(**sections)) == more


@pytest.mark.parametrize("name", ["kl_coef", "rejected_steps"])
def test_a_name_from_info_cannot_be_that_of_an_optional_column(name: str) -> None:
    with pytest.raises(UsageError, match=f"the column `{name}` already exists"):
        check_info_names(config(logging={"info": [name]}))


def test_rows_round_trip(tmp_path: Path) -> None:
    written(
        tmp_path, RECORD, replace(RECORD, iteration=1, returns=None), Evaluation(1, 7, "greedy", RETURNS, 3.5, 0.1, 0.0)
    )
    metrics = read_table(tmp_path / "metrics.csv", whole=True)
    assert metrics.rows == 2
    assert metrics["return_mean"][0] == 1 / 3
    assert metrics["return_max"][0] == 1e300
    assert np.isnan([metrics["return_mean"][1], metrics["value_loss"][0], metrics["return_standard_error"][0]]).all()
    assert metrics["approx_kl"].tolist() == [0.0, 0.0]
    assert read_table(tmp_path / "timing.csv")["steps_per_second"][0] == 7 / 0.75
    episodes = read_table(tmp_path / "episodes.csv")
    assert episodes.words["ended"].tolist() == ["terminated", "horizon"] * 2
    assert episodes["return"].tolist() == [1 / 3, -1.0] * 2
    assert read_table(tmp_path / "evaluations.csv").words["mode"].tolist() == ["greedy"]
    gradients = read_table(tmp_path / "gradients.csv", ("snr",))
    assert (list(gradients.numbers), gradients.words) == (["iteration", "snr"], {})


@pytest.mark.parametrize(
    ("line", "what", "returns"),
    [
        (b"1,2\n", "line 3 has 2 cells instead of 6", [1.5]),
        (b"1,2,\0,4,5,horizon\n", "line 3 has zeros", [1.5]),
        (b"1,2,x,4,5,horizon\n", "line 3 has `x` instead of a number", [1.5, math.nan]),
        (b"1,2,3,4,5,\xff\n", "line 3 is not UTF-8", [1.5, 3.0]),
        (b"1,2", "line 3 is incomplete", [1.5]),
    ],
    ids=["cells", "zeros", "a word", "bytes", "an incomplete line"],
)
def test_a_damaged_line_is_named_or_skipped(line: bytes, what: str, returns: list[float], tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    path.write_bytes(f"{HEADERS['episodes']}\n0,0,1.5,1.5,3,horizon\n".encode() + line)
    with pytest.raises(RunDirectoryError, match=what):
        read_table(path, whole=True)
    np.testing.assert_equal(read_table(path, skip_damage=True)["return"], returns)


def test_two_tables_differ_in_a_line_and_in_cells(tmp_path: Path) -> None:
    for name, steps in (("a", 7), ("b", 8)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, RECORD, replace(RECORD, iteration=1, env_steps=steps))
    found = first_difference(tmp_path / "a/metrics.csv", tmp_path / "b/metrics.csv")
    assert (found["same"], found["iteration"], found["columns"]) == (False, 1, {"env_steps": ["7", "8"]})
    assert first_difference(tmp_path / "a/episodes.csv", tmp_path / "b/episodes.csv")["same"]


def test_a_metric_is_described_in_one_place() -> None:
    assert axis("entropy") == "entropy of the policy (nats)"
    assert axis("no_such_column") == "no such column"
    assert brief(RECORD.update, "entropy", "approx_kl", "clip_fraction", "value_loss") == [
        "entropy 0.500",
        "KL 0",
        "clipped 25 %",
    ]
    assert all(column.metric.help for column in COLUMNS.values())
