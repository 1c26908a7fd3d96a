"""`pgcli compare`: which runs it trains, reuses and resumes, its statistics and its sentences."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, pgcli

from pgcli.errors import ConfigError, RunDirectoryError, UsageError
from pgcli.report.scores import paired_difference
from pgcli.report.text import finite
from pgcli.runs.lock import lock
from pgcli.studies.comparison import analyze, write_report
from pgcli.studies.looks import read_looks
from pgcli.studies.page import comparison_text, markdown
from pgcli.studies.sentences import conclusion
from pgcli.studies.summaries import RunSummary, read_run
from pgcli.studies.variants import Comparison, Variant, parse_comparison, split_values

TINY = (
    "cartpole algorithm.baseline=none,mean training.env_steps=600 rollout.episodes=6 env.num_envs=6 "
    "policy.hidden_sizes=[4] evaluation.episodes=5"
).split()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_run(path: Path, returns: Sequence[float | str], status: str = "finished", **more: Any) -> Path:
    """Write a run directory with an evaluation after every iteration of 100 env steps."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"name: {json.dumps(path.parent.name)}\n")
    (path / "status.json").write_text(json.dumps({"status": status, "reason": more.get("reason", "")}))
    (path / "run.json").write_text(json.dumps({"reward_threshold": more.get("threshold"), "pgcli": "1"}))
    tables = {
        "evaluations": [
            f"iteration,env_steps,{more.get('column', 'return_mean')}",
            *(f"{k},{100 * k},{x}" for k, x in enumerate(returns)),
        ],
        "metrics": ["iteration,env_steps", *(f"{k},{100 * k + 100}" for k in range(len(returns) - 1))],
        "timing": [
            "iteration,elapsed_seconds,collect_seconds,update_seconds",
            *(f"{k},{k + 1.0},0.5,0.5" for k in range(len(returns) - 1)),
        ],
    }
    for name, lines in tables.items():
        (path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return path


def compared(tmp_path: Path, variants: Mapping[str, Sequence[Sequence[float | str]]], **more: Any) -> dict[str, Any]:
    """Analyze runs with these evaluations, by variant and seed."""
    column = more.get("column", "return_mean")
    runs = {
        label: [read_run(write_run(tmp_path / label / f"{k}", x, **more), k, column) for k, x in enumerate(seeds)]
        for label, seeds in variants.items()
    }
    return analyze(runs, column=column)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("none,mean", ["none", "mean"]),
        ("[32],[64,64]", ["[32]", "[64,64]"]),
        ("[32, 64]", ["[32, 64]"]),
        ("{a: 1, b: [2,3]},{a: 2}", ["{a: 1, b: [2,3]}", "{a: 2}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("0.1, 0.2", ["0.1", "0.2"]),
        ("it's,one's", ["it's", "one's"]),
        ("", [""]),
    ],
)
def test_values_are_split_at_the_commas_outside_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_the_variants_are_the_product_of_the_values_with_one_budget_for_all() -> None:
    words = ["policy.hidden_sizes=[8],[4,4]", "algorithm.gamma=0.9,0.99,1.0", "training.env_steps=1e3"]
    comparison = parse_comparison(["cartpole"], words, [3, 5], None)
    assert comparison.folder == Path("runs/cartpole-compare-hidden_sizes-gamma")
    assert [
        (variant.config.policy.hidden_sizes, variant.config.algorithm.gamma) for variant in comparison.variants
    ] == [(sizes, gamma) for sizes in ([8], [4, 4]) for gamma in (0.9, 0.99, 1.0)]
    assert comparison.variants[-1].label == "hidden_sizes=[4,4], gamma=1.0"
    assert {variant.config.training.env_steps for variant in comparison.variants} == {1000}
    assert {variant.config.evaluation.stop_at_return for variant in comparison.variants} == {None}
    assert "stop_at_return" in comparison.notices[0]
    assert [config.seed for config, _ in comparison.runs] == [3] * 6 + [5] * 6
    assert len({path for _, path in comparison.runs}) == 12


def test_a_budget_of_iterations_of_segments_is_one_of_env_steps() -> None:
    words = ["algorithm.gamma=0.9,0.99", "training.env_steps=null", "training.iterations=7"]
    comparison = parse_comparison(["cartpole/ppo"], words, [0], None)
    training = comparison.variants[0].config.training
    assert (training.env_steps, training.iterations) == (7 * 32 * 8, None)
    assert "1,792 env steps" in comparison.notices[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["algorithm.gamma=0.9"], "algorithm.baseline=none,mean"),
        (["algorithm.gamma=0.9,1.0"], "training.env_steps=100000"),
        (["algorithm.gamma=0.9,1.0", "training.seconds=9"], "training.seconds=null"),
        (["algorithm.gamma=0.9,1.0", "training.env_steps=9", "training.iterations=9"], "training.iterations=null"),
        (["algorithm.gamma=0.9,0.90", "training.env_steps=9"], "the same run"),
        (["algorithm.gamma=0.9,,1.0", "training.env_steps=9"], "empty value"),
        (["algorithm.gamma=0.9,1.0", "algorithm.gamma=0.5,0.6"], "twice"),
        (["algorithm.gamma=0.9,1.0", "seed=1"], "--seeds"),
        (["seed=1,2"], "--seeds"),
        (["training.env_steps=10,20"], "cannot differ between variants"),
        (["evaluation.mode=sampled,greedy"], "cannot differ between variants"),
        (["env.id=CartPole-v1,Acrobot-v1"], "changes the task"),
        (["algorithm.gama=0.9,1.0"], "did you mean `algorithm.gamma`"),
        (["algorithm.gamma=0.9,2.0", "training.env_steps=9"], "at most 1"),
    ],
)
def test_an_unfair_comparison_is_rejected_with_a_hint(words: list[str], told: str) -> None:
    with pytest.raises((UsageError, ConfigError)) as error:
        parse_comparison(["cartpole"], words, [0], None)
    assert told in str(error.value)
    assert error.value.exit_code == 2


def test_an_unfinished_run_counts_with_its_last_evaluation(tmp_path: Path) -> None:
    good = [read_run(write_run(tmp_path / f"good/{k}", [1, 50]), k) for k in range(3)]
    bad = [
        read_run(write_run(tmp_path / "bad/0", [2, 80], "diverged", reason="the loss is inf"), 0),
        read_run(write_run(tmp_path / "bad/1", [9, 4], "failed"), 1),
        read_run(tmp_path / "bad/2", 2),  # never came to its first evaluation
    ]
    result = analyze({"good": good, "bad": bad})
    assert [row["final_return"] for row in result["runs"]] == [50, 50, 50, 80, 4, 1]
    assert (result["arms"][1]["diverged"], result["arms"][1]["failed"]) == (1, 2)
    assert "`bad`, seed 0: diverged at iteration 1: the loss is inf. Its score is 80.0" in result["notes"][0]
    assert (
        result["notes"][2]
        == "`bad`, seed 2: not started at iteration 0. Its score is 1.000, the lowest of all evaluations."
    )
    with pytest.raises(RunDirectoryError, match="no run has an evaluation"):
        analyze({"bad": bad[2:]})


def test_the_threshold_is_the_environment_s_or_nine_tenths_of_the_way(tmp_path: Path) -> None:
    variants = {"a": [[0, 40, 100]] * 2, "b": [[0, 95, 20]] * 2}
    registered = compared(tmp_path / "1", variants, threshold=30)
    assert registered["threshold"] == 30
    assert [arm["steps_median"] for arm in registered["arms"]] == [100, 100]
    chosen = compared(tmp_path / "2", variants)
    assert chosen["threshold"] == 90
    assert [(arm["reached"], arm["steps_median"]) for arm in chosen["arms"]] == [(2, 200), (2, 100)]
    nothing = compared(tmp_path / "3", {"a": [[9, 5]] * 2, "b": [[9, 4]] * 2})
    assert nothing["threshold"] is None
    assert "no variant ends above" in nothing["threshold_rule"]


def test_another_column_is_compared_like_the_return(tmp_path: Path) -> None:
    """Also where evaluations lack the number, as of an environment that reports it only sometimes."""
    variants: dict[str, list[list[float | str]]] = {
        "a": [[0, 0.25, ""], [0, 0.5], [""]],
        "b": [[0, 0.75], [0.25, 1], [0, 1]],
    }
    found = compared(tmp_path, variants, threshold=475, column="is_success")
    assert found["column"] == "is_success"
    assert [run["final_is_success"] for run in found["runs"]] == [0.25, 0.5, 0, 0.75, 1, 1]
    assert found["pairs"][0]["sentence"].startswith("The mean `is_success` of `b` is above that of `a` by 0.667 (")
    assert "Higher values of `is_success` are assumed to be better." in found["notes"]
    assert any("`a`, seed 2: no evaluation has a number in `is_success`" in note for note in found["notes"])
    assert found["threshold"] == pytest.approx(0.05 + 0.9 * (11 / 12 - 0.05))  # not the threshold of the return
    assert "nan" not in str(found["arms"][0]["standard_error"])
    assert found["looks"][0]["column"] == "is_success"
    with pytest.raises(RunDirectoryError, match="no run has a number in column `is_success`"):
        compared(tmp_path / "none", {"a": [[""]], "b": [[""]]}, column="is_success")


def test_looks_at_another_column_are_of_their_own(tmp_path: Path) -> None:
    variants = {"a": [[0, 1], [0, 2], [0, 4]], "b": [[0, 5], [0, 7], [0, 6]]}
    looks = compared(tmp_path / "1", variants)["looks"]
    runs = {label: [read_run(tmp_path / "1" / label / f"{k}", k) for k in range(3)] for label in "ab"}
    other = analyze(runs, earlier=looks, column="is_success")
    assert (other["pairs"][0]["look"], other["pairs"][0]["seeds"]) == (1, 3)
    assert [look["column"] for look in other["looks"]] == ["return_mean", "is_success"]


def test_gradients_are_the_mean_variance_and_the_ratio_of_means_by_estimator(tmp_path: Path) -> None:
    """Of seed s: v of (1, 2, 9)(s + 1) with snr (1, 2, 9), so Σ snr v / Σ v = 86 / 12 on each seed."""
    runs: dict[str, list[RunSummary]] = {}
    for label, factor in (("a", 1), ("b", 10)):
        for seed in range(2):
            path = write_run(tmp_path / label / f"{seed}", [0, 1])
            lines = [
                f"{k},{100 * k},{name},{factor * x * (seed + 1)},{x}" for k, x in enumerate((1, 2, 9)) for name in "pq"
            ]
            head = "iteration,env_steps,estimator,gradient_variance,snr"
            (path / "gradients.csv").write_text("\n".join([head, *lines]) + "\n")
            runs.setdefault(label, []).append(read_run(path, seed))
    found = analyze(runs)["gradients"]
    assert [(row["arm"], row["estimator"], row["gradient_variance"]) for row in found] == [
        (label, name, value) for label, value in (("a", 6), ("b", 60)) for name in "pq"
    ]
    assert all(row["snr"] == row["snr_low"] == pytest.approx(86 / 12) for row in found)


def test_sentences_state_the_evidence_and_the_seeds_still_needed() -> None:
    x = np.array([10.0, 12, 14, 11, 13])
    shown = conclusion("a", "b", paired_difference(x, x - np.array([5, 6, 5, 6, 5])))
    assert shown == "The mean of `a` is above that of `b` by 5.4 (4.7 to 6.1; 5 paired seeds): shown."
    turned = conclusion("a", "b", paired_difference(x - np.array([5, 6, 5, 6, 5]), x))
    assert turned == shown.replace("`a` is above that of `b`", "`b` is above that of `a`")
    open_ = conclusion("a", "b", paired_difference(x, x - np.array([5, -4, 5, -4, 0])))
    assert open_.startswith("The mean of `a` is above that of `b` by 0.4 (-")
    assert "not shown with 5 paired seeds. About 998 (" in open_
    assert "or more) fresh seeds would show it. Another look counts only fresh seeds" in open_
    assert "at most 5 % false positives" in open_
    tiny = conclusion("a", "b", paired_difference(x, np.array([11, 13, 10, 14, 12.05])))
    assert re.search(r"seeds\. More than 10,000 \(\d+ or more\) fresh seeds would show it", tiny), tiny
    assert "nothing is shown" in conclusion("a", "b", paired_difference(x[:1], x[1:2]))
    assert "the same return on each of 5 seeds" in conclusion("a", "b", paired_difference(x, x))


def test_a_sentence_claims_no_mean_where_the_spreads_differ() -> None:
    ceiling, steady = np.full(8, 500.0), 420 + np.array([1.0, -4, 3, 6, -7, 2, 0, -1])
    found = conclusion("steady", "ceiling", paired_difference(steady, ceiling))
    assert found.startswith("A run of `ceiling` ends above one of `steady` with P = 1.00 (0.63 to 1.00; 8 paired")
    assert found.endswith("shown. No claim about means: their standard deviations differ (4.1 and 0.0).")
    few = conclusion("a", "b", paired_difference(ceiling[:3], steady[:3]))
    assert "not shown with 3 paired seeds, because their standard deviations differ" in few
    assert few.endswith("At least 6 fresh seeds could show that one ends above the other.")


def test_a_later_look_tests_fresh_seeds_only_and_is_repeatable(tmp_path: Path) -> None:
    def runs(seeds: range) -> dict[str, list[RunSummary]]:
        return {
            label: [
                read_run(path if path.exists() else write_run(path, [0, up + 0.1 * (7 * s % 5 - up * s % 3)]), s)
                for s in seeds
                for path in [tmp_path / label / f"{s}"]
            ]
            for label, up in (("a", 2), ("b", 1))
        }

    first = analyze(runs(range(5)))
    assert (first["pairs"][0]["look"], first["pairs"][0]["seeds"]) == (1, 5)
    assert first["pairs"][0]["confidence"] == pytest.approx(0.96)
    assert first["looks"] == [
        {"column": "return_mean", "a": "a", "b": "b", "look": 1, "seeds": [0, 1, 2, 3, 4], "seeds_b": [0, 1, 2, 3, 4]}
    ]
    again = analyze(runs(range(5)), earlier=first["looks"])
    assert again["pairs"] == first["pairs"]
    assert again["looks"] == first["looks"]
    second = analyze(runs(range(9)), earlier=first["looks"])
    assert (second["pairs"][0]["look"], second["pairs"][0]["seeds"]) == (2, 4)
    assert second["pairs"][0]["confidence"] == pytest.approx(0.992)
    assert second["pairs"][0]["difference"] == pytest.approx(
        analyze({k: v[5:] for k, v in runs(range(9)).items()})["pairs"][0]["difference"]
    )
    assert "4 fresh paired seeds, look 2" in second["pairs"][0]["sentence"]
    assert second["arms"][0]["seeds"] == 9  # the tables describe all
    less = analyze(runs(range(3)), earlier=second["looks"])
    assert (less["pairs"][0]["shown"], less["looks"]) == (False, second["looks"])
    assert "earlier looks used all these seeds" in less["pairs"][0]["sentence"]


@pytest.mark.parametrize("content", ["look,seeds\n1,0 1\n", "a,b,look,seeds\na,b,one,0 1\n", "a,b,look,seeds\na\n"])
def test_a_damaged_list_of_looks_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "looks.csv").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"looks\.csv: damaged"):
        read_looks(tmp_path / "looks.csv")


def test_the_part_of_the_evaluation_episodes_in_a_standard_error_is_named(tmp_path: Path) -> None:
    result = compared(tmp_path, {"a": [[0, 1], [0, 2], [0, 3]], "b": [[0, 50], [0, 60], [0, 70]]})
    assert math.isnan(result["arms"][0]["evaluation_standard_error"])  # an older version wrote none
    for path in tmp_path.glob("*/*/evaluations.csv"):
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(f"{x},{y}" for x, y in zip(lines, ["return_standard_error", 3, 3], strict=True)) + "\n"
        )
    runs = {label: [read_run(tmp_path / label / f"{k}", k) for k in range(3)] for label in "ab"}
    result = analyze(runs)
    assert [arm["evaluation_standard_error"] for arm in result["arms"]] == pytest.approx([3 / 3**0.5] * 2)
    notes = [note for note in result["notes"] if "evaluation.episodes" in note]
    assert len(notes) == 1
    assert notes[0].startswith("`a`: most of its spread")


def test_one_seed_has_no_intervals_and_json_has_no_nan(tmp_path: Path) -> None:
    runs = {label: [(0, write_run(tmp_path / label / "0", [0, x]))] for label, x in (("a|x", 5), ("b", 7))}
    words = ["algorithm.gamma=0.9,1.0", "training.env_steps=100"]
    config = parse_comparison(["cartpole"], words, [0], None).variants[0].config
    variants = [Variant(label, config, found) for label, found in runs.items()]
    result = write_report(Comparison(variants, tmp_path / "out", 100), None, ["compare"])
    assert math.isnan(result["arms"][0]["iqm_low"])
    json.dumps(finite(result), allow_nan=False)
    page = markdown(result)
    assert "nan" not in page.lower().replace("finance", "")
    assert "One seed has no spread" in page
    assert "nan" not in comparison_text(result)
    assert "| `a¦x` | 1 | 5.0 | 5.0 |  | 5.0 to 5.0 |" in page  # a bar in a name does not make another column


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a comparison."""
    folder = tmp_path_factory.mktemp("home")
    done = pgcli("compare", *TINY, "--seeds", "0,1", "--jobs", "2", "-o", "out", cwd=folder)
    assert done.stdout.splitlines()[0] == "out"
    assert "4 of 4 runs, 100 %" in done.stderr
    return folder


def test_a_comparison_leaves_a_report_figures_tables_and_runs(home: Path) -> None:
    out = home / "out"
    assert {path.name for path in out.iterdir()} == {
        *("report.md", "report.json", "returns.png", "differences.png", "curves.png"),
        *("arms.csv", "pairs.csv", "runs.csv", "settings.csv", "profile.csv", "looks.csv", "runs", ".lock"),
    }
    for row in rows(out / "runs.csv"):
        evaluations = rows(home / row["run"] / "evaluations.csv")
        assert float(row["final_return"]) == float(evaluations[-1]["return_mean"])
        assert int(row["env_steps"]) == int(evaluations[-1]["env_steps"]) >= 600
    for figure in out.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert f"({figure.name})" in (out / "report.md").read_text()
    for name in ("arms", "pairs", "runs", "profile"):
        assert all(None not in row and "nan" not in row.values() for row in rows(out / f"{name}.csv"))
    assert len(rows(out / "pairs.csv")) == 1


def test_a_column_of_the_evaluations_can_be_compared(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    words = [*TINY, "--seeds", "0,1", "-o", "out"]
    found = json.loads(pgcli("compare", *words, "-y", "return_median", "--json", cwd=tmp_path).stdout)
    last = [rows(tmp_path / run["run"] / "evaluations.csv")[-1] for run in found["runs"]]
    assert [run["final_return_median"] for run in found["runs"]] == [float(row["return_median"]) for row in last]
    shown = pgcli("compare", *words, "-y", "evaluation.length_mean", cwd=tmp_path)
    assert "final length: IQM" in shown.stdout
    assert "Higher values of length_mean are assumed to be better." in shown.stdout
    assert {row["final_length"] for row in rows(tmp_path / "out/runs.csv")} == {row["length_mean"] for row in last}
    assert [row["column"] for row in rows(tmp_path / "out/looks.csv")] == [
        "return_mean",
        "return_median",
        "length_mean",
    ]
    assert "the same length on each" in shown.stdout or "The mean length of" in shown.stdout
    wrong = pgcli("compare", *words, "-y", "lenght_mean", cwd=tmp_path, code=2)
    assert "did you mean `length_mean`?" in wrong.stderr
    text = pgcli("compare", *words, "-y", "mode", cwd=tmp_path, code=2)
    assert "evaluations.csv has no column of numbers `mode`" in text.stderr
    absent = pgcli("compare", *words, "-y", "is_success", cwd=tmp_path, code=4)
    assert "no run has a number in column `is_success`" in absent.stderr


def test_existing_runs_are_reused_and_only_missing_ones_are_trained(home: Path) -> None:
    files = sorted((home / "out/runs").glob("*/*/*.csv"))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    lost = next(path for path in (home / "out/runs").glob("*/seed-1"))
    shutil.rmtree(lost)
    again = pgcli("compare", *TINY, "--seeds", "0,1", "-o", "out", "--json", cwd=home)
    assert "1 of 1 runs, 100 %, 3 reused" in again.stderr
    assert json.loads(again.stdout)["seeds"] == [0, 1]
    for file, (time_, content) in before.items():
        assert (file.stat().st_mtime_ns == time_) == (file.parent != lost)
        assert file.name == "timing.csv" or file.read_bytes() == content
    assert [row["seeds"] for row in rows(home / "out/looks.csv")] == ["0 1"]  # the same seeds are the same look
    wider = pgcli("compare", *TINY, "algorithm.gamma=0.9,0.98", "--seeds", "0,1", "-o", "out", "-q", cwd=home)
    assert "baseline=mean, gamma=0.9" in wider.stdout
    looks = rows(home / "out/looks.csv")
    assert [row["look"] for row in looks] == ["1"] * len(looks)
    assert len(looks) == 6  # of four variants, of which two were there before under another name


def test_an_interrupted_comparison_continues_with_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Slow(CartPoleEnv):\n"
        "    def step(self, action):\n"
        "        time.sleep(0 if os.path.exists('fast') else 0.005)\n"
        "        return super().step(action)\n"
    )
    words = [*TINY, "env.id=slow:Slow", "env.max_episode_steps=50", "--seeds", "0", "--jobs", "2", "-o", "out"]
    process = Command("compare", *words, cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not any(file.read_text().count("\n") > 2 for file in tmp_path.glob("out/runs/*/*/metrics.csv")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "hint: run the same command again to continue" in process.stderr
    assert not (tmp_path / "out/report.md").exists()
    (tmp_path / "fast").touch()
    pgcli("compare", *words, "-q", cwd=tmp_path)
    run = next(tmp_path.glob("out/runs/baseline=none*/seed-0"))
    pgcli("train", run / "config.yaml", "--run-dir", "whole", "-q", cwd=tmp_path)
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_failing_environment_is_reported_counted_and_retried(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(
        "import gymnasium as gym, os\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Faulty(CartPoleEnv):\n"
        "    count = 0\n"
        "    def step(self, action):\n"
        "        Faulty.count += 1\n"
        "        if Faulty.count > 300 and not os.path.exists('fixed'):\n"
        "            raise RuntimeError('out of order')\n"
        "        return super().step(action)\n"
        "gym.register('Faulty-v0', Faulty, max_episode_steps=50)\n"
    )
    words = ["cartpole", "env.id=faulty:Faulty-v0", *TINY[1:], "--seeds", "0", "-o", "out", "-q"]
    broken = pgcli("compare", *words, cwd=tmp_path, code=3)
    assert "out of order" in broken.stderr
    assert "failed at iteration" in (tmp_path / "out/report.md").read_text()
    (tmp_path / "fixed").touch()
    fixed = pgcli("compare", *words, cwd=tmp_path)
    assert "failed" not in fixed.stdout


# Several configs, and existing runs

SMALL = [*TINY[2:], "evaluation.every=10"]  # a budget, and settings that configs share


def test_the_variants_are_the_product_of_configs_and_values() -> None:
    words = ["algorithm.gamma=0.9,1.0", "training.env_steps=1000"]
    comparison = parse_comparison(["cartpole/rloo", "cartpole/reinforce"], words, [0, 1], None)
    assert comparison.folder == Path("runs/cartpole-rloo-compare-cartpole-reinforce-gamma")
    assert [variant.label for variant in comparison.variants] == [
        f"{name}, gamma={gamma}" for name in ("cartpole/rloo", "cartpole/reinforce") for gamma in (0.9, 1.0)
    ]
    assert [variant.config.algorithm.baseline for variant in comparison.variants] == ["leave_one_out"] * 2 + [
        "none"
    ] * 2
    assert "differ in algorithm.baseline, algorithm.gamma, algorithm.standardize" in comparison.notices[-1]


@pytest.mark.parametrize(
    ("configs", "words", "told"),
    [
        (["cartpole/ppo", "cartpole/rloo"], [], "add training.env_steps=500000"),
        (["cartpole/ppo", "acrobot/ppo"], ["training.env_steps=9"], "`env.id` changes the task"),
        (["cartpole/rloo", "cartpole/rloo"], [], "occurs twice"),
        (["cartpole/rloo"], [], "nothing to compare"),
        ([], ["algorithm.gamma=0.9,1.0"], "nothing to compare"),
        (["cartpole/rloo", "cartpole/vpg"], ["seed=1"], "--seeds"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_configs_that_are_not_comparable_are_rejected(configs: list[str], words: list[str], told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_comparison(configs, words, [0], None)
    assert told in str(error.value)


def test_configs_with_other_evaluations_are_rejected(tmp_path: Path) -> None:
    for name, text in (("a", "{episodes: 5}"), ("b", "{episodes: 7}")):
        (tmp_path / f"{name}.yaml").write_text(f"{{env: {{id: CartPole-v1}}, evaluation: {text}}}\n")
    with pytest.raises(UsageError, match=r"`evaluation.episodes` is 5 and 7"):
        parse_comparison([f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml"], ["training.env_steps=9"], [0], None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a comparison of two configs, and a run of a third with segments."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["cartpole/rloo", "cartpole/reinforce", *SMALL, "--seeds", "0-2", "--jobs", "2", "-q"]
    pgcli("compare", *words, "-o", "out", cwd=folder)
    for run in (folder / "out/runs").glob("*/seed-*"):
        run.parent.with_name(run.parent.name.partition("-")[0]).mkdir(exist_ok=True)
        run.rename(run.parent.with_name(run.parent.name.partition("-")[0]) / run.name)
    (folder / "out/runs").rename(folder / "runs")
    segments = ["rollout.steps=10", "training.env_steps=600", "env.num_envs=6", "policy.hidden_sizes=[4]"]
    evaluated = ["evaluation.episodes=5", "evaluation.every=10", "--seeds", "0-2", "-q", "--run-dir", "runs/ppo"]
    pgcli("train", "cartpole/ppo", *segments, *evaluated, cwd=folder)
    return folder


def test_existing_runs_are_compared_as_those_that_it_trains(trained: Path, tmp_path: Path) -> None:
    words = ["runs/cartpole_rloo", "runs/cartpole_reinforce", "-o", tmp_path / "out"]
    before = {file: file.stat().st_mtime_ns for file in (trained / "runs").rglob("*")}
    done = json.loads(pgcli("compare", *words, "--json", cwd=trained).stdout)
    assert {file: file.stat().st_mtime_ns for file in (trained / "runs").rglob("*")} == before
    assert [arm["arm"] for arm in done["arms"]] == words[:2]
    assert done["seeds"] == [0, 1, 2]
    pair, same = done["pairs"][0], rows(trained / "out/pairs.csv")[0]
    assert (pair["unpaired"], pair["wins"]) == ("", int(same["wins"]))
    assert [pair[name] for name in ("difference", "difference_low", "improvement")] == pytest.approx(
        [float(same[name]) for name in ("difference", "difference_low", "improvement")]
    )
    found = {(row["key"], row["arm"]): row["value"] for row in done["settings"]}
    assert found[("algorithm.baseline", "runs/cartpole_rloo")] == "leave_one_out"
    assert "## Settings that differ" in (tmp_path / "out/report.md").read_text()
    fewer = json.loads(pgcli("compare", *words, "--seeds", "1,2", "--json", cwd=trained).stdout)
    assert fewer["seeds"] == [1, 2]
    assert "earlier looks used all these seeds" in fewer["pairs"][0]["sentence"]
    one = json.loads(pgcli("compare", "runs", "-o", tmp_path / "o", "--json", cwd=trained).stdout)
    assert [arm["arm"] for arm in one["arms"]] == ["cartpole-reinforce", "cartpole-rloo", "cartpole-ppo"]


def test_runs_with_other_start_states_or_seeds_are_not_paired(trained: Path, tmp_path: Path) -> None:
    done = pgcli("compare", "runs/ppo", "runs/cartpole_rloo", "-o", tmp_path / "1", cwd=trained)
    assert "unpaired, because their episodes begin with other reset seeds" in " ".join(done.stdout.split())
    assert rows(tmp_path / "1/pairs.csv")[0]["wins"] == ""
    shutil.copytree(trained / "runs/cartpole_rloo", tmp_path / "rloo")
    for seed in range(3):  # as if its seeds had been 5 to 7
        run = tmp_path / f"rloo/seed-{seed}"
        (run / "config.yaml").write_text(
            (run / "config.yaml").read_text().replace(f"seed: {seed}", f"seed: {seed + 5}")
        )
    done = pgcli("compare", "runs/cartpole_reinforce", tmp_path / "rloo", "-o", tmp_path / "2", cwd=trained)
    assert "unpaired, because they share no seeds" in " ".join(done.stdout.split())
    looks = rows(tmp_path / "2/looks.csv")
    assert [(look["seeds"], look["seeds_b"]) for look in looks] == [("0 1 2", "5 6 7")]


def test_copies_of_a_run_count_once(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs/cartpole_rloo", tmp_path / "copy")
    table = tmp_path / "copy/seed-0/evaluations.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))  # an unfinished copy
    two = ["runs/cartpole_rloo", tmp_path / "copy", "-o", tmp_path / "out"]
    alone = pgcli("compare", *two, cwd=trained, code=2)
    assert "nothing to compare" in alone.stderr
    assert "is a copy of" in alone.stderr
    done = pgcli("compare", *two, "runs/cartpole_reinforce", "--json", cwd=trained)
    assert [arm["seeds"] for arm in json.loads(done.stdout)["arms"]] == [3, 3]
    assert done.stderr.count("is a copy of runs/cartpole_rloo/seed-") == 3


def test_runs_with_unequal_budgets_or_mixed_arguments_are_rejected(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs/ppo", tmp_path / "longer")
    for config in tmp_path.glob("longer/*/config.yaml"):
        config.write_text(config.read_text().replace("env_steps: 600", "env_steps: 900"))
    output = ["-o", tmp_path / "out"]
    done = pgcli("compare", "runs/cartpole_rloo", tmp_path / "longer", *output, cwd=trained, code=2)
    assert "unequal budgets: `runs/cartpole_rloo` 600 env steps" in done.stderr
    assert "hint: `pgcli resume`" in done.stderr
    mixed = pgcli("compare", "runs/ppo", "cartpole/ppo", *output, cwd=trained, code=2)
    assert "they cannot be combined" in mixed.stderr
    keys = pgcli("compare", "runs/ppo", "runs/cartpole_rloo", "algorithm.gamma=1", *output, cwd=trained, code=2)
    assert "`algorithm.gamma=1` is a setting" in keys.stderr
    missing = pgcli("compare", "runs/ppo", "runs/cartpole_rlo", *output, cwd=trained, code=4)
    assert "did you mean `runs/cartpole_rloo/seed-0`?" in missing.stderr
    one = pgcli("compare", "runs/ppo", *output, cwd=trained, code=2)
    assert "nothing to compare: all runs of runs/ppo have one config" in one.stderr


def test_a_second_comparison_in_a_folder_is_rejected_before_its_first_run(tmp_path: Path) -> None:
    words = ["cartpole", "algorithm.gamma=0.9,0.99", "training.env_steps=100", "--seeds", "0", "-o", "out"]
    (tmp_path / "out").mkdir()
    with lock(tmp_path / "out"):
        done = pgcli("compare", *words, cwd=tmp_path, code=6)
    assert f"out is in use by process {os.getpid()}" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
