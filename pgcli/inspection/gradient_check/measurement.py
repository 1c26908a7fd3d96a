"""Measure an estimator on small problems: its bias relative to ∇J, its variance, and a verdict.

Where all batches are enumerated, E[g] is a finite sum and must equal the expectation m up to rounding. Elsewhere the
mean of B sampled estimates g_i is compared with m by Hotelling's T² = B (ḡ - m)ᵀ S⁺ (ḡ - m) over the k coordinates in
which the estimates vary. T² (B - k) / (k (B - 1)) has the distribution F(k, B - k), and p < 1e-6 is a failure.
Coordinates that do not vary must be exact.

Source: Anderson (2003), "An Introduction to Multivariate Statistical Analysis", section 5.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import combinations_with_replacement, product
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.gradients.fisher import fisher_product
from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.natural_gradient import conjugate_gradient
from pgcli.algorithm.policy_gradient import PolicyGradient, estimate_gradient
from pgcli.config.rules import violations, without_effect
from pgcli.config.schema import AlgorithmConfig, Config, EnvConfig, PolicyConfig, ValueConfig
from pgcli.environments.single import make_environment
from pgcli.estimators.trajectories import Trajectories
from pgcli.inspection.gradient_check.definitions import flat, gradient, scored_trajectories, select_columns, step_scores
from pgcli.inspection.gradient_check.problems import (
    CheckProblem,
    ContinuousProblem,
    ExplorationProblem,
    FiniteProblem,
    ProblemData,
    bandit_mdp,
    chain_mdp,
    corridor_mdp,
    grid_mdp,
    kept_steps,
    lake_mdp,
)
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import trajectory_ratios, trajectory_values, valid_steps

Array = NDArray[Any]
Verdict = Literal["wrong", "biased by design", "unbiased"]  # the worst first
CELL = ("returns", "baseline", "objective", "ratios")
SIGNIFICANCE = 1e-6  # p-values below it mean `wrong`
ESTIMATES = 256  # of a sampled problem
TARGET_ERROR = 0.03  # relative error of E[g] that a sampled problem finds
POWER = 0.9  # with which it finds it
MOST_COLUMNS = 8192  # of one estimate
AT_ONCE = 8192  # columns sampled together
KEPT_STEPS = (2, 4, 8)  # of the problems for noise that a policy keeps
KEPT = (
    "keeps its noise from step to step, and log π is that of one step: their sum is not that of an episode. Even of "
    "the exact estimator E[g]·∇J/|∇J|² is"
)
NETWORK = (  # keys of the policy that the check does not cover
    *("activation", "init", "initial_standard_deviation", "normalize_obs"),
    *("image_network", "backpropagation_steps", "action_mask"),
    *("layer_norm", "residual", "network", "network_kwargs"),
)
GROUP = 2  # columns of a group
ROUNDING = 1e-9  # relative to the largest number


@dataclass(frozen=True)
class Reason:
    """Why an estimator is biased; with `factor`, the gradient is only scaled by it."""

    text: str
    factor: float | None = None


@dataclass(frozen=True)
class Measurement:
    """The result on one problem; None where ∇J or E[g] is 0."""

    problem: str
    about: str
    verdict: Verdict
    reasons: list[str]
    exact: bool  # the expectation is a finite sum, not a sample's mean
    columns: int  # of one estimate
    estimates: int
    bias: float | None  # (E[g] - ∇J) · ∇J / |∇J|²: the relative error of the component along ∇J
    bias_low: float | None  # 95 %
    bias_high: float | None
    across: float | None  # |E[g] - (1 + bias) ∇J| / |∇J|: the error in other directions
    cosine: float | None  # between E[g] and ∇J
    variance: float  # the trace of the covariance of one estimate
    smallest_error: float | None  # of E[g]'s length, as a share, that would have been found; None if E[g] is to be 0
    p_value: float  # of a mean this far from `expected`; where exact, 1 if they are equal, else 0
    gradient: list[float]  # ∇J
    mean: list[float]  # E[g]
    expected: list[float]  # E[g] by definition


@dataclass(frozen=True)
class NaturalMeasurement:
    """The relative error of (F + λ I)⁻¹ ∇J on one problem."""

    problem: str
    error: float  # with the iterations of the config
    converged_error: float  # with enough of them

    @property
    def is_wrong(self) -> bool:
        """Whether more iterations do not find it."""
        return not self.converged_error < 1e-6


# ------------------------------------------------------------------------------------------------------ whole configs


def check_config(config: Config, kind: type, sampled: bool = True) -> dict[str, Any]:
    """Measure the estimator of a config on every problem that fits.

    Return the object that `pgcli check CONFIG --json` prints.
    """
    torch.set_num_threads(1)
    problems, left_out = problems_for(config, kind, sampled)
    found = [measure(config, problem) for problem in problems]
    algorithm = config.algorithm
    reasons = list(dict.fromkeys(reason for one in found for reason in one.reasons))
    kept = [reason.partition(KEPT) for reason in reasons if KEPT in reason]
    reasons = [reason for reason in reasons if KEPT not in reason]
    reasons += [f"{kept[0][0]}{KEPT}{','.join(factor for *_, factor in kept)}"] if kept else []
    natural = []
    if config.optimizer.name == "natural":
        natural = [
            measure_natural(config, one) for one in problems if isinstance(one, FiniteProblem) and not one.sampled
        ]
        if not natural:
            left_out = [*left_out, "F⁻¹ ∇J is compared on enumerated problems, which have discrete actions"]
    verdicts = [one.verdict for one in found]
    wrong = [one.problem for one in natural if one.is_wrong]
    verdicts += ["wrong"] if wrong else []
    return {
        "estimator": " × ".join(getattr(algorithm, key) for key in CELL[: 3 if algorithm.ratios == "step" else 4]),
        "verdict": min(verdicts, key=get_args(Verdict).index, default="unbiased"),
        "reasons": [*reasons, *(f"F⁻¹ ∇J is wrong on {name}" for name in wrong)],
        "problems": [asdict(one) for one in found],
        "natural_gradient": [asdict(one) for one in natural],
        "left_out": left_out,
    }


def check_grid(config: Config, kind: type) -> dict[str, Any]:
    """Check every cell of the grid that the rules accept with the other keys of `config`.

    Problems that take more than a second are left out, except for continuous actions, which have no others.
    """
    cells, refused = [], 0
    for cell in product(*(get_args(AlgorithmConfig.model_fields[key].annotation) for key in CELL)):
        variant = in_cell(config, *cell)
        if any(violations(variant)) or any(
            one.key == "algorithm.ratios" for one in without_effect(variant) if one.refused
        ):
            refused += 1
        else:
            cells.append(dict(zip(CELL, cell, strict=True)) | check_config(variant, kind, sampled=False))
    return {
        "verdict": min((cell["verdict"] for cell in cells), key=get_args(Verdict).index, default="unbiased"),
        "cells": cells,
        "refused": refused,
    }


def in_cell(config: Config, returns: str, baseline: str, objective: str, ratios: str = "step") -> Config:
    """Return `config` in another cell of the grid, without the keys that have no effect there."""
    algorithm = config.algorithm
    keys: dict[str, Any] = {"returns": returns, "baseline": baseline, "objective": objective, "ratios": ratios}
    if baseline == "group":
        keys["group_size"] = algorithm.group_size or config.rollout.episodes
    else:
        keys |= {"group_size": None, "group_mean": "whole"}
    own_group = baseline == "group" and returns == "total"
    if ratios == "per_decision" or (algorithm.standardize == "group" and not own_group):
        keys["standardize"] = "none"
    if returns == "total":
        keys["discount_weighting"] = False
    if objective == "policy_gradient":
        keys |= {"update_epochs": 1, "num_minibatches": 1, "reuse": 1, "kl_coef": 0.0, "target_kl": None}
    if objective != "importance_sampling":
        keys |= {"importance_bound": None, "self_normalize": False}
    return config.model_copy(update={"algorithm": algorithm.model_copy(update=keys)})


def action_kind(config: Config) -> type:
    """Return the kind of a config's action space, by its distribution or its environment.

    Raises: EnvironmentFailure: if the environment cannot be made.
    """
    kinds = {"softmax": spaces.Discrete, "bernoulli": spaces.MultiBinary}
    if config.policy.distribution != "auto":
        return kinds.get(config.policy.distribution, spaces.Box)
    with closing(make_environment(config.env)) as env:
        others = (spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)
        return next((kind for kind in others if isinstance(env.action_space, kind)), spaces.Discrete)


# ---------------------------------------------------------------------------------------------------- bias by design


def bias_reasons(config: Config, problem: CheckProblem) -> Iterator[Reason]:
    """Yield the reasons for which the estimator of `config` is biased on `problem` by design."""
    algorithm, several, n = config.algorithm, problem.horizon > 1, config.rollout.episodes
    whole = algorithm.returns == "total" or not problem.lengths_vary
    if problem.off_policy and algorithm.ratios == "per_decision":
        whole = not several  # rewards after t have other weights than the own part of the baseline
    if algorithm.baseline == "mean":
        own = "baseline: mean includes each trajectory's own return, which leaves 1 - 1/N of the gradient"
        yours = "" if n is None else f": {1 - 1 / n:.3g} with your {n:,} episodes"
        yield Reason(own + yours, 1 - 1 / problem.columns if whole else None)
    if algorithm.baseline == "group" and algorithm.group_mean == "whole":
        own = "baseline: group includes each trajectory's own return, which leaves 1 - 1/group_size of the gradient"
        yield Reason(f"{own}: {1 - 1 / config.group_size:.3g} with yours", 1 - 1 / GROUP if whole else None)
    if algorithm.standardize in ("batch", "minibatch"):
        what = algorithm.standardize
        yield Reason(f"standardize: {what} divides by the deviation of the {what} itself, a random factor")
    if algorithm.standardize == "group":
        yield Reason("standardize: group weighs each group by one over its own deviation, which turns the gradient")
    if algorithm.average != "episodes" and several:
        mean = {"steps": "the mean over all steps", "episode_means": "the mean within each trajectory"}
        of = f"average: {algorithm.average} is {mean[algorithm.average]}, not the sum over a trajectory's"
        factor = None if problem.lengths_vary or problem.rows else 1 / problem.horizon
        yield Reason(f"{of}: shorter, and where lengths differ not the gradient of the return", factor)
    if algorithm.returns != "total" and not algorithm.discount_weighting and algorithm.gamma < 1 and several:
        yield Reason("discount_weighting: false drops γ^t, so late states count as much as early ones")
    if algorithm.returns in ("lambda_return", "vtrace") and algorithm.gae_lambda < 1 and several:
        yield Reason(f"returns: {algorithm.returns} with λ < 1 leans on V, whose errors stay")
    if config.has_value and problem.truncates and not problem.rows:
        yield Reason("V stands for what lies behind a time limit: the gradient of a return that goes on")
    if problem.rows:
        yield Reason("segments count states as often as they are visited, and V stands for what lies behind their end")
    if algorithm.entropy_coef > 0:
        yield Reason("entropy_coef adds the gradient of the entropy")
    if problem.off_policy:
        if several and algorithm.ratios == "step":
            yield Reason("ratios: step corrects the action of each step, not the states and rewards that μ leads to")
        if several and algorithm.ratios == "sequence":
            yield Reason("ratios: sequence is the geometric mean of a trajectory's ratios, not their product")
        if algorithm.objective == "clip":
            yield Reason("objective: clip stops at ratios beyond 1 ± ε, once the policy has moved")
        if algorithm.importance_bound is not None:
            yield Reason("importance_bound truncates the weights of actions that have become likelier")
        if algorithm.self_normalize:
            yield Reason("self_normalize divides by the mean weight of the batch itself")
        if algorithm.initial_kl_coef > 0:
            yield Reason("kl_coef adds the gradient of the KL divergence, once the policy has moved")


def known_factor(reasons: Sequence[Reason]) -> float | None:
    """Return the factor by which ∇J is scaled, 1 without a reason. None if it is not only scaled."""
    factors = [reason.factor for reason in reasons if reason.factor is not None]
    return math.prod(factors) if len(factors) == len(reasons) else None


# ------------------------------------------------------------------------------------------------ choice of problems


def problems_for(config: Config, kind: type, sampled: bool = True) -> tuple[list[CheckProblem], list[str]]:
    """Return problems that fit a config and the kind of its actions.

    Also return notes on the problems left out. Without `sampled`, the sampled problems and the lake, which takes more
    than a second, are left out.
    """
    distribution, memory = config.policy.distribution, config.policy.memory != "none"
    found, left_out = list[CheckProblem](), list[str]()
    if kind is spaces.Box:
        bounded = distribution == "tanh_gaussian"
        found.append(ContinuousProblem("target", "one step, r = -1 - (a - 1)²", 1, 32, bounded))
        if distribution in ("auto", "gaussian"):
            found.append(ContinuousProblem("lqr", "s' = s + a, r = -s² - (a - 1)², 4 steps", 4, 32))
        elif distribution == "state_dependent_gaussian":
            about = "s' = s + 0.3 a, r = -s² - (a - 1)², {} steps"
            found += [ExplorationProblem(f"noise {t}", about.format(t), t, 16) for t in KEPT_STEPS]
        else:
            left_out.append(f"lqr has a closed form for `distribution: gaussian`, not for {distribution}")
        if memory:
            left_out.append("the continuous problems are tried without the policy's memory")
        if config.rollout.steps:
            left_out.append("the continuous problems are tried in whole episodes, not in segments")
        return found, left_out
    actions, grouped = 3 if kind is spaces.Discrete else 4, config.group_size > 1
    bandit, logits = bandit_mdp((1.0, 0.0, 2.0, -1.0)[:actions]), [math.log(k) for k in (1, 2, 3, 1.5)][:actions]
    n = 4 if grouped or actions == 3 else 2
    found.append(FiniteProblem("bandit", f"one step, {actions} actions", bandit, kind, n, logits))
    if config.algorithm.objective != "policy_gradient":
        about = "the same, once the policy has moved"
        found.append(FiniteProblem("moved bandit", about, bandit, kind, n, logits, off_policy=True))
    chain = chain_mdp(3, 0.0, 1.0)
    found.append(FiniteProblem("chain", "3 steps, paid at the end", chain, kind, 4 if grouped else 3, [0.0, 0.5]))
    found.append(FiniteProblem("corridor", "4 places, cut after 3 steps", corridor_mdp(3), kind, 2))
    if config.algorithm.objective != "policy_gradient":
        about = "the chain, once the policy has moved"
        found.append(FiniteProblem("moved chain", about, chain, kind, 2, [0.0, 0.5], off_policy=True))
        if sampled:
            about = "FrozenLake of 2 × 2, cut after 2 steps, once the policy has moved"
            found.append(FiniteProblem("moved lake", about, lake_mdp("SFHG", 2), kind, 2, off_policy=True))
    if config.rollout.steps:
        found.append(FiniteProblem("segments", "the chain in segments of 4 rows", chain, kind, 2, [0.0, 0.5], rows=4))
    if memory:
        left_out.append("grid is solved for policies without memory")
    elif sampled:
        grid = grid_mdp(3, 0.2, 8)
        found.append(FiniteProblem("grid", "3 × 3, slippery, cut after 8 steps", grid, kind, 16, sampled=True))
    return found, left_out


def reduced(config: Config, problem: CheckProblem) -> Config:
    """Return the estimator of `config` for `problem`.

    It has the smallest policy, and defaults for everything else.
    """
    algorithm = config.algorithm
    if algorithm.group_size is not None:
        algorithm = algorithm.model_copy(update={"group_size": GROUP})
    memory = "none" if isinstance(problem, ContinuousProblem) else config.policy.memory
    rollout = {"episodes": None if problem.rows else problem.columns, "steps": problem.rows, "horizon": None}
    defaults = {key: PolicyConfig.model_fields[key].default for key in NETWORK}
    sections = {
        "seed": 0,
        "env": EnvConfig(num_envs=problem.columns),
        "rollout": config.rollout.model_copy(update=rollout),
        "policy": config.policy.model_copy(update=defaults | {"hidden_sizes": [], "memory": memory, "memory_size": 2}),
        "value": ValueConfig(hidden_sizes=[]),
        "algorithm": algorithm,
    }
    return config.model_copy(update=sections)


# ------------------------------------------------------------------------------------------------------- measurement


def measure(config: Config, problem: CheckProblem) -> Measurement:
    """Measure the estimator of `config` on `problem`.

    A sampled problem gets enough columns to find an error of 3 %.
    """
    found = _measure(config, problem)
    if found.smallest_error is None or found.smallest_error <= TARGET_ERROR:
        return found
    more = (found.smallest_error / (0.8 * TARGET_ERROR)) ** 2  # the variance falls as 1/N; with a margin
    columns = min(math.ceil(problem.columns * more / GROUP) * GROUP, MOST_COLUMNS)
    return _measure(config, replace(problem, columns=columns))


def _measure(config: Config, problem: CheckProblem) -> Measurement:
    """Measure the estimator of `config` on `problem`."""
    reasons, distribution, config = (
        list(bias_reasons(config, problem)),
        config.policy.distribution,
        reduced(config, problem),
    )
    algorithm = config.algorithm
    agent = build_agent(problem.observation_space, problem.action_space, config)
    policy, value = agent.policy.double(), agent.value
    problem.initialize(policy)
    if value is not None:  # a baseline may be any function of the state
        random = np.random.default_rng(2)
        with torch.no_grad():
            for parameter in value.double().parameters():
                parameter.copy_(torch.from_numpy(random.normal(0, 1, tuple(parameter.shape))))
    kept = Reason(f"policy.distribution: {distribution} {KEPT}") if kept_steps(policy, problem.horizon) > 1 else None
    reasons += [kept] if kept else []
    truth = gradient_of_return(problem, policy, algorithm.gamma)
    random, factor = np.random.default_rng(3), known_factor(reasons)
    if factor is not None and problem.columns * ESTIMATES > AT_ONCE:
        firsts = range(0, ESTIMATES, max(AT_ONCE // problem.columns, 1))
        counts = [min(ESTIMATES - first, firsts.step) for first in firsts]
        sampled = (problem.data(policy, count, random) for count in counts)
        found = [estimates_of(agent, data.trajectories, batches_of(data, problem.columns)[0]) for data in sampled]
        return _compare(problem, reasons, truth, np.concatenate(found), factor * truth, None)
    data = problem.data(policy, ESTIMATES, random)
    whole = data.trajectories
    batches, probabilities = batches_of(data, problem.columns, exchangeable=config.group_size == 1)
    estimates = estimates_of(agent, whole, batches)
    if factor is not None:
        return _compare(problem, reasons, truth, estimates, factor * truth, probabilities)
    scores = step_scores(policy, whole)
    if kept:
        factor = exact_factor(scores, whole, algorithm.gamma, truth)
        reasons = [
            replace(one, text=f"{one.text} {factor:.2f} ({problem.name})") if one is kept else one for one in reasons
        ]
    bonus = step_scores(policy, whole, of_entropy=True) if algorithm.entropy_coef > 0 else np.zeros_like(scores)
    values, ratios = trajectory_values(policy, value, whole).numpy(), trajectory_ratios(policy, whole).numpy()
    columns = scored_trajectories(whole, scores, bonus, values, ratios)
    parts = [[trajectory for n in batch for trajectory in columns[n]] for batch in batches]
    by_definition = np.stack([gradient(part, problem.columns, algorithm) for part in parts])
    return _compare(problem, reasons, truth, estimates, by_definition, probabilities)


def estimates_of(agent: PolicyGradient, whole: Trajectories, batches: Sequence[tuple[int, ...]]) -> Array:
    """Compute the agent's estimates of ∇J, [B, dim], from batches of columns."""
    if agent.config.algorithm.objective == "policy_gradient":
        whole = replace(whole, behavior_log_probs=None)
    parameters = list(agent.policy.parameters())
    each = (estimate_gradient(agent, select_columns(whole, batch))[0] for batch in batches)
    return np.stack([-flat(one, parameters).numpy() for one in each])


def measure_natural(config: Config, problem: FiniteProblem) -> NaturalMeasurement:
    """Compare conjugate gradients on pgcli's F with the inverse of the enumerated F.

    F = E[Σ_t ∇log π ∇log πᵀ] / E[T].
    """
    settings = config.optimizer
    agent = build_agent(problem.observation_space, problem.action_space, reduced(config, problem))
    policy = agent.policy.double()
    problem.initialize(policy)
    data = problem.data(policy, ESTIMATES, np.random.default_rng(3))
    assert data.probabilities is not None
    scores, whole, truth = (
        step_scores(policy, data.trajectories),
        data.trajectories,
        gradient_of_return(problem, policy, 1),
    )
    weights = data.probabilities * whole.mask.numpy()
    weights /= weights.sum()
    damped = np.einsum("tn,tni,tnj->ij", weights, scores, scores) + settings.damping * np.eye(len(truth))
    expected = np.linalg.pinv(damped, rcond=1e-10, hermitian=True) @ truth
    batch, _ = agent.batch(replace(whole, behavior_log_probs=None))
    rows, _ = valid_steps(policy, whole)
    product = fisher_product(policy, batch, torch.from_numpy(weights.ravel())[rows])
    g = torch.from_numpy(truth)

    def error(iterations: int) -> float:
        found = conjugate_gradient(product, g, iterations, settings.damping, 1e-14).numpy()
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    return NaturalMeasurement(problem.name, error(settings.cg_iterations), error(10 * len(truth)))


def exact_factor(scores: Array, whole: Trajectories, gamma: float, truth: Array) -> float:
    """Compute E[g]·∇J/|∇J|² of reward-to-go with γ^t and a mean baseline.

    It is 1 if the scores are those of the episodes.
    """
    discounted = whole.rewards.numpy() * gamma ** np.arange(len(whole.rewards))[:, None]
    to_go = discounted[::-1].cumsum(0)[::-1]
    advantages = to_go - to_go.mean(1, keepdims=True)
    mean = np.einsum("tn,tnd->d", advantages, scores) / len(advantages.T)
    return float(mean @ truth / (truth @ truth))


def gradient_of_return(problem: CheckProblem, policy: Policy, gamma: float) -> Array:
    """Compute ∇J, [dim], in the order of the policy's parameters."""
    parameters = list(policy.parameters())
    total = problem.expected_return(policy, gamma)
    truth: Array = flat(torch.autograd.grad(total, parameters, allow_unused=True), parameters).numpy()
    return truth


def batches_of(
    data: ProblemData, columns: int, exchangeable: bool = False
) -> tuple[list[tuple[int, ...]], Array | None]:
    """Return all batches of a number of columns with their probabilities.

    A sample is divided into batches.

    If columns are `exchangeable`, one batch represents all orders of its columns.
    """
    count = data.trajectories.mask.shape[1]
    if data.probabilities is None:
        return [tuple(range(first, first + columns)) for first in range(0, count, columns)], None
    if not exchangeable:
        batches = list(product(range(count), repeat=columns))
        return batches, np.prod(data.probabilities[np.array(batches)], 1)
    batches = list(combinations_with_replacement(range(count), columns))
    orders = [math.factorial(columns) / math.prod(map(math.factorial, Counter(one).values())) for one in batches]
    return batches, np.array(orders) * np.prod(data.probabilities[np.array(batches)], 1)


def _compare(
    problem: CheckProblem,
    reasons: Sequence[Reason],
    truth: Array,
    found: Array,
    expected: Array,
    probabilities: Array | None,
) -> Measurement:
    """Compare estimates [B, dim] with ∇J and with their expectation.

    The expectation by definition is [dim], or [B, dim] for each estimate.

    `probabilities` [B] are those of all batches; None for a sample.
    """
    weights = np.full(len(found), 1 / len(found)) if probabilities is None else probabilities
    mean = weights @ found
    small = ROUNDING * float(np.abs(found).max() + np.abs(expected).max())
    wanted: Array = expected if expected.ndim == 1 else weights @ expected
    equal = float(np.abs(mean - wanted).max() <= small)
    p_value = hotelling(found - expected, small) if probabilities is None else equal
    unbiased = not reasons or (probabilities is not None and np.abs(mean - truth).max() <= small)
    verdict: Verdict = "wrong" if p_value < SIGNIFICANCE else "unbiased" if unbiased else "biased by design"
    texts = [reason.text for reason in reasons]
    error = small / max(float(np.abs(wanted).max()), small)
    if probabilities is None:
        error = detectable_error(found - expected, wanted, small)
    smallest = error if error < 1 else None
    return summarize(problem, verdict, texts, truth, found, wanted, probabilities, p_value, smallest)


def summarize(
    problem: CheckProblem,
    verdict: Verdict,
    reasons: list[str],
    truth: Array,
    found: Array,
    expected: Array,
    probabilities: Array | None,
    p_value: float,
    smallest_error: float | None,
) -> Measurement:
    """Compute bias, cosine and variance of estimates [B, dim] with respect to ∇J."""
    weights = np.full(len(found), 1 / len(found)) if probabilities is None else probabilities
    mean, size = weights @ found, float(np.linalg.norm(truth))
    errors = found @ truth / size**2 - 1 if size > ROUNDING else None
    bias = None if errors is None else float(weights @ errors)
    error = 0.0 if errors is None or probabilities is not None else float(errors.std(ddof=1)) / math.sqrt(len(errors))
    length, tiny = float(np.linalg.norm(mean)), 1e-6 * float(np.abs(found).max())
    return Measurement(
        problem=problem.name,
        about=problem.about,
        verdict=verdict,
        reasons=[] if verdict == "unbiased" else reasons,
        exact=probabilities is not None,
        columns=problem.columns,
        estimates=len(found),
        bias=bias,
        bias_low=None if bias is None else bias - 1.96 * error,
        bias_high=None if bias is None else bias + 1.96 * error,
        across=None if bias is None else float(np.linalg.norm(mean - (1 + bias) * truth)) / size,
        cosine=float(mean @ truth) / (length * size) if length > tiny and size > ROUNDING else None,
        variance=float(weights @ np.square(found - mean).sum(1)),
        smallest_error=smallest_error,
        p_value=p_value,
        gradient=truth.tolist(),
        mean=mean.tolist(),
        expected=expected.tolist(),
    )


def hotelling(differences: Array, negligible: float) -> float:
    """Compute Hotelling's p-value for rows [B, dim] of mean 0.

    It is 0 if a coordinate that does not vary is not 0.
    """
    from scipy.stats import f  # only a sample needs it

    count, mean = len(differences), differences.mean(0)
    variances, axes, varies, bound = _principal_axes(differences, negligible)
    off = mean @ axes
    if np.abs(off[~varies]).max(initial=0) > bound:
        return 0.0
    k = int(varies.sum())
    if k == 0:
        return 1.0
    squared = count * float((off[varies] ** 2 / variances[varies]).sum())
    return float(f.sf(squared * (count - k) / (k * (count - 1)), k, count - k))


def detectable_error(differences: Array, wanted: Array, negligible: float) -> float:
    """Compute the smallest relative error of `wanted` [dim] that is found.

    Hotelling's test finds it with probability POWER.

    With an error δ of the length, T² has the noncentral distribution F(k, B - k, λ), λ = B δ² m S⁺ m.
    """
    from scipy.optimize import brentq
    from scipy.stats import f, ncf

    count = len(differences)
    variances, axes, varies, bound = _principal_axes(differences, negligible)
    along = np.abs(wanted @ axes)
    found = [bound / x for x in along[~varies] if x > bound]
    if k := int(varies.sum()):
        critical = f.isf(SIGNIFICANCE, k, count - k)
        noncentrality = brentq(lambda x: ncf.sf(critical, k, count - k, x) - POWER, 1.0, 1000.0)
        signal = count * float((along[varies] ** 2 / variances[varies]).sum())
        found.append(math.sqrt(noncentrality / signal) if signal > 0 else math.inf)
    return min(found, default=math.inf)


def _principal_axes(differences: Array, negligible: float) -> tuple[Array, Array, Array, float]:
    """Return variances of rows [B, dim] along principal axes; axes; which vary; a bound for others."""
    dim = differences.shape[1]
    variances, axes = np.linalg.eigh(np.cov(differences.T).reshape(dim, dim))
    largest = float(variances.max())
    varies = variances > max(negligible**2, 1e-12 * largest)
    return variances, axes, varies, max(negligible, 1e-5 * math.sqrt(max(largest, 0.0)))
