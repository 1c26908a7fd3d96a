"""`pgcli doctor`."""

from __future__ import annotations

from pgcli.cli.arguments import AsJson, Config, Overrides, check_environment
from pgcli.cli.output import print_report


def doctor(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Test a config and its environment before a long run, and estimate its time. Writes no files."""
    from pgcli.config import load_config
    from pgcli.system.streams import results_only

    loaded = load_config(config, overrides or [])
    check_environment(loaded.env)

    with results_only():
        from pgcli.inspection.doctor import diagnose, diagnosis_text

        result = diagnose(loaded)
    print_report(result, as_json, diagnosis_text)
