"""The command line, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
from command_line import Command, pgcli

from pgcli import __version__
from pgcli.cli import app
from pgcli.config import load_config
from pgcli.report.logs import logged
from pgcli.runs import checkpoints

TINY = [
    "rollout.episodes=6",
    "env.num_envs=4",
    "policy.hidden_sizes=[8]",
    "training.iterations=6",
    "evaluation.every=2",
    "evaluation.episodes=5",
    "evaluation.stop_at_return=null",
    "checkpoint.every=2",
]
HEADER = (
    "iteration,env_steps,episodes,return_mean,return_standard_error,return_standard_deviation,return_min,return_max,"
    "length_mean,discounted_return_mean,policy_loss,value_loss,entropy,approx_kl,clip_fraction,effective_sample_size,"
    "explained_variance,grad_norm,learning_rate,"
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(run: Path) -> dict[str, bytes]:
    """Files that are covered by the promise of equal bytes."""
    names = ["metrics.csv", "evaluations.csv", "episodes.csv"]
    last = sorted((run / "checkpoints").glob("*.safetensors"))[-1]
    return {name: (run / name).read_bytes() for name in names} | {last.name: last.read_bytes()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("finished")
    done = pgcli("train", "cartpole", *TINY, "--run-dir", "run", cwd=folder)
    assert done.stdout == "run\n", "stdout is the run directory, nothing else"
    return folder / "run"


def test_a_run_directory_has_the_documented_files(finished: Path) -> None:
    assert (finished / "metrics.csv").read_text().startswith(HEADER), "more columns may follow"
    metrics = rows(finished / "metrics.csv")
    assert [int(row["iteration"]) for row in metrics] == list(range(6))
    assert [int(row["episodes"]) for row in metrics] == [6, 12, 18, 24, 30, 36]
    assert [int(row["iteration"]) for row in rows(finished / "evaluations.csv")] == [0, 2, 4, 6]
    assert all(row["value_loss"] == "" for row in metrics), "metrics that do not apply are empty"
    files = {path.name for path in (finished / "checkpoints").glob("*.safetensors")}
    assert {"iteration-000002.safetensors", "iteration-000004.safetensors", "iteration-000006.safetensors"} <= files
    latest = json.loads((finished / "checkpoints/latest.json").read_text())
    assert set(latest) == {"file", "iteration", "sha256"}
    assert latest["iteration"] == 6
    assert json.loads((finished / "status.json").read_text())["status"] == "finished"
    run = json.loads((finished / "run.json").read_text())
    assert run["exact"] is True
    assert run["command"][:2] == ["train", "cartpole"]
    assert not list(finished.rglob(".writing-*"))


def test_the_tables_are_consistent(finished: Path) -> None:
    metrics, episodes = rows(finished / "metrics.csv"), rows(finished / "episodes.csv")
    assert [int(row["episode"]) for row in episodes] == list(range(36))
    for row in metrics:
        own = [float(e["return"]) for e in episodes if e["iteration"] == row["iteration"]]
        assert float(row["return_mean"]) == pytest.approx(sum(own) / 6)
        assert float(row["return_min"]) == min(own)
        assert float(row["return_max"]) == max(own)
    lengths = [int(e["length"]) for e in episodes]
    assert int(metrics[-1]["env_steps"]) == sum(lengths)
    assert [float(e["return"]) for e in episodes] == lengths, "CartPole pays one per step"
    assert {e["ended"] for e in episodes} <= {"terminated", "truncated"}


def test_the_resolved_config_repeats_the_run_to_the_byte(finished: Path, tmp_path: Path) -> None:
    pgcli("train", finished / "config.yaml", "--run-dir", "again", "--quiet", cwd=tmp_path)
    assert contents(tmp_path / "again") == contents(finished)


def test_another_seed_gives_other_results(finished: Path, tmp_path: Path) -> None:
    pgcli("train", "cartpole", *TINY, "seed=1", "--run-dir", "other", cwd=tmp_path)
    ours, theirs = contents(tmp_path / "other"), contents(finished)
    assert all(ours[name] != theirs[name] for name in ours)


SEGMENTS = [
    "rollout={episodes: null, steps: 9}",
    "algorithm={returns: lambda_return, baseline: value, objective: clip, update_epochs: 2, num_minibatches: 2, "
    "clip_range_schedule: linear, entropy_coef: 0.01, entropy_coef_schedule: cosine}",
    "optimizer={schedule: linear, learning_rate: 0.003}",
    "value={normalize_returns: true}",
]


SLOW = pytest.mark.slow("trains each three times")


@pytest.mark.parametrize(
    ("number", "env"),
    [
        (signal.SIGKILL, [*SEGMENTS, "policy={normalize_obs: true, hidden_sizes: [8]}", "env.id=Pendulum-v1"]),
        pytest.param(
            signal.SIGINT,
            [*SEGMENTS, "policy={init: orthogonal, hidden_sizes: [8]}", "env.id=LunarLander-v3"],
            marks=SLOW,
        ),
        pytest.param(
            signal.SIGINT,
            [
                "algorithm={objective: importance_sampling, reuse: 3, update_epochs: 2, importance_bound: 2}",
                "policy={normalize_obs: true, distribution: state_dependent_gaussian, hidden_sizes: [8]}",
                "env.id=InvertedPendulum-v5",
            ],
            marks=SLOW,
        ),
        pytest.param(
            signal.SIGKILL,
            ["algorithm={returns: vtrace, baseline: value, objective: importance_sampling, reuse: 2}"],
            marks=SLOW,
        ),
        (signal.SIGTERM, ["env.vectorization=native"]),
        pytest.param(signal.SIGINT, ["env.vectorization=sync"], marks=SLOW),
        pytest.param(
            signal.SIGKILL,
            ["env.id=FrozenLake-v1", "algorithm.baseline=group", "algorithm.group_size=5"],
            marks=SLOW,
        ),
    ],
)
def test_a_stopped_and_resumed_run_has_the_bytes_of_an_uninterrupted_run(
    number: signal.Signals, env: list[str], tmp_path: Path
) -> None:
    long = [
        *TINY,
        "training.iterations=80",
        "rollout.episodes=10",
        "checkpoint.every=7",
        "env.max_episode_steps=30",
        *env,
    ]
    pgcli("train", "cartpole", *long, "--run-dir", "whole", cwd=tmp_path)
    process = Command("train", "cartpole", *long, "--run-dir", "cut", "--resume", cwd=tmp_path)
    metrics = tmp_path / "cut/metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 8):
        time.sleep(0.005)
    process.send_signal(number)
    begin = time.monotonic()
    stderr = process.finished(30).stderr
    if number is signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 128 + number, stderr
        assert time.monotonic() - begin < 2
        assert "hint: `pgcli resume cut` continues the run" in stderr
        assert json.loads((tmp_path / "cut/status.json").read_text())["status"] == "interrupted"
    assert len(rows(metrics)) < 80, "it had finished already: nothing was tested"
    pgcli("resume", "cut", cwd=tmp_path)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "cut/run.json").read_text())["exact"] is True


@pytest.mark.parametrize("number", [signal.SIGHUP])
def test_a_signal_during_a_long_update_stops_it_within_two_seconds_without_loss(
    number: signal.Signals, tmp_path: Path
) -> None:
    long = [
        *("cartpole/ppo", "rollout.steps=32", "training.iterations=2", "training.env_steps=null"),
        *("algorithm.update_epochs=150", "algorithm.num_minibatches=32", "algorithm.target_kl=null"),
        *("evaluation.episodes=2", "evaluation.every=null", "evaluation.stop_at_return=null"),
    ]
    pgcli("train", *long, "--run-dir", "whole", cwd=tmp_path)
    process = Command("train", *long, "--run-dir", "cut", cwd=tmp_path)
    metrics = tmp_path / "cut/metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 1):
        time.sleep(0.005)
    time.sleep(0.5)  # collecting takes less, and updating more
    process.send_signal(number)
    begin = time.monotonic()
    done = process.finished(60)
    assert done.returncode == 128 + number, done.stderr
    assert time.monotonic() - begin < 2
    assert len(rows(metrics)) == 1
    pgcli("resume", "cut", cwd=tmp_path)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param([], id="one run"),
        pytest.param(["--seeds", "0-1", "--jobs", "2"], id="two at a time", marks=pytest.mark.slow("starts two jobs")),
    ],
)
def test_a_requested_checkpoint_is_saved_and_training_continues(seeds: list[str], tmp_path: Path) -> None:
    never = ["training.iterations=400", "checkpoint.every=null", "evaluation.every=null", "env.max_episode_steps=30"]
    process = Command("train", "cartpole", *TINY, *never, *seeds, "--run-dir", "run", cwd=tmp_path)
    folders = [tmp_path / "run" / name for name in (("seed-0", "seed-1") if seeds else ("",))]
    metrics = [folder / "metrics.csv" for folder in folders]
    while process.poll() is None and not all(m.exists() and len(m.read_bytes().splitlines()) > 3 for m in metrics):
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    saved: set[Path] = set()
    while process.poll() is None and len(saved) < len(folders):
        for folder in folders:
            names = [path for path in (folder / "checkpoints").glob("iteration-*") if "000000" not in path.name]
            saved |= {folder} if names and "iteration-000400" not in names[0].name else set()
        time.sleep(0.002)
    assert len(saved) == len(folders)
    assert process.wait(60) == 0
    assert all(len(rows(m)) == 400 for m in metrics)


def test_a_finished_run_is_extended_to_the_bytes_of_one_long_run(finished: Path, tmp_path: Path) -> None:
    pgcli("train", "cartpole", *TINY, "training.iterations=3", "--run-dir", "run", cwd=tmp_path)
    pgcli("resume", "run", "training.iterations=6", cwd=tmp_path)
    assert contents(tmp_path / "run") == contents(finished)
    assert load_config(str(tmp_path / "run/config.yaml")).training.iterations == 6


def test_resuming_a_finished_run_reports_it_and_changes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    done = pgcli("resume", finished, cwd=finished.parent)
    assert "already finished" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("budget", "ended", "larger"),
    [
        (["training.env_steps=100"], "training.env_steps=100 is used up", "training.env_steps="),
        (["training.iterations=2"], "training.iterations=2 is used up", "training.iterations=4"),
        (
            ["training.iterations=100", "evaluation.stop_at_return=1"],
            "stopped early: mean return ≥ 1",
            "stop_at_return=null",
        ),
    ],
)
def test_resume_names_the_used_budget_and_rejects_changes_without_effect(
    budget: list[str], ended: str, larger: str, tmp_path: Path
) -> None:
    settings = [one for one in TINY if "iterations" not in one and "stop_at" not in one]
    pgcli("train", "cartpole", *settings, *budget, "--run-dir", "run", "-q", cwd=tmp_path)

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.name != ".lock"}

    before = files()
    done = pgcli("resume", "run", cwd=tmp_path)
    assert f"already finished: {ended}; `pgcli resume run " in done.stderr
    assert larger in done.stderr
    if "stop_at" not in larger:
        in_vain = ["training.iterations=null", "training.env_steps=10"]
        done = pgcli("resume", "run", *in_vain, cwd=tmp_path, code=2)
        assert "would not continue it" in done.stderr
        assert files() == before
        steps = rows(tmp_path / "run/metrics.csv")[-1]["env_steps"]
        assert f"hint: `pgcli resume run training.env_steps={2 * int(steps)}` extends it" in done.stderr
    advice = done.stderr.rpartition("`pgcli resume run ")[2].partition("`")[0].split()
    pgcli("resume", "run", *advice, "training.iterations=4", cwd=tmp_path)
    assert len(rows(tmp_path / "run/metrics.csv")) > before[tmp_path / "run/metrics.csv"].count(b"\n") - 1


def test_the_final_checkpoint_is_kept_when_a_run_is_extended(tmp_path: Path) -> None:
    settings = [*TINY, "checkpoint.every=4", "checkpoint.keep=1", "evaluation.every=null"]
    pgcli("train", "cartpole", *settings, "training.iterations=3", "--run-dir", "run", cwd=tmp_path)
    for end in (6, 9):
        pgcli("resume", "run", f"training.iterations={end}", cwd=tmp_path)
    kept = {checkpoints.iteration_of(file) for file in checkpoints.list_checkpoints(tmp_path / "run/checkpoints")}
    assert {3, 6, 9} <= kept
    pgcli("eval", "run", "--which", 3, "--episodes", 1, cwd=tmp_path)


def test_a_run_of_an_older_version_continues_with_default_keys(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    path = checkpoints.follow(run / "checkpoints/latest.json")
    found = checkpoints.load(path)
    older = {key: value for key, value in found.config["policy"].items() if key not in ("memory", "action_mask")}
    path.unlink()
    checkpoints.save(path.parent, replace(found, config=found.config | {"policy": older}))
    (run / "config.yaml").write_text(
        "".join(line for line in (run / "config.yaml").read_text().splitlines(True) if "memory: " not in line)
    )
    pgcli("resume", "run", "training.iterations=7", "--quiet", cwd=tmp_path)
    assert json.loads((run / "run.json").read_text())["exact"] is True
    assert checkpoints.load(checkpoints.follow(run / "checkpoints/latest.json")).config["policy"]["memory"] == "none"


def test_resume_rejects_fixed_keys_and_records_changed_ones(tmp_path: Path) -> None:
    pgcli("train", "cartpole", *TINY, "--run-dir", "run", cwd=tmp_path)
    refused = pgcli("resume", "run", "algorithm.gamma=0.5", cwd=tmp_path, code=4)
    assert "algorithm.gamma" in refused.stderr
    pgcli("train", "cartpole", *TINY, "env.num_envs=3", "--run-dir", "run", "--resume", cwd=tmp_path, code=4)
    pgcli("resume", "run", "optimizer.learning_rate=0.5", "training.iterations=7", cwd=tmp_path)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["exact"] is False
    assert "optimizer.learning_rate=0.5" in run["resumes"][0]["overrides"]


def test_an_existing_run_is_never_deleted(tmp_path: Path) -> None:
    run = ["train", "cartpole", *TINY, "training.iterations=2", "--run-dir", "run"]
    pgcli(*run, cwd=tmp_path)
    before = contents(tmp_path / "run")
    refused = pgcli(*run, cwd=tmp_path, code=4)
    assert "--resume" in refused.stderr
    assert "--overwrite" in refused.stderr
    pgcli(*run, "--overwrite", "seed=5", cwd=tmp_path)
    assert contents(tmp_path / "run~1") == before
    assert contents(tmp_path / "run") != before


def test_several_seeds_in_processes_write_the_bytes_that_one_process_writes(finished: Path, tmp_path: Path) -> None:
    done = pgcli("train", "cartpole", *TINY, "--seeds", "0-2", "--jobs", "2", "--run-dir", "runs", cwd=tmp_path)
    assert done.stdout.split() == ["runs/seed-0", "runs/seed-1", "runs/seed-2"]
    assert contents(tmp_path / "runs/seed-0") == contents(finished)


def test_interrupted_jobs_save_their_state_and_resume(tmp_path: Path) -> None:
    long = [*TINY, "training.iterations=100000", "--seeds", "0,1", "--jobs", "2", "--run-dir", "runs"]
    process = Command("train", "cartpole", *long, cwd=tmp_path)
    both = [tmp_path / f"runs/seed-{seed}/metrics.csv" for seed in (0, 1)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(path.exists() and len(path.read_bytes()) > 2000 for path in both):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    for path in both:
        status = json.loads((path.parent / "status.json").read_text())
        assert status["status"] == "interrupted"
        assert len(rows(path)) == status["iteration"]


def test_eval_reports_mean_standard_error_and_its_conditions(finished: Path) -> None:
    done = pgcli("eval", finished, "--json", "--episodes", 20, cwd=finished.parent)
    result = json.loads(done.stdout)
    keys = "mean_return standard_error standard_deviation median min max mean_length episodes mode gamma horizon seed"
    assert set(keys.split()) | {"checkpoint", "iteration", "env_steps"} <= set(result)
    assert result["standard_error"] == pytest.approx(result["standard_deviation"] / 20**0.5)
    assert result["mean_return"] == pytest.approx(result["mean_length"])
    again = pgcli("eval", finished, "--json", "--episodes", 20, cwd=finished.parent)
    assert again.stdout == done.stdout
    table = pgcli("eval", finished, "--episodes", 20, cwd=finished.parent).stdout
    assert f"{result['mean_return']:.2f} ± {result['standard_error']:.2f}" in table


def test_eval_of_one_episode_gives_no_interval_and_no_nan(finished: Path) -> None:
    result = json.loads(pgcli("eval", finished, "--json", "--episodes", 1, cwd=finished.parent).stdout)
    assert result["standard_error"] is None
    table = pgcli("eval", finished, "--episodes", 1, cwd=finished.parent).stdout
    assert "±" not in table
    assert "nan" not in table


def test_eval_options_set_discount_horizon_and_mode(finished: Path) -> None:
    cut = json.loads(pgcli("eval", finished, "--json", "--horizon", 3, "--gamma", 0.5, cwd=finished.parent).stdout)
    assert cut["mean_return"] == 1 + 0.5 + 0.25
    assert cut["mean_length"] == 3
    options = ["eval", finished, "--json", "--mode", "greedy", "--which"]
    first, last = (json.loads(pgcli(*options, which, cwd=finished.parent).stdout) for which in ("2", "latest"))
    assert (first["iteration"], last["iteration"]) == (2, 6)
    assert first["mode"] == "greedy"


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_eval_films_the_agent_without_a_screen(finished: Path, tmp_path: Path, suffix: str) -> None:
    film = tmp_path / f"film.{suffix}"
    options = ["eval", finished, "--json", "--episodes", 2, "--horizon", 30, "--video", film]
    result = json.loads(pgcli(*options, cwd=tmp_path, DISPLAY="").stdout)
    assert result["video"] == str(film)
    if suffix == "gif":
        from PIL import Image

        with Image.open(film) as picture:
            assert picture.size == (600, 400)
            assert getattr(picture, "n_frames", 1) == result["video_length"] + 1
            assert picture.info["duration"] == 20, "50 frames a second, CartPole's own rate"
            assert picture.info["loop"] == 0
    else:
        import imageio_ffmpeg

        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(film))
        assert frames == result["video_length"] + 1
        assert seconds == pytest.approx(frames / 50, abs=0.03)


def test_an_unsupported_video_format_is_rejected(finished: Path) -> None:
    done = pgcli("eval", finished, "--episodes", 1, "--video", "film.avi", cwd=finished.parent, code=2)
    assert ".gif" in done.stderr


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "csv"])
def test_plot_writes_the_figure_and_prints_its_path(finished: Path, tmp_path: Path, suffix: str) -> None:
    done = pgcli("plot", finished, "-o", f"curve.{suffix}", cwd=tmp_path)
    assert done.stdout == f"curve.{suffix}\n"
    assert (tmp_path / f"curve.{suffix}").stat().st_size > 100


def test_init_copies_a_config_that_trains(tmp_path: Path) -> None:
    listed = pgcli("init", "--list", cwd=tmp_path).stdout
    assert "cartpole " in listed
    assert pgcli("init", "cartpole", cwd=tmp_path).stdout == "cartpole.yaml\n"
    pgcli("init", "cartpole", cwd=tmp_path, code=4)
    done = pgcli("train", "cartpole.yaml", "training.iterations=1", "evaluation.episodes=5", cwd=tmp_path)
    assert done.stdout == "runs/cartpole/seed-0\n"
    schema = json.loads(pgcli("init", "--schema", cwd=tmp_path).stdout)
    assert "gamma" in str(schema)


def test_a_loaded_agent_acts_in_a_notebook(finished: Path) -> None:
    import gymnasium
    import numpy as np

    import pgcli as package

    agent = package.load(finished)
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(agent.act(obs))
    assert np.asarray(agent.act(np.stack([obs, obs, obs]))).shape == (3,)
    assert agent.act(obs, mode="greedy") == agent.act(obs, mode="greedy")
    assert agent.config.env.id == "CartPole-v1"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "no-such.yaml"], 2, "no such file"),
        (["train", "cartpole", "algorithm.gama=1"], 2, "did you mean `algorithm.gamma`"),
        (["train", "cartpole", "env.id=CartPole-v7"], 3, "`v1`"),
        (["train", "cartpole", "env.id=Cartpol-v1"], 3, "CartPole"),
        (["train", "cartpole", "env.id=no_such_module:X-v0"], 3, "no_such_module"),
        (["train", "cartpole", "env.kwargs.nonsense=1", "env.vectorization=sync"], 2, "`nonsense`"),
        (["train", "cartpole", "--seeds", "3-"], 2, "--seeds"),
        (["train", "cartpole", "--seeds", ""], 2, "--seeds"),
        (["train", "cartpole", "--seeds", "0-1", "seed=3"], 2, "cannot be combined"),
        (["train", "cartpole", "env.id=CartPole"], 3, "did you mean `CartPole-v"),
        (["train", "cartpole", "env.wrappers=[Nosuch]"], 3, "wrapper `Nosuch` not found"),
        (["train", "cartpole", "--resume", "--overwrite"], 2, "cannot be combined"),
        (["eval", "nowhere"], 4, "nowhere"),
        (["resume", "nowhere"], 4, "nowhere"),
        (["plot", "nowhere"], 4, "nowhere"),
        (["frobnicate"], 2, "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_users_mistake_gives_one_sentence_and_the_documented_exit_code(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    done = pgcli(*arguments, cwd=tmp_path, code=code)
    assert words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "nothing is written before the mistake is reported"


def test_a_diverging_run_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    overflow = ["policy.activation=identity", "optimizer.name=sgd", "optimizer.learning_rate=1e38"]
    done = pgcli("train", "cartpole", *TINY, *overflow, "--run-dir", "run", cwd=tmp_path, code=5)
    assert "error:" in done.stderr
    assert "iteration" in done.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "diverged"
    latest = json.loads((tmp_path / "run/checkpoints/latest.json").read_text())
    assert latest["iteration"] % 2 == 0, "one of the cadence: what came after it led to the divergence"
    pgcli("eval", "run", "--episodes", 1, cwd=tmp_path)
    assert "`pgcli resume run optimizer.learning_rate=…` continues" in done.stderr
    pgcli("resume", "run", "optimizer.learning_rate=0.01", cwd=tmp_path)
    assert [int(row["iteration"]) for row in rows(tmp_path / "run/metrics.csv")] == list(range(6))
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    long = [*TINY, "training.iterations=100000", "--run-dir", "run"]
    process = Command("train", "cartpole", *long, "-q", cwd=tmp_path)
    try:
        while not (tmp_path / "run/metrics.csv").exists():
            time.sleep(0.01)
        done = pgcli("resume", "run", cwd=tmp_path, code=6)
        assert str(process.pid) in done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_a_closed_pipe_is_not_reported(finished: Path) -> None:
    shell = f"{sys.executable} -m pgcli eval '{finished}' --episodes 1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], check=False, timeout=120, capture_output=True)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_ascii_locale_gets_replacements_instead_of_an_error(tmp_path: Path) -> None:
    command = ["train", "cartpole", *TINY, "name=pole 🎢"]
    done = pgcli(*command, cwd=tmp_path, LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii", real_process=True)
    assert done.stdout.endswith("seed-0\n")
    assert (tmp_path / "runs/pole 🎢/seed-0/status.json").exists()


def test_a_checkpoint_of_a_foreign_module_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.cartpole import CartPoleEnv\n"
        "open('canary', 'a').write('imported ')\n"
        "gymnasium.register('Foreign-v0', lambda **kwargs: CartPoleEnv(**kwargs), max_episode_steps=50)\n"
    )
    here = str(tmp_path)
    pgcli("train", "cartpole", *TINY, "env.id=foreign:Foreign-v0", "--run-dir", "run", cwd=tmp_path, PYTHONPATH=here)
    (tmp_path / "canary").unlink()
    done = pgcli("eval", "run", cwd=tmp_path, code=3, PYTHONPATH=here)
    assert "foreign" in done.stderr
    assert not (tmp_path / "canary").exists()
    pgcli("eval", "run", "--trust", "--episodes", 1, cwd=tmp_path, PYTHONPATH=here)


def test_a_full_disk_ends_the_run_with_one_sentence_and_the_last_checkpoint(tmp_path: Path) -> None:
    words = [*TINY, "training.iterations=500", "checkpoint.every=5", "env.max_episode_steps=30"]
    quoted = " ".join(f"'{word}'" for word in words)
    # no file may grow beyond 20 KiB: the tables soon would
    shell = f"ulimit -f 20; exec {sys.executable} -m pgcli train cartpole {quoted} --run-dir run"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "error: run" in done.stderr
    assert "bytes are free" in done.stderr
    assert "Traceback" not in done.stderr
    before = json.loads(pgcli("eval", "run", "--json", "--episodes", 1, cwd=tmp_path).stdout)
    assert before["iteration"] > 0
    pgcli("resume", "run", f"training.iterations={before['iteration'] + 1}", cwd=tmp_path)


def test_an_uncreatable_run_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/run"):
        done = pgcli("train", "cartpole", *TINY, "--run-dir", path, cwd=tmp_path, code=4)
        assert "error: file" in done.stderr


def test_a_run_with_a_lost_file_resumes_exactly_or_names_the_file(finished: Path, tmp_path: Path) -> None:
    def broken(part: str) -> Path:
        run = tmp_path / part.replace("/", "-")
        shutil.copytree(finished, run)
        for path in run.glob(part):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return run

    pgcli("resume", broken("checkpoints/latest.json"), "training.iterations=8", cwd=tmp_path)
    pgcli("train", "cartpole", *TINY, "training.iterations=8", "--run-dir", "whole", cwd=tmp_path)
    assert contents(tmp_path / "checkpoints-latest.json") == contents(tmp_path / "whole")
    for part in ("checkpoints", "config.yaml", "metrics.csv", "evaluations.csv", "episodes.csv"):
        run = broken(part)
        done = pgcli("resume", run, "training.iterations=8", cwd=tmp_path, code=4)
        assert part in done.stderr or "checkpoint" in done.stderr
        pgcli("train", "cartpole", *TINY, "seed=9", "--run-dir", run, cwd=tmp_path, code=4)


def test_resume_compares_an_edited_config_with_the_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.98", "gamma: 0.5"))
    done = pgcli("resume", run, "training.iterations=8", cwd=tmp_path, code=4)
    assert "algorithm.gamma" in done.stderr


def test_the_current_folder_is_not_moved_aside(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    done = pgcli("train", "cartpole", *TINY, "--run-dir", ".", "--overwrite", cwd=run, code=4)
    assert "is the current folder" in done.stderr


def test_a_full_stdout_is_reported_in_one_line(finished: Path) -> None:
    shell = f"{sys.executable} -m pgcli eval '{finished}' --episodes 1 > /dev/full"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: output: No space left on device"]


@pytest.mark.parametrize("seconds", [1.0, pytest.param(3.0, marks=pytest.mark.slow("waits for both jobs"))])
def test_an_interrupt_while_jobs_start_leaves_no_traceback(tmp_path: Path, seconds: float) -> None:
    long = [*TINY, "training.iterations=100000", "--seeds", "0-3", "--jobs", "2"]
    command = [sys.executable, "-m", "pgcli", "train", "cartpole", *long]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True, stdout=subprocess.DEVNULL
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the group gets it
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_an_interrupt_that_an_import_swallows_still_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept:\n    pass\n"
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Swallows-v0', CartPoleEnv, max_episode_steps=50)\n"
    )
    pgcli("train", "cartpole", *TINY, "env.id=swallows:Swallows-v0", cwd=tmp_path, code=130)


def test_a_run_ends_with_the_iteration_that_uses_up_its_env_steps(tmp_path: Path) -> None:
    budget = ["training.iterations=null", "training.env_steps=500"]
    pgcli("train", "cartpole", *TINY, *budget, "--run-dir", "run", cwd=tmp_path)
    steps = [int(row["env_steps"]) for row in rows(tmp_path / "run/metrics.csv")]
    assert steps[-1] >= 500 > steps[-2]


def test_a_run_ends_when_an_evaluation_reaches_its_goal(tmp_path: Path) -> None:
    goal = ["evaluation.stop_at_return=5", "training.iterations=50"]
    pgcli("train", "cartpole", *TINY, *goal, "--run-dir", "run", cwd=tmp_path)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["status"], status["reason"]) == ("finished", "stopped early: mean return ≥ 5")
    assert float(rows(tmp_path / "run/evaluations.csv")[-1]["return_mean"]) >= 5
    assert not rows(tmp_path / "run/metrics.csv"), "the untrained policy holds the pole for five steps"


def test_a_missing_ffmpeg_is_named_with_its_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgcli.errors import PgcliError
    from pgcli.experiment.load import load
    from pgcli.report.video import film

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if it were not installed
    with pytest.raises(PgcliError) as error:
        film(load(finished), tmp_path / "film.mp4", "sampled", 0, 3)
    assert error.value.hint.startswith("pip install ")
    assert not list(tmp_path.iterdir())


def test_resume_counts_environments_that_do_not_repeat_themselves(tmp_path: Path) -> None:
    run = ["env.id=test_segments:Restless-v0", "env.max_episode_steps=7", *SEGMENTS, "training.iterations=4"]
    path = str(Path(__file__).parent)
    pgcli("train", "cartpole", *TINY, *run, "--run-dir", "run", cwd=tmp_path, PYTHONPATH=path)
    done = pgcli("resume", "run", "training.iterations=6", cwd=tmp_path, PYTHONPATH=path)
    assert "of 4 environments did not repeat their episodes" in done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["exact"] is False
    assert [int(row["iteration"]) for row in rows(tmp_path / "run/metrics.csv")] == list(range(6))


def test_a_segment_in_which_no_episode_ends_leaves_returns_empty(tmp_path: Path) -> None:
    run = ["env.id=Pendulum-v1", *SEGMENTS, "training.iterations=3"]
    done = pgcli("train", "cartpole", *TINY, *run, "--run-dir", "run", cwd=tmp_path)
    assert "nan" not in done.stderr
    for row in rows(tmp_path / "run/metrics.csv"):
        assert row["return_mean"] == row["length_mean"] == row["return_standard_error"] == ""
        assert int(row["episodes"]) == 0
        assert float(row["value_loss"]) > 0
        assert float(row["approx_kl"]) >= 0
    assert [int(row["env_steps"]) for row in rows(tmp_path / "run/metrics.csv")] == [36, 72, 108]
    assert rows(tmp_path / "run/episodes.csv") == []


def test_a_bug_in_one_run_does_not_stop_the_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from pgcli.config import Config
    from pgcli.experiment import jobs
    from pgcli.experiment.recorder import Outcome
    from pgcli.experiment.run import Request

    def run(request: Request, *others: object) -> Outcome:
        if request.config.seed == 0:
            raise ZeroDivisionError("a bug")
        return Outcome(request.path, "training.iterations=2 reached", None, None, 0.0)

    monkeypatch.setattr(jobs, "run_experiment", run)
    requests = [Request(Config(seed=seed), Path(f"seed-{seed}"), []) for seed in (0, 1)]
    first, second = jobs.run_all(requests, 1, lambda record, number: None, logged)
    assert isinstance(first, jobs.Failure)
    assert first.exit_code == 1
    assert "ZeroDivisionError: a bug" in first.text
    assert isinstance(second, Outcome)


def test_eval_of_a_folder_of_runs_names_one_of_them(finished: Path) -> None:
    done = pgcli("eval", finished.parent, cwd=finished.parent, code=4)
    assert f"hint: name one of its runs: {finished}" in done.stderr


@pytest.mark.parametrize("command", [each.callback.__name__ for each in app.registered_commands if each.callback])
def test_a_commands_help_has_examples_and_names_no_types(command: str, tmp_path: Path) -> None:
    text = pgcli(command, "--help", cwd=tmp_path).stdout
    assert f"pgcli {command} " in text[text.index("Examples:") :]
    assert not re.findall(r"<(?:bool|int|float|str|path|list)\b", text), "values are N, X, TEXT and PATH"


def test_version_lists_the_packages_that_affect_results(tmp_path: Path) -> None:
    assert pgcli("--version", cwd=tmp_path).stdout == f"pgcli {__version__}\n"
    lines = pgcli("--version", "-v", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines][:5] == ["pgcli", "python", "torch", "gymnasium", "numpy"]
    assert lines[3] == f"gymnasium {gym.__version__}"
