"""Policies: the encoder against Gymnasium's own, numpy against torch, sampling against exact frequencies."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import Array, config, log_probs

from pgcli.algorithm.learner import build_agent
from pgcli.config.choices import ActivationName
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.policies.activations import ACTIVATIONS
from pgcli.policies.distributions import Softmax
from pgcli.policies.networks import mlp, numpy_forward
from pgcli.policies.observations import Encoder
from pgcli.policies.policy import Policy

LAST = 1 - 2**-53  # the largest uniform number that numpy draws

SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-5, 5, (), np.float32),
    spaces.Box(-5, 5, (4,), np.float32),
    spaces.Box(-5, 5, (4,), np.float64),
    spaces.Box(-5, 5, (2, 3), np.float64),
    spaces.Box(-5, 5, (3, 2), np.int8),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-2),
    spaces.Discrete(3, start=7),
]


def policy_for(space: spaces.Space[Any], actions: spaces.Space[Any] | None = None, **settings: Any) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(space, spaces.Discrete(3) if actions is None else actions, config(policy=settings).policy)


def samples(space: spaces.Space[Any], count: int = 11) -> Array:
    space.seed(3)
    return np.stack([np.asarray(space.sample()) for _ in range(count)])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_are_encoded_as_gymnasium_flattens_them(space: spaces.Space[Any]) -> None:
    encoder, obs = Encoder(space), samples(space)
    expected = np.stack([np.asarray(spaces.flatten(space, x)) for x in obs]).astype(np.float32)
    assert encoder.size == expected.shape[1]
    np.testing.assert_array_equal(encoder.in_numpy(obs), expected)
    np.testing.assert_array_equal(encoder.in_torch(torch.from_numpy(obs), torch.float32), expected)


def test_unsupported_action_spaces_are_named() -> None:
    for space in (spaces.Text(3), spaces.Box(0, 9, (2,), np.int64), spaces.Dict({"a": spaces.Discrete(2)})):
        with pytest.raises(
            EnvironmentFailure, match=rf"{type(space).__name__}.* not supported; use Discrete, MultiDiscrete"
        ):
            policy_for(SPACES[0], space)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "identity"])
@pytest.mark.parametrize("hidden_sizes", [[], [5], [7, 3], [64, 64]], ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_acting_and_learning_see_the_same_logits(
    space: spaces.Space[Any], hidden_sizes: list[int], activation: str
) -> None:
    policy = policy_for(space, hidden_sizes=hidden_sizes, activation=activation)
    obs = samples(space)
    before = obs.copy()
    logits = numpy_forward(policy.network)(policy.encoder.in_numpy(obs))
    assert logits.dtype == np.float32
    in_torch = policy(torch.from_numpy(obs)).detach()
    np.testing.assert_allclose(logits, in_torch, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_array_equal(obs, before)  # activations work in place, but not on the observations


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("tanh", [math.tanh(-2), 0, math.tanh(0.5)]),
        ("relu", [0, 0, 0.5]),
        ("elu", [math.exp(-2) - 1, 0, 0.5]),
        ("identity", [-2, 0, 0.5]),
    ],
)
def test_an_activation_follows_each_hidden_layer_only(
    activation: Literal["tanh", "relu", "elu", "identity"], expected: list[float]
) -> None:
    network = mlp([1, 1, 1], activation)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (1, 0, 2, -7), strict=True):
            parameter.fill_(value)
    x = np.array([[-2], [0], [0.5]], np.float32)
    assert numpy_forward(network)(x.copy())[:, 0] == pytest.approx([2 * y - 7 for y in expected])
    assert network(torch.from_numpy(x))[:, 0].tolist() == pytest.approx([2 * y - 7 for y in expected])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activations_forms_agree_with_torch_and_its_derivatives_with_autograd(name: ActivationName) -> None:
    activation = ACTIVATIONS[name]
    z = torch.tensor([-3.0, -0.5, -0.0, 0.25, 2.0], dtype=torch.float64, requires_grad=True)
    y = activation.module()(z)
    slope = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25], dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, z, slope)
    array, plain = z.detach().numpy().copy(), z.detach().clone()
    np.testing.assert_allclose(activation.value(array), y.detach(), rtol=1e-15)
    np.testing.assert_array_equal(array, plain, err_msg="without `out`, nothing is overwritten")
    np.testing.assert_allclose(activation.derivative(array) * slope.numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(activation.value(array, array), y.detach(), rtol=1e-15)
    values = activation.value_(plain)
    torch.testing.assert_close(values, y.detach(), rtol=1e-15, atol=0)
    if activation.is_monotone:
        torch.testing.assert_close(activation.backward_(slope.clone(), values), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_exact_to_two_units_and_the_same_in_acting_and_learning(dtype: type[np.floating[Any]]) -> None:
    z = np.concatenate([np.linspace(-30, 30, 40_001), np.geomspace(1e-30, 1, 999), [0, np.inf, -np.inf]]).astype(dtype)
    tanh = ACTIVATIONS["tanh"]
    y = tanh.value(z)
    exact = np.tanh(z.astype(np.longdouble))
    assert (abs(y - exact) <= 2 * np.spacing(abs(exact).astype(dtype))).all()
    assert abs(y).max() == 1
    in_torch = torch.from_numpy(z)
    for again in (tanh.module()(in_torch), tanh.module()(in_torch.clone().requires_grad_()).detach()):
        np.testing.assert_array_equal(again, y)
    for start, stop in ((0, 1), (1, 2), (3, 70), (20_000, 20_013)):  # independent of the batch and the place in it
        np.testing.assert_array_equal(tanh.value_(in_torch[start:stop].clone()), y[start:stop])
    np.testing.assert_array_equal(tanh.value_(in_torch[:, None].repeat(1, 3).t()), [y] * 3)
    assert tanh.module()(in_torch[20_000]) == y[20_000]
    assert math.isnan(tanh.value(np.array([math.nan], dtype))[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # used by torch itself
def test_tanh_has_forward_reverse_batched_and_second_derivatives() -> None:
    tanh = ACTIVATIONS["tanh"].module()
    z = torch.linspace(-3, 3, 6, dtype=torch.float64).view(3, 2)
    y = z.tanh()
    curvatures = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(lambda one: tanh(one).sum())))(z)
    torch.testing.assert_close(curvatures, torch.diag_embed(-2 * y * (1 - y**2)))
    z.requires_grad_()
    (slopes,) = torch.autograd.grad(tanh(z).sum(0), z, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(slopes.sum(0), 1 - y**2)


def test_every_activation_of_a_config_is_in_the_table() -> None:
    assert get_args(ActivationName) == tuple(ACTIVATIONS)


def test_the_actor_follows_weights_and_biases_changed_in_place() -> None:
    policy = policy_for(spaces.Discrete(2), hidden_sizes=[])
    obs, middle = np.array([0, 1]), np.full(2, 0.5)
    sampled, greedy = policy.actor("sampled").act, policy.actor("greedy").act
    for parameter in policy.parameters():
        for action in (2, 0, 1):
            with torch.no_grad():
                for each in policy.parameters():
                    each.zero_()
                parameter[action] = 100
            assert sampled(obs, middle).tolist() == greedy(obs, middle).tolist() == [action, action]


def test_greedy_actions_are_the_most_probable() -> None:
    space = spaces.Box(-5, 5, (4,))
    policy = policy_for(space, spaces.Discrete(3, start=-1), hidden_sizes=[8])
    obs = samples(space, 50)
    actions = torch.arange(-1, 2).expand(50, 3)
    each = [log_probs(policy, torch.from_numpy(obs), a) for a in actions.T]
    expected = torch.stack(each).argmax(0) - 1
    assert expected.min() < expected.max()
    assert policy.actor("greedy").act(obs, np.zeros(50)).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", [0, 5, -3])
def test_uniforms_on_a_grid_give_exact_frequencies(start: int, dtype: type[Any]) -> None:
    counts = [100, 250, 1, 649]
    logits = np.log(np.array([counts] * 1000, dtype)) + dtype(40)  # a shift means nothing
    actions = Softmax(4, start).sample(logits, (np.arange(1000) + 0.5) / 1000)
    assert actions.tolist() == np.repeat(np.arange(start, start + 4), counts).tolist()


def test_each_row_is_drawn_from_its_own_distribution() -> None:
    logits = np.log(np.array([[1, 3], [3, 1], [2, 2]], np.float32))
    assert Softmax(2).sample(logits, np.full(3, 0.5 - 1e-9)).tolist() == [1, 0, 0]
    assert Softmax(2).sample(logits, np.array([0.24, 0.76, 0.51])).tolist() == [0, 1, 1]


def test_an_action_of_tiny_probability_keeps_its_frequency() -> None:
    logits = np.array([[0, -25, -1e4]] * 2, np.float32)  # e^-25 is lost beside 1 in float32
    assert Softmax(3).sample(logits, np.array([1 - 1e-10, LAST])).tolist() == [0, 1]


@pytest.mark.parametrize("impossible", [-1e4, -math.inf])
@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, LAST])
@pytest.mark.parametrize("total", [1, 3, 5, 7])
def test_an_action_of_probability_zero_is_never_drawn(u: float, impossible: float, total: int) -> None:
    rows = [[x for x in range(8) if bits >> x & 1] for bits in range(1, 256) if bits.bit_count() == total]
    logits = np.full((len(rows), 8), impossible, np.float32)
    for row, possible in enumerate(rows):
        logits[row, possible] = np.linspace(-0.3, 0.4, total)
    actions = Softmax(8).sample(logits, np.full(len(rows), u))
    assert all(action in possible for action, possible in zip(actions, rows, strict=True))
    if u in (0.0, LAST):
        assert actions.tolist() == [possible[0 if u == 0 else -1] for possible in rows]


def test_draws_follow_the_log_probabilities() -> None:
    policy = policy_for(spaces.Discrete(1), spaces.Discrete(5, start=2), hidden_sizes=[4])
    obs = np.zeros(4000, np.int64)
    actions = policy.actor("sampled").act(obs, np.random.default_rng(0).random(4000))
    of_each = log_probs(policy, torch.zeros(5, dtype=torch.int64), torch.arange(2, 7))
    expected = of_each.detach().double().exp().numpy() * 4000
    chi_square = ((np.bincount(actions - 2, minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 13.28  # the 99th percentile for 4 degrees of freedom


@pytest.mark.parametrize("start", [0, 4, -1])
def test_probabilities_sum_to_one_and_are_the_softmax(start: int) -> None:
    logits = torch.tensor([[0, math.log(2), math.log(3)]] * 3, dtype=torch.float64) - 900
    probabilities = Softmax(3, start).log_probs(logits, torch.arange(start, start + 3)).exp()
    assert probabilities.tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2], rel=1e-12)
    assert probabilities.sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "entropy"),
    [
        ([0.25] * 4, math.log(4)),
        ([0.5, 0.25, 0.125, 0.125], 1.75 * math.log(2)),
        ([1, 1e-300, 1e-300, 1e-300], 0),
        ([0.5, 0.5, 1e-300, 1e-300], math.log(2)),
    ],
)
def test_entropy_is_in_nats(probabilities: list[float], entropy: float) -> None:
    logits = torch.tensor([probabilities], dtype=torch.float64).log() + 5
    assert Softmax(4).entropy(logits).tolist() == pytest.approx([entropy], abs=1e-12)


def test_the_seed_determines_the_initialization_without_torchs_global_generator() -> None:
    state = torch.get_rng_state()
    a, again, other = (build_agent(SPACES[1], spaces.Discrete(2), config(seed=seed)).policy for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        later = build_agent(SPACES[1], spaces.Discrete(2), config(seed=1)).policy
    for p, q, r, s in zip(*(x.parameters() for x in (a, again, later, other)), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
        assert not torch.equal(p, s)


def test_the_initialization_is_uniform_within_one_over_the_root_of_fan_in() -> None:
    network = policy_for(spaces.Discrete(16), hidden_sizes=[400]).network
    for linear, bound in zip((network[0], network[2]), (1 / 4, 1 / 20), strict=True):
        assert isinstance(linear, torch.nn.Linear)
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(linear.weight.mean().item()) < 0.05 * bound


def test_discrete_observations_of_another_integer_type_are_encoded_too() -> None:
    space = spaces.Discrete(5, dtype=np.int32)
    obs = np.array([0, 4, 2], np.int32)
    encoder = Encoder(space)
    expected = np.eye(5)[obs]
    np.testing.assert_array_equal(encoder.in_numpy(obs), expected)
    np.testing.assert_array_equal(encoder.in_torch(torch.from_numpy(obs), torch.float32), expected)


def test_cartpole_gets_logits_of_the_right_shape() -> None:
    with gym.make("CartPole-v1") as env:
        policy = policy_for(env.observation_space, env.action_space)
        obs, _ = env.reset(seed=0)
    assert policy(torch.from_numpy(obs)[None]).shape == (1, 2)


ACTIONS: list[tuple[spaces.Space[Any], dict[str, Any]]] = [
    (spaces.Discrete(3), {}),
    (spaces.MultiDiscrete([2, 3, 4]), {}),
    (spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])), {}),
    (spaces.MultiBinary((2, 2)), {}),
    (spaces.Box(-2, 2, (3,)), {}),
    (spaces.Box(-2, 2, (2, 2)), {"distribution": "tanh_gaussian"}),
    (spaces.Box(-2, 2, (3,)), {"distribution": "state_dependent_gaussian"}),
    (spaces.Box(-2, 2, (3,)), {"distribution": "state_dependent_gaussian", "hidden_sizes": []}),
]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("space", "settings"), ACTIONS, ids=lambda value: str(value))
def test_acting_and_learning_share_every_distribution(
    space: spaces.Space[Any], settings: dict[str, Any], normalize: bool
) -> None:
    """Greedy actions are most probable ones: no sampled action of the same state has a larger density."""
    policy = policy_for(spaces.Box(-5, 5, (4,)), space, **{"hidden_sizes": [8], "normalize_obs": normalize} | settings)
    obs = np.repeat(samples(spaces.Box(-5, 5, (4,)), 4), 200, axis=0)
    if policy.normalizer is not None:
        policy.normalizer.add(torch.from_numpy(obs))
    sampled, greedy = policy.actor("sampled"), policy.actor("greedy")
    noise = sampled.noise(np.random.default_rng(0), 1, len(obs))[0]
    drawn, best = sampled.act(obs, noise), greedy.act(obs, noise)
    torch_obs = torch.from_numpy(obs)
    of_drawn, of_best = (log_probs(policy, torch_obs, torch.from_numpy(x)).detach() for x in (drawn, best))
    if settings.get("distribution") != "tanh_gaussian":  # whose greedy action is that of the unsquashed mode
        assert (of_best >= of_drawn - 1e-4).all()
    entropy = policy.distribution.entropy(policy(torch_obs)).detach()
    error = of_drawn.std() / math.sqrt(len(obs))
    assert abs((-of_drawn - entropy).mean()) < 4 * error, "the mean of -log π is the entropy"
    assert all(space.contains(action) for action in sampled.for_environment(drawn))
    assert all(space.contains(action) for action in greedy.for_environment(best))


def test_state_dependent_noise_is_constant_for_a_block_of_rows() -> None:
    policy = policy_for(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), distribution="state_dependent_gaussian")
    actor = policy.actor("sampled")
    noise = actor.noise(np.random.default_rng(0), 64, 3)
    obs = np.ones((3, 2), np.float32)
    assert (actor.act(obs, noise[0]) == actor.act(obs, noise[63])).all()
    assert len(np.unique(actor.act(obs, noise[0]))) == 3, "each column has its own"


def test_an_action_outside_its_bounds_is_clipped_and_counted() -> None:
    from pgcli.policies.distributions import Gaussian

    gaussian = Gaussian(spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)), 1.0)
    actions = np.array([[-3, 5], [0.5, -2], [1, 0]], np.float32)
    assert gaussian.for_environment(actions).tolist() == [[-1, 5], [0.5, 0], [1, 0]]
    assert gaussian.action_statistics(torch.from_numpy(actions))[1] == pytest.approx(2 / 6)


@pytest.mark.parametrize("distribution", ["gaussian", "bernoulli", "tanh_gaussian", "state_dependent_gaussian"])
def test_a_distribution_that_does_not_fit_the_actions_is_rejected(distribution: str) -> None:
    with pytest.raises(UsageError, match=f"{distribution} does not support the action space Discrete") as error:
        policy_for(SPACES[0], spaces.Discrete(2), distribution=distribution)
    assert "`auto`" in error.value.hint


def test_a_squashed_gaussian_needs_bounds() -> None:
    with pytest.raises(UsageError, match="tanh_gaussian needs bounds"):
        policy_for(SPACES[0], spaces.Box(0, np.inf, (2,)), distribution="tanh_gaussian")
