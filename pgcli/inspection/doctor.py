"""`pgcli doctor`: test a config and its environment before a long run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.learner import Learner
from pgcli.config.schema import DEFAULT_ITERATIONS, Config, EnvConfig
from pgcli.environments.checks import MAX_EPISODE_STEPS, StartCheck, check_environment, check_evaluation
from pgcli.environments.failures import describe, is_user_error
from pgcli.environments.masks import MaskColumns, draw
from pgcli.environments.outputs import Step
from pgcli.environments.registry import reward_threshold, spec
from pgcli.environments.single import SingleEnvironments, make_environment, uses_fresh_instances
from pgcli.environments.vector.native_trial import vector_form_notice
from pgcli.errors import EnvironmentFailure, counted
from pgcli.experiment.build import build_learner, columns_of, environments_of
from pgcli.policies.observations import ImagePart, Layout
from pgcli.report.text import Finding, percent, table
from pgcli.runs.tables import check_info_names
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.sampler import make_sampler
from pgcli.system.process_state import require

Array = NDArray[Any]
LONGEST_EPISODE = 200  # steps of episodes in the repeatability test
TRIALS = 8  # half of them suffice to find that BipedalWalker remembers
REPEATING_SECONDS, SPEED_SECONDS, COLLECTING_SECONDS = 3.0, 0.5, 4.0  # time limits of the measurements
LARGE = 10.0  # larger observations saturate tanh
LARGE_REWARD = 100.0
BYTES_PER_ITERATION, BYTES_PER_EPISODE, BYTES_PER_EVALUATION = 500, 70, 250  # rows of the tables, measured


class PlayedEpisode(NamedTuple):
    """An episode of a single column: packed first observation [1, …], actions, results."""

    start: Array
    actions: list[Array]
    steps: list[Step]

    def outputs(self) -> list[bytes]:
        """Return all outputs of the environment, to compare episodes bit for bit."""
        return [self.start.tobytes(), *(x.tobytes() for step in self.steps for x in step)]


@dataclass(frozen=True)
class Repeatability:
    """Results of playing the same episodes again."""

    deterministic: bool  # in fresh instances
    remembers: bool  # a used instance differs from a fresh one
    starts_differ: bool  # between seeds
    episodes_differ: bool  # between seeds, with the same actions
    largest_obs: float
    vanishes: bool  # an observation varies too little around a large offset for float32
    largest_reward: float
    length_mean: float  # of random episodes of at most LONGEST_EPISODE steps


@dataclass(frozen=True)
class IterationCost:
    """The measured cost of one iteration, or of the part collected within the time limit."""

    steps: int  # collected
    episodes: int  # ended
    collect: float  # seconds
    update: float  # seconds
    sampler_bytes: int  # in a checkpoint
    whole: bool = True


class _CollectionTimeout(Exception):
    """Collecting an iteration takes longer than COLLECTING_SECONDS."""


def diagnose(config: Config) -> dict[str, Any]:
    """Measure a config and its environment.

    Return the object that `pgcli doctor --json` prints. Writes nothing.

    Raises: EnvironmentFailure, UsageError.
    """
    checked, evaluated = check_environment(config.env), check_evaluation(config.evaluation_env, config.env)
    check_info_names(config)
    require("torch's threads", config.training.threads)
    with closing(make_environment(config.env)) as env:
        layout, action_space = Layout(env.observation_space), env.action_space
    with closing(ChunkExecutor(EnvironmentCache(environments_of(config)))) as executor:
        learner = build_learner(config, executor.environments)
        widest = len(chunk_ranges(config.env, columns_of(config))[0])
        form = executor.environments.of_width(widest).form
        repeats = _measure_repeatability(config.env)
        steps_per_second, reuses_buffer = _measure_speed(config.env)
        cost = _measure_iteration(config, executor, learner)
    sizes = {name: sum(x.numel() for x in child.parameters()) for name, child in learner.policy.named_children()}
    estimate = _estimate_run(config, learner, cost, repeats.length_mean)
    findings = [
        *(Finding("note", warning) for warning in checked.warnings),
        *_environment_findings(config, checked.time_limit, evaluated),
        *_repeatability_findings(config.env, repeats),
        *_scale_findings(config, learner, layout, action_space, repeats),
        *_cost_findings(config, estimate),
    ]
    if reuses_buffer:
        findings.append(Finding("ok", "the environment reuses its observation buffer; pgcli copies each observation"))
    return {
        "env": config.env.id,
        "observation": [_describe_space(leaf.name, leaf.space) for leaf in layout.leaves],
        "action": _describe_space("action", action_space),
        "action_mask": learner.policy.masked,
        "time_limit": checked.time_limit,
        "reward_threshold": reward_threshold(config.evaluation_env),
        "registered_threshold": spec(config.env).reward_threshold,
        "vectorization": form,
        "num_envs": config.env.num_envs,
        "rebuild": uses_fresh_instances(config.env),
        "policy_parameters": sum(sizes.values()),
        "policy_parts": {name: size for name, size in sizes.items() if size},
        "value_parameters": sum(x.numel() for x in learner.agent.value.parameters()) if learner.agent.value else None,
        **{name: getattr(repeats, name) for name in ("deterministic", "remembers", "starts_differ")},
        "env_steps_per_second": steps_per_second,
        **estimate,
        "findings": [finding.select("level", "text", "key") for finding in findings],
    }


# ------------------------------------------------------------------------------------------------------- measurements


def _measure_repeatability(config: EnvConfig) -> Repeatability:
    """Play the same episodes in new instances and in a used instance."""
    once = config.model_copy(update={"rebuild": False, "vectorization": "sync"})
    deterministic, remembers, episodes = True, False, list[PlayedEpisode]()
    stop = time.perf_counter() + REPEATING_SECONDS
    with closing(SingleEnvironments(once, 1)) as used:
        for seed in range(1, TRIALS + 1):
            with closing(SingleEnvironments(once, 1)) as fresh:
                episodes.append(first := _play(fresh, seed))
            remembers = remembers or _play(used, seed, first.actions).outputs() != first.outputs()
            if seed == 1:
                with closing(SingleEnvironments(once, 1)) as fresh:
                    deterministic = _play(fresh, seed, first.actions).outputs() == first.outputs()
            if remembers or not deterministic or (time.perf_counter() > stop and seed > 1):
                break
        other = _play(used, TRIALS + 1, episodes[0].actions)
    starts = {one.start.tobytes() for one in (*episodes, other)}
    obs = [np.stack([one.start, *(step.obs for step in one.steps)]).reshape(len(one.steps) + 1, -1) for one in episodes]
    real = [  # the numbers that a policy reads unchanged
        leaf
        for leaf in used.layout.leaves
        if isinstance(leaf.space, spaces.Box) and leaf.dtype != np.uint8 and ImagePart.of(leaf) is None and leaf.size
    ]
    numbers = [leaf.unpack(rows).astype(np.float64) for rows in obs for leaf in real]
    return Repeatability(
        deterministic,
        remembers and deterministic,
        len(starts) > 1,
        len(starts) > 1 or other.outputs() != episodes[0].outputs(),
        max((float(np.abs(rows).max()) for rows in numbers), default=0.0),
        any(map(_vanishes_in_float32, numbers)),
        max((abs(float(step.rewards[0])) for one in episodes for step in one.steps), default=0.0),
        float(np.mean([len(one.steps) for one in episodes])),
    )


def _vanishes_in_float32(numbers: Array) -> bool:
    """Return whether float32 changes a column [N, size] by a tenth of its standard deviation."""
    spread, error = numbers.std(0), np.abs(numbers.astype(np.float32) - numbers).max(0)
    return bool(((spread > 0) & (error > spread / 10)).any())


def _play(envs: SingleEnvironments, seed: int, actions: list[Array] | None = None) -> PlayedEpisode:
    """Play an episode with the given actions, or with random actions."""
    random, masks = np.random.default_rng(seed), MaskColumns(envs.layout, envs.action_space)
    obs = envs.reset([seed])
    episode = PlayedEpisode(obs, [], [])
    for t in range(LONGEST_EPISODE if actions is None else len(actions)):
        if actions is None:
            mask = masks.of(obs)
            action = draw(envs.action_space, None if mask is None else mask[0], random)[None]
        else:
            action = actions[t]
        step = envs.step(action, np.ones(1, bool))
        episode.actions.append(action)
        episode.steps.append(step)
        if step.terminated[0] or step.truncated[0]:
            break
        obs = step.obs
    return episode


def _measure_speed(config: EnvConfig) -> tuple[float, bool]:
    """Return steps per second with random actions, and whether observations share a buffer."""
    random, steps, seconds, reuses_buffer = np.random.default_rng(0), 0, 0.0, False
    try:
        with closing(make_environment(config)) as env:
            layout = Layout(env.observation_space)
            columns = MaskColumns(layout, env.action_space)
            obs, _ = env.reset(seed=0)
            stop = time.perf_counter() + SPEED_SECONDS
            while time.perf_counter() < stop:
                mask = columns.of(layout.pack(obs)[None])
                action = draw(env.action_space, None if mask is None else mask[0], random)
                begin = time.perf_counter()
                next_obs, _, terminated, truncated, _ = env.step(action)
                seconds += time.perf_counter() - begin
                reuses_buffer = reuses_buffer or any(
                    isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.may_share_memory(one, other)
                    for one, other in ((leaf.of(obs), leaf.of(next_obs)) for leaf in layout.leaves)
                )
                steps, obs = steps + 1, next_obs
                if terminated or truncated:
                    obs, _ = env.reset(seed=steps)
    except BaseException as error:
        if not is_user_error(error):
            raise
        raise EnvironmentFailure(f"{config.id} raised {describe(error)}") from error
    return steps / max(seconds, 1e-9), reuses_buffer


def _measure_iteration(config: Config, executor: ChunkExecutor, learner: Learner) -> IterationCost:
    """Collect and update once; use fewer steps if collecting takes too long."""
    begin, rows = time.perf_counter(), 0

    def check() -> None:
        nonlocal rows
        if time.perf_counter() - begin > COLLECTING_SECONDS:
            raise _CollectionTimeout
        rows += 1

    try:
        return _collect_and_update(config, executor, learner, check)
    except _CollectionTimeout:
        fewer = {"steps" if config.rollout.steps else "horizon": max(rows // 2, 1)}
        part = config.model_copy(update={"rollout": config.rollout.model_copy(update=fewer)})
        return replace(_collect_and_update(part, executor, learner, lambda: None), whole=False)


def _collect_and_update(
    config: Config, executor: ChunkExecutor, learner: Learner, check: Callable[[], None]
) -> IterationCost:
    sampler = make_sampler(config, executor)
    begin = time.perf_counter()
    trajectories, episodes = sampler.collect(learner.policy, 0, check)
    collected = time.perf_counter()
    if config.training.compile:
        learner.update(trajectories, 0)  # the first update of a run compiles
    begin_update = time.perf_counter()
    learner.update(trajectories, 0)
    update = time.perf_counter() - begin_update
    kept = _bytes_of(sampler.state_dict(1))
    return IterationCost(trajectories.num_steps, len(episodes), collected - begin, update, kept)


def _estimate_run(config: Config, learner: Learner, cost: IterationCost, random_length: float) -> dict[str, Any]:
    """Estimate the time and disk space of the run from one iteration."""
    rollout, algorithm, budget = config.rollout, config.algorithm, config.training
    length = cost.steps / cost.episodes if cost.episodes and cost.whole and not rollout.steps else random_length
    planned = rollout.steps * config.env.num_envs if rollout.steps else (rollout.episodes or 1) * length
    steps = round(cost.steps if cost.whole else planned)
    per_step, updating = cost.collect / max(cost.steps, 1), cost.update * steps / max(cost.steps, 1)
    seconds = per_step * steps + updating
    budgets = ((budget.iterations, 1), (budget.env_steps, max(steps, 1)), (budget.seconds, max(seconds, 1e-9)))
    iterations = min((math.ceil(total / each) for total, each in budgets if total), default=DEFAULT_ITERATIONS)
    every = config.evaluation.every
    evaluations = 2 + (iterations - 1) // every if every else 2
    evaluating = evaluations * config.evaluation.episodes * length * per_step
    checkpoint = _bytes_of(learner.state_dict()) + cost.sampler_bytes + 10_000
    rows = BYTES_PER_ITERATION + BYTES_PER_EPISODE * (rollout.episodes or steps / max(length, 1))
    written = (config.checkpoint.keep + 2) * checkpoint + iterations * rows + evaluations * BYTES_PER_EVALUATION
    known = cost.whole or rollout.steps
    return {
        "iterations": iterations,
        "steps_per_iteration": steps if known else None,
        "episodes_per_iteration": rollout.episodes,
        "minibatch_steps": steps * algorithm.reuse // algorithm.num_minibatches if known else None,
        "optimizer_steps_per_iteration": algorithm.update_epochs * algorithm.num_minibatches,
        "collect_seconds": per_step * steps,
        "update_seconds": updating,
        "measured_whole": cost.whole,
        "evaluate_seconds": evaluating,
        "run_seconds": iterations * seconds + evaluating,
        "run_bytes": int(written),
    }


def _bytes_of(tensors: dict[str, torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors.values())


# ----------------------------------------------------------------------------------------------------------- findings


def _environment_findings(config: Config, limit: int | None, evaluated: StartCheck) -> Iterator[Finding]:
    """Report vector form, time limit, and the differences of the evaluation environment."""
    if notice := vector_form_notice(environments_of(config), resumable=config.rollout.steps is not None):
        yield Finding("note", notice)
    if limit is None:
        text = f"no time limit: the run fails if an episode lasts {MAX_EPISODE_STEPS:,} steps"
        yield Finding("warning", text, key="env.max_episode_steps=1000")
    else:
        yield Finding("ok", f"episodes last at most {limit:,} steps")
    keys = [f"evaluation.env.{name}" for name, value in config.evaluation.env if value is not None]
    if keys:
        own = "no time limit" if evaluated.time_limit is None else f"a time limit of {evaluated.time_limit:,} steps"
        yield Finding("ok", f"the evaluation environment differs ({', '.join(keys)}) and has {own}")
        yield from (Finding("note", f"evaluation: {warning}") for warning in evaluated.warnings)


def _repeatability_findings(config: EnvConfig, repeats: Repeatability) -> Iterator[Finding]:
    if not repeats.deterministic:
        yield Finding(
            "warning",
            "not deterministic: the same seed and actions give different episodes in new instances; runs are not "
            "reproducible, and resuming is not exact",
        )
    elif not repeats.remembers:
        yield Finding("ok", "deterministic: the same seed and actions give the same episode, in new and used instances")
    elif uses_fresh_instances(config):
        yield Finding("ok", "instances carry state over from past episodes, so pgcli builds a new one for each episode")
    else:
        text = "instances carry state over from past episodes: resuming would not be exact"
        yield Finding("warning", text, key="env.rebuild=true")
    if repeats.starts_differ:
        yield Finding("ok", "start states differ between seeds")
    elif repeats.episodes_differ:
        yield Finding("ok", "all episodes start in the same state; transitions differ between seeds")
    else:
        yield Finding("note", "the seed has no effect: the same actions always give the same episode")


def _scale_findings(
    config: Config, learner: Learner, layout: Layout, action_space: spaces.Space[Any], repeats: Repeatability
) -> Iterator[Finding]:
    if repeats.largest_obs > LARGE and not config.policy.normalize_obs:
        text = f"observations reach {repeats.largest_obs:.4g}; networks learn best from inputs around 1"
        yield Finding("note", text, key="policy.normalize_obs=true")
    if repeats.vanishes and not config.policy.normalize_obs:
        text = "an observation varies too little around a large offset for float32 precision"
        yield Finding("warning", text, key="policy.normalize_obs=true")
    if any(map(ImagePart.of, layout.leaves)) and not len(learner.policy.images):
        text = "the policy has no convolutions and flattens images"
        yield Finding("warning", text, key="policy.image_network=auto")
    if config.has_value and repeats.largest_reward > LARGE_REWARD and not config.value.normalize_returns:
        text = f"rewards reach {repeats.largest_reward:.4g}, which makes the value loss large"
        yield Finding("note", text, key="value.normalize_returns=true")
    if isinstance(action_space, spaces.Box) and config.policy.distribution != "tanh_gaussian":
        yield from _action_findings(action_space, config.policy.initial_standard_deviation)


def _action_findings(space: spaces.Box, deviation: float) -> Iterator[Finding]:
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = space.low[bounded].astype(float), space.high[bounded].astype(float)
    half, centre = (high - low) / 2, (high + low) / 2
    far = (half > 4 * deviation) | (half < deviation / 4) | (np.abs(centre) > half)
    if far.any():
        yield Finding(
            "warning",
            f"actions range from {low[far][0]:g} to {high[far][0]:g}, but the gaussian starts with mean 0 and standard "
            f"deviation {deviation:g}: most samples are clipped, or nearly equal",
            key="env.wrappers=[{name: RescaleAction, kwargs: {min_action: -1, max_action: 1}}]",
        )


def _cost_findings(config: Config, estimate: dict[str, Any]) -> Iterator[Finding]:
    if not estimate["measured_whole"]:
        text = f"an iteration takes longer than {COLLECTING_SECONDS:g} s to collect: times are extrapolated"
        yield Finding("note", text)
    share = estimate["evaluate_seconds"] / max(estimate["run_seconds"], 1e-9)
    if share > 0.5 and config.evaluation.every:
        key = f"evaluation.every={10 * config.evaluation.every}"
        yield Finding("note", f"evaluation takes {percent(share)} of the time", key=key)


# --------------------------------------------------------------------------------------------------------------- text


def _describe_space(name: str, space: spaces.Space[Any]) -> dict[str, Any]:
    """Return kind, shape, type and extreme bounds of a space; None for infinite bounds."""
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


def diagnosis_text(result: dict[str, Any]) -> str:
    """Return a diagnosis as text in 80 columns."""
    value, threshold, limit = result["value_parameters"], result["reward_threshold"], result["time_limit"]
    parts = " · ".join(f"{name} {size:,}" for name, size in result["policy_parts"].items())
    steps, optimizer, minibatch = (
        result["steps_per_iteration"],
        result["optimizer_steps_per_iteration"],
        result["minibatch_steps"],
    )
    batch = "unknown" if steps is None else counted(steps, "step")
    batch += f" of {result['episodes_per_iteration']:,} episodes" if result["episodes_per_iteration"] else ""
    updates = counted(optimizer, "optimizer step")
    updates += "" if minibatch is None else f" of {minibatch:,}"
    how = "in sequence" if result["vectorization"] == "sync" else "vectorized"
    evaluating, written = _seconds(result["evaluate_seconds"]), _bytes(result["run_bytes"])
    rows = [
        *(("observes", _line(leaf)) for leaf in result["observation"]),
        ("acts", _line(result["action"]) + (", with a mask" if result["action_mask"] else "")),
        ("episodes", "no time limit" if limit is None else f"at most {limit:,} steps"),
        ("solved at", _threshold(threshold, result["registered_threshold"])),
        ("steps", f"{result['num_envs']:,} environments {how}; one: {result['env_steps_per_second']:,.0f} steps/s"),
        ("policy", f"{result['policy_parameters']:,} parameters: {parts}"),
        ("value", "none" if value is None else f"{value:,} parameters"),
        ("iteration", f"{batch}; {updates}"),
        ("", f"collect {_seconds(result['collect_seconds'])} · update {_seconds(result['update_seconds'])}"),
        (
            "run",
            f"{counted(result['iterations'], 'iteration')}: about {_seconds(result['run_seconds'])} at this speed,",
        ),
        ("", f"including {evaluating} of evaluation; about {written} on disk"),
    ]
    lines = [result["env"], *table(rows, 13, indent=2)]
    for finding in result["findings"]:
        lines += table([(finding["level"], finding["text"])], 9)
        if finding["key"]:
            lines.append(f"  {finding['key']}")
    return "\n".join(lines)


def _threshold(threshold: float | None, registered: float | None) -> str:
    if threshold is not None:
        return f"a return of {threshold:g}"
    if registered is None:
        return "not registered"
    return f"no threshold: the registered {registered:g} does not apply to these wrappers, kwargs or time limit"


def _line(space: dict[str, Any]) -> str:
    """Describe a space in one line."""
    name, bounds = space["name"].removeprefix("observation"), ""
    if "low" in space:
        low, high = space["low"], space["high"]
        bounds = f", {'-∞' if low is None else f'{low:g}'} to {'∞' if high is None else f'{high:g}'}"
    label = f"{name} " if name not in ("", "action") else ""
    start = f" from {space['start']}" if space.get("start") else ""
    return f"{label}{space['kind']} {space.get('n', tuple(space['shape']))}{start} {space['dtype']}{bounds}"


def _seconds(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
