"""pgcli from Python: `train`, `evaluate`, `compare`, `check`, and runs as objects."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from command_line import pgcli as command
from command_line import whole
from gymnasium.envs.classic_control import CartPoleEnv

import pgcli
from pgcli.api.session import in_python
from pgcli.errors import (
    ConfigError,
    EnvironmentFailure,
    Interrupted,
    PgcliError,
    Problem,
    RunDirectoryError,
    UsageError,
)
from pgcli.experiment.run import Failure

SMALL = {
    "rollout.episodes": 4,
    "env.num_envs": 2,
    "policy.hidden_sizes": [8],
    "training.iterations": 3,
    "evaluation.every": 2,
    "evaluation.episodes": 3,
    "evaluation.stop_at_return": None,
    "env.max_episode_steps": 30,
}
WORDS = [f"{key}={'null' if value is None else value}" for key, value in SMALL.items()]
LONG = {"training.iterations": 100_000, "checkpoint.every": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pgcli.Run:
    return pgcli.train("cartpole", SMALL, run_dir=tmp_path_factory.mktemp("api") / "run")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_has_the_bytes_of_the_command_and_its_tables_are_arrays(run: pgcli.Run, home: Path) -> None:
    command("train", "cartpole", *WORDS, "-q", "--run-dir", "cli", cwd=home)
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv", "checkpoints/iteration-000003.safetensors"):
        assert (home / "cli" / name).read_bytes() == (run.path / name).read_bytes(), name
    header, *lines = (line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines())
    column = [float(line[header.index("return_mean")]) for line in lines]
    assert run.metrics["return_mean"].tolist() == column
    assert run.metrics["iteration"].dtype == np.int64
    assert run.evaluations["iteration"].tolist() == [0, 2, 3]
    assert set(run.episodes["ended"]) <= {"terminated", "truncated"}
    assert np.isnan(run.metrics["value_loss"]).all()
    assert dict(run.timing).keys() == set(run.timing.columns)
    assert "return_mean" in run.metrics
    assert len(run.metrics) == 3
    assert run.config.policy.hidden_sizes == [8]
    assert run.status == "finished"
    assert run.information["command"] == ["train", "cartpole", *WORDS]
    assert all(one.level in ("note", "warning") and one.text for one in run.findings)
    assert repr(run).endswith(f": finished, 3 iterations, return {run.evaluations['return_mean'][-1]:.4g}>")
    assert repr(run.metrics).startswith("<metrics.csv: 3 rows, ")


def test_a_table_becomes_a_data_frame(run: pgcli.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("pandas")
    fake.DataFrame = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", fake)
    frame: Any = run.evaluations.to_pandas()
    assert frame["mode"].tolist() == ["sampled"] * 3
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="needs the package pandas") as raised:
        run.metrics.to_pandas()
    assert raised.value.hint == "pip install pandas"


def test_html_escapes_all_text(home: Path) -> None:
    found = pgcli.train("cartpole", {**SMALL, "logging.info": ["<script>alert(1)</script>"]}, run_dir="<b>")
    page = found._repr_html_() + found.metrics._repr_html_() + pgcli.evaluate(found, episodes=1)._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
    assert 'src="data:image/svg+xml;base64,' in page
    Path("<b>/metrics.csv").unlink()
    assert found._repr_html_() == "<pre>&lt;Run &lt;b&gt;: unreadable&gt;</pre>"


def state() -> dict[str, Any]:
    """Return the process-wide settings that a call must leave as they were."""
    return {
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "wakeup": signal.set_wakeup_fd(-1),
        "threads": torch.get_num_threads(),
        "random": random.getstate(),
        "numpy": [str(one) for one in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "environ": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers), logging.root.manager.disable),
        "logger": logging.getLogger("of.mine").level,
        "error state": np.geterr(),
        "grad": torch.is_grad_enabled(),
    }


class Careless(CartPoleEnv):
    """Changes all settings of the process that it can."""

    def reset(self, **options: Any) -> Any:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        os.environ["CARELESS"] = "1"
        os.environ.pop("KEPT", None)
        logging.basicConfig(level=logging.DEBUG, force=True)
        logging.getLogger("of.mine").setLevel(logging.CRITICAL)
        logging.disable(logging.ERROR)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.chdir("/")
        torch.set_grad_enabled(False)
        return super().reset(**options)


gym.register("Careless-v0", entry_point=lambda **options: Careless(**options))


def test_a_call_leaves_the_process_as_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    torch.set_num_threads(2)
    try:
        before = state()
        found = pgcli.train("cartpole", {**SMALL, "env.id": "Careless-v0"}, run_dir="run")
        assert state() == before
        pgcli.evaluate(found, episodes=2)
        assert state() == before
        with pytest.raises(UsageError):
            pgcli.train("cartpole", {**SMALL, "env.id": "Acrobot-v1"}, start_from=found)
        assert state() == before
    finally:
        torch.set_num_threads(1)


def test_it_trains_in_another_thread_and_within_a_running_loop(home: Path, run: pgcli.Run) -> None:
    found: list[pgcli.Run] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(pgcli.train("cartpole", SMALL, run_dir=f"thread-{n}")))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def cell() -> pgcli.Run:
        return pgcli.train("cartpole", SMALL, run_dir="loop")

    found.append(asyncio.run(cell()))
    assert [one.metrics["return_mean"].tolist() for one in found] == [run.metrics["return_mean"].tolist()] * 3
    assert [one.notices for one in found] == [[], [], []]


def send_in(path: Path, numbers: list[int]) -> threading.Thread:
    """Send signals to this process, each after another row of a run's metrics.csv."""

    def send() -> None:
        for number in numbers:
            table = path / "metrics.csv"
            rows = table.read_bytes().count(b"\n") if table.exists() else 0
            while not (table.exists() and table.read_bytes().count(b"\n") > rows + 1):
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_ctrl_c_raises_keyboard_interrupt_and_the_run_can_be_resumed(home: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = send_in(Path("cut"), [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt, match="interrupted by SIGINT after"):
        pgcli.train("cartpole", SMALL | LONG, run_dir="cut")
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    cut = pgcli.Run("cut")
    assert cut.status == "interrupted"
    end = {**SMALL, **LONG, "training.iterations": len(cut.metrics) + 2}
    again = pgcli.train("cartpole", end, run_dir="cut", resume=True)
    whole_run = pgcli.train("cartpole", end, run_dir="whole")
    assert (again.path / "metrics.csv").read_bytes() == (whole_run.path / "metrics.csv").read_bytes()
    assert again.resume({"training.iterations": len(again.metrics) + 1}).status == "finished"


@pytest.mark.slow("one of several of its kind; seconds")
def test_other_signals_keep_their_handlers(home: Path) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        thread = send_in(Path("cut"), [signal.SIGTERM])
        with pytest.raises(Interrupted):
            pgcli.train("cartpole", SMALL | LONG, run_dir="cut")
        thread.join()
        assert received == [signal.SIGTERM]
        assert pgcli.Run("cut").status == "interrupted"
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow("one of several of its kind; seconds")
def test_seeds_and_a_warm_start(home: Path, run: pgcli.Run) -> None:
    runs = pgcli.train("cartpole", SMALL, run_dir="many", seeds=range(2), start_from=run, tags=["base"], note="why")
    assert [one.config.seed for one in runs] == [0, 1]
    assert runs[1].information["warm_start"]["iteration"] == 3
    assert runs[1].information["tags"] == ["base"]
    assert str(pgcli.compare("many/seed-0", runs[1], output="report")).startswith("report\n")
    assert pgcli.load(runs[0]).act(np.zeros(4, np.float32)) in (0, 1)
    assert runs[0].agent("best").config.seed == 0


def right(rollouts: Any, policy: Any, gamma: float) -> Any:
    total = 0.0
    for rollout in rollouts:
        for t, (state, action, _) in enumerate(rollout):
            after = sum(gamma**k * reward for k, (_, _, reward) in enumerate(rollout) if k >= t)
            total = total + after * policy.grad_log(state, action)
    return total / len(rollouts)


@pytest.mark.slow("checks an estimator twice")
def test_check_takes_functions_also_where_the_process_cannot_fork() -> None:
    local = lambda rollouts, policy, gamma: right(rollouts, policy, gamma)  # noqa: E731 - a notebook's
    report = pgcli.check(local)
    assert report["verdict"] == "unbiased", str(report)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()  # a process with threads does not fork
    try:
        assert pgcli.check(lambda rollouts, policy, gamma: 2 * right(rollouts, policy, gamma))["verdict"] == "wrong"
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow("one of several of its kind; seconds")
def test_check_takes_configs() -> None:
    algorithm = {"discount_weighting": True, "average": "episodes", "baseline": "leave_one_out"}
    report = pgcli.check({"algorithm": algorithm, "policy": {"distribution": "softmax"}})
    assert report["verdict"] == "unbiased"
    assert "leave_one_out" in str(report)


WRONG: dict[str, tuple[type[PgcliError], str, Callable[[pgcli.Run], object]]] = {
    "no config": (ConfigError, "did you mean `cartpole`", lambda run: pgcli.train("cartpoll")),
    "key": (ConfigError, "did you mean `algorithm.gamma`", lambda run: pgcli.train("cartpole", {"algorithm.gama": 1})),
    "data": (ConfigError, "unknown key `env.idd`", lambda run: pgcli.train({"env": {"idd": "CartPole-v1"}})),
    "value": (UsageError, "cannot be written", lambda run: pgcli.train("cartpole", {"env.kwargs": {"a": {1}}})),
    "config": (UsageError, "3 is not a config", lambda run: pgcli.train(3)),  # type: ignore[call-overload]
    "overrides": (UsageError, "not a list of words", lambda run: pgcli.train("cartpole", "seed=3")),
    "environment": (EnvironmentFailure, "`Nope-v0`", lambda run: pgcli.train("cartpole", {"env.id": "Nope-v0"})),
    "seeds": (UsageError, "occurs twice", lambda run: pgcli.train("cartpole", seeds=[1, 1])),
    "jobs": (UsageError, "jobs: 0 is not", lambda run: pgcli.train("cartpole", jobs=0)),
    "flags": (
        UsageError,
        "resume=True and overwrite=True",
        lambda run: pgcli.train("a2c", resume=True, overwrite=True),
    ),
    "existing": (
        RunDirectoryError,
        "overwrite=True moves it aside",
        lambda run: pgcli.train("cartpole", run_dir=run.path),
    ),
    "start": (UsageError, r"start_from .*hidden_sizes is \[8\]", lambda run: pgcli.train("cartpole", start_from=run)),
    "no run": (RunDirectoryError, "not a run directory", lambda run: pgcli.Run("nowhere")),
    "column": (UsageError, "did you mean `return_mean`", lambda run: run.metrics["retrun_mean"]),
    "no table": (RunDirectoryError, "gradients.csv: is missing", lambda run: run.gradients),
    "episodes": (UsageError, "episodes: 0", lambda run: pgcli.evaluate(run, episodes=0)),
    "mode": (UsageError, "sampled or greedy", lambda run: pgcli.evaluate(run, mode="best")),  # type: ignore[arg-type]
    "gamma": (UsageError, "gamma: 2 is not a number from 0 to 1", lambda run: pgcli.evaluate(run, gamma=2)),
    "checkpoint": (RunDirectoryError, "no checkpoint for iteration 77", lambda run: pgcli.evaluate(run, which=77)),
    "nothing": (UsageError, "nothing to compare", lambda run: pgcli.compare("cartpole")),
    "variant": (UsageError, "3 is not a path", lambda run: pgcli.compare(3)),  # type: ignore[arg-type]
    "target": (UsageError, "3 cannot be checked", lambda run: pgcli.check(3)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_an_error_with_its_cause(case: str, run: pgcli.Run, home: Path, capfd: Any) -> None:
    kind, found, call = WRONG[case]
    with pytest.raises(kind, match=found) as raised:
        call(run)
    assert raised.value.message
    assert "--" not in raised.value.hint
    assert capfd.readouterr() == ("", "")
    assert not list(home.iterdir())


def test_options_have_their_names_in_python() -> None:
    assert in_python("--resume continues it; --overwrite moves it aside") == (
        "resume=True continues it; overwrite=True moves it aside"
    )
    assert in_python("`pgcli resume a --which 3`, --run-dirs") == "`pgcli resume a which 3`, --run-dirs"


def test_errors_of_other_processes_keep_their_hints() -> None:
    errors = [
        UsageError("message", "hint"),
        ConfigError([Problem("a.yaml:1:2", "message", "hint")]),
        EnvironmentFailure("message", "hint", 3, "program"),
        Interrupted(signal.SIGTERM),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    failure = pickle.loads(pickle.dumps(Failure(1, "text", ValueError(lambda: None))))
    assert (failure.text, failure.error) == ("text", None)


def test_a_failing_environment_raises_its_error(home: Path) -> None:
    def broken(**options: Any) -> CartPoleEnv:
        class Broken(CartPoleEnv):
            def step(self, action: Any) -> Any:
                raise RuntimeError("the motor is on fire")

        return Broken(**options)

    gym.register("Broken-v0", entry_point=broken)  # a closure
    try:
        with pytest.raises(EnvironmentFailure, match="the motor is on fire"):
            pgcli.train("cartpole", {**SMALL, "env.id": "Broken-v0"}, run_dir="run")
    finally:
        del gym.registry["Broken-v0"]


SCRIPT = """\
import pgcli
runs = pgcli.train("cartpole", {settings!r}, run_dir="many", seeds=[0, 1], jobs=2, stack=1)
print(*(run.status for run in runs))
one = pgcli.train("cartpole", {settings!r} | {{"sampling.workers": 2, "env.chunk_size": 2}}, run_dir="workers")
print(one.status)
"""


@pytest.mark.slow("starts processes")
def test_a_script_without_a_main_guard_may_use_processes(home: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "env.num_envs"}
    Path("script.py").write_text(SCRIPT.format(settings=settings))
    done = subprocess.run(
        [sys.executable, "script.py"],
        env=whole({"TMPDIR": str(home)}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("finished finished\nfinished\n", "")
    assert not list(home.glob("pgcli-*")), "temporary folders are removed"


def as_notebook(page: Path) -> Any:
    """Return the Markdown page as a notebook: its python blocks are the cells of code."""
    v4: Any = importlib.import_module("nbformat.v4")

    parts = re.split(r"```python\n(.*?)```\n", page.read_text(), flags=re.DOTALL)
    cells = [(v4.new_code_cell if n % 2 else v4.new_markdown_cell)(part.strip()) for n, part in enumerate(parts)]
    return v4.new_notebook(cells=cells)


@pytest.mark.slow("starts a Jupyter kernel, and trains")
@pytest.mark.filterwarnings("ignore")  # of Jupyter's packages
def test_the_page_on_notebooks_runs(home: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    page = as_notebook(Path(__file__).parent.parent / "docs/notebook.md")
    nbclient.NotebookClient(page, timeout=200, resources={"metadata": {"path": str(home)}}).execute()
    outputs = [cell.outputs for cell in page.cells if cell.cell_type == "code"]
    assert len(outputs) >= 7
    shown = [str(one.get("data", one.get("text", ""))) for cell in outputs for one in cell]
    assert any("data:image/svg+xml;base64" in text for text in shown)
    assert any("learning_rate=0.12" in text for text in shown)
    assert "'unbiased'" in shown[-2]
    assert "algorithm.gamma" in shown[-1]
    assert not [one for cell in outputs for one in cell if one.get("name") == "stderr"]
    assert any("iteration" in one.data.get("text/html", "") for one in outputs[0] if "data" in one), "progress"


def answer(client: Any, request: str) -> Any:
    """Return the reply of a kernel to a request."""
    while (message := client.get_shell_msg(timeout=100))["parent_header"].get("msg_id") != request:
        pass
    return message["content"]


@pytest.mark.slow("starts a Jupyter kernel, and trains")
@pytest.mark.filterwarnings("ignore")  # of Jupyter's packages
def test_interrupting_a_cell_keeps_the_kernel_and_the_run(home: Path) -> None:
    manager = pytest.importorskip("jupyter_client.manager")
    kernels, client = manager.start_new_kernel(cwd=str(home))
    try:
        first = client.execute(f"import pgcli\nrun = pgcli.train('cartpole', {SMALL | LONG!r}, run_dir='cut')")
        while not (Path("cut/metrics.csv").exists() and Path("cut/metrics.csv").read_bytes().count(b"\n") > 2):
            time.sleep(0.05)
        kernels.interrupt_kernel()
        reply = answer(client, first)
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
        rows = "len(pgcli.Run('cut').metrics) + 1"
        code = f"settings = {SMALL!r} | {{'training.iterations': {rows}, 'checkpoint.every': 1}}"
        more = "pgcli.train('cartpole', settings, run_dir='cut', resume=True).status"
        assert answer(client, client.execute(f"{code}\nassert {more} == 'finished'"))["status"] == "ok"
    finally:
        client.stop_channels()
        kernels.shutdown_kernel(now=True)
