"""Rollouts in an environment with known episodes; CartPole's vector and single forms agree."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import Array, Counting, collect_episodes, config, executor_for, mapped

from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.config.schema import Config
from pgcli.environments import checks
from pgcli.environments.make import make_environments
from pgcli.environments.single import SingleEnvironments, make_environment
from pgcli.environments.vector.native import VectorEnvironments
from pgcli.errors import EnvironmentFailure
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.distributions import Softmax
from pgcli.policies.policy import NOISE_ROWS, Actor, Policy
from pgcli.sampling import rollout
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.episodes import ended_episodes
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.pool import LocalPool, Task
from pgcli.seeding import Purpose, derived_seed, generator
from pgcli.system.processes import Check
from pgcli.training.evaluation import evaluate


def counting(episodes: int = 10, horizon: int | None = None, **env: Any) -> Config:
    return config(
        env={"id": "Counting-v0", "num_envs": 4} | env,
        rollout={"episodes": episodes, "horizon": horizon},
        policy={"hidden_sizes": [4]},
    )


def agent_for(settings: Config, executor: ChunkExecutor) -> PolicyGradient:
    one = executor.environments.of_width(1)
    return build_agent(one.observation_space, one.action_space, settings)


def collect(settings: Config, iteration: int = 0, executor: ChunkExecutor | None = None) -> Trajectories:
    executor = executor or executor_for(settings)
    return collect_episodes(settings, executor, agent_for(settings, executor).policy, iteration, lambda: None)


def columns(batch: Trajectories, wanted: slice | list[int]) -> Trajectories:
    return mapped(batch, lambda _, x: x[:, wanted])


def same(a: Trajectories, b: Trajectories) -> bool:
    """Compare everything except padding, bit for bit."""

    def contents(batch: Trajectories) -> list[torch.Tensor]:
        reached = torch.arange(len(batch.obs))[:, None] <= batch.lengths
        steps = (batch.actions, batch.rewards, batch.terminated, batch.truncated)
        return [batch.lengths, batch.obs[reached], *(values[batch.mask] for values in steps)]

    return all(map(torch.equal, contents(a), contents(b)))


def without_padding(single: Trajectories) -> Trajectories:
    return mapped(single, lambda name, x: x[: int(single.lengths) + (name == "obs")])


def seeds(settings: Config, iteration: int, count: int) -> list[int]:
    return [derived_seed(settings.seed, Purpose.RESET, iteration, column) for column in range(count)]


def endings(batch: Trajectories) -> list[str]:
    return [one.how for one in ended_episodes(batch, 1.0)]


@pytest.fixture(autouse=True)
def _forget() -> None:
    Counting.resets.clear()
    Counting.instances = 0


def test_every_column_is_one_whole_episode_with_its_own_seed() -> None:
    settings = counting(episodes=10)
    batch = collect(settings, iteration=3)
    ended = ended_episodes(batch, 0.5)
    assert batch.mask.shape == (batch.lengths.max(), 10)
    assert set(batch.actions[batch.mask].tolist()) == {0, 1, 2}
    for n, seed in enumerate(seeds(settings, 3, 10)):
        k, length, end = Counting.facts(seed)
        assert batch.obs[: length + 1, n].tolist() == [[k, t] for t in range(length + 1)]
        assert batch.mask[:, n].tolist() == [t < length for t in range(len(batch.mask))]
        assert batch.rewards[:, n].tolist() == [(t + 1) * (t < length) for t in range(len(batch.mask))]
        last = [t == length - 1 for t in range(len(batch.mask))]
        assert (batch.terminated | batch.truncated)[:, n].tolist() == last
        discounted = sum((t + 1) * 0.5**t for t in range(length))
        assert list(ended[n][:4]) == [length * (length + 1) / 2, pytest.approx(discounted), length, end]
    assert {"terminated", "truncated"} == {one.how for one in ended}


@pytest.mark.parametrize("horizon", [1, 3, 6])
def test_the_horizon_cuts_unfinished_episodes(horizon: int) -> None:
    settings = counting(episodes=21, horizon=horizon)
    batch = collect(settings)
    facts = [Counting.facts(seed) for seed in seeds(settings, 0, 21)]
    assert batch.lengths.tolist() == [min(length, horizon) for _, length, _ in facts]
    assert endings(batch) == [end if length <= horizon else "horizon" for _, length, end in facts]
    assert set(batch.obs[-1, batch.lengths == horizon, 1].tolist()) == {horizon}


@pytest.mark.parametrize(
    ("episodes", "env", "widths"),
    [
        (10, {}, [4, 4, 2]),
        (8, {}, [4, 4]),
        (3, {}, [3]),
        (10, {"chunk_size": 6}, [6, 4]),
    ],
)
def test_chunks_have_the_requested_width_and_the_last_is_smaller(
    episodes: int, env: dict[str, int], widths: list[int]
) -> None:
    settings = counting(episodes, **env)
    chunks = chunk_ranges(settings.env, episodes)
    assert [len(chunk) for chunk in chunks] == widths
    assert [column for chunk in chunks for column in chunk] == list(range(episodes))
    assert collect(settings).mask.shape[1] == episodes


class BackwardsPool(LocalPool):
    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        return super().map(policy, dict(reversed(list(tasks.items()))), check)


@pytest.mark.parametrize("env", ["Counting-v0", "CartPole-v1"])
def test_a_chunk_depends_on_policy_columns_and_iteration_only(env: str) -> None:
    settings = counting(episodes=10, id=env)
    expected = collect(settings, iteration=2)
    used = executor_for(settings)
    for iteration in (5, 2, 0):
        again = collect(settings, iteration, used)
        assert same(again, expected) == (iteration == 2)
    environments = EnvironmentCache(settings.env)
    assert same(collect(settings, 2, ChunkExecutor(environments, BackwardsPool(environments))), expected)
    fewer = collect(settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"episodes": 8})}), 2)
    assert same(fewer, columns(expected, slice(8)))


def test_the_seed_of_the_run_changes_every_episode() -> None:
    settings = counting(episodes=10)
    other = collect(settings.model_copy(update={"seed": 1}))
    assert (other.obs[0, :, 0] != collect(settings).obs[0, :, 0]).all()


def test_no_two_resets_share_a_seed() -> None:
    indices = list(itertools.product(range(20), range(50)))
    drawn = [derived_seed(0, p, *i) for p in (Purpose.RESET, Purpose.EVALUATION_RESET) for i in indices]
    drawn += [derived_seed(0, Purpose.TEST_RESET, column) for column in range(50)]
    drawn += [derived_seed(1, Purpose.RESET, *i) for i in indices]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_environments_see_the_derived_seeds_of_training_and_evaluation() -> None:
    settings = counting(episodes=5)
    executor = executor_for(settings)
    policy = agent_for(settings, executor).policy
    for iteration in range(3):
        collect_episodes(settings, executor, policy, iteration, lambda: None)
        purposes = (Purpose.EVALUATION_RESET, Purpose.EVALUATION_ACT)
        evaluate(policy, executor, 5, "sampled", 1.0, None, settings.seed, purposes, (iteration,))
    evaluate(policy, executor, 5, "sampled", 1.0, None, settings.seed, (Purpose.TEST_RESET, Purpose.TEST_ACT))
    seen = [seed for _, seed in Counting.resets]
    assert len(set(seen)) == len(seen) == 35
    assert seen[:5] == seeds(settings, 0, 5)


@pytest.mark.parametrize("rebuild", [True, False, "auto"])
def test_rebuild_gives_every_episode_a_fresh_instance(rebuild: Any) -> None:
    settings = counting(episodes=8, rebuild=rebuild)
    executor = executor_for(settings)
    policy = agent_for(settings, executor).policy
    batches = [collect_episodes(settings, executor, policy, iteration, lambda: None) for iteration in (0, 1)]
    assert len(Counting.resets) == 16
    assert len({instance for instance, _ in Counting.resets}) == (16 if rebuild is True else 4)
    assert same(batches[1], collect(counting(episodes=8), 1))


def test_returned_arrays_are_not_modified_later() -> None:
    envs = make_environments(counting().env, 3)
    assert isinstance(envs, SingleEnvironments)
    handed_out = [envs.reset([5, 12, 19])]  # lengths 6
    copies = [handed_out[0].copy()]
    for _ in range(5):
        for array in envs.step(np.zeros(3, int), np.array([True, False, True])):
            handed_out.append(array)
            copies.append(array.copy())
    for array, copy in zip(handed_out, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert handed_out[-4][:, 1].tolist() == [5, 0, 5]  # the column that does not run has not moved


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", r"raised RuntimeError: the motor is on fire \(.*helpers.py:\d+\)"),
        ("inf reward", r"returned a non-finite reward"),
        ("nan obs", r"returned a non-finite observation"),
        ("narrow obs", r"returned an observation of shape \(1,\) in a space of \(2,\)"),
    ],
)
def test_a_fault_names_the_environment_and_the_reset_seed(fault: str, message: str) -> None:
    settings = counting(episodes=4, kwargs={"fault": fault}).model_copy(update={"seed": 2})
    with pytest.raises(EnvironmentFailure) as failure:
        collect(settings)
    place = r" in step 1 with action [012] of the episode with reset seed (\d+)"
    found = re.search("Counting-v0 " + message + place, failure.value.message)
    assert found
    first, second, *_ = seeds(settings, 0, 4)
    assert Counting.facts(first)[1] == 1  # over before its faulty step
    assert int(found[1]) == failure.value.seed == second


def test_a_fault_in_a_later_chunk_names_its_own_seed() -> None:
    settings = counting(episodes=30, kwargs={"fault": "inf reward", "at": 6}, num_envs=1)
    longest = next(seed for seed in seeds(settings, 0, 30) if Counting.facts(seed)[1] == 7)
    with pytest.raises(EnvironmentFailure, match=str(longest)):
        collect(settings)


def test_observations_have_the_dtype_of_their_space() -> None:
    batch = collect(counting(episodes=6, kwargs={"fault": "integer reset"}))
    assert batch.obs.dtype == torch.float32
    assert batch.obs[1, :, 0].tolist() == [Counting.facts(seed)[0] for seed in seeds(counting(), 0, 6)]


def test_an_environment_needs_no_render_mode() -> None:
    def build(at: int = 1) -> Counting:
        return Counting(at=at)

    gym.register("Modeless-v0", entry_point=build)  # type: ignore[arg-type]
    try:
        make_environment(counting(id="Modeless-v0", kwargs={"at": 2}).env).close()
    finally:
        del gym.registry["Modeless-v0"]


def test_an_endless_episode_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_EPISODE_STEPS", 70)
    with pytest.raises(EnvironmentFailure, match="not ended after 70 steps") as failure:
        collect(counting(kwargs={"fault": "endless"}))
    assert "env.max_episode_steps" in failure.value.hint
    cut = collect(counting(kwargs={"fault": "endless"}, horizon=80))
    assert cut.lengths.tolist() == [80] * 10
    limited = collect(counting(kwargs={"fault": "endless"}, max_episode_steps=69))
    assert endings(limited) == ["truncated"] * 10


def test_noise_is_never_used_twice() -> None:
    steps, seen = 3 * NOISE_ROWS, []

    def respond(obs: Array, uniforms: Array, memory: Array) -> tuple[Array, Array]:
        seen.append(uniforms.copy())
        return np.zeros(4, int), memory

    envs = make_environments(counting(kwargs={"fault": "endless"}).env, 4)
    actor = Actor(respond, Softmax(3).noise, lambda actions: actions)
    transitions = rollout.play(envs, actor, [1, 2, 3, 4], np.random.default_rng(0), steps, lambda: None)
    assert len(list(transitions)) == steps
    assert len(np.unique(seen)) == 4 * steps


def test_a_check_that_raises_ends_the_rollout_before_the_step() -> None:
    settings = counting(kwargs={"fault": "endless"})
    calls = itertools.count()

    def check() -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt

    executor = executor_for(settings)
    with pytest.raises(KeyboardInterrupt):
        collect_episodes(settings, executor, agent_for(settings, executor).policy, 0, check)
    assert next(calls) == 6


def test_actions_follow_the_noise_of_their_chunk() -> None:
    settings = counting(episodes=8)
    executor = executor_for(settings)
    actor = agent_for(settings, executor).policy.actor("sampled").act
    batch = collect(settings, 7)
    for start in (0, 4):
        part = columns(batch, slice(start, start + 4))
        uniforms = generator(settings.seed, Purpose.ACT, 7, start).random((NOISE_ROWS, 4))
        for t, row in enumerate(part.mask):
            expected = actor(part.obs[t].numpy(), uniforms[t])
            assert part.actions[t][row].tolist() == expected[row.numpy()].tolist()


def test_the_vector_form_of_cartpole_equals_the_single_form() -> None:
    settings = config(env={"num_envs": 8}, rollout={"episodes": 20}, policy={"hidden_sizes": [4]})
    assert isinstance(make_environments(settings.env, 2), VectorEnvironments)
    batch = collect(settings)
    assert batch.num_steps == batch.lengths.sum() == batch.rewards.sum()
    single: Any = gym.make("CartPole-v1").unwrapped
    for n, length in enumerate(batch.lengths.tolist()):
        single.reset(seed=0)
        single.state = batch.obs[0, n].double().numpy()
        assert (abs(single.state) <= 0.05).all()
        for t in range(length):
            obs, _, terminated, _, _ = single.step(int(batch.actions[t, n]))
            np.testing.assert_allclose(batch.obs[t + 1, n], obs, rtol=0, atol=2e-5)
            assert terminated == (t == length - 1)
    assert endings(batch) == ["terminated"] * 20
    assert len(set(map(tuple, batch.obs[0].tolist()))) == 20


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_a_time_limit_truncates(vectorization: str) -> None:
    batch = collect(counting(episodes=6, id="CartPole-v1", vectorization=vectorization, max_episode_steps=5))
    assert batch.lengths.tolist() == [5] * 6
    assert endings(batch) == ["truncated"] * 6


def test_discrete_observations_make_trajectories() -> None:
    batch = collect(counting(episodes=6, id="FrozenLake-v1", kwargs={"is_slippery": False}))
    assert batch.obs.shape == (batch.lengths.max() + 1, 6)
    assert (batch.obs[0] == 0).all()
    moves = torch.tensor([-1, 4, 1, -4])  # left, down, right, up on a 4 x 4 lake; a border stops
    difference = (batch.obs[1:] - batch.obs[:-1])[batch.mask]
    assert ((difference == moves[batch.actions[batch.mask]]) | (difference == 0)).all()


def test_wrappers_are_applied_innermost_first() -> None:
    stack = {"name": "gymnasium.wrappers:FrameStackObservation", "kwargs": {"stack_size": 2}}
    with make_environment(counting(wrappers=["TimeAwareObservation", stack], max_episode_steps=9).env) as env:
        assert env.observation_space.shape == (2, 3)


@pytest.mark.parametrize(
    "wrapper",
    [
        "Nonsense",
        pytest.param(  # Counting has no time limit to be aware of
            "TimeAwareObservation",
        ),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_named(wrapper: Any) -> None:
    name = wrapper if isinstance(wrapper, str) else wrapper["name"]
    with pytest.raises(EnvironmentFailure, match=f"wrapper `?{name}"):
        make_environment(counting(wrappers=[wrapper]).env)


def test_chunks_are_padded_to_the_longest() -> None:
    batch = collect(counting(episodes=10))
    singles = [columns(batch, [n]) for n in range(10)]
    short = [without_padding(single) for single in singles]
    joined = pad_columns(short)
    assert joined.mask.shape == batch.mask.shape
    assert same(joined, batch)
    assert (joined.rewards[~joined.mask] == 0).all()


def test_a_group_shares_only_its_start_state() -> None:
    algorithm = {"baseline": "group", "group_size": 3}
    settings = config(env={"id": "CartPole-v1", "vectorization": "sync"}, rollout={"episodes": 12}, algorithm=algorithm)
    batch = collect(settings)
    starts = [tuple(start) for start in batch.obs[0].tolist()]
    assert all(len(set(starts[n : n + 3])) == 1 for n in range(0, 12, 3))
    assert len(set(starts)) == 4
    columns = {tuple(batch.actions[:8, n].tolist()) for n in range(12)}
    assert len(columns) > 8, "the actions are each column's own"
