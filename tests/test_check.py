"""`pgcli check` on right and wrong estimators of pgcli and users, and training with user code."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import pgcli
from gymnasium import spaces
from students import STUDENT, checked
from test_cli import rows
from test_environments import PATHS
from test_grid import CELLS

from pgcli.algorithm import batch as batch_module
from pgcli.algorithm import importance as importance_module
from pgcli.algorithm import losses as losses_module
from pgcli.algorithm import policy_gradient as agent_module
from pgcli.algorithm.gradients.user_code import TutorialPolicy
from pgcli.config import Config, override
from pgcli.config.rules import CONDITIONAL, violations
from pgcli.config.schema import PolicyConfig
from pgcli.errors import ConfigError
from pgcli.estimators import returns as returns_module
from pgcli.estimators.baselines import mean_baseline
from pgcli.inspection.gradient_check import problems as problems_module
from pgcli.inspection.gradient_check.definitions import flat
from pgcli.inspection.gradient_check.measurement import (
    batches_of,
    check_config,
    gradient_of_return,
    hotelling,
    in_cell,
    measure,
    problems_for,
)
from pgcli.inspection.gradient_check.problems import (
    ContinuousProblem,
    ExplorationProblem,
    FiniteProblem,
    chain_mdp,
    corridor_mdp,
    grid_mdp,
    initialize_linear,
)
from pgcli.inspection.gradient_check.tables import check_text
from pgcli.policies.distributions import Distribution, Gaussian, Softmax, StateDependentGaussian
from pgcli.policies.policy import Policy
from pgcli.runs import checkpoints

EXACT = 1e-10
OFF_POLICY = ("algorithm.objective=importance_sampling", "algorithm.baseline=none")
IN_FULL = ("algorithm.average=episodes", "algorithm.discount_weighting=true")  # the gradient of the return


def given(*overrides: str) -> Config:
    return override(Config(), ["rollout.episodes=4", *overrides])


def found(settings: Config, name: str, kind: type = spaces.Discrete) -> Any:
    problems, _ = problems_for(settings, kind)
    return measure(settings, next(problem for problem in problems if problem.name == name))


# ------------------------------------------------------------------------------------------- the gradients are the true


def policy_for(problem: FiniteProblem | ContinuousProblem, **settings: Any) -> Policy:
    small = PolicyConfig(hidden_sizes=[], **settings)
    policy = Policy(problem.observation_space, problem.action_space, small).double()
    problem.initialize(policy)
    return policy


def true_gradient(problem: FiniteProblem | ContinuousProblem, policy: Policy, gamma: float) -> list[float]:
    gradient: list[float] = gradient_of_return(problem, policy, gamma).tolist()
    return gradient


@pytest.mark.parametrize(
    ("baseline", "share", "variance"),
    [("none", 1, 0.15702160), ("mean", 0.75, 0.05830440), ("leave_one_out", 1, 0.10365226)],
)
def test_bandit_moments_equal_an_enumeration_by_hand(baseline: str, share: float, variance: float) -> None:
    """θ = (0, ln 2, ln 3), r = (1, 0, 2): ∂J/∂θ_a = π_a (r_a - J), J = 7/6; four pulls."""
    one = found(given(*IN_FULL, f"algorithm.baseline={baseline}"), "bandit")
    exact = [p * (r - 7 / 6) for p, r in ((1 / 6, 1), (1 / 3, 0), (1 / 2, 2))]
    assert one.gradient[:3] == [0, 0, 0], "nothing is observed"
    assert one.gradient[3:] == pytest.approx(exact, abs=EXACT)
    assert one.mean[3:] == pytest.approx([share * x for x in exact], abs=EXACT)
    assert one.variance == pytest.approx(variance, abs=1e-8)
    assert one.bias == pytest.approx(share - 1, abs=EXACT)
    assert one.verdict == ("unbiased" if share == 1 else "biased by design")


def test_the_chain_has_its_closed_form() -> None:
    """J = γ^(n-1) p^n and dJ/dθ = n (1 - p) J."""
    one = found(given(*IN_FULL, "algorithm.baseline=none", "algorithm.gamma=0.9"), "chain")
    p = 1 / (1 + math.exp(-0.5))
    slope = 3 * (1 - p) * 0.9**2 * p**3
    assert one.gradient[2:] == pytest.approx([-slope, slope], abs=EXACT)
    # an episode gives 3 (1 - p) γ² with probability p³, in both coordinates
    assert one.variance == pytest.approx(2 / 3 * 0.9**4 * 9 * (1 - p) ** 2 * p**3 * (1 - p**3), abs=EXACT)


@pytest.mark.parametrize("name", ["gaussian", "tanh_gaussian", "state_dependent_gaussian"])
def test_the_target_has_its_closed_form(name: str) -> None:
    problem = ContinuousProblem("target", "", 1, 4, bounded=name == "tanh_gaussian")
    policy = policy_for(problem, distribution=name)
    gradient = true_gradient(problem, policy, 0.9)
    mean, variance = -0.1, 0.49  # -0.4 s + 0.3 at s = 1
    if name == "tanh_gaussian":  # E[f(u)] by a fine sum
        u = np.linspace(-9, 9, 200_001)
        density = np.exp(-((u - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        slope = 2 * (2 * np.tanh(u) - 1) * 2 / np.cosh(u) ** 2
        d_mean = -float(np.sum(density * slope) * (u[1] - u[0]))
        d_log_sigma = -float(np.sum(density * slope * (u - mean)) * (u[1] - u[0]))
    else:
        d_mean, d_log_sigma = -2 * (mean - 1), -2 * variance
    assert gradient == pytest.approx([d_log_sigma, d_mean, d_mean], abs=1e-5)


def test_the_linear_quadratic_problem_has_the_return_of_its_episodes() -> None:
    """Two steps by quadrature over both actions, which is exact for polynomials; differences for the gradient."""
    problem = ContinuousProblem("lqr", "", 2, 4)
    policy = policy_for(problem)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()

    def total(sigma: float, gain: float, bias: float) -> float:
        first = gain + bias + sigma * nodes[:, None]
        s = 1 + first
        second = gain * s + bias + sigma * nodes
        reward = -(1 + (first - 1) ** 2) - 0.9 * (s**2 + (second - 1) ** 2)
        return float(weights @ reward @ weights)

    at_start = (0.7, -0.4, 0.3)
    assert problem.expected_return(policy, 0.9).item() == pytest.approx(total(*at_start), abs=EXACT)
    slopes = []
    for k in range(3):
        step = np.eye(3)[k] * 1e-5
        slopes.append((total(*(at_start + step)) - total(*(at_start - step))) / 2e-5)
    slopes[0] *= 0.7  # of log σ
    assert true_gradient(problem, policy, 0.9) == pytest.approx(slopes, abs=1e-7)


def test_dynamic_programming_on_a_grid_equals_the_sum_over_its_episodes() -> None:
    enumerated, solved = (
        FiniteProblem("grid", "", grid_mdp(2, 0.2, 3), spaces.Discrete, 2, sampled=sampled) for sampled in (False, True)
    )
    policy = policy_for(enumerated)
    assert true_gradient(solved, policy, 0.9) == pytest.approx(true_gradient(enumerated, policy, 0.9), abs=EXACT)


@pytest.mark.parametrize("kind", [spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary])
def test_every_batch_and_every_segment_is_enumerated_once(kind: type) -> None:
    for world, rows_ in product((chain_mdp(3, 1.0, 2.0), corridor_mdp(3)), (None, 2, 4, 7)):
        problem = FiniteProblem("", "", world, kind, 2, rows=rows_)
        data = problem.data(policy_for(problem), 0, np.random.default_rng(0))
        assert data.probabilities is not None
        assert data.probabilities.sum() == pytest.approx(1, abs=EXACT)
        for alike in (False, True):
            batches, chances = batches_of(data, 2, alike)
            assert chances is not None
            assert chances.sum() == pytest.approx(1, abs=EXACT)
            assert len(set(batches)) == len(batches)
        mask, ends = data.trajectories.mask, data.trajectories.terminated | data.trajectories.truncated
        for above, below in pairwise(range(len(mask))):
            assert not (ends[above] & mask[below]).any(), "one masked row between episodes"


# --------------------------------------------------------------------------------------------------- pgcli's estimators


ON_OWN_DATA = [  # there, the objectives differ in no expectation: one for each pair, and all of two pairs
    cell
    for cell, kind in CELLS.items()
    if kind != "refused" and ("policy_gradient" in cell or "vtrace" in cell or cell[:2] == ("total", "mean"))
]


@pytest.mark.parametrize("cell", ON_OWN_DATA, ids="-".join)
def test_a_cell_has_the_bias_of_the_grid(cell: tuple[str, str, str]) -> None:
    """On the chain without cuts at λ = 1, where V is only a baseline."""
    settings = in_cell(override(given(*IN_FULL), ["algorithm.gae_lambda=1"], CONDITIONAL), *cell)
    assert not list(violations(settings))
    one = found(settings, "chain")
    assert one.verdict == {"exact": "unbiased"}.get(CELLS[cell], CELLS[cell])
    assert one.exact
    assert bool(one.reasons) == (one.verdict != "unbiased")


@pytest.mark.parametrize("kind", [spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary])
@pytest.mark.parametrize("damping", [0, 0.1])
def test_the_natural_gradient_is_measured(damping: float, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    natural = f"optimizer={{name: natural, damping: {damping}, cg_iterations: 30}}"
    result = check_config(given(*IN_FULL, "algorithm.baseline=none", natural), kind, sampled=False)
    assert result["verdict"] == "unbiased"
    assert [one["problem"] for one in result["natural_gradient"]] == ["bandit", "chain", "corridor"]
    assert max(one["error"] for one in result["natural_gradient"]) < 1e-8
    assert "natural gradient: (F + λ I)⁻¹ ∇J has a relative error of" in check_text(result, terminal=False)
    kl = Distribution.kl
    monkeypatch.setattr(
        Distribution, "kl", lambda self, p, q: 2 * kl(self, p, q) if damping else kl(self, p, q).sin() ** 2
    )
    broken = check_config(given(*IN_FULL, "algorithm.baseline=none", natural), kind, sampled=False)
    assert broken["verdict"] == "wrong"
    assert "F⁻¹ ∇J is wrong on chain" in broken["reasons"]


def test_too_few_iterations_of_conjugate_gradients_are_measured() -> None:
    errors = []
    for count in (1, 3, 20):
        result = check_config(
            given(f"optimizer={{name: natural, cg_iterations: {count}}}"), spaces.Discrete, sampled=False
        )
        assert result["verdict"] != "wrong"
        errors.append(result["natural_gradient"][2]["error"])
    assert errors[0] > 1e-3
    assert errors[2] < 1e-10


SEGMENTS = "rollout={episodes: null, steps: 8}"
OTHERS = [
    ("algorithm={standardize: minibatch, objective: clip, clip_range: [0.1, 0.5]}", spaces.Discrete),
    ("algorithm={objective: clip, clip_range: [0.1, 0.2], kl_coef: {target: 0.01}}", spaces.MultiBinary),
    ("algorithm.standardize=batch", spaces.Discrete),
    ("algorithm.average=episode_means", spaces.MultiDiscrete),
    (
        "algorithm={baseline: group, group_size: 4, returns: total, standardize: group, objective: clip}",
        spaces.Discrete,
    ),
    ("algorithm={baseline: group, group_size: 2, group_mean: leave_one_out, objective: clip}", spaces.MultiBinary),
    ("algorithm={entropy_coef: 0.1, objective: importance_sampling, importance_bound: 1.1}", spaces.Discrete),
    ("algorithm={objective: importance_sampling, self_normalize: true, kl_coef: 0.2}", spaces.Discrete),
    ("algorithm={objective: clip, ratios: sequence, returns: total, baseline: leave_one_out}", spaces.Discrete),
    *(
        (f"algorithm={{objective: importance_sampling, ratios: {ratios}, {more}}}", spaces.Discrete)
        for ratios in ("per_decision", "trajectory", "sequence")
        for more in (
            "importance_bound: 1.1, self_normalize: true",
            "returns: lambda_return, baseline: value, gae_lambda: 0.7",
            "returns: total, baseline: group, group_size: 2, average: episode_means",
        )
    ),
    ("algorithm={baseline: value, returns: vtrace, objective: clip, gae_lambda: 0.7}", spaces.Discrete),
    ("policy.memory=gru", spaces.Discrete),
    ("algorithm={baseline: value, returns: lambda_return, gae_lambda: 0.7, entropy_coef: 0.1}", spaces.Box),
]


@pytest.mark.parametrize(("overrides", "kind"), OTHERS, ids=str)
def test_other_estimators_have_the_bias_of_their_definition(overrides: str, kind: type) -> None:
    result = check_config(given(overrides), kind, sampled=False)
    assert result["verdict"] == "biased by design"
    assert "wrong" not in [one["verdict"] for one in result["problems"]]
    assert result["reasons"]


def test_segment_configs_are_checked_on_segments() -> None:
    settings = override(Config(), [SEGMENTS, "algorithm={baseline: value, returns: lambda_return, standardize: batch}"])
    one = found(settings, "segments")
    assert one.verdict == "biased by design"
    assert any("segments" in reason for reason in one.reasons)


EXACT_BUT_FOR_NOISE = (*IN_FULL, "algorithm.baseline=leave_one_out")


@pytest.mark.parametrize("distribution", ["gaussian", "tanh_gaussian"])
def test_continuous_actions_are_sampled_and_unbiased(distribution: str) -> None:
    result = check_config(given(*EXACT_BUT_FOR_NOISE, f"policy.distribution={distribution}"), spaces.Box)
    assert result["verdict"] == "unbiased", [one["p_value"] for one in result["problems"]]
    for one in result["problems"]:
        assert one["bias_low"] - 0.05 < 0 < one["bias_high"] + 0.05
        assert not one["exact"]
        assert one["smallest_error"] < 0.035


GSDE = given(*EXACT_BUT_FOR_NOISE, "policy.distribution=state_dependent_gaussian")


def test_noise_kept_for_several_steps_biases_the_estimator() -> None:
    result = check_config(GSDE, spaces.Box)
    assert result["verdict"] == "biased by design"
    (reason,) = result["reasons"]
    assert "state_dependent_gaussian keeps its noise from step to step" in reason
    one_step, *several = result["problems"]
    assert one_step["verdict"] == "unbiased"
    factors = [float(x) for x in re.findall(r"([0-9.]+) \(noise", reason)]
    assert len(factors) == len(several)
    assert 1.2 < factors[0] < factors[1] < factors[2], "it grows with the number of steps"
    for one, factor in zip(several, factors, strict=True):
        assert one["verdict"] == "biased by design"
        assert one["bias_low"] > 0.1
        assert one["bias_low"] - 0.1 < factor - 1 < one["bias_high"] + 0.1


def test_noise_drawn_at_each_step_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(self: StateDependentGaussian, generator: np.random.Generator, rows: int, columns: int) -> Any:
        return generator.standard_normal((rows, columns, *self.log_standard_deviation.shape))

    monkeypatch.setattr(StateDependentGaussian, "noise", drawn)
    result = check_config(GSDE, spaces.Box)
    assert result["verdict"] == "unbiased", [one["p_value"] for one in result["problems"]]
    assert len(result["problems"]) == 4


@pytest.mark.parametrize(("steps", "kept"), [(2, 1), (2, 2), (3, 2)])
def test_the_problem_for_state_dependent_noise_has_the_return_of_its_episodes(
    steps: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sums over fine grids of the noise; differences for the gradient."""
    problem = ExplorationProblem("", "", steps, 4)
    policy = policy_for(problem, distribution="state_dependent_gaussian")
    monkeypatch.setattr(problems_module, "kept_steps", lambda policy, horizon: kept)
    nodes = np.linspace(-6, 6, 31)
    density = np.exp(-(nodes**2) / 2)
    density /= density.sum()
    draws = -(-steps // kept)
    axes = np.meshgrid(*[nodes] * (2 * draws), indexing="ij")
    weight = functools.reduce(np.multiply.outer, [density] * len(axes))

    def total(x: Any) -> float:
        s1, s2, (gain, constant, bias) = math.exp(x[0]), math.exp(x[1]), x[2:]
        s, found = np.ones(weight.shape), 0.0
        for t in range(steps):
            z1, z2 = axes[2 * (t // kept) : 2 * (t // kept) + 2]
            a = gain * s + constant + bias + s1 * s * z1 + s2 * z2
            found -= 0.9**t * float((weight * (s**2 + (a - 1) ** 2)).sum())
            s = s + 0.3 * a
        return found

    start = torch.cat([parameter.flatten() for parameter in policy.parameters()]).detach().numpy()
    slopes = [(total(start + step) - total(start - step)) / 2e-4 for step in 1e-4 * np.eye(5)]
    assert true_gradient(problem, policy, 0.9) == pytest.approx(slopes, abs=1e-5)


def test_noise_kept_for_part_of_an_episode_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(self: StateDependentGaussian, generator: np.random.Generator, rows: int, columns: int) -> Any:
        whole = generator.standard_normal((-(-rows // 3), columns, *self.log_standard_deviation.shape))
        return whole[np.arange(rows) // 3]

    monkeypatch.setattr(StateDependentGaussian, "noise", drawn)
    result = check_config(GSDE, spaces.Box)
    assert result["verdict"] == "biased by design"
    factors = [float(x) for x in re.findall(r"([0-9.]+) \(noise", result["reasons"][0])]
    assert 1.2 < factors[0] < factors[2] < 2.5, "less than with noise of a whole episode"


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("target", spaces.Box),
        pytest.param("lqr", spaces.Box, marks=pytest.mark.slow("samples a million episodes")),
        pytest.param("grid", spaces.Discrete, marks=pytest.mark.slow("samples a million episodes")),
    ],
)
def test_a_scale_error_is_detected_with_the_stated_power(
    problem: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = given(*EXACT_BUT_FOR_NOISE)
    smallest = found(settings, problem, kind).smallest_error
    assert smallest < 0.035
    name = "policy_gradient_slope"
    slope = getattr(losses_module, name)
    for times, verdict in ((0.3, "unbiased"), (1.7, "wrong"), (-1.7, "wrong")):
        monkeypatch.setattr(losses_module, name, lambda *a, e=times * smallest: (1 + e) * slope(*a))
        assert found(settings, problem, kind).verdict == verdict


Broken = Callable[[Any], Callable[..., Any]]
BREAKS: list[tuple[Any, str, Broken, tuple[str, ...], str]] = [
    (losses_module, "policy_gradient_slope", lambda f: lambda *a: -f(*a), IN_FULL, "bandit"),
    (batch_module, "step_weights", lambda f: lambda m, a: 1.01 * f(m, a), IN_FULL, "chain"),
    (
        agent_module,
        "leave_one_out_baseline",
        lambda f: mean_baseline,
        (*IN_FULL, "algorithm.baseline=leave_one_out"),
        "corridor",
    ),
    (agent_module, "mean_baseline", lambda f: lambda r, m: 0.9 * f(r, m), (), "chain"),
    (
        batch_module,
        "standardized",
        lambda f: lambda *given, **more: 0.99 * f(*given, **more),
        ("algorithm.standardize=batch",),
        "bandit",
    ),
    (
        returns_module,
        "lambda_returns",
        lambda f: lambda r, d, v, lam: f(r, d, v, lam * 0.99),
        (*IN_FULL, "algorithm.baseline=none"),
        "corridor",
    ),
    (
        losses_module,
        "clip_slope",
        lambda f: lambda lr, a, w, low, high: f(lr, a, w, 2 * low, 2 * high),
        ("algorithm.objective=clip",),
        "moved bandit",
    ),
    (
        losses_module,
        "importance_sampling_slope",
        lambda f: lambda lr, a, w, b, s: f(0.9 * lr, a, w, b, s),
        (*IN_FULL, "algorithm.objective=importance_sampling", "algorithm.baseline=none"),
        "moved bandit",
    ),
    (
        importance_module,
        "log_weights",
        lambda f: lambda lr, mask, ratios: 0.9 * f(lr, mask, ratios),
        (*IN_FULL, *OFF_POLICY, "algorithm.ratios=trajectory"),
        "moved chain",
    ),
    (
        importance_module,
        "per_decision_advantages",
        lambda f: lambda w, x, c, b: w * f(torch.ones_like(w), x, c, b),  # each reward with the weight of the score
        (*IN_FULL, *OFF_POLICY, "algorithm.ratios=per_decision"),
        "moved lake",
    ),
    (
        Softmax,
        "sample",
        lambda f: lambda self, o, n: f(self, 1.3 * o, n),
        (*IN_FULL, "algorithm.baseline=none"),
        "grid",
    ),
    (
        Gaussian,
        "scored",
        lambda f: lambda self, o, a: f(self, o + 0.1, a),
        (*IN_FULL, "algorithm.baseline=none"),
        "target",
    ),
]


LONG = pytest.mark.slow("measures one of the two largest problems twice")


@pytest.mark.parametrize(
    ("where", "name", "broken", "overrides", "problem"),
    [
        pytest.param(*row, id=f"{row[1]} on {row[4]}", marks=[LONG] if row[4] in ("moved lake", "grid") else [])
        for row in BREAKS
    ],
)
def test_a_broken_estimator_fails_the_check(
    where: Any, name: str, broken: Broken, overrides: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = spaces.Box if problem == "target" else spaces.Discrete
    settings = given(*overrides)
    assert found(settings, problem, kind).verdict != "wrong"
    monkeypatch.setattr(where, name, broken(getattr(where, name)))
    assert found(settings, problem, kind).verdict == "wrong"


def test_hotellings_test_is_students_in_one_dimension_and_keeps_its_rate_in_several() -> None:
    from scipy.stats import ttest_1samp

    random = np.random.default_rng(0)
    one = random.normal(0.2, 1, (50, 1))
    assert hotelling(one, 1e-9) == pytest.approx(ttest_1samp(one[:, 0], 0).pvalue, rel=1e-9)
    mixed = random.normal(0, 1, (400, 60, 4)) @ random.normal(0, 1, (4, 7))  # 7 coordinates, of which 4 are free
    values = [hotelling(each, 1e-9) for each in mixed]
    assert np.mean([p < 0.05 for p in values]) == pytest.approx(0.05, abs=0.03)
    assert hotelling(np.zeros((9, 3)), 1e-9) == 1
    assert hotelling(np.ones((9, 3)), 1e-9) == 0, "off where nothing varies"


def test_the_table_is_plain_in_a_pipe_and_has_colours_on_a_terminal() -> None:
    result = check_config(given("algorithm.baseline=mean"), spaces.Discrete, sampled=False)
    assert result["estimator"] == "reward_to_go × mean × policy_gradient"
    plain, coloured = check_text(result, terminal=False), check_text(result, terminal=True)
    assert "\x1b" not in plain
    assert "\x1b[" in coloured
    assert max(map(len, plain.splitlines())) <= 80
    for words in ("bandit", "biased by design:", "1 - 1/N", "discount_weighting: false drops γ^t"):
        assert words in plain


# ---------------------------------------------------------------------------------------------------- the command line


def test_a_config_is_checked_from_the_command_line(tmp_path: Path) -> None:
    arguments = ("check", "cartpole", "algorithm.standardize=none", "algorithm.average=episodes")
    result = json.loads(pgcli(*arguments, "--json", cwd=tmp_path).stdout)
    assert result["verdict"] == "biased by design"
    assert [one["problem"] for one in result["problems"]] == ["bandit", "chain", "corridor", "grid"]
    assert json.loads(pgcli(*arguments, "--json", cwd=tmp_path).stdout) == result, "it repeats itself"


def test_a_broken_estimator_ends_the_command_with_7(tmp_path: Path) -> None:
    program = (
        "import sys; from pgcli.algorithm import losses; from pgcli.__main__ import main; "
        "loss = losses.policy_gradient_loss; losses.policy_gradient_loss = lambda *a: 2 * loss(*a); "
        "sys.argv = ['pgcli', 'check', 'policy.memory=lstm']; sys.argv[2:] = ['cartpole', *sys.argv[2:]]; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "wrong:" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the student's file, to work in."""
    (tmp_path / "student.py").write_text(STUDENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_page_passes_and_its_mistake_is_reported(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/check.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my.py").write_text(example)
    assert checked(str(tmp_path / "my.py:reinforce"))["verdict"] == "unbiased"
    wrong = example.replace("torch.cumsum(scores, dim=0)", "scores")
    (tmp_path / "wrong.py").write_text(wrong)
    result = checked(str(tmp_path / "wrong.py:reinforce"))
    shown = [line.strip() for line in check_text(result, terminal=False).splitlines()[1:9]]
    assert "\n".join(shown) in "\n".join(line.strip() for line in page.splitlines())


def test_students_functions_from_the_command_line(here: Path) -> None:
    done = pgcli("check", "student.py:gpomdp", "--strict", cwd=here)
    assert "unbiased" in done.stdout
    done = pgcli("check", "student.py:no_gamma_t", cwd=here)
    assert "γ^t in front of G_t is missing" in done.stdout
    pgcli("check", "student.py:no_gamma_t", "--strict", cwd=here, code=7)
    done = pgcli("check", "tutorial", "algorithm.estimator=student.py:downhill", cwd=here, code=7)
    assert "the sign is wrong" in done.stdout
    done = pgcli("check", "student.py:immediate", cwd=here, code=7)
    assert "(CartPole) the gradient is 0 in expectation" in done.stdout.replace("\n    ", " ")
    result = json.loads(pgcli("check", "student.py:immediate", "--json", cwd=here, code=7).stdout)
    survival = result["problems"][-1]
    assert survival["problem"] == "survival"
    assert np.abs(survival["mean"]).max() < 1e-6, "a constant reward teaches it nothing"
    done = pgcli("check", "student.py:raises", cwd=here, code=7)
    assert "student.py:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py:reinforce"], ["nowhere.py: no such file", "relative to the current folder"]),
        (["student.py:gpomd"], ["no `gpomd`", "did you mean `gpomdp`?"]),
        (["student.py:five"], ["`five` is a int", "name a function"]),
        (["student.py"], ["expected FILE.py:NAME or FILE.ipynb:NAME"]),
        (["student.py:gpomdp", "--all"], ["--all and KEY=VALUE apply to configs only"]),
        (["student.py:gpomdp", "seed=1"], ["--all and KEY=VALUE apply to configs only"]),
        (["cartpole", "--strict"], ["--strict applies to your own code only"]),
        (["bad.py:f"], ["running the file raised ZeroDivisionError", "bad.py:2", "__main__"]),
        (["worse.py:f"], ["SyntaxError", "worse.py:1"]),
        (["needs.py:f"], ["install the package that provides `surely_not_there`"]),
        (["leaves.py:f"], ["SystemExit"]),
        (["cartpole", "algorithm.gama=1"], ["did you mean `algorithm.gamma`"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_uncheckable_target_gives_one_error_and_a_hint(arguments: list[str], words: list[str], here: Path) -> None:
    (here / "bad.py").write_text("f = 1\n1 / 0\n")
    (here / "worse.py").write_text("def f(:\n")
    (here / "needs.py").write_text("import surely_not_there\n")
    (here / "leaves.py").write_text("raise SystemExit(0)\n")
    done = pgcli("check", *arguments, cwd=here, code=2)
    assert done.stdout == ""
    assert (done.stderr.count("error:"), done.stderr.count("hint:")) == (1, 1)
    for word in words:
        assert word in done.stderr


# ------------------------------------------------------------------------------------------------------ policy classes

NETWORK = '''
import torch, torch.nn as nn, torch.nn.functional as F
from torch.distributions import Categorical
from torch.nn.functional import one_hot

class AsPrinted(nn.Module):
    """The tutorial's: its forward has no ReLU, and its score has."""

    def __init__(self, input_dim, output_dim, hidden_dim=16):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(input_dim, hidden_dim), nn.Linear(hidden_dim, output_dim)
        self.dim = self.get_parameters().size(dim=0)

    def activation(self, x):
        return x

    def forward(self, state):
        return nn.Softmax(dim=-1)(self.fc2(self.activation(self.fc1(state))))

    def get_parameters(self):
        return nn.utils.parameters_to_vector(self.parameters()).detach()

    def set_parameters(self, new_params):
        nn.utils.vector_to_parameters(new_params, self.parameters())

    def draw_action(self, state):
        return Categorical(self.forward(torch.as_tensor(state))).sample()

    def grad_log(self, state, action):
        state = torch.FloatTensor(state)
        probs = self.forward(state)
        score = one_hot(torch.tensor(action), num_classes=probs.size(-1)) - probs
        fc2 = torch.matmul(score.view(-1, 1), F.relu(self.fc1(state)).view(1, -1))
        d_fc1 = torch.matmul(self.fc2.weight.T, score) * (self.fc1(state) > 0).float()
        fc1 = torch.matmul(d_fc1.view(-1, 1), state.view(1, -1))
        return torch.cat([fc1.view(-1), d_fc1.view(-1), fc2.view(-1), score.view(-1)])

class Right(AsPrinted):
    def activation(self, x):
        return F.relu(x)

class Tanh(AsPrinted):
    def activation(self, x):
        return torch.tanh(x)

class Logits(Right):
    def forward(self, state):
        return self.fc2(F.relu(self.fc1(state)))
    def draw_action(self, state):
        return Categorical(logits=self.forward(torch.as_tensor(state))).sample()
    def grad_log(self, state, action):
        log_prob = self.forward(torch.as_tensor(state)).log_softmax(-1)[action]
        return torch.cat([g.view(-1) for g in torch.autograd.grad(log_prob, list(self.parameters()))])

class Downhill(Right):
    def grad_log(self, state, action):
        return -super().grad_log(state, action)

class NotOfTheLog(Right):
    def grad_log(self, state, action):
        return self.forward(torch.as_tensor(state))[action].detach() * super().grad_log(state, action)

class Shuffled(Right):
    def grad_log(self, state, action):
        score = super().grad_log(state, action)
        first = self.fc1.weight.numel() + self.fc1.bias.numel()
        return torch.cat([score[first:], score[:first]])

class Short(Right):
    def grad_log(self, state, action):
        return super().grad_log(state, action)[:-1]

class Greedy(Right):
    def draw_action(self, state):
        return self.forward(torch.as_tensor(state)).argmax()

class Tensors(Right):
    def draw_action(self, state):
        return Categorical(self.forward(state)).sample()

class Deaf(Right):
    def set_parameters(self, new_params):
        pass

class Crashes(Right):
    def grad_log(self, state, action):
        return self.fc3(state)

class Nothing:
    def __init__(self, a, b):
        pass
'''


@pytest.mark.parametrize(
    ("name", "reasons", "notes"),
    [
        ("Right", [], []),
        ("Logits", [], ["read as logits"]),
        ("Tensors", [], ["draw_action takes no numpy array"]),
        ("AsPrinted", ["it has a ReLU that the network does not have"], []),
        ("Tanh", ["it has a ReLU, and the network has a tanh"], []),
        ("Downhill", ["its sign is wrong"], []),
        ("NotOfTheLog", ["not of log π(a|s)"], []),
        ("Shuffled", ["in another order"], []),
        ("Short", ["a tensor of shape [43], not a tensor of 44 numbers"], []),
        ("Greedy", ["other frequencies"], []),
        ("Deaf", ["does not give θ back"], []),
        ("Crashes", ["has no attribute 'fc3' (network.py:"], []),
        ("Nothing", ["it has no dim, get_parameters"], []),
    ],
)
def test_a_students_policy_class_gets_its_verdict(
    name: str, reasons: list[str], notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    result = checked(f"network.py:{name}")
    assert result["verdict"] == ("wrong" if reasons else "unbiased")
    for told, words in ((result["reasons"], reasons), (result["notes"], ["checked only", *notes])):
        assert len(told) == len(words), told
        assert all(word in one for one, word in zip(told, words, strict=True))


def test_the_tutorials_class_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(NETWORK)
    done = pgcli("check", "network.py:AsPrinted", cwd=tmp_path, code=7)
    assert "a ReLU that the network does not have" in done.stdout


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "identity"])
@pytest.mark.parametrize("hidden_sizes", [[], [4], [4, 3]])
def test_the_adapters_score_is_the_gradient_of_the_log_probability(activation: Any, hidden_sizes: list[int]) -> None:
    space = spaces.Discrete(3, start=2)
    policy = Policy(spaces.Box(-1, 1, (2,)), space, PolicyConfig(hidden_sizes=hidden_sizes, activation=activation))
    initialize_linear(policy)
    adapter, state = TutorialPolicy(policy), np.array([0.3, -0.8], np.float32)
    for action in (2, 3, 4):
        log_prob = policy.distribution.log_probs(policy(torch.from_numpy(state)[None]), torch.tensor([action]))[0]
        parameters = list(policy.parameters())
        expected = flat(torch.autograd.grad(log_prob, parameters), parameters)
        torch.testing.assert_close(adapter.grad_log(state, action), expected, rtol=1e-4, atol=1e-6)
        assert adapter.forward(state)[action - 2].item() == pytest.approx(log_prob.exp().item(), abs=1e-6)
    theta = adapter.get_parameters()
    assert theta.shape == (adapter.dim,)
    adapter.set_parameters(2 * theta)
    assert torch.equal(adapter.get_parameters(), 2 * theta)
    torch.manual_seed(0)
    assert {adapter.draw_action(state) for _ in range(100)} <= {2, 3, 4}


LEARN = ["rollout.episodes=6", "env.num_envs=6", "training.iterations=3", "evaluation.every=null", "checkpoint.every=1"]


def last(run: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(sorted((run / "checkpoints").glob("*.safetensors"))[-1]).agent


def test_the_tutorials_estimator_trains_like_pgclis(here: Path) -> None:
    own = "algorithm.estimator=student.py:gpomdp"
    pgcli("train", "tutorial", *LEARN, own, "optimizer.learning_rate=0.1", "--run-dir", "own", cwd=here)
    pgcli("train", "tutorial", *LEARN, "optimizer.learning_rate=0.1", "--run-dir", "ours", cwd=here)
    for row, other in zip(rows(here / "own/metrics.csv"), rows(here / "ours/metrics.csv"), strict=True):
        assert row["policy_loss"] == "", "there is none"
        assert row["return_mean"] == other["return_mean"]
        assert float(row["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)
        assert row["entropy"]
    mine, ours = last(here / "own"), last(here / "ours")
    moved = "policy.network.0.weight"
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, ours[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        mine[moved], checkpoints.load(here / "own/checkpoints/iteration-000000.safetensors").agent[moved]
    )


def test_a_checkpoint_never_runs_user_code_but_resume_does(here: Path) -> None:
    own = "algorithm.estimator=student.py:gpomdp"
    pgcli("train", "tutorial", *LEARN, own, "--run-dir", "run", cwd=here)
    (here / "student.py").write_text(STUDENT + "\nopen('ran', 'w')\n")
    done = pgcli("verify", "run", cwd=here)
    assert "was not loaded" in " ".join(done.stdout.split())
    pgcli("eval", "run", "--episodes", 2, cwd=here)
    pgcli("plot", "run", cwd=here)
    assert not (here / "ran").exists()
    pgcli("resume", "run", "training.iterations=4", cwd=here)
    assert (here / "ran").exists()
    assert len(rows(here / "run/metrics.csv")) == 4


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("student.py:over_parameters", 2, ["shape []", "`pgcli check student.py:over_parameters` shows more"]),
        ("student.py:raises", 2, ["IndexError", "(student.py:"]),
        ("student.py:steps_itself", 2, ["changed the policy's parameters"]),
        ("student.py:gone", 2, ["has no `gone`"]),
        ("gone.py:reinforce", 2, ["gone.py: no such file"]),
        ("infinite.py:f", 5, ["is not finite"]),
        ("network.py:Right", 2, ["is a class"]),
    ],
)
def test_a_failing_estimator_gives_one_error_and_a_hint(name: str, code: int, words: list[str], here: Path) -> None:
    (here / "infinite.py").write_text(
        "import torch\ndef f(r, policy, g):\n    return torch.full((policy.dim,), torch.inf)\n"
    )
    (here / "network.py").write_text(NETWORK)
    done = pgcli("train", "tutorial", *LEARN, f"algorithm.estimator={name}", "--run-dir", "run", cwd=here, code=code)
    assert (done.stderr.count("error:"), done.stderr.count("hint:")) == (1, 1)
    for word in words:
        assert word in done.stderr


OWN = "algorithm.estimator=my.py:reinforce"


@pytest.mark.parametrize(
    ("overrides", "reason", "fix"),
    [
        (("algorithm.estimator=reinforce",), "expected FILE.py:NAME or FILE.ipynb:NAME", OWN),
        ((OWN, "rollout={episodes: null, steps: 8}", "algorithm.baseline=value"), "not segments", ""),
        (
            (OWN, "algorithm.objective=clip"),
            "one on-policy gradient step",
            "algorithm.objective=policy_gradient",
        ),
        ((OWN, "algorithm.baseline=value"), "no value function", "algorithm.baseline=mean"),
        ((OWN, "algorithm={baseline: group, group_size: 4, estimator: my.py:f}"), "receives no groups", ""),
        ((OWN, "algorithm.entropy_coef=0.1"), "the whole gradient", "algorithm.entropy_coef=0"),
        ((OWN, "policy.memory=gru"), "score of each step", "policy.memory=none"),
    ],
)
def test_keys_that_exclude_a_user_estimator_are_rejected(overrides: tuple[str, ...], reason: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        override(Config(), overrides)
    if fix:
        assert override(Config(), [*overrides, fix]).algorithm.estimator


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env.id=Pendulum-v1", "env.max_episode_steps=5"], "supports Discrete actions only"),
        (["env.id=tasks:Permitted-v0"], "does not support action masks"),
        (["env.id=tasks:Identity-v0", "env.kwargs.observation=image, 2-d"], "does not read images"),
    ],
)
def test_a_policy_without_the_tutorials_methods_is_rejected(overrides: list[str], words: str, here: Path) -> None:
    own = "algorithm.estimator=student.py:gpomdp"
    done = pgcli("train", "tutorial", *LEARN, own, *overrides, "--run-dir", "r", cwd=here, code=2, PYTHONPATH=PATHS)
    assert words in done.stderr
    assert not (here / "r").exists(), "nothing is written"


def test_discrete_observations_are_one_hot(here: Path) -> None:
    settings = ["env.id=tasks:Identity-v0", "algorithm.estimator=student.py:gpomdp", "--run-dir", "run"]
    pgcli("train", "tutorial", *LEARN, *settings, cwd=here, PYTHONPATH=PATHS)
    assert all(float(row["grad_norm"]) > 0 for row in rows(here / "run/metrics.csv"))
