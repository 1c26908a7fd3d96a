"""A user's own estimator, or policy class, judged: what it is in expectation, and what is wrong with it in words.

Every batch of a few small worlds is handed to the estimator, so its expectation is a finite sum. It is compared with
those of a table of hypotheses: ways to weigh the scores, of which some are right and the others are known mistakes. The
source is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.gradients import user_code as student
from pgcli.algorithm.gradients.user_code import Rollouts, TutorialPolicy, fault_of, rollouts_of
from pgcli.config.schema import PolicyConfig
from pgcli.environments.failures import describe, is_user_error
from pgcli.inspection.gradient_check.definitions import scores_along
from pgcli.inspection.gradient_check.measurement import (
    Measured,
    Reason,
    Verdict,
    batches_of,
    described,
    gradient_of_return,
)
from pgcli.inspection.gradient_check.problems import Finite, begin, chain_world, corridor_world
from pgcli.policies.policy import Policy

Array = NDArray[Any]
GAMMA = 0.75  # far enough from 1 to tell; and equal returns are equal in a float32, whatever is done with them
ROUNDING = 2e-4  # of a user's float32, relative to the largest estimate
EPSILON = 1e-8  # in the place of no deviation


class Choice(NamedTuple):
    """One way to do a part of the estimate: what to say of it, nothing if it is right; and whether it is a mistake."""

    words: str
    wrong: bool
    compute: Callable[..., Array]


# ------------------------------------------------------------------------------------------------------ the hypotheses


@dataclass(frozen=True)
class Batches:
    """All batches of one world: rewards and mask [B, N, T], the probabilities [B], the episodes' numbers [B, N]."""

    rewards: Array
    mask: Array
    chances: Array
    episodes: Array

    @property
    def discounts(self) -> Array:
        """Give γ^t, [T]."""
        powers: Array = GAMMA ** np.arange(self.mask.shape[2])
        return powers


def _ahead(x: Array) -> Array:
    """Sum from t on."""
    total: Array = x[..., ::-1].cumsum(-1)[..., ::-1]
    return total


def _all(x: Array) -> Array:
    """Sum over all t."""
    return np.broadcast_to(x.sum(-1, keepdims=True), x.shape)


RETURNS = (
    Choice("", False, lambda b: _ahead(b.discounts * b.rewards)),
    Choice("", False, lambda b: _all(b.discounts * b.rewards)),
    Choice(
        "the γ^t in front of G_t is missing: late states count as much as early ones",
        False,
        lambda b: _ahead(b.discounts * b.rewards) / b.discounts,
    ),
    Choice(
        "each score is multiplied by the immediate reward, or the rewards so far, not by the return: what comes later "
        "teaches nothing, and where every step is paid alike (CartPole) the gradient is 0 in expectation",
        True,
        lambda b: b.discounts * b.rewards,
    ),
    Choice(
        "each score is multiplied by the immediate reward, or the rewards so far, undiscounted, not by the return",
        True,
        lambda b: b.rewards,
    ),
    Choice("gamma is not used: it is the gradient of the undiscounted return", True, lambda b: _ahead(b.rewards)),
    Choice("gamma is not used: it is the gradient of the undiscounted return", True, lambda b: _all(b.rewards)),
    Choice(
        "γ^t is there twice: R(τ), which is discounted from the start, is weighed by γ^t again",
        True,
        lambda b: b.discounts * _all(b.discounts * b.rewards),
    ),
    Choice(
        "γ^t is there twice: Σ γ^l r_l from t on, which has it, is weighed by γ^t again",
        True,
        lambda b: b.discounts * _ahead(b.discounts * b.rewards),
    ),
)


def _mean(x: Array, mask: Array, axis: tuple[int, ...]) -> Array:
    count = mask.sum(axis, keepdims=True).clip(min=1)
    mean: Array = np.where(mask, x, 0).sum(axis, keepdims=True) / count
    return mean


def _standardized(axis: tuple[int, ...], correction: int) -> Callable[[Array, Array], Array]:
    def compute(x: Array, mask: Array) -> Array:
        centred = np.where(mask, x - _mean(x, mask, axis), 0)
        count = (mask.sum(axis, keepdims=True) - correction).clip(min=1)
        deviation = np.sqrt(np.square(centred).sum(axis, keepdims=True) / count)
        scaled: Array = np.where(deviation > EPSILON, centred / np.maximum(deviation, EPSILON), 0)
        return scaled

    return compute


def _per_episode(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Treat what is one number per episode as one number per episode, however long it is."""

    def compute(x: Array, mask: Array) -> Array:
        first = function(x[..., :1], np.ones_like(mask[..., :1]))
        return np.broadcast_to(first, x.shape)

    return compute


OWN = "a baseline that has each episode's own return in it leaves"
STANDARDIZED = "they are divided by their own standard deviation, a random factor"
ADVANTAGES = (
    Choice("", False, lambda x, mask: x),
    Choice(f"{OWN} 1 - 1/N of the gradient", False, _per_episode(lambda x, mask: x - _mean(x, mask, (1,)))),
    Choice(f"{OWN} 1 - 1/N_t of each step over the N_t that run", False, lambda x, mask: x - _mean(x, mask, (1,))),
    Choice("the mean over all steps of the batch is subtracted, to which each adds its own", False,
           lambda x, mask: x - _mean(x, mask, (1, 2))),
    Choice("the mean over the steps of the episode itself is subtracted: it depends on the actions", True,
           lambda x, mask: x - _mean(x, mask, (2,))),
    *(
        choice
        for correction in (0, 1)
        for choice in (
            Choice(f"the returns of the episodes are standardised: {STANDARDIZED}", False,
                   _per_episode(_standardized((1,), correction))),
            Choice(f"the returns of all steps of the batch are standardised: {STANDARDIZED}", False,
                   _standardized((1, 2), correction)),
            Choice(f"the returns within each episode are standardised: {STANDARDIZED}, and their mean depends on the "
                   "actions", True, _standardized((2,), correction)),
        )
    ),
)  # fmt: skip
AVERAGES = (
    Choice("", False, lambda mask: np.full(mask.shape, 1 / mask.shape[1])),
    Choice("it is not divided by the number of episodes N: N times the gradient", True,
           lambda mask: np.ones(mask.shape)),
    Choice("it is the mean over all steps, not the sum over an episode's: divided by the total number of steps", False,
           lambda mask: np.ones(mask.shape) / mask.sum((1, 2), keepdims=True)),
    Choice("it is the mean over an episode's steps, not their sum: divided by its length too", False,
           lambda mask: np.ones(mask.shape) / mask.sum(2, keepdims=True) / mask.shape[1]),
    Choice("it is divided by an episode's length, and not by the number of episodes N", True,
           lambda mask: np.ones(mask.shape) / mask.sum(2, keepdims=True)),
)  # fmt: skip
SIGNS = (
    Choice("", False, lambda g: g),
    Choice("the sign is wrong: it points downhill, like a loss's; θ + α g is an ascent", True, lambda g: -g),
)
SCORES = ("", "the scores have a ReLU that the network does not have: they are not ∇log π(a|s)")


class Hypothesis(NamedTuple):
    """What an estimator may be: its deviations from the right one."""

    parts: tuple[Choice, ...]
    relu: bool

    @property
    def words(self) -> list[str]:
        """Say what is not as it should be."""
        return [SCORES[self.relu]] * self.relu + [part.words for part in self.parts if part.words]

    @property
    def wrong(self) -> bool:
        """Say whether there is a mistake among the deviations."""
        return self.relu or any(part.wrong for part in self.parts)


HYPOTHESES = sorted(
    (Hypothesis(parts, relu) for relu in (False, True) for parts in product(RETURNS, ADVANTAGES, AVERAGES, SIGNS)),
    key=lambda hypothesis: (len(hypothesis.words), hypothesis.relu, hypothesis.wrong),
)


# --------------------------------------------------------------------------------------------------------- the worlds


FEATURES = np.array([[0.9, 0.3], [-0.5, 1.0], [-0.7, -0.8], [0.4, -1.1]])


@dataclass(frozen=True)
class Trial:
    """A world with all its batches, the true gradient, and ∇log π of every step of every episode, right and wrong."""

    name: str
    about: str
    columns: int
    rollouts: list[Rollouts]
    batches: Batches
    truth: Array
    scores: tuple[Array, Array]  # [E, T, dim]: of the network, and as if it had a ReLU

    def expectation(self, hypothesis: Hypothesis) -> Array:
        """Compute E[g] of a hypothesis: [dim]."""
        returns, advantages, averages, signs = hypothesis.parts
        mask = self.batches.mask
        weights = averages.compute(mask) * advantages.compute(returns.compute(self.batches), mask) * mask
        scores = self.scores[hypothesis.relu][self.batches.episodes]
        return signs.compute(np.einsum("b,bnt,bntd->d", self.batches.chances, weights, scores))


def trials(policy: Policy) -> list[Trial]:
    """Build the worlds; in the first, all episodes have one length."""
    worlds = (
        ("two steps", "a corridor, cut after 2 steps", corridor_world(2, FEATURES), 2),
        ("corridor", "4 places, cut after 3 steps", corridor_world(3, FEATURES), 2),
        ("survival", "each step pays 1, 3 at most", chain_world(3, 1.0, 0.0, FEATURES[:3]), 3),
    )
    return [_trial(policy, Finite(name, about, world, spaces.Discrete, n)) for name, about, world, n in worlds]


def _trial(policy: Policy, problem: Finite) -> Trial:
    data = problem.data(policy, 0, np.random.default_rng(0))
    whole = data.trajectories
    index, chances = batches_of(data, problem.columns)
    assert chances is not None
    states = whole.obs[:-1].float().numpy()
    episodes = rollouts_of(whole, states)
    numbers, mask, rewards = np.array(index), whole.mask.numpy().T, whole.rewards.numpy().T
    scores = scores_along(policy, whole).swapaxes(0, 1)
    with_relu = _tutorial_scores(policy, states.swapaxes(0, 1), whole.actions.numpy().T) * mask[..., None]
    return Trial(
        problem.name,
        problem.about,
        problem.columns,
        [[episodes[n] for n in one] for one in index],
        Batches(rewards[numbers], mask[numbers], chances, numbers),
        gradient_of_return(problem, policy, GAMMA),
        (scores, with_relu),
    )


def _tutorial_scores(policy: Policy, states: Array, actions: Array) -> Array:
    """Compute the tutorial's score of one hidden layer, which has a ReLU; π is the network's, which has none."""
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in policy.network.parameters())
    z = states @ w1.T + b1
    logits = z @ w2.T + b2
    pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    delta = np.eye(len(b2))[actions] - pi
    back = delta @ w2 * (z > 0)
    parts = [
        np.einsum("eth,eti->ethi", back, states),
        back,
        np.einsum("eta,eth->etah", delta, np.maximum(z, 0)),
        delta,
    ]
    return np.concatenate([part.reshape(*states.shape[:2], -1) for part in parts], -1)


# ------------------------------------------------------------------------------------------------------- the judgement


class Fault(Exception):
    """Something that ends the judgement of a user's code, in words."""


def judge_own(location: str) -> dict[str, Any]:
    """Judge a user's function or policy class: the object that `pgcli check FILE.py:NAME --json` prints.

    Raises: UsageError if FILE.py has no such thing or cannot be run.
    """
    torch.set_num_threads(1)
    found = student.load(location)
    result: dict[str, Any] = {"estimator": location, "problems": [], "notes": []}
    if isinstance(found, type):
        from pgcli.inspection.gradient_check.user_policies import judge_class

        return result | judge_class(found)
    try:
        return result | judge_function(found)
    except Fault as fault:
        return result | {"verdict": "wrong", "reasons": [str(fault)]}


def judge_function(function: Any) -> dict[str, Any]:
    """Judge an estimator. Raises: Fault."""
    policy = Policy(
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
        spaces.Discrete(2),
        PolicyConfig(hidden_sizes=[3], activation="identity"),
    ).double()
    begin(policy)
    tried = trials(policy)
    results = [_results(function, policy, trial) for trial in tried]
    means = [trial.batches.chances @ found for trial, found in zip(tried, results, strict=True)]
    sizes = [float(np.abs(found).max()) for found in results]
    verdict, words, wanted = _diagnosis(tried, means, sizes)
    rows: list[Measured] = [
        described(trial, verdict, [Reason(one) for one in words], trial.truth, found, expected, trial.batches.chances,
                  float(verdict != "wrong"))
        for trial, found, expected in zip(tried, results, wanted, strict=True)
    ]  # fmt: skip
    return {"verdict": verdict, "reasons": words, "problems": [asdict(row) for row in rows]}


def _diagnosis(tried: list[Trial], means: list[Array], sizes: list[float]) -> tuple[Verdict, list[str], list[Array]]:
    """Find the hypothesis with the fewest deviations that has these expectations in every world."""
    for hypothesis in HYPOTHESES:
        expected = []
        for trial, mean, size in zip(tried, means, sizes, strict=True):
            one = trial.expectation(hypothesis)
            if np.abs(mean - one).max() > ROUNDING * max(size, 1e-3):
                break
            expected.append(one)
        else:
            words = hypothesis.words
            return "wrong" if hypothesis.wrong else "biased by design" if words else "unbiased", words, expected
    truths = [trial.truth for trial in tried]
    factors = [float(mean @ truth / (truth @ truth)) for mean, truth in zip(means, truths, strict=True)]
    along = all(
        np.abs(mean - factor * truth).max() <= ROUNDING * max(size, 1e-3)
        for mean, truth, factor, size in zip(means, truths, factors, sizes, strict=True)
    )
    if along:
        shares = ", ".join(f"{factor:.4g} ({trial.name})" for factor, trial in zip(factors, tried, strict=True))
        return "wrong", [f"the direction is right and the length is not: {shares} times the gradient"], truths
    return "wrong", ["its expectation is not the gradient, nor that of any mistake known here"], truths


def _results(function: Any, policy: Policy, trial: Trial) -> Array:
    """Call the estimator with every batch: [B, dim]. Raises: Fault."""
    dim = len(trial.truth)
    found: list[Array] = []
    odd: list[Any] = []
    for number, rollouts in enumerate(trial.rollouts):
        result = _call(function, policy, rollouts)
        if number == 0 and not _same(result, _call(function, policy, rollouts)):
            raise Fault(
                "two calls with the same rollouts gave different gradients: it draws random numbers, or keeps "
                "something from call to call, and only a function of its arguments can be judged"
            )
        if fault_of(result, dim):
            odd.append(result)
            continue
        values = torch.as_tensor(result).detach().double().numpy()
        if not np.isfinite(values).all():
            lengths = ", ".join(str(len(episode)) for episode in rollouts)
            returns = ", ".join(f"{sum(r for _, _, r in episode):g}" for episode in rollouts)
            raise Fault(
                f"it returned NaN or infinity for episodes of lengths {lengths} and undiscounted returns {returns}"
            )
        found.append(values)
    if odd:
        raise Fault(_odd(odd, trial, dim))
    return np.stack(found)


def _call(function: Any, policy: Policy, rollouts: Rollouts) -> Any:
    """Call the estimator with copies, and see whether it leaves them alone."""
    given, adapter = deepcopy(rollouts), TutorialPolicy(policy)
    before = adapter.get_parameters()
    kept = deepcopy(policy.state_dict())
    try:
        result = function(given, adapter, GAMMA)
    except BaseException as error:
        if not is_user_error(error):
            raise
        lengths = ", ".join(str(len(episode)) for episode in rollouts)
        raise Fault(f"it raised {describe(error)}, for episodes of lengths {lengths}") from error
    if not torch.equal(adapter.get_parameters(), before):
        policy.load_state_dict(kept)
        raise Fault("it changed the policy's parameters; it is to return the gradient, and the step comes after")
    if not _unchanged(rollouts, given):
        raise Fault("it changed the rollouts that it was given: later code that reads them sees other episodes")
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


def _odd(results: list[Any], trial: Trial, dim: int) -> str:
    """Say what results of a wrong shape are: their sum may be that of a hypothesis over the parameters."""
    told_so = f"it returned {fault_of(results[0], dim)}"
    try:
        tensors = [torch.as_tensor(result).detach().double() for result in results]
    except (TypeError, ValueError, RuntimeError):
        return told_so
    if all(tensor.numel() == dim for tensor in tensors):
        return f"{told_so}: flatten it, say by .view(-1)"
    if len(tensors) == len(trial.rollouts):
        total = float(trial.batches.chances @ np.array([float(tensor.sum()) for tensor in tensors]))
        for hypothesis in HYPOTHESES:
            if hypothesis.relu:
                break
            if abs(total - float(trial.expectation(hypothesis).sum())) <= ROUNDING * max(abs(total), 1e-2):
                return (
                    f"{told_so}: the scores [H, dim] were summed over the parameters (dim=-1), where they should be "
                    "summed over time (dim=0)"
                )
    return told_so
