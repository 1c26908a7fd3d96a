"""`train --json`: a line of JSON on stdout per iteration, evaluation and end of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pgcli.errors import Diverged, Interrupted, RunDirectoryError
from pgcli.experiment.run import Failure, Request, Result
from pgcli.records import OPTIONAL, Iteration, Notice, Record, more_columns
from pgcli.report.display import Display
from pgcli.report.text import finite
from pgcli.runs.information import read_status
from pgcli.runs.tables import header_of, rows_of
from pgcli.system.streams import print_message


class JsonLines(Display):
    """Writes the columns of metrics.csv, timing.csv and evaluations.csv, with null for empty cells.

    Raises: BrokenPipeError, if the reader has ended. After another error of the output, it prints one message, and
    `failed` is true.
    """

    def __init__(self, requests: Sequence[Request], write: Callable[[str], None], quiet: bool) -> None:
        self._requests, self._output, self._quiet, self.failed = requests, write, quiet, False
        self._iterations: dict[int, int | None] = dict.fromkeys(range(len(requests)))
        self._env_steps: dict[int, int | None] = dict.fromkeys(range(len(requests)))

    def show(self, record: Record, run: int = 0) -> None:
        """Write a line; print a notice to stderr."""
        if isinstance(record, Notice):
            if not self._quiet:
                seed = f"seed {self._requests[run].config.seed}: " if len(self._requests) > 1 else ""
                print_message(f"note: {seed}{record.text}")
            return
        is_iteration = isinstance(record, Iteration)
        self._iterations[run], self._env_steps[run] = record.iteration + is_iteration, record.env_steps
        more = more_columns(list(record.info), stops=True, metrics=list(OPTIONAL))
        rows = rows_of(record, more)
        cells: dict[str, Any] = {}
        for name in ("metrics", "timing") if is_iteration else ("evaluations",):
            cells |= dict(zip(header_of(name, more.get(name, ())), rows[name][0], strict=True))
        self._write(run, "iteration" if is_iteration else "evaluation", cells)

    def end(self, results: Sequence[Result]) -> None:
        """Write the last line of each run."""
        for run, result in enumerate(results):
            if isinstance(result, Failure):
                status = "diverged" if result.exit_code == Diverged.exit_code else "failed"
                self._end(run, status, result.text.partition("\n")[0].removeprefix("error: "), result.exit_code)
            else:
                best = None if result.best is None else {"return_mean": result.best[0], "iteration": result.best[1]}
                last = None if result.last is None else result.last.returns.mean
                self._end(run, "finished", result.reason, 0, return_mean=last, best=best, seconds=result.seconds)

    def interrupted(self, interruption: Interrupted) -> None:
        """Write the last line of each run; of one that has ended before or not begun, its own state."""
        for run, request in enumerate(self._requests):
            try:
                status = read_status(request.folder / request.path)
            except RunDirectoryError:
                status = {"status": "not started"}
            code = {"finished": 0, "diverged": Diverged.exit_code}.get(status["status"], interruption.exit_code)
            self._end(run, status["status"], status.get("reason") or "", code)

    def _end(self, run: int, status: str, reason: str, code: int, **more: Any) -> None:
        counted = {"iterations": self._iterations[run], "env_steps": self._env_steps[run]}
        self._write(run, "end", {"status": status, "reason": reason, "exit_code": code} | counted | more)

    def _write(self, run: int, kind: str, cells: dict[str, Any]) -> None:
        request = self._requests[run]
        line = {"type": kind, "run": str(request.path), "seed": request.config.seed} | cells
        if self.failed:
            return
        try:
            self._output(f"{json.dumps(finite(line), allow_nan=False)}\n")
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failed = True
            print_message(f"error: output: {error.strerror}; training continues without --json")
