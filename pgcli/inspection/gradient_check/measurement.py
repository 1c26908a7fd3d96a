"""An estimator measured: its bias relative to ∇J, its variance, and a verdict.

Where every batch can be told, E[g] is a finite sum, and equal means equal but for rounding. Elsewhere the mean of B
estimates g_i is held against an expectation m by Hotelling's T² = B (ḡ - m)ᵀ S⁺ (ḡ - m), over the k coordinates in
which the estimates vary; T² (B - k) / (k (B - 1)) is F(k, B - k), and what has p < 1e-6 is refused. Where nothing
varies, the mean must be exact.

Source: Anderson (2003), "An Introduction to Multivariate Statistical Analysis", section 5.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import combinations_with_replacement, product
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import estimate_gradient
from pgcli.config.rules import violations
from pgcli.config.schema import AlgorithmConfig, Config, EnvConfig, PolicyConfig, ValueConfig
from pgcli.environments.forms import make
from pgcli.inspection.gradient_check.definitions import flat, gradient, pieces_of, scores_along, take
from pgcli.inspection.gradient_check.problems import (
    Continuous,
    Data,
    Finite,
    Problem,
    bandit_world,
    chain_world,
    corridor_world,
    grid_world,
)
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import ratios_along, values_along

Array = NDArray[Any]
Verdict = Literal["unbiased", "biased by design", "wrong"]
CELL = ("returns", "baseline", "objective")
REFUSED_BELOW = 1e-6
ESTIMATES = 256  # of a problem that is sampled
GROUP = 2  # columns of a group
ROUNDING = 1e-9  # relative to the largest number that takes part


@dataclass(frozen=True)
class Reason:
    """Why an estimator is biased, in words; `factor`, if all that it does is to scale the gradient by it."""

    words: str
    factor: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was found on one problem; None where ∇J, or E[g], is 0."""

    problem: str
    about: str
    verdict: Verdict
    reasons: list[str]
    exact: bool  # the expectation is a finite sum, not a sample's mean
    columns: int  # of one estimate
    estimates: int
    bias: float | None  # (E[g] - ∇J) · ∇J / |∇J|²: by how much steps along ∇J are too long
    bias_low: float | None  # 95 %
    bias_high: float | None
    cosine: float | None  # between E[g] and ∇J
    variance: float  # the trace of the covariance of one estimate
    p_value: float  # of a mean this far from what it should be; where exact, 1: it is that, 0: it is not
    gradient: list[float]  # ∇J
    mean: list[float]  # E[g]
    expected: list[float]  # what it should be


# ------------------------------------------------------------------------------------------------------ whole configs


def check(config: Config, kind: type, sampled: bool = True) -> dict[str, Any]:
    """Measure the estimator of a config on every problem that fits: what `pgcli check CONFIG --json` prints."""
    torch.set_num_threads(1)
    problems, left_out = problems_for(config, kind, sampled)
    found = [measure(config, problem) for problem in problems]
    return {
        "estimator": name_of(config),
        "verdict": worst([one.verdict for one in found]),
        "reasons": list(dict.fromkeys(reason for one in found for reason in one.reasons)),
        "problems": [asdict(one) for one in found],
        "left_out": left_out,
    }


def check_all(config: Config, kind: type) -> dict[str, Any]:
    """Check every cell of the grid that the rules accept beside the other keys of `config`, on what can be told whole.

    Continuous actions have nothing that can be told whole, and are sampled.
    """
    cells, refused = [], 0
    for cell in product(*(get_args(AlgorithmConfig.model_fields[key].annotation) for key in CELL)):
        variant = at(config, *cell)
        if any(violations(variant)):
            refused += 1
        else:
            cells.append(dict(zip(CELL, cell, strict=True)) | check(variant, kind, sampled=False))
    return {"verdict": worst([one["verdict"] for one in cells]), "cells": cells, "refused": refused}


def at(config: Config, returns: str, baseline: str, objective: str) -> Config:
    """Move a config to another cell of the grid, and leave out what only another cell has."""
    algorithm = config.algorithm
    keys: dict[str, Any] = {"returns": returns, "baseline": baseline, "objective": objective}
    if baseline == "group":
        keys["group_size"] = algorithm.group_size or config.rollout.episodes
    else:
        keys |= {"group_size": None, "group_mean": "whole"}
    if algorithm.standardize == "group" and not (baseline == "group" and returns == "total"):
        keys["standardize"] = "none"
    if returns == "total":
        keys["discount_weighting"] = False
    if objective == "policy_gradient":
        keys |= {"update_epochs": 1, "num_minibatches": 1, "reuse": 1, "kl_coef": 0.0, "target_kl": None}
    if objective != "importance_sampling":
        keys |= {"importance_bound": None, "self_normalize": False}
    return config.model_copy(update={"algorithm": algorithm.model_copy(update=keys)})


def name_of(config: Config) -> str:
    """Write where in the grid a config stands."""
    algorithm = config.algorithm
    return f"{algorithm.returns} × {algorithm.baseline} × {algorithm.objective}"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Give the worst of several verdicts."""
    order: tuple[Verdict, ...] = ("wrong", "biased by design", "unbiased")
    return next((one for one in order if one in verdicts), "unbiased")


def actions_of(config: Config) -> type:
    """Tell the kind of a config's actions, by its distribution or else its environment. Raises: EnvironmentFailure."""
    match config.policy.distribution:
        case "softmax":
            return spaces.Discrete
        case "bernoulli":
            return spaces.MultiBinary
        case "gaussian" | "tanh_gaussian" | "state_dependent_gaussian":
            return spaces.Box
        case "auto":
            with closing(make(config.env)) as env:
                kinds = (spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)
                return next((kind for kind in kinds if isinstance(env.action_space, kind)), spaces.Discrete)


# ---------------------------------------------------------------------------------------------------- what is by design


def reasons(config: Config, problem: Problem) -> Iterator[Reason]:
    """Yield what biases the estimator of `config` on `problem`, by design."""
    algorithm, several, n = config.algorithm, problem.horizon > 1, config.rollout.episodes
    whole = algorithm.returns == "total" or not problem.lengths_vary
    if algorithm.baseline == "mean":
        own = "baseline: mean has each trajectory's own part in it, which leaves 1 - 1/N of the gradient"
        yours = "" if n is None else f": {1 - 1 / n:.3g} with your {n:,} episodes"
        yield Reason(own + yours, 1 - 1 / problem.columns if whole else None)
    if algorithm.baseline == "group" and algorithm.group_mean == "whole":
        own = "baseline: group has each trajectory's own part in it, which leaves 1 - 1/group_size of the gradient"
        yield Reason(f"{own}: {1 - 1 / config.group_size:.3g} with yours", 1 - 1 / GROUP if whole else None)
    if algorithm.standardize == "batch":
        yield Reason("standardize: batch divides by the deviation of the batch itself, a random factor")
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
        if algorithm.objective == "clip":
            yield Reason("objective: clip stops at ratios beyond 1 ± ε, once the policy has moved")
        if algorithm.importance_bound is not None:
            yield Reason("importance_bound truncates the weights of actions that have become likelier")
        if algorithm.self_normalize:
            yield Reason("self_normalize divides by the mean weight of the batch itself")
        if algorithm.kl_coef > 0:
            yield Reason("kl_coef adds the gradient of the KL divergence, once the policy has moved")


def known_factor(why: Sequence[Reason]) -> float | None:
    """Give what ∇J is scaled by, 1 without a reason; None if it is not only scaled."""
    factors = [reason.factor for reason in why if reason.factor is not None]
    return math.prod(factors) if len(factors) == len(why) else None


# ------------------------------------------------------------------------------------------------- what it is tried on


def problems_for(config: Config, kind: type, sampled: bool = True) -> tuple[list[Problem], list[str]]:
    """Choose problems that fit a config and the kind of its actions; and say what cannot be tried."""
    distribution, memory = config.policy.distribution, config.policy.memory != "none"
    grouped, left_out, found = config.group_size > 1, list[str](), list[Problem]()
    if kind is spaces.Box:
        bounded = distribution == "tanh_gaussian"
        found.append(Continuous("target", "one step, r = -1 - (a - 1)²", 1, 32, bounded))
        if distribution in ("auto", "gaussian"):
            found.append(Continuous("lqr", "s' = s + a, r = -s² - (a - 1)², 4 steps", 4, 32))
        else:
            left_out.append(f"lqr has a closed form for `distribution: gaussian`, not for {distribution}")
        if memory:
            left_out.append("the continuous problems are tried without the policy's memory")
        if config.rollout.steps:
            left_out.append("the continuous problems are tried in whole episodes, not in segments")
        return found, left_out
    arms = 3 if kind is spaces.Discrete else 4
    bandit, logits = bandit_world((1.0, 0.0, 2.0, -1.0)[:arms]), [math.log(k) for k in (1, 2, 3, 1.5)][:arms]
    n = 4 if grouped or arms == 3 else 2
    found.append(Finite("bandit", f"one step, {arms} actions", bandit, kind, n, logits))
    if config.algorithm.objective != "policy_gradient":
        about = "the same, once the policy has moved"
        found.append(Finite("moved bandit", about, bandit, kind, n, logits, off_policy=True))
    chain = chain_world(3, 0.0, 1.0)
    found.append(Finite("chain", "3 steps, paid at the end", chain, kind, 4 if grouped else 3, [0.0, 0.5]))
    found.append(Finite("corridor", "4 places, cut after 3 steps", corridor_world(3), kind, 2))
    if config.rollout.steps:
        found.append(Finite("segments", "the chain in segments of 4 rows", chain, kind, 2, [0.0, 0.5], rows=4))
    if memory:
        left_out.append("grid is solved for policies without memory")
    elif sampled:
        world = grid_world(3, 0.2, 8)
        found.append(Finite("grid", "3 × 3, slippery, cut after 8 steps", world, kind, 16, sampled=True))
    return found, left_out


def reduced(config: Config, problem: Problem) -> Config:
    """Give `config` for `problem`: the estimator as it is, the smallest policy, and what is no part of it left out."""
    algorithm = config.algorithm
    if algorithm.group_size is not None:
        algorithm = algorithm.model_copy(update={"group_size": GROUP})
    memory = "none" if isinstance(problem, Continuous) else config.policy.memory
    rollout = {"episodes": None if problem.rows else problem.columns, "steps": problem.rows, "horizon": None}
    return config.model_copy(
        update={
            "seed": 0,
            "env": EnvConfig(num_envs=problem.columns),
            "rollout": config.rollout.model_copy(update=rollout),
            "policy": PolicyConfig(
                hidden_sizes=[], distribution=config.policy.distribution, memory=memory, memory_size=2
            ),
            "value": ValueConfig(hidden_sizes=[]),
            "algorithm": algorithm,
        }
    )


# ----------------------------------------------------------------------------------------------------- the measurement


def measure(config: Config, problem: Problem) -> Measured:
    """Measure the estimator of `config` on `problem`."""
    why, config = list(reasons(config, problem)), reduced(config, problem)
    algorithm = config.algorithm
    agent = build_agent(problem.observation_space, problem.action_space, config)
    policy, value = agent.policy.double(), agent.value
    problem.start(policy)
    if value is not None:  # V says anything: a baseline may
        random = np.random.default_rng(2)
        with torch.no_grad():
            for parameter in value.double().parameters():
                parameter.copy_(torch.from_numpy(random.normal(0, 1, tuple(parameter.shape))))
    truth = gradient_of_return(problem, policy, algorithm.gamma)
    data = problem.data(policy, ESTIMATES, np.random.default_rng(3))
    whole = data.trajectories
    given = replace(whole, behavior_log_probs=None) if algorithm.objective == "policy_gradient" else whole
    batches, chances = batches_of(data, problem.columns, alike=config.group_size == 1)
    parameters = list(policy.parameters())
    found = np.stack([-flat(estimate_gradient(agent, take(given, batch))[0], parameters).numpy() for batch in batches])
    factor = known_factor(why)
    if factor is not None:
        return judge(problem, why, truth, found, factor * truth, chances)
    scores = scores_along(policy, whole)
    bonus = scores_along(policy, whole, of_entropy=True) if algorithm.entropy_coef > 0 else np.zeros_like(scores)
    values, ratios = values_along(policy, value, whole).numpy(), ratios_along(policy, whole).numpy()
    pieces = pieces_of(whole, scores, bonus, values, ratios)
    parts = [[piece for n in batch for piece in pieces[n]] for batch in batches]
    by_definition = np.stack([gradient(part, problem.columns, algorithm) for part in parts])
    return judge(problem, why, truth, found, by_definition, chances)


def gradient_of_return(problem: Problem, policy: Policy, gamma: float) -> Array:
    """Compute ∇J, [dim], in the order of the policy's parameters."""
    parameters = list(policy.parameters())
    total = problem.expected_return(policy, gamma)
    truth: Array = flat(torch.autograd.grad(total, parameters, allow_unused=True), parameters).numpy()
    return truth


def batches_of(data: Data, columns: int, alike: bool = False) -> tuple[list[tuple[int, ...]], Array | None]:
    """Make all batches of so many columns, each with its probability; or cut a sample into batches.

    Where columns are treated `alike`, a batch stands for all orders of its columns.
    """
    count = data.trajectories.mask.shape[1]
    if data.probabilities is None:
        return [tuple(range(first, first + columns)) for first in range(0, count, columns)], None
    if not alike:
        batches = list(product(range(count), repeat=columns))
        return batches, np.prod(data.probabilities[np.array(batches)], 1)
    batches = list(combinations_with_replacement(range(count), columns))
    orders = [math.factorial(columns) / math.prod(map(math.factorial, Counter(one).values())) for one in batches]
    return batches, np.array(orders) * np.prod(data.probabilities[np.array(batches)], 1)


def judge(
    problem: Problem,
    why: Sequence[Reason],
    truth: Array,
    found: Array,
    expected: Array,
    chances: Array | None,
) -> Measured:
    """Hold estimates [B, dim] against ∇J, and against what is `expected` of them: [dim], or of each, [B, dim].

    `chances` are the probabilities of the B batches; without them, they are a sample.
    """
    weights = np.full(len(found), 1 / len(found)) if chances is None else chances
    mean = weights @ found
    small = ROUNDING * float(np.abs(found).max() + np.abs(expected).max())
    wanted: Array = expected if expected.ndim == 1 else weights @ expected
    equal = float(np.abs(mean - wanted).max() <= small)
    p_value = hotelling(found - expected, small) if chances is None else equal
    unbiased = not why or (chances is not None and np.abs(mean - truth).max() <= small)
    right: Verdict = "unbiased" if unbiased else "biased by design"
    return described(
        problem, right if p_value >= REFUSED_BELOW else "wrong", why, truth, found, wanted, chances, p_value
    )


class Trial(Protocol):
    """What the numbers are of."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def about(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> int: ...  # noqa: D102


def described(
    problem: Trial,
    verdict: Verdict,
    why: Sequence[Reason],
    truth: Array,
    found: Array,
    wanted: Array,
    chances: Array | None,
    p_value: float,
) -> Measured:
    """Put numbers to estimates [B, dim]: along ∇J, around their mean."""
    weights = np.full(len(found), 1 / len(found)) if chances is None else chances
    mean, size = weights @ found, float(np.linalg.norm(truth))
    along = found @ truth / size**2 - 1 if size > ROUNDING else None
    bias = None if along is None else float(weights @ along)
    error = 0.0 if along is None or chances is not None else float(along.std(ddof=1)) / math.sqrt(len(along))
    length, tiny = float(np.linalg.norm(mean)), 1e-6 * float(np.abs(found).max())
    return Measured(
        problem=problem.name,
        about=problem.about,
        verdict=verdict,
        reasons=[] if verdict == "unbiased" else [reason.words for reason in why],
        exact=chances is not None,
        columns=problem.columns,
        estimates=len(found),
        bias=bias,
        bias_low=None if bias is None else bias - 1.96 * error,
        bias_high=None if bias is None else bias + 1.96 * error,
        cosine=float(mean @ truth) / (length * size) if length > tiny and size > ROUNDING else None,
        variance=float(weights @ np.square(found - mean).sum(1)),
        p_value=p_value,
        gradient=truth.tolist(),
        mean=mean.tolist(),
        expected=wanted.tolist(),
    )


def hotelling(differences: Array, negligible: float) -> float:
    """Compute the p-value of mean 0 for rows [B, dim]; 0 if the mean is off by more than rounding where none varies."""
    from scipy.stats import f  # only a sample needs it

    count, mean = len(differences), differences.mean(0)
    variances, axes = np.linalg.eigh(np.cov(differences.T).reshape(len(mean), len(mean)))
    largest = float(variances.max())
    varies = variances > max(negligible**2, 1e-12 * largest)
    off = mean @ axes
    if np.abs(off[~varies]).max(initial=0) > max(negligible, 1e-5 * math.sqrt(max(largest, 0.0))):
        return 0.0
    k = int(varies.sum())
    if k == 0:
        return 1.0
    squared = count * float((off[varies] ** 2 / variances[varies]).sum())
    return float(f.sf(squared * (count - k) / (k * (count - 1)), k, count - k))
