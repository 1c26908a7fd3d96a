"""MLflow: a run over env steps in a folder, a database or on a server, with curve and film."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from pgcli.config import Config, flat, to_data
from pgcli.records import LogEntry
from pgcli.runs.files import opened, own_folder, read_json
from pgcli.runs.information import read_information

_SECONDS, _MOST = 5.0, 20_000  # between two messages; metrics that wait
_METRICS, _PARAMETERS = 1000, 100  # of one message
_VARIABLES = {  # unless the user sets them; no news of the run to MLflow's makers, no minutes of waiting for a server
    **{"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"},
    **{"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
}


class MLflow:
    """The run that mlflow/run.json names. Each session continues it, and skips the points that it has."""

    def __init__(self, config: Config, path: Path, iteration: int) -> None:
        os.environ.update({name: value for name, value in _VARIABLES.items() if name not in os.environ})
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        folder, own = own_folder(path, "mlflow"), config.logging
        uri = own.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or (folder / "store").absolute().as_uri()
        self._client, self._metric = MlflowClient(tracking_uri=uri), Metric
        self._opened, self._sent, self._waiting = time.time(), time.monotonic(), list[Metric]()
        self._known: dict[str, int] = {}  # the last step that the run has, by metric
        is_exact = bool(read_information(path).get("exact", True))
        former = read_json(folder / "run.json")["run"] if (folder / "run.json").exists() else None
        if former is None or not self._continues(former, iteration, is_exact):
            self._start(config, folder)

    def _continues(self, run: str, iteration: int, is_exact: bool) -> bool:
        """Return whether to continue a run: not if it is gone, or has points that differ from those to come."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        latest = found.data.metrics
        if found.info.lifecycle_stage != "active" or (
            latest.get("metrics/iteration", -1) >= iteration and not is_exact
        ):
            return False
        self._known = {name: max(one.step for one in self._client.get_metric_history(run, name)) for name in latest}
        self._id = run
        self._client.update_run(run, status="RUNNING")
        return True

    def _start(self, config: Config, folder: Path) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        name = config.logging.mlflow_experiment
        try:
            experiment = self._client.create_experiment(name)
        except MlflowException as error:
            exists = error.error_code == "RESOURCE_ALREADY_EXISTS"
            found = self._client.get_experiment_by_name(name) if exists else None
            if found is None:
                raise
            experiment = found.experiment_id
        self._id = self._client.create_run(experiment, run_name=f"{config.name}/seed-{config.seed}").info.run_id
        with opened(folder) as own:
            own.write_json("run.json", {"run": self._id})
        parameters = [Param(key, str(value)[:6000]) for key, value in flat(to_data(config)).items()]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])

    def add(self, entry: LogEntry) -> None:
        """Take the numbers of a record, and send them within seconds."""
        made = int(1000 * (self._opened + entry.elapsed if entry.elapsed else time.time()))
        for name, value in entry.values.items():
            if entry.env_steps > self._known.get(name, -1):
                self._waiting.append(self._metric(name, value, made, entry.env_steps))
        if len(self._waiting) > _MOST or time.monotonic() - self._sent > _SECONDS:
            self._send()

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:_METRICS])
            del self._waiting[:_METRICS]
        self._sent = time.monotonic()

    def picture(self, name: str, file: Path, env_steps: int) -> None:
        """Write a .png or an animated .gif."""
        self._client.log_artifact(self._id, str(file))

    def close(self, finished: bool) -> None:
        """Send the rest, and mark the run as finished, or as one that was stopped."""
        self._send()
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
