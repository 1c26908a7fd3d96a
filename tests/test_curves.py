"""Learning curves: lines, bands and captions."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pgcli.errors import ConfigError, PgcliError, RunDirectoryError
from pgcli.report.curves import caption, legend, read_lines
from pgcli.report.plots import plot
from pgcli.report.statistics import Curve, aggregate, bootstrap_interval, smoothed


def write_run(
    path: Path,
    returns: Sequence[float],
    *,
    name: str = "pole",
    seed: int = 0,
    steps: int = 100,
    status: str = "finished",
    more: str = "",
    threshold: float | None = 475,
) -> Path:
    """Write a run directory with an evaluation after every iteration of `steps` env steps and 4 episodes."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"name: {json.dumps(name, ensure_ascii=False)}\nseed: {seed}\n{more}")
    (path / "status.json").write_text(json.dumps({"status": status}))
    (path / "run.json").write_text(json.dumps({"reward_threshold": threshold}))
    evaluations = ["iteration,env_steps,mode,evaluation_episodes,return_mean,return_standard_error"]
    metrics, timing = ["iteration,env_steps,episodes,return_mean,entropy"], ["iteration,elapsed_seconds"]
    for k, value in enumerate(returns):
        evaluations.append(f"{k},{k * steps},sampled,100,{value},2.5")
        metrics.append(f"{k},{(k + 1) * steps},{(k + 1) * 4},{value - 1},")
        timing.append(f"{k},{k + 0.5}")
    for file, lines in (("evaluations", evaluations), ("metrics", metrics), ("timing", timing)):
        (path / f"{file}.csv").write_text("\n".join(lines) + "\n")
    return path


def drawn(
    folders: Sequence[Path],
    tmp_path: Path,
    x: str = "env_steps",
    y: str = "evaluation.return_mean",
    stat: str = "mean",
    band: str = "ci95",
    smooth: int = 1,
) -> list[dict[str, str]]:
    """Return the rows of the exported CSV."""
    output = plot(folders, x, y, stat, band, smooth, tmp_path / "drawn.csv")
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: Sequence[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def test_runs_that_differ_in_their_seed_are_one_line_with_their_mean(tmp_path: Path) -> None:
    for seed, returns in enumerate(([0, 10, 20], [0, 20, 60], [0, 60, 100])):
        write_run(tmp_path / f"runs/seed-{seed}", returns, seed=seed)
    rows = drawn([tmp_path / "runs"], tmp_path)
    assert list(rows[0]) == ["label", "x", "n", "center", "low", "high"]
    assert column(rows, "x") == [0, 100, 200]
    assert column(rows, "n") == [3, 3, 3]
    assert column(rows, "center") == [0, 30, 60]
    assert column(rows, "low")[0] == column(rows, "high")[0] == 0
    theirs = stats.ttest_1samp([10, 20, 60], 0).confidence_interval(0.95)
    assert [column(rows, edge)[1] for edge in ("low", "high")] == pytest.approx([theirs.low, theirs.high])
    bootstrap = drawn([tmp_path / "runs"], tmp_path, band="bootstrap")
    assert 10 <= column(bootstrap, "low")[1] < 30 < column(bootstrap, "high")[1] <= 60
    assert column(drawn([tmp_path / "runs"], tmp_path, stat="median"), "center") == [0, 20, 60]


def test_the_standard_error_over_runs_is_the_deviation_over_the_root_of_n(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"{seed}", [10 * seed], seed=seed) for seed in range(4)]
    rows = drawn(folders, tmp_path, band="standard_error")
    expected = (500 / 3) ** 0.5 / 2  # 0, 10, 20, 30 have variance 500/3
    assert column(rows, "high")[0] - 15 == pytest.approx(expected)
    assert 15 - column(rows, "low")[0] == pytest.approx(expected)


def test_the_interquartile_mean_leaves_out_a_quarter_on_either_side(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"{i}", [v], seed=i) for i, v in enumerate((-999, 1, 2, 3, 4, 5, 6, 999))]
    assert column(drawn(folders, tmp_path, stat="iqm"), "center") == [3.5]


def test_a_single_run_shows_the_standard_error_of_its_episodes(tmp_path: Path) -> None:
    rows = drawn([write_run(tmp_path / "run", [10, 20])], tmp_path)
    assert column(rows, "low") == [7.5, 17.5]
    assert column(rows, "high") == [12.5, 22.5]
    other = drawn([tmp_path / "run"], tmp_path, y="return_mean", band="none")
    assert [row["low"] for row in other] == ["", ""]


@pytest.mark.parametrize("stat", ["mean", "iqm"])
def test_one_run_is_drawn_without_importing_scipy(stat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)  # an import raises
    assert column(drawn([write_run(tmp_path / "run", [10, 20])], tmp_path, stat=stat), "center") == [10, 20]


def test_the_bootstrap_interval_of_two_values_reaches_both(tmp_path: Path) -> None:
    low, high = bootstrap_interval([np.array([[0.0, 1.0], [5.0, 5.0]])], np.mean)
    assert low.tolist() == [0, 5]  # a quarter of the resamples takes the same value twice
    assert high.tolist() == [1, 5]


def test_the_bootstrap_interval_of_many_normal_values_is_that_of_their_mean() -> None:
    values = np.random.default_rng(1).normal(size=(1, 400))
    low, high = bootstrap_interval([values], np.mean)
    error = values.std() / 20
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_line_begins_where_all_its_runs_have_begun_and_is_straight_between_their_points() -> None:
    a = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    b = Curve(np.array([5.0, 10.0]), np.array([9.0, 10.0]))
    result = aggregate([a, b], "mean", "none")
    assert result.x.tolist() == [5, 10]
    assert result.n.tolist() == [2, 2]
    assert result.center.tolist() == [7, 10]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"status": "finished"}, ""),
        ({"status": "finished", "reason": "reached a return of 95"}, "1 of 3 stopped at 12 k steps."),
        ({"status": "diverged", "reason": "the loss is inf"}, "1 of 3 diverged at 12 k steps."),
        ({"status": "interrupted"}, "1 of 3 was interrupted at 12 k steps."),
        ({"status": "failed"}, "1 of 3 failed at 12 k steps."),
        ({"status": "running"}, "1 of 3 is running at 12 k steps."),
        ({}, "1 of 3 is unfinished at 12 k steps."),
    ],
    ids=str,
)
def test_a_run_that_ended_early_keeps_its_last_value_and_is_counted(
    tmp_path: Path, status: dict[str, str], told: str
) -> None:
    short = write_run(tmp_path / "runs/a", [0, 100], seed=0, steps=12_000)
    (short / "status.json").write_text(json.dumps(status)) if status else (short / "status.json").unlink()
    write_run(tmp_path / "runs/b", [0, 10, 20], seed=1, steps=12_000)
    write_run(tmp_path / "runs/c", [0, 20, 30], seed=2, steps=12_000)
    last = drawn([tmp_path / "runs"], tmp_path)[-1]
    assert (int(last["n"]), float(last["center"])) == (3, 50)
    words = said([tmp_path / "runs"])
    assert told in words
    assert "After its end, a run keeps its last value." in words


def test_the_last_value_of_a_stopped_run_is_that_of_fresh_episodes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [20, 60, 96], status="finished")
    lines = (run / "evaluations.csv").read_text().splitlines()
    lines = [f"{lines[0]},stopped_by", *(f"{line}," for line in lines[1:]), "2,200,sampled,100,88,2.5,goal"]
    (run / "evaluations.csv").write_text("\n".join(lines) + "\n")
    stop = {"status": "finished", "reason": "stopped early: mean return ≥ 95 in 1 evaluation"}
    (run / "status.json").write_text(json.dumps(stop))
    assert column(drawn([run], tmp_path), "center") == [20, 60, 88]
    assert "1 of 1 stopped at 200 steps." in said([run])


def test_a_caption_says_that_points_of_other_runs_are_interpolated(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0, 1, 2], steps=100)
    write_run(tmp_path / "b", [0, 1, 2], steps=200, seed=1)
    assert "Runs are interpolated linearly" in said([tmp_path])
    assert "interpolated" not in said([tmp_path / "a"])


def test_runs_that_ended_early_or_lack_a_number_are_counted_per_line(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a/{seed}", [0, 1, 2][: 2 + seed], name="a", seed=seed, status="diverged")
    write_run(tmp_path / "b/0", [0, 1, 2], name="b", steps=1_250)
    write_run(tmp_path / "b/1", [0, 1, 2], name="b", seed=1, steps=1_250)
    write_run(tmp_path / "b/2", [], name="b", seed=2, status="diverged")
    with pytest.warns(UserWarning, match="skipped"):
        words = said([tmp_path])
    assert "Lines: mean over n runs, n = 3 (a), 2 (b)." in words
    assert "a: 3 of 3 diverged at 100 to 200 steps. b: 1 of 3 without a number: skipped." in words


@pytest.mark.parametrize(
    ("stat", "band", "words"),
    [
        ("mean", "ci95", "Line: mean over 4 runs. Band: 95 % interval (Student's t)."),
        ("iqm", "ci95", "Line: interquartile mean over 4 runs. Band: 95 % interval (Tukey-McLaughlin, of a"),
        ("median", "ci95", "(order statistics). The median of fewer than 6 runs has no interval."),
        ("mean", "bootstrap", "Band: 95 % bootstrap interval (10,000 resamples of runs), too narrow for few runs."),
        ("mean", "ci95", "4 runs are few: with probability 41 %, they miss a failure that occurs in 1 of 5 runs."),
    ],
)
def test_a_caption_names_the_method_and_warns_of_few_runs(tmp_path: Path, stat: str, band: str, words: str) -> None:
    for seed in range(4):
        write_run(tmp_path / f"{seed}", [seed, 2 * seed], seed=seed)
    assert words in said([tmp_path], stat=stat, band=band)
    write_run(tmp_path / "4", [4, 8], seed=4)
    assert "are few" not in said([tmp_path], stat=stat, band=band)


def said(folders: Sequence[Path], stat: str = "mean", band: str = "ci95") -> str:
    return caption(*read_lines(folders, "env_steps", "evaluation.return_mean", stat, band, 1))


def gradients(path: Path, rows: Sequence[tuple[float, float]], seed: int = 0) -> Path:
    """Write a run with (|g|², v) of each iteration, of 16 trajectories."""
    run = write_run(path, [1, 2], seed=seed)
    lines = [f"{k},{100 * k},own,16,{norm**0.5},{v},{16 * v},{(norm - v) / v}," for k, (norm, v) in enumerate(rows)]
    head = "iteration,env_steps,estimator,trajectories,gradient_norm,gradient_variance,trajectory_variance,snr,"
    (run / "gradients.csv").write_text("\n".join([f"{head}trajectories_for_snr_1", *lines]) + "\n")
    return run


def test_signal_to_noise_ratios_are_averaged_as_the_ratio_of_means(tmp_path: Path) -> None:
    """Over runs: (3 - 1 + 0 - 2) / (1 + 2) = 0 and (9 - 1 + 3 - 3) / (1 + 3) = 2; smoothed: (0 + 8) / (3 + 4)."""
    folders = [gradients(tmp_path / "0", [(3, 1), (9, 1)]), gradients(tmp_path / "1", [(0, 2), (3, 3)], seed=1)]
    assert column(drawn(folders, tmp_path, x="iteration", y="snr"), "center") == pytest.approx([0, 2])
    smooth = drawn(folders, tmp_path, x="iteration", y="snr", smooth=2)
    assert column(smooth, "center") == pytest.approx([0, 8 / 7])
    needed = drawn(folders, tmp_path, x="iteration", y="trajectories_for_snr_1")
    assert column(needed, "x") == [1]  # without a signal, no number is enough
    assert column(needed, "center") == pytest.approx([16 * 4 / 8])
    alone = drawn(folders[:1], tmp_path, x="iteration", y="snr")
    assert column(alone, "center") == pytest.approx([2, 8])
    for stat in ("iqm", "median"):
        with pytest.raises(ConfigError, match="ratio of means"):
            drawn(folders, tmp_path, y="snr", stat=stat)
    with pytest.raises(RunDirectoryError, match="noise exceeds"):
        drawn([gradients(tmp_path / "2", [(1, 2), (0, 3)])], tmp_path, y="trajectories_for_snr_1")


@pytest.mark.parametrize("band", ["ci95", "bootstrap", "standard_error"])
def test_the_band_of_a_ratio_of_means_lies_around_it(tmp_path: Path, band: str) -> None:
    folders = [gradients(tmp_path / f"{k}", [(3 + k, 1 + k / 5)], seed=k) for k in range(6)]
    (row,) = drawn(folders, tmp_path, x="iteration", y="snr", band=band)
    center = sum(2 + 0.8 * k for k in range(6)) / sum(1 + k / 5 for k in range(6))
    assert float(row["center"]) == pytest.approx(center)
    assert center - 1 < float(row["low"]) < center < float(row["high"]) < center + 1


def test_smoothing_averages_the_last_points_of_each_run() -> None:
    curve = smoothed(Curve(np.arange(4.0), np.array([0.0, 2.0, 4.0, 9.0]), np.full(4, 3.0)), 3)
    assert curve.y.tolist() == [0, 1, 2, 5]
    assert curve.standard_error is not None
    assert curve.standard_error[3] == pytest.approx(3 / 3**0.5)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("iteration", "evaluation.return_mean", [0, 1, 2]),
        ("episodes", "evaluation.return_mean", [0, 4, 8]),
        ("seconds", "evaluation.return_mean", [0, 0.5, 1.5]),
        ("env_steps", "return_mean", [100, 200, 300]),
        ("episodes", "return_mean", [4, 8, 12]),
        ("seconds", "return_mean", [0.5, 1.5, 2.5]),
    ],
)
def test_the_x_axis_counts_its_named_unit(tmp_path: Path, x: str, y: str, expected: list[float]) -> None:
    run = write_run(tmp_path / "run", [5, 6, 7])
    assert column(drawn([run], tmp_path, x=x, y=y), "x") == expected


def test_different_experiments_are_lines_labelled_by_their_differences(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", [1], more="algorithm: {baseline: mean}\ntraining: {iterations: 3}\n")
    write_run(tmp_path / "runs/b", [2], more="algorithm: {baseline: none}\ntraining: {iterations: 4}\n")
    write_run(tmp_path / "runs/c", [3], name="other")
    assert [row["label"] for row in drawn([tmp_path / "runs"], tmp_path)] == [
        "pole: baseline mean",
        "pole: baseline none",
        "other",
    ]


def test_runs_moved_aside_are_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/seed-0", [1])
    write_run(tmp_path / "runs/seed-0~1", [99])
    assert column(drawn([tmp_path / "runs"], tmp_path), "center") == [1]


def test_complete_rows_of_a_half_written_table_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1, 2, 3], status="running")
    with (run / "evaluations.csv").open("ab") as file:
        file.write(b"2,200,sampled,100,30,2.5\n3,300,sampled,100,4\0\0\0\n4,400,samp")
    assert column(drawn([run], tmp_path), "center") == [1, 2, 30]


@pytest.mark.parametrize(
    ("tail", "center"),
    [
        (b"\xff\xfe,300,sampled,100,40,2\n", [1, 2, 3]),
        (b"1,100,sampled,100,20,2.5\n0,0,sampled,100,10,2.5\n", [10, 20, 3]),
        (b"3,300,sampled,100,40," + b"9" * 3_000_000 + b"\n", [1, 2, 3, 40]),
        (b"x" * 3_000_000, [1, 2, 3]),
        (b"3,300,sampled,100,inf,2.5\n4,400,sampled,100,,2.5\n", [1, 2, 3]),
        (b"3,300\n\n\r\n,,,,,\n", [1, 2, 3]),
    ],
    ids=["not UTF-8", "out of order and twice", "a long cell", "a long line", "infinite and empty", "short rows"],
)
def test_odd_rows_of_a_table_are_skipped(tail: bytes, center: list[float], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1, 2, 3])
    with (run / "evaluations.csv").open("ab") as file:
        file.write(tail)
    assert column(drawn([run], tmp_path), "center") == center


@given(st.binary(max_size=300) | st.text('0123456789.,-enaif\n\r\0"', max_size=300).map(str.encode), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_table_is_drawn_or_reported(noise: bytes, after_header: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", [1, 2])
        header = (run / "evaluations.csv").read_bytes().splitlines(keepends=True)[0]
        (run / "evaluations.csv").write_bytes(header + noise if after_header else noise)
        with contextlib.suppress(PgcliError):
            assert np.isfinite(column(drawn([run], Path(folder)), "center")).all()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_has_the_same_bytes_for_any_name(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path / "a/seed-0", [1, 480], name="co$t_%s 🎢 $x^2$", seed=0)
    write_run(tmp_path / "a/seed-1", [3, 490], name="co$t_%s 🎢 $x^2$", seed=1)
    first, second = (
        plot([tmp_path / "a"], "env_steps", "evaluation.return_mean", "mean", "ci95", 1, tmp_path / f"{i}.{suffix}")
        for i in range(2)
    )
    assert first.read_bytes() == second.read_bytes()


def test_the_figure_is_labelled(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"runs/{seed}", [100 * seed, 490], seed=seed, name="three")
    output = plot([tmp_path / "runs"], "env_steps", "evaluation.return_mean", "iqm", "ci95", 1, tmp_path / "a.svg")
    ElementTree.fromstring(output.read_bytes())
    words = output.read_text()
    for expected in ("three", "environment steps", "mean return of 100 evaluation episodes", "solved: 475"):
        assert f">{expected}</text>" in words
    assert "interquartile mean over 3 runs. Band: 95 % interval" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"y": "evaluation.return_maen"}, "did you mean `evaluation.return_mean`"),
        ({"y": "entropi"}, "did you mean `entropy`"),
        ({"stat": "iqm", "band": "standard_error"}, "--stat mean"),
    ],
)
def test_a_bad_option_is_a_usage_error_with_a_hint(tmp_path: Path, options: dict[str, str], words: str) -> None:
    run = write_run(tmp_path / "run", [1])
    with pytest.raises(ConfigError) as error:
        drawn([run], tmp_path, **options)  # type: ignore[arg-type]  # only strings are tried
    assert words in str(error.value)


def test_a_run_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", [])
    (tmp_path / "nothing").mkdir()
    for folders, words in (
        ([empty], "evaluations.csv"),
        ([tmp_path / "nothing"], "contains no run"),
        ([tmp_path / "nowhere"], "no such directory"),
    ):
        with pytest.raises(RunDirectoryError, match=words):
            drawn(folders, tmp_path)
    run = write_run(tmp_path / "run", [1])
    with pytest.warns(UserWarning, match="skipped"):
        assert column(drawn([empty, run], tmp_path), "center") == [1]
    with pytest.raises(RunDirectoryError, match="entropy"):
        drawn([run], tmp_path, y="entropy")  # a column with nothing in it
    with pytest.raises(PgcliError, match="cannot be written"):
        plot([run], "env_steps", "evaluation.return_mean", "mean", "ci95", 1, run / "metrics.csv" / "a.csv")


def test_the_caption_counts_the_episodes_of_the_lines_that_are_one_run(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"runs/{seed}", [1, 2], seed=seed)
    lone = write_run(tmp_path / "runs/lone", [1, 2], name="lone")
    evaluations = lone / "evaluations.csv"
    evaluations.write_text(evaluations.read_text().replace(",100,", ",4,"))
    output = plot([tmp_path / "runs"], "env_steps", "evaluation.return_mean", "mean", "ci95", 1, tmp_path / "a.svg")
    words = " ".join(re.findall("<text.*?>(.*?)</text>", output.read_text()))
    assert "one standard error over 4 evaluation episodes" in words


def test_the_caption_counts_the_points_without_a_standard_error(tmp_path: Path) -> None:
    """With a window of 2, a point without one leaves its successor without one as well."""
    run = write_run(tmp_path / "run", [1, 2, 3, 4])
    table = run / "evaluations.csv"
    lines = table.read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0] + ","  # a single episode
    table.write_text("\n".join(lines) + "\n")
    for smooth, number in ((1, 1), (2, 2)):
        output = plot([run], "env_steps", "evaluation.return_mean", "mean", "ci95", smooth, tmp_path / "a.svg")
        words = " ".join(re.findall("<text.*?>(.*?)</text>", output.read_text()))
        assert f"No band at {number} of 4 points: one episode has no standard error." in words


def test_a_copied_run_does_not_count_as_another_seed(tmp_path: Path) -> None:
    for seed, returns in enumerate(([0, 10, 20], [0, 20, 60])):
        write_run(tmp_path / f"runs/seed-{seed}", returns, seed=seed)
    write_run(tmp_path / "runs/copy", [0, 10, 20])
    write_run(tmp_path / "runs/unfinished", [0, 20], seed=1, status="running")
    write_run(tmp_path / "runs/twin", [0, 10, 20], seed=2)
    with pytest.warns(UserWarning, match="is a copy of") as told:
        rows = drawn([tmp_path / "runs"], tmp_path)
    assert column(rows, "n") == [3, 3, 3], "equal numbers under another seed are another run"
    assert sorted(str(one.message).replace(f"{tmp_path}/", "") for one in told) == [
        "skipped: runs/seed-0 is a copy of runs/copy",
        "skipped: runs/unfinished is a copy of runs/seed-1",
    ]


def test_a_run_with_the_seed_of_another_and_other_numbers_counts_with_a_warning(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", [0, 10, 20])
    write_run(tmp_path / "runs/b", [0, 10, 21])
    with pytest.warns(UserWarning, match="and .*/a have the same config and seed but different numbers"):
        assert column(drawn([tmp_path / "runs"], tmp_path), "n") == [2, 2, 2]


def test_the_legend_shows_the_number_of_runs_if_it_differs(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"many/seed-{seed}", [0, 10 + seed], seed=seed, name="many")
    write_run(tmp_path / "one", [0, 5], name="one")
    lines, _ = read_lines(
        [tmp_path / "many", tmp_path / "one"], "env_steps", "evaluation.return_mean", "mean", "none", 1
    )
    assert legend(lines) == ["many (3 runs)", "one (1 run)"]
    assert legend(lines[:1]) == ["many"]
