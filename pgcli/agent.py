"""THE algorithm: a point of the grid returns × baseline × objective, from trajectories to a step."""

from __future__ import annotations

from typing import Any, assert_never

import torch
from gymnasium import spaces
from torch import Tensor

from pgcli.config.schema import Config
from pgcli.errors import Diverged
from pgcli.estimators.baselines import group_baseline, leave_one_out_baseline, mean_baseline
from pgcli.estimators.objectives import group_standardized, policy_gradient_loss, standardized, step_weights
from pgcli.estimators.returns import reward_to_go, total_return
from pgcli.estimators.trajectories import Trajectories
from pgcli.optimizers import Optimizer, scheduled
from pgcli.policies.policy import Policy
from pgcli.randomness import Purpose, derived_seed
from pgcli.records import Update


class PolicyGradient:
    """A policy and the rule that improves it.

    θ ← θ + α Σ w_t A_t ∇log π(a_t|s_t), with A = G - b, standardised and then weighted by γ^t if asked.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: Config) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(config.seed, Purpose.INIT))
            self.policy = Policy(observation_space, action_space, config.policy)
        self.optimizer = Optimizer(config.optimizer.name, list(self.policy.parameters()))

    def advantages(self, trajectories: Trajectories) -> Tensor:
        """Compute A [T, N] in reward units: returns minus baseline."""
        algorithm = self.config.algorithm
        match algorithm.returns:
            case "total":
                returns = total_return(trajectories.rewards, algorithm.gamma, trajectories.terminated)
                peers = torch.ones_like(trajectories.mask)  # a number per trajectory, over all of them
            case "reward_to_go":
                returns = reward_to_go(trajectories.rewards, algorithm.gamma, trajectories.terminated)
                peers = trajectories.mask  # a number per step, over those that run at t
            case _:
                assert_never(algorithm.returns)
        match algorithm.baseline:
            case "none":
                advantages = returns
            case "mean":
                advantages = returns - mean_baseline(returns, peers)
            case "leave_one_out":
                advantages = returns - leave_one_out_baseline(returns, peers)
            case "group":
                advantages = returns - group_baseline(returns, peers, self.config.group_size)
            case _:
                assert_never(algorithm.baseline)
        return advantages

    def gradient(self, trajectories: Trajectories) -> tuple[list[Tensor], Tensor, Tensor]:
        """Estimate -∇J: gradients in the order of the policy's parameters, the policy loss, the mean entropy."""
        algorithm, mask = self.config.algorithm, trajectories.mask
        largest = float(trajectories.rewards.abs().sum(0).max())  # no return is larger: below 1e-8 of it is rounding
        advantages = self.advantages(trajectories)
        if algorithm.standardize == "group":
            advantages = group_standardized(advantages, self.config.group_size, floor=1e-8 * largest)
        advantages = advantages[mask]
        if algorithm.standardize == "batch":
            advantages = standardized(advantages, floor=1e-8 * largest)
        weights = step_weights(mask, algorithm.average)[mask]
        if algorithm.discount_weighting:
            t = torch.arange(len(mask), dtype=weights.dtype)[:, None].expand_as(mask)
            weights = weights * algorithm.gamma ** t[mask]
        logits = self.policy(trajectories.obs[:-1][mask])
        log_probs = self.policy.distribution.log_probs(logits, trajectories.actions[mask])
        policy_loss = policy_gradient_loss(log_probs, advantages.to(logits.dtype), weights.to(logits.dtype))
        with torch.set_grad_enabled(algorithm.entropy_coef > 0):
            entropy = self.policy.distribution.entropy(logits).mean()
        loss = policy_loss - algorithm.entropy_coef * entropy
        gradients = torch.autograd.grad(loss, list(self.policy.parameters()))
        return list(gradients), policy_loss.detach(), entropy.detach()

    def update(self, trajectories: Trajectories, progress: float) -> Update:
        """Take one step of the optimizer. `progress` in [0, 1] is the share of the budget that is used.

        Raises: Diverged if anything is not finite: before the step, which is then not taken, or after it.
        """
        optimizer = self.config.optimizer
        gradients, policy_loss, entropy = self.gradient(trajectories)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        for name, value in (("policy_loss", policy_loss), ("entropy", entropy), ("grad_norm", norm)):
            if not torch.isfinite(value):
                raise Diverged(f"{name} is {value.item()}", "lower optimizer.learning_rate, or set max_grad_norm")
        if optimizer.max_grad_norm is not None and norm > optimizer.max_grad_norm:
            gradients = [gradient * (optimizer.max_grad_norm / norm) for gradient in gradients]
        learning_rate = scheduled(optimizer.learning_rate, optimizer.schedule, progress)
        self.optimizer.step(gradients, learning_rate)
        for key, parameter in self.policy.named_parameters():
            if not torch.isfinite(parameter).all():
                raise Diverged(f"policy.{key} is not finite after the step", "lower optimizer.learning_rate")
        return Update(policy_loss.item(), entropy.item(), norm.item(), learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Give everything that an update changes, as named tensors that share the agent's memory."""
        names = [name for name, _ in self.policy.named_parameters()]
        return {f"policy.{key}": value.detach() for key, value in self.policy.named_parameters()} | {
            f"optimizer.{key}": value for key, value in self.optimizer.state(names).items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave, in place. The caller has checked names and shapes."""
        for key, value in self.state_dict().items():
            value.copy_(tensors[key])
        for step in self.optimizer.steps:  # one count, kept once for each parameter
            step.copy_(tensors["optimizer.step"])
