"""Train the configs for any environment on ten environments, and write their table into docs/algorithms.md.

    python tests/benchmarks/general.py [--jobs N]

The runs are in runs/general/DIGEST/ENVIRONMENT/CONFIG, where the digest is that of the table. An interrupted command
continues; complete runs are only evaluated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from results import GENERAL, ROOT, TEST_SEED, general_digest, mark, update_short_trainings
from results_page import EPISODES, MORE_EPISODES
from suites import with_section

from pgcli.experiment.load import load
from pgcli.inspection.evaluate import assess
from pgcli.studies.page import table

PAGE = ROOT / "docs/algorithms.md"
SEEDS, STEPS = 3, 200_000
# The environment, the decimals of its returns, and a time limit where it has none.
ENVIRONMENTS: dict[str, tuple[int, int | None]] = {
    "CartPole-v1": (0, None),
    "Acrobot-v1": (0, None),
    "FrozenLake-v1": (2, None),
    "MountainCarContinuous-v0": (0, None),
    "Pendulum-v1": (0, None),
    "InvertedPendulum-v5": (0, None),
    "CliffWalking-v1": (0, 200),
    "Taxi-v4": (1, None),
    "Hopper-v5": (0, None),
    "LunarLander-v3": (0, None),
}
NUMBERS = {name: MORE_EPISODES.get(name, EPISODES) for name in ENVIRONMENTS}  # of episodes
MEASURED = {"environments": ENVIRONMENTS, "seeds": SEEDS, "env steps": STEPS, "episodes": NUMBERS}


def returns(config: str, environment: str, folder: Path, jobs: int) -> list[float]:
    """Train a config on an environment, and return the mean return of each seed's final policy."""
    words = [f"env.id={environment}", f"training.env_steps={STEPS}", "evaluation.every=null"]
    limit = ENVIRONMENTS[environment][1]
    words += [] if limit is None else [f"env.max_episode_steps={limit}"]
    words += ["--seeds", f"0-{SEEDS - 1}", "--jobs", str(jobs), "--resume", "--quiet"]
    place = folder / environment / config
    subprocess.run([sys.executable, "-m", "pgcli", "train", config, *words, "--run-dir", place], check=True)
    found = []
    for seed in range(SEEDS):
        agent = load(place / f"seed-{seed}", "latest", trust=True)  # these runs are our own
        found.append(assess(agent, NUMBERS[environment], "sampled", 1.0, None, TEST_SEED, 0, None, [])["mean_return"])
    return found


def cell(values: list[float], digits: int) -> str:
    """Return the mean of some returns, and the lowest and the highest."""
    mean, low, high = (
        f"{round(value, digits) + 0.0:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values))
    )
    return f"{mean} ({low} to {high})"


def main() -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/general", help="folder of the runs")
    words = parser.parse_args()
    update_short_trainings(GENERAL)
    folder = words.runs / general_digest(MEASURED)
    rows = [["environment", *(f"`{config}`" for config in GENERAL)]]
    for environment, (digits, limit) in ENVIRONMENTS.items():
        cells = [cell(returns(config, environment, folder, words.jobs), digits) for config in GENERAL]
        rows.append([environment if limit is None else f"{environment}, limit {limit}", *cells])
        print(*rows[-1], sep="  ", flush=True)
    PAGE.write_text(with_section(PAGE.read_text(), "returns", "\n".join([mark(MEASURED), "", *table(rows)])))


if __name__ == "__main__":
    main()
