"""Results as text for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pgcli.report.display import duration, mean_and_error, short

if TYPE_CHECKING:
    from pgcli.experiment.run import Outcome


def finite(value: Any) -> Any:
    """Return a result with None in place of numbers that JSON does not have: infinities and nan."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def outcome_text(outcome: Outcome) -> str:
    """Describe how a run ended, in the lines that `pgcli train` prints."""
    last = outcome.last
    if last is None:
        return f"{outcome.path}: {outcome.reason}\n  `pgcli resume` with a larger training.iterations extends it"
    best = "" if outcome.best is None else f"; best {short(outcome.best[0])} at iteration {outcome.best[1]}"
    return (
        f"{outcome.path}: {outcome.reason}\n"
        f"  {last.iteration} iterations, {last.env_steps:,} env steps, {duration(outcome.seconds)}\n"
        f"  return {mean_and_error(last.returns)} ({last.returns.n} episodes, {last.mode}){best}"
    )
