"""The learner: runs updates on a device, with rollback and reused trajectories."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from pgcli.algorithm.divergence import CheckedGradient, check_finite
from pgcli.algorithm.gradients.user_code import load_user_estimator
from pgcli.algorithm.parts import Runner, in_turn
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.algorithm.reuse import PastIterations, with_log_probs
from pgcli.algorithm.state import copy_state, memory_of, rolled_back, state_dict
from pgcli.config.schema import Config
from pgcli.errors import Diverged
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.normalizers import ReturnScale
from pgcli.policies.policy import Policy
from pgcli.policies.value_function import ValueFunction
from pgcli.records import GradientEstimate, Update
from pgcli.seeding import Purpose, derived_seed
from pgcli.system.memory import check_memory
from pgcli.system.process_state import require, restore_process
from pgcli.system.processes import Check

PARAMETER_BYTES = 28  # float32: parameter, gradient, two moments of the optimizer; and copies for the rollback


class Measure(Protocol):
    """Measures the gradient estimates of an agent before it is updated, without changing it."""

    def __call__(
        self, agent: PolicyGradient, trajectories: Trajectories, progress: float, check: Check
    ) -> Sequence[GradientEstimate]:
        """Return a row of gradients.csv for each estimator."""


class Learner:
    """Updates an agent.

    Args: run: executes the parts of an update, in sequence or in two processes. measure: every `diagnostics.every`
        iterations.
    """

    def __init__(self, agent: PolicyGradient, run: Runner = in_turn, measure: Measure | None = None) -> None:
        self.agent, self.policy, self.config, self.run, self.measure = agent, agent.policy, agent.config, run, measure
        value, columns = self.config.value, self.config.env.num_envs if self.config.rollout.steps else 0
        self.return_scale = ReturnScale(columns) if value.normalize_returns and agent.value is not None else None
        self.past = PastIterations(agent.policy, self.config.algorithm.reuse - 1)
        device = torch.device(self.config.training.device)
        self._twin = agent if device.type == "cpu" else on_device(agent, device)

    def update(
        self, trajectories: Trajectories, iteration: int = 0, progress: float = 0.0, check: Check = lambda: None
    ) -> Update:
        """Learn from the trajectories of `iteration`.

        `progress` in [0, 1] is the used share of the budget. `check` is called before every step of an optimizer. If an
        exception is raised, the state is rolled back.
        Raises: Diverged, naming the first tensor that is not finite.
        """
        restore_process()
        try:
            with rolled_back(self.agent, self.return_scale, self.past):
                return self._update(self._twin, trajectories, iteration, progress, check, self.run)
        except Diverged as error:
            checked = copy(self.agent)
            checked.gradient = CheckedGradient(self.agent, self.state_dict)
            with rolled_back(self.agent, self.return_scale, self.past):
                self._update(checked, trajectories, iteration, progress, check, in_turn)  # raises, with the cause
                raise error
        except BaseException:
            check()  # Ctrl-C also kills the compiler: its failure then is an interrupt
            raise

    def _update(
        self,
        agent: PolicyGradient,
        trajectories: Trajectories,
        iteration: int,
        progress: float,
        check: Check,
        run: Runner,
    ) -> Update:
        algorithm, every, scale = self.config.algorithm, self.config.diagnostics.every, None
        gradients: Sequence[GradientEstimate] = ()
        copy_state(self.agent, agent)
        one_step = algorithm.update_epochs == algorithm.num_minibatches == algorithm.reuse == 1
        if algorithm.objective != "policy_gradient" and not one_step:
            actor = self.policy if self.past.policies else agent.policy  # collected again on the CPU
            trajectories = with_log_probs(actor, trajectories)
        joined = self.past.joined(trajectories)
        if self.return_scale is not None:
            self.return_scale.add_rewards(trajectories.rewards, trajectories.mask, algorithm.gamma)
            scale = self.return_scale.scale
            joined = replace(joined, rewards=joined.rewards / scale)
        if self.measure is not None and every is not None and iteration % every == 0:
            gradients = self.measure(self.agent, joined, progress, check)
        acted = deepcopy(self.policy) if self.past.policies else None
        report = agent.update(joined, iteration, progress, check, run)
        copy_state(agent, self.agent)
        if self.policy.has_statistics:
            self.policy.add_statistics(trajectories.obs[:-1][trajectories.mask])
        self.check_finite()
        if acted is not None:
            self.past.add(acted, trajectories)
        return report | Update(return_scale=scale, gradients=gradients)

    def check_finite(self) -> None:
        """Raise Diverged if a tensor of the state is not finite, and name it."""
        if not all(math.isfinite(tensor.sum()) for tensor in memory_of(self.agent, self.return_scale)):  # fast
            check_finite(self.state_dict().items())

    def state_dict(self) -> dict[str, Tensor]:
        """Return all mutable state as named tensors: views, not copies."""
        return state_dict(self.agent, self.return_scale, self.past)

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Copy a `state_dict` back in place. `check_tensors` has checked names and shapes."""
        for key, value in self.state_dict().items():
            if key in tensors:
                value.copy_(tensors[key])


def build_agent(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: Config, *, user_code: bool = False
) -> PolicyGradient:
    """Build policy, value function and optimizers, with parameters drawn from the seed.

    Args: user_code: load `algorithm.estimator`, which runs the user's file.
    Raises: UsageError for unsupported spaces, for networks larger than this machine's memory, and for errors in the
        user's file.
    """

    def networks() -> tuple[Policy, ValueFunction | None]:
        policy = Policy(observation_space, action_space, config.policy)
        return policy, ValueFunction(policy, config.value, config.policy) if config.has_value else None

    restore_process()
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):  # shapes only, no memory
            _check_size(*networks(), config)
        torch.manual_seed(derived_seed(config.seed, Purpose.INIT))
        policy, value = networks()
    location, gamma = config.algorithm.estimator, config.algorithm.gamma
    estimator = load_user_estimator(location, policy, gamma) if user_code and location is not None else None
    return PolicyGradient(policy, value, config, estimator)


def _check_size(policy: Policy, value: ValueFunction | None, config: Config) -> None:
    """Raise UsageError for networks that exceed this machine's memory during training."""
    networks = [policy] if value is None else [policy, value]
    sizes = config.policy.hidden_sizes
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    check_memory(
        PARAMETER_BYTES * count,
        f"the networks have {count:,} parameters ({policy.encoder.size:,} inputs, "
        f"{len(sizes)} hidden layers of up to {max(sizes, default=0):,} units, {policy.distribution.size:,} outputs)",
        "make policy.hidden_sizes smaller; a Discrete space of n values is n inputs, which a wrapper can reduce",
    )


def on_device(agent: PolicyGradient, device: torch.device) -> PolicyGradient:
    """Return a copy of the agent, with its own networks and optimizers, on another device."""
    if device.type == "cuda":  # updates are deterministic on the same GPU model, and float32 is not TF32
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        require("torch's deterministic algorithms", (True, True))
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False
    policy, value = deepcopy(agent.policy).to(device), None if agent.value is None else deepcopy(agent.value).to(device)
    return PolicyGradient(policy, value, agent.config, agent.user_estimator)
