"""The policy π: an encoder, a network, a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.config.schema import PolicyConfig
from pgcli.errors import EnvironmentFailure
from pgcli.policies.distributions import Softmax
from pgcli.policies.networks import Encoder, mlp, numpy_forward

Array = NDArray[Any]
Mode = Literal["sampled", "greedy"]
Actor = Callable[[Array, Array], Array]


class Policy(nn.Module):
    """A softmax policy over an MLP, for Discrete actions and Box or Discrete observations."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: PolicyConfig,
    ) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Discrete):
            raise EnvironmentFailure(f"action space {action_space} is not supported; Discrete is")
        self.observation_space = observation_space
        self.encoder = Encoder(observation_space)
        self.distribution = Softmax(int(action_space.n), int(action_space.start))
        sizes = [self.encoder.size, *config.hidden_sizes, self.distribution.size]
        self.network = mlp(sizes, config.activation)

    def forward(self, obs: Tensor) -> Tensor:
        """Compute the distribution's parameters (logits [M, A]) from observations [M, …]."""
        dtype = next(self.network.parameters()).dtype
        logits: Tensor = self.network(self.encoder.in_torch(obs, dtype))
        return logits

    def actor(self, mode: Mode) -> Actor:
        """Give the function (obs [N, …], uniforms [N]) → actions [N]; it follows the parameters as they change."""
        forward, encode = numpy_forward(self.network), self.encoder.in_numpy
        sample, most_probable = self.distribution.sample, self.distribution.mode
        if mode == "greedy":
            return lambda obs, uniforms: most_probable(forward(encode(obs)))
        return lambda obs, uniforms: sample(forward(encode(obs)), uniforms)
