"""Check a user's policy class with the tutorial's methods.

Its score is compared with the gradient of its own log π(a|s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.environments.failures import describe, is_user_error
from pgcli.inspection.gradient_check.definitions import flat, hidden_layer_scores
from pgcli.policies.activations import ACTIVATIONS

Array = NDArray[Any]
INPUTS, ACTIONS, HIDDEN = 3, 4, 5
STATES = np.random.default_rng(4).normal(0, 1, (6, INPUTS)).astype(np.float32)
DRAWS = 2000
ROUNDING = 1e-3  # of float32 and of finite differences
SIGNIFICANCE = 1e-6  # p-values below it are a failure


class CheckFailed(Exception):
    """A mistake that ends the check of a user's code; its text is the reason."""


def attempt(what: str, function: Callable[[], Any], when: str = "") -> Any:
    """Call a user's function. Raises: CheckFailed: if that raises, with the exception as its cause."""
    try:
        return function()
    except BaseException as error:
        if not is_user_error(error):
            raise
        raise CheckFailed(f"{what} raised {describe(error)}{when}") from error


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


# Activations that a user may have written, as messages name them: each with its value and its derivative.
Known = tuple[Callable[..., Array], Callable[[Array], Array]]
KNOWN: dict[str, Known] = {
    "no activation": (ACTIVATIONS["identity"].value, ACTIVATIONS["identity"].derivative),
    "a ReLU": (ACTIVATIONS["relu"].value, ACTIVATIONS["relu"].derivative),
    "a tanh": (ACTIVATIONS["tanh"].value, ACTIVATIONS["tanh"].derivative),
    "a sigmoid": (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
}


def check_class(found: type) -> dict[str, Any]:
    """Check a policy class.

    Return `verdict`, `reasons` and `notes` of the object that `pgcli check --json` prints.
    """
    notes = [
        "the class is checked only: `pgcli train` trains pgcli's own networks (`pgcli train tutorial` one of this form)"
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            reasons = list(_mistakes(found, notes))
        except CheckFailed as failure:
            reasons = [str(failure)]
    return {
        "verdict": "wrong" if reasons else "unbiased",
        "reasons": reasons,
        "summary": "grad_log is ∇log π(a|s) of its own forward pass, and draw_action draws from π",
        "notes": notes,
        "problems": [],
    }


def _mistakes(found: type, notes: list[str]) -> Iterator[str]:
    """Yield the mistakes that leave the rest testable. Raises: CheckFailed: for the others."""
    policy = _built(found)
    methods = ("dim", "get_parameters", "set_parameters", "draw_action", "grad_log")
    if missing := [name for name in methods if not hasattr(policy, name)]:
        raise CheckFailed(f"it has no {', '.join(missing)}, which `reinforce` and `train` of the tutorial call")
    theta = attempt("get_parameters()", policy.get_parameters)
    if not isinstance(theta, Tensor) or theta.ndim != 1:
        raise CheckFailed(f"get_parameters() returns {_kind(theta)}, not one flat tensor")
    if policy.dim != len(theta):
        yield f"dim is {policy.dim}, and get_parameters() returns {len(theta)} numbers"
    attempt("set_parameters(θ)", lambda: policy.set_parameters(theta + 0.125))
    if not torch.allclose(attempt("get_parameters()", policy.get_parameters), theta + 0.125):
        yield "set_parameters(θ), then get_parameters() does not give θ back"
    attempt("set_parameters(θ)", lambda: policy.set_parameters(theta.clone()))
    probabilities = _probabilities(policy, notes)
    yield from _check_draws(policy, probabilities, notes)
    yield from _check_scores(policy, theta, probabilities)


def _built(found: type) -> Any:
    """Create a policy with a hidden size, or without one if the class takes none."""

    def create(*sizes: int) -> Any:
        return attempt(f"{found.__name__}({', '.join(map(str, sizes))})", lambda: found(*sizes))

    try:
        return create(INPUTS, ACTIONS, HIDDEN)
    except CheckFailed as failure:
        if not isinstance(failure.__cause__, TypeError):
            raise
        return create(INPUTS, ACTIONS)


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _probabilities(policy: Any, notes: list[str]) -> Callable[[Array], Tensor]:
    """Return the policy's π(·|s), from its own forward pass. Raises: CheckFailed."""
    if not callable(policy):
        raise CheckFailed("it has no forward(state), which returns the probabilities of the actions")

    def probabilities(state: Array) -> Tensor:
        with torch.enable_grad():
            result = attempt("forward(state)", lambda: policy(torch.from_numpy(state)))
        if not isinstance(result, Tensor) or result.numel() != ACTIONS:
            raise CheckFailed(f"forward(state) returns {_kind(result)}, not the {ACTIONS} probabilities of the actions")
        return result.reshape(-1)

    first = torch.stack([probabilities(state).detach() for state in STATES])
    if bool((first >= 0).all()) and torch.allclose(first.sum(1), torch.ones(len(first)), atol=1e-4):
        return probabilities
    notes.append("forward(state) does not give probabilities; it is read as logits, before a softmax")
    return lambda state: probabilities(state).softmax(0)


def _check_draws(policy: Any, probabilities: Callable[[Array], Tensor], notes: list[str]) -> Iterator[str]:
    """Compare the frequencies of drawn actions with π by a chi-square test."""
    from scipy.stats import chisquare

    given: Any = STATES[0]
    try:
        attempt("draw_action(state)", lambda: policy.draw_action(given))
    except CheckFailed as failure:
        if not isinstance(failure.__cause__, TypeError):
            raise
        notes.append(
            "draw_action takes no numpy array, which is what an environment returns: torch.as_tensor(state) helps"
        )
        given = torch.from_numpy(STATES[0])
    first = attempt("draw_action(state)", lambda: policy.draw_action(given))
    try:
        drawn = [int(first), *(int(policy.draw_action(given)) for _ in range(DRAWS - 1))]
    except (TypeError, ValueError, RuntimeError):
        yield f"draw_action(state) returns {_kind(first)}, not one action"
        return
    counts, expected = np.bincount(drawn, minlength=ACTIONS), probabilities(STATES[0]).detach().double().numpy() * DRAWS
    if len(counts) > ACTIONS:
        yield f"draw_action(state) returns {max(drawn)}, and the last of {ACTIONS} actions is {ACTIONS - 1}"
    elif chisquare(counts, expected / expected.sum() * DRAWS).pvalue < SIGNIFICANCE:
        shares = "; ".join(f"{c / DRAWS:.2f}, not {e / DRAWS:.2f}" for c, e in zip(counts, expected, strict=True))
        yield f"draw_action draws actions with other frequencies than π: {shares}"


# ----------------------------------------------------------------------------------------------------------- the score


def _check_scores(policy: Any, theta: Tensor, probabilities: Callable[[Array], Tensor]) -> Iterator[str]:
    """Compare grad_log with ∇log π, and a wrong one with known mistakes."""
    found, right, pi = (np.empty((len(STATES), ACTIONS, size)) for size in (len(theta), len(theta), 1))
    for i, state in enumerate(STATES):
        pi[i, :, 0] = probabilities(state).detach().numpy()
        for action in range(ACTIONS):
            score = attempt("grad_log(state, action)", partial(policy.grad_log, state.copy(), action))
            if not isinstance(score, Tensor) or tuple(score.shape) != (len(theta),):
                yield f"grad_log(state, action) returns {_kind(score)}, not a tensor of {len(theta)} numbers"
                return
            found[i, action] = score.detach().numpy()
            right[i, action] = _score(policy, theta, probabilities, state, action)
    if not np.isfinite(found).all():
        yield "grad_log(state, action) is not finite"
    elif not _close(found, right):
        yield _describe(found, right, pi, theta.double().numpy())


def _close(one: Array, other: Array) -> bool:
    return bool(np.abs(one - other).max() <= ROUNDING * max(float(np.abs(other).max()), 1.0))


def _score(policy: Any, theta: Tensor, probabilities: Callable[[Array], Tensor], state: Array, action: int) -> Array:
    """Compute ∇log π(a|s) by autograd, or, without it, by central differences through set_parameters."""
    log_prob = probabilities(state)[action].log()
    own = list(policy.parameters()) if isinstance(policy, nn.Module) else []
    if log_prob.requires_grad and own and torch.equal(nn.utils.parameters_to_vector(own).detach(), theta):
        by_autograd: Array = flat(torch.autograd.grad(log_prob, own, allow_unused=True), own).double().numpy()
        return by_autograd
    differences = np.empty(len(theta))
    for k in range(len(theta)):
        sides = []
        for step in (0.01, -0.01):
            moved = theta.clone()
            moved[k] += step
            policy.set_parameters(moved)
            sides.append(float(probabilities(state)[action].detach().double().log()))
        differences[k] = (sides[0] - sides[1]) / 0.02
    policy.set_parameters(theta.clone())
    return differences


def _describe(found: Array, right: Array, pi: Array, theta: Array) -> str:
    """Describe a wrong score by the known mistake that it matches."""
    for text, wrong in _known_mistakes(right, pi, theta):
        if _close(found, wrong):
            return f"grad_log is not the score: {text}"
    off = float(np.abs(found - right).max())
    cosine = float((found * right).sum() / max(np.linalg.norm(found) * np.linalg.norm(right), 1e-12))
    return f"grad_log is not ∇log π(a|s) of its own forward pass: off by up to {off:.3g}, cosine {cosine:.3f}"


def _known_mistakes(right: Array, pi: Array, theta: Array) -> Iterator[tuple[str, Array]]:
    """Yield known mistakes and the scores [states, actions, dim] to which they lead."""
    yield "its sign is wrong", -right
    yield "it is the gradient of π(a|s), not of log π(a|s): not divided by π(a|s)", pi * right
    yield "it is divided by π(a|s) twice", right / pi
    sizes = (INPUTS * HIDDEN, HIDDEN, HIDDEN * ACTIONS, ACTIONS)
    if sum(sizes) != len(theta):
        return  # not one hidden layer
    ends = np.cumsum(sizes)[:-1]
    w1, b1, w2, b2 = np.split(theta, ends)
    weights = (w1.reshape(HIDDEN, INPUTS), b1, w2.reshape(ACTIONS, HIDDEN), b2)
    each = (STATES[:, None].astype(float), np.arange(ACTIONS), pi.swapaxes(1, 2))
    scores = {
        (value, slope): hidden_layer_scores(weights, *each, KNOWN[value][0], KNOWN[slope][1])
        for value, slope in product(KNOWN, KNOWN)
    }
    network = next((name for name in KNOWN if _close(right, scores[name, name])), None)
    for (value, slope), wrong in scores.items() if network else ():
        part = value if value == slope else f"the value of {value} and the slope of {slope}"
        extra = value == slope and network == "no activation"
        yield (
            f"it has {part}{' that the network does not have' if extra else f', and the network has {network}'}",
            wrong,
        )
    parts = np.split(right, ends, axis=-1)
    for order in ((2, 3, 0, 1), (1, 0, 3, 2), (3, 2, 1, 0), (0, 2, 1, 3)):
        shuffled = np.concatenate([parts[k] for k in order], -1)
        yield "its parts stand in another order than those of get_parameters()", shuffled
