"""The policy π: an encoder, a normaliser, a network, a distribution; and the value function V beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.config.schema import PolicyConfig, ValueConfig
from pgcli.policies.distributions import make_distribution
from pgcli.policies.networks import Encoder, mlp, numpy_forward, orthogonal
from pgcli.policies.normalizers import Normalizer

Array = NDArray[Any]
Mode = Literal["sampled", "greedy"]


@dataclass(frozen=True)
class Actor:
    """How a policy acts: functions on numpy arrays that follow its parameters as they change."""

    act: Callable[[Array, Array], Array]  # obs [N, …], one row of noise → actions [N, …], as drawn
    noise: Callable[[np.random.Generator, int, int], Array]  # generator, rows, columns → [rows, columns, …]
    for_environment: Callable[[Array], Array]  # actions as drawn → as the environment takes them


class Policy(nn.Module):
    """A distribution over actions whose parameters an MLP computes from the observation."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: PolicyConfig,
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.encoder = Encoder(observation_space)
        sizes = [self.encoder.size, *config.hidden_sizes]
        self.distribution = make_distribution(
            action_space, config.distribution, config.initial_standard_deviation, features=sizes[-1]
        )
        self.normalizer = Normalizer(self.encoder.size) if config.normalize_obs else None
        self.network = mlp([*sizes, self.distribution.size], config.activation)
        if config.init == "orthogonal":
            orthogonal(self.network, last_gain=0.01)

    def encode(self, obs: Tensor) -> Tensor:
        """Encode and normalise observations [M, …] to [M, features]."""
        encoded = self.encoder.in_torch(obs, next(self.network.parameters()).dtype)
        return encoded if self.normalizer is None else self.normalizer(encoded)

    def forward(self, obs: Tensor) -> Tensor:
        """Compute what the distribution is made of [M, …] from observations [M, …]."""
        outputs: Tensor = self.encode(obs)
        if not self.distribution.sees_features:
            return self.network(outputs)  # type: ignore[no-any-return]
        features = self.network[:-1](outputs)
        return torch.cat((self.network[-1](features), features), 1)

    def actor(self, mode: Mode) -> Actor:
        """Give the way to act in `mode`."""
        *hidden, last = self.network
        trunk, head = numpy_forward(nn.Sequential(*hidden)), numpy_forward(nn.Sequential(last))
        encode, normalizer = self.encoder.in_numpy, self.normalizer
        sample, most_probable = self.distribution.sample, self.distribution.mode
        sees_features = self.distribution.sees_features

        def outputs(obs: Array) -> Array:
            features = trunk(encode(obs) if normalizer is None else normalizer.in_numpy(encode(obs)))
            return np.concatenate((head(features), features), 1) if sees_features else head(features)

        def act(obs: Array, noise: Array) -> Array:
            return sample(outputs(obs), noise) if mode == "sampled" else most_probable(outputs(obs))

        return Actor(act, self.distribution.noise, self.distribution.for_environment)


class ValueFunction(nn.Module):
    """V(s): a network of its own, or one more output of the policy's; on the policy's normalised observations."""

    def __init__(self, policy: Policy, config: ValueConfig, policy_config: PolicyConfig) -> None:
        super().__init__()
        hidden_sizes = policy_config.hidden_sizes if config.hidden_sizes is None else config.hidden_sizes
        self.shared = config.shared_trunk
        sizes = [hidden_sizes[-1]] if self.shared else [policy.encoder.size, *hidden_sizes]
        self.network = mlp([*sizes, 1], policy_config.activation)
        if policy_config.init == "orthogonal":
            orthogonal(self.network, last_gain=1.0)

    def forward(self, policy: Policy, obs: Tensor) -> Tensor:
        """Compute V [M] from observations [M, …], in the unit of the rewards that it learns from."""
        features = policy.encode(obs)
        values: Tensor = self.network(policy.network[:-1](features) if self.shared else features)
        return values.squeeze(1)


def parameters_of(policy: Policy, value: ValueFunction | None) -> dict[str, Tensor]:
    """Name every tensor of a policy and a value function, statistics included: `policy.network.0.weight`, …"""
    modules: dict[str, nn.Module] = {"policy": policy} | ({} if value is None else {"value": value})
    return {
        f"{name}.{key}": tensor.detach()
        for name, module in modules.items()
        for key, tensor in (*module.named_parameters(), *module.named_buffers())
    }
