"""Those who do the jobs of a rollout: what worker processes and actors on a cluster have in common."""

from __future__ import annotations

import contextlib
import io
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pgcli.config.schema import EnvConfig, PolicyConfig
from pgcli.environments.single import make_environment
from pgcli.errors import PgcliError
from pgcli.policies.policy import Policy
from pgcli.system.processes import Check

HANG_SECONDS = 60.0  # without a step
TRIES = 3  # of the same chunk


class Job(Protocol):
    """What one worker does for one chunk."""

    def __call__(self, kept: dict[Any, Any], policy: Policy, check: Check) -> Any:
        """Do it; `kept` is the worker's from one job to the next, and what is in it is closed at the end."""


class Crew(Protocol):
    """Up to `count` workers, of whom one begins when there is a first job for it."""

    count: int

    def of(self, number: int) -> object:
        """Give the worker that does job `number`: another object if it was replaced."""

    def run(self, policy: Policy, count: int, job: Callable[[int, object], Job], check: Check) -> list[Any]:
        """Do jobs 0, …, count - 1, job n at worker n mod `self.count`; give their results in that order.

        `job(n, worker)` is asked for when it is sent: to a replaced worker once more. `check` is called while waiting;
        what it raises ends the workers that are busy. Of several jobs that fail, the first one's error is raised.
        """

    def close(self) -> None:
        """Let the workers close their environments, and end them."""


def automatic(cores: int, chunks: int, native: bool) -> int:
    """Choose how many workers collect: a core and a chunk at least for each, none where there would be only one.

    None either for an environment in its vector form: a chunk of it is collected faster than it is moved.
    """
    count = min(cores, chunks)
    return 0 if native or count <= 1 else count


def build_policy(env: EnvConfig, config: PolicyConfig) -> Policy:
    """Build a worker's copy of the policy, whose parameters are yet to come."""
    with contextlib.closing(make_environment(env)) as one:
        return Policy(one.observation_space, one.action_space, config)


def close_all(kept: dict[Any, Any]) -> Exception | None:
    """Close what a worker has kept; give what was wrong with that."""
    failure: Exception | None = None
    for thing in kept.values():
        try:
            thing.close()
        except BaseException as error:
            failure = failure or sendable(error)
    return failure


def sendable(error: BaseException) -> Exception:
    """Let pgcli's own errors be as they are, and tell others by their traceback."""
    if isinstance(error, PgcliError):
        return error
    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))


def pickled(results: object) -> bytes:
    """Pickle results, whose tensors are as quick as arrays."""
    stream = io.BytesIO()
    _Pickler(stream, 5).dump(results)
    return stream.getvalue()


def taken_apart(results: object) -> tuple[bytes, list[memoryview]]:
    """Pickle results, and give the bytes of their arrays apart."""
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, 5, buffer_callback=buffers.append).dump(results)
    return stream.getvalue(), [buffer.raw() for buffer in buffers]


class _Pickler(pickle.Pickler):
    """Lets the bytes of tensors, as those of arrays, go their own way."""

    def reducer_override(self, value: object) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented
