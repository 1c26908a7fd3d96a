"""A command-line laboratory for policy gradients. `pgcli.load(run)` gives a trained agent."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, whose import would take time before `pgcli.__main__` can handle signals
if TYPE_CHECKING:
    from typing import Any

    from pgcli.experiment.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from pgcli.experiment.load import load  # imports torch: `import pgcli` stays instant

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
