"""The pages that teach: every command of theirs runs, in a short version, and every figure is of one of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import pgcli

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("lesson.md", "gradient_variance.md")
SHORT = (
    *("training.iterations=2", "training.env_steps=null", "training.seconds=null", "evaluation.episodes=2"),
    *("evaluation.stop_at_return=null", "rollout.horizon=20", "env.max_episode_steps=30"),
)


def commands(page: str) -> list[str]:
    """Give the commands of a page's `console` blocks, in their order: the lines that begin with `$`."""
    blocks = re.findall(r"```console\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return re.findall(r"^\$ (.+)$", "".join(blocks), re.MULTILINE)


def short(command: str) -> str:
    """Let a command that trains or evaluates do so for a moment only; two seeds are enough for an interval."""
    command = command.replace("--seeds 0-2", "--seeds 0-1")
    if command.startswith("pgcli train"):
        overrides = [text for text in SHORT if "/ppo " not in command or not text.startswith("rollout.horizon")]
        return f"{command} --quiet {' '.join(overrides)}"
    return command.replace("--episodes 100", "--episodes 3")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_lesson_runs_and_makes_its_figures(page: str, tmp_path: Path) -> None:
    lines = list(map(short, commands(page)))
    assert len(lines) >= 3
    for line in lines:
        pgcli(*shlex.split(line)[1:], cwd=tmp_path)
    for figure in re.findall(r" (?:-o|--video) (\S+)", "\n".join(lines)):
        assert (tmp_path / figure).stat().st_size > 1000, figure
    figures = set(re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", (DOCS / page).read_text()))
    assert figures
    assert not [name for name in figures if not (tmp_path / name).exists()], "a figure that no command makes"


def test_the_commands_of_a_lesson_are_understood_by_the_test() -> None:
    for page in PAGES:
        assert all(command.startswith("pgcli ") for command in commands(page)), page
        assert "```sh" not in (DOCS / page).read_text()
