"""The cost of a cluster: this script prints the tables of docs/cluster.md for this machine.

Bytes are counted on what really comes back from a chunk; times are medians, and what is compared alternates.
"""

from __future__ import annotations

import contextlib
import pickle
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from pgcli.config import load_config
from pgcli.config.schema import Config, EnvConfig
from pgcli.errors import PgcliError
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.experiment.build import build_learner, columns_of, environments_of
from pgcli.policies.policy import Policy, parameters_of
from pgcli.sampling.chunks import EnvironmentCache, chunk_ranges
from pgcli.sampling.executor import ChunkExecutor
from pgcli.sampling.pool import LocalPool, WorkerPool, pickled_apart
from pgcli.sampling.process_pool import ProcessPool
from pgcli.sampling.ray_pool import RayPool
from pgcli.sampling.sampler import make_sampler
from pgcli.system.ray_cluster import join

REPETITIONS = 15


class WeighingPool(LocalPool):
    """Counts the bytes of tasks and results that it would send to workers."""

    count = 1

    def __init__(self, env: EnvConfig) -> None:
        super().__init__(EnvironmentCache(env))
        self.sent, self.received, self.last = 0, 0, dict[int, Any]()

    def map(self, policy: Policy, tasks: Mapping[int, Any], check: Callable[[], None]) -> dict[int, Any]:
        """Run the tasks here."""
        results = super().map(policy, tasks, check)
        self.sent += sum(map(weight, tasks.values()))
        self.received += sum(map(weight, results.values()))
        self.last |= results
        return results

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()


def nothing(environments: EnvironmentCache, policy: Policy, check: Callable[[], None]) -> None:
    """Do nothing, to time the way to the worker and back."""


def bulk(environments: EnvironmentCache, policy: Policy, check: Callable[[], None]) -> np.ndarray[Any, Any]:
    """Return 32 MB."""
    return np.ones(32_000_000, np.uint8)


def ignore() -> None:
    """Check nothing."""


def weight(thing: object) -> int:
    """Return the number of bytes of a pickled object."""
    data, buffers = pickled_apart(thing)
    return len(data) + sum(map(len, buffers))


def bytes_per_step() -> None:
    """Count the bytes of the third iteration of the shipped configs, in chunks of 8 columns."""
    print("| config | env steps | per chunk there | per step back | of that, trajectories alone | parameters |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in ("cartpole", "lunar-lander/ppo", "half-cheetah/ppo"):
        config = load_config(name, ["env.chunk_size=8"])
        env = environments_of(config)
        environments, pool = EnvironmentCache(env), WeighingPool(env)
        agent, executor = build_learner(config, environments), ChunkExecutor(environments, pool)
        sampler = make_sampler(config, executor)
        for iteration in range(3):
            pool.sent = pool.received = 0
            trajectories = sampler.collect(agent.policy, iteration, ignore).trajectories
        steps, parts = trajectories.num_steps, len(chunk_ranges(env, columns_of(config)))
        parameters = sum(x.numel() * x.element_size() for x in parameters_of(agent.policy, None).values())
        print(
            f"| `{name}` | {steps:,} | {pool.sent / parts:,.0f} | {pool.received / steps:.1f} | "
            f"{plain(trajectories) / steps:.1f} | {parameters:,} |"
        )
        executor.close()


def plain(trajectories: Trajectories) -> int:
    """Count the bytes of the unmasked steps."""
    rows = [x.reshape(*x.shape[:2], -1) for x in (trajectories.obs, trajectories.actions, trajectories.rewards)]
    per_step = sum(x.shape[2] * x.element_size() for x in rows) + 3  # terminated, truncated, mask
    return per_step * trajectories.num_steps


def assembling() -> None:
    """Time the command's process while it joins results: unpickle, copy, concatenate (CPU time)."""
    print("| config | per chunk | putting together, per step |\n|---|--:|--:|")
    for name in ("lunar-lander/ppo", "half-cheetah/ppo"):
        config = load_config(name, ["env.chunk_size=8", "env.num_envs=32"])
        env = environments_of(config)
        environments, pool = EnvironmentCache(env), WeighingPool(env)
        agent, executor = build_learner(config, environments), ChunkExecutor(environments, pool)
        sampler = make_sampler(config, executor)
        steps = sampler.collect(agent.policy, 0, ignore).trajectories.num_steps
        taken = [pickled_apart(result) for result in pool.last.values()]
        unpack, together = [], []
        for _ in range(REPETITIONS):
            begin = time.process_time()
            parts = [pickle.loads(data, buffers=[bytearray(x) for x in buffers]) for data, buffers in taken]
            unpacked = time.process_time()
            pad_columns([segment.trajectories for segment in parts])
            together.append(1e6 * (time.process_time() - unpacked) / steps)
            unpack.append(1e6 * (unpacked - begin) / len(taken))
        print(f"| `{name}` | {statistics.median(unpack):.0f} µs | {statistics.median(together):.2f} µs |")
        executor.close()


def timed(action: Callable[[], object]) -> float:
    """Time one call, in milliseconds."""
    begin = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - begin)


def cpu_per_step() -> None:
    """Time collecting and updating in one process, in CPU time, without other load."""
    print("| config | collect, µs per step | update, µs per step |")
    print("|---|--:|--:|")
    for name in ("cartpole", "lunar-lander/baseline", "lunar-lander/ppo", "half-cheetah/ppo"):
        config = load_config(name, [])
        executor = ChunkExecutor(EnvironmentCache(environments_of(config)))
        agent = build_learner(config, executor.environments)
        sampler = make_sampler(config, executor)
        collect, update = [], []
        for iteration in range(4):
            begin = time.process_time()
            trajectories = sampler.collect(agent.policy, iteration, ignore).trajectories
            collected = time.process_time()
            agent.update(trajectories, iteration, 0.0, ignore)
            collect.append(1e6 * (collected - begin) / trajectories.num_steps)
            update.append(1e6 * (time.process_time() - collected) / trajectories.num_steps)
        print(f"| `{name}` | {statistics.median(collect):.1f} | {statistics.median(update):.1f} |")
        executor.close()


def overhead(config: Config) -> None:
    """Compare pools: empty tasks, 32 MB from each worker, and an iteration's rollout."""
    environments = EnvironmentCache(environments_of(config))
    policy = build_learner(config, environments).policy
    pools: dict[str, WorkerPool] = {"this process": LocalPool(environments)}
    for count in (1, 2):
        pools[f"{count} local"] = ProcessPool(config.env, config.policy, count)
        pools[f"{count} ray"] = RayPool(config.env, config.policy, count)
    samplers = {name: make_sampler(config, ChunkExecutor(environments, pool)) for name, pool in pools.items()}
    times: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}  # of this process
    for repetition in range(REPETITIONS + 1):
        for name, pool in pools.items():
            actions: dict[str, Callable[[], object]] = {}
            if pool.count:
                for what, count, task in (
                    ("a task of nothing", 1, nothing),
                    ("8 tasks of nothing", 8, nothing),
                    ("32 MB back", 1, bulk),
                ):
                    actions[what] = partial(pool.map, policy, dict.fromkeys(range(count), task), ignore)
            actions["rollout"] = partial(samplers[name].collect, policy, repetition, ignore)
            for what, action in actions.items():
                begin = time.process_time()
                took = timed(action)
                used = time.process_time() - begin
                if repetition:  # the first starts them
                    times.setdefault((name, what), []).append(took)
                    cpu.setdefault((name, what), []).append(1000 * used)
    columns = list(dict.fromkeys(what for _, what in times))
    print(f"| who collects | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name in pools:
        cells = [times.get((name, what)) for what in columns]
        print(f"| {name} | {' | '.join(f'{statistics.median(x):.1f} ms' if x else '' for x in cells)} |")
    print(f"\nOf that, CPU time of the command's process:\n\n| who collects | {' | '.join(columns)} |")
    print(f"|---|{'--:|' * len(columns)}")
    for name in pools:
        cells = [cpu.get((name, what)) for what in columns]
        print(f"| {name} | {' | '.join(f'{statistics.median(x):.1f} ms' if x else '' for x in cells)} |")
    for pool in pools.values():
        with contextlib.suppress(PgcliError, RuntimeError):
            pool.close()
    environments.close()


def fetch(reference: Any) -> None:
    """Copy an object of the store."""
    import ray

    ray.get(reference)[0].copy()


def store() -> None:
    """Time Ray's object store on this machine: put and get the parameters."""
    import ray

    print("| bytes | put | get |\n|--:|--:|--:|")
    for size in (20_000, 1_000_000, 10_000_000, 100_000_000):
        array = np.ones(size, np.uint8)
        puts, gets = [], []
        for _ in range(REPETITIONS):
            begin = time.perf_counter()
            reference = ray.put([array])
            puts.append(1000 * (time.perf_counter() - begin))
            gets.append(timed(partial(fetch, reference)))
        print(f"| {size:,} | {statistics.median(puts):.2f} ms | {statistics.median(gets):.2f} ms |")


def main() -> None:
    """Print all tables."""
    torch.set_num_threads(1)
    bytes_per_step()
    print()
    cpu_per_step()
    print()
    assembling()
    leave = join(2, ignore)
    print()
    store()
    print()
    words = ["env.chunk_size=4", "rollout.steps=128", "rollout.episodes=null"]
    overhead(load_config("lunar-lander/ppo", words))
    leave()


if __name__ == "__main__":
    from actors import main  # by its name, so that actors find `nothing` and `bulk`

    main()
