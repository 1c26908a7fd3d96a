"""Compare the shipped suites, and write their tables and figures into docs/suites.md.

    python tests/benchmarks/suites.py [--jobs N] [NAME …]

The runs are in runs/suites/NAME-DIGEST, where the digest is that of the table. A suite that was interrupted continues;
a complete one is only written again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from results import GENERAL, ROOT, cpu, general_digest, mark, update_short_trainings

from pgcli.config import shipped_suites
from pgcli.studies.page import table
from pgcli.studies.suite_report import final_rows, overall_rows, pair_rows, task_rows

PAGE = ROOT / "docs/suites.md"


def section(name: str, folder: Path) -> str:
    """Return the tables and the figure of a suite in Markdown, with the versions and the time of its runs."""
    result = json.loads((folder / "report.json").read_text())
    runs = sorted(folder.glob("*/runs/*/seed-*"))
    lines = [*table(overall_rows(result)), "", *table(pair_rows(result)), ""]
    lines += [f"![Performance profiles of the suite {name}](images/suite-{name}.png)", ""]
    lines += [
        *table(task_rows(result)),
        "",
        "The final returns, as IQM over seeds:",
        "",
        *table(final_rows(result)),
        "",
    ]
    return "\n".join([*lines, f"{len(runs)} runs with {versions(json.loads((runs[0] / 'run.json').read_text()))}."])


def measured(name: str) -> object:
    """Return the content of a shipped suite."""
    return yaml.safe_load(shipped_suites()[f"suites/{name}"].read_text())


def versions(information: dict[str, Any]) -> str:
    """Return the versions that the results of a run depend on, and this machine's processor, on two lines."""
    found = information["versions"]
    names = [name for name in ("gymnasium", "torch", "numpy", "Box2D", "mujoco") if name in found]
    return f"{', '.join(f'{name} {found[name]}' for name in names)},\non {cpu()}"


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with the part between the markers of a suite replaced. Raises: ValueError without markers."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    if start not in page or end not in page:
        raise ValueError(f"the page has no place for {name}: {start.strip()} … {end.strip()}")
    return f"{page.partition(start)[0]}{start}\n{text}\n{end}{page.partition(end)[2]}"


def main() -> None:
    """Compare each suite, then write its section and its figure."""
    names = [name.removeprefix("suites/") for name in shipped_suites()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(names)}")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/suites", help="folder of the runs")
    arguments = parser.parse_args()
    update_short_trainings(GENERAL)
    for name in arguments.names or names:
        folder = arguments.runs / f"{name}-{general_digest(measured(name))}"
        command = [sys.executable, "-m", "pgcli", "compare", f"suites/{name}", "--jobs", arguments.jobs, "-o", folder]
        subprocess.run(command, check=True)
        shutil.copy(folder / "profiles.png", PAGE.parent / f"images/suite-{name}.png")
        text = f"{mark(measured(name))}\n\n{section(name, folder)}"
        PAGE.write_text(with_section(PAGE.read_text(), name, text))


if __name__ == "__main__":
    main()
