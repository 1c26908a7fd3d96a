"""TensorBoard, Weights & Biases and MLflow get each number of the tables once, without side effects."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import numpy as np
import pytest
from command_line import pgcli
from helpers import mostly_slow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgcli.config import load_config
from pgcli.config.schema import LoggingConfig
from pgcli.errors import Interrupted, UsageError
from pgcli.experiment.loggers import check_loggers
from pgcli.experiment.recorder import Context
from pgcli.experiment.run import Request, check_request, run_experiment
from pgcli.records import Iteration, LogEntry, Notice, Record
from pgcli.report import mlflow
from pgcli.report.logs import logged
from pgcli.report.tensorboard import TensorBoard
from pgcli.system.packages import install_command

TINY = (
    *("training.iterations=5", "training.env_steps=null", "evaluation.every=2", "evaluation.episodes=3"),
    *("evaluation.stop_at_return=null", "checkpoint.every=2", "env.max_episode_steps=30", "rollout.episodes=4"),
    *("env.num_envs=4", "policy.hidden_sizes=[4]"),
)


def train(
    path: Path, *overrides: str, resume: bool = False, watch: Callable[[Record], None] = lambda record: None
) -> Path:
    request = Request(load_config("cartpole", [*TINY, *overrides]), path, ["train"], resume=resume)
    with logged(request, watch) as watch_and_log:
        run_experiment(request, Context(watch_and_log))
    return path


def tables(run: Path) -> dict[tuple[str, int], float]:
    """Every number of the tables, by (tag, env steps)."""
    found = {}
    with (run / "metrics.csv").open(newline="") as file:
        steps = {row["iteration"]: row["env_steps"] for row in csv.DictReader(file)}
    for name in ("metrics", "evaluations", "timing"):
        with (run / f"{name}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                for column, cell in row.items():
                    if cell and column != "mode" and (name, column) != ("timing", "iteration"):
                        step = int(row.get("env_steps") or steps[row["iteration"]])
                        found[f"{name.replace('evaluations', 'evaluation')}/{column}", step] = cell
    return {key: float(cell) for key, cell in found.items()}


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def scalars(run: Path) -> dict[tuple[str, int], float]:
    accumulator = events(run)
    points = [
        ((tag, point.step), point.value) for tag in accumulator.Tags()["scalars"] for point in accumulator.Scalars(tag)
    ]
    assert len(dict(points)) == len(points), "no point twice"
    return dict(points)


def points(run: Path) -> dict[tuple[str, int], float]:
    """Every point of the run of MLflow, by (metric, step)."""
    client, name = mlflow_client(run)
    found = dict[tuple[str, int], float]()
    for metric in client.get_run(name).data.metrics:
        history = client.get_metric_history(name, metric)
        assert len({one.step for one in history}) == len(history), f"{metric}: a point twice"
        found |= {(metric, one.step): one.value for one in history}
    return found


def mlflow_client(run: Path) -> tuple[Any, str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlflow/store").as_uri())
    return client, json.loads((run / "mlflow/run.json").read_text())["run"]


def as_float32(numbers: dict[Any, float]) -> dict[Any, float]:
    return {key: float(np.float32(number)) for key, number in numbers.items()}  # TensorBoard's scalars are


@pytest.mark.parametrize("name", mostly_slow(["tensorboard", "wandb", "mlflow"], ["tensorboard"], "imports the tool"))
def test_a_linked_folder_is_not_written_and_training_continues(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "events.out.tfevents.mine").write_text("mine")
    (train(tmp_path / "run") / name).symlink_to(outside)
    shown: list[Record] = []
    train(tmp_path / "run", "training.iterations=6", f"logging.{name}=true", resume=True, watch=shown.append)
    assert [file.name for file in outside.iterdir()] == ["events.out.tfevents.mine"]
    (notice,) = (one.text for one in shown if isinstance(one, Notice) and "failed" in one.text)
    assert f"{name}: is a link, not a folder" in notice
    assert (tmp_path / "run/metrics.csv").read_text().count("\n") == 7


def of_the_result(run: Path) -> dict[str, bytes]:
    names = ["metrics.csv", "evaluations.csv", "episodes.csv", *(f"checkpoints/{n}.json" for n in ("best", "latest"))]
    return {name: (run / name).read_bytes() for name in names} | {
        file.name: file.read_bytes() for file in (run / "checkpoints").glob("*.safetensors")
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("plain") / "run")


def test_tensorboard_has_every_number_of_the_tables_and_the_result_is_the_same(plain: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "logging.tensorboard=true")
    assert scalars(run) == as_float32(tables(run))
    assert len(tables(run)) > 100
    last = max(step for _, step in scalars(run))
    assert scalars(run)["metrics/iteration", last] == 4
    assert scalars(run)["evaluation/iteration", last] == 5
    assert scalars(run)["evaluation/env_steps", last] == scalars(run)["metrics/env_steps", last] == last > 5
    assert {image.step for name in ("film", "learning_curve") for image in events(run).Images(name)} == {last}
    assert of_the_result(run) == of_the_result(plain)
    accumulator = events(run)
    assert set(accumulator.Tags()["images"]) == {"learning_curve", "film"}
    film = accumulator.Images("film")[0]
    assert (film.width, film.height) == (600, 400)
    assert film.encoded_image_string.startswith(b"GIF89a")
    assert accumulator.Images("learning_curve")[0].encoded_image_string.startswith(b"\x89PNG")
    told = accumulator.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"algorithm.gamma" in told
    assert b"CartPole-v1" in told


def test_a_resumed_run_logs_each_point_once_and_no_discarded_points(plain: Path, tmp_path: Path) -> None:
    def stop(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 2:
            raise MemoryError  # as a kill does: the last checkpoint is that of iteration 2, and rows came after it

    with pytest.raises(MemoryError):
        train(tmp_path / "run", "logging.tensorboard=true", watch=stop)
    assert len([tag for tag, _ in scalars(tmp_path / "run") if tag == "metrics/entropy"]) == 3
    seen: list[tuple[str, int]] = []

    def look(record: Record) -> None:
        if isinstance(record, Iteration) and not seen:
            seen.append(("resumed", record.iteration))

    run = train(tmp_path / "run", "logging.tensorboard=true", resume=True, watch=look)
    assert seen == [("resumed", 2)]
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert scalars(run) == as_float32(tables(run))
    assert of_the_result(run) == of_the_result(plain)


def test_mlflow_continues_its_run_with_each_point_once(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "_SECONDS", 0.0)

    def stop(record: Record) -> None:
        if isinstance(record, Iteration) and record.iteration == 2:
            raise MemoryError  # as a kill does, after rows that no checkpoint has

    run = tmp_path / "run"
    with pytest.raises(MemoryError):
        train(run, "logging.mlflow=true", watch=stop)
    client, first = mlflow_client(run)
    assert [one.step for one in client.get_metric_history(first, "metrics/iteration")] == sorted(
        step for name, step in tables(run) if name == "metrics/iteration"
    )
    train(run, "logging.mlflow=true", resume=True)
    client, name = mlflow_client(run)
    assert name == first
    expected = tables(run)
    assert points(run).keys() == expected.keys()
    assert all(points(run)[key] == number for key, number in expected.items() if not key[0].startswith("timing/"))
    found = client.get_run(name)
    assert found.info.status == "FINISHED"
    assert found.data.params["env.id"] == "CartPole-v1"
    assert {file.path for file in client.list_artifacts(name)} == {"learning_curve.png", "film.gif"}
    assert of_the_result(run) == of_the_result(plain)


@pytest.mark.slow("trains three times with MLflow")
def test_mlflow_starts_a_new_run_if_other_points_follow(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "logging.mlflow=true", "training.iterations=2")
    _, first = mlflow_client(run)
    train(run, "logging.mlflow=true", "optimizer.learning_rate=0.01", resume=True)  # after its last point
    assert mlflow_client(run)[1] == first
    assert points(run).keys() == tables(run).keys()
    request = Request(load_config(str(run / "config.yaml"), ["optimizer.learning_rate=0.1"]), run, [], resume=True)
    with logged(replace(request, which="2"), lambda record: None) as watch:
        run_experiment(replace(request, which="2"), Context(watch))
    assert mlflow_client(run)[1] != first
    assert points(run).keys() == tables(run).keys()


@pytest.mark.slow("imports wandb")
def test_wandb_gets_its_keys_and_continues_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    calls, runs = list[dict[str, Any]](), list[Mock]()

    def init(**settings: Any) -> Mock:
        runs.append(Mock(id=settings["id"] or "new", summary=dict(runs[-1].summary) if runs else {}))
        runs[-1].log.side_effect = runs[-1].summary.update
        calls.append(settings | {"asks": sys.stdin.isatty()})
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    keys = [f"logging.wandb_{key}" for key in ("mode=online", "project=p", "entity=me", "tags=[a,b]", "group=g")]
    keys.append("logging.wandb=true")
    run = train(tmp_path / "run", *keys, "training.iterations=3")
    train(run, *keys, resume=True)
    names = ("mode", "project", "entity", "tags", "group", "id", "resume", "name", "asks")
    expected = ["online", "p", "me", ["a", "b"], "g", None, "allow", "cartpole/seed-0", False]
    assert [calls[0][name] for name in names] == expected
    assert calls[1] == calls[0] | {"id": "new", "config": calls[1]["config"], "settings": calls[1]["settings"]}
    logs = [[call.args[0] for call in run.log.call_args_list] for run in runs]
    steps = [row["env_steps"] for rows in logs for row in rows if "metrics/iteration" in row]
    assert steps == sorted(set(steps))
    assert len(steps) == 5
    assert [run.finish.call_args.kwargs for run in runs] == [{"exit_code": 0}] * 2


def test_wandb_online_needs_a_key_before_any_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    online = LoggingConfig(wandb=True, wandb_mode="online")
    with pytest.raises(UsageError, match="needs an API key"):
        check_loggers(online)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 1")
    check_loggers(online)


@pytest.mark.parametrize(
    "uri", ["https://me:pass@host/x", "https://me:p@ss/w@host", "postgresql://host/db?user=me&password=1"]
)
def test_a_password_is_neither_stored_nor_printed(uri: str, tmp_path: Path) -> None:
    words = ("logging.mlflow=true", f"logging.mlflow_uri={uri}")
    done = pgcli("train", "cartpole", *words, "--run-dir", "run", cwd=tmp_path, code=2)
    assert "this address has a password" in done.stderr
    assert "MLFLOW_TRACKING_PASSWORD" in done.stderr
    assert "***" in done.stderr
    assert "ss@" not in done.stderr
    assert "password=1" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_gone_ends_the_log_with_one_notice(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = uuid4().hex  # run.json may have the diff of this file
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{password}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shown: list[Record] = []
    run = train(tmp_path / "run", "logging.mlflow=true", watch=shown.append)
    (notice,) = (one.text for one in shown if isinstance(one, Notice) and "failed" in one.text)
    assert notice.startswith("MLflow failed; training continues without it")
    assert password not in notice
    assert "\n" not in notice
    assert of_the_result(run) == of_the_result(plain)
    assert not any(password in file.read_text() for file in (run / "run.json", run / "config.yaml"))


def test_a_log_enabled_at_a_resume_includes_the_past(plain: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "training.iterations=3")
    train(run, "logging.tensorboard=true", resume=True)
    assert scalars(run) == as_float32(tables(run))
    assert len({step for _, step in scalars(run)}) == 6
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv", "checkpoints/iteration-000005.safetensors"):
        assert (run / name).read_bytes() == (plain / name).read_bytes()


def test_a_failing_log_is_reported_and_training_continues(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, entry: LogEntry) -> None:
        if entry.iteration == 1:
            raise OSError("the disk of the logs is full")

    monkeypatch.setattr(TensorBoard, "add", fail)
    notices: list[str] = []
    run = train(
        tmp_path / "run",
        "logging.tensorboard=true",
        watch=lambda record: notices.append(record.text) if isinstance(record, Notice) else None,
    )
    assert [text for text in notices if "TensorBoard failed" in text and "disk of the logs" in text]
    assert of_the_result(run) == of_the_result(plain)


def test_an_interrupt_passes_through_a_log(tmp_path: Path) -> None:
    def stop(record: Record) -> None:
        if isinstance(record, Iteration):
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        train(tmp_path / "run", "logging.tensorboard=true", watch=stop)
    assert not events(tmp_path / "run").Tags()["images"], "no film of a run that goes on"


def test_wandb_is_offline_has_the_numbers_and_the_result_is_the_same(plain: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pgcli", "train", "cartpole", *TINY, "logging.wandb=true", "--run-dir", "run"]
    home = {"HOME": str(tmp_path / "home"), "WANDB_MODE": "online", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | home, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "WandB failed" not in done.stderr
    assert "wandb" not in done.stderr.replace("logging.wandb", ""), "it says nothing, and asks nothing"
    run = tmp_path / "run"
    assert of_the_result(run) == of_the_result(plain)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("run", "home")] == []
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    expected, found = tables(run), {}
    for row in history(file):
        for key, number in row.items():
            if key.startswith(("metrics/", "evaluation/", "timing/")):
                found[key, int(row["env_steps"])] = number
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[key], number, rel_tol=1e-12) for key, number in expected.items())
    assert list((run / "wandb").glob("offline-run-*/files/media/images/learning_curve*.png"))
    assert list((run / "wandb").glob("offline-run-*/files/media/videos/film*.gif"))


def history(file: Path) -> list[dict[str, float]]:
    """Read back the records of an offline run."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in leveldb_log(file.read_bytes()[7:]):  # after the name and version of the format
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made when it is imported
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append(
                {key: value for key, text in items.items() if isinstance(value := json.loads(text), int | float)}
            )
    return rows


def leveldb_log(content: bytes) -> list[bytes]:
    """Parse a log in LevelDB's format: blocks of 32 KiB of (crc, length, kind, data)."""
    records, parts, at = list[bytes](), b"", 0
    while at + 7 <= len(content):
        left = 32768 - (at + 7) % 32768  # the first block begins with the seven bytes before
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(parts)
            parts = b""
    return records


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_extra_is_reported_before_any_file_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    request = Request(load_config("cartpole", [f"logging.{name}=true"]), tmp_path / "run", ["train"])
    with pytest.raises(UsageError, match=f"logging.{name} needs the package {name}") as caught:
        check_request(request)
    assert caught.value.hint == install_command(name)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_disabled_logs_are_not_imported(tmp_path: Path) -> None:
    program = (
        "import sys, pgcli.__main__ as m; sys.argv = ['pgcli', 'train', 'cartpole', *sys.argv[1:]]; code = m._run(); "
        "heavy = {'tensorboard', 'wandb', 'mlflow', 'matplotlib'} & set(sys.modules); "
        "sys.exit(code or ' '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY, "--run-dir", str(tmp_path / "run"), "-q"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
