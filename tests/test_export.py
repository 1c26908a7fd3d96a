"""Exported policies in onnxruntime match pgcli for all distributions and observations."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from helpers import config
from numpy.typing import NDArray

import pgcli
from pgcli.config import load_config
from pgcli.errors import UsageError
from pgcli.experiment.export import check_extra, to_onnx
from pgcli.experiment.run import Request, run_experiment
from pgcli.policies.policy import Policy
from pgcli.policies.recurrent import Sequences
from pgcli.system.packages import install_command

Array = NDArray[Any]
N = 7
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
TIGHT = spaces.Box(np.array([-0.1, -2], np.float32), np.array([0.05, 3], np.float32))
DOUBLE = spaces.Box(-0.2, 0.1, (3,), np.float64)
FRAMES = spaces.Box(0, 255, (2, 40, 40, 3), np.uint8)
SMALL = spaces.Box(0, 255, (3, 7, 7), np.uint8)
WORDS = spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float32), "b": spaces.Discrete(3, start=2), "c": SMALL})
PLAIN = spaces.Box(-3, 3, (4,), np.float32)


def masked(actions: int) -> spaces.Dict:
    return spaces.Dict({"observation": PLAIN, "action_mask": spaces.MultiBinary(actions)})


ACTIONS: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "softmax": (spaces.Discrete(5), {}),
    "softmax from 3": (spaces.Discrete(5, start=3), {}),
    "factorised": (spaces.MultiDiscrete(np.array([[3, 2], [4, 2]]), start=np.array([[0, 1], [-2, 0]])), {}),
    "bernoulli": (spaces.MultiBinary((2, 3)), {}),
    "gaussian": (UNBOUNDED, {"initial_standard_deviation": 0.3}),
    "gaussian within bounds": (TIGHT, {}),
    "gaussian in float64": (DOUBLE, {}),
    "tanh_gaussian": (TIGHT, {"distribution": "tanh_gaussian"}),
    "state_dependent_gaussian": (TIGHT, {"distribution": "state_dependent_gaussian"}),
}
OBSERVATIONS: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "box": (PLAIN, {}),
    "normalised": (PLAIN, {"normalize_obs": True}),
    "float64": (spaces.Box(-9, 9, (2, 2), np.float64), {"normalize_obs": True}),
    "bytes": (spaces.Box(0, 255, (6,), np.uint8), {}),
    "discrete": (spaces.Discrete(6, start=-2), {}),
    "multidiscrete": (spaces.MultiDiscrete([3, 4], start=[1, 0]), {}),
    "multibinary": (spaces.MultiBinary(5), {}),
    "int64": (spaces.Box(10**18, 10**18 + 9, (3,), np.int64), {"normalize_obs": True}),
    "dict": (WORDS, {"normalize_obs": True}),
    "dict flattened": (WORDS, {"image_network": "none"}),
    "tuple": (spaces.Tuple((PLAIN, spaces.Discrete(4))), {}),
    "frames": (FRAMES, {}),
    "frames normalised": (FRAMES, {"normalize_obs": True, "image_network": "small"}),
    "small image": (SMALL, {"init": "orthogonal"}),
    "gru": (PLAIN, {"memory": "gru", "memory_size": 5}),
    "lstm": (WORDS, {"memory": "lstm", "memory_size": 5, "normalize_obs": True}),
    "elu": (PLAIN, {"activation": "elu", "hidden_sizes": [8, 8, 8]}),
    "linear": (PLAIN, {"hidden_sizes": []}),
    "identity": (PLAIN, {"activation": "identity"}),
}


def build(observations: spaces.Space[Any], actions: spaces.Space[Any], more: dict[str, Any]) -> Policy:
    torch.manual_seed(3)
    settings = config(policy={"hidden_sizes": [6], "activation": "relu"} | more).policy
    policy = Policy(observations, actions, settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            fan_in = max(parameter[0].numel(), 1)
            parameter.add_(0.3 / fan_in**0.5 * torch.randn_like(parameter))  # no bias, and no σ, is 0
    return policy


def seen(space: spaces.Space[Any], policy: Policy) -> tuple[Array, dict[str, Array]]:
    """Draw N observations: packed for the policy, and as inputs of its export."""
    space.seed(4)
    drawn = [space.sample() for _ in range(N)]
    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces:
        for one in drawn:
            one["action_mask"][2] = 1  # something is permitted
    layout = policy.encoder.layout
    inputs = {
        "/".join(("observation", *map(str, leaf.path))): np.stack([np.asarray(leaf.of(one)) for one in drawn])
        for leaf in layout.leaves
    }
    return np.stack([layout.pack(one) for one in drawn]), inputs


def compared_with_the_policy(space: spaces.Space[Any], policy: Policy) -> None:
    obs, inputs = seen(space, policy)
    policy.add_statistics(torch.from_numpy(obs))
    session = onnxruntime.InferenceSession(to_onnx(policy, {}))
    names = [output.name for output in session.get_outputs()]
    actor = policy.actor("greedy")
    memory, after = actor.start(N), actor.start(N)
    for _ in range(3 if policy.memory else 1):  # a policy with memory acts otherwise when it remembers
        outputs = policy(torch.from_numpy(obs), Sequences(torch.ones(N).long(), torch.from_numpy(memory)))
        drawn, after = actor.respond(obs, actor.noise(np.random.default_rng(0), 1, N)[0], memory)
        expected = actor.for_environment(drawn)
        given = inputs | ({"memory": memory} if policy.memory else {})
        found = dict(zip(names, session.run(None, given), strict=True))
        assert found["action"].dtype == expected.dtype
        assert found["action"].shape == expected.shape
        np.testing.assert_allclose(found["action"], expected, rtol=1e-4, atol=1e-5)
        size = policy.distribution.size
        parameters = outputs.detach().numpy()
        np.testing.assert_allclose(
            found["logits" if "logits" in found else "mean"], parameters[:, :size], rtol=1e-4, atol=1e-5
        )
        if "standard_deviation" in found:
            # log N(μ; μ, σ) = -Σ log σ √2π, but of the tanh_gaussian's, which has a slope as well
            assert (found["standard_deviation"] > 0).all()
            base = -np.log(found["standard_deviation"] * np.sqrt(2 * np.pi)).sum(1)
            if type(policy.distribution).__name__ != "TanhGaussian":
                at_mean = policy.distribution.log_probs(outputs, outputs[:, :size]).detach().numpy()
                np.testing.assert_allclose(base, at_mean, rtol=1e-4, atol=1e-4)
            else:
                sigma = policy.distribution.log_standard_deviation.detach().exp().numpy()  # type: ignore[operator]
                np.testing.assert_allclose(found["standard_deviation"], np.tile(sigma, (N, 1)), rtol=1e-6)
        if policy.memory:
            np.testing.assert_allclose(found["memory_after"], after, rtol=1e-4, atol=1e-5)
            memory = after


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_distribution_matches_the_policy(kind: str) -> None:
    actions, more = ACTIONS[kind]
    compared_with_the_policy(PLAIN, build(PLAIN, actions, more))


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_every_observation_matches_the_policys_encoding(kind: str) -> None:
    space, more = OBSERVATIONS[kind]
    compared_with_the_policy(space, build(space, spaces.Discrete(5), more))


@pytest.mark.parametrize("kind", ["softmax", "factorised"])
def test_an_action_mask_is_exported(kind: str) -> None:
    actions, more = ACTIONS[kind]
    policy = build(masked(5 if kind == "softmax" else 11), actions, more)
    assert policy.masked
    if kind == "softmax":
        compared_with_the_policy(policy.observation_space, policy)
        return
    obs, inputs = seen(policy.observation_space, policy)
    found = onnxruntime.InferenceSession(to_onnx(policy, {})).run(["logits"], inputs)[0]
    assert (found[inputs["observation/action_mask"] == 0] == -1e8).all()
    np.testing.assert_allclose(found, policy(torch.from_numpy(obs)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_exports_are_reproducible_and_accept_any_batch_size() -> None:
    policy = build(PLAIN, spaces.Discrete(3), {})
    content = to_onnx(policy, {"iteration": "4"})
    assert content == to_onnx(policy, {"iteration": "4"})
    assert str(Path(__file__).parent).encode() not in content
    session = onnxruntime.InferenceSession(content)
    for n in (0, 1, 2, 100):
        assert session.run(["action"], {"observation": np.zeros((n, 4), np.float32)})[0].shape == (n,)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_policy_without_observations_is_rejected() -> None:
    with pytest.raises(UsageError, match="without observations"):
        to_onnx(build(spaces.Box(0, 1, (0,), np.float32), spaces.Discrete(2), {}), {})


def test_the_exported_file_has_metadata_and_acts_like_the_agent(tmp_path: Path) -> None:
    small = ("training.iterations=2", "training.env_steps=null", "rollout.episodes=4", "evaluation.episodes=2")
    overrides = (*small, "evaluation.stop_at_return=null", "env.num_envs=4", "policy.normalize_obs=true")
    run_experiment(Request(load_config("cartpole", overrides), tmp_path / "run", ["train"]))

    def run(file: str, code: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "pgcli", "export", "run", file, "--which", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
        assert done.returncode == code, done.stderr
        return done

    done = run("out/agent.onnx", 0)
    assert (done.stdout, done.stderr) == ("out/agent.onnx\n", "")
    model = onnx.load(tmp_path / "out/agent.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["pgcli_version"], told["env_id"], told["iteration"]) == (pgcli.__version__, "CartPole-v1", "0")
    session = onnxruntime.InferenceSession(tmp_path / "out/agent.onnx")
    agent = pgcli.load(tmp_path / "run", which="0")
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert session.run(["action"], {"observation": obs})[0].tolist() == agent.act(obs, mode="greedy").tolist()
    assert "an export file needs the suffix .onnx" in run("agent.pt", 2).stderr


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_extra()
    assert caught.value.hint == install_command("onnx")
