"""Check that the tools of `logging` can work, before a run writes a file."""

from __future__ import annotations

import netrc
import os
from contextlib import suppress
from pathlib import Path

from pgcli.config.schema import LoggingConfig
from pgcli.errors import UsageError
from pgcli.system.packages import require

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def check_loggers(logging: LoggingConfig) -> None:
    """Raise UsageError for a package or an API key that is missing. Imports none of the tools."""
    for name in logging.tools:
        require(name, name, f"logging.{name}")
    if logging.wandb and logging.wandb_mode == "online" and not _has_wandb_key():
        raise UsageError(
            "logging.wandb_mode: online needs an API key of Weights & Biases",
            "`wandb login` stores one; WANDB_API_KEY sets one; logging.wandb_mode=offline needs none",
        )
    uri = (logging.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "")) if logging.mlflow else ""
    if uri.startswith(_DATABASES):
        for package in ("sqlalchemy", "alembic"):
            require(package, "mlflow", "logging.mlflow with a database", f" {package}")


def _has_wandb_key() -> bool:
    """Return whether there may be an API key. Otherwise wandb would ask for one."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    home = Path(os.path.expanduser("~"))
    for file in (Path(os.environ.get("NETRC") or home / ".netrc"), home / "_netrc"):
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(str(file)).hosts:
                return True
    return False
