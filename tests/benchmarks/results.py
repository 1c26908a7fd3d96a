"""What the shipped configs reach: train each over seeds and evaluate the final policy on fresh episodes.

`python tests/benchmarks/results.py cartpole tutorial --seeds 0-9` prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

import numpy as np


def pgcli(*words: str) -> str:
    """Run a command and give what it prints."""
    return subprocess.run([sys.executable, "-m", "pgcli", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(config: str, seeds: str, folder: str) -> str:
    """Give the table row of one config."""
    runs = pgcli("train", config, "--seeds", seeds, "--jobs", "2", "--quiet", "--run-dir", f"{folder}/{config}").split()
    row = []
    for mode in ("sampled", "greedy"):
        found = [json.loads(pgcli("eval", run, "--json", "--mode", mode, "--seed", "1000")) for run in runs]
        means = np.array([one["mean_return"] for one in found])
        row.append(f"{means.mean():.0f} ({means.min():.0f} to {means.max():.0f})")
    steps = [one["env_steps"] for one in found]
    return (
        f"| {config} | {len(runs)} | {' | '.join(row)} | {np.median(steps):,.0f} ({min(steps):,} to {max(steps):,}) |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", default="0-9")
    arguments = parser.parse_args()
    print("| config | seeds | sampled: mean over seeds (range) | greedy | env steps: median (range) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.configs:
            print(measure(name, arguments.seeds, folder), flush=True)
