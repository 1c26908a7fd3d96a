"""Check a user's estimator or policy class: what it computes, and what is wrong with it, in words.

The estimator is called with every batch of a few small problems, so its expectation is a finite sum. `diagnosis`
compares its estimates with those of known formulas. The source code is not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pgcli.algorithm.gradients import user_code
from pgcli.algorithm.gradients.user_code import Rollouts, TutorialPolicy, describe_wrong_result, tutorial_rollouts
from pgcli.config.schema import PolicyConfig
from pgcli.inspection.gradient_check.definitions import hidden_layer_scores, step_scores
from pgcli.inspection.gradient_check.diagnosis import Estimates, diagnose
from pgcli.inspection.gradient_check.hypotheses import BASELINES, HYPOTHESES, Batches
from pgcli.inspection.gradient_check.measurement import batches_of, gradient_of_return, summarize
from pgcli.inspection.gradient_check.problems import FiniteProblem, chain_mdp, corridor_mdp, initialize_linear
from pgcli.inspection.gradient_check.time_limit import LOADING_SECONDS, Report, within_time
from pgcli.inspection.gradient_check.user_policies import CheckFailed, attempt, check_class
from pgcli.policies.activations import ACTIVATIONS
from pgcli.policies.policy import Policy

Array = NDArray[Any]
ROUNDING = 2e-4  # of a user's float32, relative to the largest estimate
REFERENCE = HYPOTHESES[0]._replace(baseline=BASELINES[1])  # reward-to-go minus the mean of the other episodes
SAMPLED_BATCHES, SAMPLED_EPISODES = 200, 16  # for the variance
VARIANCE_SECONDS = 30.0  # a slower function is measured on fewer batches, or not
NOTEWORTHY = 1.5  # times the reference's variance
FEATURES = np.array([[0.9, 0.3, -0.4], [-0.5, 1.0, 0.2], [-0.7, -0.8, 0.6], [0.4, -1.1, -0.9]])  # with 1: independent
PROBLEMS = (  # powers of γ are exact in float32, so that equal returns stay equal; with two, a constant is no discount
    ("two steps", "a corridor, cut after 2 steps", corridor_mdp(2, FEATURES), 2, 0.75),  # episodes of one length
    ("corridor", "4 places, cut after 3 steps", corridor_mdp(3, FEATURES), 2, 0.75),
    ("corridor, γ = 0.5", "the same", corridor_mdp(3, FEATURES), 2, 0.5),
    ("survival", "each step pays 1, 3 at most", chain_mdp(3, 1.0, 0.0, FEATURES[:3]), 3, 0.75),
)


class EnumeratedProblem:
    """A problem with all its batches of episodes and ∇J."""

    def __init__(self, policy: Policy, problem: FiniteProblem, gamma: float) -> None:
        data = problem.data(policy, 0, np.random.default_rng(0))
        whole = data.trajectories
        index, probabilities = batches_of(data, problem.columns)
        assert probabilities is not None
        states, mask = whole.obs[:-1].float().numpy(), whole.mask.numpy().T
        actions, episodes = whole.actions.numpy().T, tutorial_rollouts(whole, states)
        self.policy, self.problem, self.gamma, self.episodes = policy, problem, gamma, episodes
        self.index, self.probabilities = np.array(index), probabilities  # of all batches: [B, N], [B]
        self.chances = data.probabilities  # of the episodes
        self.truth = gradient_of_return(problem, policy, gamma)
        with torch.no_grad():
            pi = policy(whole.obs[:-1].flatten(0, 1)).softmax(1).view(*whole.mask.shape, -1).numpy().swapaxes(0, 1)
        taken = np.take_along_axis(pi, actions[..., None], 2)
        right = step_scores(policy, whole).swapaxes(0, 1)
        scores = {
            "right": right,
            "relu": _relu_scores(policy, states.swapaxes(0, 1), actions) * mask[..., None],
            "of π": taken * right,
            "over π": right / taken,
            "other": -taken / (1 - taken) * right,  # Σ_a π(a|s) ∇log π(a|s) = 0, with two actions
        }
        places = np.abs(whole.obs[:-1].numpy()[..., None, :] - problem.mdp.features).sum(-1).argmin(-1).T
        self._arrays = (whole.rewards.numpy().T, mask, places, actions, taken[..., 0])
        self._scores = scores

    def batches(self, index: Array) -> Batches:
        """Return the batches of the episodes `index`, [B, N]."""
        rewards, mask, states, actions, pi = (x[index] for x in self._arrays)
        scores = {name: x[index] for name, x in self._scores.items()}
        return Batches(rewards, mask, states, actions, pi, scores, self.gamma)

    def rollouts(self, index: Array) -> list[Rollouts]:
        """Return the batches of the episodes `index`, [B, N], in the tutorial's form."""
        return [[self.episodes[n] for n in one] for one in index.tolist()]


class _RememberedScores(TutorialPolicy):
    """The tutorial's policy; it computes the score of a pair once, until the parameters change."""

    def __init__(self, policy: Policy, known: dict[tuple[bytes, int], torch.Tensor]) -> None:
        super().__init__(policy)
        self._known = known

    def set_parameters(self, new_params: torch.Tensor) -> None:
        """Set all parameters, [dim]."""
        self._known.clear()
        super().set_parameters(new_params)

    def grad_log(self, state: Any, action: Any) -> torch.Tensor:
        """Compute the score ∇log π(a|s), [dim]."""
        key = (np.asarray(state, np.float64).tobytes(), int(action))
        if key not in self._known:
            self._known[key] = super().grad_log(state, action)
        return self._known[key].clone()


def _relu_scores(policy: Policy, states: Array, actions: Array) -> Array:
    """Compute the tutorial's score, which has a ReLU, with the π of the network, which has none."""
    weights = [parameter.detach().numpy() for parameter in policy.network.parameters()]
    w1, b1, w2, b2 = weights
    logits = (states @ w1.T + b1) @ w2.T + b2
    pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    relu = ACTIVATIONS["relu"]
    return hidden_layer_scores(weights, states, actions, pi, relu.value, relu.derivative)


# ----------------------------------------------------------------------------------------------------------- the check


def check_user_code(target: Any, seconds: float = 10.0) -> dict[str, Any]:
    """Check a user's function or policy class: the object that `pgcli check FILE:NAME --json` prints.

    Args: target: FILE:NAME, or the function or class itself; seconds: how long one call of it may take.
    Raises: UsageError: if the file cannot be run or has no such name.
    """
    if isinstance(target, str):
        return within_time(check_loaded, target, seconds)
    return within_time(partial(check_object, target), getattr(target, "__name__", repr(target)), seconds)


def check_loaded(location: str, report: Report, seconds: float) -> dict[str, Any]:
    """Load and check a user's code in this process.

    Args: report: is called before each call of the user's code; seconds: how long one may take.
    Raises: UsageError: if the file cannot be run or has no such name.
    """
    report("running the file", LOADING_SECONDS)
    return check_object(user_code.load_user_code(location), location, report, seconds)


def check_object(found: Any, name: str, report: Report, seconds: float) -> dict[str, Any]:
    """Check a user's function or class in this process; the other arguments as in `check_loaded`."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"estimator": name, "problems": [], "notes": []}
    if isinstance(found, type):
        report("a method of the class", LOADING_SECONDS)
        return result | check_class(found)
    try:
        return result | _check_function(found, report, seconds)
    except CheckFailed as failure:
        return result | {"verdict": "wrong", "reasons": [str(failure)]}


def enumerated_problems() -> list[EnumeratedProblem]:
    """Return the problems, with one policy."""
    policy = Policy(
        spaces.Box(-np.inf, np.inf, FEATURES.shape[1:], np.float64),
        spaces.Discrete(2),
        PolicyConfig(hidden_sizes=[3], activation="identity"),
    ).double()
    initialize_linear(policy)
    return [
        EnumeratedProblem(policy, FiniteProblem(name, about, mdp, spaces.Discrete, n), gamma)
        for name, about, mdp, n, gamma in PROBLEMS
    ]


def _check_function(function: Any, report: Report, seconds: float) -> dict[str, Any]:
    """Check an estimator. Raises: CheckFailed."""
    problems = enumerated_problems()
    call, started = Caller(function, problems[0].policy, report, seconds).estimates, time.monotonic()
    found = [call(one, one.index) for one in problems]
    largest = max(float(np.abs(each).max()) for each in found)
    measured = [
        Estimates(one.problem.name, one.batches(one.index), one.probabilities, one.truth, each, largest)
        for one, each in zip(problems, found, strict=True)
    ]
    report("the comparison with known formulas", LOADING_SECONDS)
    per_episode = (time.monotonic() - started) / sum(one.index.size for one in problems)
    diagnosis = diagnose(measured)
    ratios: list[float | None] = [None] * len(problems)
    batches = min(SAMPLED_BATCHES, int(VARIANCE_SECONDS / (per_episode * SAMPLED_EPISODES * len(problems))))
    if diagnosis.verdict == "unbiased" and batches >= SAMPLED_BATCHES // 4:
        ratios = [_variance_ratio(one, call, batches) for one in problems]
    rows = []
    for one, estimates, ratio in zip(problems, measured, ratios, strict=True):
        smallest = estimates.bound / float(np.abs(one.truth).max())
        arrays = (
            one.truth,
            estimates.found,
            one.truth,
            one.probabilities,
            float(diagnosis.verdict != "wrong"),
            smallest,
        )
        row = asdict(summarize(one.problem, diagnosis.verdict, diagnosis.reasons, *arrays))
        rows.append(row | {"variance_ratio": ratio})
    notes = [*diagnosis.notes, *_variance_note([ratio for ratio in ratios if ratio is not None])]
    return {"verdict": diagnosis.verdict, "reasons": diagnosis.reasons, "notes": notes, "problems": rows}


def _variance_ratio(problem: EnumeratedProblem, call: Callable[[EnumeratedProblem, Array], Array], count: int) -> float:
    """Measure the variance on large sampled batches, relative to the reference's."""
    random = np.random.default_rng(5)
    index = random.choice(len(problem.episodes), (count, SAMPLED_EPISODES), p=problem.chances)
    reference = REFERENCE.predict(problem.batches(index)) / SAMPLED_EPISODES
    found, by_reference = (np.square(x - problem.truth).sum() for x in (call(problem, index), reference))
    return float(found / by_reference)


def _variance_note(ratios: list[float]) -> list[str]:
    """Compare an unbiased estimator's variance with the reference's, if it is larger."""
    if max(ratios, default=0) < NOTEWORTHY:
        return []
    low, high = (f"{x:.0f}" if x > 10 else f"{x:.2g}" for x in (min(ratios), max(ratios)))
    times = high if low == high else f"{low} to {high}"
    of = f"in batches of {SAMPLED_EPISODES} episodes"
    return [f"unbiased, but {times} times the variance of reward-to-go with a mean baseline, {of}"]


class Caller:
    """Calls a user's estimator with copies, and checks what it returns and leaves.

    Args: report: is called before each call; seconds: how long one may take.
    """

    def __init__(self, function: Any, policy: Policy, report: Report, seconds: float) -> None:
        self._function, self._policy, self._report, self._seconds = function, policy, report, seconds
        self._kept = deepcopy(policy.state_dict())
        self._scores: dict[tuple[bytes, int], torch.Tensor] = {}
        self._parameters = TutorialPolicy(policy).get_parameters()

    def estimates(self, problem: EnumeratedProblem, index: Array) -> Array:
        """Call the estimator with each of the batches `index`, [B, N]: [B, dim]. Raises: CheckFailed."""
        found: list[Array] = []
        misshapen: list[Any] = []
        for number, rollouts in enumerate(problem.rollouts(index)):
            result = self._call(rollouts, problem.gamma)
            if number == 0 and not _same(result, self._call(rollouts, problem.gamma)):
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
            raise CheckFailed(_shape_error(misshapen, problem, index))
        return np.stack(found)

    def _call(self, rollouts: Rollouts, gamma: float) -> Any:
        """Call the estimator once. Raises: CheckFailed: if it raises or changes its arguments."""
        given, adapter = deepcopy(rollouts), _RememberedScores(self._policy, self._scores)
        self._report(f"a call for episodes of lengths {_lengths(rollouts)}", self._seconds)
        when = f", for episodes of lengths {_lengths(rollouts)}"
        result = attempt("it", lambda: self._function(given, adapter, gamma), when)
        if not torch.equal(adapter.get_parameters(), self._parameters):
            self._policy.load_state_dict(self._kept)
            raise CheckFailed(
                "it changed the policy's parameters; it must return the gradient and leave the step to its caller"
            )
        if not _unchanged(rollouts, given):
            raise CheckFailed(
                "it changed the rollouts that it was given: later code that reads them sees other episodes"
            )
        return result


def _lengths(rollouts: Rollouts) -> str:
    return ", ".join(str(len(episode)) for episode in rollouts)


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


def _shape_error(results: list[Any], problem: EnumeratedProblem, index: Array) -> str:
    """Describe results of a wrong shape, perhaps a known formula summed over the parameters."""
    dim = len(problem.truth)
    error = f"it returned {describe_wrong_result(results[0], dim)}"
    try:
        tensors = [torch.as_tensor(result).detach().double() for result in results]
    except (TypeError, ValueError, RuntimeError):
        return error
    if all(tensor.numel() == dim for tensor in tensors):
        return f"{error}: flatten it, say by .view(-1)"
    sums = np.array([float(tensor.sum()) for tensor in tensors])
    if len(sums) == len(index) and np.abs(sums).max() > 0:
        formulas = (one for one in HYPOTHESES if one.scores is HYPOTHESES[0].scores)
        batches, rounding = problem.batches(index), ROUNDING * np.abs(sums).max()
        predicted = (one.predict(batches).sum(1) / problem.problem.columns for one in formulas)
        if any(np.abs(sums - one).max() <= rounding for one in predicted):
            return (
                f"{error}: the scores [H, dim] were summed over the parameters (dim=-1), where they should be "
                "summed over time (dim=0)"
            )
    return error
