"""What `pgcli eval` reports."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from pgcli.config.choices import Mode
from pgcli.experiment.load import Agent
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.process_pool import ProcessPool
from pgcli.seeding import Purpose
from pgcli.training.evaluation import evaluate, sample


def assess(
    agent: Agent, episodes: int, mode: Mode, gamma: float, horizon: int | None, seed: int, workers: int = 0
) -> dict[str, Any]:
    """Measure an agent on `episodes` fresh episodes: the object that `pgcli eval --json` prints.

    Returns are discounted by `gamma`, in reward units; the spread of one episode is None. The number of worker
    processes that play has no effect on the result; 0 is this one.
    """
    env, policy = agent.config.env, agent.config.policy
    pool = ProcessPool(env, policy, workers) if workers else None
    with closing(ChunkExecutor(EnvironmentCache(env), pool)) as executor:
        purposes = (Purpose.TEST_RESET, Purpose.TEST_ACT)
        played = evaluate(agent.policy, executor, episodes, mode, gamma, horizon, seed, purposes)
    returns = sample(played.discounted_returns)
    return {
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
    }


def table(result: dict[str, Any]) -> str:
    """Write an assessment for people."""
    spread = "" if result["standard_error"] is None else f" ± {result['standard_error']:.2f}"
    deviation = result["standard_deviation"]
    discount = "undiscounted" if result["gamma"] == 1 else f"discounted by {result['gamma']:g}"
    limit = "own time limit" if result["horizon"] is None else f"cut at {result['horizon']} steps"
    rows = [
        ("return", f"{result['mean_return']:.2f}{spread}  (mean{' ± standard error' if spread else ''})"),
        ("spread", "one episode has none" if deviation is None else f"standard deviation {deviation:.2f}"),
        ("median", f"{result['median']:.2f}, from {result['min']:.2f} to {result['max']:.2f}"),
        ("length", f"{result['mean_length']:.1f} steps"),
        ("episodes", f"{result['episodes']}, {result['mode']}, {discount}, {limit}, seed {result['seed']}"),
        ("policy", f"{result['iteration']} updates, {result['env_steps']:,} env steps"),
        ("from", result["checkpoint"]),
    ]
    if "video" in result:
        shown = f"return {result['video_return']:.2f} in {result['video_length']} steps"
        rows.append(("video", f"{result['video']}: one more, {shown}"))
    return "\n".join([result["env"], *(f"  {name:<9} {text}" for name, text in rows)])
