"""TensorBoard: scalars over env steps, hyperparameters, the learning curve and a film."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pgcli.config import Config, flat, to_data
from pgcli.records import LogEntry
from pgcli.runs.files import own_folder


class TensorBoard:
    """Event files in the folder `tensorboard` of a run. They replace those of earlier sessions."""

    def __init__(self, config: Config, path: Path, iteration: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import summary_v2
        from torch.utils.tensorboard import SummaryWriter

        folder = own_folder(path, "tensorboard")
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._summary, self._opened = Summary, time.time()
        # purge_step: an open TensorBoard drops all points of earlier sessions
        self._writer: Any = SummaryWriter(str(folder), purge_step=0, max_queue=1000, flush_secs=5)
        values = {key: str(x) if isinstance(x, list) else x for key, x in flat(to_data(config)).items()}
        settings = {key: x for key, x in values.items() if isinstance(x, bool | int | float | str)}
        metrics = [summary_v2.Metric(name) for name in ("evaluation/return_mean", "metrics/return_mean")]
        names = [summary_v2.HParam(name) for name in settings]
        self._add(summary_v2.hparams_config_pb(hparams=names, metrics=metrics), 0)
        self._add(summary_v2.hparams_pb(settings, trial_id=f"{path.parent.name}/{path.name}"), 0)

    def add(self, entry: LogEntry) -> None:
        """Write the numbers of a record, with its time."""
        made = self._opened + entry.elapsed if entry.elapsed else time.time()
        values = [self._summary.Value(tag=name, simple_value=number) for name, number in entry.values.items()]
        self._add(self._summary(value=values), entry.env_steps, made)  # add_scalar takes as long for a single number

    def picture(self, name: str, file: Path, env_steps: int) -> None:
        """Write a .png or an animated .gif. `add_image` and `add_video` would encode it again."""
        from PIL import Image

        with Image.open(file) as shown:
            width, height = shown.size
        content = file.read_bytes()
        image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._add(self._summary(value=[self._summary.Value(tag=name, image=image)]), env_steps)

    def close(self, finished: bool) -> None:
        """Complete the files."""
        self._writer.close()

    def _add(self, summary: Any, env_steps: int, made: float | None = None) -> None:
        self._writer.file_writer.add_summary(summary, env_steps, made)
