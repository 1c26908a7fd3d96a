"""Evaluate an agent, for `pgcli eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pgcli.config import Config, flat, override, to_data
from pgcli.config.choices import Mode
from pgcli.config.schema import EvaluationEnvConfig
from pgcli.environments.checks import check_evaluation
from pgcli.errors import UsageError, counted
from pgcli.experiment.load import Agent, load
from pgcli.report.text import short, table
from pgcli.runs.outputs import check_output
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.process_pool import ProcessPool
from pgcli.seeding import Purpose
from pgcli.training.evaluation import evaluate, info_means, sample

CHANGEABLE = ("env.wrappers", "env.kwargs", "env.max_episode_steps")


def with_environment(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of the config with another evaluation environment.

    Args: overrides: `KEY=VALUE` for the keys in CHANGEABLE.
    Raises: UsageError for another key; ConfigError.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if not (key in CHANGEABLE or key.startswith("env.kwargs.")):
            raise UsageError(
                f"{text}: `pgcli eval` can override only {', '.join(CHANGEABLE)}",
                "for other settings, see the options in `pgcli eval --help`",
            )
    evaluation = config.evaluation.model_copy(update={"env": EvaluationEnvConfig()})
    copy = config.model_copy(update={"env": config.evaluation_env, "evaluation": evaluation})
    return override(copy, overrides)


def evaluate_checkpoint(
    checkpoint: Path,
    overrides: Sequence[str] = (),
    *,
    which: str = "latest",
    episodes: int = 100,
    mode: Mode = "sampled",
    gamma: float = 1.0,
    horizon: int | None = None,
    seed: int = 0,
    workers: int = 0,
    video: Path | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Load and evaluate a checkpoint or a run; return the object of `pgcli eval --json`.

    Raises: CheckpointError, UsageError, EnvironmentFailure, RunDirectoryError.
    """
    if video is not None:
        check_output(video, inputs=[checkpoint], overwrite=overwrite)
    film_path = video and video.absolute()  # the environment may change the current folder
    agent = load(checkpoint, which, trust=trust)
    result = assess(agent, episodes, mode, gamma, horizon, seed, workers, film_path, overrides)
    return result | ({"video": str(video)} if "video" in result else {})  # as the user wrote it


def assess(
    agent: Agent,
    episodes: int,
    mode: Mode,
    gamma: float,
    horizon: int | None,
    seed: int,
    workers: int = 0,
    video: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate an agent on new episodes and film another one.

    Return the object of `pgcli eval --json`.

    Returns are discounted by `gamma`, in reward units; the spread of one episode is None. The number of worker
    processes does not affect the result; with 0, the main process plays. `overrides` change the environment.
    Raises: UsageError, EnvironmentFailure.
    """
    changed, training = dict[str, Any](), agent.config.env
    if overrides:
        before = flat(to_data(with_environment(agent.config, ()))["env"], "env")
        agent.config = with_environment(agent.config, overrides)
        after = flat(to_data(agent.config)["env"], "env")
        changed = {key: after.get(key) for key in {**before, **after} if before.get(key) != after.get(key)}
    check_evaluation(agent.config.evaluation_env, training)
    env, policy = agent.config.evaluation_env, agent.config.policy
    pool = ProcessPool(env, policy, workers) if workers else None
    with closing(ChunkExecutor(EnvironmentCache(env), pool)) as executor:
        purposes = (Purpose.TEST_RESET, Purpose.TEST_ACT)
        names = agent.config.info_names
        played = evaluate(agent.policy, executor, episodes, mode, gamma, horizon, seed, purposes, names=names)
    returns = sample(played.discounted_returns)
    result = {
        "mean_return": returns.mean,
        "standard_error": returns.standard_error,
        "standard_deviation": returns.standard_deviation,
        "median": returns.median,
        "min": returns.min,
        "max": returns.max,
        "mean_length": float(played.lengths.mean()),
        "episodes": episodes,
        "mode": mode,
        "gamma": gamma,
        "horizon": horizon,
        "seed": seed,
        "checkpoint": str(agent.path),
        "iteration": agent.counters["iteration"],
        "env_steps": agent.counters["env_steps"],
        "env": agent.config.env.id,
        "changed": changed,
        "info": info_means(played.info),
    }
    if video is not None:
        from pgcli.report.video import film

        episode = film(agent, video, mode, seed, horizon)
        result |= {"video": str(video), "video_return": episode.episode_return, "video_length": episode.length}
    return result


def evaluation_text(result: dict[str, Any]) -> str:
    """Return an evaluation as text."""
    spread = "" if result["standard_error"] is None else f" ± {result['standard_error']:.2f}"
    deviation = result["standard_deviation"]
    discount = "undiscounted" if result["gamma"] == 1 else f"discounted by {result['gamma']:g}"
    limit = "default time limit" if result["horizon"] is None else f"cut at {counted(result['horizon'], 'step')}"
    rows = [
        ("return", f"{result['mean_return']:.2f}{spread}  (mean{' ± standard error' if spread else ''})"),
        ("spread", "none: one episode" if deviation is None else f"standard deviation {deviation:.2f}"),
        ("median", f"{result['median']:.2f}, from {result['min']:.2f} to {result['max']:.2f}"),
        ("length", f"{result['mean_length']:.1f} steps"),
        ("episodes", f"{result['episodes']}, {result['mode']}, {discount}, {limit}, seed {result['seed']}"),
        ("policy", f"{result['iteration']} updates, {result['env_steps']:,} env steps"),
        ("from", result["checkpoint"]),
    ]
    if result["info"]:
        rows.insert(4, ("reported", ", ".join(f"{name} {short(value)}" for name, value in result["info"].items())))
    if result["changed"]:
        changed = ", ".join(
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in result["changed"].items()
        )
        rows.insert(0, ("changed", f"{changed} (differs from the config)"))
    if "video" in result:
        shown = f"return {result['video_return']:.2f} in {counted(result['video_length'], 'step')}"
        rows.append(("video", f"{result['video']}: another episode, {shown}"))
    return "\n".join([result["env"], *table(rows, 12, indent=2, width=None)])
