"""A user's policy class, with the tutorial's methods, judged: its score against the gradient of its own log π(a|s)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.environments.failures import is_fault, told
from pgcli.policies.activations import ACTIVATIONS

Array = NDArray[Any]
INPUTS, ACTIONS, HIDDEN = 3, 4, 5
STATES = np.random.default_rng(4).normal(0, 1, (6, INPUTS)).astype(np.float32)
DRAWS = 2000
ROUNDING = 1e-3  # of a float32, and of differences
REFUSED_BELOW = 1e-6


class Wrong(Exception):
    """A mistake after which nothing more can be tried, in words."""


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


def judge_class(found: type) -> dict[str, Any]:
    """Judge a policy class: `verdict`, `reasons` and `notes` of the object that `pgcli check --json` prints."""
    notes: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            reasons = list(_mistakes(found, notes))
        except Wrong as mistake:
            reasons = [str(mistake)]
    return {
        "verdict": "wrong" if reasons else "unbiased",
        "reasons": reasons,
        "summary": "grad_log is ∇log π(a|s) of its own forward pass, and draw_action draws from π",
        "notes": notes,
        "problems": [],
    }


def _mistakes(found: type, notes: list[str]) -> Iterator[str]:
    """Yield what is wrong. Raises: Wrong."""
    policy = _built(found)
    missing = [
        name
        for name in ("dim", "get_parameters", "set_parameters", "draw_action", "grad_log")
        if not hasattr(policy, name)
    ]
    if missing:
        raise Wrong(f"it has no {', '.join(missing)}, which `reinforce` and `train` of the tutorial call")
    theta = _tried("get_parameters()", policy.get_parameters)
    if not isinstance(theta, Tensor) or theta.ndim != 1:
        raise Wrong(f"get_parameters() gives {_kind(theta)}, not one flat tensor")
    if policy.dim != len(theta):
        yield f"dim is {policy.dim}, and get_parameters() gives {len(theta)} numbers"
    _tried("set_parameters(θ)", lambda: policy.set_parameters(theta + 0.125))
    if not torch.allclose(_tried("get_parameters()", policy.get_parameters), theta + 0.125):
        yield "set_parameters(θ), then get_parameters() does not give θ back"
    _tried("set_parameters(θ)", lambda: policy.set_parameters(theta.clone()))
    probabilities = _probabilities(policy, notes)
    yield from _of_draws(policy, probabilities, notes)
    yield from _of_scores(policy, theta, probabilities)


def _built(found: type) -> Any:
    tried = ((INPUTS, ACTIONS, HIDDEN), (INPUTS, ACTIONS))
    for arguments in tried[:-1]:
        try:
            return found(*arguments)
        except TypeError:
            continue
        except BaseException as error:
            if not is_fault(error):
                raise
            raise Wrong(f"{found.__name__}({', '.join(map(str, arguments))}) raised {told(error)}") from error
    return _tried(f"{found.__name__}({INPUTS}, {ACTIONS})", lambda: found(*tried[-1]))


def _tried(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except BaseException as error:
        if not is_fault(error):
            raise
        raise Wrong(f"{what} raised {told(error)}") from error


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _probabilities(policy: Any, notes: list[str]) -> Callable[[Array], Tensor]:
    """Give the policy's π(·|s), from its own forward pass. Raises: Wrong."""
    if not callable(policy):
        raise Wrong("it has no forward(state), which gives the probabilities of the actions")

    def probabilities(state: Array) -> Tensor:
        with torch.enable_grad():
            result = _tried("forward(state)", lambda: policy(torch.from_numpy(state)))
        if not isinstance(result, Tensor) or result.numel() != ACTIONS:
            raise Wrong(f"forward(state) gives {_kind(result)}, not the {ACTIONS} probabilities of the actions")
        return result.reshape(-1)

    first = torch.stack([probabilities(state).detach() for state in STATES])
    if bool((first >= 0).all()) and torch.allclose(first.sum(1), torch.ones(len(first)), atol=1e-4):
        return probabilities
    notes.append("forward(state) does not give probabilities; it is read as logits, before a softmax")
    return lambda state: probabilities(state).softmax(0)


def _of_draws(policy: Any, probabilities: Callable[[Array], Tensor], notes: list[str]) -> Iterator[str]:
    """Hold the frequencies of drawn actions against the probabilities, by a chi-square test."""
    from scipy.stats import chisquare

    given: Any = STATES[0]
    try:
        policy.draw_action(given)
    except TypeError:
        notes.append(
            "draw_action takes no numpy array, which is what an environment gives: torch.as_tensor(state) helps"
        )
        given = torch.from_numpy(STATES[0])
    except BaseException as error:
        if not is_fault(error):
            raise
        raise Wrong(f"draw_action(state) raised {told(error)}") from error
    first = _tried("draw_action(state)", lambda: policy.draw_action(given))
    try:
        drawn = [int(first), *(int(policy.draw_action(given)) for _ in range(DRAWS - 1))]
    except (TypeError, ValueError, RuntimeError):
        yield f"draw_action(state) gives {_kind(first)}, not one action"
        return
    counts, expected = np.bincount(drawn, minlength=ACTIONS), probabilities(STATES[0]).detach().double().numpy() * DRAWS
    if len(counts) > ACTIONS:
        yield f"draw_action(state) gives {max(drawn)}, and the last of {ACTIONS} actions is {ACTIONS - 1}"
    elif chisquare(counts, expected / expected.sum() * DRAWS).pvalue < REFUSED_BELOW:
        shares = "; ".join(f"{c / DRAWS:.2f}, not {e / DRAWS:.2f}" for c, e in zip(counts, expected, strict=True))
        yield f"draw_action draws actions with other frequencies than π: {shares}"


# ----------------------------------------------------------------------------------------------------------- the score


def _of_scores(policy: Any, theta: Tensor, probabilities: Callable[[Array], Tensor]) -> Iterator[str]:
    """Hold grad_log against the gradient of log π, and a wrong one against known mistakes."""
    found, right, pi = (np.empty((len(STATES), ACTIONS, size)) for size in (len(theta), len(theta), 1))
    for i, state in enumerate(STATES):
        pi[i, :, 0] = probabilities(state).detach().numpy()
        for action in range(ACTIONS):
            score = _tried("grad_log(state, action)", partial(policy.grad_log, state.copy(), action))
            if not isinstance(score, Tensor) or tuple(score.shape) != (len(theta),):
                yield f"grad_log(state, action) gives {_kind(score)}, not a tensor of {len(theta)} numbers"
                return
            found[i, action] = score.detach().numpy()
            right[i, action] = _score(policy, theta, probabilities, state, action)
    if not np.isfinite(found).all():
        yield "grad_log(state, action) is not finite"
    elif not _close(found, right):
        yield _named(found, right, pi, theta.double().numpy())


def _close(one: Array, other: Array) -> bool:
    return bool(np.abs(one - other).max() <= ROUNDING * max(float(np.abs(other).max()), 1.0))


def _score(policy: Any, theta: Tensor, probabilities: Callable[[Array], Tensor], state: Array, action: int) -> Array:
    """Compute ∇log π(a|s) by autograd, or, without it, by central differences through set_parameters."""
    log_prob = probabilities(state)[action].log()
    own = list(policy.parameters()) if isinstance(policy, nn.Module) else []
    if log_prob.requires_grad and own and torch.equal(nn.utils.parameters_to_vector(own).detach(), theta):
        grads = torch.autograd.grad(log_prob, own, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, own, strict=True)]
        by_autograd: Array = torch.cat([g.flatten() for g in flat]).double().numpy()
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


def _named(found: Array, right: Array, pi: Array, theta: Array) -> str:
    """Say what a wrong score is."""
    known = (
        ("its sign is wrong", -right),
        ("it is the gradient of π(a|s), not of log π(a|s): not divided by π(a|s)", pi * right),
        ("it is divided by π(a|s) twice", right / pi),
    )
    for words, wrong in known:
        if _close(found, wrong):
            return f"grad_log is not the score: {words}"
    if len(theta) == INPUTS * HIDDEN + HIDDEN + HIDDEN * ACTIONS + ACTIONS:
        network = next((name for name in KNOWN if _close(right, by_hand(theta, pi, name, name))), None)
        for value, slope in product(KNOWN, KNOWN) if network is not None else ():
            if _close(found, by_hand(theta, pi, value, slope)):
                part = value if value == slope else f"the value of {value} and the slope of {slope}"
                if value == slope and network == "no activation":
                    return f"grad_log is not the score: it has {part} that the network does not have"
                return f"grad_log is not the score: it has {part}, and the network has {network}"
    sizes = (INPUTS * HIDDEN, HIDDEN, HIDDEN * ACTIONS, ACTIONS)
    if sum(sizes) == len(theta):
        parts = np.split(right, np.cumsum(sizes)[:-1], axis=-1)
        for order in ((2, 3, 0, 1), (1, 0, 3, 2), (3, 2, 1, 0), (0, 2, 1, 3)):
            if _close(found, np.concatenate([parts[k] for k in order], -1)):
                return "grad_log is not the score: its parts stand in another order than those of get_parameters()"
    off = float(np.abs(found - right).max())
    cosine = float((found * right).sum() / max(np.linalg.norm(found) * np.linalg.norm(right), 1e-12))
    return f"grad_log is not ∇log π(a|s) of its own forward pass: off by up to {off:.3g}, cosine {cosine:.3f}"


def by_hand(theta: Array, pi: Array, value: str, slope: str) -> Array:
    """Compute ∇log π of one hidden layer with the value and slope of activations of KNOWN, [states, actions, dim]."""
    w1, b1, w2, _ = np.split(theta, np.cumsum([INPUTS * HIDDEN, HIDDEN, HIDDEN * ACTIONS]))
    w1, w2 = w1.reshape(HIDDEN, INPUTS), w2.reshape(ACTIONS, HIDDEN)
    z = STATES.astype(float) @ w1.T + b1
    scores = []
    for state, hidden, inside, shares in zip(
        STATES.astype(float), KNOWN[value][0](z), KNOWN[slope][1](z), pi, strict=True
    ):
        row = []
        for action in range(ACTIONS):
            delta = np.eye(ACTIONS)[action] - shares[:, 0]
            back = w2.T @ delta * inside
            row.append(np.concatenate([np.outer(back, state).ravel(), back, np.outer(delta, hidden).ravel(), delta]))
        scores.append(row)
    return np.array(scores)
