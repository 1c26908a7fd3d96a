"""Find out what a user's estimator computes, from its estimates of every batch of the problems.

A formula is named only if it predicts every estimate on every problem. The formulas are those of `hypotheses`, and
three families whose numbers are fitted: what a reward counts for, which reward counts for which step, and what is
subtracted from the return for a state and an action. Where none fits, the expectation is compared, and else its
errors are printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgcli.inspection.gradient_check.hypotheses import (
    BASELINES,
    DIVISIONS,
    HYPOTHESES,
    IMPLIED,
    LINEAR_BASELINES,
    NO_GAMMA_T,
    NOT_BY_N,
    OF_ACTIONS,
    OTHER_DISCOUNTS,
    PLAIN_RETURNS,
    STANDARDIZED,
    Batches,
    Component,
    Hypothesis,
    contract,
    deviations_of,
)
from pgcli.inspection.gradient_check.measurement import Verdict

Array = NDArray[Any]
ROUNDING = 2e-4  # of a user's float32, relative to the largest estimate
SAME = 2e-3  # relative difference of two numbers that are the same but for rounding
FIRST = 6  # batches on which most formulas fail
Design = Callable[["Estimates"], tuple[Array, Array]]  # of a problem: columns [B, dim, K] and their target [B, dim]
SIGN = "the sign is wrong: it points downhill, like a loss's; θ + α g is an ascent"


@dataclass(frozen=True)
class Estimates:
    """The user's estimates of every batch of one problem."""

    name: str
    batches: Batches
    probabilities: Array  # [B]
    truth: Array  # ∇J, [dim]
    found: Array  # [B, dim]
    largest: float  # number in the estimates of all problems

    @property
    def bound(self) -> float:
        """The rounding error of one number."""
        return ROUNDING * max(float(np.abs(self.found).max()), 1e-3 * self.largest, 1e-30)

    @property
    def mean(self) -> Array:
        """E[g], [dim]."""
        found: Array = self.probabilities @ self.found
        return found

    def is_mean(self, expected: Array) -> bool:
        """Return whether E[g] is `expected`, but for rounding."""
        return bool(np.abs(self.mean - expected).max() <= self.bound)

    @property
    def bias(self) -> tuple[float, float]:
        """The error of E[g] along ∇J and across it, relative to |∇J|."""
        size = float(np.linalg.norm(self.truth))
        along = float((self.mean - self.truth) @ self.truth) / size**2
        across = float(np.linalg.norm(self.mean - (1 + along) * self.truth)) / size
        return along, across


class Diagnosis(NamedTuple):
    """The verdict on an estimator, with reasons for its bias and notes on its variance."""

    verdict: Verdict
    reasons: list[str]
    notes: list[str]


def diagnose(problems: Sequence[Estimates]) -> Diagnosis:
    """Find the simplest formula that predicts every estimate on every problem.

    Else describe the error in numbers.
    """
    if all(each.is_mean(each.truth) for each in problems):
        formulas = (formula for formula in HYPOTHESES if not formula.texts)
        formula = next((one for one in formulas if batch_factors(one, problems) is not None), None)
        return Diagnosis("unbiased", [], [] if formula is None else _notes(formula))
    if all(np.abs(each.found).max() == 0 for each in problems):
        return Diagnosis("wrong", ["it returns 0 for every batch"], [])
    diagnosis, unnamed = _of_table(problems)
    for search in (_of_rewards, _of_kernel, _of_step_terms):
        diagnosis = diagnosis or search(problems)
    if diagnosis := diagnosis or unnamed or _of_expectation(problems):
        return diagnosis
    if all(each.is_mean(0 * each.truth) for each in problems):
        return Diagnosis("wrong", ["its expectation is 0 on every problem: it teaches nothing"], [])
    text = (
        "its expectation is not the gradient, nor is it a formula known here. Error of E[g] along ∇J and across it, as "
    )
    parts = (f"{along:+.3g} and {across:.3g} ({each.name})" for each in problems for along, across in [each.bias])
    return Diagnosis("wrong", [f"{text}shares of |∇J|: {', '.join(parts)}"], [])


# --------------------------------------------------------------------------------------------------- formulas by name


def batch_factors(formula: Hypothesis, problems: Sequence[Estimates]) -> list[Array] | None:
    """Return c, [B] for each problem, if every estimate is c times the formula's.

    nan where that is 0. Else None.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = []
        for count in (FIRST, None):  # on a few batches first
            for each in problems:
                batches = each.batches if count is None else each.batches.some(count)
                at = slice(None) if count is None else np.linspace(0, len(each.found) - 1, count).astype(int)
                estimates, predicted = each.found[at], formula.predict(batches)
                squares = np.square(predicted).sum(1)
                some = squares > 1e-16
                factors = np.where(some, (estimates * predicted).sum(1) / np.where(some, squares, 1), 0)
                if not np.abs(estimates - factors[:, None] * predicted).max() <= each.bound:
                    return None
                if count is None:
                    found.append(np.where(some, factors, np.nan))
    return found


def _constant(problems: Sequence[Estimates], factors: Sequence[Array]) -> float | None:
    """Return the number that all factors equal, if they do, but for rounding."""
    joined = np.concatenate([x[np.isfinite(x)] for x in factors])
    if not len(joined):
        return None
    value = float(np.median(joined))
    return value if np.abs(joined - value).max() <= SAME * abs(value) else None


def _divisions(formula: Hypothesis) -> Iterator[Component]:
    def right(b: Batches) -> Array:
        return np.full(len(b.mask), float(b.mask.shape[1]))

    if formula.one_episode:
        yield Component("", False, lambda b: np.ones(len(b.mask)))
        yield Component("it is divided by N, although one episode is used: 1/N of the gradient", True, right)
    else:
        yield Component("", False, right)
    for text, wrong, compute in DIVISIONS:
        yield Component(text, wrong, compute)


def _named_factors(
    formula: Hypothesis, problems: Sequence[Estimates], factors: Sequence[Array]
) -> tuple[list[str], bool] | None:
    """Name the deviations that the factors show, and whether one is a mistake; None if unknown."""
    for scale_texts, scale in _scales(formula, problems):
        for division in _divisions(formula):
            counts = [division.compute(each.batches) * by for each, by in zip(problems, scale, strict=True)]
            value = _constant(problems, [c * count for c, count in zip(factors, counts, strict=True)])
            if value is not None and abs(abs(value) - 1) < SAME:
                texts = [*scale_texts, division.text, SIGN if value < 0 else ""]
                return list(filter(None, texts)), division.wrong or value < 0
    value = _constant(problems, factors)
    if value is not None:
        return [NOT_BY_N.format(f"{abs(1 / value):.4g}"), *([SIGN] if value < 0 else [])], True
    shares = [c * each.batches.mask.shape[1] for c, each in zip(factors, problems, strict=True)]
    value = _constant(problems, shares)
    if value is not None:
        return [f"the direction is right and the length is not: {value:.4g} times the gradient"], True
    norms = [np.linalg.norm(each.found, axis=1) for each in problems]
    longest = max(float(x.max()) for x in norms)
    full = [np.abs(norm - longest) < SAME * longest for norm in norms]
    whole = [np.abs(share - 1) < SAME for share in shares]
    if all((np.isnan(c) | one).all() for c, one in zip(factors, full, strict=True)):
        return [f"each estimate is scaled to the length {longest:.4g}, a random factor"], False
    if all((np.isnan(c) | one | two).all() for c, one, two in zip(factors, full, whole, strict=True)):
        return [f"each estimate is cut to the length {longest:.4g} where it is longer"], False
    return None


def _scales(formula: Hypothesis, problems: Sequence[Estimates]) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield divisors of a batch other than a count, [B] for each problem, with their texts."""
    yield [], [1.0] * len(problems)
    for of_one in zip(*(deviations_of(formula, each.batches) for each in problems), strict=True):
        what = of_one[0][0]
        centred = formula.baseline.text == IMPLIED[what]
        how = (
            f"are standardised: {STANDARDIZED}"
            if centred
            else "are divided by their standard deviation, a random factor"
        )
        yield [f"{what} {how}"], [values for _, values in of_one]


def _of_table(problems: Sequence[Estimates]) -> tuple[Diagnosis | None, Diagnosis | None]:
    """Find the formula with the fewest deviations, and the first whose factors have no name."""
    best: tuple[int, Diagnosis] | None = None
    unnamed: Diagnosis | None = None
    for formula in HYPOTHESES:
        if best is not None and len(formula.texts) > best[0]:
            break
        if (factors := batch_factors(formula, problems)) is None:
            continue
        if (named := _named_factors(formula, problems, factors)) is None:
            unnamed = unnamed or _scaled(formula, problems, factors)
            continue
        implied = [f"{what} are standardised" for what, text in IMPLIED.items() if text == formula.baseline.text]
        texts = [*formula.texts, *named[0]]
        if any(text.startswith(one) for text in named[0] for one in implied):
            texts.remove(formula.baseline.text)
        if texts and (best is None or len(texts) < best[0]):
            verdict: Verdict = "wrong" if formula.wrong or named[1] else "biased by design"
            best = (len(texts), Diagnosis(verdict, texts, _notes(formula)))
    return best[1] if best else None, unnamed


def _scaled(formula: Hypothesis, problems: Sequence[Estimates], factors: Sequence[Array]) -> Diagnosis:
    """Describe a formula that predicts the direction of every estimate, and not its length."""
    shares = [c * each.batches.mask.shape[1] for c, each in zip(factors, problems, strict=True)]
    joined = np.concatenate([x[np.isfinite(x)] for x in shares])
    low, high = float(joined.min()), float(joined.max())
    text = f"each batch's estimate is multiplied by a factor of its own, {low:.3g} to {high:.3g} here"
    verdict: Verdict = "wrong" if formula.wrong or low < 0 else "biased by design"
    return Diagnosis(verdict, [*formula.texts, text], _notes(formula))


def _notes(formula: Hypothesis) -> list[str]:
    return [part.note for part in formula if part.note]


# ---------------------------------------------------------------------------------------------------- fitted families


def _plain(returns: Component, baseline: Component) -> Hypothesis:
    """Return the formula with these returns and this baseline, and nothing else of note."""
    return Hypothesis(returns, baseline, *HYPOTHESES[0][2:])


def _averages() -> Iterator[Component]:
    yield Component("", False, lambda b: np.full(len(b.mask), float(b.mask.shape[1])))
    for text, wrong, compute in DIVISIONS[:2]:
        yield Component(text, wrong, compute)


def _fit(problems: Sequence[Estimates], design: Design) -> Array | None:
    """Solve Σ_k x_k column_k = target for all problems; None without a solution."""
    solution: Array | None = None
    for some in (problems[:1], problems) if len(problems) > 1 else (problems,):
        systems = [design(each) for each in some]
        rows = np.concatenate([columns.reshape(-1, columns.shape[-1]) for columns, _ in systems])
        wanted = np.concatenate([target.ravel() for _, target in systems])
        solution = np.linalg.lstsq(rows, wanted, rcond=1e-9)[0]
        for each, (columns, target) in zip(some, systems, strict=True):
            if not np.abs(columns @ solution - target).max() <= each.bound:
                return None
    return solution


def _of_rewards(problems: Sequence[Estimates]) -> Diagnosis | None:
    """Find out whether each reward r is replaced by some f(r) before anything else."""
    values = np.unique(np.concatenate([each.batches.rewards[each.batches.mask] for each in problems]))
    for returns, baseline, average in product((*PLAIN_RETURNS, *OTHER_DISCOUNTS), LINEAR_BASELINES, _averages()):
        formula = _plain(returns, baseline)
        found = _fit(problems, partial(_of_each_reward, formula, average, values))
        if found is not None:
            texts = [_describe_rewards(values, found), *formula.texts, average.text]
            return Diagnosis("wrong", list(filter(None, texts)), [])
    return None


def _of_each_reward(formula: Hypothesis, average: Component, values: Array, each: Estimates) -> tuple[Array, Array]:
    """Predict the estimates if one reward counts 1 and all others 0, for each of `values`."""
    columns = [_of_reward(formula, each.batches, average, value) for value in values]
    return np.stack(columns, -1), each.found


def _of_reward(formula: Hypothesis, batches: Batches, average: Component, value: float) -> Array:
    """Predict the estimates if a reward of `value` counts 1 and any other 0."""
    changed = replace(batches, rewards=np.where(batches.mask & (batches.rewards == value), 1.0, 0.0))
    found: Array = formula.predict(changed) / average.compute(batches)[:, None]
    return found


def _describe_rewards(values: Array, found: Array) -> str:
    """Describe f(r) for each reward r."""
    found = found.round(4) + 0.0
    (low, high), slope = (float(found.min()), float(found.max())), float(np.polyfit(values, found, 1)[0])
    bounds = [
        *([f"{low:.4g} at least"] if low > values[0] else []),
        *([f"{high:.4g} at most"] if high < values[-1] else []),
    ]
    start = float(found[0] - slope * values[0])
    known = (
        ("the rewards are replaced by their signs", np.sign(values)),
        ("the rewards are squared", np.square(values)),
        ("the rewards are replaced by their absolute values", np.abs(values)),
        (f"the rewards are clipped to {' and '.join(bounds)}", values.clip(low, high)),
        (f"{start:+.4g} is added to each reward", values + start),
        (f"the rewards are multiplied by {slope:.4g}, and {start:+.4g} is added to each", slope * values + start),
    )
    for text, wanted in known:
        if np.abs(found - wanted).max() < 1e-3:
            return text
    counts = ", ".join(f"{value:g} as {one:.3g}" for value, one in zip(values, found, strict=True))
    return f"the rewards are changed first: {counts}"


def _of_kernel(problems: Sequence[Estimates]) -> Diagnosis | None:
    """Find k_H(t, l), the weight of the reward of step l for the score of step t."""
    longest = max(each.batches.mask.shape[2] for each in problems)
    entries = [(h, t, at) for h in range(1, longest + 1) for t in range(h) for at in range(h)]
    groups = {gamma: [each for each in problems if each.batches.gamma == gamma] for gamma in
              dict.fromkeys(each.batches.gamma for each in problems)}  # fmt: skip
    for baseline, average in product(LINEAR_BASELINES, _averages()):
        kernels: dict[float, dict[tuple[int, int, int], float]] = {}
        for gamma, group in groups.items():
            right = np.array([gamma**at if at >= t else 0.0 for _, t, at in entries])  # where nothing else is known
            found = _fit(group, partial(_of_entries, baseline, average, entries, right))
            if found is None:
                break
            kernels[gamma] = dict(zip(entries, (right + found).tolist(), strict=True))
        else:
            others = filter(None, (baseline.text, average.text))
            return Diagnosis("wrong", [*_describe_kernels(kernels, longest), *others], [])
    return None


def _of_entries(
    baseline: Component, average: Component, entries: Sequence[tuple[int, int, int]], right: Array, each: Estimates
) -> tuple[Array, Array]:
    """Predict the estimates of each entry of a kernel alone, and the rest that `right` leaves."""
    b = each.batches
    columns = np.zeros((*each.found.shape, len(entries)))
    for k, (h, t, at) in enumerate(entries):
        if h <= b.mask.shape[2]:
            x = np.zeros(b.rewards.shape)
            x[..., t] = np.where(b.lengths == h, b.rewards[..., at], 0)
            weights = (x - baseline.compute(x, b, b.mask)) * b.mask
            columns[..., k] = contract(weights, b.scores["right"]) / average.compute(b)[:, None]
    return columns, each.found - columns @ right


class Discounting(NamedTuple):
    """A kernel of the rewards under a value of gamma.

    It is scale · a^t g^(l-t) from t on, or scale · g^l `of_all`.
    """

    of_all: bool
    gamma: float
    a: float
    g: float
    scale: float

    @classmethod
    def of(cls, kernel: dict[tuple[int, int, int], float], h: int, gamma: float) -> Discounting | None:
        """Return the numbers of a kernel; None if it has another form."""
        scale = kernel[h, 0, 0] if abs(kernel[h, 0, 0]) > 1e-6 else 1.0
        found = cls(False, gamma, kernel[h, 1, 1] / scale, kernel[h, 0, 1] / scale, scale)
        square = [(t, at) for t in range(h) for at in range(h)]
        for each in (found, found._replace(of_all=True)):
            if all(abs(kernel[h, t, at] / scale - each.entry(t, at)) < SAME for t, at in square):
                return each
        return None

    def entry(self, t: int, at: int) -> float:
        """Return what the reward of step `at` counts for step t, without the scale."""
        if self.of_all:
            return self.g**at
        return self.a**t * self.g ** (at - t) if at >= t else 0.0


def _describe_kernels(kernels: dict[float, dict[tuple[int, int, int], float]], h: int) -> list[str]:
    """Describe the kernels found under each gamma, by their discounts if they have such, else in full."""
    found = [Discounting.of(kernel, h, gamma) for gamma, kernel in kernels.items()]
    fits = [one for one in found if one is not None]
    same = len(fits) == len(found) and all(
        one.of_all == fits[0].of_all and abs(one.scale - fits[0].scale) < SAME for one in fits
    )
    if not same:
        gamma, kernel = next(iter(kernels.items()))
        rows = "; ".join(f"t = {t}: {_sum(kernel, h, t)}" for t in range(h))
        return [f"the scores are not multiplied by the return, but, with gamma = {gamma:g} and {h} steps, by {rows}"]
    texts = [f"it is {fits[0].scale:.4g} times too long"] if abs(fits[0].scale - 1) > SAME else []
    if any(abs(one.g - one.gamma) > SAME for one in fits):
        values = ", ".join(f"{one.g:.4g} (gamma = {one.gamma:g})" for one in fits)
        fixed = all(abs(one.g - fits[0].g) < SAME for one in fits)
        how = f"{fits[0].g:.4g} for any gamma: it is hard-coded" if fixed else values
        texts.append(f"gamma is not the discount of the return, which is {how}")
    if fits[0].of_all or all(abs(one.a - one.gamma) < SAME for one in fits):
        return texts
    if all(abs(one.a - 1) < min(SAME, abs(one.a - one.g)) for one in fits):  # 0.999 is no 1
        return [*texts, NO_GAMMA_T]
    if any(abs(one.a - one.g) > SAME for one in fits):
        values = ", ".join(f"{one.a:.4g} (gamma = {one.gamma:g})" for one in fits)
        texts.append(f"the factor in front of G_t is x^t with x = {values}, not gamma^t")
    return texts


def _sum(kernel: dict[tuple[int, int, int], float], h: int, t: int) -> str:
    """Write Σ_l k(t, l) r_l."""
    terms = [(kernel[h, t, at], f"r_{at}") for at in range(h) if abs(kernel[h, t, at]) > 2e-3]
    return " ".join(f"{value:+.3g} {name}" for value, name in terms).removeprefix("+") or "0"


def _of_step_terms(problems: Sequence[Estimates]) -> Diagnosis | None:
    """Find out whether a function of a step's time, state and action is subtracted from the return."""
    for returns, average in product(PLAIN_RETURNS, _averages()):
        formula, others = _plain(returns, BASELINES[0]), [text for text in (returns.text, average.text) if text]
        verdict: Verdict = "wrong" if average.wrong else "biased by design"
        if all(_step_terms(each, formula, average, "of t and s") is not None for each in problems):
            return Diagnosis(verdict, others, [])
        for kind in ("alike", "discounted", "of t"):
            found = [_step_terms(each, formula, average, kind) for each in problems]
            terms = [term for one in found for term in one or ()]
            if terms and all(one is not None for one in found):
                wrong, text = _describe_terms(terms, kind)
                return Diagnosis("wrong" if wrong else verdict, [text, *others], [])
    return None


def _describe_terms(terms: Sequence[tuple[float, float, float]], kind: str) -> tuple[bool, str]:
    """Describe (b after action 0, b after action 1, π(1|s)) of several states: is it wrong, and why."""
    if all(abs(b0 * p1 + b1 * (1 - p1)) < SAME * max(abs(b0), abs(b1)) for b0, b1, p1 in terms):
        bonus = [b1 / (p1 * math.log(p1 / (1 - p1))) for _, b1, p1 in terms]  # -b ∇log π(a|s) = c ∇H(s) for both a
        if kind == "alike" and max(bonus) - min(bonus) < 0.02 * max(map(abs, bonus)):
            return False, f"the gradient of {np.median(bonus):.3g} times the entropy is added"
        return True, "a term is added that depends on the states alone, not on the rewards"
    if kind == "of t":  # only sums of several times are determined
        return True, OF_ACTIONS
    b0, b1, _ = max(terms, key=lambda term: abs(term[0] - term[1]))
    front = "γ^t times " if kind == "discounted" else ""
    return (
        True,
        f"{OF_ACTIONS}: in one state {front}{b0:.3g} is subtracted after action 0 and {front}{b1:.3g} after action 1",
    )


def _step_terms(
    each: Estimates, formula: Hypothesis, average: Component, kind: str
) -> list[tuple[float, float, float]] | None:
    """Fit what is subtracted from the return for a state and an action.

    None if nothing explains every estimate.

    Args: kind: `alike` at all times, `discounted` by γ^t, any function `of t`, or `of t and s`, without the action.
    Returns: for each state, and time, b after action 0, b after action 1, and π(1|s).
    """
    b, count = each.batches, average.compute(each.batches)[:, None]
    times = 100 * np.arange(b.mask.shape[2]) * (kind not in ("alike", "discounted"))
    keys = np.where(b.mask, 2 * (b.states + times) + b.actions * (kind != "of t and s"), -1)
    names = [int(key) for key in np.unique(keys) if key >= 0]
    sizes = b.discounts if kind == "discounted" else 1.0
    columns = np.stack([contract((keys == key) * sizes, b.scores["right"]) / count for key in names], -1)
    found = _fit([each], lambda _: (columns, formula.predict(b) / count - each.found))
    if found is None or kind == "of t and s":
        return None if found is None else []
    values = dict(zip(names, found.tolist(), strict=True))
    pi = {key: float(b.pi[keys == key][0]) for key in names}
    return [(values[key], values[key + 1], pi[key + 1]) for key in names if key % 2 == 0 and key + 1 in values]


# --------------------------------------------------------------------------------------------------- the expectation


def _of_expectation(problems: Sequence[Estimates]) -> Diagnosis | None:
    """Find a formula with the same expectation on every problem."""
    if any(each.is_mean(0 * each.truth) for each in problems):
        return None
    for formula in (_plain(returns, BASELINES[0]) for returns in (*PLAIN_RETURNS, *OTHER_DISCOUNTS)):
        for average in _averages():
            for sign in (1, -1):
                if all(each.is_mean(sign * _expectation(formula, each, average)) for each in problems):
                    texts = [*formula.texts, *filter(None, [average.text]), *([SIGN] if sign < 0 else [])]
                    wrong = formula.wrong or average.wrong or sign < 0
                    return Diagnosis(
                        "wrong" if wrong else "biased by design", [f"in expectation, {text}" for text in texts], []
                    )
    factors = [1 + each.bias[0] for each in problems]
    if all(each.is_mean(factor * each.truth) for factor, each in zip(factors, problems, strict=True)):
        shares = ", ".join(f"{factor:.4g} ({each.name})" for factor, each in zip(factors, problems, strict=True))
        return Diagnosis("wrong", [f"the direction is right and the length is not: {shares} times the gradient"], [])
    return None


def _expectation(formula: Hypothesis, each: Estimates, average: Component) -> Array:
    found: Array = each.probabilities @ (formula.predict(each.batches) / average.compute(each.batches)[:, None])
    return found
