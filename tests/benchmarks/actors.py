"""What a cluster costs: `python tests/benchmarks/actors.py` prints the tables of docs/cluster.md, as measured here.

Bytes are counted on what really comes back from a chunk; times are medians, and what is compared alternates.
"""

from __future__ import annotations

import contextlib
import pickle
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from pgcli.config import load_config
from pgcli.config.schema import Config
from pgcli.errors import PgcliError
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.experiment.build import build_learner, columns_of, environments_of
from pgcli.policies.policy import Policy, parameters_of
from pgcli.sampling.pool import Crew, taken_apart
from pgcli.sampling.process_pool import Workers
from pgcli.sampling.ray_pool import Actors
from pgcli.sampling.rollout import Chunks
from pgcli.sampling.samplers import make_sampler
from pgcli.system.ray_cluster import join

REPETITIONS = 15


class Weighed:
    """A crew of this process, which weighs what it is given and gives."""

    def __init__(self) -> None:
        self.count, self.there, self.back, self.last, self._kept = 1, 0, 0, list[Any](), dict[Any, Any]()

    def of(self, number: int) -> object:
        """Give the only worker."""
        return self

    def run(
        self, policy: Policy, count: int, job: Callable[[int, object], Any], check: Callable[[], None]
    ) -> list[Any]:
        """Do the jobs here."""
        jobs = [job(number, self) for number in range(count)]
        results = [one(self._kept, policy, check) for one in jobs]
        self.there += sum(map(weight, jobs))
        self.back += sum(map(weight, results))
        self.last = results
        return results

    def close(self) -> None:
        """Close the environments."""
        for thing in self._kept.values():
            thing.close()


def nothing(kept: dict[Any, Any], policy: Policy, check: Callable[[], None]) -> None:
    """Do a job of which only the way there and back is left."""


def bulk(kept: dict[Any, Any], policy: Policy, check: Callable[[], None]) -> np.ndarray[Any, Any]:
    """Give 32 MB."""
    return np.ones(32_000_000, np.uint8)


def always(job: Any, number: int, worker: object) -> Any:
    """Give the same job to every worker."""
    return job


def ignore() -> None:
    """Check nothing."""


def weight(thing: object) -> int:
    """Count the bytes of a thing on its way."""
    data, buffers = taken_apart(thing)
    return len(data) + sum(map(len, buffers))


def bytes_per_step() -> None:
    """Weigh the third iteration of the shipped configs, in chunks of 8 columns."""
    print("| config | env steps | per chunk there | per step back | of that, trajectories alone | parameters |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in ("cartpole", "lunar-lander/ppo", "half-cheetah/ppo"):
        config = load_config(name, ["env.chunk_size=8"])
        chunks, crew = Chunks(environments_of(config)), Weighed()
        agent = build_learner(config, chunks)
        chunks.workers = crew
        sampler = make_sampler(config, chunks)
        for iteration in range(3):
            crew.there = crew.back = 0
            trajectories = sampler.collect(agent.policy, iteration, ignore).trajectories
        steps, parts = trajectories.num_steps, len(chunks.ranges(columns_of(config)))
        parameters = sum(x.numel() * x.element_size() for x in parameters_of(agent.policy, None).values())
        print(
            f"| `{name}` | {steps:,} | {crew.there / parts:,.0f} | {crew.back / steps:.1f} | "
            f"{plain(trajectories) / steps:.1f} | {parameters:,} |"
        )
        sampler.close()
        chunks.close()


def plain(trajectories: Trajectories) -> int:
    """Count the bytes of the steps that are real."""
    rows = [x.reshape(*x.shape[:2], -1) for x in (trajectories.obs, trajectories.actions, trajectories.rewards)]
    per_step = sum(x.shape[2] * x.element_size() for x in rows) + 3  # terminated, truncated, mask
    return per_step * trajectories.num_steps


def assembling() -> None:
    """Time what the command's process does with what comes back, by its CPU: unpack, copy, put together."""
    print("| config | per chunk | putting together, per step |\n|---|--:|--:|")
    for name in ("lunar-lander/ppo", "half-cheetah/ppo"):
        config = load_config(name, ["env.chunk_size=8", "env.num_envs=32"])
        chunks, crew = Chunks(environments_of(config)), Weighed()
        agent = build_learner(config, chunks)
        chunks.workers = crew
        sampler = make_sampler(config, chunks)
        steps = sampler.collect(agent.policy, 0, ignore).trajectories.num_steps
        taken = [taken_apart(result) for result in crew.last]
        unpack, together = [], []
        for _ in range(REPETITIONS):
            begin = time.process_time()
            parts = [pickle.loads(data, buffers=[bytearray(x) for x in buffers]) for data, buffers in taken]
            unpacked = time.process_time()
            pad_columns([segment[0] for segment, _ in parts])
            together.append(1e6 * (time.process_time() - unpacked) / steps)
            unpack.append(1e6 * (unpacked - begin) / len(taken))
        print(f"| `{name}` | {statistics.median(unpack):.0f} µs | {statistics.median(together):.2f} µs |")
        sampler.close()
        chunks.close()


def timed(action: Callable[[], object]) -> float:
    """Time one call, in milliseconds."""
    begin = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - begin)


def cpu_per_step() -> None:
    """Time collecting and updating in one process, by the CPU's time, which other work on the machine is not in."""
    print("| config | collect, µs per step | update, µs per step |")
    print("|---|--:|--:|")
    for name in ("cartpole", "lunar-lander/baseline", "lunar-lander/ppo", "half-cheetah/ppo"):
        config = load_config(name, [])
        chunks = Chunks(environments_of(config))
        agent = build_learner(config, chunks)
        sampler = make_sampler(config, chunks)
        collect, update = [], []
        for iteration in range(4):
            begin = time.process_time()
            trajectories = sampler.collect(agent.policy, iteration, ignore).trajectories
            collected = time.process_time()
            agent.update(trajectories, iteration, 0.0, ignore)
            collect.append(1e6 * (collected - begin) / trajectories.num_steps)
            update.append(1e6 * (time.process_time() - collected) / trajectories.num_steps)
        print(f"| `{name}` | {statistics.median(collect):.1f} | {statistics.median(update):.1f} |")
        sampler.close()
        chunks.close()


def overhead(config: Config) -> None:
    """Compare crews: jobs of nothing, 32 MB from each, and an iteration's rollout."""
    chunks = Chunks(environments_of(config))
    policy = build_learner(config, chunks).policy
    crews: dict[str, Crew | None] = {"this process": None}
    for count in (1, 2):
        crews[f"{count} local"] = Workers(config.env, config.policy, count)
        crews[f"{count} ray"] = Actors(config.env, config.policy, count)
    samplers = {}
    for name, crew in crews.items():
        own = Chunks(config.env, crew)
        samplers[name] = make_sampler(config, own)
    times: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}  # of this process
    for repetition in range(REPETITIONS + 1):
        for name, crew in crews.items():
            actions: dict[str, Callable[[], object]] = {}
            if crew is not None:
                for what, jobs, job in (
                    ("a job of nothing", 1, nothing),
                    ("8 jobs of nothing", 8, nothing),
                    ("32 MB back", 1, bulk),
                ):
                    actions[what] = partial(crew.run, policy, jobs, partial(always, job), ignore)
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
    for name in crews:
        cells = [times.get((name, what)) for what in columns]
        print(f"| {name} | {' | '.join(f'{statistics.median(x):.1f} ms' if x else '' for x in cells)} |")
    print(f"\nOf that, CPU time of the command's process:\n\n| who collects | {' | '.join(columns)} |")
    print(f"|---|{'--:|' * len(columns)}")
    for name in crews:
        cells = [cpu.get((name, what)) for what in columns]
        print(f"| {name} | {' | '.join(f'{statistics.median(x):.1f} ms' if x else '' for x in cells)} |")
    for name, sampler in samplers.items():
        sampler.close()
        crew = crews[name]
        with contextlib.suppress(PgcliError, RuntimeError):
            if crew is not None:
                crew.close()


def fetch(reference: Any) -> None:
    """Copy what is in the store."""
    import ray

    ray.get(reference)[0].copy()


def store() -> None:
    """Time the object store on this machine: parameters in, and out again."""
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
    """Measure."""
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
