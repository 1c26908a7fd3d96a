"""Check a user's estimator or policy class: what it computes in expectation, and what is wrong with it, in words.

The estimator is called with every batch of a few small problems, so its expectation is a finite sum. The sum is
compared with those of a table of hypotheses: ways to weight the scores, some right, the others known mistakes. The
source code is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from itertools import product, takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.gradients import user_code
from pgcli.algorithm.gradients.user_code import Rollouts, TutorialPolicy, describe_wrong_result, tutorial_rollouts
from pgcli.config.schema import PolicyConfig
from pgcli.inspection.gradient_check.definitions import hidden_layer_scores, step_scores
from pgcli.inspection.gradient_check.measurement import Verdict, batches_of, gradient_of_return, summarize
from pgcli.inspection.gradient_check.problems import FiniteProblem, chain_mdp, corridor_mdp, initialize_linear
from pgcli.inspection.gradient_check.user_policies import CheckFailed, attempt, check_class
from pgcli.policies.activations import ACTIVATIONS
from pgcli.policies.policy import Policy

Array = NDArray[Any]
GAMMA = 0.75  # far from 1, and powers of it are exact in float32, so that equal returns stay equal
ROUNDING = 2e-4  # of a user's float32, relative to the largest estimate
EPSILON = 1e-8  # a smaller standard deviation counts as 0


# ------------------------------------------------------------------------------------------------------ the hypotheses


class Component(NamedTuple):
    """One way to compute a part of the estimate; `text` is its deviation, empty if it is right."""

    text: str
    wrong: bool  # a mistake, not a choice
    compute: Callable[..., Array]


def _sum_from(x: Array) -> Array:
    """Σ_{l ≥ t} x_l, for each t."""
    total: Array = x[..., ::-1].cumsum(-1)[..., ::-1]
    return total


def _sum_all(x: Array) -> Array:
    """Σ_l x_l, the same for each t."""
    return np.broadcast_to(x.sum(-1, keepdims=True), x.shape)


IMMEDIATE = "each score is multiplied by the immediate reward, or the rewards so far"
UNDISCOUNTED = "gamma is not used: it is the gradient of the undiscounted return"
RETURNS = (  # of rewards [B, N, T] and γ^t [T]
    Component("", False, lambda r, d: _sum_from(d * r)),
    Component("", False, lambda r, d: _sum_all(d * r)),
    Component("the γ^t in front of G_t is missing: late states count as much as early ones", False,
              lambda r, d: _sum_from(d * r) / d),
    Component(f"{IMMEDIATE}, not by the return: what comes later teaches nothing, and where every step is paid alike "
              "(CartPole) the gradient is 0 in expectation", True, lambda r, d: d * r),
    Component(f"{IMMEDIATE}, undiscounted, not by the return", True, lambda r, d: r),
    Component(UNDISCOUNTED, True, lambda r, d: _sum_from(r)),
    Component(UNDISCOUNTED, True, lambda r, d: _sum_all(r)),
    Component("γ^t is there twice: R(τ), which is discounted from the start, is weighed by γ^t again", True,
              lambda r, d: d * _sum_all(d * r)),
    Component("γ^t is there twice: Σ γ^l r_l from t on, which has it, is weighed by γ^t again", True,
              lambda r, d: d * _sum_from(d * r)),
)  # fmt: skip


def _centred(*axis: int) -> Callable[[Array, Array], Array]:
    def compute(x: Array, mask: Array) -> Array:
        count = mask.sum(axis, keepdims=True).clip(min=1)
        centred: Array = x - np.where(mask, x, 0).sum(axis, keepdims=True) / count
        return centred

    return compute


def _standardized(*axis: int, correction: int) -> Callable[[Array, Array], Array]:
    def compute(x: Array, mask: Array) -> Array:
        centred = np.where(mask, _centred(*axis)(x, mask), 0)
        count = (mask.sum(axis, keepdims=True) - correction).clip(min=1)
        deviation = np.sqrt(np.square(centred).sum(axis, keepdims=True) / count)
        scaled: Array = np.where(deviation > EPSILON, centred / np.maximum(deviation, EPSILON), 0)
        return scaled

    return compute


def _per_episode(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Apply `function` to one number per episode, regardless of its length."""

    def compute(x: Array, mask: Array) -> Array:
        first = function(x[..., :1], np.ones_like(mask[..., :1]))
        return np.broadcast_to(first, x.shape)

    return compute


OWN = "a baseline that has each episode's own return in it leaves"
STANDARDIZED = "they are divided by their own standard deviation, a random factor"
ADVANTAGES = (  # of returns and mask [B, N, T]
    Component("", False, lambda x, mask: x),
    Component(f"{OWN} 1 - 1/N of the gradient", False, _per_episode(_centred(1))),
    Component(f"{OWN} 1 - 1/N_t of each step over the N_t that run", False, _centred(1)),
    Component("the mean over all steps of the batch is subtracted, to which each adds its own", False,
              _centred(1, 2)),
    Component("the mean over the steps of the episode itself is subtracted: it depends on the actions", True,
              _centred(2)),
    *(
        component
        for correction in (0, 1)
        for component in (
            Component(f"the returns of the episodes are standardised: {STANDARDIZED}", False,
                      _per_episode(_standardized(1, correction=correction))),
            Component(f"the returns of all steps of the batch are standardised: {STANDARDIZED}", False,
                      _standardized(1, 2, correction=correction)),
            Component(f"the returns within each episode are standardised: {STANDARDIZED}, and their mean depends on "
                      "the actions", True, _standardized(2, correction=correction)),
        )
    ),
)  # fmt: skip
AVERAGES = (  # of mask [B, N, T]
    Component("", False, lambda mask: np.full(mask.shape, 1 / mask.shape[1])),
    Component("it is not divided by the number of episodes N: N times the gradient", True,
              lambda mask: np.ones(mask.shape)),
    Component("it is the mean over all steps, not the sum over an episode's: divided by the total number of steps",
              False, lambda mask: np.ones(mask.shape) / mask.sum((1, 2), keepdims=True)),
    Component("it is the mean over an episode's steps, not their sum: divided by its length too", False,
              lambda mask: np.ones(mask.shape) / mask.sum(2, keepdims=True) / mask.shape[1]),
    Component("it is divided by an episode's length, and not by the number of episodes N", True,
              lambda mask: np.ones(mask.shape) / mask.sum(2, keepdims=True)),
)  # fmt: skip
SIGNS = (  # of the gradient [dim]
    Component("", False, lambda g: g),
    Component("the sign is wrong: it points downhill, like a loss's; θ + α g is an ascent", True, lambda g: -g),
)
RELU_SCORES = "the scores have a ReLU that the network does not have: they are not ∇log π(a|s)"


class Hypothesis(NamedTuple):
    """A way to compute the estimate: one component of each kind, with right scores or those of a ReLU network."""

    parts: tuple[Component, ...]
    relu: bool

    @property
    def texts(self) -> list[str]:
        """Its deviations from a right estimate."""
        return [RELU_SCORES] * self.relu + [part.text for part in self.parts if part.text]

    @property
    def wrong(self) -> bool:
        """Whether one of the deviations is a mistake."""
        return self.relu or any(part.wrong for part in self.parts)


HYPOTHESES = sorted(
    (Hypothesis(parts, relu) for relu in (False, True) for parts in product(RETURNS, ADVANTAGES, AVERAGES, SIGNS)),
    key=lambda hypothesis: (len(hypothesis.texts), hypothesis.relu, hypothesis.wrong),
)


# -------------------------------------------------------------------------------------------------------- the problems


FEATURES = np.array([[0.9, 0.3], [-0.5, 1.0], [-0.7, -0.8], [0.4, -1.1]])
PROBLEMS = (
    ("two steps", "a corridor, cut after 2 steps", corridor_mdp(2, FEATURES), 2),  # all episodes have one length
    ("corridor", "4 places, cut after 3 steps", corridor_mdp(3, FEATURES), 2),
    ("survival", "each step pays 1, 3 at most", chain_mdp(3, 1.0, 0.0, FEATURES[:3]), 3),
)


class EnumeratedProblem:
    """A problem with all its batches, ∇J, and the scores [E, T, dim] of all episodes: right ones and the tutorial's."""

    def __init__(self, policy: Policy, problem: FiniteProblem) -> None:
        data = problem.data(policy, 0, np.random.default_rng(0))
        whole = data.trajectories
        index, probabilities = batches_of(data, problem.columns)
        assert probabilities is not None
        states, mask = whole.obs[:-1].float().numpy(), whole.mask.numpy().T
        episodes = tutorial_rollouts(whole, states)
        self.problem = problem
        self.rollouts = [[episodes[n] for n in one] for one in index]
        self.episodes, self.probabilities = np.array(index), probabilities  # [B, N], [B]
        self.rewards, self.mask = whole.rewards.numpy().T[self.episodes], mask[self.episodes]  # [B, N, T]
        self.truth = gradient_of_return(problem, policy, GAMMA)
        with_relu = _relu_scores(policy, states.swapaxes(0, 1), whole.actions.numpy().T) * mask[..., None]
        self.scores = (step_scores(policy, whole).swapaxes(0, 1), with_relu)

    def expectation(self, hypothesis: Hypothesis) -> Array:
        """Compute E[g] of a hypothesis: [dim]."""
        returns, advantages, averages, signs = hypothesis.parts
        discounts = GAMMA ** np.arange(self.mask.shape[2])
        weights = advantages.compute(returns.compute(self.rewards, discounts), self.mask)
        weights = averages.compute(self.mask) * weights * self.mask
        scores = self.scores[hypothesis.relu][self.episodes]
        return signs.compute(np.einsum("b,bnt,bntd->d", self.probabilities, weights, scores))


def _relu_scores(policy: Policy, states: Array, actions: Array) -> Array:
    """Compute the tutorial's score, which has a ReLU, with the π of the network, which has none."""
    weights = [parameter.detach().numpy() for parameter in policy.network.parameters()]
    w1, b1, w2, b2 = weights
    logits = (states @ w1.T + b1) @ w2.T + b2
    pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    relu = ACTIVATIONS["relu"]
    return hidden_layer_scores(weights, states, actions, pi, relu.value, relu.derivative)


# ----------------------------------------------------------------------------------------------------------- the check


def check_user_code(location: str) -> dict[str, Any]:
    """Check a user's function or policy class: the object that `pgcli check FILE.py:NAME --json` prints.

    Raises: UsageError: if the file cannot be run or has no such name.
    """
    torch.set_num_threads(1)
    found = user_code.load_user_code(location)
    result: dict[str, Any] = {"estimator": location, "problems": [], "notes": []}
    if isinstance(found, type):
        return result | check_class(found)
    try:
        return result | _check_function(found)
    except CheckFailed as failure:
        return result | {"verdict": "wrong", "reasons": [str(failure)]}


def _check_function(function: Any) -> dict[str, Any]:
    """Check an estimator. Raises: CheckFailed."""
    policy = Policy(
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
        spaces.Discrete(2),
        PolicyConfig(hidden_sizes=[3], activation="identity"),
    ).double()
    initialize_linear(policy)
    problems = [
        EnumeratedProblem(policy, FiniteProblem(name, about, mdp, spaces.Discrete, n))
        for name, about, mdp, n in PROBLEMS
    ]
    estimates = [_estimates(function, policy, problem) for problem in problems]
    verdict, texts, expected = _diagnose(problems, estimates)
    rows = []
    for each, found, wanted in zip(problems, estimates, expected, strict=True):
        probabilities, p_value = each.probabilities, float(verdict != "wrong")
        rows.append(summarize(each.problem, verdict, texts, each.truth, found, wanted, probabilities, p_value))
    return {"verdict": verdict, "reasons": texts, "problems": [asdict(row) for row in rows]}


def _diagnose(problems: list[EnumeratedProblem], estimates: list[Array]) -> tuple[Verdict, list[str], list[Array]]:
    """Find the hypothesis with the fewest deviations that has the estimator's expectation on every problem."""
    means = [each.probabilities @ found for each, found in zip(problems, estimates, strict=True)]
    bounds = [ROUNDING * max(float(np.abs(found).max()), 1e-3) for found in estimates]

    def matches(expected: Any) -> bool:
        return all(np.abs(mean - one).max() <= bound for mean, one, bound in zip(means, expected, bounds, strict=True))

    for hypothesis in HYPOTHESES:
        if matches(each.expectation(hypothesis) for each in problems):
            texts = hypothesis.texts
            verdict: Verdict = "wrong" if hypothesis.wrong else "biased by design" if texts else "unbiased"
            return verdict, texts, [each.expectation(hypothesis) for each in problems]
    truths = [each.truth for each in problems]
    factors = [float(mean @ truth / (truth @ truth)) for mean, truth in zip(means, truths, strict=True)]
    if matches(factor * truth for factor, truth in zip(factors, truths, strict=True)):
        shares = [f"{factor:.4g} ({each.problem.name})" for factor, each in zip(factors, problems, strict=True)]
        text = f"the direction is right and the length is not: {', '.join(shares)} times the gradient"
    else:
        text = "its expectation is not the gradient, nor that of any mistake known here"
    return "wrong", [text], truths


def _estimates(function: Any, policy: Policy, problem: EnumeratedProblem) -> Array:
    """Call the estimator with every batch: [B, dim]. Raises: CheckFailed."""
    found: list[Array] = []
    misshapen: list[Any] = []
    for number, rollouts in enumerate(problem.rollouts):
        result = _call(function, policy, rollouts)
        if number == 0 and not _same(result, _call(function, policy, rollouts)):
            raise CheckFailed(
                "two calls with the same rollouts gave different gradients: it draws random numbers, or keeps "
                "something from call to call, and only a function of its arguments can be judged"
            )
        if describe_wrong_result(result, len(problem.truth)):
            misshapen.append(result)
            continue
        values = torch.as_tensor(result).detach().double().numpy()
        if not np.isfinite(values).all():
            returns = ", ".join(f"{sum(r for _, _, r in episode):g}" for episode in rollouts)
            raise CheckFailed(
                f"it returned NaN or infinity for episodes of lengths {_lengths(rollouts)} "
                f"and undiscounted returns {returns}"
            )
        found.append(values)
    if misshapen:
        raise CheckFailed(_shape_error(misshapen, problem))
    return np.stack(found)


def _lengths(rollouts: Rollouts) -> str:
    return ", ".join(str(len(episode)) for episode in rollouts)


def _call(function: Any, policy: Policy, rollouts: Rollouts) -> Any:
    """Call the estimator with copies. Raises: CheckFailed: if it raises or changes its arguments."""
    given, adapter = deepcopy(rollouts), TutorialPolicy(policy)
    before = adapter.get_parameters()
    kept = deepcopy(policy.state_dict())
    when = f", for episodes of lengths {_lengths(rollouts)}"
    result = attempt("it", lambda: function(given, adapter, GAMMA), when)
    if not torch.equal(adapter.get_parameters(), before):
        policy.load_state_dict(kept)
        raise CheckFailed("it changed the policy's parameters; it is to return the gradient, and the step comes after")
    if not _unchanged(rollouts, given):
        raise CheckFailed("it changed the rollouts that it was given: later code that reads them sees other episodes")
    return result


def _unchanged(before: Rollouts, after: Any) -> bool:
    try:
        return len(before) == len(after) and all(
            len(one) == len(other)
            and all(np.array_equal(s, z) and (a, r) == (b, q) for (s, a, r), (z, b, q) in zip(one, other, strict=True))
            for one, other in zip(before, after, strict=True)
        )
    except (TypeError, ValueError):
        return False


def _same(one: Any, other: Any) -> bool:
    try:
        a, b = (torch.as_tensor(x).detach() for x in (one, other))
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    except (TypeError, ValueError, RuntimeError):
        return True


def _shape_error(results: list[Any], problem: EnumeratedProblem) -> str:
    """Describe results of a wrong shape; their sum may be that of a hypothesis over the parameters."""
    dim = len(problem.truth)
    error = f"it returned {describe_wrong_result(results[0], dim)}"
    try:
        tensors = [torch.as_tensor(result).detach().double() for result in results]
    except (TypeError, ValueError, RuntimeError):
        return error
    if all(tensor.numel() == dim for tensor in tensors):
        return f"{error}: flatten it, say by .view(-1)"
    if len(tensors) == len(problem.rollouts):
        total = float(problem.probabilities @ np.array([float(tensor.sum()) for tensor in tensors]))
        few_deviations = takewhile(lambda hypothesis: not hypothesis.relu, HYPOTHESES)
        sums = (float(problem.expectation(hypothesis).sum()) for hypothesis in few_deviations)
        if any(abs(total - one) <= ROUNDING * max(abs(total), 1e-2) for one in sums):
            return (
                f"{error}: the scores [H, dim] were summed over the parameters (dim=-1), where they should be "
                "summed over time (dim=0)"
            )
    return error
