"""The policy π: observation → features → recurrent network → MLP → distribution."""

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
from pgcli.config.schema import PolicyConfig
from pgcli.errors import UsageError
from pgcli.policies.distributions import Distribution, Factorised, Gaussian, Softmax, make_distribution
from pgcli.policies.networks import image_networks, mlp, num_features, numpy_forward, orthogonal
from pgcli.policies.normalizers import Normalizer
from pgcli.policies.observations import Encoder
from pgcli.policies.recurrent import RecurrentNetwork, Sequences
from pgcli.policies.user_network import user_network

Array = NDArray[Any]
STATISTICS_ROWS = 256  # images per update of the normalizers
NOISE_ROWS = 64  # steps for which random numbers are drawn at once
FORBIDDEN = -1e8  # the logit of a masked action: exp(-1e8) is 0, and so is its product with the logit
_IGNORE_MASK = "`policy.action_mask: none` ignores the mask"


@dataclass(frozen=True)
class Actor:
    """A policy's acting functions, in numpy. They use its current parameters, not its statistics."""

    respond: Callable[[Array, Array, Array], tuple[Array, Array]]
    """obs [N, …], one row of noise, recurrent state [N, state_size] → actions [N, …] as drawn, state after."""
    noise: Callable[[np.random.Generator, int, int], Array]  # generator, rows, columns → [rows, columns, …]
    for_environment: Callable[[Array], Array]  # actions as drawn → actions of the environment
    state_size: int = 0
    noise_steps: int | None = None  # consecutive steps that share their noise; None: every step has its own

    def start(self, columns: int) -> Array:
        """Return the recurrent state at the start of an episode: zeros."""
        return np.zeros((columns, self.state_size), np.float32)

    def act(self, obs: Array, noise: Array) -> Array:
        """Return actions for the first observations of episodes."""
        return self.respond(obs, noise, self.start(len(obs)))[0]


class ActingState:
    """The state of acting in N episodes: the recurrent state `memory` and prepared noise.

    Noise is drawn for `rows` steps at once, or for all steps that share it.
    """

    def __init__(
        self,
        actor: Actor,
        generator: np.random.Generator,
        columns: int,
        *,
        memory: Array | None = None,
        rows: int = NOISE_ROWS,
    ) -> None:
        self.actor, self.columns = actor, columns
        self.memory = actor.start(columns) if memory is None else memory
        self._generator, self._rows, self._row = generator, actor.noise_steps or rows, 0
        self._noise: Array = np.zeros(0)

    def act(self, obs: Array) -> Array:
        """Return the actions for observations [N, …], as drawn."""
        if self._row == 0:
            self._noise = self.actor.noise(self._generator, self._rows, self.columns)
        actions, self.memory = self.actor.respond(obs, self._noise[self._row], self.memory)
        self._row = (self._row + 1) % self._rows
        return actions


class Policy(nn.Module):
    """A distribution over actions whose parameters a network computes from the observation."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: PolicyConfig
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.encoder = Encoder(observation_space, images=config.image_network != "none")
        self.images = image_networks([image.shape for image in self.encoder.images], config)
        size = self.encoder.size + num_features(self.images)
        if config.image_network in ("nature", "small") and not self.encoder.images:
            message = f"policy.image_network: {config.image_network} reads images, but {observation_space} has none"
            raise UsageError(message, "use `auto`; an image needs sides of 5 pixels or more")
        if config.memory != "none" and not size:
            raise UsageError("policy.memory: a recurrent policy needs a non-empty observation", "use `memory: none`")
        self.memory = None if config.memory == "none" else RecurrentNetwork(config.memory, size, config.memory_size)
        inputs = size if self.memory is None else self.memory.size
        # The distribution is built first: the order of initial random numbers is part of the result
        network, self.features = None, [inputs, *config.hidden_sizes][-1]
        if config.network is not None:
            network, self.features = user_network(config.network, inputs, config.network_kwargs)
        self.distribution = make_distribution(action_space, config, features=self.features)
        _check_start(self.distribution, config.log_std_bounds)
        self.normalizer: Normalizer | None = None
        if config.normalize_obs and self.encoder.size:
            self.normalizer = Normalizer(self.encoder.size, has_origin=self.encoder.has_long)
        self.image_normalizers = nn.ModuleList(
            Normalizer(image.shape[0]) if config.normalize_obs or not image.divisors else nn.Identity()
            for image in self.encoder.images
        )
        if network is None:
            sizes = [inputs, *config.hidden_sizes, self.distribution.size]
            self.network = mlp(sizes, config.activation, config.layer_norm, config.residual)
        else:
            self.network = nn.Sequential(network, nn.Linear(self.features, self.distribution.size))
        if config.init == "orthogonal":
            orthogonal(self.network, last_gain=0.01)
        chooses = isinstance(self.distribution, Softmax | Factorised)  # other actions cannot be masked
        self.masked = config.action_mask == "auto" and self.encoder.actions is not None and chooses
        if self.masked and self.encoder.actions != self.distribution.size:
            raise UsageError(
                f"the action mask has {self.encoder.actions} entries for {self.distribution.size} of {action_space}",
                _IGNORE_MASK,
            )

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.network.parameters()).device

    @property
    def has_statistics(self) -> bool:
        """Whether running statistics normalise a part of the observation."""
        return any(isinstance(module, Normalizer) for module in (self.normalizer, *self.image_normalizers))

    def encode(self, obs: Tensor) -> Tensor:
        """Encode and normalise the numbers of observations [M, …], [M, numbers]."""
        dtype = next(self.network.parameters()).dtype
        if self.normalizer is None:
            return self.encoder.in_torch(obs, dtype)
        return self.normalizer.forward(self.encoder.in_torch(obs, torch.float64, self.normalizer.origin)).to(dtype)

    def read(self, obs: Tensor, images: nn.ModuleList | None = None) -> Tensor:
        """Concatenate numbers of observations [M, …] and features of `images`."""
        numbers, networks = self.encode(obs), self.images if images is None else images
        if not len(networks):
            return numbers
        pictures = self.pictures(obs, numbers.dtype)
        return torch.cat([numbers, *(network(x) for network, x in zip(networks, pictures, strict=True))], 1)

    def pictures(self, obs: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Return the normalized images of observations, each [M, channels, height, width]."""
        pictures = []
        for image, normalizer in zip(self.encoder.images, self.image_normalizers, strict=True):
            if isinstance(normalizer, Normalizer):
                x = normalizer.of_images_(image.in_torch(obs, torch.float64 if image.is_wide else dtype)).to(dtype)
            else:
                x = image.in_torch(obs, dtype)
            pictures.append(x)
        return pictures

    def add_statistics(self, obs: Tensor) -> None:
        """Add observations [M, …] to the normalisers' statistics."""
        if self.normalizer is not None:
            origin = self.normalizer.origin
            if origin is not None and len(obs) and self.normalizer.count == 0:
                origin.copy_(self.encoder.origin_of(obs))
            self.normalizer.add(self.encoder.in_torch(obs, torch.float64, origin))
        for image, normalizer in zip(self.encoder.images, self.image_normalizers, strict=True):
            if isinstance(normalizer, Normalizer):
                for part in torch.split(obs, STATISTICS_ROWS):
                    normalizer.add(image.in_torch(part, torch.float64).movedim(1, -1).flatten(0, 2))

    def recur(self, read: Tensor, sequences: Sequences | None) -> Tensor:
        """Return the outputs of the recurrent network; its inputs if there is none."""
        if self.memory is None:
            return read
        assert sequences is not None, "a recurrent policy needs `sequences`"
        outputs: Tensor = self.memory(read, sequences)
        return outputs

    def trunk(self, obs: Tensor, sequences: Sequences | None = None) -> Tensor:
        """Compute the last hidden layer [M, features] from observations [M, …]."""
        hidden: Tensor = self.network[:-1](self.recur(self.read(obs), sequences))
        return hidden

    def forward(self, obs: Tensor, sequences: Sequences | None = None, trunk: Tensor | None = None) -> Tensor:
        """Compute the distribution's parameters [M, …] from observations or `trunk`."""
        features = self.trunk(obs, sequences) if trunk is None else trunk
        outputs: Tensor = self.network[-1](features)
        if self.masked:
            outputs = outputs.masked_fill(~self.encoder.permitted(obs), FORBIDDEN)
        return torch.cat((outputs, features), 1) if self.distribution.sees_features else outputs

    def actor(self, mode: Mode) -> Actor:
        """Return the functions that act in `mode`."""
        *hidden, last = self.network
        trunk, head = numpy_forward(nn.Sequential(*hidden)), numpy_forward(nn.Sequential(last))
        encoder, images = self.encoder, self.images
        normalize = None if self.normalizer is None else self.normalizer.in_numpy()
        moved = None if self.normalizer is None else self.normalizer.origin
        origin = None if moved is None else moved.numpy().copy()
        recur = None if self.memory is None else self.memory.in_numpy()
        sample, most_probable = self.distribution.sample, self.distribution.mode
        sees_features, masked = self.distribution.sees_features, self.masked

        @torch.no_grad()
        def image_features(obs: Array) -> list[Array]:
            pictures = self.pictures(torch.from_numpy(obs), torch.float32)
            return [network(x).numpy() for network, x in zip(images, pictures, strict=True)]

        def respond(obs: Array, noise: Array, memory: Array) -> tuple[Array, Array]:
            x = encoder.in_numpy(obs) if normalize is None else normalize(encoder.in_numpy(obs, np.float64, origin))
            if len(images):
                x = np.concatenate((x, *image_features(obs)), 1)
            if recur is not None:
                x, memory = recur(x, memory)
            features = trunk(x)
            outputs = head(features)
            if masked:
                outputs = np.where(encoder.permitted(obs), outputs, np.float32(FORBIDDEN))
            if sees_features:
                outputs = np.concatenate((outputs, features), 1)
            return (sample(outputs, noise) if mode == "sampled" else most_probable(outputs)), memory

        state_size = 0 if self.memory is None else self.memory.state_size
        noise_steps = self.distribution.noise_steps if mode == "sampled" else None
        return Actor(respond, self.distribution.noise, self.distribution.for_environment, state_size, noise_steps)


def _check_start(distribution: Distribution, bounds: list[float] | None) -> None:
    """Raise UsageError if log σ of a gaussian policy starts beyond its bounds."""
    if bounds is None or not isinstance(distribution, Gaussian):
        return
    low, high = bounds
    start = distribution.log_standard_deviation.detach()
    if start.is_meta:
        return
    first = float(start.flatten()[0])
    if not low - 1e-6 <= first <= high + 1e-6:
        raise UsageError(
            f"policy.log_std_bounds: log σ starts at {first:.4g}, which is not in [{low:g}, {high:g}]",
            "change the bounds, or policy.initial_standard_deviation",
        )


def parameters_of(policy: Policy, value: nn.Module | None) -> dict[str, Tensor]:
    """Return all tensors by name, buffers included: `policy.network.0.weight`, …"""
    modules: dict[str, nn.Module] = {"policy": policy} | ({} if value is None else {"value": value})
    return {
        f"{name}.{key}": tensor.detach()
        for name, module in modules.items()
        for key, tensor in (*module.named_parameters(), *module.named_buffers())
    }
