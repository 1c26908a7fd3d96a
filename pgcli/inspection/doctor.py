"""What `pgcli doctor` reports: a config and its environment, examined before a long run."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.learner import Learner
from pgcli.config.schema import DEFAULT_ITERATIONS, Config, EnvConfig
from pgcli.environments.checks import MAX_EPISODE_STEPS, examine
from pgcli.environments.failures import is_fault, told
from pgcli.environments.forms import NativeEnvironments, SingleEnvironments, make, rebuilds
from pgcli.environments.masks import MaskColumns, draw
from pgcli.environments.registry import spec
from pgcli.errors import EnvironmentFailure
from pgcli.experiment.build import build_learner, columns_of, environments_of
from pgcli.policies.observations import Layout, is_image
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.rollout import Rollout
from pgcli.sampling.sampler import make_sampler

Array = NDArray[Any]
Level = Literal["ok", "note", "warning"]
WIDTH = 80
LONGEST_EPISODE = 200  # steps of an episode that is played several times
TRIALS = 8  # BipedalWalker is found out by half of them
REPEATING_SECONDS, SPEED_SECONDS, COLLECTING_SECONDS = 3.0, 0.5, 4.0  # at most, each
LARGE = 10.0  # observations beyond it saturate a tanh
LARGE_REWARD = 100.0
BYTES_PER_ITERATION, BYTES_PER_EPISODE, BYTES_PER_EVALUATION = 500, 70, 250  # rows of the tables, measured


@dataclass(frozen=True)
class Finding:
    """One thing found: what, and which key changes it."""

    level: Level
    text: str
    key: str = ""


@dataclass
class Episode:
    """What an episode gave, as it was packed: obs [T + 1, …], rewards [T], how it ended, and the actions [T, …]."""

    obs: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    ends: list[tuple[bool, bool]] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)

    def same(self, other: Episode) -> bool:
        """Compare what the environment gave, bit for bit."""
        return (
            [one.tobytes() for one in self.obs] == [one.tobytes() for one in other.obs]
            and np.array(self.rewards).tobytes() == np.array(other.rewards).tobytes()
            and self.ends == other.ends
        )


@dataclass(frozen=True)
class Repeats:
    """What playing the same episode again showed."""

    deterministic: bool  # on fresh instances
    remembers: bool  # a used instance differs from a fresh one
    starts_differ: bool  # with the seed
    episodes_differ: bool  # with the seed, under the same actions
    largest_obs: float
    largest_reward: float
    length_mean: float  # of random episodes, cut at LONGEST_EPISODE


@dataclass(frozen=True)
class Speed:
    """How long one iteration took, or a part of one that would have taken too long."""

    steps: int  # collected
    episodes: int  # that ended
    collect: float  # seconds
    update: float
    whole: bool


class _TooLong(Exception):
    """The time for collecting is over."""


def diagnose(config: Config) -> dict[str, Any]:
    """Examine a config and its environment: the object that `pgcli doctor --json` prints. Writes nothing.

    Raises: EnvironmentFailure, UsageError.
    """
    found, registered = examine(config.env), spec(config.env)
    torch.set_num_threads(config.training.threads)
    with closing(make(config.env)) as env:
        layout, action_space = Layout(env.observation_space), env.action_space
    with closing(ChunkExecutor(EnvironmentCache(environments_of(config)))) as executor:
        learner = build_learner(config, executor.environments)
        widest = len(chunk_ranges(config.env, columns_of(config))[0])
        native = isinstance(executor.environments.of_width(widest), NativeEnvironments)
        repeats = _repeats(config.env)
        steps_per_second, buffered = _raw(config.env)
        speed, sampler_bytes = _iteration(config, executor, learner)
    sizes = {name: sum(x.numel() for x in child.parameters()) for name, child in learner.policy.named_children()}
    estimate = _estimate(config, learner, speed, sampler_bytes, repeats.length_mean)
    findings = [
        *(Finding("note", oddity) for oddity in found.oddities),
        *_of_time(found.time_limit),
        *_of_repeating(config.env, repeats),
        *_of_numbers(config, learner, layout, action_space, repeats),
        *_of_cost(config, estimate),
    ]
    if buffered:
        findings.append(Finding("ok", "it gives every observation in one buffer, which pgcli copies"))
    return {
        "env": config.env.id,
        "observation": [_described(leaf.name, leaf.space) for leaf in layout.leaves],
        "action": _described("action", action_space),
        "action_mask": learner.policy.masked,
        "time_limit": found.time_limit,
        "reward_threshold": registered.reward_threshold,
        "vectorization": "native" if native else "sync",
        "num_envs": config.env.num_envs,
        "rebuild": rebuilds(config.env),
        "policy_parameters": sum(sizes.values()),
        "policy_parts": {name: size for name, size in sizes.items() if size},
        "value_parameters": sum(x.numel() for x in learner.agent.value.parameters()) if learner.agent.value else None,
        **{name: getattr(repeats, name) for name in ("deterministic", "remembers", "starts_differ")},
        "env_steps_per_second": steps_per_second,
        **estimate,
        "findings": [asdict(finding) for finding in findings],
    }


# ------------------------------------------------------------------------------------------------------- measurements


def _repeats(config: EnvConfig) -> Repeats:
    """Play the same episodes on fresh instances and on one that has played others before."""
    once = config.model_copy(update={"rebuild": False, "vectorization": "sync"})
    deterministic, remembers, episodes = True, False, list[Episode]()
    stop = time.perf_counter() + REPEATING_SECONDS
    with closing(SingleEnvironments(once, 1)) as used:
        for seed in range(1, TRIALS + 1):
            with closing(SingleEnvironments(once, 1)) as fresh:
                episodes.append(_play(fresh, seed))
            remembers = remembers or not _play(used, seed, episodes[-1].actions).same(episodes[-1])
            if seed == 1:
                with closing(SingleEnvironments(once, 1)) as fresh:
                    deterministic = _play(fresh, seed, episodes[0].actions).same(episodes[0])
            if remembers or not deterministic or (time.perf_counter() > stop and seed > 1):
                break
        other = _play(used, TRIALS + 1, episodes[0].actions)
    starts = {one.obs[0].tobytes() for one in (*episodes, other)}
    numbers = [
        np.stack(one.obs).reshape(len(one.obs), -1)[:, part] for one in episodes for part in _real_numbers(used.layout)
    ]
    return Repeats(
        deterministic,
        remembers and deterministic,
        len(starts) > 1,
        len(starts) > 1 or not other.same(episodes[0]),
        max((float(np.abs(one).max()) for one in numbers if one.size), default=0.0),
        max((abs(reward) for one in episodes for reward in one.rewards), default=0.0),
        float(np.mean([len(one.rewards) for one in episodes])),
    )


def _real_numbers(layout: Layout) -> list[slice]:
    """Give where the numbers stand that a policy sees as they are: those of Boxes that are no images."""
    return [
        leaf.numbers if layout.nested else slice(None)
        for leaf in layout.leaves
        if isinstance(leaf.space, spaces.Box) and leaf.space.dtype != np.uint8 and not is_image(leaf)
    ]


def _play(envs: SingleEnvironments, seed: int, actions: list[Array] | None = None) -> Episode:
    """Play an episode of the only column, with random actions or with those given."""
    random, mask = np.random.default_rng(seed), MaskColumns(envs.layout, envs.action_space).numbers
    episode, obs, on = Episode(), envs.reset([seed]), np.ones(1, bool)
    episode.obs.append(obs)
    for t in range(LONGEST_EPISODE if actions is None else len(actions)):
        permitted = None if mask is None else obs[0, mask]
        action = draw(envs.action_space, permitted, random)[None] if actions is None else actions[t]
        obs, rewards, terminated, truncated = envs.step(action, on)
        episode.obs.append(obs)
        episode.rewards.append(float(rewards[0]))
        episode.ends.append((bool(terminated[0]), bool(truncated[0])))
        episode.actions.append(action)
        if terminated[0] or truncated[0]:
            break
    return episode


@contextmanager
def _blamed(config: EnvConfig) -> Iterator[None]:
    """Tell what an environment raises."""
    try:
        yield
    except BaseException as error:
        if not is_fault(error):
            raise
        raise EnvironmentFailure(f"{config.id} raised {told(error)}") from error


def _raw(config: EnvConfig) -> tuple[float, bool]:
    """Measure steps per second of one environment with random actions; say whether it reuses its observations."""
    random, steps, seconds, buffered = np.random.default_rng(0), 0, 0.0, False
    with _blamed(config), closing(make(config)) as env:
        layout = Layout(env.observation_space)
        columns = MaskColumns(layout, env.action_space)
        obs, _ = env.reset(seed=0)
        stop = time.perf_counter() + SPEED_SECONDS
        while time.perf_counter() < stop:
            mask = None if columns.numbers is None else layout.pack(obs)[columns.numbers]
            action = draw(env.action_space, mask, random)
            begin = time.perf_counter()
            following, _, terminated, truncated, _ = env.step(action)
            seconds += time.perf_counter() - begin
            buffered = buffered or _share(layout, obs, following)
            steps, obs = steps + 1, following
            if terminated or truncated:
                obs, _ = env.reset(seed=steps)
    return steps / max(seconds, 1e-9), buffered


def _share(layout: Layout, one: Any, other: Any) -> bool:
    """Say whether two observations lie in the same memory."""
    for leaf in layout.leaves:
        a, b = leaf.of(one), leaf.of(other)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.may_share_memory(a, b):
            return True
    return False


def _iteration(config: Config, executor: ChunkExecutor, learner: Learner) -> tuple[Speed, int]:
    """Collect and update once, as a run would; also give the bytes of what the sampler would keep in a checkpoint.

    What would take too long is done with fewer steps of each environment.
    """
    begin = time.perf_counter()
    rows = 0

    def check() -> None:
        nonlocal rows
        if time.perf_counter() - begin > COLLECTING_SECONDS:
            raise _TooLong
        rows += 1

    try:
        return _once(config, executor, learner, check, whole=True)
    except _TooLong:
        fewer = {"steps" if config.rollout.steps else "horizon": max(rows // 2, 1)}
        part = config.model_copy(update={"rollout": config.rollout.model_copy(update=fewer)})
        return _once(part, executor, learner, lambda: None, whole=False)


def _once(
    config: Config, executor: ChunkExecutor, learner: Learner, check: Callable[[], None], whole: bool
) -> tuple[Speed, int]:
    sampler = make_sampler(config, executor)
    begin = time.perf_counter()
    rollout: Rollout = sampler.collect(learner.policy, 0, check)
    collected = time.perf_counter()
    if config.training.compile:
        learner.update(rollout.trajectories, 0)  # which compiles, once in a run
    begin_update = time.perf_counter()
    learner.update(rollout.trajectories, 0)
    updated = time.perf_counter()
    kept = sum(x.numel() * x.element_size() for x in sampler.state_dict(1).values())
    steps = rollout.trajectories.num_steps
    return Speed(steps, len(rollout.episodes), collected - begin, updated - begin_update, whole), kept


def _estimate(config: Config, learner: Learner, speed: Speed, kept: int, random_length: float) -> dict[str, Any]:
    """Reckon from one iteration how long the run takes and how much it writes."""
    rollout, algorithm, budget = config.rollout, config.algorithm, config.training
    length = speed.steps / speed.episodes if speed.episodes and speed.whole and not rollout.steps else random_length
    reckoned = rollout.steps * config.env.num_envs if rollout.steps else (rollout.episodes or 1) * length
    steps = round(speed.steps if speed.whole else reckoned)
    per_step, updating = speed.collect / max(speed.steps, 1), speed.update * steps / max(speed.steps, 1)
    seconds = per_step * steps + updating
    budgets = ((budget.iterations, 1), (budget.env_steps, max(steps, 1)), (budget.seconds, max(seconds, 1e-9)))
    iterations = min((math.ceil(total / each) for total, each in budgets if total), default=DEFAULT_ITERATIONS)
    every = config.evaluation.every
    evaluations = 2 + (iterations - 1) // every if every else 2
    evaluating = evaluations * config.evaluation.episodes * length * per_step
    checkpoint = sum(x.numel() * x.element_size() for x in learner.state_dict().values()) + kept + 10_000
    episodes = rollout.episodes or steps / max(length, 1)
    rows = BYTES_PER_ITERATION + BYTES_PER_EPISODE * episodes
    batch = steps * algorithm.reuse
    return {
        "iterations": iterations,
        "steps_per_iteration": steps if speed.whole or rollout.steps else None,
        "episodes_per_iteration": rollout.episodes,
        "minibatch_steps": batch // algorithm.num_minibatches if speed.whole or rollout.steps else None,
        "optimizer_steps_per_iteration": algorithm.update_epochs * algorithm.num_minibatches,
        "collect_seconds": per_step * steps,
        "update_seconds": updating,
        "measured_whole": speed.whole,
        "evaluate_seconds": evaluating,
        "run_seconds": iterations * seconds + evaluating,
        "run_bytes": int(
            (config.checkpoint.keep + 2) * checkpoint + iterations * rows + evaluations * BYTES_PER_EVALUATION
        ),
    }


# ----------------------------------------------------------------------------------------------------------- findings


def _of_time(limit: int | None) -> Iterator[Finding]:
    if limit is None:
        text = f"no time limit: an episode that does not end by itself stops the run at {MAX_EPISODE_STEPS:,} steps"
        yield Finding("warning", text, "env.max_episode_steps=1000")
    else:
        yield Finding("ok", f"an episode ends after {limit:,} steps at the latest")


def _of_repeating(config: EnvConfig, repeats: Repeats) -> Iterator[Finding]:
    if not repeats.deterministic:
        yield Finding(
            "warning",
            "the same seed and actions do not give the same episode, even on fresh instances: no run repeats itself, "
            "and a resumed one is not exact",
        )
    elif not repeats.remembers:
        yield Finding("ok", "the same seed and actions give the same episode to the bit, fresh instance or used")
    elif rebuilds(config):
        yield Finding("ok", "a used instance remembers past episodes, so each episode is given a fresh one")
    else:
        text = "a used instance remembers past episodes: a resumed run would not be exact"
        yield Finding("warning", text, "env.rebuild=true")
    if repeats.starts_differ:
        yield Finding("ok", "seeds differ in where episodes start")
    elif repeats.episodes_differ:
        yield Finding("ok", "every episode starts alike; seeds differ in what follows")
    else:
        yield Finding(
            "note", "the seed changes nothing: every episode starts alike and answers alike to the same actions"
        )


def _of_numbers(
    config: Config, learner: Learner, layout: Layout, action_space: spaces.Space[Any], repeats: Repeats
) -> Iterator[Finding]:
    if repeats.largest_obs > LARGE and not config.policy.normalize_obs:
        text = f"observations reach {repeats.largest_obs:.4g}, and a network learns best from numbers around 1"
        yield Finding("note", text, "policy.normalize_obs=true")
    if any(map(is_image, layout.leaves)) and not len(learner.policy.images):
        text = "an image is read number by number: the policy has no convolutions"
        yield Finding("warning", text, "policy.image_network=auto")
    if config.has_value and repeats.largest_reward > LARGE_REWARD and not config.value.normalize_returns:
        text = f"rewards reach {repeats.largest_reward:.4g}, and so do the errors of the value function"
        yield Finding("note", text, "value.normalize_returns=true")
    if isinstance(action_space, spaces.Box) and config.policy.distribution != "tanh_gaussian":
        yield from _of_actions(action_space, config.policy.initial_standard_deviation)


def _of_actions(space: spaces.Box, deviation: float) -> Iterator[Finding]:
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = space.low[bounded].astype(float), space.high[bounded].astype(float)
    half, centre = (high - low) / 2, (high + low) / 2
    far = (half > 4 * deviation) | (half < deviation / 4) | (np.abs(centre) > half)
    if far.any():
        yield Finding(
            "warning",
            f"actions between {low[far][0]:g} and {high[far][0]:g}, and the gaussian starts at 0 with a standard "
            f"deviation of {deviation:g}: most of what it draws is cut off, or all of it is alike",
            "env.wrappers=[{name: RescaleAction, kwargs: {min_action: -1, max_action: 1}}]",
        )


def _of_cost(config: Config, estimate: dict[str, Any]) -> Iterator[Finding]:
    if not estimate["measured_whole"]:
        text = f"an iteration collects for longer than {COLLECTING_SECONDS:g} s: reckoned from a part of one"
        yield Finding("note", text)
    share = estimate["evaluate_seconds"] / max(estimate["run_seconds"], 1e-9)
    if share > 0.5 and config.evaluation.every:
        key = f"evaluation.every={10 * config.evaluation.every}"
        yield Finding("note", f"evaluation takes {100 * share:.0f} % of the time", key)


# -------------------------------------------------------------------------------------------------------- for readers


def _described(name: str, space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a space without its numbers but the extreme ones; null where there is no bound."""
    known: dict[str, Any] = {"name": name, "kind": type(space).__name__, "shape": list(space.shape or ())}
    match space:
        case spaces.Box():
            low = min(map(float, space.low.flat), default=math.inf)
            high = max(map(float, space.high.flat), default=math.inf)
            known["low"], known["high"] = (x if math.isfinite(x) else None for x in (low, high))
        case spaces.Discrete():
            known["n"], known["start"] = int(space.n), int(space.start)
        case spaces.MultiDiscrete():
            known["n"] = space.nvec.tolist()
    return known | {"dtype": str(space.dtype)}


def table(result: dict[str, Any]) -> str:
    """Write a diagnosis for people, in 80 columns."""
    value, threshold, limit = result["value_parameters"], result["reward_threshold"], result["time_limit"]
    parts = " · ".join(f"{name} {size:,}" for name, size in result["policy_parts"].items())
    steps, minibatch = result["steps_per_iteration"], result["minibatch_steps"]
    batch = "unknown" if steps is None else f"{steps:,} steps"
    batch += f" of {result['episodes_per_iteration']:,} episodes" if result["episodes_per_iteration"] else ""
    how = "in their own vector form" if result["vectorization"] == "native" else "one by one"
    evaluating, written = _seconds(result["evaluate_seconds"]), _bytes(result["run_bytes"])
    rows = [
        *(("observes", _line(leaf)) for leaf in result["observation"]),
        ("acts", _line(result["action"]) + (", with a mask" if result["action_mask"] else "")),
        ("episodes", "no time limit" if limit is None else f"at most {limit:,} steps"),
        ("solved at", "not registered" if threshold is None else f"a return of {threshold:g}"),
        ("steps", f"{result['num_envs']:,} environments {how}; one: {result['env_steps_per_second']:,.0f} steps/s"),
        ("policy", f"{result['policy_parameters']:,} parameters: {parts}"),
        ("value", "none" if value is None else f"{value:,} parameters"),
        ("iteration", f"{batch}; {_optimizer(result['optimizer_steps_per_iteration'], minibatch)}"),
        ("", f"collect {_seconds(result['collect_seconds'])} · update {_seconds(result['update_seconds'])}"),
        ("run", f"{result['iterations']:,} iterations: about {_seconds(result['run_seconds'])} at this one's pace,"),
        ("", f"{evaluating} of it evaluation; about {written} on disk"),
    ]
    lines = [result["env"]]
    for name, text in rows:
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)
    for finding in result["findings"]:
        lines += textwrap.wrap(
            finding["text"], WIDTH, initial_indent=f"{finding['level']:<9}", subsequent_indent=" " * 9
        )
        if finding["key"]:
            lines.append(f"  {finding['key']}")
    return "\n".join(lines)


def _line(space: dict[str, Any]) -> str:
    """Write a space in one line."""
    name, shape = space["name"].removeprefix("observation"), tuple(space["shape"])
    size = f"{space['n']}" if "n" in space else f"{shape}"
    start = f" from {space['start']}" if space.get("start") else ""
    low, high = space.get("low"), space.get("high")
    bounds = (
        ""
        if "low" not in space
        else f", {'-∞' if low is None else f'{low:g}'} to {'∞' if high is None else f'{high:g}'}"
    )
    return f"{f'{name} ' if name not in ('', 'action') else ''}{space['kind']} {size}{start} {space['dtype']}{bounds}"


def _optimizer(steps: int, minibatch: int | None) -> str:
    """Write what an update does."""
    return f"{steps:,} optimizer step{'s' if steps > 1 else ''}" + ("" if minibatch is None else f" of {minibatch:,}")


def _seconds(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
