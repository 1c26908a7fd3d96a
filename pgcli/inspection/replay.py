"""`pgcli eval --replay`: simulate a training episode again.

The result is compared with its row in episodes.csv, and filmed.

Training stores no frames. An episode is a function of derived seeds and the policy at the start of its iteration.
A checkpoint has that policy, or it is recomputed from an earlier checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgcli.config import Config, override
from pgcli.environments.checks import check_environment
from pgcli.environments.make import make_environments
from pgcli.environments.single import SingleEnvironments, make_environment
from pgcli.environments.vector.native import VectorEnvironments, select_column
from pgcli.errors import EnvironmentFailure, RunDirectoryError, UsageError, counted
from pgcli.experiment.build import environments_of
from pgcli.experiment.load import refuse_foreign_modules
from pgcli.experiment.repeat import changed_iterations, follows_the_clock, repeated
from pgcli.experiment.resume import has_constant_schedules
from pgcli.policies.policy import Policy
from pgcli.report.frames import Frame, FrameReader, rate
from pgcli.report.text import table
from pgcli.report.video import FilmedEpisode, check_name, drawing, played, write
from pgcli.runs import checkpoints
from pgcli.runs.directory import is_run
from pgcli.runs.information import config_of_run, find_run_hint
from pgcli.runs.tables import read_table
from pgcli.sampling.chunks import chunk_ranges
from pgcli.sampling.episodes import episode_seed
from pgcli.sampling.rollout import EndedEpisode, Rollout
from pgcli.sampling.sampler import Sampler
from pgcli.sampling.segments import native_seed, segment_seed
from pgcli.system.process_state import require
from pgcli.system.processes import Check
from pgcli.training.loop import Training, train

Array = NDArray[Any]
_COLUMNS = ("episode", "return", "discounted_return", "length")


@dataclass(frozen=True)
class RecordedEpisode:
    """A row of episodes.csv, and its index among the rows of its iteration."""

    iteration: int
    episode: int
    ended: EndedEpisode
    index: int


class CollectedIteration(NamedTuple):
    """The data of an iteration, and the sampler's state at its start."""

    state: dict[str, Tensor]
    rollout: Rollout


@dataclass
class RecordingSampler:
    """A sampler that keeps the collected data from iteration `first` on."""

    sampler: Sampler
    first: int
    collected: dict[int, CollectedIteration] = field(default_factory=dict)
    failed_restores: int = 0

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect one iteration and keep the data."""
        state = self.sampler.state_dict(iteration) if iteration >= self.first else {}
        rollout = self.sampler.collect(policy, iteration, check)
        if iteration >= self.first:
            self.collected[iteration] = CollectedIteration(state, rollout)
        return rollout

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Return the sampler's state."""
        return self.sampler.state_dict(iteration)

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy, iteration: int) -> int:
        """Restore the sampler's state."""
        return self.sampler.load_state_dict(tensors, policy, iteration)


def replay(path: Path, which: str, video: Path | None, *, trust: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Replay the training episode `which`, ITERATION:EPISODE, of the run in `path`, and film it.

    Returns: the object that `pgcli eval --replay --json` prints. `matches` states whether the episode equals the
    recorded one; only then is it filmed. `tell` receives a message with the number of recomputed iterations.
    Raises: UsageError, RunDirectoryError, EnvironmentFailure.
    """
    if video is not None:
        check_name(video)
    if not is_run(path):
        raise RunDirectoryError(f"{path}: not a run directory", find_run_hint(path))
    config = config_of_run(path)
    if not trust:
        refuse_foreign_modules(config, path)
    recorded = _find(path, which)
    iteration, first, is_vector = recorded.iteration, recorded.iteration, _uses_vector_form(config)
    if is_vector and (steps := config.rollout.steps):  # the earliest in which it can have begun: its rows have no gap
        first = max(0, (iteration * steps + 1 - recorded.ended.length) // steps)
    file, config = _choose_start(path, config, first, iteration)
    with repeated(path, config, file) as (run, lost):
        origin = file.name if file else "the start of the run"
        if lost:
            raise EnvironmentFailure(
                f"{counted(lost, 'environment')} did not return to the state in {origin}: no replay"
            )
        repeated_iterations = iteration - run.counters.iteration
        before = counted(repeated_iterations, "iteration")
        tell(f"replaying iteration {iteration} from {origin}: {before} to recompute first")
        collected = _repeat(run, first, iteration)
    episodes = collected[iteration].rollout.episodes
    again = episodes[recorded.index] if recorded.index < len(episodes) else None
    matches = again is not None and again._replace(info={}) == recorded.ended
    result = {
        "run": str(path),
        "env": config.env.id,
        "iteration": iteration,
        "episode": recorded.episode,
        "return": None if again is None else again.episode_return,
        "length": None if again is None else again.length,
        "ended": None if again is None else again.how,
        "discounted_return": None if again is None else again.discounted_return,
        "recorded_return": recorded.ended.episode_return,
        "recorded_discounted_return": recorded.ended.discounted_return,
        "recorded_length": recorded.ended.length,
        "recorded_ended": recorded.ended.how,
        "matches": matches,
        "checkpoint": None if file is None else str(file),
        "repeated_iterations": repeated_iterations,
    }
    if matches and video is not None:
        frames = ReplayFrames(config, run.learner.policy, collected, recorded)
        write(frames.of_vector_form() if is_vector else frames.of_single_form(), frames.film, video)
        result["video"] = str(video)
    return result


def replay_text(result: dict[str, Any]) -> str:
    """Return a replay as text."""

    def described(prefix: str) -> str:
        returns = f"return {result[f'{prefix}return']!r}, {result[f'{prefix}discounted_return']!r} discounted"
        return f"{returns}, {counted(result[f'{prefix}length'], 'step')}, {result[f'{prefix}ended']}"

    verdict = "identical to the recorded episode" if result["matches"] else "differs from the recorded episode"
    rows = [
        ("replayed", "no such episode" if result["return"] is None else described("")),
        ("recorded", described("recorded_")),
        ("verdict", verdict),
        ("from", result["checkpoint"] or "the start of the run"),
        *([("video", result["video"])] if "video" in result else []),
    ]
    head = f"{result['env']}, iteration {result['iteration']}, episode {result['episode']}"
    return "\n".join([head, *table(rows, 12, indent=2, width=None)])


# ------------------------------------------------------------------------------------------------------ the simulation


def _find(path: Path, which: str) -> RecordedEpisode:
    """Find the row ITERATION:EPISODE of episodes.csv."""
    iteration, colon, episode = which.partition(":")
    if not (colon and iteration.isdecimal() and episode.isdecimal() and len(which) < 40):
        raise UsageError(
            f"--replay {which}: not ITERATION:EPISODE", "for example --replay 12:345, with the numbers of episodes.csv"
        )
    file = path / "episodes.csv"
    table = read_table(file)
    table = table.pick(table["iteration"] == int(iteration))
    numbers = zip(*(table[name].tolist() for name in _COLUMNS), strict=True)
    ended = table.words.get("ended", ("",) * table.rows)
    try:
        rows = [
            RecordedEpisode(int(iteration), int(number), EndedEpisode(gained, discounted, int(length), how), index)
            for index, ((number, gained, discounted, length), how) in enumerate(zip(numbers, ended, strict=True))
        ]
    except ValueError as error:
        raise RunDirectoryError(f"{file}: damaged: {error}") from None
    for row in rows:
        if row.episode == int(episode):
            return row
    hint = f"it has episodes {rows[0].episode} to {rows[-1].episode}" if rows else "no episode ended in this iteration"
    raise UsageError(f"{file}: iteration {int(iteration)} has no episode {int(episode)}", hint)


def _uses_vector_form(config: Config) -> bool:
    """Return whether training uses the environment's vector form, by building that of one chunk."""
    width = min(config.env.chunk_size or config.env.num_envs, config.rollout.episodes or config.env.num_envs)
    resumable = config.rollout.steps is not None
    with closing(make_environments(environments_of(config), width, resumable=resumable)) as envs:
        return isinstance(envs, VectorEnvironments)


def _choose_start(path: Path, config: Config, first: int, iteration: int) -> tuple[Path | None, Config]:
    """Choose the checkpoint from which a replay starts, and its config.

    It is the newest from which iteration `first` and later ones can be recomputed.

    A checkpoint has the config of the iterations before it; config.yaml has the config after the last change.
    """
    changes = changed_iterations(path, config)
    last = max(changes, default=0)
    files = checkpoints.list_checkpoints(path / "checkpoints")
    for file in reversed(files):
        at = checkpoints.iteration_of(file)
        if at > first or any(at <= change <= iteration for change in changes if change != at or at != last):
            continue
        then = config if at >= last else checkpoints.load(file).read_config(str(file))
        return file, _without_measurements(then, at, iteration)
    if not changes:
        return None, _without_measurements(config, 0, iteration)
    kept = ", ".join(str(checkpoints.iteration_of(file)) for file in files)
    raise RunDirectoryError(
        f"{path}: was resumed with another config at iteration {last}, and no later checkpoint fits",
        f"existing checkpoints: {kept}; a larger checkpoint.keep keeps more" if kept else "",
    )


def _without_measurements(config: Config, at: int, iteration: int) -> Config:
    """Return the config without evaluations, and with a budget that ends after `iteration`."""
    quiet = ["evaluation.every=null", "evaluation.episodes=1", "sampling.workers=0"]
    if at == iteration or has_constant_schedules(config):
        quiet += ["training.seconds=null", "training.env_steps=null", f"training.iterations={iteration + 1}"]
    elif follows_the_clock(config):
        raise RunDirectoryError(
            "its schedules depend on elapsed time, so iterations cannot be recomputed",
            "only episodes of an iteration that starts at a checkpoint can be replayed",
        )
    return override(config.without_stopping(), quiet)


def _repeat(run: Training, first: int, iteration: int) -> dict[int, CollectedIteration]:
    """Continue the run to `iteration` and collect it; return the data from `first` on."""
    run.sampler = sampler = RecordingSampler(run.sampler, first)
    if run.counters.iteration < iteration:
        for _ in train(run):
            if run.counters.iteration == iteration:
                break
    require("torch's threads", run.config.training.threads)
    sampler.collect(run.learner.policy, iteration, lambda: None)
    return sampler.collected


# ------------------------------------------------------------------------------------------------------------ the film


class VectorState(NamedTuple):
    """One column of a vector form before a step: observation, simulator state, action."""

    obs: Array
    arrays: dict[str, Array]
    action: Any  # None after the last step


class ReplayFrames:
    """The frames of a replayed episode. The first frame sets the rate of `film`."""

    def __init__(
        self, config: Config, policy: Policy, collected: dict[int, CollectedIteration], recorded: RecordedEpisode
    ) -> None:
        self._config, self._env = config, environments_of(config)
        self._policy, self._collected, self._recorded = policy, collected, recorded
        self._state, self._rollout = collected[recorded.iteration]
        self._column, self._last = _position(config, self._rollout, recorded.index)
        self.film = FilmedEpisode()

    def of_single_form(self) -> Iterator[Frame]:
        """Play the episode's actions in a new environment, and check that it is the same episode."""
        drawn, seed = self._actions_since_reset()
        actions = self._policy.actor("sampled").for_environment(drawn)
        seen = self._rollout.trajectories.obs[:, self._column].numpy()
        layout, earlier = self._policy.encoder.layout, len(actions) - self._last - 1  # steps of earlier iterations
        taken = 0

        def choose(obs: Any) -> Any:
            nonlocal taken
            at = taken - earlier
            if taken == len(actions) or (at >= 0 and layout.pack(obs).tobytes() != seen[at].tobytes()):
                raise self._not_reproducible()
            taken += 1
            return actions[taken - 1]

        yield from played(self._config.env, seed, choose, len(actions), self.film)
        ended = self._recorded.ended  # its return is the same sum, perhaps in another order
        if self.film.length != ended.length or not math.isclose(
            self.film.episode_return, ended.episode_return, rel_tol=1e-9, abs_tol=1e-6
        ):
            raise self._not_reproducible()

    def _actions_since_reset(self) -> tuple[Array, int]:
        """Return the episode's actions as drawn, [L, …], and the derived seed of its reset."""
        config, column, rows = self._config, self._column, slice(self._last + 1)
        drawn = self._rollout.trajectories.actions[rows, column].numpy()
        if config.rollout.steps is None:
            return drawn, episode_seed(config, self._recorded.iteration, column)
        resets = (~self._rollout.trajectories.mask[rows, column]).nonzero().flatten().tolist()
        before = {name.removeprefix("sampler."): x[column] for name, x in self._state.items() if x.ndim == 1}
        episode = int(before.get("episode", torch.tensor(0))) + len(resets)
        if resets:
            drawn = drawn[resets[-1] + 1 :]
        elif self._state and (length := int(before["lengths"])):
            drawn = np.concatenate((self._state["sampler.actions"][:length, column].numpy(), drawn))
        return drawn, segment_seed(config, column, episode)

    def of_vector_form(self) -> Iterator[Frame]:
        """Render each state in a vector form of one column, or in the single form if it cannot render."""
        env, states, reader = self._env, list(self._vector_states()), FrameReader(self._env.id)
        with drawing(env):
            try:
                alone = VectorEnvironments(env, 1, "rgb_array")
                alone.reset([0])
                alone.restore(states[0].arrays)
                FrameReader(env.id).read(alone.render()[0])
            except Exception:  # if the single form also fails, its error is raised
                yield from self._redrawn_in_single_form(states)
                return
            with closing(alone):
                self.film.fps = rate({"render_fps": alone.render_fps})
                for state in states:
                    alone.restore(state.arrays)
                    yield reader.read(alone.render()[0])

    def _vector_states(self) -> Iterator[VectorState]:
        """Repeat all actions of the chunk that contains the episode.

        Yield the states of the episode.

        Raises: EnvironmentFailure if an observation differs from the recorded one.
        """
        config, env, iteration = self._config, self._env, self._recorded.iteration
        steps, width = config.rollout.steps or 0, env.chunk_size or env.num_envs
        columns = chunk_ranges(env, config.rollout.episodes or env.num_envs)[self._column // width]
        column, for_environment = self._column - columns.start, self._policy.actor("sampled").for_environment
        begin = iteration * steps + self._last + 1 - self._recorded.ended.length  # its first row, from iteration 0 on
        with closing(VectorEnvironments(env, len(columns))) as envs, closing(VectorEnvironments(env, 1)) as alone:
            alone.reset([0])
            shapes = alone.arrays()
            for number in range(begin // steps if steps else iteration, iteration + 1):
                self._start_chunk(envs, number, columns)
                trajectories = self._collected[number].rollout.trajectories
                obs = trajectories.obs[:, self._column].numpy()
                actions = trajectories.actions[:, columns.start : columns.stop].numpy()
                stop = self._last + 1 if number == iteration else len(actions)
                for t in range(stop):
                    taken = for_environment(actions[t])
                    if number * steps + t >= begin:
                        yield VectorState(obs[t], select_column(envs.arrays(), shapes, column), taken[column])
                    step = envs.step(taken, np.ones(len(columns), bool))
                    if step.obs[column].tobytes() != obs[t + 1].tobytes():
                        raise self._not_reproducible()
            yield VectorState(obs[stop], select_column(envs.arrays(), shapes, column), None)

    def _start_chunk(self, envs: VectorEnvironments, iteration: int, columns: range) -> None:
        """Restore the state of a vector form at the start of an iteration."""
        config = self._config
        if config.rollout.steps is None:
            envs.reset([episode_seed(config, iteration, one) for one in columns])
            return
        envs.reset([segment_seed(config, columns.start, 0)])
        prefix = f"sampler.{columns.start // (config.env.chunk_size or config.env.num_envs)}."
        state = self._collected[iteration].state
        envs.restore({name.removeprefix(prefix): x.numpy() for name, x in state.items() if name.startswith(prefix)})
        envs.seed(native_seed(config, iteration, columns.start))

    def _redrawn_in_single_form(self, states: list[VectorState]) -> Iterator[Frame]:
        """Set the first state in the single form and repeat the actions; observations must be equal."""
        env_id, reader = self._config.env.id, FrameReader(self._config.env.id)
        with closing(SingleEnvironments(self._env, 1)) as known:
            layout = known.layout
        with closing(make_environment(self._config.env, render_mode="rgb_array")) as env:
            self.film.fps = rate(env.metadata)
            env.reset(seed=check_environment(self._config.env).seed(0))
            for name, array in states[0].arrays.items():
                own = getattr(env.unwrapped, name, None)
                if own is not None and np.size(own) == array.size:
                    setattr(env.unwrapped, name, array.reshape(np.shape(own)).copy())
            yield reader.read(env.render())
            for state, after in pairwise(states):
                obs, _, _, _, _ = env.step(state.action)
                if layout.pack(obs).tobytes() != after.obs.tobytes():
                    raise EnvironmentFailure(
                        f"{env_id}: this episode cannot be filmed: the vector form renders no frames, and the single "
                        "form gives other observations",
                        "episodes of a run with env.vectorization=sync can be filmed",
                    )
                yield reader.read(env.render())

    def _not_reproducible(self) -> EnvironmentFailure:
        what = f"{self._config.env.id} is not reproducible: the replayed episode differs from the training episode"
        return EnvironmentFailure(what, "env.rebuild=true builds a new instance for each episode")


def _position(config: Config, rollout: Rollout, index: int) -> tuple[int, int]:
    """Return the column and the last row of the `index`-th episode that ended in its iteration."""
    trajectories = rollout.trajectories
    if config.rollout.steps is None:
        return index, int(trajectories.lengths[index]) - 1
    over = trajectories.terminated | trajectories.truncated
    for chunk in chunk_ranges(config.env, config.env.num_envs):
        ends = over[:, chunk.start : chunk.stop].nonzero()  # in the order in which they happened
        if index < len(ends):
            return chunk.start + int(ends[index, 1]), int(ends[index, 0])
        index -= len(ends)
    raise AssertionError(index)
