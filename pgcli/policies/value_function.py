"""The value function V(s)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgcli.config.schema import PolicyConfig, ValueConfig
from pgcli.errors import UsageError
from pgcli.policies.networks import image_networks, mlp, num_features, orthogonal
from pgcli.policies.policy import Policy
from pgcli.policies.recurrent import Sequences
from pgcli.policies.user_network import user_network


class ValueFunction(nn.Module):
    """V(s): a separate network, or an output of the policy's trunk; on normalized observations.

    With a recurrent policy, a separate network also reads the policy's recurrent output, without gradient.
    """

    def __init__(self, policy: Policy, config: ValueConfig, policy_config: PolicyConfig) -> None:
        super().__init__()
        hidden_sizes = policy_config.hidden_sizes if config.hidden_sizes is None else config.hidden_sizes
        self.shared = config.shared_trunk
        trunk = hidden_sizes or policy_config.network or policy.memory or len(policy.images)
        if self.shared and not trunk:
            raise UsageError(
                "value.shared_trunk: a policy without hidden layers has no trunk to share",
                "remove shared_trunk, or set policy.hidden_sizes",
            )
        self.images = (
            nn.ModuleList()
            if self.shared
            else image_networks([image.shape for image in policy.encoder.images], policy_config)
        )
        size = policy.encoder.size + num_features(self.images)
        size += 0 if policy.memory is None else policy.memory.size
        layers: list[nn.Module] = []
        sizes = [policy.features] if self.shared else [size, *hidden_sizes]
        if policy_config.network is not None and config.hidden_sizes is None and not self.shared:
            own, features = user_network(policy_config.network, size, policy_config.network_kwargs)
            layers, sizes = [own], [features]
        options = policy_config.activation, policy_config.layer_norm, policy_config.residual
        self.network = nn.Sequential(*layers, *mlp([*sizes, 1], *options))
        if policy_config.init == "orthogonal":
            orthogonal(self.network, last_gain=1.0)

    def forward(
        self, policy: Policy, obs: Tensor, sequences: Sequences | None = None, trunk: Tensor | None = None
    ) -> Tensor:
        """Compute V [M] from observations [M, …], in the unit of the training rewards.

        `trunk` is the output of a shared trunk, if it is already known.
        """
        if self.shared:
            features = policy.trunk(obs, sequences) if trunk is None else trunk
        else:
            features = policy.read(obs, self.images)
            if policy.memory is not None:
                with torch.no_grad():
                    recurrent = policy.recur(policy.read(obs), sequences)
                features = torch.cat((features, recurrent), 1)
        values: Tensor = self.network(features)
        return values.squeeze(1)
