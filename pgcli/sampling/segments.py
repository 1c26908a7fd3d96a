"""Segments: a fixed number of steps; episodes continue across iterations.

Layout: if an episode ends in row t, obs[t + 1] is its true last observation. The next row is masked and resets.
Each reset of a single environment has a derived seed. Its state is the number of the episode and the actions since the
reset. A new process executes these actions again and must reach the same observation, bit for bit. A vector form gets a
new generator in each iteration, and its state is its arrays.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgcli.config.schema import Config, EnvConfig
from pgcli.environments.make import make_environments
from pgcli.environments.vector.native import VectorEnvironments
from pgcli.errors import CheckpointError
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.observations import Layout
from pgcli.policies.policy import ActingState, Policy
from pgcli.policies.stacked import stacked_actor
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import Array, EndedEpisode, Rollout, Transition, endless_episode, named, to_trajectories
from pgcli.seeding import DerivedSeeds, Purpose, derived_seed, generator
from pgcli.system.process_state import restore_modes
from pgcli.system.processes import Check


@dataclass(frozen=True)
class ColumnState:
    """The state of N columns between two segments, from which their environments can be restored."""

    episode: Array  # number of the episode, [N]
    over: Array  # bool [N]: the episode has ended, and the next row is masked and resets
    obs: Array  # [N, …]
    lengths: Array  # steps since the reset, [N]
    returns: Array  # reward units, since the reset, [N]
    discounted: Array  # [N]
    memory: Array  # of a recurrent policy, [N, state_size]
    action_history: list[Array]  # actions as drawn since the reset, N arrays [L_n, …]; empty for a vector form
    simulator: dict[str, Array]  # the arrays of a vector form
    token: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)  # identifies this state in all processes


class Segment(NamedTuple):
    """The result of one chunk in one iteration."""

    trajectories: Trajectories
    episodes: list[EndedEpisode]
    state: ColumnState  # after the segment
    failed_restores: int


def segment_seed(config: Config, column: int, episode: int) -> int:
    """Derive the reset seed of a column's `episode`-th episode in segments."""
    return derived_seed(config.seed, Purpose.RESET, column, episode)


def native_seed(config: Config, iteration: int, first: int) -> int:
    """Derive the seed of a vector form, whose first column is `first`, for one iteration of segments."""
    return derived_seed(config.seed, Purpose.RESET, iteration, first)


def in_todays_form(tensors: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with observations as this version packs them."""
    if "sampler.obs" not in tensors:
        return tensors
    return tensors | {"sampler.obs": torch.from_numpy(layout.converted(tensors["sampler.obs"].numpy()))}


class SegmentSampler:
    """Collects `rollout.steps` rows of `env.num_envs` environments per iteration."""

    def __init__(self, config: Config, executor: ChunkExecutor) -> None:
        assert config.rollout.steps is not None
        self._config, self._pool, self.failed_restores = config, executor.pool, 0
        self._chunks = chunk_ranges(config.env, config.env.num_envs)
        shown = {len(chunk): chunk for chunk in self._chunks}  # workers have their own; one per width shows the layout
        self._examples = [
            _columns_in(executor.environments, chunk if self._pool.count == 0 else shown[len(chunk)])
            for chunk in self._chunks
        ]
        self._states: dict[int, list[ColumnState] | None] = {}  # by iteration, one per chunk; None at a run's start

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect `rollout.steps` rows."""
        states = self._states[iteration] if self._states else None
        tasks = {
            n: CollectSegment(self._config, chunk, iteration, None if states is None else states[n].token)
            for n, chunk in enumerate(self._chunks)
        }
        segments = self._pool.map(policy, tasks, check)
        if states is not None:  # a new worker needs the full state
            missing = {n: replace(tasks[n], state=states[n]) for n, segment in segments.items() if segment is None}
            segments |= self._pool.map(policy, missing, check)
        done: list[Segment] = [segments[n] for n in tasks]
        self.failed_restores = sum(segment.failed_restores for segment in done)
        self._states = {iteration: states, iteration + 1: [segment.state for segment in done]}
        return Rollout(
            pad_columns([segment.trajectories for segment in done]),
            [episode for segment in done for episode in segment.episodes],
        )

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return the state of every column at the start of `iteration`; empty at the start of a run."""
        states = self._states[iteration] if self._states else None
        if states is None:
            return {}
        arrays = {
            name: np.concatenate([getattr(state, name) for state in states])
            for name in ("episode", "over", "obs", "lengths", "returns", "discounted", "memory")
        }
        if not arrays["memory"].size:
            del arrays["memory"]
        for number, state in enumerate(states):
            arrays |= {f"{number}.{name}": array for name, array in state.simulator.items()}
        if actions := [one for state in states for one in state.action_history]:
            arrays["actions"] = _padded(actions)
        return {f"sampler.{name}": torch.from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy, iteration: int) -> int:
        """Restore every environment; columns that fail start new episodes and are counted."""
        if not tensors:
            return 0
        tensors = in_todays_form(tensors, self._examples[0].envs.layout)
        arrays = {name.removeprefix("sampler."): tensor.numpy() for name, tensor in tensors.items()}
        no_memory = policy.actor("sampled").start(self._config.env.num_envs)
        names = self._check(arrays, no_memory)
        arrays = {"memory": no_memory} | arrays
        tasks = {}
        for number, (chunk, example) in enumerate(zip(self._chunks, self._examples, strict=True)):
            part = {name: arrays[name][chunk.start : chunk.stop] for name in names}
            history, simulator = list[Array](), dict[str, Array]()
            if isinstance(example.envs, VectorEnvironments):
                simulator = {name: arrays[f"{number}.{name}"] for name in example.envs.arrays()}
            else:
                lengths = zip(chunk, part["lengths"].tolist(), strict=True)
                history = [arrays["actions"][:length, column] for column, length in lengths]
            state = ColumnState(**part, action_history=history, simulator=simulator)
            tasks[number] = RestoreColumns(self._config, chunk, state)
        restored = self._pool.map(policy, tasks, lambda: None)
        self._states = {iteration: [restored[n][0] for n in tasks]}
        return sum(failed for _, failed in restored.values())

    def _check(self, arrays: dict[str, Array], memory: Array) -> list[str]:
        """Return the names of the per-column arrays. Raises CheckpointError for an invalid state."""
        layout, n = self._examples[0].envs.layout, self._config.env.num_envs
        counts, sums, obs = np.zeros(n, np.int64), np.zeros(n), np.zeros((n, *layout.shape), layout.dtype)
        expected = {"episode": counts, "over": np.zeros(n, bool), "obs": obs, "lengths": counts}
        expected |= {"returns": sums, "discounted": sums, "memory": memory}
        names = list(expected)
        if not memory.size:
            del expected["memory"]
        actions = arrays.get("actions", np.zeros((0, n)))
        for number, example in enumerate(self._examples):
            if isinstance(example.envs, VectorEnvironments):
                example.states = []
                example.envs.reset([0])
                expected |= {f"{number}.{name}": array for name, array in example.envs.arrays().items()}
            else:
                expected["actions"] = actions
        fits = arrays.keys() == expected.keys() and all(
            arrays[name].shape == like.shape and arrays[name].dtype == like.dtype for name, like in expected.items()
        )
        if not fits or actions.ndim < 2 or actions.shape[1] != n:
            raise CheckpointError("the environment state in the checkpoint does not fit its config")
        longest = len(actions) if "actions" in expected else self._examples[0].envs.longest_episode
        if not (arrays["lengths"].min() >= 0 and arrays["lengths"].max() <= longest and arrays["episode"].min() >= 0):
            raise CheckpointError("the environment state in the checkpoint contradicts itself")
        return names


@dataclass(frozen=True)
class CollectSegment:
    """Collect one segment of a chunk; return None if its state is not available."""

    config: Config
    chunk: range
    iteration: int
    token: str | None  # of the initial state; None at the start of a run
    state: ColumnState | None = None

    @property
    def columns(self) -> int:
        """The number of columns."""
        return len(self.chunk)

    @property
    def kind(self) -> Hashable:
        """What chunks of different seeds must have in common to be collected as one."""
        return CollectSegment, self.config.rollout.steps, self.config.info_names, self.columns, self.token is None

    def __call__(self, environments: EnvironmentCache, policy: Policy, check: Check) -> Segment | None:
        """Continue from the state; restore it first if necessary."""
        return self._collected([self], _columns_in(environments, self.chunk), [policy], check)[0]

    def together(
        self, tasks: Sequence[CollectSegment], environments: EnvironmentCache, policies: Sequence[Policy], check: Check
    ) -> Sequence[Segment | None]:
        """Return the results of the chunks of several seeds."""
        return self._collected(tasks, _columns_in(environments, range(len(tasks) * self.columns)), policies, check)

    def _collected(
        self, tasks: Sequence[CollectSegment], columns: _LiveColumns, policies: Sequence[Policy], check: Check
    ) -> Sequence[Segment | None]:
        failed = [0] * len(tasks)
        if self.token is None:
            columns.start(tasks, policies[0])
        elif [state.token for state in columns.states] != [task.token for task in tasks]:
            states = [task.state for task in tasks if task.state is not None]
            if len(states) < len(tasks):
                return [None] * len(tasks)
            failed = columns.restore(tasks, states, policies[0], check)
        results = columns.collect(tasks, policies, check)
        return [
            Segment(trajectories, episodes, state, lost)
            for (trajectories, episodes), state, lost in zip(results, columns.states, failed, strict=True)
        ]


@dataclass(frozen=True)
class RestoreColumns:
    """Restore the environments of a chunk."""

    config: Config
    chunk: range
    state: ColumnState

    def __call__(self, environments: EnvironmentCache, policy: Policy, check: Check) -> tuple[ColumnState, int]:
        """Return the reached state, and how many columns start a new episode instead."""
        columns = _columns_in(environments, self.chunk)
        failed = columns.restore([self], [self.state], policy, check)
        return columns.states[0], failed[0]


def _columns_in(environments: EnvironmentCache, chunk: range) -> _LiveColumns:
    return environments.get(chunk, lambda: _LiveColumns(environments.config, len(chunk)))


class _LiveColumns:
    """The environments of a chunk, or of chunks of several seeds, in the process that steps them.

    The chunks have the same width. `states` are their states; empty if unknown.
    """

    def __init__(self, env: EnvConfig, num_envs: int) -> None:
        self.envs = make_environments(env, num_envs, resumable=True)
        self.states: list[ColumnState] = []

    def close(self) -> None:
        """Free the resources of the simulators."""
        self.envs.close()

    def start(self, parts: Sequence[CollectSegment], policy: Policy) -> None:
        """Reset every column to its episode 0."""
        self.states, n = [], len(parts[0].chunk)
        obs = self.envs.reset([segment_seed(part.config, column, 0) for part in parts for column in part.chunk])
        counts, sums, memory = np.zeros(n, int), np.zeros(n), policy.actor("sampled").start(n)
        history = [] if isinstance(self.envs, VectorEnvironments) else [np.empty(0)] * n
        self.states = [
            ColumnState(counts, counts > 0, own, counts, sums, sums, memory, history, self._simulator())
            for own in np.split(obs, len(parts))
        ]

    def collect(
        self, parts: Sequence[CollectSegment], policies: Sequence[Policy], check: Check
    ) -> list[tuple[Trajectories, list[EndedEpisode]]]:
        """Step every column `rollout.steps` times; return trajectories and ended episodes of each part."""
        states, self.states = self.states, []
        first, width, envs = parts[0], len(parts[0].chunk), self.envs
        generators = [generator(part.config.seed, Purpose.ACT, part.iteration, part.chunk.start) for part in parts]
        actor = policies[0].actor("sampled")
        if len(parts) > 1:
            actor = stacked_actor(policies, "sampled", generators, width)
        if isinstance(envs, VectorEnvironments):
            envs.seed(native_seed(first.config, first.iteration, first.chunk.start))
        state = _joined(states)
        acting = ActingState(actor, generators[0], len(state.over), memory=state.memory)
        episode, obs, running = state.episode.copy(), state.obs, ~state.over
        rows, waiting, names, infos = [], bool(state.over.any()), first.config.info_names, dict[int, Array]()
        for t in range(first.config.rollout.steps or 0):
            check()
            actions = acting.act(obs)
            next_obs, rewards, terminated, truncated = envs.step(actor.for_environment(actions), running)
            over = terminated | truncated
            if waiting:
                over &= running
                episode += ~running
                acting.memory = np.where(running[:, None], acting.memory, 0)
                fresh = np.flatnonzero(~running)
                next_obs = envs.restart(fresh.tolist(), _reset_seeds(parts, episode.copy()))
            restore_modes()
            rows.append(Transition(obs, actions, rewards, terminated, truncated, running, next_obs))
            obs, running, waiting = next_obs, ~over, bool(over.any())
            if waiting and names and (info := envs.reported(names, over)) is not None:
                infos[t] = info
        together, results = to_trajectories(rows), []
        for number, (part, before) in enumerate(zip(parts, states, strict=True)):
            columns = slice(number * width, (number + 1) * width)
            trajectories = _part(together, columns) if len(parts) > 1 else together
            if actor.state_size:
                trajectories = replace(trajectories, memory=torch.from_numpy(before.memory))
            places, ended, sums = _ended(trajectories, before, part.config.algorithm.gamma)
            if infos:
                found = (named(names, infos[t][columns][n].tolist()) if t in infos else {} for t, n in places)
                ended = [one._replace(info=numbers) for one, numbers in zip(ended, found, strict=True)]
            if sums["lengths"].max() > envs.longest_episode:
                raise endless_episode(envs.longest_episode)
            history = _extended(before.action_history, trajectories.actions.numpy(), sums["lengths"])
            after = (episode[columns], ~running[columns], obs[columns])
            memory, simulator = acting.memory[columns], self._simulator()
            self.states.append(ColumnState(*after, **sums, memory=memory, action_history=history, simulator=simulator))
            results.append((trajectories, ended))
        return results

    def restore(
        self,
        parts: Sequence[CollectSegment | RestoreColumns],
        states: Sequence[ColumnState],
        policy: Policy,
        check: Check,
    ) -> list[int]:
        """Restore the columns; return how many of each part failed and start a new episode instead."""
        self.states = []
        if isinstance(self.envs, VectorEnvironments):
            self.envs.reset([0])
            self.envs.restore(states[0].simulator)
            self.states = list(states)
            return [0]
        reached = self._replay(parts, _joined(states), policy, check)
        for state, own in zip(states, np.split(reached, len(parts)), strict=True):
            own = own | state.over
            lengths, returns, sums = (np.where(own, x, 0) for x in (state.lengths, state.returns, state.discounted))
            history = [actions[:length] for actions, length in zip(state.action_history, lengths.tolist(), strict=True)]
            restored = replace(
                state, over=state.over | ~own, lengths=lengths, returns=returns, discounted=sums, action_history=history
            )
            self.states.append(restored)
        return [int((state.over & ~before.over).sum()) for state, before in zip(self.states, states, strict=True)]

    def _replay(
        self, parts: Sequence[CollectSegment | RestoreColumns], state: ColumnState, policy: Policy, check: Check
    ) -> Array:
        """Repeat the actions since the reset; return which columns succeeded, bool [N]."""
        actor = policy.actor("sampled")
        obs = self.envs.reset(_reset_seeds(parts, state.episode))
        alive = ~state.over
        for t, actions in enumerate(_padded(state.action_history)):
            check()
            running = (t < state.lengths) & alive
            if not running.any():
                break
            obs, _, terminated, truncated = self.envs.step(actor.for_environment(actions), running)
            alive &= ~(terminated | truncated)
        same = [obs[n].tobytes() == state.obs[n].tobytes() for n in range(len(obs))]
        reached: Array = alive & np.array(same)
        return reached

    def _simulator(self) -> dict[str, Array]:
        return self.envs.arrays() if isinstance(self.envs, VectorEnvironments) else {}


def _reset_seeds(parts: Sequence[CollectSegment | RestoreColumns], episode: Array) -> DerivedSeeds:
    """Return the reset seed of each column of all parts, from the number of its episode."""
    columns = np.concatenate([part.chunk for part in parts])
    if len(parts) == 1:
        return DerivedSeeds(parts[0].config.seed, Purpose.RESET, columns, episode)
    seeds = np.array([part.config.seed for part in parts for _ in part.chunk], object)
    return DerivedSeeds(seeds, Purpose.RESET, columns, episode)


def _part(trajectories: Trajectories, columns: slice) -> Trajectories:
    """Return all rows of neighbouring columns, without the state of a recurrent policy."""
    tensors = {name: x[:, columns].contiguous() for name, x in vars(trajectories).items() if isinstance(x, Tensor)}
    return Trajectories(**tensors)


def _joined(states: Sequence[ColumnState]) -> ColumnState:
    """Return one state for the columns of all states; those of several have no simulator."""
    if len(states) == 1:
        return states[0]
    names = ("episode", "over", "obs", "lengths", "returns", "discounted", "memory")
    arrays = {name: np.concatenate([getattr(state, name) for state in states]) for name in names}
    history = [actions for state in states for actions in state.action_history]
    return ColumnState(**arrays, action_history=history, simulator={})


def _padded(actions: list[Array]) -> Array:
    padded = np.zeros((max(map(len, actions)), len(actions), *actions[0].shape[1:]), actions[0].dtype)
    for column, one in enumerate(actions):
        padded[: len(one), column] = one
    return padded


def _extended(history: list[Array], actions: Array, lengths: Array) -> list[Array]:
    """Append actions [T, N, …] to the histories; keep those since each reset."""
    return [
        actions[len(actions) - lengths[n] :, n] if lengths[n] <= len(actions) else np.concatenate((old, actions[:, n]))
        for n, old in enumerate(history)
    ]


def _ended(
    trajectories: Trajectories, state: ColumnState, gamma: float
) -> tuple[list[tuple[int, int]], list[EndedEpisode], dict[str, Array]]:
    """Return (row, column) of ended episodes, these episodes, and the sums of unfinished ones.

    The rows of all columns, column after column, are cut into pieces. A piece begins at the first row of a column,
    where it continues an episode of `state`, and at each row that resets.
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
    fields = (sums["returns"], sums["discounted"], sums["lengths"], how)
    ended = [EndedEpisode(*one) for one in zip(*(x[order].tolist() for x in fields), strict=True)]
    final = np.append(first[1:], True)
    places = list(zip((last[order] % mask.shape[1]).tolist(), column[order].tolist(), strict=True))
    return places, ended, {name: np.where(over, 0, x)[final] for name, x in sums.items()}
