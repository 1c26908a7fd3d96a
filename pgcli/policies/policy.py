"""The policy π: what it reads, what it remembers, a network, a distribution; and the value function V beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli.config.choices import Mode
from pgcli.config.schema import PolicyConfig, ValueConfig
from pgcli.errors import UsageError
from pgcli.policies.distributions import Factorised, Softmax, make_distribution
from pgcli.policies.networks import image_network, mlp, numpy_forward, orthogonal, width_of
from pgcli.policies.normalizers import Normalizer
from pgcli.policies.observations import Encoder
from pgcli.policies.recurrent import Memory, Windows

Array = NDArray[Any]
STATISTICS_ROWS = 256  # images whose pixels are taken in at a time
FORBIDDEN = -1e8  # the logit of an action that is not permitted: exp of it is 0, and 0 times it too


@dataclass(frozen=True)
class Actor:
    """How a policy acts: functions on numpy arrays that follow its parameters as they change, its statistics apart."""

    respond: Callable[[Array, Array, Array], tuple[Array, Array]]
    """obs [N, …], one row of noise, memory [N, state_size] → actions [N, …], as drawn, and memory after."""
    noise: Callable[[np.random.Generator, int, int], Array]  # generator, rows, columns → [rows, columns, …]
    for_environment: Callable[[Array], Array]  # actions as drawn → as the environment takes them
    state_size: int = 0

    def start(self, columns: int) -> Array:
        """Give what is remembered at the start of an episode: nothing."""
        return np.zeros((columns, self.state_size), np.float32)

    def act(self, obs: Array, noise: Array) -> Array:
        """Act at the start of an episode."""
        return self.respond(obs, noise, self.start(len(obs)))[0]


class Policy(nn.Module):
    """A distribution over actions whose parameters a network computes from the observation.

    obs → numbers, normalised, beside what a convolutional network sees in each image → memory → MLP → distribution.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: PolicyConfig,
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.encoder = Encoder(observation_space, images=config.image_network != "none")
        self.images = image_networks(self.encoder, config)
        size = self.encoder.size + width_of(self.images)
        if config.image_network in ("nature", "small") and not self.encoder.images:
            message = f"policy.image_network: {config.image_network} reads images, and {observation_space} has none"
            raise UsageError(message, "leave it out; sides of 5 pixels or more make an image")
        if config.memory != "none" and not size:
            raise UsageError(
                "policy.memory: there is nothing to remember, for nothing is observed", "use `memory: none`"
            )
        self.memory = None if config.memory == "none" else Memory(config.memory, size, config.memory_size)
        sizes = [size if self.memory is None else self.memory.size, *config.hidden_sizes]
        self.features = sizes[-1]
        self.distribution = make_distribution(
            action_space, config.distribution, config.initial_standard_deviation, features=sizes[-1]
        )
        self.normalizer = Normalizer(self.encoder.size) if config.normalize_obs and self.encoder.size else None
        channels = [image[0] for image in self.encoder.images if config.normalize_obs]
        self.image_normalizers = nn.ModuleList(map(Normalizer, channels))
        self.network = mlp([*sizes, self.distribution.size], config.activation)
        if config.init == "orthogonal":
            orthogonal(self.network, last_gain=0.01)
        self.masked = config.action_mask == "auto" and self.encoder.actions is not None
        if self.masked and not isinstance(self.distribution, Softmax | Factorised):
            raise UsageError(f"the actions are masked, and {action_space} is not a choice", _IGNORE_MASK)
        if self.masked and self.encoder.actions != self.distribution.size:
            raise UsageError(
                f"the action mask has {self.encoder.actions} entries, and {action_space} {self.distribution.size}",
                _IGNORE_MASK,
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.network.parameters()).device

    def encode(self, obs: Tensor) -> Tensor:
        """Encode and normalise the numbers of observations [M, …], [M, numbers]."""
        encoded = self.encoder.in_torch(obs, next(self.network.parameters()).dtype)
        return encoded if self.normalizer is None else self.normalizer(encoded)

    def read(self, obs: Tensor, images: nn.ModuleList | None = None) -> Tensor:
        """Put the numbers of observations [M, …] beside what `images`, or the policy's own networks, see in them."""
        numbers, networks = self.encode(obs), self.images if images is None else images
        if not len(networks):
            return numbers
        pictures = self.pictures(obs, numbers.dtype)
        return torch.cat([numbers, *(see(x) for see, x in zip(networks, pictures, strict=True))], 1)

    def pictures(self, obs: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Give the images of observations [M, …], each [M, channels, height, width], normalised by channel."""
        pictures = self.encoder.pictures(obs, dtype)
        if not len(self.image_normalizers):
            return pictures
        scaled = []
        for normalizer, x in zip(self.image_normalizers, pictures, strict=True):
            assert isinstance(normalizer, Normalizer)
            scaled.append(normalizer.of_images_(x))
        return scaled

    def add_statistics(self, obs: Tensor) -> None:
        """Take observations [M, …] into the normalisers."""
        if self.normalizer is not None:
            self.normalizer.add(self.encoder.in_torch(obs, torch.float64))
        for part in torch.split(obs, STATISTICS_ROWS) if len(self.image_normalizers) else ():
            for normalizer, x in zip(self.image_normalizers, self.encoder.pictures(part, torch.float64), strict=True):
                assert isinstance(normalizer, Normalizer)
                normalizer.add(x.movedim(1, -1).flatten(0, 2))

    def remember(self, read: Tensor, windows: Windows | None) -> Tensor:
        """Add what a policy with memory knows of the episode so far; without memory, only what it reads now."""
        if self.memory is None:
            return read
        assert windows is not None, "a policy with memory needs to know which steps follow each other"
        outputs: Tensor = self.memory(read, windows)
        return outputs

    def trunk(self, obs: Tensor, windows: Windows | None = None) -> Tensor:
        """Compute the last hidden layer [M, features] from observations [M, …]."""
        hidden: Tensor = self.network[:-1](self.remember(self.read(obs), windows))
        return hidden

    def forward(self, obs: Tensor, windows: Windows | None = None, trunk: Tensor | None = None) -> Tensor:
        """Compute what the distribution is made of [M, …] from observations [M, …]; `trunk`, if it is known already."""
        features = self.trunk(obs, windows) if trunk is None else trunk
        outputs: Tensor = self.network[-1](features)
        if self.masked:
            outputs = outputs.masked_fill(~self.encoder.permitted(obs), FORBIDDEN)
        return torch.cat((outputs, features), 1) if self.distribution.sees_features else outputs

    def actor(self, mode: Mode) -> Actor:
        """Give the way to act in `mode`."""
        *hidden, last = self.network
        trunk, head = numpy_forward(nn.Sequential(*hidden)), numpy_forward(nn.Sequential(last))
        encoder, images = self.encoder, self.images
        normalize = None if self.normalizer is None else self.normalizer.in_numpy()
        remember = None if self.memory is None else self.memory.in_numpy()
        sample, most_probable = self.distribution.sample, self.distribution.mode
        sees_features, masked = self.distribution.sees_features, self.masked

        @torch.no_grad()
        def seen(obs: Array) -> list[Array]:
            pictures = self.pictures(torch.from_numpy(obs), torch.float32)
            return [see(x).numpy() for see, x in zip(images, pictures, strict=True)]

        def respond(obs: Array, noise: Array, memory: Array) -> tuple[Array, Array]:
            x = encoder.in_numpy(obs)
            if normalize is not None:
                x = normalize(x)
            if len(images):
                x = np.concatenate((x, *seen(obs)), 1)
            if remember is not None:
                x, memory = remember(x, memory)
            features = trunk(x)
            outputs = head(features)
            if masked:
                outputs = np.where(encoder.permitted(obs), outputs, np.float32(FORBIDDEN))
            if sees_features:
                outputs = np.concatenate((outputs, features), 1)
            return (sample(outputs, noise) if mode == "sampled" else most_probable(outputs)), memory

        state_size = 0 if self.memory is None else self.memory.state_size
        return Actor(respond, self.distribution.noise, self.distribution.for_environment, state_size)


_IGNORE_MASK = "`policy.action_mask: none` ignores the mask"


def image_networks(encoder: Encoder, config: PolicyConfig) -> nn.ModuleList:
    """Build one convolutional network for each image of an observation."""
    kind = config.image_network
    networks = [image_network(shape, kind) for shape in encoder.images if kind != "none"]
    if config.init == "orthogonal":
        for network in networks:
            orthogonal(network, last_gain=2**0.5)
    return nn.ModuleList(networks)


class ValueFunction(nn.Module):
    """V(s): a network of its own, or one more output of the policy's; on the policy's normalised observations.

    Beside a policy with memory, a network of its own is also given what the policy remembers, as a constant.
    """

    def __init__(self, policy: Policy, config: ValueConfig, policy_config: PolicyConfig) -> None:
        super().__init__()
        hidden_sizes = policy_config.hidden_sizes if config.hidden_sizes is None else config.hidden_sizes
        self.shared = config.shared_trunk
        if self.shared and not (hidden_sizes or policy.memory or len(policy.images)):
            raise UsageError(
                "value.shared_trunk: a policy without hidden layers has no trunk to share",
                "leave shared_trunk out, or give the policy hidden layers",
            )
        self.images = nn.ModuleList() if self.shared else image_networks(policy.encoder, policy_config)
        size = policy.encoder.size + width_of(self.images)
        size += 0 if policy.memory is None else policy.memory.size
        sizes = [policy.features] if self.shared else [size, *hidden_sizes]
        self.network = mlp([*sizes, 1], policy_config.activation)
        if policy_config.init == "orthogonal":
            orthogonal(self.network, last_gain=1.0)

    def forward(
        self, policy: Policy, obs: Tensor, windows: Windows | None = None, trunk: Tensor | None = None
    ) -> Tensor:
        """Compute V [M] from observations [M, …], in the unit of the rewards that it learns from.

        `trunk` is what the policy's last hidden layer gives, if it is known already and shared.
        """
        if self.shared:
            features = policy.trunk(obs, windows) if trunk is None else trunk
        else:
            features = policy.read(obs, self.images)
            if policy.memory is not None:
                with torch.no_grad():
                    remembered = policy.remember(policy.read(obs), windows)
                features = torch.cat((features, remembered), 1)
        values: Tensor = self.network(features)
        return values.squeeze(1)


def parameters_of(policy: Policy, value: ValueFunction | None) -> dict[str, Tensor]:
    """Name every tensor of a policy and a value function, statistics included: `policy.network.0.weight`, …"""
    modules: dict[str, nn.Module] = {"policy": policy} | ({} if value is None else {"value": value})
    return {
        f"{name}.{key}": tensor.detach()
        for name, module in modules.items()
        for key, tensor in (*module.named_parameters(), *module.named_buffers())
    }
