"""Write the checkpoints of a run, delete old ones, and point to the latest and the best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pgcli.runs import checkpoints
from pgcli.runs.files import Folder, read_json


class CheckpointFolder:
    """Writes and deletes the checkpoints of the run in the open folder `run`."""

    def __init__(self, run: Folder) -> None:
        self._run = run
        self._opened: Folder | None = None
        self.results = set[int]()  # iterations at which the run had finished before it was extended

    @property
    def folder(self) -> Folder:
        """The open folder, created on first use."""
        if self._opened is None:
            self._opened = self._run.subfolder("checkpoints")
        return self._opened

    def save(
        self, checkpoint: checkpoints.Checkpoint, *, is_best: bool, best: int | None, keep: int, every: int | None
    ) -> None:
        """Write a checkpoint, then delete old ones, except that of iteration `best`."""
        path = self.folder.path / checkpoints.file_name(checkpoint.counters["iteration"])
        if path.exists():
            self._point("latest.json", path)
        else:
            checkpoints.save(self.folder, checkpoint)
        if is_best:
            checkpoints.point(self.folder, "best.json", path, checkpoints.digest_of(path))
        for old in _to_delete(checkpoints.list_checkpoints(self.folder.path), path, keep, every):
            if checkpoints.iteration_of(old) not in {*self.results, best}:
                self.folder.delete(old.name)

    def rewind(self, iteration: int) -> None:
        """Point `latest.json` to the checkpoint of `iteration`, and delete the later ones."""
        here = self.folder.path / checkpoints.file_name(iteration)
        checkpoints.point(self.folder, "latest.json", here, checkpoints.digest_of(here))
        for path in checkpoints.list_checkpoints(self.folder.path):
            if checkpoints.iteration_of(path) > iteration:
                self.folder.delete(path.name)
        self.folder.sync()

    def point_to_best(self, iteration: int | None) -> None:
        """Point `best.json` to the checkpoint of `iteration`, if it exists: `rewind` may have deleted it."""
        path = None if iteration is None else self.folder.path / checkpoints.file_name(iteration)
        if path is None or not path.exists():
            self.folder.delete("best.json")
        else:
            self._point("best.json", path)

    def remove_temporary(self) -> None:
        """Delete the incomplete files of a process that was killed."""
        self.folder.remove_temporary()

    def close(self) -> None:
        """Close the folder."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _point(self, name: str, path: Path) -> None:
        """Write a pointer, unless it names this checkpoint already."""
        pointer = self.folder.path / name
        if not pointer.exists() or read_json(pointer).get("file") != path.name:
            checkpoints.point(self.folder, name, path, checkpoints.digest_of(path))


def _to_delete(files: Sequence[Path], newest: Path, keep: int, every: int | None) -> list[Path]:
    """Return all checkpoints except the newest and the last `keep` regular ones."""
    regular = [path for path in files if path == newest or checkpoints.iteration_of(path) % (every or sys.maxsize) == 0]
    kept = {newest, *regular[-keep:]}
    return [path for path in files if path not in kept]
