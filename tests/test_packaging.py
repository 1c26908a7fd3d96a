"""The content of `pip install .`."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from pgcli.system import packages

ROOT = Path(__file__).parent.parent


def test_the_wheel_trains_and_has_the_shipped_configs_inside(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    shipped = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml"))
    inside = tmp_path / "site/pgcli/configs"
    assert sorted(str(path.relative_to(inside)) for path in inside.rglob("*.yaml")) == shipped
    assert (inside / "schema.json").is_file(), "what the configs name for editors"
    done = subprocess.run(
        [sys.executable, "-c", "import pgcli.__main__ as m, pgcli; print(pgcli.__file__); m.main()", "init", "--list"],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in done.stdout
    assert "cartpole" in done.stdout
    assert (tmp_path / "site/pgcli/py.typed").is_file()
    templates = {path.name for path in (ROOT / "pgcli/report/html/templates").iterdir()}
    assert {path.name for path in (tmp_path / "site/pgcli/report/html/templates").iterdir()} == templates
    assert next((tmp_path / "site").glob("*.dist-info")).name.startswith("policy_gradient_cli-")


def test_a_missing_extra_is_installed_by_its_own_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.4", "ale-py>=0.11; extra == 'atari'", "opencv>=4; extra == 'atari'", "ray>=2; extra == 'ray'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert packages.install_command("atari") == 'pip install "ale-py>=0.11" "opencv>=4"'
    monkeypatch.setattr(metadata, "requires", lambda name: None)
    assert packages.install_command("ray") == "pip install -c constraints.txt '.[ray]'"


def test_no_text_installs_the_postgresql_client() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "pgcli").rglob("*.py")]
    assert len(texts) > 100
    for path in texts:
        assert not re.search(r"pip install[^\n]*[\s\"']pgcli\b", path.read_text()), path
