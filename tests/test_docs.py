"""README and docs: commands run, links exist, configs begin with their command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import pgcli
from test_lesson import SHORT

from pgcli.cli import app
from pgcli.config import load_config, shipped_configs
from pgcli.config.names import with_run_name
from pgcli.config.schema import AlgorithmConfig, PolicyConfig, ValueConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Return the commands of a page's `sh` blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


SHORTER = (
    *(
        (" --jobs 2", ""),
        ("--seeds 0-4", "--seeds 0-1"),
        ("--seeds 1-4", "--seeds 1-2"),
        ("--seeds 0-9", "--seeds 0-1"),
        ("--seeds 0-19", "--seeds 0-1"),
    ),
    ("training.env_steps=20000", "training.env_steps=300"),
    ("training.env_steps=50000", "training.env_steps=300"),
    ("training.env_steps=100000", ""),
)
OF_THE_README = [command for command in commands(PAGES[0]) if not command.startswith(("make ", "git ", "cd ", "pip "))]
OF_THE_DOCS = [(page, command) for page in PAGES[1:] for command in commands(page)]


def short(command: str) -> str:
    """Return a short version of a command; two seeds are enough for an interval."""
    for text, less in SHORTER:
        command = command.replace(text, less)
    if command.startswith("pgcli train"):
        location, *words = shlex.split(command)[2:]
        settings = [word for word in words if "=" in word]
        config = with_run_name(load_config(location, settings), location, settings)  # the name without SHORT
        shorter = [text for text in SHORT if "horizon" not in text or "/ppo" not in command]
        return " ".join([command, f"name={config.name}", *shorter])
    return f"{command} --episodes 2" if command.startswith("pgcli eval") else command


@pytest.fixture(scope="module")
def run_until(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str], int], str]:
    """Run the commands of a page in order, each once, up to a number; return the output of the last one."""
    homes: dict[str, Path] = {}
    outputs: dict[str, list[str]] = {}

    def run(page: str, lines: list[str], number: int) -> str:
        if page not in homes:
            homes[page], outputs[page] = tmp_path_factory.mktemp(page), []
        for line in lines[len(outputs[page]) : number + 1]:
            outputs[page].append(pgcli(*shlex.split(line)[1:], cwd=homes[page]).stdout)
        return outputs[page][number]

    return run


@pytest.mark.parametrize("number", range(len(OF_THE_README)), ids=OF_THE_README)
def test_a_command_of_the_readme_runs_after_those_above_it(
    number: int, run_until: Callable[[str, list[str], int], str]
) -> None:
    run_until("README", list(map(short, OF_THE_README)), number)


@pytest.mark.parametrize(("page", "command"), OF_THE_DOCS, ids=[f"{page.name}: {line}" for page, line in OF_THE_DOCS])
def test_a_command_of_a_page_runs_after_those_above_it(
    page: Path, command: str, run_until: Callable[[str, list[str], int], str]
) -> None:
    lines = commands(page)
    run_until(page.stem, lines, lines.index(command))


def words_of(output: str) -> list[str]:
    """Return an output without its numbers and commits, which depend on the machine."""
    output = re.sub(r"^commit .*\n( +.*\n)*", "", output, flags=re.MULTILINE)
    return re.sub(r"[-−]?\d[\d.,e+-]*", "#", output).split()


@pytest.mark.parametrize(
    ("page", "command"),
    [
        (PAGES[0], "pgcli eval runs/cartpole/seed-0"),
        (ROOT / "docs/show.md", "pgcli show runs/timid"),
        (ROOT / "docs/show.md", "pgcli show runs/timid runs/often"),
    ],
    ids=["README: eval", "show", "show two runs"],
)
def test_an_output_in_a_page_has_the_words_that_the_command_prints(
    page: Path, command: str, run_until: Callable[[str, list[str], int], str]
) -> None:
    lines = OF_THE_README if page == PAGES[0] else commands(page)
    block = re.findall(
        rf"^{re.escape(command)}\n```\n[^`]*?```text\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    shortened = list(map(short, lines)) if page == PAGES[0] else lines
    assert words_of(run_until(page.stem, shortened, lines.index(command))) == words_of(block[0])


@pytest.mark.slow("eight trainings at full length")
def test_the_commands_of_the_readme_run_at_full_length(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in OF_THE_README:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_makefile_has_the_targets_of_the_readme() -> None:
    """These commands create the test environment itself: CI runs them, this test checks that they exist."""
    makes = [command for command in commands(PAGES[0]) if command.startswith("make ")]
    assert makes
    for command in makes:
        subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_commands_of_the_pages_make_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import figures

    makers = figures.makers()
    pictures = {path.name for path in (ROOT / "docs/images").iterdir()}
    others = ("curves", "suite-")  # of `make results` and `make suites`
    assert set(makers) == {name for name in pictures if not name.startswith(others)}
    for name, (_, lines) in makers.items():
        verbs = [words[1] for words in lines]
        assert verbs == ["check"] or (set(verbs[:-1]) <= {"train", "compare"} and len(verbs) > 1), name


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_config_opens_with_its_command_and_loads(name: str) -> None:
    path = shipped_configs()[name]
    first, second, *_ = path.read_text().splitlines()
    assert first == f"# pgcli train configs/{name}.yaml"
    assert second.startswith("# ")
    assert len(second) < 100  # `pgcli init --list` prints it
    assert load_config(str(path)).name == name.replace("/", "-")


def test_the_readme_shows_the_shipped_cartpole() -> None:
    lines = shipped_configs()["cartpole"].read_text().splitlines(keepends=True)
    shown = "".join(line for line in lines if "yaml-language-server" not in line)
    assert f"```yaml\n{shown}```" in (ROOT / "README.md").read_text()


def test_every_key_of_the_algorithm_is_documented() -> None:
    page = (ROOT / "docs/algorithms.md").read_text()
    for section in (AlgorithmConfig, ValueConfig, PolicyConfig):
        assert not [key for key in section.model_fields if f"`{key}" not in page and f".{key}" not in page]
    for key in ("returns", "baseline", "objective", "average"):
        for value in re.findall(r"'(\w+)'", str(AlgorithmConfig.model_fields[key].annotation)):
            assert f"| `{value}` |" in page, f"{key}: {value}"
    for value in re.findall(r"'(\w+)'", str(PolicyConfig.model_fields["distribution"].annotation)):
        assert f"`{value}`" in page or value == "auto"


def test_the_readme_names_every_command_and_every_shipped_config() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert command.callback
        assert f"pgcli {command.callback.__name__}" in readme
    for name in shipped_configs():
        assert f"`{name}`" in readme
    for name in re.findall(r"`([a-z-]+/[a-z_]+)`", readme):
        assert name in shipped_configs()


def test_every_promise_on_reliability_names_existing_tests() -> None:
    page, list_of_faults = (ROOT / "docs/reliability.md").read_text(), (ROOT / "tests/faults.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", list_of_faults, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert f"lists {len(rows)} promises" in page
    for number, promise, cell in rows:
        tests = [re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", name) for name in cell.split("<br>")]
        assert promise
        for test in tests:
            assert test, f"{number}: {cell}"
            assert f"def {test[2]}(" in (ROOT / "tests" / test[1]).read_text(), f"{number}: {test[0]}"
    events = re.findall(r"^\| .+ \| (`test_.+`) \|$", page, re.MULTILINE)
    assert events
    for cell in events:
        for file in cell.split(", "):
            assert f"{file.strip('`')}::" in list_of_faults, file
