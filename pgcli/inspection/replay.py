"""What `pgcli eval --replay` does: a training episode simulated again, held against its row, and filmed.

No frame is stored while training: an episode is a function of the policy that its iteration began with, of which a
checkpoint is kept or can be computed again, and of derived seeds.
"""

from __future__ import annotations

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
from pgcli.environments.make import Environments, make_environments, make_resumable_environments
from pgcli.environments.single import SingleEnvironments, make_environment
from pgcli.environments.vector import VectorEnvironments, select_column
from pgcli.errors import EnvironmentFailure, PgcliError, RunDirectoryError, UsageError
from pgcli.experiment.build import environments_of
from pgcli.experiment.load import refuse_foreign_modules
from pgcli.experiment.repeat import changed_iterations, follows_the_clock, repeated
from pgcli.experiment.resume import has_constant_schedules, stored_config
from pgcli.policies.policy import Policy
from pgcli.report.text import table
from pgcli.report.video import DEFAULT_FPS, FilmedEpisode, Frame, check_name, drawing, picture, played, write
from pgcli.runs import checkpoints
from pgcli.runs.directory import is_run
from pgcli.runs.tables import read_table
from pgcli.sampling.chunks import chunk_ranges
from pgcli.sampling.episodes import episode_seed
from pgcli.sampling.rollout import EndedEpisode, Rollout
from pgcli.sampling.sampler import Sampler
from pgcli.sampling.segments import native_seed, segment_seed
from pgcli.system.processes import Check
from pgcli.training.loop import Training, train

Array = NDArray[Any]
_COLUMNS = ("episode", "return", "discounted_return", "length")


@dataclass(frozen=True)
class _Row:
    """A row of episodes.csv, and the number of the episode among those of its iteration."""

    iteration: int
    episode: int
    told: EndedEpisode
    number: int


class _Collected(NamedTuple):
    """What an iteration collected, and the sampler's state before it."""

    before: dict[str, Tensor]
    rollout: Rollout


@dataclass
class _RecordingSampler:
    """A sampler that keeps what it collects, from one iteration on."""

    sampler: Sampler
    first: int
    collected: dict[int, _Collected] = field(default_factory=dict)
    failed_restores: int = 0

    def collect(self, policy: Policy, iteration: int, check: Check) -> Rollout:
        """Collect, and keep it."""
        before = self.sampler.state_dict(iteration) if iteration >= self.first else {}
        rollout = self.sampler.collect(policy, iteration, check)
        if iteration >= self.first:
            self.collected[iteration] = _Collected(before, rollout)
        return rollout

    def state_dict(self, iteration: int) -> dict[str, Tensor]:
        """Do what the sampler does."""
        return self.sampler.state_dict(iteration)

    def load_state_dict(self, tensors: dict[str, Tensor], policy: Policy, iteration: int) -> int:
        """Do what the sampler does."""
        return self.sampler.load_state_dict(tensors, policy, iteration)


class _Moment(NamedTuple):
    """An episode at one of its states: what the policy saw there, the simulator's arrays, the action that follows."""

    obs: Array
    arrays: dict[str, Array]
    action: Any


def replay(path: Path, which: str, video: Path | None, *, trust: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Simulate the training episode `which`, ITERATION:EPISODE, of the run in `path` again, and film it.

    Returns: the object that `pgcli eval --replay --json` prints; `matches` says whether the episode is the recorded
    one, and only then is it filmed. `tell` is told how many iterations are computed again first.
    Raises: UsageError, RunDirectoryError, EnvironmentFailure.
    """
    if video is not None:
        check_name(video)
    if not is_run(path):
        raise RunDirectoryError(f"{path}: no run is there", "--replay takes a run directory that `pgcli train` made")
    config = stored_config(path)
    if not trust:
        refuse_foreign_modules(config.env, path)
    row = _find(path, which)
    with closing(_environments(config)) as envs:
        native = isinstance(envs, VectorEnvironments)
    first = _first_iteration(config, row) if native else row.iteration
    file, config = _start(path, config, first, row.iteration)
    with repeated(path, config, file) as (run, lost):
        origin = file.name if file else "the start of the run"
        if lost:
            raise EnvironmentFailure(
                f"{lost} environments do not come back to where {origin} left them: nothing can be replayed from it"
            )
        begun = run.counters.iteration
        tell(f"iteration {row.iteration} from {origin}, with {row.iteration - begun} iterations computed again before")
        collected = _repeat(run, first, row.iteration)
    again = collected[row.iteration].rollout
    same_number = row.number < len(again.episodes)
    played_again = again.episodes[row.number] if same_number else None
    result = {
        "run": str(path),
        "env": config.env.id,
        "iteration": row.iteration,
        "episode": row.episode,
        "return": None if played_again is None else played_again.episode_return,
        "length": None if played_again is None else played_again.length,
        "ended": None if played_again is None else played_again.how,
        "discounted_return": None if played_again is None else played_again.discounted_return,
        "recorded_return": row.told.episode_return,
        "recorded_discounted_return": row.told.discounted_return,
        "recorded_length": row.told.length,
        "recorded_ended": row.told.how,
        "matches": played_again == row.told,
        "checkpoint": None if file is None else str(file),
        "repeated_iterations": row.iteration - begun,
    }
    if played_again == row.told and video is not None:
        _film(config, run.learner.policy, collected, row, native, video)
        result["video"] = str(video)
    return result


def replay_text(result: dict[str, Any]) -> str:
    """Write a replay for people."""

    def described(prefix: str) -> str:
        returns = f"return {result[f'{prefix}return']!r}, {result[f'{prefix}discounted_return']!r} discounted"
        return f"{returns}, {result[f'{prefix}length']} steps, {result[f'{prefix}ended']}"

    again = "no such episode" if result["return"] is None else described("")
    rows = [("replayed", again), ("recorded", described("recorded_"))]
    verdict = "the same to the last digit" if result["matches"] else "they differ: this is not the episode of the run"
    rows.append(("verdict", verdict))
    rows.append(("from", result["checkpoint"] or "the start of the run"))
    if "video" in result:
        rows.append(("video", result["video"]))
    head = f"{result['env']}, iteration {result['iteration']}, episode {result['episode']}"
    return "\n".join([head, *table(rows, 12, indent=2, width=None)])


def _find(path: Path, which: str) -> _Row:
    """Find the row of episodes.csv that is meant."""
    iteration, colon, episode = which.partition(":")
    if not (colon and iteration.isdecimal() and episode.isdecimal() and len(which) < 40):
        raise UsageError(
            f"--replay {which}: not ITERATION:EPISODE", "write it like 12:345, both as numbered in episodes.csv"
        )
    file = path / "episodes.csv"
    table = read_table(file)
    table = table.pick(table["iteration"] == int(iteration))
    numbers = zip(*(table[name].tolist() for name in _COLUMNS), strict=True)
    ended = table.words.get("ended", ("",) * table.rows)
    try:
        rows = [
            _Row(int(iteration), int(number), EndedEpisode(gained, discounted, int(length), how), place)
            for place, ((number, gained, discounted, length), how) in enumerate(zip(numbers, ended, strict=True))
        ]
    except ValueError as error:
        raise RunDirectoryError(f"{file}: damaged: {error}") from None
    for row in rows:
        if row.episode == int(episode):
            return row
    hint = f"there it has {rows[0].episode} to {rows[-1].episode}" if rows else "no episode ended in that iteration"
    raise UsageError(f"{file}: iteration {int(iteration)} has no episode {int(episode)}", hint)


def _environments(config: Config) -> Environments:
    """Build one chunk's environments, as training does, to see of which form they are."""
    width = min(config.env.chunk_size or config.env.num_envs, config.rollout.episodes or config.env.num_envs)
    if config.rollout.steps is not None:
        return make_resumable_environments(config.env, width)
    return make_environments(environments_of(config), width)


def _first_iteration(config: Config, row: _Row) -> int:
    """Give the earliest iteration in which the episode can have begun; its steps stand in rows without a gap."""
    steps = config.rollout.steps
    return row.iteration if steps is None else max(0, (row.iteration * steps + 1 - row.told.length) // steps)


def _start(path: Path, config: Config, first: int, iteration: int) -> tuple[Path | None, Config]:
    """Choose the newest state from which `first` and what follows can be computed, and the config that held then.

    A checkpoint keeps the config of what led to it, and config.yaml is that of what followed the last change.
    """
    changes = changed_iterations(path, config)
    last = max(changes, default=0)
    files = checkpoints.list_checkpoints(path / "checkpoints")
    for file in reversed(files):
        at = checkpoints.iteration_of(file)
        if at > first or any(at <= change <= iteration for change in changes if change != at or at != last):
            continue
        then = config if at >= last else checkpoints.load(file).read_config(str(file))
        return file, _as_of(then, at, iteration)
    if not changes:
        return None, _as_of(config, 0, iteration)
    kept = ", ".join(str(checkpoints.iteration_of(file)) for file in files)
    raise RunDirectoryError(
        f"{path}: was resumed with another config at iteration {last}, and no checkpoint between that and the episode"
        " is kept",
        f"kept: {kept}; a larger checkpoint.keep keeps more" if kept else "",
    )


def _as_of(config: Config, at: int, iteration: int) -> Config:
    """Leave out of a config what only measures or ends a run."""
    quiet = ["evaluation.every=null", "evaluation.stop_at_return=null", "evaluation.episodes=1", "sampling.workers=0"]
    if at == iteration or has_constant_schedules(config):
        quiet += ["training.seconds=null", "training.env_steps=null", f"training.iterations={iteration + 1}"]
    elif follows_the_clock(config):
        raise RunDirectoryError(
            "its schedules follow the clock, so its iterations cannot be computed again",
            "of iterations that a kept checkpoint begins, episodes can be replayed",
        )
    return override(config, quiet)


def _repeat(run: Training, first: int, iteration: int) -> dict[int, _Collected]:
    """Go on to `iteration` and collect it; give what was collected from `first` on."""
    recorder = _RecordingSampler(run.sampler, first)
    run.sampler = recorder
    if run.counters.iteration < iteration:
        for _ in train(run):
            if run.counters.iteration == iteration:
                break
    torch.set_num_threads(run.config.training.threads)
    recorder.collect(run.learner.policy, iteration, lambda: None)
    return recorder.collected


# ------------------------------------------------------------------------------------------------------------ the film


def _film(
    config: Config, policy: Policy, collected: dict[int, _Collected], row: _Row, native: bool, video: Path
) -> None:
    """Write the frames of the episode."""
    column, last = _place(config, collected[row.iteration].rollout, row.number)
    episode = FilmedEpisode()
    if native:
        moments = list(_native_moments(config, policy, collected, row, column, last))
        frames = _native_frames(config, moments, episode)
    else:
        frames = _single_frames(config, policy, collected[row.iteration], row, column, last, episode)
    write(frames, episode, video)


def _place(config: Config, rollout: Rollout, number: int) -> tuple[int, int]:
    """Give the column and the last row of the `number`-th episode that ended in an iteration."""
    trajectories = rollout.trajectories
    if config.rollout.steps is None:
        return number, int(trajectories.lengths[number]) - 1
    over = trajectories.terminated | trajectories.truncated
    for chunk in chunk_ranges(config.env, config.env.num_envs):
        ends = over[:, chunk.start : chunk.stop].nonzero()  # in the order in which they happened
        if number < len(ends):
            return chunk.start + int(ends[number, 1]), int(ends[number, 0])
        number -= len(ends)
    raise AssertionError(number)


def _single_frames(
    config: Config, policy: Policy, collected: _Collected, row: _Row, column: int, last: int, film: FilmedEpisode
) -> Iterator[Frame]:
    """Play the actions of an episode in a fresh instance of its environment, and see that it is the same episode."""
    drawn, seed = _actions_since_reset(config, collected, row.iteration, column, last)
    actions = policy.actor("sampled").for_environment(drawn)
    seen = collected.rollout.trajectories.obs[:, column].numpy()
    layout, unseen = policy.encoder.layout, len(actions) - last - 1  # steps of earlier iterations
    taken = 0

    def choose(obs: Any) -> Any:
        nonlocal taken
        at = taken - unseen
        if taken == len(actions) or (at >= 0 and layout.pack(obs).tobytes() != seen[at].tobytes()):
            raise _another(config)
        taken += 1
        return actions[taken - 1]

    yield from played(config.env, seed, choose, len(actions), film)
    rewards = collected.rollout.trajectories.rewards[: last + 1, column].tolist()
    total = sum(rewards) if config.rollout.steps is None else row.told.episode_return  # summed in this order as well
    if (film.length, film.episode_return) != (row.told.length, total):
        raise _another(config)


def _actions_since_reset(
    config: Config, collected: _Collected, iteration: int, column: int, last: int
) -> tuple[Array, int]:
    """Give an episode's actions as drawn [L, …], and the derived seed of its reset."""
    drawn = collected.rollout.trajectories.actions[: last + 1, column].numpy()
    if config.rollout.steps is None:
        return drawn, episode_seed(config, iteration, column)
    resets = (~collected.rollout.trajectories.mask[: last + 1, column]).nonzero().flatten().tolist()
    before = {name.removeprefix("sampler."): x[column] for name, x in collected.before.items() if x.ndim == 1}
    episode = int(before.get("episode", torch.tensor(0))) + len(resets)
    if resets:
        drawn = drawn[resets[-1] + 1 :]
    elif collected.before:
        way = collected.before["sampler.actions"][: int(before["lengths"]), column].numpy()
        drawn = np.concatenate((way, drawn)) if len(way) else drawn
    return drawn, segment_seed(config, column, episode)


def _native_moments(
    config: Config, policy: Policy, collected: dict[int, _Collected], row: _Row, column: int, last: int
) -> Iterator[_Moment]:
    """Step the chunk of a native form through all of its actions again; give the states of one column's episode.

    Raises: EnvironmentFailure if an observation is not the one that the policy saw.
    """
    steps, env = config.rollout.steps, environments_of(config)
    columns = config.rollout.episodes or config.env.num_envs
    chunk = next(one for one in chunk_ranges(env, columns) if column in one)
    number, place = chunk.start // (config.env.chunk_size or config.env.num_envs), column - chunk.start
    for_environment = policy.actor("sampled").for_environment
    begin = row.iteration * (steps or 0) + last + 1 - row.told.length  # the row of its first step, from iteration 0 on
    with closing(VectorEnvironments(env, len(chunk))) as envs, closing(VectorEnvironments(env, 1)) as alone:
        alone.reset([0])
        like = alone.arrays()
        iterations = [row.iteration] if steps is None else range(begin // steps, row.iteration + 1)
        for iteration in iterations:
            before, rollout = collected[iteration]
            obs = rollout.trajectories.obs[:, chunk.start : chunk.stop].numpy()
            actions = rollout.trajectories.actions[:, chunk.start : chunk.stop].numpy()
            if steps is None:
                envs.reset([episode_seed(config, iteration, one) for one in chunk])
            else:
                envs.reset([segment_seed(config, chunk.start, 0)])
                prefix = f"sampler.{number}."
                envs.restore({k.removeprefix(prefix): x.numpy() for k, x in before.items() if k.startswith(prefix)})
                envs.seed(native_seed(config, iteration, chunk.start))
            stop = last + 1 if iteration == row.iteration else len(actions)
            for t in range(stop):
                if iteration * (steps or 0) + t >= begin:
                    taken = for_environment(actions[t])[place]
                    yield _Moment(obs[t, place], select_column(envs.arrays(), like, place), taken)
                step = envs.step(for_environment(actions[t]), np.ones(len(chunk), bool))
                if step.obs[place].tobytes() != obs[t + 1, place].tobytes():
                    raise _another(config)
        yield _Moment(obs[stop, place], select_column(envs.arrays(), like, place), None)


def _native_frames(config: Config, moments: list[_Moment], film: FilmedEpisode) -> Iterator[Frame]:
    """Let a vector form of one column draw each state; where it draws none, the single form, if it is the same."""
    env = environments_of(config)
    with drawing(env):
        try:
            alone = VectorEnvironments(env, 1, "rgb_array")
            alone.reset([0])
            alone.restore(moments[0].arrays)
            picture(alone.render()[0], env.id)
        except (PgcliError, TypeError, IndexError, NotImplementedError):
            yield from _frames_of_the_single_form(config, moments, film)
            return
        with closing(alone):
            film.fps = float(alone.render_fps or DEFAULT_FPS)
            for moment in moments:
                alone.restore(moment.arrays)
                yield picture(alone.render()[0], env.id)


def _frames_of_the_single_form(config: Config, moments: list[_Moment], film: FilmedEpisode) -> Iterator[Frame]:
    """Put the first state into the single form, and step it through the actions, if it sees the same to the bit."""
    cannot = EnvironmentFailure(
        f"the vector form of {config.env.id} draws no pictures, and its single form does not come to the same "
        "observations: this episode cannot be filmed",
        "env.vectorization=sync trains on episodes that can be",
    )
    with closing(SingleEnvironments(environments_of(config), 1)) as known:
        layout = known.layout
    with closing(make_environment(config.env, render_mode="rgb_array")) as env:
        film.fps = float(env.metadata.get("render_fps") or DEFAULT_FPS)
        env.reset(seed=check_environment(config.env).seed(0))
        inner = env.unwrapped
        for name, array in moments[0].arrays.items():
            there = getattr(inner, name, None)
            if there is not None and np.size(there) == array.size:
                setattr(inner, name, array.reshape(np.shape(there)).copy())
        yield picture(env.render(), config.env.id)
        for moment, after in pairwise(moments):
            obs, _, _, _, _ = env.step(moment.action)
            if layout.pack(obs).tobytes() != after.obs.tobytes():
                raise cannot
            yield picture(env.render(), config.env.id)


def _another(config: Config) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"{config.env.id} does not repeat itself: what it shows is another episode than the one that was trained on",
        "env.rebuild=true gives each episode a fresh instance",
    )
