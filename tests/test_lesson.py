"""The lesson and the page on gradient variance: each command runs and makes its figures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import pgcli
from helpers import mostly_slow
from test_check import NETWORK

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("lesson.md", "gradient_variance.md")
SHORT = (
    *("training.iterations=2", "training.env_steps=null", "training.seconds=null", "evaluation.episodes=2"),
    *("evaluation.stop_at_return=null", "rollout.horizon=20", "env.max_episode_steps=30"),
)
SHORT_COMPARISON = ("training.env_steps=100", "evaluation.episodes=2", "env.max_episode_steps=30")


def commands(page: str) -> list[str]:
    """Return the commands of a page's `console` blocks in their order: the lines that begin with `$`."""
    blocks = re.findall(r"```console\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return re.findall(r"^\$ (.+)$", "".join(blocks), re.MULTILINE)


def short(command: str) -> str:
    """Return a command that trains or evaluates for a moment only; two seeds are enough for an interval."""
    command = command.replace("--seeds 0-9", "--seeds 0-1").replace("--episodes 100", "--episodes 3")
    if command.startswith("pgcli train"):
        return f"{command} --quiet {' '.join(SHORT)}"
    if command.startswith("pgcli compare"):
        return f"{command} --quiet {' '.join(SHORT_COMPARISON)}"
    return command


def students_code() -> str:
    """Return a student's my.py: a policy class and the estimator of the page on the gradient check."""
    estimator = re.findall(r"```python\n(.*?)```", (DOCS / "check.md").read_text(), re.DOTALL)[0]
    return f"{NETWORK}\n{estimator}\nclass SoftmaxPolicyNetwork(Right):\n    pass\n"


@pytest.mark.parametrize("page", mostly_slow(PAGES, ["gradient_variance.md"], "runs more than twenty commands"))
def test_every_command_of_a_lesson_runs_and_makes_its_figures(page: str, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(students_code())
    lines = list(map(short, commands(page)))
    assert len(lines) >= 3
    for line in lines:
        pgcli(*shlex.split(line)[1:], cwd=tmp_path)
    for figure in re.findall(r" (?:-o|--video) (\S+\.\w+)", "\n".join(lines)):
        assert (tmp_path / figure).stat().st_size > 1000, figure
    figures = set(re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", (DOCS / page).read_text()))
    assert figures
    assert not [name for name in figures if not (tmp_path / name).exists()], "a figure that no command makes"


@pytest.mark.parametrize("page", PAGES)
def test_a_lesson_trains_only_in_commands_that_the_test_understands(page: str) -> None:
    assert all(command.startswith("pgcli ") for command in commands(page))
    assert "```sh" not in (DOCS / page).read_text()


def test_no_run_of_a_lesson_is_in_a_folder_of_the_readme_or_of_another_lesson() -> None:
    folders: list[str] = []
    for page in PAGES:
        words = [shlex.split(command) for command in commands(page) if command.split()[1] in ("train", "compare")]
        folders += [line[line.index("--run-dir" if line[1] == "train" else "-o") + 1] for line in words]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("runs/lesson/") for folder in folders)


def test_every_section_of_the_lesson_has_an_exercise_and_its_answer() -> None:
    _, *sections, _ = re.split(r"^## ", (DOCS / "lesson.md").read_text(), flags=re.MULTILINE)
    assert len(sections) >= 8
    for section in sections:
        assert section.count("**Exercise.**") == section.count("Expected answer") == 1, section.splitlines()[0]
