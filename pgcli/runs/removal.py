"""Remove run directories. Nothing outside them is removed, and links are not followed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pgcli.errors import RunDirectoryError
from pgcli.records import TABLES
from pgcli.runs.directory import check_owner, is_run
from pgcli.runs.files import TEMPORARY, storage
from pgcli.runs.information import find_run_hint
from pgcli.runs.lock import lock, lock_to_read
from pgcli.runs.outputs import is_ours

_OWN = {
    *("config.yaml", "run.json", "status.json", ".lock", *(f"{name}.csv" for name in TABLES)),
    *("checkpoints", "crash", "plots", "videos", "tensorboard", "wandb", "mlflow"),
}


def check_removable(path: Path, inside: Path) -> list[str]:
    """Return the names in a run directory that pgcli did not write.

    Args: inside: the folder that the user named; the run is in it, or is it.
    Raises: RunInUse; RunDirectoryError if the path is not a run directory of pgcli, is behind a link, or contains the
        current folder.
    """
    with storage(path):
        if inside.is_symlink() or path.resolve() != inside.resolve() / path.relative_to(inside):
            raise RunDirectoryError(f"{path}: is behind a link", "name the folder itself")
        if not path.is_dir() or not is_run(path):
            raise RunDirectoryError(f"{path}: not a run directory", find_run_hint(path))
        check_owner(path)
        if Path.cwd().is_relative_to(path.resolve()):
            raise RunDirectoryError(f"{path}: is the current folder", "run the command from another folder")
        with lock_to_read(path):
            pass
        names = [name for name in os.listdir(path) if name not in _OWN and not name.startswith(TEMPORARY)]
        return sorted(name for name in names if not ((path / name).is_file() and is_ours(path / name)))


def remove_runs(paths: Sequence[Path], inside: Sequence[Path]) -> None:
    """Remove run directories, and then the folders of `inside` on the way to them that became empty.

    Raises: RunInUse if a process is writing a run; the runs before it are removed.
    """
    for path, top in zip(paths, inside, strict=True):
        check_removable(path, top)
        with lock(path), storage(path):
            shutil.rmtree(path)
        above = path.parent
        while path != top and above.is_relative_to(top) and not os.listdir(above):
            above.rmdir()
            if above == top:
                break
            above = above.parent
