"""`pgcli show`: findings appear exactly where they apply; comparison of two runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import pgcli

from pgcli.config import Config, load_config, override
from pgcli.errors import RunDirectoryError
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection import explain, findings
from pgcli.inspection.explain import differ, difference_text, explanation_text, show
from pgcli.inspection.findings import Array
from pgcli.report.text import Finding
from pgcli.runs.lock import lock
from pgcli.runs.tables import read_table

K = np.arange(8.0)
NAN = np.full(8, np.nan)
ROOT = Path(__file__).parent.parent


def series(*values: float) -> Array:
    return np.array(values, np.float64)


def words(*values: str) -> Any:
    return np.array(values, object)


def falling(to: float) -> Array:
    return np.linspace(0.7, to, 8)


# name: what triggers it, where, a word of the key; and what is near, but does not
CASES: dict[str, tuple[Finding | None, int | None, str, list[Finding | None]]] = {
    "entropy_collapse": (
        findings.entropy_collapse(K, falling(0.006)),
        7,
        "entropy_coef",
        [findings.entropy_collapse(K, falling(0.008)), findings.entropy_collapse(K, NAN)],
    ),
    "narrow_actions": (
        findings.narrow_actions(K, series(1, 0.5, 0.009, 0.5, 1, 1, 1, 1)),
        2,
        "entropy_coef",
        [findings.narrow_actions(K, series(1, 0.5, 0.011, 0.5, 1, 1, 1, 1)), findings.narrow_actions(K, NAN)],
    ),
    "clipped_actions": (
        findings.clipped_actions(K, np.full(8, 1.0)),
        6,
        "tanh_gaussian",
        [findings.clipped_actions(K, np.full(8, 0.49)), findings.clipped_actions(K, NAN)],
    ),
    "low_snr": (
        findings.low_snr(K, series(1, 1, 1, 1, 1, 1, 0.01, 9), series(1, 1, 1, 1, 1, 1, 99, 0.9)),  # 0.0909 in all
        6,
        "rollout",
        [
            findings.low_snr(K, series(0, 0, 0, 0, 0, 0, 0.01, 9), series(1, 1, 1, 1, 1, 1, 89, 1.1)),
            findings.low_snr(K, NAN, K),
        ],
    ),
    "cut_by_horizon": (
        findings.cut_by_horizon(series(0, 1, 2, 3, 3), words("terminated", "horizon", "horizon", "horizon", "horizon")),
        3,
        "rollout.horizon",
        [
            findings.cut_by_horizon(series(0, 1, 2, 3, 3), words(*["horizon"] * 4, "terminated")),
            findings.cut_by_horizon(series(), words()),
        ],
    ),
    "zero_variance_groups": (
        findings.zero_variance_groups(K, series(0, 0, 0, 0, 0, 0, 2, 3), 4),
        6,
        "group_size",
        [findings.zero_variance_groups(K, series(4, 4, 4, 4, 4, 4, 2, 2), 4), findings.zero_variance_groups(K, NAN, 4)],
    ),
    "low_effective_sample_size": (
        findings.low_effective_sample_size(K, np.full(8, 49.0), np.full(8, 100.0)),
        6,
        "reuse",
        [
            findings.low_effective_sample_size(K, np.full(8, 51.0), np.full(8, 100.0)),
            findings.low_effective_sample_size(K, NAN, K + 1),
        ],
    ),
    "greedy_gap": (
        findings.greedy_gap(K, np.full(8, 62.0), np.full(8, 1.0), np.full(8, 70.0), np.full(8, 1.0)),
        7,
        "entropy_coef",
        [
            findings.greedy_gap(K, np.full(8, 56.0), np.full(8, 3.0), np.full(8, 70.0), np.full(8, 4.0)),  # 2.8 errors
            findings.greedy_gap(K, np.full(8, 64.0), np.full(8, 0.1), np.full(8, 70.0), np.full(8, 0.1)),  # 9 %
            findings.greedy_gap(K, NAN, NAN, K, K),
        ],
    ),
    "clip_fraction": (
        findings.clip_fraction(K, np.full(8, 0.31), 4),
        6,
        "learning_rate",
        [findings.clip_fraction(K, np.full(8, 0.29), 4), findings.clip_fraction(K, NAN, 4)],
    ),
    "explained_variance": (
        findings.explained_variance(K, series(1, 1, 1, 1, 1, 1, -0.011, -0.011)),
        6,
        "value.",
        [
            findings.explained_variance(K, series(-9, -9, -9, -9, -9, -9, -0.009, -0.009)),
            findings.explained_variance(K, NAN),
        ],
    ),
    "small_steps": (
        findings.small_steps(10, 0.0099, 10.0, 100),
        10,
        "learning_rate",
        [findings.small_steps(10, 0.0101, 10.0, 100), findings.small_steps(10, 0.0, 10.0, 0)],
    ),
    "evaluation_time": (
        findings.evaluation_time(K, K, 2.1 * K, 5),
        None,
        "evaluation.every=50",
        [
            findings.evaluation_time(K, K, 1.9 * K, 5),
            findings.evaluation_time(K, K, 9 * K, None),
            findings.evaluation_time(0 * K, 0 * K, 0 * K, 5),
        ],
    ),
    "large_kl": (
        findings.large_kl(K, series(0, 0, 0, 0.051, 0, 0, 0, 0)),
        3,
        "target_kl",
        [
            findings.large_kl(K, np.full(8, 0.049)),
            findings.large_kl(np.arange(20.0), np.eye(20)[3] + np.eye(20)[5]),
            findings.large_kl(K, NAN),
        ],
    ),
    "fell_after_best": (
        findings.fell_after_best(10 * K[:4], series(0, 50, 100, 70), np.full(4, 2.0)),
        20,
        "learning_rate",
        [
            findings.fell_after_best(10 * K[:4], series(0, 50, 100, 81), np.full(4, 2.0)),  # 19 % of the gain
            findings.fell_after_best(10 * K[:4], series(0, 50, 100, 70), np.full(4, 6.6)),  # 3.2 errors, 3 looks
            findings.fell_after_best(10 * K[:4], series(0, 50, 100, 70), NAN[:4]),  # one episode each
            findings.fell_after_best(10 * K[:2], series(9, 0), np.full(2, 1.0)),
        ],
    ),
    "no_gain": (
        findings.no_gain(K[:3], series(20, 22, 24), np.full(3, 1.0)),
        2,
        "learning_rate",
        [
            findings.no_gain(K[:3], series(20, 25, 20), np.full(3, 1.0)),
            findings.no_gain(K[:1], series(2), series(1)),
            findings.no_gain(K[:3], series(20, 25, 20), NAN[:3]),  # one episode each
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_finding_appears_exactly_where_it_should(name: str) -> None:
    found, iteration, key, others = CASES[name]
    assert found is not None
    assert found.iteration == iteration
    assert key in found.key
    assert others == [None] * len(others)


@pytest.mark.parametrize("evaluations", [5, 50, 200])
def test_chance_alone_rarely_makes_a_plateau_fall_or_an_untrained_policy_learn(evaluations: int) -> None:
    """20,000 runs: a gain of 10 errors and no fall, or no gain. The rate is 1 in 740 however often they evaluate."""
    noise = np.random.default_rng(0).normal(size=(20_000, evaluations))
    error, at = np.ones(evaluations), np.arange(float(evaluations))
    start = np.where(at == 0, 1.0, 0.0)
    fell = sum(findings.fell_after_best(at, 10 * (1 - start) + row, error) is not None for row in noise)
    learned = sum(findings.no_gain(at, row, error) is None for row in noise)
    assert fell < 50
    assert learned < 50


def test_every_finding_has_a_case() -> None:
    functions = {
        name for name, item in vars(findings).items() if callable(item) and item.__module__ == findings.__name__
    }
    assert functions - {name for name in functions if name.startswith("_")} == CASES.keys()


def test_a_clip_without_effect_is_reported_with_its_reason() -> None:
    one, several = (findings.clip_fraction(K, np.full(8, 0.0009), steps) for steps in (1, 8))
    assert one is not None
    assert several is not None
    assert "one optimizer step" in one.text
    assert "hardly changes" in several.text
    assert findings.clip_fraction(K, series(0.0011, 0, 0, 0, 0, 0, 0, 0), 8) is None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with known faults: all episodes cut, a step too small, most of its time evaluating."""
    path = tmp_path_factory.mktemp("show") / "run"
    overrides = [
        *("training.iterations=8", "rollout.horizon=5", "rollout.episodes=4", "env.num_envs=4", "checkpoint.keep=9"),
        *(
            "evaluation.every=2",
            "evaluation.episodes=40",
            "evaluation.stop_at_return=null",
            "optimizer.learning_rate=1e-9",
        ),
        *("policy.hidden_sizes=[8]", "checkpoint.every=2"),
    ]
    run_experiment(Request(load_config("cartpole", overrides), path, ["train"]))
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def names(path: Path) -> set[str]:
    return {finding["name"] for finding in show(path)["findings"]}


def test_a_run_is_explained_from_its_directory_alone(run: Path) -> None:
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.rglob("*") if file.is_file()}
    result = show(run)
    assert {"cut_by_horizon", "small_steps", "evaluation_time", "no_gain"} <= names(run)
    assert (result["status"], result["iterations"], result["episodes"], result["env_steps"]) == ("finished", 8, 32, 160)
    assert result["changed"]["optimizer.learning_rate"] == 1e-9
    assert result["untrained"]["iteration"] == 0
    assert result["evaluation"]["iteration"] == 8
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert {"clip_fraction", "low_snr", "greedy_gap"} <= set(result["not_applicable"])
    text = explanation_text(result)
    assert max(map(len, text.splitlines())) <= 80
    assert "rollout.horizon=null" in text
    json.dumps(result, allow_nan=False)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.rglob("*") if file.is_file()} == before


def test_a_run_without_findings_is_reported_as_such(run: Path) -> None:
    result = show(run) | {"findings": []}
    assert "no problems: " in explanation_text(result)
    assert "do not apply" in explanation_text(result)


def test_warnings_become_notes_once_the_goal_is_reached(run: Path) -> None:
    def levels() -> set[str]:
        return {finding["level"] for finding in show(run)["findings"] if finding["name"] == "small_steps"}

    assert levels() == {"warning"}
    information = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(information | {"reward_threshold": 5}))
    assert levels() == {"note"}


def test_the_signal_to_noise_ratio_is_read_where_it_is_measured(run: Path) -> None:
    rows = [f"{k},{k},{name},{value},{value}" for k in range(8) for name, value in (("own", 0.05), ("other", 5))]
    (run / "gradients.csv").write_text("\n".join(["iteration,env_steps,estimator,gradient_variance,snr", *rows]) + "\n")
    assert "low_snr" in names(run)
    (run / "gradients.csv").write_text((run / "gradients.csv").read_text().replace("0.05", "0.5"))
    assert "low_snr" not in names(run)


@pytest.mark.parametrize(
    ("status", "told", "key"),
    [
        ({"status": "diverged", "reason": "the loss is inf"}, "diverged: the loss is inf", "learning_rate"),
        ({"status": "interrupted", "reason": "by SIGINT"}, "interrupted: by SIGINT", "pgcli resume"),
        ({"status": "failed", "reason": "no disk"}, "failed: no disk", "pgcli resume"),
        ({"status": "running"}, "killed", "pgcli resume"),
    ],
    ids=lambda value: value.get("status") if isinstance(value, dict) else "",
)
def test_an_unfinished_run_shows_the_next_command(run: Path, status: dict[str, Any], told: str, key: str) -> None:
    (run / "status.json").write_text(json.dumps(status | {"iteration": 8}))
    first = show(run)["findings"][0]
    assert told in first["text"]
    assert key in first["key"]
    assert str(run) in first["key"]


def test_a_running_run_is_shown_so_far(run: Path) -> None:
    (run / "status.json").write_text('{"status": "running"}')
    for name in ("metrics.csv", "timing.csv", "episodes.csv", "evaluations.csv"):
        (run / name).write_bytes((run / name).read_bytes()[:-7])  # half a line
    with lock(run):
        result = show(run)
    assert result["status"] == "running"
    assert result["iterations"] == 7
    assert "status" not in {finding["name"] for finding in result["findings"]}
    (run / "evaluations.csv").write_text("iteration,env_st")
    assert show(run)["evaluation"] is None
    assert "no evaluation yet" in explanation_text(show(run))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def shorten(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def garble(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].rpartition(",")[0], *lines[3:]]) + "\n")


def misspell(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace("1,", "1,zwei", 1), *lines[3:]]) + "\n")


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("metrics.csv", Path.unlink, "is missing"),
        ("timing.csv", Path.unlink, "is missing"),
        ("metrics.csv", cut, "is incomplete"),
        ("metrics.csv", shorten, "has 7 rows, but status.json reports 8"),
        ("episodes.csv", garble, "line 3 has 5 cells instead of 6"),
        ("metrics.csv", misspell, "line 3 has `zwei"),
        ("evaluations.csv", lambda path: path.write_text(""), "no header with the column names"),
        ("status.json", cut, "not JSON"),
        ("run.json", Path.unlink, "No such file"),
        ("config.yaml", lambda path: path.write_text("unknown: 3"), "not a valid config"),
        ("config.yaml", Path.unlink, "has no config.yaml"),
        ("checkpoints/iteration-000008.safetensors", cut, "damaged, or not a checkpoint"),
    ],
)
def test_missing_or_damaged_files_are_reported(
    run: Path, name: str, damage: Callable[[Path], object], told: str
) -> None:
    damage(run / name)
    with pytest.raises(RunDirectoryError) as error:
        show(run)
    assert told in error.value.message
    assert error.value.exit_code == 4
    assert error.value.hint


def test_two_runs_are_equal_or_their_first_difference_is_shown(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    assert differ(run, other)["same"]
    assert "identical: metrics.csv" in difference_text(differ(run, other))
    lines = (other / "metrics.csv").read_text().splitlines()
    cells = lines[4].split(",")
    cells[3] = "9.25"
    (other / "metrics.csv").write_text("\n".join([*lines[:4], ",".join(cells), *lines[5:]]) + "\n")
    shorten(other / "episodes.csv")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("gamma: 0.98", "gamma: 0.97"))
    (other / "run.json").write_text((other / "run.json").read_text().replace('"pgcli": "0', '"pgcli": "9'))
    result = differ(run, other)
    assert not result["same"]
    assert result["config"] == {"algorithm.gamma": [0.98, 0.97]}
    assert list(result["versions"]) == ["pgcli"]
    metrics, evaluations, episodes = result["tables"].values()
    assert (metrics["iteration"], list(metrics["columns"])) == (3, ["return_mean"])
    assert metrics["columns"]["return_mean"][1] == "9.25"
    assert evaluations["same"]
    assert (episodes["iteration"], episodes["why"]) == (7, f"{other / 'episodes.csv'} ends here")
    text = difference_text(result)
    assert "identical before iteration 3, where line 5 differs: return_mean" in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80


def test_show_imports_neither_torch_nor_an_environment(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("CartPole-v1", "evil:Evil-v0"))
    (run.parent / "evil.py").write_text("import os; os._exit(99)\n")
    program = (
        "import sys, pgcli.__main__ as m; sys.argv = ['pgcli', 'show', *sys.argv[1:]]; code = m._run(); "
        "heavy = {'torch', 'gymnasium', 'matplotlib', 'evil'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    for arguments in ([run], [run, run], [run, "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=run.parent, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["env"] == "evil:Evil-v0"
    assert "hint: " in pgcli("show", "nowhere", cwd=ROOT, code=4).stderr


def test_a_million_rows_are_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    lines = b"".join(b"%d,%d,17.5,12.25,17,%s\n" % (k // 10, k, b"horizon" if k % 2 else b"") for k in range(10**6))
    path.write_bytes(b"iteration,episode,return,discounted_return,length,ended\n" + lines)
    begin = time.process_time()
    found = read_table(path, ("length", "ended"), whole=True)
    assert time.process_time() - begin < 10
    assert found.rows == 10**6
    assert found["length"].sum() == 17 * 10**6
    assert found["iteration"][-1] == 99_999
    assert (found.words["ended"] == "horizon").sum() == 500_000


def test_a_policy_that_the_first_update_destroyed_is_found_in_row_0() -> None:
    for start in (0.0, 1e-9):
        found = findings.entropy_collapse(K, np.full(8, start))
        assert found is not None
        assert (found.iteration, found.key) == (0, "a lower optimizer.learning_rate")
    assert findings.entropy_collapse(K, series(0.001, *[0.3] * 7)) is None, "it came back"


@pytest.mark.parametrize(
    ("overrides", "advice", "left"),
    [
        ([], "optimizer.schedule=linear, or a lower optimizer.learning_rate", None),
        (["optimizer.schedule=linear"], "optimizer.schedule=linear, or a lower optimizer.learning_rate", "a lower "),
        (["optimizer.schedule=cosine"], "optimizer.schedule=linear, or a lower optimizer.learning_rate", "a lower "),
        ([], "algorithm.entropy_coef=0.01", None),
        (["algorithm.entropy_coef=0.05"], "algorithm.entropy_coef=0.01", "a larger algorithm.entropy_coef"),
        (["algorithm.estimator=my.py:f"], "algorithm.entropy_coef=0.01", ""),
        ([], "algorithm.target_kl=0.02, or a lower optimizer.learning_rate", "a lower optimizer"),
        (["algorithm.objective=clip", "algorithm.target_kl=0.01"], "algorithm.target_kl=0.02", "a lower algorithm.t"),
        (["algorithm.objective=clip", "algorithm.target_kl=0.1"], "algorithm.target_kl=0.02", None),
        (["algorithm.baseline=value"], "value.update_epochs=10, or another value.learning_rate", None),
        (["algorithm.baseline=value", "value.update_epochs=20"], "value.update_epochs=10", "a larger value.update"),
        (["algorithm.baseline=value", "value.shared_trunk=true"], "value.update_epochs=10", ""),
        (["rollout.horizon=5"], "rollout.horizon=null", None),
        ([], "more rollout.episodes or rollout.steps", None),
    ],
)
def test_inapplicable_advice_is_omitted(overrides: list[str], advice: str, left: str | None) -> None:
    found = explain._new_advice(advice, override(Config(), overrides))
    assert found.startswith(advice if left is None else left)
    assert found if left != "" else not found


def test_a_run_with_an_estimator_of_the_users_own_points_to_its_check() -> None:
    (finding,) = explain._of_status(
        Path(), "finished", {}, {}, override(Config(), ["algorithm.estimator=my.py:reinforce"])
    )
    assert finding.key == "pgcli check my.py:reinforce"
    assert not list(explain._of_status(Path(), "finished", {}, {}, Config()))


def evaluated(run: Path, mean: float, error: float | None, episodes: int = 100) -> Path:
    """Write the last evaluation of a copied run."""
    lines = (run / "evaluations.csv").read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    row |= {"return_mean": repr(mean), "return_standard_error": "" if error is None else repr(error)}
    row["evaluation_episodes"] = str(episodes)
    (run / "evaluations.csv").write_text("\n".join([*lines[:-1], ",".join(row.values())]) + "\n")
    return run


@pytest.mark.parametrize(
    ("values", "better", "words"),
    [
        ((200.0, 9.0), "b", "b is better"),
        ((20.0, 1.0), "a", "a is better"),
        ((101.0, 5.0), None, "no significant difference"),
        ((110.0, 1.5), "b", "95 %"),
        ((300.0, None), None, "have no interval"),
    ],
)
def test_the_better_of_two_runs_is_named_with_a_warning_about_one_seed(
    values: tuple[float, float | None], better: str | None, words: str, made: Path, tmp_path: Path
) -> None:
    a = evaluated(Path(shutil.copytree(made, tmp_path / "a")), 100.0, 2.0)
    b = evaluated(Path(shutil.copytree(made, tmp_path / "b")), *values)
    result = differ(a, b)
    assert result["better"]["better"] == better
    text = " ".join(difference_text(result).split())
    assert words in text
    assert "to compare configs over seeds" in text
    if values == (110.0, 1.5):  # equal spread would give 1.972 · √(2² + 1.5²) = 4.93
        assert result["better"]["low"] == pytest.approx(10 - 4.93, abs=0.01)
    json.dumps(result, allow_nan=False)


def test_runs_in_other_environments_are_not_compared(made: Path, tmp_path: Path) -> None:
    b = evaluated(Path(shutil.copytree(made, tmp_path / "b")), 500.0, 1.0)
    text = (b / "config.yaml").read_text()
    (b / "config.yaml").write_text(text.replace("max_episode_steps: null", "max_episode_steps: 7"))
    assert differ(made, b)["better"]["unlike"] == ["env"]
    assert "the returns are not comparable: the runs differ in env" in " ".join(
        difference_text(differ(made, b)).split()
    )
