"""Stacked seeds: runs that share their rollouts have the files of runs that train alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces

from pgcli.config import Config, load_config
from pgcli.config.choices import Mode
from pgcli.config.schema import PolicyConfig
from pgcli.errors import EnvironmentFailure, Interrupted
from pgcli.experiment.jobs import Failure, Outcome, run_all
from pgcli.experiment.run import Request, Result
from pgcli.experiment.stacks import stacks
from pgcli.policies.policy import Policy
from pgcli.policies.stacked import have_equal_bits, stacked_actor
from pgcli.records import Iteration, Notice, Record
from pgcli.sampling import stack
from pgcli.sampling.executor import ChunkTask
from pgcli.sampling.segments import CollectSegment

TINY = [
    *("env.num_envs=3", "rollout.episodes=4", "policy.hidden_sizes=[5]", "training.iterations=4", "checkpoint.every=1"),
    *("evaluation.every=2", "evaluation.episodes=3", "evaluation.stop_at_return=null"),
]
SEGMENTS = ["env.id=Taxi-v4", "env.max_episode_steps=9", "rollout={episodes: null, steps: 12}"]
SEGMENTS += ["algorithm.baseline=value", "algorithm.returns=lambda_return"]
Watch = Callable[[Record, int], None]


def no_logs(request: Request, watch: Callable[[Record], None]) -> AbstractContextManager[Callable[[Record], None]]:
    return nullcontext(watch)


def settings(*overrides: str, count: int = 3) -> list[Config]:
    return [load_config("cartpole", [*TINY, *overrides, f"seed={seed}"]) for seed in range(count)]


def trained(
    folder: Path,
    configs: Sequence[Config],
    most: int | None = None,
    *,
    resume: bool = False,
    watch: Watch = lambda record, number: None,
) -> list[Result]:
    """Train each config in `folder` under its number, in stacks of up to `most` runs."""
    requests = [Request(one, folder / str(number), [], resume=resume) for number, one in enumerate(configs)]
    return run_all(requests, 1, watch, no_logs, most)


def files(folder: Path) -> dict[str, bytes]:
    """Return the tables and checkpoints of all runs in `folder`; the table of times is not repeatable."""
    tables = [path for path in folder.glob("*/*.csv") if path.name != "timing.csv"]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in (*tables, *folder.glob("*/checkpoints/*"))}
    assert found
    return found


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of seeds of every stacked rollout so far."""
    counts = list[int]()
    for kind in (ChunkTask, CollectSegment):

        def counting(task: Any, tasks: Sequence[Any], *others: Any, together: Any = kind.together) -> Any:
            results = together(task, tasks, *others)
            counts.append(len(tasks))
            return results

        monkeypatch.setattr(kind, "together", counting)
    return counts


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="chunks of unequal width"),
        pytest.param(("env.id=Acrobot-v1", "rollout.horizon=30", "env.max_episode_steps=50"), id="Acrobot"),
        pytest.param(("env.id=Pendulum-v1", "rollout.horizon=30", "env.max_episode_steps=30"), id="continuous actions"),
        pytest.param(("env.id=Taxi-v4", "env.max_episode_steps=30"), id="action masks"),
        pytest.param(SEGMENTS, id="segments"),
        pytest.param((*SEGMENTS, "env.id=Pendulum-v1"), id="segments, continuous actions"),
        pytest.param(("env.num_envs=4", "rollout.horizon=20", "evaluation.mode=greedy"), id="horizon, greedy"),
        pytest.param(("policy.hidden_sizes=[]", "policy.normalize_obs=true"), id="linear, normalized"),
        pytest.param(("algorithm.baseline=value", "algorithm.returns=lambda_return"), id="value function"),
    ],
)
def test_stacked_runs_have_the_bytes_of_runs_alone(overrides: Sequence[str], tmp_path: Path, shared: list[int]) -> None:
    trained(tmp_path / "alone", settings(*overrides), 1)
    assert not shared
    trained(tmp_path / "stacked", settings(*overrides))
    assert set(shared) == {3}
    assert files(tmp_path / "stacked") == files(tmp_path / "alone")


@pytest.mark.parametrize("overrides", [(), SEGMENTS], ids=["episodes", "segments"])
def test_a_run_that_stops_early_leaves_the_stack(overrides: Sequence[str], tmp_path: Path, shared: list[int]) -> None:
    configs = settings(*overrides)
    configs[1] = settings(*overrides, "evaluation.stop_at_return=-1000", "evaluation.stop_evaluations=2")[1]
    results = trained(tmp_path / "alone", configs, 1)
    assert [result.last.iteration for result in results if isinstance(result, Outcome) and result.last] == [4, 2, 4]
    trained(tmp_path / "stacked", configs)
    assert {2, 3} <= set(shared)
    assert files(tmp_path / "stacked") == files(tmp_path / "alone")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_diverges_or_cannot_start_does_not_affect_the_others(tmp_path: Path, shared: list[int]) -> None:
    configs = settings("optimizer.name=sgd", "policy.activation=identity", count=4)
    configs[1] = configs[1].model_copy(
        update={"optimizer": configs[1].optimizer.model_copy(update={"learning_rate": 1e38})}
    )
    for folder in ("alone", "stacked"):
        (tmp_path / folder / "2").mkdir(parents=True)
        (tmp_path / folder / "2/config.yaml").write_text("of another program")
    alone, stacked = trained(tmp_path / "alone", configs, 1), trained(tmp_path / "stacked", configs)
    assert 2 in shared
    codes = [result.exit_code if isinstance(result, Failure) else 0 for result in stacked]
    assert codes == [0, 5, 4, 0]
    for result, like in zip(stacked, alone, strict=True):
        if isinstance(result, Failure) and isinstance(like, Failure):
            assert result.text.replace(str(tmp_path / "stacked"), str(tmp_path / "alone")) == like.text
    assert files(tmp_path / "stacked") == files(tmp_path / "alone")


@pytest.mark.parametrize("overrides", [(), SEGMENTS], ids=["episodes", "segments"])
def test_an_interrupted_stack_resumes_in_other_stacks_with_the_same_bytes(
    overrides: Sequence[str], tmp_path: Path, shared: list[int]
) -> None:
    configs = settings(*overrides, count=4)
    trained(tmp_path / "alone", configs, 1)

    def stop(record: Record, number: int) -> None:
        if isinstance(record, Iteration) and (record.iteration, number) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"^error: interrupted by SIGTERM\n") as caught:
        trained(tmp_path / "stacked", configs, watch=stop)
    assert caught.value.hint == "the same command with --resume continues"
    assert all((tmp_path / f"stacked/{number}/status.json").read_text().count("interrupted") for number in range(4))
    trained(tmp_path / "stacked", configs, 2, resume=True)
    assert {2, 4} <= set(shared)
    assert files(tmp_path / "stacked") == files(tmp_path / "alone")


@pytest.mark.parametrize("fault", ["other bits", "failure"])
def test_without_equal_bits_or_after_a_failure_each_run_collects_alone(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> list[object]:
        raise EnvironmentFailure("a fault in one of the columns")

    notices = []

    def watch(record: Record, number: int) -> None:
        if isinstance(record, Notice):
            notices.append(record.text)

    monkeypatch.setattr(ChunkTask, "together", fail)
    if fault == "other bits":
        monkeypatch.setattr(stack, "have_equal_bits", lambda policies, columns: False)
    results = trained(tmp_path / "stacked", settings(), watch=watch)
    assert all(isinstance(result, Outcome) for result in results)
    assert any("do not share their rollouts" in text for text in notices) == (fault == "other bits")
    trained(tmp_path / "alone", settings(), 1)
    assert files(tmp_path / "stacked") == files(tmp_path / "alone")


def test_a_save_request_saves_every_run_of_a_stack(tmp_path: Path) -> None:
    saved = dict[int, set[str]]()

    def ask(record: Record, number: int) -> None:
        if isinstance(record, Iteration) and (record.iteration, number) == (0, 0):
            os.kill(os.getpid(), signal.SIGUSR1)
        if isinstance(record, Iteration) and record.iteration == 2:
            saved[number] = {path.name for path in (tmp_path / f"{number}/checkpoints").glob("*.safetensors")}

    trained(tmp_path, settings("checkpoint.every=null", "evaluation.every=null"), watch=ask)
    assert len(saved) == 3
    for names in saved.values():
        assert names & {"iteration-000001.safetensors", "iteration-000002.safetensors"}


def test_jobs_and_stacks_together_have_the_bytes_of_runs_alone(tmp_path: Path) -> None:
    for folder, options in (("alone", ["--stack", "1"]), ("both", ["--jobs", "2", "--stack", "2"])):
        pgcli("train", "cartpole", *TINY, "--seeds", "0-4", "--run-dir", folder, "-q", *options, cwd=tmp_path)
    assert files(tmp_path / "both") == files(tmp_path / "alone")


BOX = spaces.Box(-1, 1, (4,), np.float32)
MASKED = spaces.Dict({"obs": BOX, "action_mask": spaces.MultiBinary(3)})


@pytest.mark.parametrize("mode", ["sampled", "greedy"])
@pytest.mark.parametrize(
    ("observations", "actions", "keys"),
    [
        pytest.param(BOX, spaces.Discrete(3, start=1), {}, id="softmax"),
        pytest.param(BOX, spaces.Box(-2, 2, (2,), np.float32), {}, id="gaussian"),
        pytest.param(BOX, spaces.Box(-2, 2, (2,), np.float32), {"distribution": "tanh_gaussian"}, id="tanh"),
        pytest.param(BOX, spaces.MultiDiscrete([3, 2]), {"normalize_obs": True}, id="factors, normalized"),
        pytest.param(BOX, spaces.MultiBinary(3), {"activation": "elu"}, id="bits"),
        pytest.param(spaces.Discrete(9), spaces.Discrete(2), {"hidden_sizes": []}, id="one-hot, linear"),
        pytest.param(MASKED, spaces.Discrete(3), {}, id="masked"),
    ],
)
def test_stacked_policies_act_as_each_alone(
    observations: spaces.Space[Any], actions: spaces.Space[Any], keys: dict[str, Any], mode: Mode
) -> None:
    count, columns = 3, 5
    policies = [Policy(observations, actions, PolicyConfig(**{"hidden_sizes": [16]} | keys)) for _ in range(count)]
    layout = policies[0].encoder.layout
    observations.seed(0)
    obs = np.stack([layout.pack(observations.sample()).reshape(layout.shape) for _ in range(count * columns)])
    for number, policy in enumerate(policies):
        policy.add_statistics(torch.from_numpy(obs[number:]))
        for parameter in policy.distribution.parameters():
            parameter.data += number / 10

    def generators() -> list[np.random.Generator]:
        return [np.random.default_rng(number) for number in range(count)]

    assert have_equal_bits(policies, columns)
    actor = stacked_actor(policies, mode, generators(), columns)
    noise = actor.noise(generators()[0], 2, count * columns)
    found = actor.for_environment(actor.act(obs, noise[1]))
    expected = []
    for policy, random, own in zip(policies, generators(), np.split(obs, count), strict=True):
        alone = policy.actor(mode)
        expected.append(alone.for_environment(alone.act(own, alone.noise(random, 2, columns)[1])))
    assert found.dtype == expected[0].dtype
    assert found.tobytes() == np.concatenate(expected).tobytes()


def test_runs_are_divided_into_equal_stacks_of_runs_that_can_act_together() -> None:
    configs = settings(count=5)
    assert stacks(configs, 1, None) == [[0, 1, 2, 3, 4]]
    assert stacks(configs, 2, None) == [[0, 1, 2], [3, 4]]
    assert stacks(configs, 2, 2) == [[0, 1], [2, 3], [4]]
    assert stacks(configs, 1, 1) == [[0], [1], [2], [3], [4]]
    mixed = [
        *settings(count=2),
        *settings("policy.hidden_sizes=[6]", count=2),
        *settings("optimizer.name=sgd", count=1),
    ]
    assert stacks(mixed, 1, None) == [[0, 1, 4], [2, 3]]


@pytest.mark.parametrize(
    "key",
    [
        "sampling.workers=2",
        "env.vectorization=sync",
        "env.wrappers=[ClipReward]",
        "training.seconds=9",
        "policy.memory=gru",
        "logging.tensorboard=true",
    ],
)
def test_runs_that_cannot_share_rollouts_run_alone(key: str) -> None:
    assert stacks(settings(key, count=2), 1, None) == [[0], [1]]


def test_stack_takes_auto_or_a_number(tmp_path: Path) -> None:
    for word in ("0", "-1", "many", "1.5"):
        done = pgcli("train", "cartpole", "--seeds", "0-1", f"--stack={word}", cwd=tmp_path, code=2)
        assert done.stderr.startswith("error: ")
        assert word in done.stderr


def test_a_stack_does_not_report_its_own_threads_as_a_change(tmp_path: Path) -> None:
    """The number of torch's threads is one of each thread."""
    notices, before = list[str](), torch.get_num_threads()

    def watch(record: Record, number: int) -> None:
        if isinstance(record, Notice):
            notices.append(record.text)

    torch.set_num_threads(2)
    try:
        trained(tmp_path, settings(count=2), watch=watch)
    finally:
        torch.set_num_threads(before)
    assert not [text for text in notices if "changed" in text]
