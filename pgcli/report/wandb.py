"""Weights & Biases: an offline run over env steps, with the learning curve and a film."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pgcli.config import Config, to_data
from pgcli.records import LogEntry
from pgcli.runs.files import own_folder


class WandB:
    """An offline run in the folder `wandb` of a run. Sends nothing and asks nothing."""

    def __init__(self, config: Config, path: Path) -> None:
        import wandb

        folder = own_folder(path, "wandb")
        shutil.rmtree(folder, ignore_errors=True)
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
        )
        name = f"{config.name}/seed-{config.seed}"
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        self._wandb = wandb
        self._run = wandb.init(
            mode="offline", dir=path, project="pgcli", name=name, config=to_data(config), settings=quiet
        )
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")

    def add(self, entry: LogEntry) -> None:
        """Write the numbers of a record."""
        self._run.log({"env_steps": entry.env_steps, "iteration": entry.iteration} | entry.values)

    def picture(self, name: str, file: Path, env_steps: int) -> None:
        """Write a .png or an animated .gif."""
        moves = file.suffix == ".gif"
        shown = self._wandb.Video(str(file), format="gif") if moves else self._wandb.Image(str(file))
        self._run.log({"env_steps": env_steps, name: shown})

    def close(self) -> None:
        """Complete the files."""
        self._run.finish()
