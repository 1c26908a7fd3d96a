"""`pgcli check` of user code: reasons, time limits and notebooks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import pgcli
from students import EXPECTED, STUDENT, checked

from pgcli.errors import UsageError
from pgcli.inspection.gradient_check import user_estimators
from pgcli.inspection.gradient_check.hypotheses import HYPOTHESES, KINDS
from pgcli.inspection.gradient_check.user_estimators import check_user_code
from pgcli.system.notebooks import needed_code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the student's file, to work in."""
    (tmp_path / "student.py").write_text(STUDENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def problems_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache the problems, and measure the variance on few batches."""
    monkeypatch.setattr(user_estimators, "enumerated_problems", PROBLEMS)
    monkeypatch.setattr(user_estimators, "SAMPLED_BATCHES", 20)


PROBLEMS = functools.cache(user_estimators.enumerated_problems)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_students_function_gets_its_verdict_and_its_reasons(name: str, here: Path) -> None:
    verdict, reasons, notes = EXPECTED[name]
    result = checked(f"student.py:{name}")
    assert (result["verdict"], len(result["reasons"])) == (verdict, len(reasons)), result["reasons"]
    for reason, words in zip(result["reasons"], reasons, strict=True):
        assert words in reason
    assert all(any(words in note for note in result["notes"]) for words in notes), result["notes"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "along", "across"), [("squared_score_added", 0.0677, 0.306), ("standardized_rewards", -0.298, 0.118)]
)
def test_an_unknown_mistake_shows_the_errors_per_problem(name: str, along: float, across: float, here: Path) -> None:
    result = checked(f"student.py:{name}")
    first = result["problems"][0]
    mean, truth = np.array(first["mean"]), np.array(first["gradient"])
    error = (mean - truth) / np.linalg.norm(truth)
    assert first["bias"] == pytest.approx(along, abs=1e-3)
    assert first["across"] == pytest.approx(across, abs=1e-3)
    assert first["bias"] ** 2 + first["across"] ** 2 == pytest.approx(error @ error, rel=1e-6)
    assert f"{first['bias']:+.3g} and {first['across']:.3g} (two steps)" in result["reasons"][0]


def test_a_constant_baseline_adds_variance_and_leave_one_out_little(here: Path) -> None:
    names = ("total", "const5")
    plain, constant = ([one["variance"] for one in checked(f"student.py:{name}")["problems"]] for name in names)
    assert all(high > 1.5 * low for low, high in zip(plain, constant, strict=True))
    ratios = [one["variance_ratio"] for one in checked("student.py:leave_one_out")["problems"]]
    assert all(1 < ratio < 10 for ratio in ratios)


def test_no_two_formulas_of_one_deviation_predict_the_same_estimates() -> None:
    """Otherwise a reason could be wrong; the only exception is an omitted step with its reward."""
    problems = user_estimators.enumerated_problems()
    seen: dict[bytes, list[str]] = {}
    for formula in HYPOTHESES:
        changed = sum(part is not kind[0] for part, kind in zip(formula, KINDS, strict=True))
        if changed > 1 or len(formula.texts) > 1:
            continue
        found = np.concatenate([formula.predict(one.batches(one.index)).ravel() for one in problems])
        same = seen.setdefault(np.round(found / np.abs(found).max(), 6).tobytes(), formula.texts)
        assert same == formula.texts or "the last reward of each episode is left out" in formula.texts


def test_a_formula_is_named_only_if_it_predicts_every_estimate(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of one problem changes: no formula is named."""
    call = user_estimators.Caller.estimates

    def changed(
        self: user_estimators.Caller, problem: user_estimators.EnumeratedProblem, index: np.ndarray
    ) -> np.ndarray:
        found = call(self, problem, index)
        if problem.problem.name == "survival":
            found[5, 3] += 0.5
        return found

    monkeypatch.setattr(user_estimators.Caller, "estimates", changed)
    result = checked("student.py:immediate")
    assert "nor is it a formula known here" in result["reasons"][0]


def test_a_result_of_wrong_shape_gets_no_unfounded_reason(here: Path) -> None:
    (reason,) = checked("student.py:an_integer")["reasons"]
    assert "summed over" not in reason


# --------------------------------------------------------------------------------------------------------- time limits

LIMITS = {
    "loops": ("while True:\n        pass", "did not return within 0.5 s"),
    "loops_in_c": (
        "import collections, itertools\n    collections.deque(itertools.repeat(0), maxlen=0)",
        "did not return",
    ),
    "sleeps": ("import time\n    time.sleep(60)", "did not return"),
    "leaves": ("import os\n    os._exit(3)", "ended the process (exit code 3)"),
    "crashes": ("import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)", "ended the process (SIGSEGV)"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_function_that_does_not_return_is_stopped(name: str, tmp_path: Path) -> None:
    body, words = LIMITS[name]
    (tmp_path / "slow.py").write_text(f"def {name}(rollouts, policy, gamma):\n    {body}\n")
    done = pgcli("check", f"slow.py:{name}", "--time-limit", "0.5", cwd=tmp_path, code=7, timeout=60)
    assert words in done.stdout
    assert done.stderr == ""


def test_a_file_that_does_not_load_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "trains.py").write_text("import os\nos._exit(0)\n")
    with pytest.raises(UsageError, match="running the file ended the process"):
        check_user_code(str(tmp_path / "trains.py:f"))


def test_the_result_is_that_of_a_check_in_this_process(here: Path) -> None:
    assert check_user_code("student.py:mean_baseline") == checked("student.py:mean_baseline")


# ----------------------------------------------------------------------------------------------------------- notebooks

CELLS = [
    "#@title Install\n!pip install gymnasium",
    "%matplotlib inline\nimport numpy as np\nimport surely_not_there as sns\nimport torch\nfrom torch import nn",
    "env = sns.make('CartPole-v1')\nSCALE = 2 * 0.5\ndevice = torch.device('cpu')\nopen('ran', 'w').close()",
    "def discounts(roll, gamma):\n    return gamma ** torch.arange(len(roll)).float()",
    "%%time\ndef reinforce(rollouts, policy, gamma):\n    return no_such_name",
    "policy = Network(4, 2)\nresults = reinforce([], policy, 1)\nplot(results)",
    "%%bash\nls",
    "def unfinished(:\n    pass",
    "def reinforce(rollouts, policy, gamma):  # again: the last one counts\n    grad = 0\n    for roll in rollouts:\n"
    "        scores = torch.stack([policy.grad_log(s, a) for s, a, _ in roll])\n"
    "        R = (discounts(roll, gamma) * torch.tensor([r for _, _, r in roll])).sum()\n"
    "        grad += SCALE * R * scores.sum(0).to(device)\n    return grad / len(rollouts)",
    "def todo(rollouts, policy, gamma):\n    grad = 0\n    grad += TODO\n    return grad",
    "class Network(nn.Module):\n    def __init__(self, a, b):\n        super().__init__()",
    "def of_a_run(rollouts, policy, gamma):\n    return results",
    "def plots(rollouts, policy, gamma):\n    return sns.lineplot(rollouts)",
]


def notebook(path: Path, shape: Callable[[list[dict[str, object]]], object] = lambda cells: {"cells": cells}) -> None:
    code: list[dict[str, object]] = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in CELLS]
    path.write_text(json.dumps(shape([{"cell_type": "markdown", "source": ["# Title"]}, *code])))


def test_a_function_of_a_notebook_is_checked_without_running_the_notebook(tmp_path: Path) -> None:
    notebook(tmp_path / "my.ipynb")
    result = json.loads(pgcli("check", "my.ipynb:reinforce", "--json", cwd=tmp_path).stdout)
    assert result["verdict"] == "unbiased"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("todo", 7, "NameError: name 'TODO' is not defined (my.ipynb (code cell 10):3)"),
        ("of_a_run", 7, "NameError: name 'results' is not defined"),
        ("Network", 7, "it has no dim, get_parameters"),
        ("plots", 2, "install the package that provides `surely_not_there`"),
        ("unfinished", 2, "code cell 8, line 1"),
        ("reinforc", 2, "did you mean `reinforce`?"),
    ],
)
def test_missing_parts_of_a_notebook_are_named(name: str, code: int, words: str, tmp_path: Path) -> None:
    notebook(tmp_path / "my.ipynb")
    done = pgcli("check", f"my.ipynb:{name}", cwd=tmp_path, code=code)
    assert words in " ".join((done.stdout + done.stderr).split())


def test_notebooks_of_other_versions_and_broken_ones(tmp_path: Path) -> None:
    old = tmp_path / "old.ipynb"
    notebook(old, lambda cells: {"worksheets": [{"cells": cells}]})
    assert len(needed_code(old, "discounts")) == 2, "the function and torch"
    for text in ("{", "[]", '{"cells": [{}]}', '{"cells": 3}'):
        old.write_text(text)
        with pytest.raises(UsageError, match="not a readable notebook"):
            needed_code(old, "discounts")


def test_training_accepts_a_function_of_a_notebook(tmp_path: Path) -> None:
    notebook(tmp_path / "my.ipynb")
    small = ["rollout.episodes=4", "env.num_envs=4", "training.iterations=1", "evaluation.every=null"]
    pgcli("train", "tutorial", *small, "algorithm.estimator=my.ipynb:reinforce", "--run-dir", "run", cwd=tmp_path)
    assert (tmp_path / "run/metrics.csv").exists()


def test_a_policy_class_can_be_checked_but_not_trained(tmp_path: Path) -> None:
    notebook(tmp_path / "my.ipynb")
    done = pgcli("check", "my.ipynb:Network", cwd=tmp_path, code=7)
    assert "the class is checked only" in done.stdout
