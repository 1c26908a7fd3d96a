"""Weights & Biases: a run over env steps, offline or online, with the learning curve and a film."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgcli.config import Config, to_data
from pgcli.errors import RunDirectoryError
from pgcli.records import LogEntry
from pgcli.runs.files import opened, own_folder, read_json
from pgcli.runs.information import read_information

_TIMEOUT = 30.0  # seconds, for the server's answer to a new run
_FINISH_SECONDS = 120.0  # to send the rest
_ID = "id.json"  # the run on the server, which the next session continues


class WandB:
    """A run in the folder `wandb` of a run. Offline, it sends nothing and each session replaces it.

    Online, each session continues the run on the server and skips the rows that the server has. Asks nothing.
    """

    def __init__(self, config: Config, path: Path, iteration: int) -> None:
        folder, logging = own_folder(path, "wandb"), config.logging
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        os.environ.setdefault("WANDB_SILENT", "true")  # also before it reads the settings
        import wandb

        online, name = logging.wandb_mode == "online", None
        if online and read_information(path).get("exact", True):  # else other points may follow those that it has
            with suppress(RunDirectoryError):
                name = read_json(folder / _ID).get("id")
        shutil.rmtree(folder, ignore_errors=True)
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=_TIMEOUT,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        self._wandb, terminal = wandb, sys.stdin
        try:
            with open(os.devnull) as sys.stdin:  # so that it asks for no API key
                self._run = wandb.init(
                    mode=logging.wandb_mode,
                    dir=path,
                    id=name,
                    resume="allow" if online else None,
                    project=logging.wandb_project,
                    entity=logging.wandb_entity,
                    group=logging.wandb_group,
                    tags=logging.wandb_tags or None,
                    name=f"{config.name}/seed-{config.seed}",
                    config=to_data(config),
                    settings=quiet,
                )
        finally:
            sys.stdin = terminal
        self._sent = {"metrics": -1, "evaluation": -1}  # env steps, by the first part of a name
        if online:
            with opened(own_folder(path, "wandb")) as own:
                own.write_json(_ID, {"id": self._run.id})
            summary: Any = self._run.summary
            self._sent = {table: int(summary.get(f"{table}/env_steps", -1)) for table in self._sent}
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")

    def add(self, entry: LogEntry) -> None:
        """Write the numbers of a record."""
        table = "metrics" if "metrics/env_steps" in entry.values else "evaluation"
        if entry.env_steps > self._sent[table]:
            self._run.log({"env_steps": entry.env_steps, "iteration": entry.iteration} | entry.values)

    def picture(self, name: str, file: Path, env_steps: int) -> None:
        """Write a .png or an animated .gif."""
        moves = file.suffix == ".gif"
        shown = self._wandb.Video(str(file), format="gif") if moves else self._wandb.Image(str(file))
        self._run.log({"env_steps": env_steps, name: shown})

    def close(self, finished: bool) -> None:
        """Complete the run of this session; online, it shows whether training has finished."""
        errors = list[Exception]()

        def finish() -> None:
            try:
                self._run.finish(exit_code=0 if finished else 1)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=finish, daemon=True)  # it waits for a server that is gone
        thread.start()
        thread.join(_FINISH_SECONDS)
        if thread.is_alive():
            raise TimeoutError(f"not sent after {_FINISH_SECONDS:g} s; `wandb sync {self._run.dir}` sends the rest")
        if errors:
            raise errors[0]
