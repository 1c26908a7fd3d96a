"""Stacked seeds: runs in threads of one process, whose rollouts share a simulator and a forward pass.

The threads take turns, so no other code needs to know of them. A thread that reaches a rollout waits until every other
one has reached its own. Then rollouts of one kind run as one: seed s has columns s N to (s + 1) N - 1 of each array.
Every number is the same as in a rollout of one seed. If a stacked rollout fails, each seed repeats its own alone, and
reports its own error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pgcli.policies.policy import Policy
from pgcli.policies.stacked import have_equal_bits
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.pool import LocalPool, Task
from pgcli.system.process_state import environments_turn
from pgcli.system.processes import Check
from pgcli.system.turns import turns

POLL_SECONDS = 0.2  # between two looks for a signal


@runtime_checkable
class StackableTask(Task, Protocol):
    """A task that can run with equal ones of other seeds."""

    @property
    def columns(self) -> int:
        """The number of its columns."""

    @property
    def kind(self) -> Hashable:
        """What tasks must have in common to run together."""

    def together(
        self, tasks: Sequence[Any], environments: EnvironmentCache, policies: Sequence[Policy], check: Check
    ) -> list[Any]:
        """Return the result of each of `tasks`, which include this one, with the policy of its seed."""


@dataclass(eq=False)
class _Request:
    """A task of one seed, which waits for the other seeds."""

    task: StackableTask
    environments: EnvironmentCache
    policy: Policy
    ready: threading.Condition
    results: list[Any] | None = None  # one, or none if the seed must run the task alone


class Stack:
    """Runs several functions in threads, one thread at a time, and their tasks together.

    `check` is called before every step of a stacked rollout. `notify` receives a notice if this machine cannot stack.
    """

    def __init__(self, environments: EnvironmentCache, check: Check, notify: Callable[[str], None]) -> None:
        self._environments, self._check, self._notify = environments, check, notify
        self._equal: dict[tuple[int, int], bool] = {}  # whether so many seeds with so many columns have equal bits
        self._turn = threading.Lock()
        self._changed = threading.Condition(self._turn)
        self._live = 0
        self._waiting: list[_Request] = []

    def run(self, members: Sequence[Callable[[], None]]) -> None:
        """Run all functions to their ends; they must not raise."""
        self._live = len(members)
        with turns(self._turn), self._turn:
            for member in members:
                threading.Thread(target=self._member, args=(member,), daemon=True).start()
            while self._live:
                if len(self._waiting) < self._live:
                    self._changed.wait(POLL_SECONDS)
                else:
                    self._serve()

    def result(self, task: StackableTask, environments: EnvironmentCache, policy: Policy, check: Check) -> Any:
        """Return the result of a task of the calling thread."""
        request = _Request(task, environments, policy, threading.Condition(self._turn))
        self._waiting.append(request)
        self._announce()
        request.ready.wait()
        if request.results:
            return request.results[0]
        with environments_turn():
            return task(environments, policy, check)

    def _member(self, work: Callable[[], None]) -> None:
        with self._turn:
            try:
                work()
            finally:
                self._live -= 1
                self._announce()

    def _announce(self) -> None:
        if len(self._waiting) == self._live:
            self._changed.notify()

    def _serve(self) -> None:
        """Run the waiting tasks, those of one kind together."""
        waiting, self._waiting = self._waiting, []
        kinds: dict[Hashable, list[_Request]] = {}
        for request in waiting:
            kinds.setdefault(request.task.kind, []).append(request)
        for group in kinds.values():
            self._run_together(group)
        for request in waiting:
            request.ready.notify()

    def _run_together(self, group: list[_Request]) -> None:
        tasks, policies = [request.task for request in group], [request.policy for request in group]
        try:
            with environments_turn():
                if len(group) > 1 and self._has_equal_bits(policies, tasks[0].columns):
                    results = tasks[0].together(tasks, self._environments, policies, self._check)
                    for request, result in zip(group, results, strict=True):
                        request.results = [result]
        except Exception:  # of one seed, which repeats and reports it; the others succeed alone
            return

    def _has_equal_bits(self, policies: list[Policy], columns: int) -> bool:
        key = (len(policies), columns)
        if key not in self._equal:
            equal = have_equal_bits(policies, columns)
            if not equal and all(self._equal.values()):
                self._notify(
                    f"{len(policies)} seeds do not share their rollouts: on this machine, "
                    "a forward pass of several networks differs from one pass of each"
                )
            self._equal[key] = equal
        return self._equal[key]


class StackedPool(LocalPool):
    """Runs tasks in this process, together with those of other seeds."""

    def __init__(self, environments: EnvironmentCache, stack: Stack) -> None:
        super().__init__(environments)
        self._stack = stack

    def map(self, policy: Policy, tasks: Mapping[int, Task], check: Check) -> dict[int, Any]:
        """Run every task; return the results by number."""
        results = {}
        for number, task in tasks.items():
            if isinstance(task, StackableTask):
                results[number] = self._stack.result(task, self._environments, policy, check)
            else:
                results |= super().map(policy, {number: task}, check)
        return results
