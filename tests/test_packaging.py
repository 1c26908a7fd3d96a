"""What `pip install .` brings."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

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
