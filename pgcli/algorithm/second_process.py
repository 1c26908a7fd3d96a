"""Two processes for one update: the value function learns in a fork while the policy learns here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from pgcli.algorithm.parts import Job, in_turn
from pgcli.records import Update
from pgcli.system.processes import Check, ForkedTask, may_fork

WORTH_A_FORK = 0.03  # s: three times what a fork of this process costs


class SecondProcess:
    """Runs the last job in a fork if it took long enough last time. Does not affect results."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self, jobs: Sequence[Job], check: Check) -> list[Update]:
        """Run the jobs; if the fork fails, dies or hangs, run its job in this process."""
        *first, last = jobs
        if not (first and self._seconds > WORTH_A_FORK and may_fork()):
            return [*in_turn(first, check), self._run_here(last, check)]

        def arrays() -> list[NDArray[Any]]:
            return [tensor.numpy() for tensor in last.part.optimizer.memory]

        with ForkedTask(lambda check: (last.work(check), arrays())) as fork:
            results = in_turn(first, check)
            if (done := fork.result(check)) is None:
                return [*results, self._run_here(last, check)]
        for array, after in zip(arrays(), done[1], strict=True):
            array[...] = after
        return [*results, done[0]]

    def _run_here(self, job: Job, check: Check) -> Update:
        begin = time.perf_counter()
        result = job.work(check)
        self._seconds = time.perf_counter() - begin
        return result
