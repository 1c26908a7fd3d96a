"""Speed as ratios, both sides measured in turn in one run: `make bench`, or `bench.py startup solved throughput parts`.

Times are medians; what is compared alternates, so that a slow minute of the machine slows both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from pgcli.agent import PolicyGradient
from pgcli.config.schema import Config
from pgcli.randomness import Purpose, derived_seed
from pgcli.records import Iteration
from pgcli.sampling.rollout import Chunks, collect_episodes
from pgcli.sampling.samplers import make_sampler
from pgcli.training import Counters, train

PYTHON = sys.executable
A2C_STEPS = 24_000
IMPORT_TORCH = [PYTHON, "-c", "import torch"]


def seconds(action: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(repetitions: int, *actions: Callable[[], object]) -> list[float]:
    """Time the actions in turn; give the median of each."""
    times = [[seconds(action) for action in actions] for _ in range(repetitions)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def command(*words: str) -> Callable[[], object]:
    """Make a process of a command line, whatever its exit code."""
    return lambda: subprocess.run(words, capture_output=True, check=False)


def row(what: str, value: float, goal: str, detail: str) -> None:
    """Print one row of the table."""
    print(f"| {what} | {value:.2f} | {goal} | {detail} |", flush=True)


def startup() -> None:
    """Compare light commands with `import torch`."""
    cases = {
        "`pgcli --help`": ["--help"],
        "`pgcli --version`": ["--version"],
        "a config error": ["train", "cartpole", "algorithm.gama=1"],
    }
    commands = [command(PYTHON, "-m", "pgcli", *words) for words in cases.values()]
    torch_time, *times = alternate(9, command(*IMPORT_TORCH), *commands)
    for name, one in zip(cases, times, strict=True):
        row(f"{name} ÷ `import torch`", one / torch_time, "≤ 0.25", f"{one:.2f} s, {torch_time:.2f} s")


def solved(seeds: Sequence[int] = range(10)) -> None:
    """Time `pgcli train cartpole` from process start to the end, and hold each result against fresh episodes."""
    torch_times, times, returns = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            run = f"{folder}/seed-{seed}"
            torch_times.append(seconds(command(*IMPORT_TORCH)))
            times.append(
                seconds(command(PYTHON, "-m", "pgcli", "train", "cartpole", f"seed={seed}", "--run-dir", run, "-q"))
            )
            shown = subprocess.run([PYTHON, "-m", "pgcli", "eval", run, "--json"], capture_output=True, check=True)
            returns.append(json.loads(shown.stdout)["mean_return"])
    ours, theirs = statistics.median(times), statistics.median(torch_times)
    row(
        "process start to CartPole solved ÷ `import torch`",
        ours / theirs,
        "≤ 2.0",
        f"{ours:.2f} s (from {min(times):.2f} to {max(times):.2f}), {theirs:.2f} s; "
        f"{sum(value >= 475 for value in returns)} of {len(returns)} seeds ≥ 475 on 100 fresh sampled episodes, "
        f"lowest {min(returns):.0f}",
    )


def cartpole() -> Config:
    """Give REINFORCE with 64 environments and a 64 × 64 tanh network."""
    return Config.model_validate(
        {
            "optimizer": {"learning_rate": 0.01},
            "evaluation": {"every": None, "episodes": 1},
            "training": {"iterations": 40},
        }
    )


def throughput() -> None:
    """Compare rollout + update of REINFORCE with Stable-Baselines3's A2C, both from scratch, one thread."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    rates: list[list[float]] = []
    for repetition in range(5):
        a2c = A2C("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=repetition), device="cpu", seed=repetition)
        begin = time.perf_counter()
        a2c.learn(A2C_STEPS)
        a2c_rate = A2C_STEPS / (time.perf_counter() - begin)
        config = cartpole().model_copy(update={"seed": repetition})
        chunks = Chunks(config.env)
        envs = chunks.environments(64)
        agent = PolicyGradient(envs.observation_space, envs.action_space, config)
        records = [
            r
            for r in train(config, agent, chunks, make_sampler(config, chunks), Counters())
            if isinstance(r, Iteration)
        ]
        spent = sum(record.timing.collect + record.timing.update for record in records)
        rates.append([a2c_rate, records[-1].env_steps / spent])
    theirs, ours = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(one / other for other, one in rates)
    row("REINFORCE env steps/s ÷ SB3 A2C's", ratio, "≥ 20", f"{ours:,.0f}, {theirs:,.0f}")


def parts() -> None:
    """Compare one iteration with the sum of its parts measured alone: environment, forward passes, update."""
    torch.set_num_threads(1)
    config = cartpole()
    chunks = Chunks(config.env)
    envs = chunks.environments(64)
    agent = PolicyGradient(envs.observation_space, envs.action_space, config)
    for _ in train(config, agent, chunks, make_sampler(config, chunks), Counters()):
        pass
    trajectories = collect_episodes(config, chunks, agent.policy, 0, lambda: None)
    steps, actions, obs = len(trajectories.mask), trajectories.actions.numpy(), trajectories.obs.numpy()
    seeds = [derived_seed(config.seed, Purpose.RESET, 0, column) for column in range(64)]
    running, noise, actor = np.ones(64, bool), np.random.default_rng(0).random(64), agent.policy.actor("sampled")
    state = {key: value.clone() for key, value in agent.state_dict().items()}

    def environment() -> None:
        envs.reset(seeds)
        for t in range(steps):
            envs.step(actions[t], running)

    def forward() -> None:
        for t in range(steps):
            actor.act(obs[t], noise)

    def update() -> None:
        agent.update(trajectories)

    def iteration() -> None:
        agent.load_state_dict(state)  # the same rollout every time
        agent.update(collect_episodes(config, chunks, agent.policy, 0, lambda: None))

    whole, *alone = alternate(21, iteration, environment, forward, update)
    detail = ", ".join(
        f"{name} {1000 * part:.0f} ms"
        for name, part in zip(("iteration", "environment", "forward", "update"), (whole, *alone), strict=True)
    )
    row("one iteration ÷ its parts alone", whole / sum(alone), "≤ 1.25", detail)


SECTIONS = {"startup": startup, "parts": parts, "throughput": throughput, "solved": solved}

if __name__ == "__main__":
    print("| what | ratio | goal | medians |\n|---|---|---|---|")
    for name in sys.argv[1:] or SECTIONS:
        SECTIONS[name]()
