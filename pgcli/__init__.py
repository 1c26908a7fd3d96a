"""A command-line laboratory for policy gradients.

From Python:
    run = pgcli.train("cartpole/ppo", {"seed": 3, "training.iterations": 5})
    run.metrics["return_mean"]         the columns of its tables, as numpy arrays
    pgcli.evaluate(run)                a policy on new episodes
    pgcli.compare(…)                   variants, configs or runs
    pgcli.check(my_estimator)          a gradient estimator against exact gradients
    pgcli.load(run.path)               the trained agent
"""

from __future__ import annotations

TYPE_CHECKING = False  # instead of typing's, whose import would delay the signal handlers of `pgcli.__main__`
if TYPE_CHECKING:
    from typing import Any

    from pgcli import errors
    from pgcli.api.commands import check, compare, evaluate, resume, train
    from pgcli.api.run import Run
    from pgcli.experiment.load import load

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "check", "compare", "errors", "evaluate", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        from importlib import import_module

        return import_module("pgcli.errors")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported here, because these modules import numpy or torch: `import pgcli` stays fast
    if name == "load":
        from pgcli.experiment.load import load

        return load
    if name == "Run":
        from pgcli.api.run import Run

        return Run
    from pgcli.api import commands

    return getattr(commands, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
