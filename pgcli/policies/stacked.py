"""Several policies of one architecture that act in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from pgcli.config.choices import Mode
from pgcli.policies.distributions import Distribution, Gaussian
from pgcli.policies.networks import numpy_forward
from pgcli.policies.policy import FORBIDDEN, Actor, Array, Policy


def stacked_actor(
    policies: Sequence[Policy], mode: Mode, generators: Sequence[np.random.Generator], columns: int
) -> Actor:
    """Return an actor for `columns` columns of each policy, with the bits of one actor per policy.

    Column n belongs to policy n // columns, which draws its noise from its own generator.
    """
    count, encoder, masked = len(policies), policies[0].encoder, policies[0].masked
    forward = numpy_forward(*(policy.network for policy in policies))
    normalizers = [policy.normalizer for policy in policies if policy.normalizer is not None]
    normalize = [normalizer.in_numpy() for normalizer in normalizers]
    distribution = _stacked([policy.distribution for policy in policies], columns)

    def encode(obs: Array) -> Array:
        if not normalize:
            return encoder.in_numpy(obs).reshape(count, columns, encoder.size)
        numbers = encoder.in_numpy(obs, np.float64).reshape(count, columns, encoder.size)
        return np.stack([apply(x) for apply, x in zip(normalize, numbers, strict=True)])

    def respond(obs: Array, noise: Array, memory: Array) -> tuple[Array, Array]:
        outputs = forward(encode(obs)).reshape(len(obs), -1)
        if masked:
            outputs = np.where(encoder.permitted(obs), outputs, np.float32(FORBIDDEN))
        return (distribution.sample(outputs, noise) if mode == "sampled" else distribution.mode(outputs)), memory

    def noise(_: np.random.Generator, rows: int, __: int) -> Array:
        return np.concatenate([distribution.noise(generator, rows, columns) for generator in generators], 1)

    return Actor(respond, noise, distribution.for_environment)


def have_equal_bits(policies: Sequence[Policy], columns: int) -> bool:
    """Return whether one forward pass of all policies has the bits of one for each, on random numbers."""
    networks = [policy.network for policy in policies]
    shape = (len(policies), columns, policies[0].encoder.size)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    each = [numpy_forward(network)(rows) for network, rows in zip(networks, x, strict=True)]
    return np.array_equal(numpy_forward(*networks)(x), np.stack(each), equal_nan=True)


def _stacked(distributions: Sequence[Distribution], columns: int) -> Distribution:
    """Return a distribution for the columns of all policies; only a Gaussian has parameters."""
    first = distributions[0]
    if not isinstance(first, Gaussian):
        return first
    stacked = deepcopy(first)
    each = [one.log_standard_deviation.detach() for one in distributions if isinstance(one, Gaussian)]
    stacked.log_standard_deviation = nn.Parameter(torch.stack(each).repeat_interleave(columns, 0))
    return stacked
