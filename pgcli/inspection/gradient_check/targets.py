"""What `pgcli check` checks: a config, or the user's own code.

Errors in naming it need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pgcli.config import Config, load_config, override
from pgcli.config.load import Origin, read_config
from pgcli.config.rules import CONDITIONAL
from pgcli.errors import UsageError
from pgcli.system.locations import SUFFIXES, split
from pgcli.system.streams import results_only

Target = Origin | Callable[..., Any] | None  # a config, FILE:NAME, or the user's own function or class


def is_user_code(target: str | None) -> TypeGuard[str]:
    """Return whether a target is FILE.py:NAME or FILE.ipynb:NAME rather than a config."""
    return target is not None and (target.endswith(SUFFIXES) or any(f"{suffix}:" in target for suffix in SUFFIXES))


def check_target(
    target: Target, overrides: Sequence[str], everything: bool, time_limit: float = 10.0
) -> dict[str, Any]:
    """Check an estimator or policy class, FILE:NAME or an object, or a config.

    Return the object that `pgcli check --json` prints.

    Without a target, the defaults are checked with a softmax policy; with `everything`, all cells of the grid, by
    default those of the exact gradient. A config that names the user's estimator has that one checked.

    Args: time_limit: seconds that one call of the user's code may take.
    Raises: ConfigError, UsageError, EnvironmentFailure.
    """
    config, location = Config(), None
    own = callable(target) or (isinstance(target, str) and is_user_code(target))
    if own and (everything or overrides):
        raise UsageError("--all and KEY=VALUE apply to configs only", "remove them to check your own code")
    if isinstance(target, str) and own:
        split(target)  # before torch is imported
        location = target
    elif not callable(target):
        exact = ["algorithm.average=episodes", "algorithm.discount_weighting=true"] if everything else []
        default = [*exact, "policy.distribution=softmax", *overrides]
        ignored = CONDITIONAL if everything else ()  # a key has its effect in some cells of the grid
        config = override(config, default, ignored) if target is None else read_config(target, overrides, ignored)
        location = config.algorithm.estimator
    with results_only():
        if location is not None or callable(target):
            from pgcli.inspection.gradient_check.user_estimators import check_user_code

            return check_user_code(location or target, time_limit)

        from pgcli.inspection.gradient_check.measurement import action_kind, check_config, check_grid

        kind = action_kind(config)
        return check_grid(config, kind) if everything else check_config(config, kind)


def check_age(target: str | None, overrides: Sequence[str], oldest: int, output: Path) -> Path:
    """Draw bias and variance of a config's importance weights over the age of the data.

    Return the file.

    Raises: ConfigError, UsageError, RunDirectoryError.
    """
    config = override(Config(), overrides) if target is None else load_config(target, overrides)
    with results_only():
        from pgcli.inspection.gradient_check.age import draw_age

        return draw_age(config, oldest, output)
