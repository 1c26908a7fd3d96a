"""Early stopping: rules that end a run before its budget is used up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pgcli.config.schema import EvaluationConfig
from pgcli.errors import counted
from pgcli.records import Evaluation, columns

Values = Mapping[str, float]  # of one evaluation, by column of evaluations.csv


class Stopping:
    """Counts consecutive evaluations.

    Depends on evaluations only: resumed runs stop as long runs do.
    """

    def __init__(self, config: EvaluationConfig, earlier: Iterable[Values] = ()) -> None:
        self._config, self._reached, self._best, self._worse = config, 0, -math.inf, 0
        for values in earlier:
            self._count(values)

    def add(self, evaluation: Evaluation) -> str:
        """Count an evaluation.

        Return the rule that ends the run, `goal` or `patience`, or "".
        """
        cells = {column.name: column.value(evaluation) for column in columns("evaluations", list(evaluation.info))}
        self._count({name: x for name, x in cells.items() if isinstance(x, int | float)})
        if self._config.goals and self._reached >= self._config.stop_evaluations:
            return "goal"
        patience = self._config.patience
        return "patience" if patience is not None and self._worse >= patience else ""

    def _count(self, values: Values) -> None:
        goals = self._config.goals
        reached = all(values.get(name, math.nan) >= goal for name, goal in goals.items())
        self._reached = self._reached + 1 if reached else 0
        self._worse = 0 if values["return_mean"] > self._best else self._worse + 1
        self._best = max(self._best, values["return_mean"])


def stop_reason(config: EvaluationConfig, rule: str) -> str:
    """Describe why a rule ended a run: `stopped early: mean return ≥ 495 in 2 evaluations`."""
    if rule == "patience":
        return f"stopped early: no better mean return in {counted(config.patience or 0, 'evaluation')}"
    names = {"return_mean": "mean return"}
    reached = " and ".join(f"{names.get(name, name)} ≥ {goal:g}" for name, goal in config.goals.items())
    count = config.stop_evaluations
    return f"stopped early: {reached}" + (f" in {counted(count, 'evaluation')}" if count > 1 else "")
