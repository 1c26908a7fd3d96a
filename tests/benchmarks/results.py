"""Train each shipped config over seeds, evaluate the final policies, and write docs/results.csv and docs/results.md.

Also write the evaluations during training, docs/curves.csv, and their figure.
`make results` measures the seeds whose row is missing or stale, which can take hours; after an interruption, the same
command continues. `make results CONFIG="cartpole/ppo pendulum/a2c"` measures only these two, `results.py --remaining`
lists what remains, and `results.py --render` only writes docs/results.md and the figure, after it has read the missing
curves from the runs in `--folder`.

A row is stale when one of its two digests is not today's: of the settings that affect it, or of a short training with
them (short_trainings.json has its numbers), which notices changes in the code.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import results_curves
import torch
from results_page import EPISODES, MORE_EPISODES, Row, render
from safetensors.numpy import load_file

from pgcli.config import Config, flat, load_config, shipped_configs, to_data
from pgcli.config.seeds import parse_seeds
from pgcli.experiment.jobs import Outcome, run_all
from pgcli.experiment.load import load
from pgcli.experiment.run import Request
from pgcli.inspection.evaluate import assess

ROOT = Path(__file__).parent.parent.parent
DATA, PAGE = ROOT / "docs/results.csv", ROOT / "docs/results.md"
FOLDER = ROOT / "build/results"
SHORT = Path(__file__).parent / "short_trainings.json"
# The lesson has its own numbers. The configs for any environment are in docs/algorithms.md and docs/suites.md.
GENERAL = ("ppo", "trpo", "a2c", "reinforce", "grpo")
MEASURED = [name for name in shipped_configs() if not name.startswith("lesson/") and name not in GENERAL]
SHORTENED = [*MEASURED, *GENERAL]
WAITING: set[str] = set()  # shipped or changed after the last `make results`
COLUMNS = "config,seed,env_steps,sampled,sampled_standard_error,greedy,greedy_standard_error,cpu_seconds".split(",")
COLUMNS += ["commit", "settings", "arithmetic", "cpu"]
SEEDS = {"pong/ppo": 3}  # two hours of CPU time; of the others, ten
TEST_SEED = 1000  # of the evaluation episodes
UNRELATED = ("name", "seed", "evaluation", "checkpoint", "logging", "diagnostics", "sampling")  # to what is learned
# Of the length of a step, and in units of parameters. Far above the rounding of other CPUs, far below any change of a
# formula; where all returns are equal, rounding alone makes steps of about 1e-5.
TOLERANCE, ROUNDING = 1e-3, 2e-5
# Of a short episode; else 60. In a simulator with contacts, other last bits of an action grow with each step.
FEW_STEPS = dict.fromkeys(("HalfCheetah", "Hopper", "Walker2d", "InvertedPendulum"), 8)
FEW_STEPS |= {"LunarLander": 20, "BipedalWalker": 20, "ALE/": 20}


def digest(data: object) -> str:
    """Return the first 12 digits of the SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def settings_digest(config: str) -> str:
    """Return the digest of the values that affect a row and are not the defaults."""
    defaults = flat(to_data(Config()))
    loaded = load_config(config)
    values = {
        key: value
        for key, value in flat(to_data(loaded)).items()
        if value != defaults.get(key) and key.partition(".")[0] not in UNRELATED
    }
    if loaded.env.id in MORE_EPISODES:
        values["episodes of the final policy"] = MORE_EPISODES[loaded.env.id]
    return digest(values)


def shortened(config: str) -> Config:
    """Return a config with two iterations of a few short episodes."""
    whole = load_config(config)
    frames = whole.env.id.startswith("ALE/")
    steps = next((steps for name, steps in FEW_STEPS.items() if whole.env.id.startswith(name)), 60)
    words = ["training={iterations: 2}", "evaluation={every: null}", "checkpoint={every: 1, keep: 3}"]
    words += [f"env.max_episode_steps={steps}"]
    if whole.rollout.steps is not None:
        words += [f"rollout.steps={8 if frames else 24}", f"env.num_envs={min(whole.env.num_envs or 4, 4)}"]
        words += ["algorithm.num_minibatches=2"] if whole.algorithm.num_minibatches > 1 else []
    elif whole.group_size == 1:
        words += ["rollout.episodes=7", "env.num_envs=5"]
    return load_config(config, words)


def short_training(config: str) -> dict[str, list[float]]:
    """Return, for each array that a short training changes, the length and one component of its step.

    The component is that along a fixed random direction; both have 5 digits.
    """
    with tempfile.TemporaryDirectory() as folder:
        (result,) = run_all(
            [Request(shortened(config), Path(folder, "run"), [])],
            1,
            lambda record, number: None,
            lambda request, watch: nullcontext(watch),
        )
        assert isinstance(result, Outcome), result
        first, last = (load_file(Path(folder, f"run/checkpoints/iteration-00000{i}.safetensors")) for i in (0, 2))
    found = {}
    for name, before in sorted(first.items()):
        if before.dtype.kind != "f" or name.startswith("optimizer."):
            continue
        step = (last[name].astype(float) - before).ravel()
        direction = np.random.default_rng(0).standard_normal(step.size)
        if step.any():
            found[name] = [float(f"{value:.5g}") for value in (np.linalg.norm(step), step @ direction)]
    return found


def are_equal(one: dict[str, list[float]], two: dict[str, list[float]]) -> bool:
    """Return whether two short trainings have the same steps, up to rounding."""
    return set(one) == set(two) and all(
        abs(a - b) <= TOLERANCE * one[name][0] + ROUNDING
        for name in one
        for a, b in zip(one[name], two[name], strict=True)
    )


def short_trainings() -> dict[str, dict[str, list[float]]]:
    """Return the short trainings of the measured code, by config."""
    return json.loads(SHORT.read_text()) if SHORT.exists() else {}


def update_short_trainings(configs: Iterable[str]) -> None:
    """Repeat the short trainings of some configs, and replace those that changed."""
    kept = {name: steps for name, steps in short_trainings().items() if name in SHORTENED}
    for config in configs:
        found = short_training(config)
        if config not in kept or not are_equal(kept[config], found):
            print(f"{config}: another arithmetic" if config in kept else f"{config}: new", flush=True)
            kept[config] = found
    lines = (f"{json.dumps(name)}: {json.dumps(steps)}" for name, steps in sorted(kept.items()))
    SHORT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def identity(config: str) -> dict[str, str]:
    """Return the two digests that the rows of a config must have."""
    return {"settings": settings_digest(config), "arithmetic": digest(short_trainings().get(config))}


def general_digest(measured: object) -> str:
    """Return the digest of the configs for any environment, of their short trainings, and of what a table adds."""
    return digest([measured, *map(identity, GENERAL)])


def mark(measured: object) -> str:
    """Return the comment with which a table of these configs says what it was measured with."""
    return f"<!-- measured with {general_digest(measured)} -->"


def current(rows: Sequence[Row], config: str) -> list[Row]:
    """Return the rows of a config that were measured with today's settings and arithmetic."""
    marks = identity(config)
    return [row for row in of(rows, config) if all(row[key] == value for key, value in marks.items())]


def stale_configs(rows: Sequence[Row]) -> set[str]:
    """Return the configs without rows (or curves), or with those of other settings or another arithmetic."""
    return {config for config in MEASURED if not (own := of(rows, config)) or current(rows, config) != own}


def of(rows: Sequence[Row], config: str) -> list[Row]:
    """Return the rows of a config."""
    return [row for row in rows if row["config"] == config]


def cpu() -> str:
    """Return the model of the CPU and the vector instructions that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "unknown"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def place_of(config: str, marks: Row, folder: Path) -> Path:
    """Return where the runs of a config with these two digests are."""
    return folder / f"{config.replace('/', '-')}-{digest({key: marks[key] for key in ('settings', 'arithmetic')})}"


def measure(config: str, seeds: list[int], folder: Path, jobs: int) -> list[dict[str, str]]:
    """Train one config over seeds, and evaluate each final policy. An interrupted training continues."""
    marks = identity(config)
    place = place_of(config, marks, folder)
    fresh = not any((place / f"seed-{seed}").exists() for seed in seeds)
    words = ["--seeds", ",".join(map(str, seeds)), "--jobs", str(jobs), "--resume", "--quiet", "--run-dir", str(place)]
    command = [sys.executable, "-m", "pgcli", "train", config, *words]
    output, used = timed(command)
    rows = []
    for seed, run in zip(seeds, output.split(), strict=True):
        # An interrupted training has no time: a part of it is unknown.
        row = {"config": config, "seed": str(seed), "cpu_seconds": f"{used / len(seeds):.4g}" if fresh else ""}
        agent = load(Path(run), "latest", trust=True)  # these runs are our own
        episodes = MORE_EPISODES.get(agent.config.env.id, EPISODES)
        for mode in ("sampled", "greedy"):
            found: dict[str, Any] = assess(agent, episodes, mode, 1.0, None, TEST_SEED, 0, None, [])
            row["env_steps"] = str(found["env_steps"])
            row[mode] = f"{found['mean_return']:.6g}"
            row[f"{mode}_standard_error"] = f"{found['standard_error']:.4g}"
        commit = json.loads(Path(run, "run.json").read_text()).get("git_commit") or ""
        rows.append(row | {"commit": commit[:12], "cpu": cpu()} | marks)
    return rows


def timed(command: Sequence[str]) -> tuple[str, float]:
    """Run a command, and return its output and the CPU seconds of its processes.

    On Linux, they include processes that outlive their parent, as those of `pgcli train --jobs 2` do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: such processes become our children
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    with suppress(ChildProcessError):
        while True:
            os.wait()  # time counts only after a wait
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return output, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read() -> list[dict[str, str]]:
    """Return the existing measurements."""
    if not DATA.exists():
        return []
    with DATA.open(newline="") as file:
        return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(file)]


def write(rows: list[dict[str, str]], folder: Path = FOLDER) -> None:
    """Write the measurements in the order of the configs, their curves, the page and the figure."""
    kept = [row for row in rows if row["config"] in MEASURED]
    kept.sort(key=lambda row: (MEASURED.index(row["config"]), int(row["seed"])))
    whole = DATA.with_suffix(".csv~")
    with whole.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    whole.replace(DATA)
    PAGE.write_text(page(kept))
    known, curves = results_curves.read(), list[Row]()
    for config in MEASURED:
        if own := of(kept, config):
            curves += results_curves.curves_of(own, of(known, config), place_of(config, own[0], folder))
    results_curves.write(curves)
    results_curves.FIGURE.write_bytes(results_curves.draw(curves, stale_configs(curves)))


def page(rows: list[dict[str, str]]) -> str:
    """Return the text of docs/results.md."""
    return render(rows, MEASURED, stale_configs(rows))


def remaining(configs: list[str], seeds: Sequence[int] | None = None) -> dict[str, list[int]]:
    """Return the seeds to measure, by config: those without a current row. Default: 0 to 9, or SEEDS."""
    rows = read()
    measured = {name: {int(row["seed"]) for row in current(rows, name)} for name in configs}
    wanted = {name: seeds or range(SEEDS.get(name, 10)) for name in configs}
    missing = {name: [seed for seed in wanted[name] if seed not in measured[name]] for name in configs}
    return {name: some for name, some in missing.items() if some}


def expected_seconds(configs: dict[str, list[int]], jobs: int) -> float | None:
    """Return how long the remaining trainings take, from the CPU time of the existing rows; None without any."""
    total, rows = 0.0, read()
    for name, seeds in configs.items():
        times = [float(row["cpu_seconds"]) for row in of(rows, name) if row["cpu_seconds"]]
        if not times:
            return None
        total += len(seeds) * float(np.median(times))
    return total / jobs


def report(waiting: dict[str, list[int]], jobs: int) -> None:
    """Print what remains and how long it takes."""
    seconds = expected_seconds(waiting, jobs)
    time = "an unknown time" if seconds is None else f"about {seconds / 60:.0f} minutes"
    print(f"{sum(map(len, waiting.values()))} seeds of {len(waiting)} configs remain: {time}", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="configs to measure; default: all")
    parser.add_argument("--seeds", help="default: 0-9; of Pong 0-2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the runs are")
    parser.add_argument("--render", action="store_true", help="only write the page and the figure")
    parser.add_argument("--remaining", action="store_true", help="only list what remains")
    parser.add_argument("--check", action="store_true", help="only list configs whose short training has changed")
    words = parser.parse_args()
    unknown = set(words.configs) - set(MEASURED)
    if unknown:
        parser.error(f"not a measured config: {', '.join(sorted(unknown))}")
    configs, short = words.configs or MEASURED, words.configs or SHORTENED
    if words.check:
        known = short_trainings()
        changed = [name for name in short if not are_equal(known.get(name, {}), short_training(name))]
        raise SystemExit(", ".join(changed) or 0)
    if not words.render and not words.remaining:
        update_short_trainings(short)
    waiting = remaining(configs, parse_seeds(words.seeds) if words.seeds else None)
    if words.remaining:
        report(waiting, words.jobs)
        for name, seeds in waiting.items():
            print(f"{name}: {', '.join(map(str, seeds))}")
        return
    while waiting and not words.render:
        report(waiting, words.jobs)
        name, seeds = next(iter(waiting.items()))
        new = measure(name, seeds, words.folder, words.jobs)
        measured = {(name, str(seed)) for seed in seeds}
        write([row for row in read() if (row["config"], row["seed"]) not in measured] + new, words.folder)
        print(f"{name}: {', '.join(row['sampled'] for row in new)}", flush=True)
        del waiting[name]
    write(read(), words.folder)


if __name__ == "__main__":
    main()
