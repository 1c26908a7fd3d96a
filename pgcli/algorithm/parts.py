"""Parts of an agent with separate optimizers: policy, value function, or both on one trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pgcli.algorithm.losses import Losses, PartName
from pgcli.algorithm.natural_gradient import NaturalGradient
from pgcli.algorithm.optimizers import Bounds, Optimizer
from pgcli.config.schema import Config
from pgcli.policies.distributions import Gaussian
from pgcli.policies.policy import Policy
from pgcli.policies.value_function import ValueFunction
from pgcli.records import Update
from pgcli.seeding import Purpose
from pgcli.system.processes import Check


@dataclass(frozen=True)
class Part:
    """A set of parameters with its optimizer and settings."""

    name: PartName
    optimizer: Optimizer
    epochs: int
    learning_rate: float
    target_kl: float | None
    shuffle: Purpose


def parts_of(config: Config, policy: Policy, value: ValueFunction | None, losses: Losses) -> list[Part]:
    """Return the configured parts, the policy first."""
    algorithm, settings = config.algorithm, config.optimizer
    epochs, rate, is_natural = algorithm.update_epochs, settings.learning_rate, settings.name == "natural"
    first, second = list(policy.parameters()), [] if value is None else list(value.parameters())
    distribution, limits = policy.distribution, config.policy.log_std_bounds
    bounds: Bounds = []
    if limits is not None and isinstance(distribution, Gaussian):
        low, high = limits
        bounds = [(distribution.log_standard_deviation, low, high)]
    if value is not None and (value.shared or settings.clip_gradients == "together"):
        joint = Optimizer(settings.name, [*first, *second], settings, bounds)
        return [Part("joint", joint, epochs, rate, algorithm.target_kl, Purpose.MINIBATCH)]
    natural = NaturalGradient(policy, losses, settings, bounds) if is_natural else None
    own = natural or Optimizer(settings.name, first, settings, bounds)
    parts = [Part("policy", own, epochs, rate, algorithm.target_kl, Purpose.MINIBATCH)]
    if second:
        epochs, rate = config.value.update_epochs or epochs, config.value.learning_rate or rate
        of_value = Optimizer("adam" if is_natural else settings.name, second, settings)
        parts.append(Part("value", of_value, epochs, rate, None, Purpose.VALUE_MINIBATCH))
    return parts


@dataclass(frozen=True)
class Job:
    """The update of one part: changes only its parameters and its optimizer's state."""

    part: Part
    work: Callable[[Check], Update]


class Runner(Protocol):
    """Runs independent jobs and returns their results in order."""

    def __call__(self, jobs: Sequence[Job], check: Check) -> list[Update]:
        """Run the jobs; `check` is called before every step."""


def in_turn(jobs: Sequence[Job], check: Check) -> list[Update]:
    """Run one job after the other."""
    return [job.work(check) for job in jobs]
