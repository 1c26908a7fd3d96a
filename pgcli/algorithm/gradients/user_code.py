"""The user's own gradient estimator, `FILE.py:NAME`, with the tutorial's signature.

    def reinforce(rollouts, policy, gamma): ...  # -> ∇J, flat, [policy.dim]

`rollouts` is a list per episode of (s, a, r); `policy` has dim, get_parameters, set_parameters, draw_action, grad_log.
Loading runs FILE.py with the user's permissions: load only files that the user has named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.algorithm.batch import Batch
from pgcli.algorithm.gradients.protocol import Gradient
from pgcli.algorithm.losses import PartName, Step
from pgcli.environments.failures import describe, is_user_error
from pgcli.errors import UsageError, closest
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.activations import ACTIVATION_OF, ACTIVATIONS
from pgcli.policies.distributions import Softmax
from pgcli.policies.networks import is_plain
from pgcli.policies.policy import Policy
from pgcli.system.locations import split
from pgcli.system.notebooks import needed_code

Array = NDArray[Any]
UserEstimator = Callable[[Trajectories], Tensor]
Rollouts = list[list[tuple[Array, int, float]]]
SIGNATURE = "write it as {name}(rollouts, policy, gamma), and return a tensor of policy.dim numbers"


class TutorialPolicy:
    """The tutorial's policy: an adapter with its methods for a softmax MLP, on the same parameters.

    Parameters are flat, layer by layer, each its weight [out, in], then its bias. A state `s` is the network's input.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._layers = [module for module in policy.network if isinstance(module, nn.Linear)]
        self._activations = [ACTIVATION_OF[type(each)] for each in policy.network if not isinstance(each, nn.Linear)]
        assert isinstance(policy.distribution, Softmax)
        self._first_action = policy.distribution.start
        self.dim = sum(parameter.numel() for parameter in policy.parameters())

    def get_parameters(self) -> Tensor:
        """Return all parameters, [dim]."""
        return nn.utils.parameters_to_vector(self._policy.parameters()).detach().float()

    def set_parameters(self, new_params: Tensor) -> None:
        """Set all parameters, [dim]."""
        start = 0
        with torch.no_grad():
            for parameter in self._policy.parameters():
                parameter.copy_(new_params[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()

    def forward(self, state: Any) -> Tensor:
        """Compute the probabilities of the actions, [A]."""
        return torch.from_numpy(self._probabilities(self._run(state)[-1])).float()

    __call__ = forward

    def draw_action(self, state: Any) -> int:
        """Draw an action."""
        return int(torch.multinomial(self.forward(state), 1)) + self._first_action

    def grad_log(self, state: Any, action: Any) -> Tensor:
        """Compute the score ∇log π(a|s), [dim], by the chain rule."""
        outputs = self._run(state)
        delta = -self._probabilities(outputs[-1])
        delta[int(action) - self._first_action] += 1
        parts: list[Array] = []
        for number in reversed(range(len(self._layers))):
            activation = self._activations[number - 1] if number else ACTIVATIONS["identity"]
            parts = [np.outer(delta, activation.value(outputs[number])).ravel(), delta, *parts]
            if number:
                back = self._layers[number].weight.detach().numpy().T @ delta
                delta = back * activation.derivative(outputs[number])
        return torch.from_numpy(np.concatenate(parts)).float()

    def _run(self, state: Any) -> list[Array]:
        """Return the state and the output of each layer before its activation."""
        x = np.asarray(state, self._layers[0].weight.detach().numpy().dtype).ravel()
        outputs = [x]
        for number, layer in enumerate(self._layers):
            if number:
                x = self._activations[number - 1].value(x)
            x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
            outputs.append(x)
        return outputs

    @staticmethod
    def _probabilities(logits: Array) -> Array:
        exponentials = np.exp(logits - logits.max())
        probabilities: Array = exponentials / exponentials.sum()
        return probabilities


def tutorial_rollouts(trajectories: Trajectories, states: Array) -> Rollouts:
    """Convert whole episodes to the tutorial's rollouts; `states` are [T, N, size]."""
    actions, rewards = trajectories.actions.numpy(), trajectories.rewards.numpy()
    return [
        [(states[t, n].copy(), int(actions[t, n]), float(rewards[t, n])) for t in range(length)]
        for n, length in enumerate(trajectories.lengths.tolist())
    ]


def call_estimator(function: Any, name: str, rollouts: Rollouts, policy: TutorialPolicy, gamma: float) -> Tensor:
    """Call a user's estimator and return its gradient, [dim].

    Raises: UsageError if it raises an exception, or if the result is not a flat gradient.
    """
    try:
        result = function(rollouts, policy, gamma)
    except BaseException as error:
        if not is_user_error(error):
            raise
        hint = f"`pgcli check {name}` tests it on small problems"
        raise UsageError(f"{name} raised {describe(error)}", hint) from error
    fault = describe_wrong_result(result, policy.dim)
    if fault:
        raise UsageError(f"{name} returned {fault}", f"`pgcli check {name}` shows more")
    return torch.as_tensor(result).detach().float()


def describe_wrong_result(result: Any, dim: int) -> str:
    """Describe what is wrong with a result that should be [dim] numbers; "" if nothing is."""
    if result is None:
        return "None: the function has no `return`"
    try:
        tensor = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError):
        return f"a {type(result).__name__}, not a tensor of {dim} numbers"
    if tensor.is_complex() or tensor.dtype == torch.bool:
        return f"a tensor of {tensor.dtype}"
    if tuple(tensor.shape) != (dim,):
        return f"a tensor of shape {list(tensor.shape)}, but the gradient has shape [{dim}]"
    return ""


# ------------------------------------------------------------------------------------------------ the file and its name


def load_user_code(location: str) -> Any:
    """Run FILE.py, or the required cells of FILE.ipynb, and return the object NAME.

    Raises: UsageError if there is no such file or name, or the file cannot be run.
    """
    path, name = split(location)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that it can import its neighbours
    module = ModuleType(f"pgcli_user_{path.stem}")
    module.__file__ = str(path.resolve())
    sys.modules[module.__name__] = module
    try:
        for code in needed_code(path, name) if path.suffix == ".ipynb" else [_compiled(path)]:
            exec(code, vars(module))  # the user has named the file
    except BaseException as error:
        if not is_user_error(error):
            raise
        main = 'move the code of the program under `if __name__ == "__main__":`'
        hint = f"install the package that provides `{error.name}`" if isinstance(error, ModuleNotFoundError) else main
        raise UsageError(f"{location}: running the file raised {describe(error)}", hint) from error
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = closest(name, names)
        hint = f"did you mean `{close}`?" if close else f"it defines {', '.join(names) or 'no functions'}"
        raise UsageError(f"{location}: the file has no `{name}`", hint)
    found = getattr(module, name)
    if not callable(found):
        raise UsageError(f"{location}: `{name}` is a {type(found).__name__}", "name a function")
    return found


def _compiled(path: Path) -> CodeType:
    """Compile a file. Raises: SyntaxError."""
    return compile(path.read_bytes(), str(path.resolve()), "exec", dont_inherit=True)


# ---------------------------------------------------------------------------------------------------------- in training


class UserGradient:
    """The user's gradient for the policy; the value function, if any, uses the gradient `other`."""

    def __init__(self, estimate: UserEstimator | None, policy: Policy, other: Gradient) -> None:
        self._estimate, self._policy, self._other = estimate, policy, other
        self.inputs = other.inputs

    def __call__(self, batch: Batch, part: PartName, progress: float) -> Step:
        """Return minus the user's ∇J, [dim], and the policy's entropy."""
        if part != "policy":
            return self._other(batch, part, progress)
        assert self._estimate is not None, "the user's estimator was not loaded"
        gradient = -self._estimate(batch.trajectories).to(batch.obs.device)
        distribution = self._policy.distribution
        return gradient, lambda: {"entropy": distribution.entropy(self._policy(batch.obs)).mean()}


def load_user_estimator(location: str, policy: Policy, gamma: float) -> UserEstimator:
    """Load a user's estimator, whole episodes → ∇J [dim]. This runs the user's file.

    Raises: UsageError for a policy that is not a softmax MLP, and as `load_user_code` and `call_estimator` do.
    """
    check_policy(policy)
    function = load_user_code(location)
    if isinstance(function, type):
        raise UsageError(f"algorithm.estimator: {location} is a class", SIGNATURE.format(name=function.__name__))

    def estimate(trajectories: Trajectories) -> Tensor:
        mask = trajectories.mask
        read = torch.zeros(*mask.shape, policy.encoder.size)
        with torch.no_grad():
            read[mask] = policy.encode(trajectories.obs[:-1][mask])
        adapter = TutorialPolicy(policy)
        before = adapter.get_parameters()
        gradient = call_estimator(function, location, tutorial_rollouts(trajectories, read.numpy()), adapter, gamma)
        if not torch.equal(adapter.get_parameters(), before):
            adapter.set_parameters(before)
            raise UsageError(
                f"{location} changed the policy's parameters", "return the gradient only; pgcli updates the parameters"
            )
        return gradient

    return estimate


def check_policy(policy: Policy) -> None:
    """Raise UsageError for a policy that does not have the tutorial's methods."""
    problems: Sequence[tuple[bool, str, str]] = (
        (
            not isinstance(policy.distribution, Softmax),
            "it supports Discrete actions only",
            "leave algorithm.estimator out, or choose another environment",
        ),
        (policy.memory is not None, "a recurrent policy has no score of a single step", "use `policy.memory: none`"),
        (len(policy.images) > 0, "the tutorial's policy does not read images", "use `policy.image_network: none`"),
        (
            not is_plain(policy.network),
            "the tutorial's policy has plain layers only",
            "remove `policy.layer_norm` and `policy.residual`",
        ),
        (policy.masked, "the tutorial's policy does not support action masks", "use `policy.action_mask: none`"),
    )
    for unfit, why, hint in problems:
        if unfit:
            raise UsageError(f"algorithm.estimator: {why}", hint)
