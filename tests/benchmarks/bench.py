"""Speed as ratios, measured alternately in one run: `make bench`, or `bench.py startup work …`.

Every side of a comparison is a process of its own with one thread for torch; sides alternate, so that a slow minute of
the machine slows both, and the result is the median of the ratios. `CLEANRL` and `CLEANRL_PYTHON` name a checkout of
CleanRL and a Python that it runs in (gymnasium 0.29.1, as it pins); without them, its rows are left out.
rejax is installed into `build/rejax`, outside pgcli's environment; where that fails, its rows are left out.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

PYTHON = sys.executable
IMPORT_TORCH = [PYTHON, "-c", "import torch"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
REPETITIONS = int(os.environ.get("REPETITIONS", "5"))
SECONDS = 6.0  # of rollout and update, measured on each side

PPO: dict[str, Any] = {"returns": "lambda_return", "baseline": "value", "objective": "clip", "standardize": "batch"}


def work(env: str, columns: int, steps: int | None, **sections: Any) -> dict[str, Any]:
    """Return a config as plain data: segments of `steps` rows, or one episode in each column."""
    rollout = {"episodes": columns} if steps is None else {"episodes": None, "steps": steps}
    return {"env": {"id": env, "num_envs": columns}, "rollout": rollout} | sections


# The peers' settings: SB3's defaults, the tuned ones of rl-baselines3-zoo, CleanRL's defaults at 64 x 128.
WORKS: dict[str, dict[str, Any]] = {
    "REINFORCE, CartPole, 64 environments": work("CartPole-v1", 64, None, optimizer={"learning_rate": 0.01}),
    "PPO, CartPole, 64 x 128, 4 epochs of 4": work(
        "CartPole-v1",
        64,
        128,
        algorithm=PPO | {"update_epochs": 4, "num_minibatches": 4, "entropy_coef": 0.01},
        value={"clip_range": 0.2},
        optimizer={"learning_rate": 0.00025, "max_grad_norm": 0.5},
    ),
    "PPO, CartPole, 8 x 32, 20 epochs": work(
        "CartPole-v1",
        8,
        32,
        algorithm=PPO | {"update_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8},
        optimizer={"max_grad_norm": 0.5},
    ),
    "PPO, LunarLander, 16 x 1024, 4 epochs of 256": work(
        "LunarLander-v3",
        16,
        1024,
        algorithm=PPO
        | {"update_epochs": 4, "num_minibatches": 256, "gamma": 0.999, "gae_lambda": 0.98, "entropy_coef": 0.01},
        optimizer={"learning_rate": 0.0003, "max_grad_norm": 0.5},
    ),
    "PPO, HalfCheetah, 1 x 2048, 10 epochs of 32": work(
        "HalfCheetah-v5",
        1,
        2048,
        algorithm=PPO | {"update_epochs": 10, "num_minibatches": 32},
        policy={"normalize_obs": True},
        value={"normalize_returns": True, "clip_range": 0.2},
        optimizer={"learning_rate": 0.0003, "max_grad_norm": 0.5},
    ),
    "REINFORCE with a value baseline, LunarLander, 32 environments": work(
        "LunarLander-v3", 32, None, algorithm={"returns": "reward_to_go", "baseline": "value"}
    ),
    "REINFORCE with a mean baseline, Acrobot, 64 environments": work(
        "Acrobot-v1", 64, None, algorithm={"baseline": "mean"}
    ),
    "PPO, Pendulum, 4 x 1024, 10 epochs of 64": work(
        "Pendulum-v1",
        4,
        1024,
        algorithm=PPO | {"update_epochs": 10, "num_minibatches": 64, "gamma": 0.9},
        optimizer={"learning_rate": 0.001, "max_grad_norm": 0.5},
    ),
}
SHORT = {name: number for number, name in enumerate(WORKS)}
REINFORCE, WIDE, ZOO, LANDER, CHEETAH, BASELINE, ACROBOT, PENDULUM = WORKS

# ------------------------------------------------------------------------------------- one side: a process of its own


def learner(
    number: int, workers: int, chunk_size: int | None = None, env_id: str | None = None
) -> tuple[Callable[[int], tuple[int, float, float]], Callable[[], None]]:
    """Build a function of iteration i, and a function that closes it.

    The first returns the env steps and the seconds of rollout and update.
    """
    import torch

    from pgcli.algorithm.learner import Learner, build_agent
    from pgcli.algorithm.parts import in_turn
    from pgcli.algorithm.second_process import SecondProcess
    from pgcli.config.schema import Config
    from pgcli.sampling.chunks import EnvironmentCache
    from pgcli.sampling.executor import ChunkExecutor
    from pgcli.sampling.process_pool import ProcessPool
    from pgcli.sampling.sampler import make_sampler

    torch.set_num_threads(1)
    data = dict(list(WORKS.values())[number])
    data["env"] = data["env"] | {"chunk_size": chunk_size} | ({"id": env_id} if env_id else {})
    config = Config.model_validate(data)
    pool = ProcessPool(config.env, config.policy, workers) if workers else None
    executor = ChunkExecutor(EnvironmentCache(config.env), pool)
    shown = executor.environments.of_width(1)
    agent = Learner(
        build_agent(shown.observation_space, shown.action_space, config), SecondProcess() if workers else in_turn
    )
    sampler = make_sampler(config, executor)

    def iterate(iteration: int) -> tuple[int, float, float]:
        begin = time.perf_counter()
        trajectories = sampler.collect(agent.policy, iteration, lambda: None).trajectories
        collected = time.perf_counter()
        agent.update(trajectories, iteration)
        return trajectories.num_steps, collected - begin, time.perf_counter() - collected

    as_a_run_does()
    return iterate, executor.close


def as_a_run_does() -> None:
    """Collect garbage, as `pgcli train` does before the first iteration."""
    from pgcli.system.processes import keep_freed_memory

    gc.freeze()
    keep_freed_memory()


def pgcli_side(number: int, workers: int, chunk_size: int | None = None) -> None:
    """Train; print env steps per second of rollout and update, and the peak of resident memory."""
    iterate, close = learner(number, workers, chunk_size)
    iterate(0)  # warms up
    steps, spent = 0, 0.0
    for iteration in itertools.count(1):
        count, *seconds_ = iterate(iteration)
        steps, spent = steps + count, spent + sum(seconds_)
        if spent > SECONDS:
            break
    tell(steps / spent)
    close()


def workers_side(env_id: str) -> None:
    """Train alternately with one worker and with two; print the seconds of each iteration."""
    sides = [learner(SHORT[BASELINE], workers, 8, env_id) for workers in (1, 2)]
    steps, spent = 0, [[0.0, 0.0], [0.0, 0.0]]
    for iteration in itertools.count():
        for place in (0, 1) if iteration % 2 else (1, 0):
            count, *seconds_ = sides[place][0](iteration)
            if iteration:  # the first one warms up
                spent[place] = [a + b for a, b in zip(spent[place], seconds_, strict=True)]
        steps += count if iteration else 0
        if sum(spent[0]) > SECONDS:
            break
    print(json.dumps({"steps": steps, "spent": spent}))
    for _, close in sides:
        close()


def sb3_side(number: int) -> None:
    """Train with Stable-Baselines3: A2C for REINFORCE, PPO at the settings of the work for PPO."""
    import torch
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    name, data = list(WORKS.items())[number]
    if name.startswith("REINFORCE"):
        env = make_vec_env(data["env"]["id"], 8, seed=0)
        model: Any = A2C("MlpPolicy", env, device="cpu", seed=0)
        rows = 40 * 8
    else:
        algorithm, columns = data["algorithm"], data["env"]["num_envs"]
        rows = columns * data["rollout"]["steps"]
        env = make_vec_env(data["env"]["id"], columns, seed=0)
        if data.get("policy", {}).get("normalize_obs"):
            from stable_baselines3.common.vec_env import VecNormalize

            env = VecNormalize(env)
        model = PPO(
            "MlpPolicy",
            env,
            n_steps=data["rollout"]["steps"],
            batch_size=rows // algorithm.get("num_minibatches", 1),
            n_epochs=algorithm["update_epochs"],
            gamma=algorithm.get("gamma", 0.99),
            gae_lambda=algorithm.get("gae_lambda", 0.95),
            ent_coef=algorithm.get("entropy_coef", 0.0),
            device="cpu",
            seed=0,
        )
    model.learn(rows)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        model.learn(rows, reset_num_timesteps=False)
        steps += rows
    tell(steps / (time.perf_counter() - begin))


def raw_side(env_id: str, columns: int) -> None:
    """Step single environments, one after the other, with random actions."""
    import gymnasium as gym

    envs = [gym.make(env_id) for _ in range(columns)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    actions = [envs[0].action_space.sample() for _ in range(1000)]
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(actions[steps % 1000])
            steps += 1
            if terminated or truncated:
                env.reset()
    tell(steps / (time.perf_counter() - begin))


def tell(rate: float) -> None:
    """Print the measurements of a side. The peak is that of this process, without workers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = peak / (1024 if sys.platform != "darwin" else 1024**2)
    print(json.dumps({"rate": rate, "megabytes": megabytes}))


SIDES: dict[str, Callable[..., None]] = {"pgcli": pgcli_side, "workers": workers_side, "sb3": sb3_side, "raw": raw_side}


def side(kind: str, *arguments: object) -> Callable[[], dict[str, Any]]:
    """Return a side that runs in its own process."""

    def measure() -> dict[str, Any]:
        words = [PYTHON, __file__, "--side", kind, *map(json.dumps, arguments)]
        shown = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
        return found

    return measure


def cleanrl(script: str, *words: str) -> Callable[[], dict[str, float]] | None:
    """Return a side that runs CleanRL's script and reads its last steps per second."""
    if "CLEANRL" not in os.environ:
        return None
    program = [os.environ.get("CLEANRL_PYTHON", PYTHON), str(Path(os.environ["CLEANRL"]) / "cleanrl" / script)]

    def measure() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            words_ = [*program, "--no-cuda", *words]
            shown = subprocess.run(words_, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, check=True)
        return {"rate": float(re.findall(r"SPS: (\d+)", shown.stdout)[-1])}

    return measure


REJAX = ("jax==0.10.2", "rejax==0.1.3", "gymnax==0.0.9")
TRAIN_REJAX = """
import json, os, sys, time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):  # compiling uses all cores otherwise
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
import jax
from rejax import PPO

settings, repetitions = json.loads(sys.argv[1]), int(sys.argv[2])
settings |= {"skip_initial_evaluation": True, "eval_freq": settings["total_timesteps"]}
algo = PPO.create(**settings).replace(eval_callback=lambda *_: 0)
train = jax.jit(algo.train).lower(jax.random.PRNGKey(0)).compile()
steps, begin = 0, time.perf_counter()
for seed in range(repetitions):
    steps += int(jax.block_until_ready(train(jax.random.PRNGKey(seed)))[0].global_step)
print(json.dumps({"rate": steps / (time.perf_counter() - begin)}))
"""


def rejax_python() -> str | None:
    """Return a Python that has rejax; install it if necessary. None, with a sentence, if that is impossible."""
    folder = Path(__file__).parents[2] / "build" / "rejax"
    python, installed = folder / "bin" / "python", folder / ".installed"
    try:
        if not installed.exists():
            subprocess.run([PYTHON, "-m", "venv", "--clear", folder], check=True, capture_output=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *REJAX], check=True, capture_output=True)
            installed.touch()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"rejax is left out, because it could not be installed: {error}", file=sys.stderr)
        return None
    return str(python)


def rejax(number: int, steps: int, repetitions: int) -> Callable[[], dict[str, float]] | None:
    """Make a side of rejax's PPO at the settings of a work: compiled, with as many environment steps."""
    if (python := rejax_python()) is None:
        return None
    data = list(WORKS.values())[number]
    settings = {
        "env": "CartPole-v1",
        "total_timesteps": steps,
        "num_envs": data["env"]["num_envs"],
        "num_steps": data["rollout"]["steps"],
        "num_epochs": data["algorithm"]["update_epochs"],
        "num_minibatches": data["algorithm"]["num_minibatches"],
        "ent_coef": data["algorithm"]["entropy_coef"],
        "clip_eps": data["value"]["clip_range"],
        "learning_rate": data["optimizer"]["learning_rate"],
        "max_grad_norm": data["optimizer"]["max_grad_norm"],
        "agent_kwargs": {"activation": "tanh", "hidden_layer_sizes": [64, 64]},
    }
    words = [python, "-c", TRAIN_REJAX, json.dumps(settings), str(repetitions)]

    def measure() -> dict[str, float]:
        shown = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
        return found

    return measure


# ------------------------------------------------------------------------------------------------------ the comparisons


def row(what: str, value: float, goal: str, detail: str) -> None:
    """Print one row of the table."""
    print(f"| {what} | {value:.2f} | {goal} | {detail} |", flush=True)


def seconds(action: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def command(*words: str) -> Callable[[], object]:
    """Return a side that runs a command and ignores its exit code."""
    return lambda: subprocess.run(words, capture_output=True, check=False)


def in_turn(*actions: Callable[[], Any], repetitions: int = REPETITIONS) -> Iterator[tuple[Any, ...]]:
    """Run the actions in turn, several times."""
    for _ in range(repetitions):
        yield tuple(action() for action in actions)


def compare(
    what: str, ours: Callable[[], dict[str, float]], theirs: Callable[[], dict[str, float]] | None, goal: float | None
) -> None:
    """Print the median of the ratios of the rates, and of the peaks of memory where both are known."""
    wanted = "" if goal is None else f"≥ {goal:g}"
    if theirs is None:
        print(f"| {what} | | {wanted} | left out: the peer is not installed |", flush=True)
        return
    pairs = list(in_turn(ours, theirs))
    ratio = statistics.median(one["rate"] / other["rate"] for one, other in pairs)
    rates = [statistics.median(pair[n]["rate"] for pair in pairs) for n in (0, 1)]
    row(what, ratio, wanted, f"{rates[0]:,.0f} and {rates[1]:,.0f} env steps/s")
    if "raw" not in what and all("megabytes" in one for pair in pairs for one in pair):
        peaks = [statistics.median(pair[n]["megabytes"] for pair in pairs) for n in (0, 1)]
        row(f"{what}: peak memory", peaks[0] / peaks[1], "≤ 1", f"{peaks[0]:.0f} and {peaks[1]:.0f} MB")


TO_THE_FIRST_STEP = """
import os, sys
from pgcli.policies.policy import ActingState
ActingState.act = lambda *_: os._exit(0)
sys.argv = ["pgcli", "train", "cartpole", "--run-dir", os.path.join(__import__("tempfile").mkdtemp(), "run"), "--quiet"]
from pgcli.__main__ import main
main()
"""


def startup() -> None:
    """Compare light commands with `import torch`."""
    cases = {
        "`pgcli --help`": ["--help"],
        "`pgcli --version`": ["--version"],
        "a config error": ["train", "cartpole", "algorithm.gama=1"],
    }
    commands = [command(PYTHON, "-m", "pgcli", *words) for words in cases.values()]
    first_step = command(PYTHON, "-c", TO_THE_FIRST_STEP)
    actions = [partial(seconds, action) for action in (command(*IMPORT_TORCH), *commands, first_step)]
    columns = list(zip(*in_turn(*actions, repetitions=9), strict=True))
    torch_times = columns[0]
    goals = {f"{name} ÷ `import torch`": "≤ 0.25" for name in cases}
    goals["process start to the first environment step ÷ `import torch`"] = "≤ 1.3"
    for (name, goal), times in zip(goals.items(), columns[1:], strict=True):
        ratio = statistics.median(one / other for one, other in zip(times, torch_times, strict=True))
        row(name, ratio, goal, f"{statistics.median(times):.2f} s, {statistics.median(torch_times):.2f} s")


def solved(seeds: Sequence[int] = range(10)) -> None:
    """Time `pgcli train cartpole` from process start to end; evaluate each policy on fresh episodes."""
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
        "≤ 1.9",
        f"{ours:.2f} s (from {min(times):.2f} to {max(times):.2f}), {theirs:.2f} s; "
        f"{sum(value >= 475 for value in returns)} of {len(returns)} seeds ≥ 475 on 100 fresh sampled episodes, "
        f"lowest {min(returns):.0f}",
    )


def peers() -> None:
    """Compare rollout + update with the peers at the same settings."""
    number = SHORT
    wide = ("--num-envs", "64", "--num-steps", "128", "--total-timesteps", "200000")
    compare(f"{REINFORCE} ÷ SB3's A2C, 8 environments", side("pgcli", number[REINFORCE], 0), side("sb3", 0), 60)
    compare(f"{WIDE} ÷ CleanRL's ppo.py", side("pgcli", number[WIDE], 0), cleanrl("ppo.py", *wide), 12)
    compare(f"{WIDE} ÷ SB3's PPO", side("pgcli", number[WIDE], 0), side("sb3", number[WIDE]), None)
    compare(f"{ZOO} ÷ SB3's PPO", side("pgcli", number[ZOO], 0), side("sb3", number[ZOO]), 6)
    acrobot, pendulum = number[ACROBOT], number[PENDULUM]
    compare(f"{ACROBOT} ÷ SB3's A2C, 8 environments", side("pgcli", acrobot, 0), side("sb3", acrobot), 20)
    compare(f"{PENDULUM} ÷ SB3's PPO", side("pgcli", pendulum, 0), side("sb3", pendulum), 6)
    lander = number[LANDER]
    compare(f"{LANDER} ÷ SB3's PPO", side("pgcli", lander, 0), side("sb3", lander), 3)
    compare(f"{LANDER}, 2 workers ÷ SB3's PPO", side("pgcli", lander, 2, 8), side("sb3", lander), 5)
    cheetah, short = number[CHEETAH], ("--env-id", "HalfCheetah-v4", "--total-timesteps", "12288")
    theirs = cleanrl("ppo_continuous_action.py", *short)
    compare(f"{CHEETAH} ÷ CleanRL's ppo_continuous_action.py", side("pgcli", cheetah, 0), theirs, 2)
    compare(f"{CHEETAH} ÷ SB3's PPO", side("pgcli", cheetah, 0), side("sb3", cheetah), None)


def compiled(steps: int = 500_000) -> None:
    """Compare with rejax, a compiled peer: training alone, and from the start of the process."""
    training, whole = rejax(SHORT[WIDE], 24 * 8192, 5), rejax(SHORT[WIDE], steps, 1)
    compare(f"{WIDE} ÷ rejax after compiling", side("pgcli", SHORT[WIDE], 0), training, 1)
    if whole is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        budget = {"training": {"env_steps": steps}, "evaluation": {"every": None}}
        config.write_text(json.dumps(WORKS[WIDE] | budget))
        train = command(PYTHON, "-m", "pgcli", "train", str(config), "--run-dir", f"{folder}/run", "--overwrite", "-q")
        pairs = list(in_turn(partial(seconds, whole), partial(seconds, train), repetitions=3))
    ratio = statistics.median(theirs / ours for theirs, ours in pairs)
    theirs, ours = (statistics.median(pair[n] for pair in pairs) for n in (0, 1))
    what = f"{WIDE}, process start to {steps:,} steps: rejax ÷ `pgcli train`"
    row(what, ratio, "≥ 3", f"{theirs:.1f} and {ours:.1f} s")


def stacked() -> None:
    """Compare a seed of `cartpole` among a hundred in stacks with a seed of twenty that train one by one."""
    with tempfile.TemporaryDirectory() as folder:

        def each(count: int, *words: str) -> float:
            train = [PYTHON, "-m", "pgcli", "train", "cartpole", "--seeds", f"0-{count - 1}", "--jobs", "2", "-q"]
            run = command(*train, "--run-dir", f"{folder}/runs", "--overwrite", *words)
            return seconds(run) / count

        sides = partial(each, 100), partial(each, 20, "--stack", "1")
        pairs = list(in_turn(*sides, repetitions=2))
    ratio = statistics.median(alone / together for together, alone in pairs)
    together, alone = (statistics.median(pair[n] for pair in pairs) for n in (0, 1))
    what = "`pgcli train cartpole --seeds 0-99 --jobs 2`: seeds per second ÷ with `--stack 1`"
    row(what, ratio, "", f"{together:.2f} and {alone:.2f} s a seed")


def arithmetic() -> None:
    """Compare a gradient in closed form with its products and tanh alone, at their fastest."""
    import torch

    torch.set_num_threads(1)
    as_a_run_does()
    for rows in (2048, 256):
        with torch.no_grad():
            both = (partial(seconds, one) for one in gradient_and_products(rows))
            times = list(in_turn(*both, repetitions=500))
        ours, products = map(min, zip(*times, strict=True))
        what = f"a gradient of a 4-64-64-2 network, {rows:,} rows ÷ its products and tanh"
        row(what, ours / products, "≤ 1.15", f"{1e6 * ours:.0f} and {1e6 * products:.0f} µs")


def gradient_and_products(rows: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a gradient of a tanh network, and the same products and tanh of other numbers."""
    import numpy as np
    import torch

    from pgcli.policies.networks import Chain, mlp

    network = mlp([4, 64, 64, 2], "tanh")
    chain = Chain(network, {one: torch.zeros_like(one, requires_grad=False) for one in network.parameters()})
    x, h, slope = torch.randn(rows, 4), torch.randn(rows, 64), torch.randn(rows, 2)
    first, second, last = (layer.weight.detach() for layer in network if isinstance(layer, torch.nn.Linear))
    forward = ((x, first.t()), (h, second.t()), (h, last.t()))
    backward = ((slope.t(), h), (slope, last), (h.t(), h), (h, second), (x.t(), h))

    def gradient() -> None:
        chain.backward(chain.forward(x)[0], slope)

    def products() -> None:
        for factors in (*forward, *backward):
            torch.mm(*factors)
        for _ in range(2):
            np.tanh(h.numpy())

    return gradient, products


def raw() -> None:
    """Compare rollout + update with the environment alone."""
    compare(
        f"{BASELINE} ÷ the raw environment", side("pgcli", SHORT[BASELINE], 0), side("raw", "LunarLander-v3", 32), 0.6
    )


FORMS = {
    "Acrobot-v1": 15,
    "Pendulum-v1": 40,
    "MountainCar-v0": 30,
    "MountainCarContinuous-v0": 15,
    "CartPole-v1": 10,
    "Taxi-v4": 40,
    "CliffWalking-v1": 40,
    "FrozenLake-v1": 40,
    "Blackjack-v1": 20,
}


def forms() -> None:
    """Compare pgcli's vector forms in numpy with `gym.make`, with random actions and restarts."""
    as_a_run_does()
    for name, goal in FORMS.items():
        pairs = rates_of_form(name)
        rates = [statistics.median(pair[n] for pair in pairs) for n in (0, 1)]
        ratio = statistics.median(one / other for one, other in pairs)
        row(f"{name}, 64 columns ÷ `gym.make`", ratio, f"≥ {goal}", f"{rates[0]:,.0f} and {rates[1]:,.0f} env steps/s")


def rates_of_form(name: str, columns: int = 64, rows: int = 200) -> list[tuple[float, float]]:
    """Return pairs of rates by CPU time in this process: the form's and `gym.make`'s."""
    import gymnasium as gym
    import numpy as np

    from pgcli.config.schema import EnvConfig
    from pgcli.environments.vector.arrays import ArrayEnvironments
    from pgcli.environments.vector.forms import numpy_form
    from pgcli.seeding import DerivedSeeds, Purpose

    config = EnvConfig(id=name)
    form = numpy_form(config)
    assert form is not None
    envs, single, running = ArrayEnvironments(config, columns, form), gym.make(name), np.ones(columns, bool)
    single.reset(seed=0)
    everyone, episode = np.arange(columns), np.zeros(columns, np.int64)
    envs.reset(DerivedSeeds(0, Purpose.RESET, everyone, 0))
    actions = [np.array([envs.action_space.sample() for _ in range(columns)]) for _ in range(rows)]

    def ours() -> float:
        begin = time.process_time()
        for chosen in actions:
            step = envs.step(chosen, running)
            if len(over := (step.terminated | step.truncated).nonzero()[0]):
                episode[over] += 1
                envs.restart(over.tolist(), DerivedSeeds(0, Purpose.RESET, everyone, episode.copy()))
        return rows * columns / (time.process_time() - begin)

    def theirs() -> float:
        begin = time.process_time()
        for chosen in actions:
            for action in chosen[:4]:  # takes as long as the other side
                _, _, terminated, truncated, _ = single.step(action)
                if terminated or truncated:
                    single.reset()
        return 4 * rows / (time.process_time() - begin)

    return list(in_turn(ours, theirs, repetitions=10 * REPETITIONS))


def workers() -> None:
    """Compare two workers with one: rollout + update, and two processes of the raw environment."""
    for env_id in ("LunarLander-v3", "Acrobot-v1", "HalfCheetah-v5"):
        found = []
        for both, alone in in_turn(side("workers", env_id), side("raw", env_id, 8)):
            twins = [
                subprocess.Popen(
                    [PYTHON, __file__, "--side", "raw", json.dumps(env_id), "8"],
                    env=ENVIRONMENT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                for _ in range(2)
            ]
            raw_rate = sum(json.loads(twin.communicate()[0].splitlines()[-1])["rate"] for twin in twins)
            one, two = both["spent"]
            collecting, rates = one[0] / two[0], [both["steps"] / sum(spent) for spent in (one, two)]
            found.append((sum(one) / sum(two), collecting, raw_rate / alone["rate"], *rates))
        ratio, collecting, limit, *rates = map(statistics.median, zip(*found, strict=True))
        row(
            f"{env_id}, episodes: 2 workers ÷ 1",
            ratio,
            "≥ 1.85",
            f"{rates[0]:,.0f}, {rates[1]:,.0f} env steps/s; collecting alone {collecting:.2f}; "
            f"two raw processes ÷ one {limit:.2f}",
        )


def parts() -> None:
    """Compare one iteration with the sum of its parts: environment, policy, estimate, update."""
    for name in WORKS:
        shown = subprocess.run(
            [PYTHON, __file__, "--side", "parts", json.dumps(name)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        )
        ratio, whole, alone = json.loads(shown.stdout.splitlines()[-1])
        detail = ", ".join(f"{part} {1000 * time_:.1f} ms" for part, time_ in alone.items())
        row(
            f"{name}: one iteration ÷ its parts",
            ratio,
            "≤ 1.15",
            f"{1000 * whole:.1f} ms: {detail}",
        )


def parts_side(name: str) -> None:
    """Measure the parts of one iteration, each alone, on the data of that iteration."""
    import numpy as np
    import torch

    from pgcli.algorithm.learner import Learner, build_agent
    from pgcli.config.schema import Config
    from pgcli.environments.make import make_environments
    from pgcli.sampling.chunks import EnvironmentCache
    from pgcli.sampling.executor import ChunkExecutor
    from pgcli.sampling.sampler import make_sampler
    from pgcli.seeding import Purpose, derived_seed

    torch.set_num_threads(1)
    config = Config.model_validate(WORKS[name])
    n = config.env.num_envs
    executor, whole_episodes = ChunkExecutor(EnvironmentCache(config.env)), config.rollout.steps is None
    envs = executor.environments.of_width(n) if whole_episodes else make_environments(config.env, n)
    agent = Learner(build_agent(envs.observation_space, envs.action_space, config))
    sampler = make_sampler(config, executor)
    state = {key: value.clone() for key, value in agent.state_dict().items()}
    agent.update(sampler.collect(agent.policy, 0, lambda: None).trajectories)
    agent.load_state_dict(state)
    trajectories = sampler.collect(agent.policy, 1, lambda: None).trajectories
    steps, obs, actions = len(trajectories.mask), trajectories.obs.numpy(), trajectories.actions.numpy()
    mask, actor = trajectories.mask.numpy(), agent.policy.actor("sampled")
    given = [actor.for_environment(row_) for row_ in actions]
    noise, generator, memory = actor.noise(np.random.default_rng(0), 64, n), np.random.default_rng(0), actor.start(n)
    seeds = [derived_seed(config.seed, Purpose.RESET, 1, column) for column in range(n)]

    def environment() -> None:
        if whole_episodes or not environment.started:  # type: ignore[attr-defined]
            envs.reset(seeds)
            environment.started = True  # type: ignore[attr-defined]
        running = np.ones(n, bool)
        for t in range(steps):
            if whole_episodes:
                running = mask[t]
            elif not running.all():
                fresh = np.flatnonzero(~running).tolist()
                envs.restart(fresh, [t] * n)
            step = envs.step(given[t], running)
            running = ~(step.terminated | step.truncated) | ~running

    environment.started = False  # type: ignore[attr-defined]

    def policy() -> None:
        for t in range(steps):
            if t % 64 == 0:
                actor.noise(generator, 64, n)
            actor.for_environment(actor.respond(obs[t], noise[t % 64], memory)[0])

    def estimate() -> None:
        agent.agent.batch(trajectories)

    def update() -> None:
        agent.load_state_dict(state)
        agent.update(trajectories, 1)

    count = itertools.count(2)  # segments continue; episodes repeat

    def iteration() -> None:
        agent.load_state_dict(state)
        number = 1 if whole_episodes else next(count)
        agent.update(sampler.collect(agent.policy, number, lambda: None).trajectories, number)

    as_a_run_does()
    actions_ = (iteration, environment, policy, estimate, update)
    for action in actions_:
        action()  # warms up
    times, begin = list[list[float]](), time.perf_counter()
    while len(times) < 9 or time.perf_counter() - begin < 2 * SECONDS:
        times.append([seconds(action) for action in actions_])
    ratio = statistics.median(whole / (e + p + u) for whole, e, p, _, u in times)
    whole, environment_, policy_, estimate_, update_ = map(statistics.median, zip(*times, strict=True))
    alone = {"environment": environment_, "policy": policy_, "estimate": estimate_, "descent": update_ - estimate_}
    print(json.dumps([ratio, whole, alone]))


SIDES["parts"] = parts_side


def growth() -> None:
    """Report how memory, time and disk grow: with iterations, episodes, parameters, rows, checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        memory_of_a_long_run(Path(folder))
        many_rows(Path(folder))
        share_of_checkpoints(Path(folder))
    for name, cases in {
        "episodes": [{"episodes": n} for n in (64, 256, 1024, 4096)],
        "parameters": [{"hidden": n} for n in (128, 256, 512, 1024)],
    }.items():
        found = [side("cost", case)() for case in cases]
        each = [one["seconds"] / one["size"] for one in found]
        detail = ", ".join(f"{one['size']:,.0f}: {1000 * one['seconds']:.1f} ms" for one in found)
        row(f"time of an iteration per {name[:-1]}, largest ÷ smallest case", each[-1] / each[0], "≤ 1.15", detail)


def memory_of_a_long_run(folder: Path, iterations: int = 10_000) -> None:
    """Train for many iterations; compare resident memory at the end with that after a tenth of them."""
    small = [
        "env.num_envs=8",
        "rollout.episodes=8",
        "rollout.horizon=10",
        "evaluation.every=100",
        "evaluation.episodes=8",
    ]
    words = [*small, f"training.iterations={iterations}", "optimizer.learning_rate=1e-5", "checkpoint.every=100"]
    run = folder / "long"
    process = subprocess.Popen(
        [PYTHON, "-m", "pgcli", "train", "cartpole", *words, "--run-dir", str(run), "-q"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    seen: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(0.5)
        with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
            rows = (run / "metrics.csv").read_bytes().count(b"\n")
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            seen.append((rows, float(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024))
    early = statistics.median(value for rows, value in seen if iterations / 10 <= rows <= iterations / 5)
    late = statistics.median(value for rows, value in seen if rows >= 0.9 * iterations)
    row(
        f"resident memory: at the end of {iterations:,} iterations ÷ after a tenth",
        late / early,
        "≤ 1.02",
        f"{late:.1f} and {early:.1f} MB",
    )


def many_rows(folder: Path, rows: int = 1_000_000) -> None:
    """Repeat the rows of a run up to 10^6, with a matching checkpoint; plot and resume it."""
    from dataclasses import replace

    from pgcli.runs import checkpoints

    run = folder / "long"
    for name, counted in {"metrics": (0, 1, 2), "timing": (0,), "episodes": (0, 1)}.items():
        table = run / f"{name}.csv"
        header, *lines = table.read_text().splitlines()
        with table.open("w") as file:
            print(header, file=file)
            for number in range(rows):
                cells = lines[number % len(lines)].split(",")
                for place in counted:
                    cells[place] = str(number + (name == "metrics" and place > 0))
                print(*cells, sep=",", file=file)
    was = checkpoints.load(checkpoints.follow(run / "checkpoints" / "latest.json"))
    evaluations = (run / "evaluations.csv").read_text().splitlines()
    (run / "evaluations.csv").write_text("\n".join([*evaluations[:2], ""]))
    counters = {"iteration": rows, "env_steps": rows, "episodes": rows}
    for old in checkpoints.list_checkpoints(run / "checkpoints"):
        old.unlink()
    path = checkpoints.save(run / "checkpoints", replace(was, counters=counters))
    for pointer in ("latest", "best"):
        checkpoints.point(run / "checkpoints", f"{pointer}.json", path, checkpoints.digest_of(path))
    pgcli = [PYTHON, "-m", "pgcli"]
    torch_time = seconds(command(*IMPORT_TORCH))
    for what, words in {
        "`pgcli plot -y return_mean`": ["plot", str(run), "-y", "return_mean", "-o", str(folder / "plot.png")],
        "`pgcli resume`, one more iteration": ["resume", str(run), f"training.iterations={rows + 1}", "-q"],
    }.items():
        begin = time.perf_counter()
        subprocess.run([*pgcli, *words], env=ENVIRONMENT, capture_output=True, check=True)
        spent = time.perf_counter() - begin
        row(
            f"{what}, a run of {rows:,} rows ÷ `import torch`",
            spent / torch_time,
            "seconds",
            f"{spent:.1f} s, {torch_time:.2f} s",
        )


def share_of_checkpoints(folder: Path) -> None:
    """Report the share of training time that saving takes: in total, and at the default cadence."""
    from pgcli.config.schema import Config

    code = """
import sys, time
from pgcli.runs.directory import RunDirectory
spent, save = [], RunDirectory.save
def timed(run, checkpoint, **options):
    begin = time.perf_counter(); save(run, checkpoint, **options)
    spent.append((checkpoint.counters["iteration"], time.perf_counter() - begin))
RunDirectory.save = timed
from pgcli.cli import app
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    print(spent)
"""
    every, found = Config().checkpoint.every, []
    assert every is not None
    for number in range(REPETITIONS):
        run = folder / f"saving-{number}"
        words = ["train", "cartpole", "evaluation.stop_at_return=null", "training.iterations=60", "--run-dir", str(run)]
        shown = subprocess.run(
            [PYTHON, "-c", code, *words, "-q"], env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        spent = ast.literal_eval(shown.stdout.splitlines()[-1])
        elapsed = float((run / "timing.csv").read_text().splitlines()[-1].split(",")[1])
        cadence = sum(time_ for iteration, time_ in spent if iteration % every == 0)
        total = sum(time_ for _, time_ in spent)
        found.append((100 * total / elapsed, 100 * cadence / elapsed, len(spent), total / len(spent), elapsed))
    share, cadence, count, each, elapsed = map(statistics.median, zip(*found, strict=True))
    row(
        "saving at the default cadence and whenever an evaluation is the best so far, % of training cartpole",
        share,
        "≤ 1",
        f"{count:.0f} checkpoints of {1000 * each:.1f} ms in {elapsed:.1f} s; of the default cadence {cadence:.2f} %",
    )


def cost_side(case: dict[str, int]) -> None:
    """Time collecting and learning from more episodes, or learning with more parameters."""
    import torch

    from pgcli.algorithm.learner import Learner, build_agent
    from pgcli.config.schema import Config
    from pgcli.sampling.chunks import EnvironmentCache
    from pgcli.sampling.executor import ChunkExecutor
    from pgcli.sampling.sampler import make_sampler

    torch.set_num_threads(1)
    episodes, hidden = case.get("episodes", 64), case.get("hidden", 64)
    data = work("CartPole-v1", 64, None, policy={"hidden_sizes": [hidden, hidden]})
    data["rollout"] = {"episodes": episodes, "horizon": 20}
    config = Config.model_validate(data)
    executor = ChunkExecutor(EnvironmentCache(config.env))
    envs = executor.environments.of_width(64)
    agent = Learner(build_agent(envs.observation_space, envs.action_space, config))
    sampler = make_sampler(config, executor)
    trajectories = sampler.collect(agent.policy, 0, lambda: None).trajectories
    as_a_run_does()

    def iteration() -> None:
        if "episodes" in case:
            sampler.collect(agent.policy, 0, lambda: None)
        agent.update(trajectories)

    iteration()
    spent = statistics.median(seconds(iteration) for _ in range(9))
    parameters = sum(x.numel() for x in agent.policy.parameters())
    print(json.dumps({"seconds": spent, "size": episodes if "episodes" in case else parameters}))


SIDES["cost"] = cost_side
SECTIONS = {
    "startup": startup,
    "solved": solved,
    "parts": parts,
    "peers": peers,
    "compiled": compiled,
    "stacked": stacked,
    "arithmetic": arithmetic,
    "raw": raw,
    "forms": forms,
    "workers": workers,
    "growth": growth,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        SIDES[sys.argv[2]](*map(json.loads, sys.argv[3:]))
    else:
        print("| what | ratio | goal | medians |\n|---|---|---|---|", flush=True)
        for name in sys.argv[1:] or SECTIONS:
            SECTIONS[name]()
