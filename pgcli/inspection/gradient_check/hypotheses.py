"""Formulas that a user's estimator may have computed.

They weight the scores in different ways: some are right, the others known mistakes.

A formula is ĝ = c Σ_nt w_nt ∇log π(a_nt|s_nt) with w = m(X - b) / k: returns X, a baseline b, a map m, a divisor k of
each step or episode, and a factor c of each batch. It has one component of each kind and predicts every estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
EPSILON = 1e-8  # a smaller standard deviation counts as 0
DEVIATIONS = 2  # components that differ from a right estimator, at most, not counting a missing γ^t


@dataclass(frozen=True)
class Batches:
    """All batches of N episodes of a problem, padded to T steps."""

    rewards: Array  # [B, N, T]
    mask: Array  # [B, N, T], True on steps
    states: Array  # [B, N, T], indices
    actions: Array  # [B, N, T]
    pi: Array  # [B, N, T], π(a|s) of these
    scores: dict[str, Array]  # by kind: [B, N, T, dim]
    gamma: float

    @property
    def lengths(self) -> Array:
        """H of each episode, [B, N]."""
        found: Array = self.mask.sum(2)
        return found

    @property
    def discounts(self) -> Array:
        """γ^t, [T]."""
        found: Array = self.gamma ** np.arange(self.mask.shape[2])
        return found

    def some(self, count: int) -> Batches:
        """Return some of the batches, spread evenly."""
        at = np.linspace(0, len(self.mask) - 1, min(count, len(self.mask))).astype(int)
        arrays = (self.rewards, self.mask, self.states, self.actions, self.pi)
        rewards, mask, states, actions, pi = (x[at] for x in arrays)
        scores = {name: x[at] for name, x in self.scores.items()}
        return Batches(rewards, mask, states, actions, pi, scores, self.gamma)


class Component(NamedTuple):
    """One way to compute a part of the estimate. `text` is its deviation, empty if it is right."""

    text: str
    wrong: bool  # a mistake, not a choice
    compute: Callable[..., Any]
    note: str = ""  # what costs variance and no bias


# ------------------------------------------------------------------------------------------------------------- returns


def sum_from(x: Array) -> Array:
    """Σ_{l ≥ t} x_l, for each t."""
    total: Array = x[..., ::-1].cumsum(-1)[..., ::-1]
    return total


def sum_all(x: Array) -> Array:
    """Σ_l x_l, the same for each t."""
    total: Array = np.broadcast_to(x.sum(-1, keepdims=True), x.shape)
    return total


def _last(mask: Array) -> Array:
    """True on the last step of each episode."""
    found: Array = mask & ~np.concatenate((mask[..., 1:], np.zeros_like(mask[..., :1])), -1)
    return found


def _forwards(r: Array, gamma: float) -> Array:
    """S_t = γ S_t-1 + r_t: Σ_{l ≤ t} γ^(t-l) r_l."""
    found = np.zeros(r.shape)
    for t in range(r.shape[-1]):
        found[..., t] = r[..., t] + (gamma * found[..., t - 1] if t else 0.0)
    return found


def _carried(r: Array, mask: Array, gamma: float) -> Array:
    """Compute G = r + γ G backwards, from the G of the episode before."""
    found, carry = np.zeros(r.shape), np.zeros(len(r))
    for n in range(r.shape[1]):
        for t in reversed(range(r.shape[2])):
            carry = np.where(mask[:, n, t], r[:, n, t] + gamma * carry, carry)
            found[:, n, t] = carry
    return found


NO_GAMMA_T = "the γ^t in front of G_t is missing: late states count as much as early ones"
UNDISCOUNTED = "gamma is not used: it is the gradient of the undiscounted return"
NO_DISCOUNT = "γ^t multiplies the scores, and the rewards are not discounted"
NEXT = "the reward that follows a step is not counted for it: the sum starts at r_t+1, not at r_t"
TWICE = "γ^t is there twice"
IMMEDIATE = "each score is multiplied by the immediate reward, not by the return: later rewards teach nothing, and "
IMMEDIATE += "if all rewards are equal (CartPole) the gradient is 0 in expectation"
SO_FAR = "each score is multiplied by the rewards so far, not by those that follow: an action cannot change these"
BACKWARDS = "the discount runs the wrong way: the last reward counts in full, the first one least"
NO_REWARD = "the scores are summed without any reward: the expectation is 0"


def _to_go(r: Array, d: Array) -> Array:
    return sum_from(d * r) / d


# Of rewards r [B, N, T], γ^t d [T] and mask [B, N, T]: X, and the factor [T] of X - b
RETURNS = (
    Component("", False, lambda r, d, m: (sum_from(d * r), 1)),
    Component("", False, lambda r, d, m: (_to_go(r, d), d)),
    Component("", False, lambda r, d, m: (sum_all(d * r), 1)),
    Component(NO_GAMMA_T, False, lambda r, d, m: (_to_go(r, d), 1)),
    Component(IMMEDIATE, True, lambda r, d, m: (d * r, 1)),
    Component(f"{IMMEDIATE}; γ^t is missing, too", True, lambda r, d, m: (r, 1)),
    Component(SO_FAR, True, lambda r, d, m: ((d * r).cumsum(-1), 1)),
    Component(f"{SO_FAR}; γ^t is missing, too", True, lambda r, d, m: (r.cumsum(-1), 1)),
    Component(f"{SO_FAR}, discounted by their age", True, lambda r, d, m: (_forwards(r, d[1]), 1)),
    Component(UNDISCOUNTED, True, lambda r, d, m: (sum_from(r), 1)),
    Component(UNDISCOUNTED, True, lambda r, d, m: (sum_all(r), 1)),
    Component(NO_DISCOUNT, True, lambda r, d, m: (sum_from(r), d)),
    Component(NO_DISCOUNT, True, lambda r, d, m: (sum_all(r), d)),
    Component(f"{TWICE}: R(τ), which is discounted from the start, is weighted by γ^t again", True,
              lambda r, d, m: (sum_all(d * r), d)),
    Component(f"{TWICE}: Σ γ^l r_l from t on, which has it, is weighted by γ^t again", True,
              lambda r, d, m: (sum_from(d * r), d)),
    Component(NEXT, True, lambda r, d, m: (sum_from(d * r) - d * r, 1)),
    Component(f"{NEXT}, and is discounted from there", True, lambda r, d, m: ((_to_go(r, d) - r) / d[1], d)),
    Component(f"{NEXT}; the γ^t in front of it is missing, too", True, lambda r, d, m: (_to_go(r, d) - r, 1)),
    Component(f"{NEXT}, and is discounted from there; the γ^t in front of it is missing, too", True,
              lambda r, d, m: ((_to_go(r, d) - r) / d[1], 1)),
    Component(BACKWARDS, True,
              lambda r, d, m: (sum_all(r * d[1] ** ((m.sum(-1, keepdims=True) - 1 - np.arange(len(d))) * m)), 1)),
    Component("only the last reward of an episode counts, not the return", True,
              lambda r, d, m: (sum_all(np.where(_last(m), r, 0)), 1)),
    Component("the return of the episode before is carried into the next one: G is not set to 0 for each episode", True,
              lambda r, d, m: (_carried(r, m, d[1]), 1)),
    Component("the return of the episode before is carried into the next one: G is not set to 0 for each episode", True,
              lambda r, d, m: (_carried(r, m, d[1]), d)),
    Component("", False, lambda r, d, m: (np.broadcast_to((d * r).sum(-1).cumsum(-1)[..., None], r.shape), 1),
              "the returns of all episodes so far are summed: the sum is not set to 0 for each episode"),
    Component("", False, lambda r, d, m: (np.broadcast_to((d * r).sum((-1, -2), keepdims=True), r.shape), 1),
              "each episode's scores are multiplied by the returns of all episodes: those of the others are noise"),
    Component(NO_REWARD, True, lambda r, d, m: (np.ones(r.shape), 1)),
    Component(NO_REWARD, True, lambda r, d, m: (np.ones(r.shape), d)),
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- baselines


def _mean(*axis: int) -> Callable[[Array, Batches, Array], Array]:
    """Return the mean over axes of the steps that exist."""

    def compute(x: Array, batches: Batches, mask: Array) -> Array:
        found: Array = np.where(mask, x, 0).sum(axis, keepdims=True) / mask.sum(axis, keepdims=True).clip(min=1)
        return found

    return compute


def _others(x: Array, batches: Batches, mask: Array) -> Array:
    """Return the mean over the other episodes that run at t; 0 without one."""
    count = mask.sum(1, keepdims=True) - mask
    found: Array = (np.where(mask, x, 0).sum(1, keepdims=True) - np.where(mask, x, 0)) / count.clip(min=1)
    return found


def _of_starts(function: Callable[[Array], Array]) -> Callable[[Array, Batches, Array], Array]:
    """Apply `function`, [B, N] → [B, N] or [B, 1], to the return of each episode's first step."""
    return lambda x, batches, mask: function(x[..., 0])[..., None]


def _earlier(x: Array) -> Array:
    """Return the mean over earlier episodes; 0 for the first one."""
    found: Array = (x.cumsum(1) - x) / np.arange(x.shape[1]).clip(min=1)
    return found


def _of_like_steps(of: str) -> Callable[[Array, Batches, Array], Array]:
    """Return the mean over all steps of the batch with the same action, or state, or both."""

    def compute(x: Array, batches: Batches, mask: Array) -> Array:
        states, actions = batches.states, batches.actions
        keys = {"action": actions, "state": states, "both": 2 * states + actions}[of]
        flat, valid, values = (z.reshape(len(x), -1) for z in (keys, mask, np.where(mask, x, 0)))
        alike = (flat[:, :, None] == flat[:, None, :]) & valid[:, None, :]
        found: Array = (alike * values[:, None, :]).sum(2) / alike.sum(2).clip(min=1)
        return found.reshape(x.shape)

    return compute


def _of_rewards(function: Callable[[Array, Array], Array]) -> Callable[[Array, Batches, Array], Array]:
    """Apply `function` to the rewards and the mask, both [B, N, T]."""
    return lambda x, batches, mask: function(np.where(mask, batches.rewards, 0), mask)


OWN = "a baseline that has each episode's own return in it leaves"
OF_ACTIONS = "the baseline depends on the action: it takes a part of the gradient away"
BASELINES = (  # of X [B, N, T], the batches and a mask [B, N, T]
    Component("", False, lambda x, batches, mask: 0 * x),
    Component("", False, _others),
    Component("", False, _of_starts(lambda x: (x.sum(1, keepdims=True) - x) / max(x.shape[1] - 1, 1))),
    Component("", False, _of_starts(_earlier)),
    Component(f"{OWN} 1 - 1/N of the gradient", False, _of_starts(lambda x: x.mean(1, keepdims=True))),
    Component(f"{OWN} 1 - 1/N_t of each step over the N_t that run", False, _mean(1)),
    Component("the mean over all steps of the batch is subtracted, to which each adds its own", False, _mean(1, 2)),
    Component("the mean undiscounted return of the batch is subtracted, to which each episode adds its own", False,
              _of_rewards(lambda r, mask: r.sum(2, keepdims=True).mean(1, keepdims=True))),
    Component("the mean reward of the batch is subtracted, to which each step adds its own", False,
              _of_rewards(lambda r, mask: r.sum((1, 2), keepdims=True) / mask.sum((1, 2), keepdims=True).clip(min=1))),
    Component("the mean over the steps in the same state is subtracted, to which each adds its own", False,
              _of_like_steps("state")),
    Component("the mean over the steps of the episode itself is subtracted: it depends on the actions", True, _mean(2)),
    Component("the return of the episode itself is subtracted: it depends on the actions", True,
              _of_starts(lambda x: x)),
    Component(f"{OF_ACTIONS} (the mean over the steps with the same action)", True, _of_like_steps("action")),
    Component(f"{OF_ACTIONS} (the mean over the steps with the same state and action)", True, _of_like_steps("both")),
    Component("the largest return of the batch is subtracted, which can be the episode's own", False,
              _of_starts(lambda x: x.max(1, keepdims=True))),
    Component("the smallest return of the batch is subtracted, which can be the episode's own", False,
              _of_starts(lambda x: x.min(1, keepdims=True))),
    Component("the median return of the batch is subtracted, of which the episode's own is a part", False,
              _of_starts(lambda x: np.median(x, 1, keepdims=True))),
)  # fmt: skip


# ------------------------------------------------------------------------------------- maps, divisors, steps and scores


ADVANTAGE = "the return, or its difference from the baseline,"
MAPS = (
    Component("", False, lambda a: a),
    *(Component(f"{ADVANTAGE} is clipped to [{a:g}, {b:g}]", True, partial(np.clip, a_min=a, a_max=b))
      for a, b in ((-1, 1), (-0.5, 0.5), (0, 1))),
    Component(f"{ADVANTAGE} is replaced by its exponential", True, np.exp),
    Component(f"{ADVANTAGE} is replaced by its tanh", True, np.tanh),
    Component(f"{ADVANTAGE} is replaced by 0 where it is negative", True, lambda a: a.clip(min=0)),
    Component(f"{ADVANTAGE} is squared", True, np.square),
    Component(f"{ADVANTAGE} is replaced by its absolute value", True, np.abs),
    Component(f"{ADVANTAGE} is replaced by its sign", True, np.sign),
)  # fmt: skip


def _deviation(x: Array, mask: Array, axis: tuple[int, ...], correction: int) -> Array:
    """Return the standard deviation over axes of the steps that exist."""
    count = mask.sum(axis, keepdims=True)
    centred = np.where(mask, x - np.where(mask, x, 0).sum(axis, keepdims=True) / count.clip(min=1), 0)
    found: Array = np.sqrt(np.square(centred).sum(axis, keepdims=True) / (count - correction).clip(min=1))
    return found


def _over(*axis: int, correction: int) -> Callable[[Array, Array], Array]:
    return lambda x, mask: _deviation(x, mask, axis, correction)


STANDARDIZED = "they are divided by their own standard deviation, a random factor"
WITHIN = f"the returns within each episode are standardised: {STANDARDIZED}, which depends on the actions"
DIVISORS = (  # of X [B, N, T] and a mask: of each episode or step
    Component("", False, lambda x, mask: np.ones(())),
    Component("it is the mean over an episode's steps, not their sum: divided by its length too", False,
              lambda x, mask: mask.sum(2, keepdims=True).clip(min=1)),
    *(component for correction in (0, 1) for component in (
        Component(WITHIN, True, _over(2, correction=correction)),
        Component(f"the returns of each time step are standardised over the episodes: {STANDARDIZED}", False,
                  _over(1, correction=correction)),
    )),
)  # fmt: skip


def _except_last(mask: Array) -> Array:
    return mask & ~_last(mask)


def _except_first(mask: Array) -> Array:
    found = mask.copy()
    found[..., 0] = False
    return found


def _only(n: int) -> Callable[[Array], tuple[Array, Array]]:
    def compute(mask: Array) -> tuple[Array, Array]:
        found = np.zeros_like(mask)
        found[:, n] = mask[:, n]
        return found, found

    return compute


ONE_EPISODE = "only the {} episode of the batch is used: the others cost steps and teach nothing"
STEPS = (  # of a mask: of the steps whose scores count, and of those whose rewards count
    Component("", False, lambda mask: (mask, mask)),
    Component("the last step of each episode is left out of the sum", True, lambda mask: (_except_last(mask), mask)),
    Component("the last step of each episode is left out, with its reward", True,
              lambda mask: (_except_last(mask), _except_last(mask))),
    Component("the last reward of each episode is left out", True, lambda mask: (mask, _except_last(mask))),
    Component("the first step of each episode is left out of the sum", True, lambda mask: (_except_first(mask), mask)),
    Component("only the last step's score of each episode counts", True, lambda mask: (_last(mask), mask)),
    Component("only the first step's score of each episode counts", True,
              lambda mask: (mask & ~_except_first(mask), mask)),
    Component("", False, _only(-1), ONE_EPISODE.format("last")),
    Component("", False, _only(0), ONE_EPISODE.format("first")),
)  # fmt: skip
SCORES = (  # their kind in `Batches.scores`
    Component("", False, lambda: "right"),
    Component("the scores have a ReLU that the network does not have: they are not ∇log π(a|s)", True, lambda: "relu"),
    Component("the log is missing: each score is multiplied by π(a|s), which makes it ∇π(a|s)", True, lambda: "of π"),
    Component("each score is divided by π(a|s): it is divided twice", True, lambda: "over π"),
    Component("the scores are those of the other action, not of the one that was taken", True, lambda: "other"),
)  # fmt: skip
PLAIN_RETURNS = RETURNS[:4]  # the right ones, and the one without γ^t
OTHER_DISCOUNTS = tuple(each for each in RETURNS if each.text.startswith((UNDISCOUNTED, NO_DISCOUNT, TWICE)))
LINEAR_BASELINES = (*BASELINES[:3], *BASELINES[4:7])  # in the returns
KINDS = (RETURNS, BASELINES, MAPS, DIVISORS, STEPS, SCORES)


class Hypothesis(NamedTuple):
    """A formula of the estimate, up to a factor of each batch."""

    returns: Component
    baseline: Component
    map: Component
    divisor: Component
    steps: Component
    scores: Component

    @property
    def texts(self) -> list[str]:
        """Its deviations from a right estimate."""
        order = (self.scores, self.steps, self.returns, self.baseline, self.map, self.divisor)
        return list(dict.fromkeys(part.text for part in order if part.text))

    @property
    def wrong(self) -> bool:
        """Whether one of the deviations is a mistake."""
        return any(part.wrong for part in self)

    @property
    def one_episode(self) -> bool:
        """Whether it uses one episode of a batch."""
        return bool(self.steps.note)

    def advantages(self, batches: Batches) -> tuple[Array, Array, Array, Any]:
        """Return X, X - b, the mask of steps, and the factor of X - b.

        All but the factor are [B, N, T]; the mask has the steps whose rewards count.
        """
        _, mask = self.steps.compute(batches.mask)
        rewards = np.where(mask, batches.rewards, 0)
        x, factor = self.returns.compute(rewards, batches.discounts, mask)
        return x, x - self.baseline.compute(x, batches, mask), mask, factor

    def weights(self, batches: Batches) -> Array:
        """Compute w, [B, N, T]."""
        scored, _ = self.steps.compute(batches.mask)
        x, advantages, mask, factor = self.advantages(batches)
        divisor = self.divisor.compute(x, mask)
        weights = np.where(divisor > EPSILON, self.map.compute(advantages) / np.maximum(divisor, EPSILON), 0)
        found: Array = weights * factor * scored
        return found

    def predict(self, batches: Batches) -> Array:
        """Compute Σ_nt w_nt ∇log π(a_nt|s_nt) of every batch, [B, dim]."""
        return contract(self.weights(batches), batches.scores[self.scores.compute()])


def contract(weights: Array, scores: Array) -> Array:
    """Compute Σ_nt w_nt score_nt: [B, N, T] and [B, N, T, dim] → [B, dim]."""
    count = len(weights)
    found: Array = (weights.reshape(count, 1, -1) @ scores.reshape(count, -1, scores.shape[-1]))[:, 0]
    return found


def _all_hypotheses() -> Iterator[Hypothesis]:
    """Yield the formulas with few deviations, the right ones first."""
    for number, returns in enumerate(RETURNS):
        for count in range(DEVIATIONS + 1 - (number > 3)):
            for changed in combinations(range(1, len(KINDS)), count):
                choices = [kind[1:] if k in changed else kind[:1] for k, kind in enumerate(KINDS)]
                yield from (Hypothesis(returns, *parts[1:]) for parts in product([returns], *choices[1:]))


HYPOTHESES: Sequence[Hypothesis] = sorted(  # the simplest first
    _all_hypotheses(),
    key=lambda one: (len(one.texts), sum(part is not kind[0] for part, kind in zip(one, KINDS, strict=True))),
)


# ------------------------------------------------------------------------------------------------- factors of a batch

Counts = Callable[[Batches], Array]
NOT_BY_N = "it is divided by {}, not by the number of episodes N"
DIVISIONS: tuple[tuple[str, bool, Counts], ...] = (  # text, wrong, the divisor [B]
    ("it is not divided by the number of episodes N: N times the gradient", True, lambda b: np.ones(len(b.mask))),
    ("it is the mean over all steps, not the sum over an episode's: divided by the total number of steps", False,
     lambda b: b.lengths.sum(1)),
    (NOT_BY_N.format("N - 1"), True, lambda b: np.full(len(b.mask), b.mask.shape[1] - 1.0)),
    (NOT_BY_N.format("N + 1"), True, lambda b: np.full(len(b.mask), b.mask.shape[1] + 1.0)),
    ("it is divided by the number of episodes N twice", True, lambda b: np.full(len(b.mask), b.mask.shape[1] ** 2.0)),
    ("it is divided by the number of episodes N and by the total number of steps", True,
     lambda b: b.mask.shape[1] * b.lengths.sum(1)),
    ("it is divided by the total number of steps less 1", True, lambda b: b.lengths.sum(1) - 1.0),
    (NOT_BY_N.format("the length of the last episode"), True, lambda b: b.lengths[:, -1]),
    (NOT_BY_N.format("the length of the first episode"), True, lambda b: b.lengths[:, 0]),
    (NOT_BY_N.format("the length of the longest episode"), True, lambda b: b.lengths.max(1)),
    ("it is divided by N and by the length of the last episode, too", True,
     lambda b: b.mask.shape[1] * b.lengths[:, -1]),
    ("it is divided by N and by the length of the first episode, too", True,
     lambda b: b.mask.shape[1] * b.lengths[:, 0]),
    ("it is divided by N and by the length of the longest episode, too", True,
     lambda b: b.mask.shape[1] * b.lengths.max(1)),
    ("the discount starts at γ, not at 1: γ times the gradient", True, lambda b: b.mask.shape[1] / b.gamma),
)  # fmt: skip


IMPLIED = {"the returns of the episodes": BASELINES[4].text, "the returns of all steps of the batch": BASELINES[6].text}


def deviations_of(formula: Hypothesis, batches: Batches) -> Iterator[tuple[str, Array]]:
    """Yield standard deviations of a batch, [B], and their names. An estimator may divide by them."""
    x, _, mask, _ = formula.advantages(batches)
    starts, ones = x[..., :1], np.ones_like(mask[..., :1])
    episodes, steps = IMPLIED
    for correction in (0, 1):
        yield episodes, _deviation(starts, ones, (1, 2), correction)[:, 0, 0] + EPSILON
        yield steps, _deviation(x, mask, (1, 2), correction)[:, 0, 0] + EPSILON
