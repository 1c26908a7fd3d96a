"""THE algorithm: a point of the grid returns × baseline × objective, from trajectories to new parameters."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, assert_never

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from pgcli.algorithm.descent import Batch, Named, Step, check_finite, descend, descend_unseen, minibatches
from pgcli.algorithm.gradients.closed_form import is_plain
from pgcli.algorithm.losses import Losses
from pgcli.algorithm.optimizers import Optimizer, scheduled, unflattened
from pgcli.config.schema import Config
from pgcli.estimators.baselines import group_baseline, leave_one_out_baseline, mean_baseline, optimal_baseline
from pgcli.estimators.objectives import explained_variance, group_standardized, standardized, step_weights
from pgcli.estimators.returns import trajectory_returns, vtrace_returns
from pgcli.estimators.trajectories import Trajectories, pad_columns
from pgcli.policies.normalizers import ReturnScale
from pgcli.policies.policy import Policy, parameters_of
from pgcli.policies.trajectory_outputs import (
    log_probs_along,
    ratios_along,
    squared_scores_along,
    steps_along,
    values_along,
)
from pgcli.policies.value_function import ValueFunction
from pgcli.records import GradientEstimate, Update
from pgcli.seeding import Purpose, derived_seed, generator
from pgcli.system.processes import Aside, Check, may_fork

Array = NDArray[Any]
Parts = Iterator[tuple[int, Batch]]
WORTH_A_COPY = 0.03  # s: what a copy of this process costs, three times


@dataclass(frozen=True)
class Estimate:
    """What trajectories say, in reward units: A = returns - baseline and returns-to-go G, [T, N], and V [T + 1, N]."""

    advantages: Tensor
    baseline: Tensor  # [T, N], or what broadcasts to it
    returns: Tensor
    values: Tensor


class PolicyGradient:
    """A policy and the rule that improves it.

    θ ← θ + α Σ w_t A_t ∇log π(a_t|s_t), with A = G - b, standardised and then weighted by γ^t if asked; over several
    epochs and minibatches with the ratios π/μ of an objective that corrects for them.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: Config) -> None:
        self.config = config
        _settle_torch()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(config.seed, Purpose.INIT))
            policy = Policy(observation_space, action_space, config.policy)
            value = ValueFunction(policy, config.value, config.policy) if config.has_value else None
        self._learn_with(policy, value)
        self._there: PolicyGradient | None = None  # where it learns, if that is another device
        columns = config.env.num_envs if config.rollout.steps else 0
        self.return_scale = ReturnScale(columns) if config.value.normalize_returns and config.has_value else None
        self.estimator: Callable[[Trajectories], Tensor] | None = None  # the user's own, from whoever may run it
        self.past = [deepcopy(self.policy) for _ in range(config.algorithm.reuse - 1)]  # newest first
        self.past_trajectories: list[Trajectories] = []  # what they collected, newest first
        self._value_seconds = 0.0  # of the last descent of the value function here

    def _learn_with(self, policy: Policy, value: ValueFunction | None) -> None:
        self.policy, self.value = policy, value
        rule, own = self.config.optimizer.name, [] if value is None else list(value.parameters())
        shared = value is not None and value.shared
        self.optimizer = Optimizer(rule, [*policy.parameters(), *(own if shared else [])])
        self.value_optimizer = Optimizer(rule, own) if own and not shared else None
        self.losses = Losses(self.config, policy, value)

    def on(self, device: torch.device) -> PolicyGradient:
        """Give a twin whose networks and optimizers are on another device, to learn there from data that is here."""
        if device.type == "cuda":
            _settle_gpu()
        twin = copy(self)
        twin._learn_with(
            deepcopy(self.policy).to(device), None if self.value is None else deepcopy(self.value).to(device)
        )
        return twin

    @property
    def reward_scale(self) -> float:
        """What rewards are divided by: 1, or the standard deviation of their discounted sum so far."""
        return 1.0 if self.return_scale is None else self.return_scale.scale

    def with_estimator(self, name: str) -> PolicyGradient:
        """Give an agent with another estimator on the same policy and value function, to look at and not to update."""
        other = copy(self)
        other.config = self.config.with_estimator(name)
        other.value = self.value if other.config.has_value else None
        other.losses = Losses(other.config, other.policy, other.value)
        return other

    # ------------------------------------------------------------------------------------------ from data to a batch

    def estimate(self, trajectories: Trajectories) -> Estimate:
        """Compute returns minus baseline. Where a trajectory is cut, V stands for what was not seen."""
        algorithm, mask = self.config.algorithm, trajectories.mask
        values = values_along(self.policy, self.value, trajectories)
        rewards = trajectories.rewards / self.reward_scale
        lam = algorithm.gae_lambda if algorithm.returns == "lambda_return" else 1.0
        ends = (trajectories.terminated, trajectories.cut)
        to_go = trajectory_returns(rewards, algorithm.gamma, lam, *ends, values[1:])
        match algorithm.returns:
            case "total":
                returns = to_go[:1].expand_as(to_go)
                peers = torch.ones_like(mask)  # a number per trajectory, over all of them
            case "reward_to_go" | "lambda_return":
                returns = to_go
                peers = mask  # a number per step, over those that run at t
            case "vtrace":
                ratios = ratios_along(self.policy, trajectories)
                to_go, returns = vtrace_returns(rewards, algorithm.gamma, algorithm.gae_lambda, *ends, values, ratios)
                peers = mask
            case _:
                assert_never(algorithm.returns)
        match algorithm.baseline:
            case "none":
                baseline = torch.zeros_like(returns)
            case "mean":
                baseline = mean_baseline(returns, peers)
            case "leave_one_out":
                baseline = leave_one_out_baseline(returns, peers)
            case "optimal":
                squares = squared_scores_along(self.policy, trajectories)
                baseline = optimal_baseline(returns[0], squares).expand_as(returns)
            case "group":
                leave_one_out = algorithm.group_mean == "leave_one_out"
                baseline = group_baseline(returns, peers, self.config.group_size, leave_one_out)
            case "value":
                baseline = values[:1] if algorithm.returns == "total" else values[:-1]
            case _:
                assert_never(algorithm.baseline)
        return Estimate(returns - baseline, baseline, to_go, values)

    def batch(self, trajectories: Trajectories, estimate: Estimate | None = None) -> tuple[Batch, dict[str, Any]]:
        """Standardise and weigh the advantages, and lay the valid steps out in a row; say what is worth a column.

        `estimate`, if it is known already or another one is wanted.
        """
        algorithm, mask = self.config.algorithm, trajectories.mask
        estimate, report = estimate or self.estimate(trajectories), dict[str, Any]()
        advantages = estimate.advantages
        largest = float(trajectories.rewards.abs().sum(0).max() / self.reward_scale + estimate.values.abs().max())
        floor = 1e-8 * largest  # no return is larger: below this it is rounding
        if algorithm.standardize == "group":
            advantages, report["zero_variance_groups"] = group_standardized(advantages, self.config.group_size, floor)
        rows, windows = steps_along(self.policy, trajectories, cut=self.config.policy.backpropagation_steps)

        def taken(x: Tensor) -> Tensor:
            return x.flatten(0, 1)[rows]

        advantages = taken(advantages)
        if algorithm.standardize == "batch":
            advantages = standardized(advantages, floor)
        weights = taken(step_weights(mask, algorithm.average))
        if algorithm.discount_weighting:
            weights = weights * algorithm.gamma ** (rows // mask.shape[1]).to(weights.dtype)
        returns, values = taken(estimate.returns), taken(estimate.values[:-1])
        if self.value is not None:
            report["explained_variance"] = explained_variance(values, returns)
        actions, behavior = taken(trajectories.actions), trajectories.behavior_log_probs
        report |= self.policy.distribution.report(actions)
        dtype = next(self.policy.network.parameters()).dtype
        real = (advantages.to(dtype), weights.to(dtype), returns.to(dtype), values.to(dtype))
        obs, log_probs = taken(trajectories.obs[:-1]), None if behavior is None else taken(behavior)
        read = self.policy.encode(obs) if is_plain(self.policy, self.value) else None
        return Batch(obs, actions, *real, log_probs, windows, read), report

    # -------------------------------------------------------------------------------------- from a batch to a gradient

    def given_step(self, batch: Batch, gradient: Tensor) -> Step:
        """Go along `gradient`, an ascent of the user's own, [dim] in the order of the policy's parameters."""
        return -gradient, lambda: {"entropy": self.policy.distribution.entropy(self.policy(batch.obs)).mean()}

    def gradient(self, trajectories: Trajectories) -> tuple[list[Tensor], Tensor, Tensor]:
        """Estimate -∇J: gradients in the order of the policy's parameters, the policy loss, the mean entropy."""
        batch, _ = self.batch(trajectories)
        with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
            gradient, terms = self.losses.step_of(batch, "policy", 0.0)
            told = terms()
        gradients = unflattened(gradient.clone(), list(self.policy.parameters()))
        return gradients, told["policy_loss"].detach(), told["entropy"].detach()

    # ------------------------------------------------------------------------------------- from gradients to parameters

    def update(
        self,
        trajectories: Trajectories,
        iteration: int = 0,
        progress: float = 0.0,
        check: Check = lambda: None,
        look: Callable[[Trajectories], Sequence[GradientEstimate]] | None = None,
        spare_core: bool = False,
    ) -> Update:
        """Learn from what `iteration` collected. `progress` in [0, 1] is the share of the budget that is used.

        `check` is called before every step of the optimizer; `look` before the first, with all that is learned from,
        and what it says is part of the answer. With a `spare_core`, what can be done at the same time is, to the same
        bytes.
        Whatever is raised leaves the state of before the update.
        Raises: Diverged if anything is not finite, and names it: before the step, which is then not taken, or after it.
        """
        _settle_torch()
        before = [(tensor, tensor.clone()) for tensor in self._memory()]
        past = self.past, self.past_trajectories
        try:
            return self._update(trajectories, iteration, progress, check, look, spare_core)
        except BaseException:
            self.past, self.past_trajectories = past
            for tensor, value in before:
                tensor.copy_(value)
            raise

    def _update(
        self,
        trajectories: Trajectories,
        iteration: int,
        progress: float,
        check: Check,
        look: Callable[[Trajectories], Sequence[GradientEstimate]] | None,
        spare_core: bool,
    ) -> Update:
        algorithm, optimizer = self.config.algorithm, self.config.optimizer
        if self._there is None and self.config.training.device != "cpu":
            self._there = self.on(torch.device(self.config.training.device))
        learner = self._there or self
        self._copy_to(learner)
        if self.return_scale is not None:
            self.return_scale.add_rewards(trajectories.rewards, trajectories.mask, algorithm.gamma)
        one_step = algorithm.update_epochs == algorithm.num_minibatches == algorithm.reuse == 1
        if algorithm.objective != "policy_gradient" and not one_step:
            actor = self.policy if self.past else learner.policy  # what is collected again, is so here
            trajectories = _acted_by(actor, trajectories)
        learned_from = pad_columns([trajectories, *self.past_trajectories])
        gradients = look(learned_from) if look else ()
        batch, report = learner.batch(learned_from)
        batch = batch.to(learner.policy.device)
        acted = deepcopy(self.policy) if self.past else None
        joint = self.value is not None and self.value_optimizer is None

        def parts(purpose: Purpose, epochs: int) -> Parts:
            def shuffler(epoch: int) -> np.random.Generator:
                return generator(self.config.seed, purpose, iteration, epoch)

            return minibatches(batch, epochs, algorithm.num_minibatches, shuffler, on_policy=algorithm.reuse == 1)

        rate = scheduled(optimizer.learning_rate, optimizer.schedule, progress)
        step_of = partial(learner.losses.step_of, of="joint" if joint else "policy", progress=progress)
        if algorithm.estimator is not None:
            assert self.estimator is not None, "the user's own code was not let in"
            gradient = self.estimator(trajectories).to(learner.policy.device)
            step_of = partial(learner.given_step, gradient=gradient)
            report["policy_loss"] = None
        with self._meanwhile(partial(learner._descend_value, parts, progress), spare_core) as value_loss:
            report |= learner._descend(
                learner.optimizer,
                parts(Purpose.MINIBATCH, algorithm.update_epochs),
                algorithm.update_epochs,
                step_of,
                rate,
                optimizer.max_grad_norm,
                algorithm.target_kl,
                check,
            )
            if self.value_optimizer is not None:
                report["value_loss"] = value_loss(check)
        learner._copy_to(self)
        if self.config.policy.normalize_obs:
            self.policy.add_statistics(trajectories.obs[:-1][trajectories.mask])
        self.check_finite()
        if acted is not None:
            self.past = [acted, *self.past[:-1]]
            self._keep(acted, trajectories)
        return self._report(report | {"learning_rate": rate, "gradients": gradients}, len(batch), progress)

    @property
    def _descend(self) -> Callable[..., dict[str, float]]:
        return partial(descend, suspects=self._suspects) if self.policy.device.type == "cpu" else descend_unseen

    def _copy_to(self, other: PolicyGradient) -> None:
        """Give another one of the same kind all that an update changes in place."""
        if other is not self:
            for mine, theirs in zip(self._memory(), other._memory(), strict=True):
                theirs.copy_(mine)

    def _descend_value(self, parts: Callable[[Purpose, int], Parts], progress: float, check: Check) -> float:
        """Descend the loss of a value function with an optimizer of its own; give that loss."""
        assert self.value_optimizer is not None
        begin, value, optimizer = time.perf_counter(), self.config.value, self.config.optimizer
        epochs = value.update_epochs or self.config.algorithm.update_epochs
        found = self._descend(
            self.value_optimizer,
            parts(Purpose.VALUE_MINIBATCH, epochs),
            epochs,
            partial(self.losses.step_of, of="value", progress=progress),
            scheduled(value.learning_rate or optimizer.learning_rate, optimizer.schedule, progress),
            optimizer.max_grad_norm,
            check=check,
        )
        self._value_seconds = time.perf_counter() - begin
        return found["value_loss"]

    @contextmanager
    def _meanwhile(self, descent: Callable[[Check], float], spare_core: bool) -> Iterator[Callable[[Check], float]]:
        """Let a descent of the value function, which nothing else waits for, begin aside if that pays; give its end."""
        if not (spare_core and self._value_seconds > WORTH_A_COPY and may_fork()):
            yield descent
            return

        def work(check: Check) -> tuple[float, list[Array]]:
            return descent(check), memory()

        def memory() -> list[Array]:
            assert self.value_optimizer is not None
            return [tensor.numpy() for tensor in self.value_optimizer.memory]

        def result(check: Check) -> float:
            if (done := other.result(check)) is None:
                return descent(check)
            for array, after in zip(memory(), done[1], strict=True):
                array[...] = after
            return done[0]

        with Aside(work) as other:
            yield result

    def check_finite(self) -> None:
        """Raise Diverged if a tensor of the state is not finite, and name it. Their sums tell that there is none."""
        if not all(math.isfinite(tensor.sum()) for tensor in self._memory()):
            check_finite(self.state_dict().items())

    def _suspects(self, optimizer: Optimizer, batch: Batch, gradient: Tensor) -> Named:
        """Name what a step is made of, causes before what follows from them."""
        yield from self.state_dict().items()
        yield from ((name, x) for name, x in vars(batch).items() if isinstance(x, Tensor))
        with torch.no_grad():
            outputs = self.policy(batch.obs, batch.windows)
            yield "log_probs", self.policy.distribution.log_probs(outputs, batch.actions)
        names = {x.data_ptr(): name for name, x in parameters_of(self.policy, self.value).items()}
        for parameter, part in zip(optimizer.parameters, unflattened(gradient, optimizer.parameters), strict=True):
            yield f"the gradient of {names[parameter.data_ptr()]}", part

    def _report(self, report: dict[str, Any], steps: int, progress: float) -> Update:
        algorithm = self.config.algorithm
        if "ratio" in report:
            squared = report["squared_ratio"]  # 0 where all ratios are too small to be squared
            report["effective_sample_size"] = steps * report["ratio"] ** 2 / squared if squared > 0 else 0.0
        if algorithm.objective == "clip":
            report["clip_range"] = self.losses.clip_range(progress)
        if algorithm.entropy_coef > 0:
            report["entropy_coef"] = self.losses.entropy_coef(progress)
        if self.return_scale is not None:
            report["return_scale"] = self.reward_scale
        return Update(**{field.name: report[field.name] for field in fields(Update) if field.name in report})

    # ------------------------------------------------------------------------------------------------------- the state

    def recall(self, iteration: int, collect: Callable[[Policy, int], Trajectories]) -> None:
        """Collect again what the next update reuses of the iterations before `iteration`, with the policies of then."""
        self.past_trajectories = []
        for age, policy in reversed(list(enumerate(self.past[:iteration], 1))):
            self._keep(policy, collect(policy, iteration - age))

    def _keep(self, policy: Policy, trajectories: Trajectories) -> None:
        """Keep what `policy` collected for the next updates."""
        if trajectories.behavior_log_probs is None:
            trajectories = _acted_by(policy, trajectories)
        self.past_trajectories = [trajectories, *self.past_trajectories][: len(self.past)]

    def state_dict(self) -> dict[str, Tensor]:
        """Give everything that an update changes, as named tensors that share the agent's memory."""
        tensors = parameters_of(self.policy, self.value)
        learned = [name for name, _ in self.policy.named_parameters()]
        own = [] if self.value is None else [name for name, _ in self.value.named_parameters()]
        if self.value_optimizer is None:
            learned += [f"value.{name}" for name in own]
        else:
            tensors |= {f"value_optimizer.{key}": x for key, x in self.value_optimizer.state(own).items()}
        tensors |= {f"optimizer.{key}": x for key, x in self.optimizer.state(learned).items()}
        if self.return_scale is not None:
            tensors |= {f"return_scale.{key}": x for key, x in self.return_scale.named_buffers()}
        for age, policy in enumerate(self.past, 1):
            tensors |= {f"past.{age}.{key}": x for key, x in parameters_of(policy, None).items()}
        return tensors

    def _memory(self) -> list[Tensor]:
        """Give what an update changes in place: few tensors, without names."""
        optimizers = [one for one in (self.optimizer, self.value_optimizer) if one is not None]
        statistics = [*self.policy.buffers(), *(() if self.return_scale is None else self.return_scale.buffers())]
        return [tensor for one in optimizers for tensor in one.memory] + statistics

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave, in place. The caller has checked names and shapes."""
        for key, value in self.state_dict().items():
            value.copy_(tensors[key])


def _settle_torch() -> None:
    """Set what torch keeps for the whole process, and an environment that uses it may have set otherwise."""
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def _settle_gpu() -> None:
    """Let the same update give the same bytes on the same model of GPU, and float32 mean float32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False


def _acted_by(policy: Policy, trajectories: Trajectories) -> Trajectories:
    """Give trajectories with the log-probabilities of the policy that collected them."""
    with torch.no_grad():
        return replace(trajectories, behavior_log_probs=log_probs_along(policy, trajectories))
