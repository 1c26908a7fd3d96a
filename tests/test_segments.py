"""Segments in environments with known episodes, and restored environments."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import Array, Counting, config, executor_for, learner_of, mapped, segment_sampler

from pgcli.algorithm.learner import build_agent
from pgcli.config.schema import Config
from pgcli.environments.make import make_environments
from pgcli.environments.single import SingleEnvironments, make_environment
from pgcli.environments.vector.native import VectorEnvironments
from pgcli.errors import CheckpointError, EnvironmentFailure, UsageError
from pgcli.estimators.trajectories import Trajectories
from pgcli.sampling.segments import SegmentSampler
from pgcli.seeding import Purpose, derived_seed

STEPS = 5


def segments(env_id: str = "Counting-v0", num_envs: int = 3, steps: int = STEPS, **env: Any) -> Config:
    return config(
        env={"id": env_id, "num_envs": num_envs} | env,
        rollout={"episodes": None, "steps": steps},
        algorithm={"baseline": "value", "returns": "lambda_return"},
        policy={"hidden_sizes": [4]},
    )


def policy_for(settings: Config) -> Any:
    with make_environment(settings.env) as env:
        return build_agent(env.observation_space, env.action_space, settings).policy


def collect(sampler: SegmentSampler, policy: Any, iterations: range) -> list[Any]:
    return [sampler.collect(policy, iteration, lambda: None) for iteration in iterations]


def joined(rollouts: list[Any]) -> Trajectories:
    """Concatenate segments; the last observation of one is the first of the next."""
    parts = [rollout.trajectories for rollout in rollouts]
    for before, after in pairwise(parts):
        assert torch.equal(before.obs[-1], after.obs[0])
    return mapped(
        parts[0],
        lambda name, _: torch.cat([getattr(p, name)[:-1] if name == "obs" else getattr(p, name) for p in parts]),
    )


def same(a: list[Any], b: list[Any]) -> bool:
    return all(
        x.episodes == y.episodes and torch.equal(getattr(x.trajectories, name), getattr(y.trajectories, name))
        for x, y in zip(a, b, strict=True)
        for name in ("obs", "actions", "rewards", "terminated", "truncated", "mask")
    )


def test_episodes_continue_across_segments_with_one_masked_row_between_them() -> None:
    settings = segments()
    rollouts = collect(segment_sampler(settings), policy_for(settings), range(8))
    stream = joined(rollouts)
    for column in range(3):
        row, episode = 0, 0
        while row < 8 * STEPS:
            k, length, end = Counting.facts(derived_seed(0, Purpose.RESET, column, episode))
            for t in range(min(length, 8 * STEPS - row)):
                assert stream.obs[row + t, column].tolist() == [k, t]
                assert stream.rewards[row + t, column] == t + 1
                assert stream.mask[row + t, column]
                assert stream.terminated[row + t, column] == (end == "terminated" and t == length - 1)
                assert stream.truncated[row + t, column] == (end == "truncated" and t == length - 1)
            row += length
            if row < 8 * STEPS:
                assert stream.obs[row, column].tolist() == [k, length], "the true last observation"
                assert not stream.mask[row, column]
                assert stream.rewards[row, column] == 0
            row, episode = row + 1, episode + 1


def test_trajectories_are_cut_at_time_limits_and_at_the_end_of_a_segment() -> None:
    settings = segments(num_envs=20)
    for rollout in collect(segment_sampler(settings), policy_for(settings), range(4)):
        batch = rollout.trajectories
        assert batch.cut.any()
        assert batch.terminated.any()
        runs = batch.mask & ~batch.terminated & ~batch.truncated
        assert torch.equal(batch.cut[:-1], batch.truncated[:-1])
        assert torch.equal(batch.cut[-1], runs[-1] | batch.truncated[-1])


def test_an_episode_is_recorded_in_its_last_segment_with_its_full_return() -> None:
    settings = segments()
    rollouts = collect(segment_sampler(settings), policy_for(settings), range(8))
    told = [ended for rollout in rollouts for ended in rollout.episodes]
    expected = []
    for column in range(3):
        row, episode = 0, 0
        while True:
            _, length, end = Counting.facts(derived_seed(0, Purpose.RESET, column, episode))
            if row + length > 8 * STEPS:
                break
            discounted = sum((t + 1) * 0.99**t for t in range(length))
            what = (length * (length + 1) / 2, pytest.approx(discounted), length, end)
            expected.append((row + length, column, what))
            row, episode = row + length + 1, episode + 1
    expected.sort(key=lambda one: one[:2])
    assert [one[:4] for one in told] == [what for _, _, what in expected]


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(
    ("env_id", "policy"),
    [
        ("Counting-v0", {}),
        ("CartPole-v1", {}),  # in its native form
        ("CartPole-v1 one by one", {}),
        ("FrozenLake-v1", {}),
        ("Pendulum-v1", {"distribution": "state_dependent_gaussian"}),
        ("LunarLander-v3", {}),
        ("BipedalWalker-v3", {}),  # it remembers past episodes: a fresh instance each
        ("InvertedPendulum-v5", {"distribution": "tanh_gaussian"}),
        ("Hopper-v5", {"normalize_obs": True}),
    ],
)
def test_a_restored_sampler_continues_bit_for_bit(env_id: str, policy: dict[str, Any], chunk_size: int | None) -> None:
    name, _, one_by_one = env_id.partition(" ")
    how = "sync" if one_by_one else "auto"
    settings = segments(name, steps=12, chunk_size=chunk_size, max_episode_steps=40, vectorization=how)
    settings = settings.model_copy(update={"policy": config(policy={"hidden_sizes": [4]} | policy).policy})
    acts, sampler = policy_for(settings), segment_sampler(settings)
    collect(sampler, acts, range(5))
    saved = {name: tensor.clone() for name, tensor in sampler.state_dict(5).items()}
    whole = collect(sampler, acts, range(5, 9))
    restored = segment_sampler(settings)
    assert restored.load_state_dict(saved, acts, 5) == 0
    assert all(torch.equal(tensor, saved[name]) for name, tensor in restored.state_dict(5).items())
    assert same(collect(restored, acts, range(5, 9)), whole)
    assert any(ended for rollout in whole for ended in rollout.episodes)
    assert ("sampler.0.prev_done" in saved) == (env_id == "CartPole-v1")


def test_a_vector_form_has_the_true_last_observation_and_one_masked_row() -> None:
    settings = segments("CartPole-v1", num_envs=20, steps=64, max_episode_steps=30, vectorization="native")
    acts, sampler = policy_for(settings), segment_sampler(settings)
    rollouts = collect(sampler, acts, range(3))
    whole = joined(rollouts)
    single = make_environment(settings.env)
    single.reset(seed=0)
    hows = set()
    for column in range(20):
        start = 0
        for t in range(len(whole.rewards) - 1):
            if not whole.mask[t, column]:
                assert t == start, "it stands right behind an episode"
                assert whole.rewards[t, column] == 0
                assert whole.obs[t + 1, column].abs().max() <= 0.05, "it resets"
                start = t + 1
                continue
            single.unwrapped.state = whole.obs[t, column].double().numpy()  # type: ignore[attr-defined]
            single.unwrapped.steps_beyond_terminated = None  # type: ignore[attr-defined]
            obs, reward, terminated, _, _ = single.unwrapped.step(int(whole.actions[t, column]))
            assert torch.from_numpy(obs).allclose(whole.obs[t + 1, column], atol=1e-5)
            assert whole.rewards[t, column] == reward
            assert bool(whole.terminated[t, column]) == terminated
            assert bool(whole.truncated[t, column]) == (t - start == 29)
            if whole.terminated[t, column] or whole.truncated[t, column]:
                start = t + 1
                hows.add(bool(whole.terminated[t, column]))
    assert hows == {True, False}
    ended = [one for rollout in rollouts for one in rollout.episodes]
    assert len(ended) == int((whole.terminated | whole.truncated).sum())
    assert all(one.episode_return == one.length <= 30 for one in ended)
    assert torch.equal(whole.mask[1:], ~(whole.terminated | whole.truncated)[:-1])


def test_vector_segments_are_seeded_by_the_iteration() -> None:
    """The result depends on (policy, state, iteration) only, not on the number of earlier resets."""
    settings = segments("CartPole-v1", num_envs=4, steps=40)
    acts, sampler = policy_for(settings), segment_sampler(settings)
    collect(sampler, acts, range(2))
    saved = sampler.state_dict(2)
    whole = collect(sampler, acts, range(2, 4))
    restored = segment_sampler(settings)
    collect(restored, acts, range(5))
    restored.load_state_dict(saved, acts, 2)
    assert same(collect(restored, acts, range(2, 4)), whole)
    other = segment_sampler(settings)
    other.load_state_dict(saved, acts, 3)
    assert not same(collect(other, acts, range(3, 4)), whole[:1])


class Forgetful(gym.vector.VectorEnv[Any, Any, Any]):
    """A vector form whose clock is not an array."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_envs: int, max_episode_steps: int = 99) -> None:
        self.num_envs, self.limit = num_envs, max_episode_steps
        with make_environment(segments().env) as single:
            self.single_observation_space, self.single_action_space = single.observation_space, single.action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.t = int(self.np_random.integers(9)), 0
        return np.full((self.num_envs, 2), self.place, np.float32), {}

    def step(self, actions: Any) -> Any:
        self.place, self.t = (self.place + 1) % 10, 0 if self.t == self.limit else self.t + 1
        rewards, over = np.full(self.num_envs, float(self.t > 0)), np.full(self.num_envs, self.t == self.limit)
        return np.full((self.num_envs, 2), self.place, np.float32), rewards, ~over & False, over, {}


gym.register(
    "Forgetful-v0",
    entry_point="test_segments:Counting",
    vector_entry_point="test_segments:Forgetful",
    max_episode_steps=99,
)


def test_a_vector_form_with_hidden_state_is_replaced_by_single_environments() -> None:
    assert isinstance(make_environments(segments("Forgetful-v0").env, 2), VectorEnvironments)
    assert isinstance(make_environments(segments("Forgetful-v0").env, 2, resumable=True), SingleEnvironments)
    assert isinstance(make_environments(segments("CartPole-v1").env, 2, resumable=True), VectorEnvironments)
    with pytest.raises(UsageError, match="has state outside its arrays"):
        make_environments(segments("Forgetful-v0", vectorization="native").env, 2, resumable=True)


@pytest.mark.parametrize("name", ["state", "steps", "prev_done"])
def test_an_unsuitable_vector_state_is_rejected(name: str) -> None:
    settings = segments("CartPole-v1")
    acts, sampler = policy_for(settings), segment_sampler(settings)
    collect(sampler, acts, range(2))
    state = sampler.state_dict(2)
    for damaged in (
        {key: tensor for key, tensor in state.items() if key != f"sampler.0.{name}"},
        state | {f"sampler.0.{name}": torch.zeros(5)},
        state | {f"sampler.1.{name}": state[f"sampler.0.{name}"]},
    ):
        with pytest.raises(CheckpointError, match="environment state"):
            segment_sampler(settings).load_state_dict(damaged, acts, 2)


def test_before_the_first_segment_there_is_no_state() -> None:
    settings = segments()
    sampler = segment_sampler(settings)
    assert sampler.state_dict(0) == {}
    assert segment_sampler(settings).load_state_dict({}, policy_for(settings), 0) == 0


class Restless(Counting):
    """Observes a global count of resets, so it never repeats an episode."""

    resets_so_far: ClassVar[int] = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        Restless.resets_so_far += 1
        self.k = Restless.resets_so_far % 1000
        self.buffer[0] = self.k
        return obs, info


gym.register("Restless-v0", entry_point="test_segments:Restless")


def test_a_non_reproducible_environment_is_counted_and_restarted() -> None:
    settings = segments("Restless-v0")
    acts, sampler = policy_for(settings), segment_sampler(settings)
    collect(sampler, acts, range(4))
    saved = sampler.state_dict(4)
    running = int((~saved["sampler.over"]).sum())
    assert running
    restored = segment_sampler(settings)
    assert restored.load_state_dict(saved, acts, 4) == running
    assert restored.state_dict(4)["sampler.over"].all()
    first = restored.collect(acts, 4, lambda: None).trajectories
    assert not first.mask[0].any(), "the first row resets"
    assert first.obs[1, :, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "damage",
    [
        {"obs": torch.zeros(2, 2)},
        {"obs": torch.zeros(3, 2, dtype=torch.float64)},
        {"episode": torch.tensor([0, -1, 0])},
        {"lengths": torch.tensor([0, 0, 10**9])},
        {"lengths": torch.tensor([0, 0, -1])},
        {"actions": torch.zeros(4)},
        {"more": torch.zeros(3)},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_an_unsuitable_state_is_rejected(damage: dict[str, torch.Tensor]) -> None:
    settings = segments()
    acts, sampler = policy_for(settings), segment_sampler(settings)
    collect(sampler, acts, range(2))
    state = sampler.state_dict(2) | {f"sampler.{name}": tensor for name, tensor in damage.items()}
    with pytest.raises(CheckpointError, match="environment state"):
        segment_sampler(settings).load_state_dict(state, acts, 2)


def copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("env_id", ["Counting-v0", "CartPole-v1"])
def test_an_iteration_that_fails_leaves_the_state_at_its_start_and_can_be_collected_again(env_id: str) -> None:
    settings = segments(env_id)
    acts, sampler = policy_for(settings), segment_sampler(settings)
    collect(sampler, acts, range(3))
    before = copy(sampler.state_dict(3))
    calls = iter([None, None])

    def check() -> None:
        if next(calls, "over"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.collect(acts, 3, check)
    assert equal(sampler.state_dict(3), before)
    assert same(collect(sampler, acts, range(3, 6)), collect(segment_sampler(settings), acts, range(6))[3:])


@pytest.mark.parametrize("env_id", ["Counting-v0", "CartPole-v1"])
def test_the_state_before_the_last_segment_is_kept_for_a_failed_update(env_id: str) -> None:
    settings = segments(env_id)
    acts, sampler = policy_for(settings), segment_sampler(settings)
    sampler.collect(acts, 0, lambda: None)
    assert sampler.state_dict(0) == {}
    collect(sampler, acts, range(1, 3))
    before = copy(sampler.state_dict(3))
    first = sampler.collect(acts, 3, lambda: None)
    assert equal(sampler.state_dict(3), before)
    assert not torch.equal(sampler.state_dict(4)["sampler.obs"], before["sampler.obs"])
    assert same([sampler.collect(acts, 3, lambda: None)], [first])
    with pytest.raises(KeyError):
        sampler.state_dict(2)


def test_a_fault_in_a_later_episode_names_the_seed_of_that_episode() -> None:
    settings = segments(num_envs=1, steps=40, kwargs={"fault": "inf reward", "at": 6})
    sampler = segment_sampler(settings)
    facts = [derived_seed(0, Purpose.RESET, 0, episode) for episode in range(40)]
    longest = next(seed for seed in facts if Counting.facts(seed)[1] == 7)
    assert longest != facts[0]
    with pytest.raises(
        EnvironmentFailure,
        match=rf"non-finite reward in step 6 with action \d of the episode with reset seed {longest}$",
    ):
        collect(sampler, policy_for(settings), range(10))


class Poisoned(Counting):
    """Shows nan at the reset with one seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.poison = seed

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        return (np.full(2, np.nan, np.float32) if seed == self.poison else obs), info


gym.register("Poisoned-v0", entry_point="test_segments:Poisoned")


@pytest.mark.parametrize("episode", [0, 1, 4])
def test_a_fault_at_a_later_reset_is_reported_as_such(episode: int) -> None:
    seed = derived_seed(0, Purpose.RESET, 1, episode)
    settings = segments("Poisoned-v0", kwargs={"seed": seed})
    with pytest.raises(EnvironmentFailure, match=f"observation at the reset of the episode with reset seed {seed}$"):
        collect(segment_sampler(settings), policy_for(segments()), range(20))


class Pairs(gym.Env[Array, Any]):
    """Has any action space, checks each action and pays for it."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        self.t = 0
        self.obs = np.random.default_rng(seed).uniform(-1, 1, 2).astype(np.float32)
        return self.obs, {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.t += 1
        return self.obs, float(np.sum(action)), self.t == 4, False, {}


gym.register("Pairs-v0", entry_point="test_segments:Pairs")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3, 4]),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
        spaces.MultiDiscrete([2, 3], start=[5, -1]),
        spaces.MultiBinary(5),
        spaces.MultiBinary((2, 3)),
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Box(-0.1, np.array([[0.1, 2], [3, 0.5]]), (2, 2), np.float64),
        spaces.Box(-np.inf, np.array([0.5, np.inf], np.float32), (2,), np.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [None, 6])
def test_every_action_space_gets_valid_actions_and_learns(space: spaces.Space[Any], steps: int | None) -> None:
    from pgcli.sampling.sampler import make_sampler

    settings = config(
        env={"id": "Pairs-v0", "num_envs": 4, "kwargs": {"space": space}},
        rollout={"episodes": None, "steps": steps} if steps else {"episodes": 6},
        algorithm={
            "baseline": "value",
            "objective": "clip",
            "update_epochs": 3,
            "num_minibatches": 2,
            "entropy_coef": 0.01,
        },
        policy={"hidden_sizes": [4]},
    )
    with make_environment(settings.env) as env:
        agent = learner_of(env.observation_space, env.action_space, settings)
    sampler = make_sampler(settings, executor_for(settings))
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    for iteration in range(3):
        update = agent.update(sampler.collect(agent.policy, iteration, lambda: None).trajectories, iteration)
        assert update.value_loss is not None
        losses = np.array([update.policy_loss, update.entropy, update.grad_norm, update.value_loss], float)
        assert np.isfinite(losses).all()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in agent.state_dict().items())
