"""A command-line laboratory for policy gradients.

`pgcli.load(run)` loads a trained agent.
"""

from __future__ import annotations

TYPE_CHECKING = False  # instead of typing's, whose import would delay the signal handlers of `pgcli.__main__`
if TYPE_CHECKING:
    from typing import Any

    from pgcli.experiment.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from pgcli.experiment.load import load  # here, because it imports torch: `import pgcli` stays fast

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
