"""Read YAML files and overrides into a validated Config.

Imports neither torch nor gymnasium.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgcli.config.load import (
        config_from_data,
        flat,
        load_config,
        override,
        shipped_configs,
        shipped_suites,
        to_data,
        to_yaml,
    )
    from pgcli.config.schema import Config

__all__ = [
    "Config",
    "config_from_data",
    "flat",
    "load_config",
    "override",
    "shipped_configs",
    "shipped_suites",
    "to_data",
    "to_yaml",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pgcli.config import load  # imports pydantic and yaml: `pgcli.config.choices` stays instant

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
