"""Worker pools: the interface of local, process and Ray workers, and shared helpers."""

from __future__ import annotations

import contextlib
import io
import pickle
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from pgcli.config.schema import EnvConfig, PolicyConfig
from pgcli.environments.single import make_environment
from pgcli.errors import PgcliError
from pgcli.policies.policy import Policy
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.system.memory import memory_error
from pgcli.system.process_state import environments_turn, restore_process
from pgcli.system.processes import Check

HANG_SECONDS = 60.0  # without a step, before a worker counts as hung
TRIES = 3  # per chunk


class Task(Protocol):
    """Work on one chunk, with a worker's own environments and its copy of the policy."""

    def __call__(self, environments: EnvironmentCache, policy: Policy, check: Check) -> Any:
        """Return the result; `check` is called before every step."""


class WorkerPool(Protocol):
    """Up to `count` workers, started at their first task. With 0, this process runs all tasks."""

    count: int

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run task n on worker n mod `count`, in the order of n; return the results by n.

        If a worker dies or hangs, its tasks run again in a new worker. `check` is called while waiting; an exception
        in it ends the busy workers. If several tasks fail, the error of the smallest n is raised.
        """

    def close(self) -> None:
        """Close the workers' environments and end the workers."""


class LocalPool:
    """Runs tasks one after the other in this process."""

    count = 0

    def __init__(self, environments: EnvironmentCache) -> None:
        self._environments = environments

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run every task; return the results by number."""
        results = {}
        for number, task in tasks.items():
            with environments_turn():
                results[number] = task(self._environments, policy, check)
        return results

    def close(self) -> None:
        """Do nothing: the environments belong to the caller."""


def worker_count(cores: int, chunks: int, vectorized: bool) -> int:
    """Return the number of workers for `workers: auto`: min(cores, chunks), and 0 instead of 1.

    A vector form gets 0: it collects a chunk faster than a process can send one.
    """
    count = min(cores, chunks)
    return 0 if vectorized or count <= 1 else count


def build_policy(env: EnvConfig, config: PolicyConfig) -> Policy:
    """Build a worker's copy of the policy; the parameters are set later."""
    with contextlib.closing(make_environment(env)) as one:
        restore_process()
        return Policy(one.observation_space, one.action_space, config)


def closing_error(environments: EnvironmentCache) -> Exception | None:
    """Close a worker's environments; return the error, if any."""
    try:
        environments.close()
    except BaseException as error:
        return sendable(error)
    return None


def sendable(error: BaseException) -> Exception:
    """Return pgcli's errors unchanged, and others as a RuntimeError with the traceback as text."""
    known = error if isinstance(error, PgcliError) else memory_error(error)
    if known is not None:
        return known
    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))


def pickled_apart(result: object) -> tuple[bytes, list[memoryview]]:
    """Pickle a result; return the bytes of its tensors and arrays separately."""
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, 5, buffer_callback=buffers.append).dump(result)
    return stream.getvalue(), [buffer.raw() for buffer in buffers]


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes `buffer_callback` receives."""

    def reducer_override(self, value: object) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented
