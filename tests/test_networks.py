"""Networks of the user's own, LayerNorm, residual layers, silu and gelu."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from helpers import autograd, config, learner_of, random_batch

from pgcli.algorithm.gradients.autograd import Autograd
from pgcli.algorithm.gradients.closed_form import has_closed_form
from pgcli.algorithm.learner import build_agent
from pgcli.errors import UsageError
from pgcli.experiment.export import to_onnx
from pgcli.policies.activations import ACTIVATIONS
from pgcli.policies.networks import HiddenLayer, mlp, numpy_forward
from pgcli.policies.policy import Policy

OBS, ACTIONS = spaces.Box(-9, 9, (3,), np.float32), spaces.Discrete(4)
CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, features, width=5, power=1):
        super().__init__()
        self.a, self.b, self.power = nn.Linear(features, width), nn.Linear(width, 2), power

    def forward(self, x):
        return torch.sin(self.b(self.a(x).tanh())) ** self.power

class Normed(nn.Sequential):
    def __init__(self, features):
        super().__init__(nn.Linear(features, 3), nn.BatchNorm1d(3))

class Noisy(nn.Sequential):
    def __init__(self, features):
        super().__init__(nn.Linear(features, 30), nn.Dropout(0.5))

class Across(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.a = nn.Linear(features, 3)

    def forward(self, x):
        return self.a(x) - self.a(x).mean(0)

class Flat(Across):
    def forward(self, x):
        return self.a(x).sum(1)

class Broken(Across):
    def forward(self, x):
        return self.c(x)

class Mixed(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.a, self.norm, self.scale = nn.Linear(features, 4), nn.LayerNorm(4), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        assert x.shape[1] > 0
        h = self.norm(self.a(x)).tanh() * self.scale
        return torch.cat((h, x.square().mean(1, keepdim=True), nn.functional.gelu(h), x.clamp(-1, 0.5)), 1)

class Twice(nn.Linear):
    def __init__(self, features):
        super().__init__(features, 3)

    def forward(self, x):
        return 2 * super().forward(x)

class Wave(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.a = nn.Linear(features, 4)

    def forward(self, x):
        return torch.special.bessel_j0(self.a(x))

def number(features):
    return 3

def without_bias(features):
    return nn.Linear(features, 3, bias=False)

def steep(features):
    return nn.ELU(alpha=3.0)

def smooth(features):
    return nn.GELU(approximate="tanh")

def weighted(features):
    return nn.utils.parametrizations.weight_norm(nn.Linear(features, 3))

def relu(features):
    return nn.ReLU()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ----------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_values_and_derivatives_of_an_activation_are_the_formulas(activation: Any) -> None:
    z = np.linspace(-4, 4, 41)
    one = ACTIVATIONS[activation]
    normal = torch.distributions.Normal(0.0, 1.0)
    share = 1 / (1 + np.exp(-z)) if activation == "silu" else normal.cdf(torch.from_numpy(z)).numpy()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(one.value(z), z * share, rtol=1e-6, atol=1e-9)
    step = 1e-5
    slopes = (one.value(z + step) - one.value(z - step)) / (2 * step)
    np.testing.assert_allclose(one.derivative(z), slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_hidden_layer_is_its_formula_and_acting_equals_learning(layer_norm: bool, residual: bool) -> None:
    torch.manual_seed(0)
    network = mlp([4, 6, 6, 2], "gelu", layer_norm, residual)
    x = torch.randn(5, 4)
    h = x
    for layer in list(network)[:-1]:
        linear = layer.linear if isinstance(layer, HiddenLayer) else layer
        if not isinstance(linear, torch.nn.Linear):
            continue
        z = h @ linear.weight.T + linear.bias
        if layer_norm:
            z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        y = torch.nn.functional.gelu(z)
        h = h + y if residual and h.shape == y.shape else y
    last = network[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        torch.testing.assert_close(network(x), h @ last.weight.T + last.bias, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(numpy_forward(network)(x.numpy()), network(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "closed"),
    [
        ({"activation": "elu"}, True),
        ({"activation": "silu"}, False),
        ({"activation": "gelu", "init": "orthogonal"}, False),
        ({"layer_norm": True, "init": "orthogonal"}, False),
        ({"residual": True}, False),
    ],
    ids=str,
)
def test_networks_without_a_closed_form_learn_by_autograd(policy: dict[str, Any], closed: bool) -> None:
    algorithm = {"baseline": "value", "returns": "lambda_return", "objective": "clip", "update_epochs": 2}
    learner = learner_of(OBS, ACTIONS, config(policy={"hidden_sizes": [6, 6]} | policy, algorithm=algorithm))
    agent = learner.agent
    assert has_closed_form(agent.policy, agent.value) == closed
    assert isinstance(agent.gradient, Autograd) != closed
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    learner.update(random_batch(torch.float32))
    moved = [name for name, tensor in learner.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name for name in before if name.startswith(("policy.network", "value.network"))} <= set(moved)


def has_the_same_logits(policy: Policy) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(to_onnx(policy, {}))
    for x in (np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.full((1, 3), 7, np.float32)):
        found = session.run(["logits"], {"observation": x})[0]
        with torch.no_grad():
            np.testing.assert_allclose(found, policy(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [{"activation": "silu"}, {"activation": "gelu"}, {"layer_norm": True}, {"residual": True, "layer_norm": True}],
    ids=str,
)
def test_an_exported_policy_has_the_same_logits(policy: dict[str, Any]) -> None:
    agent = build_agent(OBS, ACTIONS, config(policy={"hidden_sizes": [5, 5]} | policy))
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    has_the_same_logits(agent.policy)


# ------------------------------------------------------------------------------------------------ of the user's own


def test_a_users_network_replaces_the_hidden_layers_of_policy_and_value(here: Path) -> None:
    settings = config(
        policy={"network": "my.py:Net", "network_kwargs": {"width": 7}},
        algorithm={"baseline": "value", "objective": "clip", "update_epochs": 2},
    )
    agent = build_agent(OBS, ACTIONS, settings)
    shapes = {name: tuple(x.shape) for name, x in agent.policy.named_parameters()}
    assert shapes["network.0.a.weight"] == (7, 3)
    assert shapes["network.1.weight"] == (4, 2)
    assert agent.value is not None
    assert agent.value.network[0] is not agent.policy.network[0]
    obs = torch.randn(6, 3)
    user: Any = agent.policy.network[0]
    expected = torch.sin(user.b(user.a(obs).tanh()))
    torch.testing.assert_close(agent.policy(obs), agent.policy.network[1](expected))
    gradient, _ = agent.gradient(agent.batch(random_batch(torch.float32))[0], "policy", 0.0)
    other, _ = autograd(agent)(agent.batch(random_batch(torch.float32))[0], "policy", 0.0)
    torch.testing.assert_close(gradient, other)


MODULES = ["Net", "Mixed", "Twice", "without_bias", "steep", "smooth", "weighted", "relu"]


@pytest.mark.parametrize("name", MODULES)
def test_a_users_module_acts_learns_and_is_exported_as_torch_computes_it(name: str, here: Path) -> None:
    agent = build_agent(OBS, ACTIONS, config(policy={"network": f"my.py:{name}", "normalize_obs": True}))
    agent.policy.add_statistics(3 * torch.randn(9, 3))
    batch, x = agent.batch(random_batch(torch.float32))[0], torch.randn(4, 3)
    expected, _ = autograd(agent)(batch, "policy", 0.0)
    with torch.no_grad():
        torch.testing.assert_close(agent.gradient(batch, "policy", 0.0)[0], expected)
        np.testing.assert_allclose(numpy_forward(agent.policy.network)(x.numpy()), agent.policy.network(x), rtol=1e-5)
    assert has_closed_form(agent.policy, None) == (name == "relu")
    has_the_same_logits(agent.policy)
    assert to_onnx(agent.policy, {}) == to_onnx(agent.policy, {})


def test_an_export_of_operations_that_onnx_lacks_is_rejected(here: Path) -> None:
    agent = build_agent(OBS, ACTIONS, config(policy={"network": "my.py:Wave"}))
    with pytest.raises(UsageError, match=r"torch cannot export Wave to ONNX: .*bessel_j0") as caught:
        to_onnx(agent.policy, {})
    assert "operations that ONNX has" in caught.value.hint


def test_a_trace_that_computes_other_numbers_is_rejected(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(OBS, ACTIONS, config(policy={"network": "my.py:Net"}))
    trace = torch.onnx.export

    def wrong(module: Any, *arguments: Any, **options: Any) -> None:
        module.b.bias.data += 1
        trace(module, *arguments, **options)
        module.b.bias.data -= 1

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(UsageError, match="traced of Net computes other numbers"):
        to_onnx(agent.policy, {})


@pytest.mark.parametrize(
    ("name", "kwargs", "words", "hint"),
    [
        ("Normed", {}, "has the buffer `1.running_mean`", "LayerNorm"),
        ("Noisy", {}, "different outputs for the same input", "dropout"),
        ("Across", {}, "other outputs for a row if other rows", "LayerNorm"),
        ("Flat", {}, "returned shape [3] of torch.float32", "[N, features]"),
        ("Broken", {}, "with 3 features raised AttributeError", "forward"),
        ("Net", {"depth": 3}, "raised TypeError", "__init__(self, features, **kwargs)"),
        ("number", {}, "returned an object of type int, not a module", "nn.Module"),
        ("Nett", {}, "has no callable `Nett`", "did you mean `Net`?"),
    ],
)
def test_an_unsuitable_network_is_rejected(
    name: str, kwargs: dict[str, Any], words: str, hint: str, here: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        build_agent(OBS, ACTIONS, config(policy={"network": f"my.py:{name}", "network_kwargs": kwargs}))
    assert words in caught.value.message
    assert hint in caught.value.hint


KEYS = (
    *("policy.network=my.py:Net", "env.chunk_size=2", "rollout={episodes: 4, horizon: 20}"),
    *("evaluation={episodes: 2, every: null}", "checkpoint.every=1", "training.env_steps=null"),
)
SHORT = ("--run-dir", "short", "training.iterations=1", "--quiet")


@pytest.mark.slow("starts workers")
def test_a_network_trains_in_workers_and_resumes_exactly(here: Path) -> None:
    long = ("--run-dir", "long", "training.iterations=3", "sampling.workers=2")
    pgcli("train", "reinforce", *KEYS, *long, "--quiet", cwd=here)
    pgcli("train", "reinforce", *KEYS, *SHORT, cwd=here)
    pgcli("resume", "short", "training.iterations=3", cwd=here)
    for table in ("metrics.csv", "evaluations.csv"):
        assert (here / "long" / table).read_bytes().splitlines()[-1] == (
            (here / "short" / table).read_bytes().splitlines()[-1]
        )


def test_a_network_needs_trust_and_its_changes_are_noticed(here: Path) -> None:
    pgcli("train", "reinforce", *KEYS, *SHORT, cwd=here)
    digests = json.loads((here / "short/run.json").read_text())["user_code"]
    assert list(digests) == ["my.py"]
    assert "my.py" in pgcli("eval", "short", "--episodes", "1", cwd=here, code=3).stderr
    pgcli("eval", "short", "--episodes", "1", "--trust", cwd=here)
    (here / "my.py").write_text(CODE + "\n# changed\n")
    done = pgcli("resume", "short", "training.iterations=2", cwd=here)
    assert "my.py has changed since the run last started" in done.stderr
    assert json.loads((here / "short/run.json").read_text())["exact"] is False
    assert json.loads((here / "short/run.json").read_text())["user_code"] != digests
