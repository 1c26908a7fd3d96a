"""Shipped configs learn what docs/results.md says: one seed of each that takes seconds, final policy."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import pgcli

ROOT = Path(__file__).parent.parent
SECONDS = 15  # of CPU time; `make results` trains the others
with (ROOT / "docs/results.csv").open(newline="") as file:
    ROWS = list(csv.DictReader(file))
QUICK = sorted({row["config"] for row in ROWS if float(row["cpu_seconds"] or "inf") <= SECONDS})


@pytest.mark.slow("trains a shipped config to its end")
@pytest.mark.parametrize("config", QUICK)
def test_a_seed_of_a_shipped_config_is_in_the_range_of_the_table(config: str, tmp_path: Path) -> None:
    """Another CPU has other last bits, so that its seeds are other draws from the same distribution."""
    rows = [row for row in ROWS if row["config"] == config]
    pgcli("train", config, "--run-dir", "run", "--quiet", cwd=tmp_path, timeout=900)
    done = pgcli("eval", "run", "--seed", "1000", "--json", cwd=tmp_path, timeout=900)
    found = json.loads(done.stdout)
    error = 4 * found["standard_error"]
    assert min(float(row["sampled"]) for row in rows) - error <= found["mean_return"]
    assert found["mean_return"] <= max(float(row["sampled"]) for row in rows) + error
    with (tmp_path / "run/evaluations.csv").open(newline="") as evaluations:
        untrained = float(next(csv.DictReader(evaluations))["return_mean"])
    assert untrained < max(float(row["sampled"]) for row in rows)
