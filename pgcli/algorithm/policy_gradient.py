"""The algorithm: trajectories → advantages → batch → gradient ascent.

for each epoch, for each minibatch:   θ ← θ + α Σ w_t A_t ∇log π(a_t|s_t),   A = G - b
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from pgcli.algorithm.batch import Batch, Estimate, flatten, minibatches
from pgcli.algorithm.gradients import make_gradient
from pgcli.algorithm.gradients.protocol import Gradient
from pgcli.algorithm.gradients.user_code import UserEstimator
from pgcli.algorithm.losses import EpochMeans, Losses, Terms, check_terms
from pgcli.algorithm.optimizers import clip_grad_norm_, scheduled, unflattened
from pgcli.algorithm.parts import Job, Part, Runner, in_turn, parts_of
from pgcli.config.schema import Config
from pgcli.estimators.baselines import group_baseline, leave_one_out_baseline, mean_baseline, optimal_baseline
from pgcli.estimators.returns import trajectory_returns, vtrace_returns
from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import squared_score_norms, trajectory_ratios, trajectory_values
from pgcli.policies.value_function import ValueFunction
from pgcli.records import Update
from pgcli.seeding import generator
from pgcli.system.processes import Check


class PolicyGradient:
    """A policy, an optional value function, and their update rule."""

    def __init__(
        self, policy: Policy, value: ValueFunction | None, config: Config, user_estimator: UserEstimator | None = None
    ) -> None:
        self.config, self.policy, self.value, self.user_estimator = config, policy, value, user_estimator
        self.losses = Losses(config.algorithm, config.value.clip_range)
        self.parts = parts_of(config, policy, value, self.losses)  # each with its own optimizer

    @cached_property
    def gradient(self) -> Gradient:
        """How gradients of the losses are computed."""
        return make_gradient(self.config, self.policy, self.value, self.losses, self.user_estimator)

    def estimate(self, trajectories: Trajectories) -> Estimate:
        """Compute A = G - b, [T, N]. Cut trajectories are bootstrapped with V."""
        values = trajectory_values(self.policy, self.value, trajectories)  # [T + 1, N]; zeros without a value function
        to_go, returns = self._returns(trajectories, values)
        baseline = self._baseline(trajectories, returns, values)
        return Estimate(returns - baseline, baseline, to_go, values)

    def _returns(self, trajectories: Trajectories, values: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the targets of V and the returns of the actions, both [T, N]."""
        algorithm, rewards = self.config.algorithm, trajectories.rewards
        ends = trajectories.terminated, trajectories.cut
        match algorithm.returns:
            case "total":
                to_go = trajectory_returns(rewards, algorithm.gamma, 1.0, *ends, values[1:])
                return to_go, to_go[:1].expand_as(to_go)
            case "reward_to_go":
                to_go = trajectory_returns(rewards, algorithm.gamma, 1.0, *ends, values[1:])
                return to_go, to_go
            case "lambda_return":
                to_go = trajectory_returns(rewards, algorithm.gamma, algorithm.gae_lambda, *ends, values[1:])
                return to_go, to_go
            case "vtrace":
                ratios = trajectory_ratios(self.policy, trajectories)
                return vtrace_returns(rewards, algorithm.gamma, algorithm.gae_lambda, *ends, values, ratios)
            case _:
                assert_never(algorithm.returns)

    def _baseline(self, trajectories: Trajectories, returns: Tensor, values: Tensor) -> Tensor:
        """Compute b, broadcastable to [T, N]; for total returns over all trajectories, else per step t."""
        algorithm, total = self.config.algorithm, self.config.algorithm.returns == "total"
        peers = torch.ones_like(trajectories.mask) if total else trajectories.mask
        match algorithm.baseline:
            case "none":
                return torch.zeros_like(returns)
            case "mean":
                return mean_baseline(returns, peers)
            case "leave_one_out":
                return leave_one_out_baseline(returns, peers)
            case "optimal":
                return optimal_baseline(returns[0], squared_score_norms(self.policy, trajectories)).expand_as(returns)
            case "group":
                return group_baseline(returns, peers, self.config.group_size, algorithm.group_mean == "leave_one_out")
            case "value":
                return values[:1] if total else values[:-1]
            case _:
                assert_never(algorithm.baseline)

    def batch(self, trajectories: Trajectories, estimate: Estimate | None = None) -> tuple[Batch, Update]:
        """Return the steps to learn from, by the own or another estimate, and the metrics so far."""
        estimate = estimate or self.estimate(trajectories)
        return flatten(self.config, self.policy, self.gradient.inputs, trajectories, estimate)

    def update(
        self, trajectories: Trajectories, iteration: int, progress: float, check: Check, run: Runner = in_turn
    ) -> Update:
        """Learn from trajectories: θ ← θ + α g over epochs and minibatches, for each part."""
        batch, report = self.batch(trajectories)  # [M] steps: obs, actions, A, w, G, V
        jobs = [Job(part, partial(self.improve, part, batch, iteration, progress)) for part in self.parts]
        for result in run(jobs, check):
            report |= result
        return report

    @torch.no_grad()
    @np.errstate(over="ignore", invalid="ignore")  # `check_terms` reports non-finite numbers
    def improve(self, part: Part, batch: Batch, iteration: int, progress: float, check: Check) -> Update:
        """Take one gradient step per minibatch and epoch; stop if the KL exceeds `target_kl`."""
        optimizer, count = self.config.optimizer, self.config.algorithm.num_minibatches
        rate, means, norms = scheduled(part.learning_rate, optimizer.schedule, progress), EpochMeans(), list[Tensor]()
        shuffler = partial(generator, self.config.seed, part.shuffle, iteration)
        for epoch, minibatch in minibatches(batch, part.epochs, count, shuffler, self.config.algorithm.reuse == 1):
            check()
            gradient, terms = self.gradient(minibatch, part.name, progress)
            if part.target_kl is not None and norms and terms()["approx_kl"] > part.target_kl:
                break
            norms.append(clip_grad_norm_(gradient, optimizer.max_grad_norm))
            if epoch == part.epochs - 1 or part.target_kl is not None:
                means.add(epoch, terms() | {"grad_norm": norms[-1]}, minibatch.share)
            step = part.optimizer.step(gradient, rate, minibatch, progress)
        found = means.read()
        check_terms(found, norms)
        if part.name == "value":
            return Update(value_loss=found["value_loss"])
        self.losses.adapt_kl_coef(found.get("approx_kl"))
        return self.losses.describe(found, means.epoch + 1, batch, rate, progress) | step


def estimate_gradient(agent: PolicyGradient, trajectories: Trajectories) -> tuple[list[Tensor], Terms]:
    """Return -∇J in the order of the policy's parameters, and the loss terms; take no step."""
    batch, _ = agent.batch(trajectories)
    with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
        gradient, terms = agent.gradient(batch, "policy", 0.0)
        return unflattened(gradient.clone(), list(agent.policy.parameters())), terms()
