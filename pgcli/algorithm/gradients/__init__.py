"""Gradients of a minibatch's loss: autograd, closed form or user code."""

from __future__ import annotations

from pgcli.algorithm.gradients.autograd import Autograd
from pgcli.algorithm.gradients.closed_form import ClosedForm, has_closed_form
from pgcli.algorithm.gradients.protocol import Gradient
from pgcli.algorithm.gradients.user_code import UserEstimator, UserGradient
from pgcli.algorithm.losses import Losses
from pgcli.config.schema import Config
from pgcli.policies.policy import Policy
from pgcli.policies.value_function import ValueFunction


def make_gradient(
    config: Config,
    policy: Policy,
    value: ValueFunction | None,
    losses: Losses,
    user_estimator: UserEstimator | None = None,
) -> Gradient:
    """Choose how gradients are computed."""
    gradient: Gradient
    if has_closed_form(policy, value):
        gradient = ClosedForm(policy, value, losses)
    else:
        gradient = Autograd(policy, value, losses, compile=config.training.compile)
    if config.algorithm.estimator is None:
        return gradient
    return UserGradient(user_estimator, policy, gradient)
