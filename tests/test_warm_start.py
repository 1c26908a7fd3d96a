"""`pgcli train --from`: a run that starts from the weights of another one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, pgcli

from pgcli.config import load_config
from pgcli.config.names import with_run_name
from pgcli.errors import CheckpointError, PgcliError, RunDirectoryError, UsageError
from pgcli.experiment.plan import plan_resume, plan_runs
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.explain import differ, explanation_text, show
from pgcli.inspection.replay import replay
from pgcli.inspection.verify import verify
from pgcli.runs import checkpoints
from pgcli.studies.existing import existing_comparison

SMALL = (
    *("env.num_envs=2", "policy.hidden_sizes=[8]", "training.env_steps=null", "training.iterations=4"),
    *("evaluation.every=2", "evaluation.episodes=3", "evaluation.stop_at_return=null"),
    *("checkpoint.every=1", "checkpoint.keep=1", "env.max_episode_steps=30"),
)
CARTPOLE = ("cartpole", [*SMALL, "rollout.episodes=4"])
NORMALIZED = (
    "pendulum/ppo",
    [
        *SMALL,
        "rollout.steps=16",
        "algorithm.num_minibatches=2",
        "value.normalize_returns=true",
        "policy.normalize_obs=true",
    ],
)


def train(path: Path, config: tuple[str, list[str]] = CARTPOLE, *more: str, **options: Any) -> Path:
    """Train a run in this process."""
    (request,) = plan_runs(config[0], [*config[1], *more], run_dir=path, **options)
    run_experiment(request)
    return path


def files(run: Path) -> dict[str, bytes]:
    """Return the files whose bytes a run repeats."""
    names = ["metrics.csv", "evaluations.csv", "episodes.csv", "checkpoints/iteration-000004.safetensors"]
    return {name: (run / name).read_bytes() for name in names}


def tensors(run: Path, iteration: int) -> dict[str, torch.Tensor]:
    return checkpoints.load(run / "checkpoints" / checkpoints.file_name(iteration)).tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `source`, and the run `warm`, which starts from it with another seed."""
    folder = tmp_path_factory.mktemp("made")
    train(folder / "source")
    train(folder / "warm", CARTPOLE, "seed=5", start=folder / "source")
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("source", "warm"):
        shutil.copytree(made / name, name)
    return tmp_path


def test_weights_and_normalizer_are_copied_and_all_else_is_new(tmp_path: Path) -> None:
    source = train(tmp_path / "source", NORMALIZED)
    train(tmp_path / "new", NORMALIZED, "seed=5", "training.iterations=1", "checkpoint.keep=9")
    train(tmp_path / "warm", NORMALIZED, "seed=5", start=source)
    last, new, warm = tensors(source, 4), tensors(tmp_path / "new", 0), tensors(tmp_path / "warm", 0)
    copied = {name for name in warm if name.startswith(("policy.", "value."))}
    assert any("normalizer" in name for name in copied)
    assert any(name.startswith("value_optimizer.") for name in warm)
    assert any(name.startswith("return_scale.") for name in warm)
    for name, tensor in warm.items():
        assert tensor.equal(last[name] if name in copied else new[name]), name
    assert (tmp_path / "warm/metrics.csv").read_text().splitlines()[1].startswith("0,32,")


def test_a_warm_run_is_recorded_and_repeats_without_its_source(home: Path) -> None:
    recorded = json.loads(Path("warm/run.json").read_text())["warm_start"]
    file = "checkpoints/iteration-000004.safetensors"
    assert recorded["checkpoint"].endswith(f"/source/{file}")
    assert recorded["sha256"] == checkpoints.digest_of(Path("source", file))
    assert recorded["iteration"] == 4
    kept = {path.stem for path in Path("warm/checkpoints").glob("*.safetensors")}
    assert {"iteration-000000", "iteration-000004"} <= kept
    shutil.rmtree("source")
    result = verify(Path("warm"), everything=True)
    assert result["passed"]
    assert result["recomputed"] == [0, 1, 2, 3]
    assert replay(Path("warm"), "0:1", None, trust=False, tell=lambda text: None)["matches"]
    assert "started from" in explanation_text(show(Path("warm")))
    first = Path("warm/config.yaml").read_text().splitlines()[0]
    train(home / "again", ("warm/config.yaml", []), start=Path(first.partition("--from ")[2].split()[0]))
    assert files(home / "again") == files(home / "warm")


@pytest.mark.slow("trains several runs")
def test_verify_compares_the_first_weights_with_the_source(home: Path) -> None:
    run = json.loads(Path("warm/run.json").read_text())
    here = str(home / "source/checkpoints/iteration-000004.safetensors")
    run["warm_start"]["checkpoint"] = here
    Path("warm/run.json").write_text(json.dumps(run))
    status = json.loads(Path("warm/status.json").read_text())
    Path("warm/status.json").write_text(json.dumps({"status": "finished", "iteration": status["iteration"]}))
    assert any("started with the weights of" in one["text"] for one in verify(Path("warm"))["findings"])
    other = train(home / "other", CARTPOLE, "seed=9")
    run["warm_start"] |= {"checkpoint": str(other / "checkpoints/iteration-000004.safetensors")}
    run["warm_start"]["sha256"] = checkpoints.digest_of(Path(run["warm_start"]["checkpoint"]))
    Path("warm/run.json").write_text(json.dumps(run))
    assert not verify(Path("warm"))["passed"]


def test_a_missing_first_checkpoint_is_reported(home: Path) -> None:
    Path("warm/checkpoints/iteration-000000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be repeated: it started from .*source"):
        replay(Path("warm"), "0:1", None, trust=False, tell=lambda text: None)
    assert not verify(Path("warm"))["passed"]


def test_the_start_is_part_of_the_identity(home: Path) -> None:
    other = train(home / "other", CARTPOLE, "seed=9")
    words = [*CARTPOLE[1], "seed=5", "training.iterations=5"]

    def resumed(path: str, start: Path | None) -> Request:
        return plan_runs("cartpole", words, run_dir=Path(path), resume=True, start=start)[0]

    for path, start, found in (
        ("warm", None, "started from .*source.*, but this command has no --from"),
        ("warm", other, "started from .*source.*, but this command starts from .*other"),
        ("source", other, "started from new weights, but this command starts from .*other"),
    ):
        with pytest.raises(RunDirectoryError, match=found) as raised:
            resumed(path, start)
        assert f"pgcli resume {path}" in raised.value.hint
    copy = shutil.copytree("source", "copy")
    assert resumed("warm", Path(copy)).warm_start is not None, "the digest counts, not the path"
    difference = differ(Path("source"), Path("warm"))["warm_start"]
    assert difference[0] is None
    assert difference[1]["iteration"] == 4


@pytest.mark.slow("trains several runs")
@pytest.mark.parametrize("change", ["deleted", "changed"])
def test_a_run_continues_after_a_change_of_its_source(change: str, home: Path) -> None:
    source = home / "source"
    train(home / "cut", CARTPOLE, "seed=5", "training.iterations=2", start=source)
    if change == "deleted":
        shutil.rmtree(source)
    else:
        train(source, CARTPOLE, "seed=9", overwrite=True)
    train(home / "cut", CARTPOLE, "seed=5", start=source, resume=True)
    assert files(home / "cut") == files(home / "warm")
    run_experiment(plan_resume(home / "cut", ["training.iterations=5"]))


@pytest.mark.slow("trains several runs")
def test_all_seeds_have_the_same_start(home: Path) -> None:
    train(home / "many/seed-5", CARTPOLE, "seed=5", "training.iterations=1", start=home / "source")
    train(home / "source", CARTPOLE, "training.iterations=5", resume=True)
    with pytest.raises(RunDirectoryError, match=r"started from .*000004.*others would start from .*000005"):
        plan_runs("cartpole", CARTPOLE[1], run_dir=home / "many", seeds="5-6", resume=True, start=home / "source")
    assert not Path("many/seed-6").exists()


@pytest.mark.slow("trains several runs")
def test_a_run_killed_before_its_first_checkpoint_needs_its_source(home: Path) -> None:
    train(home / "cut", CARTPOLE, "seed=5", start=home / "source")
    shutil.rmtree("cut/checkpoints")
    for table in Path("cut").glob("*.csv"):
        table.unlink()
    run_experiment(plan_resume(home / "cut"))
    assert files(home / "cut") == files(home / "warm")
    shutil.rmtree("cut/checkpoints")
    for table in Path("cut").glob("*.csv"):
        table.unlink()
    train(home / "source", CARTPOLE, "seed=9", overwrite=True)
    with pytest.raises(CheckpointError, match=r"source/.*has changed since the run was started from it"):
        run_experiment(plan_resume(home / "cut"))


REFUSED = {
    "observations": (["env.id=Acrobot-v1"], "observation space is Box.* but Acrobot-v1 has Box"),
    "actions": (
        ["env.wrappers=[{name: gymnasium.wrappers:TimeAwareObservation}]"],
        "its observation space is Box",
    ),
    "layers": (["policy.hidden_sizes=[8, 8]"], r"policy.hidden_sizes is \[8\] there and \[8, 8\] here"),
    "activation": (["policy.activation=relu"], "policy.activation is tanh there and relu here"),
    "normalizer": (["policy.normalize_obs=true"], "policy.normalize_obs is False there and True here"),
    "memory": (["policy.memory=gru"], "policy.memory is none there and gru here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_spaces_and_networks_are_refused_with_the_difference(case: str, home: Path) -> None:
    changed, found = REFUSED[case]
    with pytest.raises(UsageError, match=found) as raised:
        train(home / "no", CARTPOLE, *changed, start=home / "source")
    assert raised.value.exit_code == 2
    assert not Path("no").exists()


@pytest.mark.slow("trains several runs")
def test_a_value_function_of_another_shape_is_refused_and_a_missing_one_is_new(tmp_path: Path) -> None:
    steps = [*SMALL, "rollout.steps=16", "algorithm.num_minibatches=2"]
    critic = train(tmp_path / "critic", ("cartpole/ppo", [*steps, "value.hidden_sizes=[4]"]))
    with pytest.raises(UsageError, match=r"value.hidden_sizes is \[4\] there and \[8\] here"):
        train(tmp_path / "no", ("cartpole/ppo", steps), start=critic)
    actor = train(tmp_path / "actor", CARTPOLE, start=critic)  # without a value function
    train(tmp_path / "both", ("cartpole/ppo", steps), start=actor)
    assert tensors(tmp_path / "both", 0)["policy.network.0.weight"].equal(tensors(actor, 4)["policy.network.0.weight"])


def _missing(path: Path) -> None:
    path.unlink()


def _text(path: Path) -> None:
    path.write_text("weights: none\n")


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_missing, _text, _torn, _flipped])
def test_a_bad_source_is_one_sentence(damage: Callable[[Path], None], home: Path) -> None:
    file = Path("source/checkpoints/iteration-000004.safetensors")
    damage(file)
    for source in ("source", str(file)):
        with pytest.raises(PgcliError) as raised:
            train(home / "no", start=Path(source))
        assert raised.value.exit_code == 4
        assert "\n" not in raised.value.message
        assert not Path("no").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/pole/seed-3", "cartpole,from=pole_seed-3,gamma=0.9"),
        (
            "runs/pole/seed-3/checkpoints/iteration-000030.safetensors",
            "cartpole,from=pole_seed-3_iteration-000030,gamma=0.9",
        ),
        ("mine", "cartpole,from=mine,gamma=0.9"),
    ],
)
def test_the_default_name_lists_the_source(source: str, name: str) -> None:
    words = ["algorithm.gamma=0.9"]
    config = load_config("cartpole", words)
    assert with_run_name(config, "cartpole", words, Path(source)).name == name
    named = ["name=mine", *words]
    assert with_run_name(load_config("cartpole", named), "cartpole", named, Path(source)).name == "mine"


@pytest.mark.slow("trains several runs")
def test_existing_runs_with_another_start_are_another_variant(home: Path) -> None:
    train(home / "runs/plain", CARTPOLE, "seed=5")
    shutil.copytree("warm", "runs/warm")
    assert len(existing_comparison([Path("runs")], None, None).variants) == 2


def test_the_command_starts_from_a_run(home: Path) -> None:
    words = [*CARTPOLE, "seed=5"]
    pgcli("train", "cartpole", *CARTPOLE[1], "seed=5", "--from", "source", "-q", "--run-dir", "cli", cwd=home)
    assert files(home / "cli") == files(home / "warm"), words
    done = pgcli("train", "cartpole", *CARTPOLE[1], "env.id=Acrobot-v1", "--from", "source", cwd=home, code=2)
    assert done.stderr.startswith("error: --from source/checkpoints/iteration-000004.safetensors: its observation")
    assert done.stderr.count("\n") == 2


@pytest.mark.slow("starts workers, and trains several runs")
@pytest.mark.parametrize("how", [("--jobs", "2"), ("--stack", "3"), ("--stack", "1"), ("sampling.workers=2",)], ids=str)
def test_all_ways_to_train_seeds_start_alike(how: tuple[str, ...], home: Path) -> None:
    words = [*CARTPOLE[1], "--from", "source", "--seeds", "4-6", "-q", "--run-dir"]
    pgcli("train", "cartpole", *words, "many", *how, cwd=home)
    train(home / "one", CARTPOLE, "seed=5", start=home / "source")
    names = ["metrics.csv", "evaluations.csv", "episodes.csv"]
    assert [(home / "many/seed-5" / name).read_bytes() for name in names] == [
        (home / "one" / name).read_bytes() for name in names
    ]


@pytest.mark.slow("kills a training run")
@pytest.mark.parametrize("rows", [1, 3])
def test_a_killed_warm_run_ends_with_the_same_bytes(rows: int, home: Path) -> None:
    words = [*CARTPOLE[1], "seed=5", "training.iterations=60", "--from", "source", "-q"]
    pgcli("train", "cartpole", *words, "--run-dir", "whole", cwd=home)
    command = Command("train", "cartpole", *words, "--run-dir", "cut", "--resume", cwd=home)
    table = home / "cut/metrics.csv"
    while command.poll(0.01) is None and not (table.exists() and table.read_bytes().count(b"\n") > rows):
        pass
    command.send_signal(signal.SIGKILL)
    command.wait()
    shutil.rmtree("source")
    pgcli("train", "cartpole", *words, "--run-dir", "cut", "--resume", cwd=home)
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv", "checkpoints/iteration-000060.safetensors"):
        assert (home / "cut" / name).read_bytes() == (home / "whole" / name).read_bytes(), name
