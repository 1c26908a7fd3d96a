"""Two ways to fill Trajectories: whole episodes, and segments of environments that go on across iterations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.config.schema import Config
from pgcli.environments.checks import MAX_EPISODE_STEPS
from pgcli.environments.forms import NativeEnvironments, SingleEnvironments, make_lasting
from pgcli.errors import CheckpointError
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.policy import Policy
from pgcli.sampling.pool import Crew
from pgcli.sampling.rollout import (
    NOISE_ROWS,
    Chunks,
    Ended,
    Rollout,
    Transition,
    chunk_ranges,
    collect_episodes,
    ended_episodes,
    endless,
    to_trajectories,
)
from pgcli.seeding import Purpose, Seeds, derived_seed, generator
from pgcli.system.processes import Check

Array = NDArray[Any]
Lasting = NativeEnvironments | SingleEnvironments


class Sampler(Protocol):
    """Collects, and knows what a resumed run needs to go on collecting."""

    lost: int
    """Environments that the last `collect` could not bring back in a worker that replaced another."""

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect for one iteration; `check` is called before every step, and what it raises leaves the state alone.

        Raises: EnvironmentFailure.
        """

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return the state before `iteration`, the last one collected or the next, as tensors named `sampler.…`."""

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy) -> int:
        """Put back what `state_dict` gave; say how many environments could not be brought back to where they were.

        Raises: CheckpointError for tensors that are no state of this sampler; EnvironmentFailure.
        """

    def close(self) -> None:
        """Free what the simulators hold."""


def make_sampler(config: Config, chunks: Chunks) -> Sampler:
    """Build the sampler that `rollout` asks for."""
    return Episodes(config, chunks) if config.rollout.steps is None else Segments(config, chunks.workers)


class Episodes:
    """Whole episodes: each iteration a pure function of the policy, so there is no state."""

    lost = 0

    def __init__(self, config: Config, chunks: Chunks) -> None:
        self._config, self._chunks = config, chunks

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect `rollout.episodes` episodes."""
        trajectories = collect_episodes(self._config, self._chunks, policy, iteration, check)
        return Rollout(trajectories, ended_episodes(trajectories, self._config.algorithm.gamma))

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy) -> int:
        """Accept nothing."""
        if tensors:
            raise CheckpointError(f"{sorted(tensors)[0]} is in the checkpoint, and whole episodes have no state")
        return 0

    def close(self) -> None:
        """Do nothing: the chunks are their owner's."""


@dataclass(frozen=True)
class _Columns:
    """Where N environments are: what it takes to bring them there again."""

    episode: Array  # number of the episode, [N]
    over: Array  # bool [N]: it has ended, and the next row is the masked one that resets
    obs: Array  # [N, …]
    lengths: Array  # steps since the reset, [N]
    returns: Array  # reward units, since the reset, [N]
    discounted: Array  # [N]
    memory: Array  # what the policy remembers, [N, state_size]
    way: (
        list[Array] | dict[str, Array]
    )  # actions as drawn since the reset: N arrays [L_n, …]; or the simulator's arrays


def _way(envs: Lasting, way: list[Array] | dict[str, Array]) -> list[Array] | dict[str, Array]:
    return envs.arrays() if isinstance(envs, NativeEnvironments) else way


def lasting_seed(config: Config, column: int, episode: int) -> int:
    """Derive the reset seed of a column's `episode`-th episode in segments."""
    return derived_seed(config.seed, Purpose.RESET, column, episode)


def native_seed(config: Config, iteration: int, first: int) -> int:
    """Derive the seed of a native form, whose first column is `first`, for one iteration of segments."""
    return derived_seed(config.seed, Purpose.RESET, iteration, first)


def _begin(config: Config, chunk: range, envs: Lasting, policy: Policy) -> _Columns:
    n, nothing = len(chunk), policy.actor("sampled").start(len(chunk))
    obs = envs.reset([lasting_seed(config, column, 0) for column in chunk])
    counts, way = np.zeros(n, int), _way(envs, [np.empty(0)] * n)
    return _Columns(counts, np.zeros(n, bool), obs, counts, np.zeros(n), np.zeros(n), nothing, way)


def _go_on(
    config: Config, chunk: range, envs: Lasting, state: _Columns, policy: Policy, iteration: int, check: Check
) -> Segment:
    actor = policy.actor("sampled")
    random = generator(config.seed, Purpose.ACT, iteration, chunk.start)
    if isinstance(envs, NativeEnvironments):
        envs.seed(native_seed(config, iteration, chunk.start))
    episode, obs, running, memory = state.episode.copy(), state.obs, ~state.over, state.memory
    rows, waiting = [], bool(state.over.any())

    def seed_of(column: int) -> int:
        return lasting_seed(config, chunk[column], int(episode[column]))

    for t in range(config.rollout.steps or 0):
        check()
        if t % NOISE_ROWS == 0:
            noise = actor.noise(random, NOISE_ROWS, len(chunk))
        actions, memory = actor.respond(obs, noise[t % NOISE_ROWS], memory)
        next_obs, rewards, terminated, truncated = envs.step(actor.for_environment(actions), running)
        over = terminated | truncated
        if waiting:
            over &= running
            episode += ~running
            memory = np.where(running[:, None], memory, 0)
            fresh = np.flatnonzero(~running).tolist()
            next_obs = envs.restart(fresh, Seeds(fresh, seed_of))
        rows.append(Transition(obs, actions, rewards, terminated, truncated, running, next_obs))
        obs, running, waiting = next_obs, ~over, bool(over.any())
    before = torch.from_numpy(state.memory) if actor.state_size else None
    trajectories = replace(to_trajectories(rows), memory=before)
    ended, sums = _ended(trajectories, state, config.algorithm.gamma)
    if sums["lengths"].max() > MAX_EPISODE_STEPS:
        raise endless()
    way = state.way
    if isinstance(way, list):
        drawn = trajectories.actions.numpy()
        way = [
            drawn[len(drawn) - length :, n] if length <= len(drawn) else np.concatenate((old, drawn[:, n]))
            for n, (length, old) in enumerate(zip(sums["lengths"].tolist(), way, strict=True))
        ]
    then = _Columns(episode=episode, over=~running, obs=obs, memory=memory, way=_way(envs, way), **sums)
    return trajectories, ended, then


def _ended(trajectories: Trajectories, state: _Columns, gamma: float) -> tuple[list[Ended], dict[str, Array]]:
    """Describe the episodes that ended in a segment, by row and column; give the sums of those that go on.

    A column is cut into pieces, one column after the other: its first row begins one, which `state` carries on, and so
    does every row that resets.
    """
    mask, terminated, truncated, rewards = (
        np.ascontiguousarray(x.numpy().T)
        for x in (trajectories.mask, trajectories.terminated, trajectories.truncated, trajectories.rewards)
    )
    begins = ~mask
    begins[:, 0] = True
    starts = np.flatnonzero(begins)
    column, row = np.divmod(starts, mask.shape[1])
    sizes = np.diff(starts, append=mask.size)
    last, first = starts + sizes - 1, row == 0
    skipped = ~mask.flat[starts]
    before = {name: np.where(first, getattr(state, name)[column], 0) for name in ("lengths", "returns", "discounted")}
    number = np.arange(mask.size) - np.repeat(starts + skipped - before["lengths"], sizes)  # -1 where it resets
    sums = {
        "lengths": before["lengths"] + sizes - skipped,
        "returns": before["returns"] + np.add.reduceat(rewards.ravel(), starts),
        "discounted": before["discounted"] + np.add.reduceat(gamma ** np.maximum(number, 0) * rewards.ravel(), starts),
    }
    by_termination = terminated.flat[last]
    over = by_termination | truncated.flat[last]
    order = over.nonzero()[0]
    order = order[np.argsort(last[order] % mask.shape[1], kind="stable")]
    how = np.where(by_termination, "terminated", "truncated")
    told = (sums["returns"], sums["discounted"], sums["lengths"], how)
    ended = [Ended(*one) for one in zip(*(x[order].tolist() for x in told), strict=True)]
    final = np.append(first[1:], True)
    return ended, {name: np.where(over, 0, x)[final] for name, x in sums.items()}


def _bring_back(
    config: Config, chunk: range, envs: Lasting, state: _Columns, policy: Policy, check: Check
) -> tuple[_Columns, int]:
    """Bring environments to a state; a column that does not come back, of which the number is told, begins anew."""
    if isinstance(state.way, dict):
        assert isinstance(envs, NativeEnvironments)
        envs.reset([0])
        envs.put_back(state.way)
        return state, 0
    came_back = _replay(config, chunk, envs, state, _padded(state.way), policy, check) | state.over
    lengths, returns, discounted = (np.where(came_back, x, 0) for x in (state.lengths, state.returns, state.discounted))
    way = [actions[:length] for actions, length in zip(state.way, lengths.tolist(), strict=True)]
    over = state.over | ~came_back
    after = replace(state, over=over, lengths=lengths, returns=returns, discounted=discounted, way=way)
    return after, int((~came_back).sum())


def _replay(
    config: Config, chunk: range, envs: Lasting, state: _Columns, actions: Array, policy: Policy, check: Check
) -> Array:
    """Execute the actions since the reset; say of each column whether it reached the observation that it should."""
    actor = policy.actor("sampled")
    obs = envs.reset([lasting_seed(config, *one) for one in zip(chunk, state.episode.tolist(), strict=True)])
    alive = ~state.over
    for t, row in enumerate(actions):
        check()
        running = (t < state.lengths) & alive
        if not running.any():
            break
        obs, _, terminated, truncated = envs.step(actor.for_environment(row), running)
        alive &= ~(terminated | truncated)
    same = [obs[n].tobytes() == state.obs[n].tobytes() for n in range(len(chunk))]
    reached: Array = alive & np.array(same)
    return reached


def _padded(actions: list[Array]) -> Array:
    padded = np.zeros((max(map(len, actions)), len(actions), *actions[0].shape[1:]), actions[0].dtype)
    for column, one in enumerate(actions):
        padded[: len(one), column] = one
    return padded


Segment = tuple[Trajectories, list[Ended], _Columns]


@dataclass(frozen=True)
class _Task:
    """Bring a chunk to `state`, if the worker is not there; and go on, if there is an iteration to do."""

    config: Config
    chunk: range
    iteration: int | None
    state: _Columns | None
    there: bool

    def __call__(self, kept: dict[Any, Any], policy: Policy, check: Check) -> tuple[Segment | _Columns, int]:
        config, chunk, lost = self.config, self.chunk, 0
        if chunk not in kept:
            kept[chunk] = _Kept(make_lasting(config.env, len(chunk)))
        mine: _Kept = kept[chunk]
        if not self.there:
            if self.state is None:
                mine.state = _begin(config, chunk, mine.envs, policy)
            else:
                mine.state, lost = _bring_back(config, chunk, mine.envs, self.state, policy, check)
        assert mine.state is not None
        if self.iteration is None:
            return mine.state, lost
        segment = _go_on(config, chunk, mine.envs, mine.state, policy, self.iteration, check)
        mine.state = segment[2]
        return segment, lost


@dataclass
class _Kept:
    """A chunk in its worker."""

    envs: Lasting
    state: _Columns | None = None

    def close(self) -> None:
        self.envs.close()


class Segments:
    """`rollout.steps` rows of `env.num_envs` environments that go on from one iteration to the next.

    Layout: the true last observation of an episode stands at obs[t + 1], then one masked row, which resets.
    Single environments are reset with a seed of their own each. Their state is the number of the episode and the
    actions since the reset; these are played again on resume, and the observation that is reached must be the same
    to the bit. A native form gets a new generator at every iteration, and its state is in its arrays.
    """

    def __init__(self, config: Config, workers: Crew | None = None) -> None:
        assert config.rollout.steps is not None
        self._config, self._workers, self.lost = config, workers, 0
        self._chunks = chunk_ranges(config.env.num_envs, config.env.chunk_size or config.env.num_envs)
        if workers is None:
            self._environments = [make_lasting(config.env, len(chunk)) for chunk in self._chunks]
        else:  # one of each width, which only shows what a state looks like
            shown = {width: make_lasting(config.env, width) for width in {len(chunk) for chunk in self._chunks}}
            self._environments = [shown[len(chunk)] for chunk in self._chunks]
        self._states: list[_Columns] | None = None  # after the last iteration, one per chunk
        self._before: list[_Columns] | None = None  # after the one before it
        self._collected = -1  # the last iteration
        self._at: list[tuple[object, _Columns]] = []  # the worker that has a chunk, and the state in which it has it

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Go on for `rollout.steps` rows."""
        config = self._config
        if self._workers is None:
            places = zip(self._chunks, self._environments, strict=True)
            states = self._states or [_begin(config, chunk, envs, policy) for chunk, envs in places]
            segments = [
                _go_on(config, chunk, envs, state, policy, iteration, check)
                for chunk, envs, state in zip(self._chunks, self._environments, states, strict=True)
            ]
        else:
            segments, self.lost = self._in_workers(self._workers, self._states, policy, iteration, check)
            self._at = [(self._workers.of(n), segment[2]) for n, segment in enumerate(segments)]
        self._collected = iteration
        self._before, self._states = self._states, [then for _, _, then in segments]
        return Rollout(
            pad_columns([part for part, _, _ in segments]), [one for _, ended, _ in segments for one in ended]
        )

    def _in_workers(
        self, workers: Crew, states: list[_Columns] | None, policy: Policy, iteration: int | None, check: Check
    ) -> tuple[list[Any], int]:
        """Let every chunk be in its state, and go on if there is an iteration; count what did not come back."""

        def task(number: int, worker: object) -> _Task:
            state = None if states is None else states[number]
            there = bool(self._at) and self._at[number][0] is worker and self._at[number][1] is state
            return _Task(self._config, self._chunks[number], iteration, None if there else state, there)

        done = workers.run(policy, len(self._chunks), task, check)
        return [result for result, _ in done], sum(lost for _, lost in done)

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return where the environments are before `iteration`, and what it takes to bring them there."""
        states = self._before if iteration == self._collected else self._states
        if states is None:
            return {}
        arrays = {
            name: np.concatenate([getattr(state, name) for state in states])
            for name in ("episode", "over", "obs", "lengths", "returns", "discounted", "memory")
        }
        if not arrays["memory"].size:
            del arrays["memory"]
        actions = list[Array]()
        for number, state in enumerate(states):
            if isinstance(state.way, dict):
                arrays |= {f"{number}.{name}": array for name, array in state.way.items()}
            else:
                actions += state.way
        if actions:
            arrays["actions"] = _padded(actions)
        return {f"sampler.{name}": torch.from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy) -> int:
        """Bring the environments back; a column that does not come back starts a new episode."""
        if not tensors:
            return 0
        arrays = {name.removeprefix("sampler."): tensor.numpy() for name, tensor in tensors.items()}
        nothing = policy.actor("sampled").start(self._config.env.num_envs)
        columns = self._check(arrays, nothing)
        arrays = {"memory": nothing} | arrays
        states = []
        for number, (chunk, envs) in enumerate(zip(self._chunks, self._environments, strict=True)):
            part = {name: arrays[name][chunk.start : chunk.stop] for name in columns}
            way: list[Array] | dict[str, Array]
            if isinstance(envs, NativeEnvironments):
                way = {name: arrays[f"{number}.{name}"] for name in envs.arrays()}
            else:
                way = [arrays["actions"][:length, n] for n, length in zip(chunk, part["lengths"].tolist(), strict=True)]
            states.append(_Columns(**part, way=way))
        if self._workers is None:
            self._states, lost = [], 0
            for chunk, envs, state in zip(self._chunks, self._environments, states, strict=True):
                there, missing = _bring_back(self._config, chunk, envs, state, policy, lambda: None)
                self._states.append(there)
                lost += missing
            return lost
        self._states, lost = self._in_workers(self._workers, states, policy, None, lambda: None)
        self._at = [(self._workers.of(n), state) for n, state in enumerate(self._states)]
        return lost

    def _check(self, arrays: dict[str, Array], memory: Array) -> list[str]:
        """Raise CheckpointError unless the arrays are a state of these environments; name those of `_Columns`."""
        layout, n = self._environments[0].layout, self._config.env.num_envs
        counts, sums, obs = np.zeros(n, np.int64), np.zeros(n), np.zeros((n, *layout.shape), layout.dtype)
        expected = {"episode": counts, "over": np.zeros(n, bool), "obs": obs, "lengths": counts}
        expected |= {"returns": sums, "discounted": sums, "memory": memory}
        columns = list(expected)
        if not memory.size:
            del expected["memory"]
        actions = arrays.get("actions", np.zeros((0, n)))
        for number, envs in enumerate(self._environments):
            if isinstance(envs, NativeEnvironments):
                envs.reset([0])
                expected |= {f"{number}.{name}": array for name, array in envs.arrays().items()}
            else:
                expected["actions"] = actions
        fits = arrays.keys() == expected.keys() and all(
            arrays[name].shape == like.shape and arrays[name].dtype == like.dtype for name, like in expected.items()
        )
        if not fits or actions.ndim < 2 or actions.shape[1] != n:
            raise CheckpointError("the state of the environments in the checkpoint does not fit its config")
        longest = len(actions) if "actions" in expected else MAX_EPISODE_STEPS
        if not (arrays["lengths"].min() >= 0 and arrays["lengths"].max() <= longest and arrays["episode"].min() >= 0):
            raise CheckpointError("the state of the environments in the checkpoint contradicts itself")
        return columns

    def close(self) -> None:
        """Free what the simulators hold."""
        for envs in dict.fromkeys(self._environments):
            envs.close()
