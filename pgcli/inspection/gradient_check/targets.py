"""What `pgcli check` checks: a config, or code of the user's own. Errors in naming it need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgcli.config import Config, load_config, override
from pgcli.system.locations import split
from pgcli.system.streams import results_only


def is_user_code(target: str) -> bool:
    """Return whether a target is FILE.py:NAME rather than a config."""
    return target.endswith(".py") or ".py:" in target


def check_user_code(location: str) -> dict[str, Any]:
    """Check the estimator or policy class FILE.py:NAME: the object that `pgcli check --json` prints.

    Raises: UsageError.
    """
    split(location)  # before torch is imported
    with results_only():
        from pgcli.inspection.gradient_check.user_estimators import judge_own

        return judge_own(location)


def check_config(location: str | None, overrides: Sequence[str], everything: bool) -> dict[str, Any]:
    """Check the estimator of a config, or every cell of its grid: the object that `pgcli check --json` prints.

    Without a config, the defaults are checked with a softmax policy; with `everything`, in the variant whose
    rewards-to-go are unbiased. A config that names the user's own estimator has that one checked.
    Raises: ConfigError, UsageError, EnvironmentFailure.
    """
    if location is None:
        exact = ["algorithm.average=episodes", "algorithm.discount_weighting=true"] if everything else []
        config = override(Config(), [*exact, "policy.distribution=softmax", *overrides])
    else:
        config = load_config(location, overrides)
    with results_only():
        if config.algorithm.estimator is not None:
            from pgcli.inspection.gradient_check.user_estimators import judge_own

            return judge_own(config.algorithm.estimator)

        from pgcli.inspection.gradient_check.measurement import actions_of, check, check_all

        kind = actions_of(config)
        return check_all(config, kind) if everything else check(config, kind)
