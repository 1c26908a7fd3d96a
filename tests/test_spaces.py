"""All observation and action spaces work, and masked actions are never drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import Array, config, executor_for, mostly_slow
from tasks import ACTIONS, EPISODE_STEPS, OBSERVATIONS

from pgcli.algorithm.learner import Learner, build_agent
from pgcli.errors import EnvironmentFailure, UsageError
from pgcli.experiment.load import Agent
from pgcli.policies.observations import Encoder, Layout
from pgcli.policies.policy import Policy
from pgcli.records import Evaluation, Record
from pgcli.sampling.sampler import make_sampler
from pgcli.sampling.segments import in_todays_form
from pgcli.training.loop import Counters, Training, train

NESTED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (6, 5, 3), np.uint8),
        "pair": spaces.Tuple((spaces.Discrete(5, start=-2), spaces.MultiDiscrete(np.array([[2, 3]])))),
        "bits": spaces.MultiBinary((2, 2)),
        "inner": spaces.Dict({"x": spaces.Box(-np.inf, np.inf, (2, 2)), "y": spaces.Box(0, np.inf, (), np.float64)}),
    }
)


def trained(**sections: Any) -> list[Record]:
    """Train, and return all records."""
    settings = config(**sections)
    executor = executor_for(settings)
    envs = executor.environments.of_width(settings.env.num_envs)
    agent = build_agent(envs.observation_space, envs.action_space, settings)
    return list(train(Training(settings, executor, Learner(agent), make_sampler(settings, executor), Counters())))


def returns(**sections: Any) -> list[float]:
    """Train, and return the mean return of every evaluation."""
    return [record.returns.mean for record in trained(**sections) if isinstance(record, Evaluation)]


def identity(iterations: int, learning_rate: float, **kwargs: str) -> list[float]:
    return returns(
        env={"id": "tasks:Identity-v0", "num_envs": 32, "kwargs": kwargs},
        rollout={"episodes": 32},
        policy={"hidden_sizes": [32], "initial_standard_deviation": 0.5},
        algorithm={"gamma": 0},
        optimizer={"learning_rate": learning_rate},
        training={"iterations": iterations},
        evaluation={"every": None},
    )


FAST = [name for name in OBSERVATIONS if "image" not in name or name in ("image, channels last", "image in a dict")]


@pytest.mark.parametrize("observation", mostly_slow(OBSERVATIONS, FAST, "learns from large observations"))
def test_a_policy_learns_from_observations_of_any_space(observation: str) -> None:
    before, after = identity(30, 0.01, observation=observation)
    assert before < 3 < 5 < after <= EPISODE_STEPS


@pytest.mark.parametrize("action", ACTIONS)
def test_a_policy_learns_actions_of_any_space(action: str) -> None:
    before, after = identity(60, 0.02, action=action)
    assert before < 3 < 5 < after <= EPISODE_STEPS


def test_segments_support_nested_observations() -> None:
    before, after = returns(
        env={"id": "tasks:Identity-v0", "num_envs": 8, "kwargs": {"observation": "image in a dict"}},
        rollout={"episodes": None, "steps": 32},
        policy={"hidden_sizes": []},
        algorithm={
            "returns": "lambda_return",
            "baseline": "value",
            "gamma": 0,
            "objective": "clip",
            "update_epochs": 4,
        },
        value={"shared_trunk": True},
        optimizer={"learning_rate": 0.003},
        training={"iterations": 30},
        evaluation={"every": None},
    )
    assert before < 3 < 5 < after


# ------------------------------------------------------------------------------------------------------------- layouts


def test_a_nested_observation_is_one_row_with_exact_values() -> None:
    NESTED.seed(0)
    obs, layout = NESTED.sample(), Layout(NESTED)
    row = layout.pack(obs)
    assert layout.dtype == row.dtype == np.uint8
    by_path = {leaf.path: leaf.unpack(row[None])[0] for leaf in layout.leaves}
    assert by_path["image",].tolist() == obs["image"].ravel().tolist()
    assert by_path["pair", 0].tolist() == [obs["pair"][0]]
    assert by_path["pair", 1].tolist() == obs["pair"][1].ravel().tolist()
    assert by_path["bits",].tolist() == obs["bits"].ravel().tolist()
    assert by_path["inner", "x"].tolist() == obs["inner"]["x"].ravel().tolist()
    assert by_path["inner", "y"].tolist() == [obs["inner"]["y"]]


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({"a": spaces.Box(0, 255, (4, 4), np.uint8), "b": spaces.Discrete(200)}, 16 + 1),
        ({"a": spaces.Box(0, 255, (4, 4), np.uint8), "b": spaces.Discrete(300)}, 16 + 2),
        ({"a": spaces.Box(0, 255, (4, 4), np.uint8), "b": spaces.Box(0, 1, (2,), np.float64)}, 16 + 16),
        ({"a": spaces.MultiBinary(3), "b": spaces.MultiDiscrete([3, 257])}, 4 + 4),
        ({"a": spaces.Box(0, 9, (3,), np.float16), "b": spaces.Box(-9, 9, (1,), np.int64)}, 8 + 8),
        ({"a": spaces.Box(0, 9, (1,), np.longdouble), "b": spaces.Box(0, 1, (0,))}, 8),
    ],
    ids=str,
)
def test_each_part_of_a_row_takes_the_bytes_of_its_own_type(space: dict[str, Any], size: int) -> None:
    assert Layout(spaces.Dict(space)).shape == (size,)


def test_a_row_represents_numbers_that_no_common_type_does() -> None:
    space = spaces.Dict({"clock": spaces.Box(0, 2**62, (1,), np.int64), "x": spaces.Box(-1, 1, (1,))})
    layout = Layout(space)
    row = layout.pack({"clock": np.array([2**60 + 1]), "x": np.array([0.1], np.float32)})
    assert [leaf.unpack(row[None]).item() for leaf in layout.leaves] == [2**60 + 1, np.float32(0.1)]


def test_rows_of_earlier_versions_are_converted() -> None:
    NESTED.seed(3)
    layout, drawn = Layout(NESTED), [NESTED.sample() for _ in range(4)]
    rows = np.stack([layout.pack(one) for one in drawn])
    earlier = np.concatenate([leaf.unpack(rows) for leaf in layout.leaves], 1, dtype=np.float64)
    assert layout.converted(earlier).tobytes() == rows.tobytes()
    assert layout.converted(rows) is rows


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (spaces.Box(-1, 1, (2,)), np.zeros(3, np.float32), r"shape \(3,\) in a space of \(2,\)"),
        (spaces.Box(-1, 1, (2,)), np.zeros((1, 2), np.float32), r"shape \(1, 2\)"),
        (spaces.Box(-1, 1, (2,)), ["a", "b"], "type <U1"),
        (spaces.Box(-9, 9, (2,), np.int64), [0.5, 1.0], "of 0.5 in a space of int64"),
        (spaces.Discrete(3), 3, "of 3 in a space of Discrete"),
        (spaces.Discrete(3, start=1), 0, "of 0 in a space of Discrete"),
        (spaces.MultiBinary(2), [0, 2], "of 2 in a space of MultiBinary"),
        (spaces.MultiDiscrete([2, 2]), [0, 2], "in a space of MultiDiscrete"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"b": 0}, r"observation\['a'\] is missing"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (0,), r"observation\[1\] is missing"),
        (spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2),))}), {"a": (2,)}, r"observation\['a'\]\[0\] of 2"),
    ],
    ids=str,
)
def test_an_observation_outside_its_space_is_reported(space: spaces.Space[Any], obs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(space).pack(obs)


def test_values_of_another_type_are_accepted_if_equal() -> None:
    layout = Layout(spaces.Box(-9, 9, (2,), np.int16))
    for obs in ([1, 2], (1.0, 2.0), np.array([1, 2], np.int64), np.array([True, False])):
        packed = layout.pack(obs)
        assert packed.dtype == np.int16
        assert packed.tolist() == list(obs)
    assert Layout(spaces.Box(-9, 9, (1,))).pack(np.array([0.1])).dtype == np.float32


@pytest.mark.parametrize(
    ("space", "kind", "hint"),
    [
        (spaces.Text(4), "Text", "module:Class"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence", "module:Class"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "Graph", "module:Class"),
        (
            spaces.Dict({"image": spaces.Box(0, 1, (3,)), "mission": spaces.Text(9), "way": spaces.Discrete(4)}),
            r"Text at \['mission'\]",
            "FilterObservation, kwargs: {filter_keys: [image, way]}",
        ),
    ],
    ids=str,
)
def test_unsupported_spaces_are_rejected_with_a_wrapper_as_hint(space: Any, kind: str, hint: str) -> None:
    with pytest.raises(EnvironmentFailure, match=kind) as refusal:
        Layout(space)
    assert hint in refusal.value.hint


# ------------------------------------------------------------------------------------------------ what a policy reads


def policy_for(space: spaces.Space[Any], actions: spaces.Space[Any], **settings: Any) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(space, actions, config(policy=settings).policy)


def test_numbers_are_encoded_as_gymnasium_flattens_them_nested_or_not() -> None:
    space = spaces.Dict({key: child for key, child in NESTED.spaces.items() if key != "image"})
    space.seed(1)
    drawn = [space.sample() for _ in range(20)]
    obs, encoder = np.stack([Layout(space).pack(one) for one in drawn]), Encoder(space)
    expected = np.stack([np.asarray(spaces.flatten(space, one)) for one in drawn]).astype(np.float32)
    np.testing.assert_array_equal(encoder.in_numpy(obs), expected)
    np.testing.assert_array_equal(encoder.in_torch(torch.from_numpy(obs), torch.float32), expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "image"),
    [
        ((84, 84, 3), np.uint8, (3, 84, 84)),
        ((4, 84, 84), np.uint8, (4, 84, 84)),
        ((84, 84, 1), np.uint8, (1, 84, 84)),
        ((210, 160, 3), np.uint8, (3, 210, 160)),
        ((3, 210, 160), np.uint8, (3, 210, 160)),
        ((10, 10, 16), np.bool_, (16, 10, 10)),
        ((7, 7, 3), np.uint8, (3, 7, 7)),
        ((7, 11, 11), np.float32, (7, 11, 11)),
        ((4, 84, 84, 3), np.uint8, (12, 84, 84)),
        ((4, 3, 84, 80), np.uint8, (12, 84, 80)),
        ((84, 84), np.uint8, (1, 84, 84)),
        ((5, 5), np.float32, None),
        ((3, 4, 4), np.uint8, None),
        ((128,), np.uint8, None),
    ],
    ids=str,
)
def test_images_and_their_channels_are_recognized(
    shape: tuple[int, ...], dtype: type, image: tuple[int, ...] | None
) -> None:
    encoder = Encoder(spaces.Box(0, 1 if dtype is not np.uint8 else 255, shape, dtype))
    assert [one.shape for one in encoder.images] == ([] if image is None else [image])
    assert encoder.size == (np.prod(shape) if image is None else 0)


@pytest.mark.parametrize("last", [True, False])
def test_every_frame_and_channel_becomes_its_own_channel(last: bool) -> None:
    shape = (2, 6, 8, 3) if last else (2, 3, 6, 8)
    picture = np.zeros(shape, np.uint8)
    picture[(1, 4, 7, 2) if last else (1, 2, 4, 7)] = 255
    (image,) = Encoder(spaces.Box(0, 255, shape, np.uint8)).images
    seen = image.in_torch(torch.from_numpy(picture)[None], torch.float32)
    assert seen.shape == (1, 6, 6, 8)
    assert seen.nonzero().tolist() == [[0, 1 * 3 + 2, 4, 7]]
    assert seen.max() == 1, "bytes are divided by 255"


@pytest.mark.parametrize(("high", "largest"), [(255, 1.0), (1, 1.0), (0.5, 0.5), (np.inf, 300.0)])
def test_an_image_is_scaled_by_bounds_beyond_one(high: float, largest: float) -> None:
    space = spaces.Box(0, high, (1, 6, 6))
    obs = torch.full((1, 1, 6, 6), min(high, 300.0))
    assert Encoder(space).images[0].in_torch(obs, torch.float32).max() == pytest.approx(largest)


def test_bytes_that_are_no_image_are_divided_by_their_bound() -> None:
    space, obs = spaces.Box(0, 255, (128,), np.uint8), np.full((1, 128), 51, np.uint8)
    assert Encoder(space).in_numpy(obs)[0, 0] == Encoder(space).in_torch(torch.from_numpy(obs), torch.float32)[0, 0]
    assert Encoder(space).in_numpy(obs)[0, 0] == np.float32(0.2)


def test_images_are_flattened_without_an_image_network() -> None:
    policy = policy_for(spaces.Box(0, 255, (6, 6, 3), np.uint8), spaces.Discrete(2), image_network="none")
    assert policy.encoder.size == 108
    assert not len(policy.images)


def test_each_size_gets_its_image_network() -> None:
    def layers(side: int, **settings: Any) -> list[tuple[int, ...]]:
        policy = policy_for(spaces.Box(0, 255, (side, side, 4), np.uint8), spaces.Discrete(2), **settings)
        return [tuple(parameter.shape) for name, parameter in policy.images.named_parameters() if "weight" in name]

    nature = [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7)]
    assert layers(84) == layers(84, image_network="nature") == nature
    assert layers(84, image_network="small") == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 32 * 9 * 9)]
    assert layers(36)[-1] == (512, 64)
    assert layers(35) == layers(35, image_network="small") == [(16, 4, 3, 3), (32, 16, 3, 3), (128, 32 * 31 * 31)]
    assert layers(5)[-1] == (128, 32)
    with pytest.raises(UsageError, match="36 pixels"):
        layers(35, image_network="nature")


@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_acting_and_learning_see_the_same_in_a_nested_observation(memory: str, normalize_obs: bool) -> None:
    policy = policy_for(NESTED, spaces.Box(-1, 1, (3,)), memory=memory, normalize_obs=normalize_obs, memory_size=7)
    NESTED.seed(2)
    obs = np.stack([policy.encoder.layout.pack(NESTED.sample()) for _ in range(6)])
    if normalize_obs:
        policy.add_statistics(torch.from_numpy(obs))
    acted = policy.actor("greedy").act(obs, np.zeros((6, 3)))
    sequences = None if policy.memory is None else _beginnings(policy, 6)
    learned = policy(torch.from_numpy(obs), sequences).detach()
    np.testing.assert_allclose(acted, learned, rtol=1e-4, atol=1e-5)
    assert len(np.unique(acted)) == acted.size, "every observation is distinguished from the others"


def test_images_are_normalised_by_channel() -> None:
    space = spaces.Box(0, 255, (6, 5, 2), np.uint8)
    policy = policy_for(space, spaces.Discrete(2), normalize_obs=True)
    obs = np.random.default_rng(0).integers((0, 100), (11, 120), (300, 6, 5, 2), np.uint8)
    before = policy.actor("greedy").act(obs[:1], np.zeros(1))
    policy.add_statistics(torch.from_numpy(obs))
    (seen,) = policy.pictures(torch.from_numpy(obs), torch.float64)
    plain = policy.encoder.images[0].in_torch(torch.from_numpy(obs), torch.float64)
    mean, deviation = plain.mean((0, 2, 3), keepdim=True), plain.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(seen, (plain - mean) / deviation, rtol=1e-3, atol=1e-3)
    assert before.shape == (1,)
    names = {name for name, _ in policy.named_buffers()}
    assert {"image_normalizers.0.mean", "image_normalizers.0.variance"} <= names, "a part of every checkpoint"


def _beginnings(policy: Policy, count: int) -> Any:
    from pgcli.policies.recurrent import Sequences

    assert policy.memory is not None
    return Sequences(torch.ones(count, dtype=torch.long), torch.zeros(count, policy.memory.state_size))


def test_a_separate_value_function_has_its_own_image_networks() -> None:
    for shared in (False, True):
        settings = config(algorithm={"baseline": "value"}, value={"shared_trunk": shared}, policy={"hidden_sizes": []})
        agent = build_agent(spaces.Box(0, 255, (6, 6, 3), np.uint8), spaces.Discrete(2), settings)
        assert agent.value is not None
        names = {name for name, _ in agent.value.named_parameters()}
        assert any(name.startswith("images.0") for name in names) is not shared
        assert agent.value(agent.policy, torch.zeros(4, 6, 6, 3, dtype=torch.uint8)).shape == (4,)


def test_a_linear_policy_has_no_trunk_to_share() -> None:
    settings = config(algorithm={"baseline": "value"}, value={"shared_trunk": True}, policy={"hidden_sizes": []})
    with pytest.raises(UsageError, match="no trunk") as refusal:
        build_agent(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), settings)
    assert "hidden_sizes" in refusal.value.hint


# --------------------------------------------------------------------------------------------------------------- masks


def masked_policy(actions: spaces.Space[Any], entries: int, **settings: Any) -> Policy:
    space = spaces.Dict({"action_mask": spaces.MultiBinary(entries), "x": spaces.Box(-1, 1, (2,))})
    return policy_for(space, actions, hidden_sizes=[8], **settings)


def rows(policy: Policy, *masks: list[int]) -> Array:
    return np.stack([policy.encoder.layout.pack({"action_mask": mask, "x": np.zeros(2, np.float32)}) for mask in masks])


def test_a_mask_applies_to_sampling_log_probability_and_entropy() -> None:
    policy, free = masked_policy(spaces.Discrete(4), 4), masked_policy(spaces.Discrete(4), 4, action_mask="none")
    free.load_state_dict(policy.state_dict())
    obs = rows(policy, [1, 0, 1, 0])
    with torch.no_grad():
        logits = free(torch.from_numpy(obs))[0].double()
        outputs = policy(torch.from_numpy(obs)).repeat(4, 1)
        log_probs = policy.distribution.log_probs(outputs, torch.arange(4)).double()
        entropy = float(policy.distribution.entropy(outputs)[0])
    p = logits[[0, 2]].softmax(0)
    assert log_probs[[0, 2]].tolist() == pytest.approx(p.log().tolist(), abs=1e-6)
    assert log_probs[[1, 3]].exp().tolist() == [0, 0]
    assert entropy == pytest.approx(-float((p * p.log()).sum()), abs=1e-6)
    u = (np.arange(1000) + 0.5) / 1000
    drawn = policy.actor("sampled").act(np.repeat(obs, 1000, 0), u)
    assert (np.bincount(drawn, minlength=4) / 1000).tolist() == pytest.approx(
        [float(p[0]), 0, float(p[1]), 0], abs=2e-3
    )
    assert policy.actor("greedy").act(obs, u[:1]).tolist() == [2 * int(p[1] > p[0])]


def test_a_forbidden_action_gets_no_gradient() -> None:
    policy = masked_policy(spaces.Discrete(4), 4)
    outputs = policy(torch.from_numpy(rows(policy, [1, 0, 1, 0])))
    loss = policy.distribution.log_probs(outputs, torch.tensor([2])) + policy.distribution.entropy(outputs)
    bias = list(policy.parameters())[-1]
    (gradient,) = torch.autograd.grad(loss.sum(), [bias])
    assert torch.isfinite(gradient).all()
    assert gradient[[1, 3]].tolist() == [0, 0]
    assert gradient[[0, 2]].abs().min() > 0


def test_each_factor_of_a_multi_discrete_action_uses_its_part_of_the_mask() -> None:
    policy = masked_policy(spaces.MultiDiscrete([3, 2]), 5)
    drawn = policy.actor("sampled").act(rows(policy, *[[0, 0, 1, 1, 0]] * 50), np.random.default_rng(0).random((50, 2)))
    assert (drawn == [2, 0]).all()


def test_a_mask_is_not_an_observation_and_can_be_ignored() -> None:
    policy = masked_policy(spaces.Discrete(4), 4)
    assert policy.encoder.size == 2
    assert not masked_policy(spaces.Discrete(4), 4, action_mask="none").masked
    for actions in (spaces.MultiBinary(4), spaces.Box(-1, 1, (4,))):
        assert not masked_policy(actions, 4).masked
    with pytest.raises(UsageError, match="mask") as refusal:
        masked_policy(spaces.Discrete(4), 5)
    assert "policy.action_mask: none" in refusal.value.hint
    masked_policy(spaces.Discrete(4), 5, action_mask="none")


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("factors", [1, 2])
def test_masked_actions_are_learned_and_never_forbidden(factors: int, memory: str) -> None:
    before, after = returns(
        env={"id": "tasks:Permitted-v0", "num_envs": 32, "kwargs": {"where": "obs", "factors": factors}},
        rollout={"episodes": 32},
        policy={"hidden_sizes": [], "memory": memory, "memory_size": 4},
        algorithm={"gamma": 0},
        optimizer={"learning_rate": 0.1},
        training={"iterations": 40},
        evaluation={"every": None},
    )
    assert before < 3.5 < 5 < after


def test_taxi_is_played_within_its_mask() -> None:
    with gym.make("Taxi-v4") as env:
        _, info = env.reset(seed=0)
        assert set(np.unique(info["action_mask"])) == {0, 1}


def test_an_agent_in_a_notebook_accepts_an_action_mask() -> None:
    space = spaces.Dict({"observation": spaces.Discrete(5), "action_mask": spaces.MultiBinary(3)})
    settings = config()
    agent = Agent(build_agent(space, spaces.Discrete(3), settings).policy, settings, {}, Path("nowhere"), seed=0)
    assert {int(agent.act(2, action_mask=[0, 1, 0])) for _ in range(20)} == {1}
    with pytest.raises(ValueError, match="action_mask=info"):
        agent.act(2)


def test_an_agent_in_a_notebook_rejects_invalid_observations() -> None:
    settings = config(policy={"memory": "gru"})
    policy = build_agent(spaces.Box(-9, 9, (2,)), spaces.Discrete(3), settings).policy
    agent = Agent(policy, settings, {}, Path("nowhere"), seed=0)
    for obs, message in ((np.full(2, np.nan), "finite"), (np.zeros(3), r"shape \(3,\)"), ("text", "shape")):
        with pytest.raises(ValueError, match=message):
            agent.act(obs)
    agent.act(np.zeros(2))
    with pytest.raises(ValueError, match="reset"):
        agent.act(np.zeros((2, 2)))


@pytest.mark.parametrize(
    "actions",
    [
        spaces.Box(0, 5, (2,), np.int64),
        spaces.Text(3),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple((spaces.Discrete(2),)),
        spaces.Sequence(spaces.Discrete(2)),
    ],
    ids=str,
)
def test_unsupported_actions_are_rejected_with_the_supported_ones(actions: spaces.Space[Any]) -> None:
    with pytest.raises(
        EnvironmentFailure, match="is not supported; use Discrete, MultiDiscrete, MultiBinary"
    ) as refusal:
        policy_for(spaces.Box(-1, 1, (2,)), actions)
    assert type(actions).__name__ in refusal.value.message
    assert "module:Class" in refusal.value.hint


@pytest.mark.parametrize(
    ("space", "actions", "settings", "message"),
    [
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), {"memory": "gru"}, "non-empty observation"),
        (spaces.Box(0, 1, (4, 4, 3)), spaces.Discrete(2), {"image_network": "small"}, "reads images"),
        (spaces.Discrete(2), spaces.Box(1, 1, (2,)), {"distribution": "tanh_gaussian"}, "bounds that differ"),
    ],
    ids=str,
)
def test_a_policy_that_does_not_fit_the_spaces_is_rejected(
    space: spaces.Space[Any], actions: spaces.Space[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        policy_for(space, actions, **settings)


@pytest.mark.parametrize("space", [spaces.Dict({}), spaces.Tuple(())], ids=str)
def test_an_observation_without_parts_is_rejected(space: spaces.Space[Any]) -> None:
    with pytest.raises(EnvironmentFailure, match="no parts"):
        Layout(space)


def test_a_checkpoint_of_an_earlier_version_shows_its_observations_in_the_form_of_this_one() -> None:
    layout = Layout(spaces.Dict({"a": spaces.MultiBinary(3), "b": spaces.Discrete(300)}))
    rows = np.stack([layout.pack({"a": np.array([1, 0, 1]), "b": 299})] * 2)
    earlier = {"sampler.obs": torch.tensor([[1, 0, 1, 299]] * 2, dtype=torch.uint16), "sampler.over": torch.zeros(2)}
    for tensors in (earlier, earlier | {"sampler.obs": torch.from_numpy(rows)}):
        found = in_todays_form(tensors, layout)
        assert found["sampler.obs"].numpy().tobytes() == rows.tobytes()
        assert found.keys() == earlier.keys()
    assert in_todays_form({}, layout) == {}
