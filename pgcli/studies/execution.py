"""Run a comparison: train its missing runs, then write its report."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgcli.config import Config, load_config, override, to_data
from pgcli.config.messages import shown
from pgcli.config.order import differences
from pgcli.config.schema import PolicyConfig
from pgcli.config.seeds import parse_seeds
from pgcli.errors import (
    ConfigError,
    Diverged,
    Interrupted,
    PgcliError,
    Problem,
    RunDirectoryError,
    RunInUse,
    UsageError,
    closest,
)
from pgcli.records import COLUMNS, EVALUATIONS, Record
from pgcli.runs.information import read_status
from pgcli.studies.suite import Suite, names_suite, plan_suite, read_suite
from pgcli.studies.variants import Comparison, check_different, default_folder, parse_comparison, sorted_words

if TYPE_CHECKING:
    from pgcli.experiment.run import Failure, Result


@dataclass(frozen=True)
class Plan:
    """What `pgcli compare` trains and reports: one comparison, or one for each environment of a suite."""

    comparisons: dict[str, Comparison]
    folder: Path
    suite: Suite | None = None

    @property
    def notices(self) -> list[str]:
        """The notices of all comparisons, each once."""
        return list(dict.fromkeys(notice for one in self.comparisons.values() for notice in one.notices))


def plan(words: Sequence[str], seeds: str | None, output: Path | None) -> Plan:
    """Plan what the words of `pgcli compare` name: configs and settings, folders of runs, or a suite file.

    Raises: ConfigError, UsageError, RunDirectoryError.
    """
    configs, folders, settings = sorted_words(words)
    wanted = None if seeds is None else parse_seeds(seeds)
    if any(map(names_suite, configs)):
        suite = read_suite(configs)
        folder = output or default_folder([suite.path.stem])
        return Plan(plan_suite(suite, settings, wanted, folder), folder, suite)
    if folders:
        from pgcli.studies.existing import existing_comparison  # imports numpy

        comparison = existing_comparison(folders, wanted, output)
    else:
        comparison = parse_comparison(configs, settings, wanted or parse_seeds("0-4"), output)
    return Plan({"": comparison}, comparison.folder)


def execute(
    plan: Plan, jobs: int, quiet: bool, threshold: float | None, command: list[str], y: str, stack: int | None = None
) -> tuple[dict[str, Any] | None, list[Failure]]:
    """Train and report what is planned, in its locked folder; return as `run_comparison`."""
    from pgcli.runs.files import make_folder, storage
    from pgcli.runs.lock import lock

    with storage(plan.folder):
        make_folder(plan.folder)
    with lock(plan.folder):  # two comparisons in one folder would disturb each other
        if plan.suite is None:
            return run_comparison(plan.comparisons[""], jobs, quiet, threshold, command, y, stack)
        return _run_suite(plan.suite, plan.comparisons, plan.folder, jobs, quiet, command, y, stack)


def run_comparison(
    comparison: Comparison,
    jobs: int,
    quiet: bool,
    threshold: float | None,
    command: list[str],
    y: str,
    stack: int | None = None,
) -> tuple[dict[str, Any] | None, list[Failure]]:
    """Train the incomplete runs and write the report.

    Returns: the object of `pgcli compare --json`, and the failed runs, which count in it (see `write_report`). None
    instead of the object if a run directory is unusable or in use.
    Raises: Interrupted, after saving the unfinished runs.
    """
    from pgcli.studies.comparison import check_folder, write_report  # imports numpy
    from pgcli.studies.existing import columns_of

    configs = [variant.config for variant in comparison.variants]
    column = compared_column(y, configs, columns_of(comparison) if comparison.exists else None)
    check_folder(comparison.folder)
    missing = [] if comparison.exists else [run for run in comparison.runs if not is_complete(*run)]
    failures = _train(comparison, missing, jobs, quiet, stack) if missing else []
    if any(failure.exit_code in (RunDirectoryError.exit_code, RunInUse.exit_code) for failure in failures):
        return None, failures
    result = write_report(comparison, threshold, command, column)
    return result, [one for one in failures if one.exit_code != Diverged.exit_code]  # a diverged run is a result


def _run_suite(
    suite: Suite,
    plans: dict[str, Comparison],
    folder: Path,
    jobs: int,
    quiet: bool,
    command: list[str],
    y: str,
    stack: int | None = None,
) -> tuple[dict[str, Any] | None, list[Failure]]:
    """Compare on each environment, and report the suite; return as `run_comparison`.

    Raises: EnvironmentFailure if an environment cannot be used, before any training.
    """
    from pgcli.system.streams import print_message

    for comparison in plans.values():
        if not all(is_complete(*run) for run in comparison.runs):
            _check_environments(comparison)
    results, failures = {}, []
    for number, (name, comparison) in enumerate(plans.items(), 1):
        if not quiet:
            print_message(f"{name}, {number} of {len(plans)} environments")
        result, failed = run_comparison(comparison, jobs, quiet, None, command, y, stack)
        failures += failed
        if result is None:
            return None, failures
        results[name] = result
    from pgcli.studies.suite_report import write_suite  # imports numpy

    return write_suite(folder, suite.path.stem, results, suite.scores, command), failures


def _check_environments(comparison: Comparison) -> None:
    from pgcli.environments.checks import check_environment
    from pgcli.system.streams import results_only

    with results_only():
        for variant in comparison.variants:
            check_environment(variant.config.env)


def compared_column(y: str, configs: Sequence[Config], names: Collection[str] | None = None) -> str:
    """Return the column of evaluations.csv that `-y` names.

    Args: names: the columns of existing runs; None: all that runs with these configs may have.
    Raises: ConfigError, UsageError.
    """
    column = y.removeprefix("evaluation.")
    if names is None:
        own = [column.name for column in EVALUATIONS]
        names = dict.fromkeys([*own, *(name for config in configs for name in config.info_names)])
    known = [name for name in names if not (name in COLUMNS and COLUMNS[name].metric.text)]
    if column not in known:
        close = closest(column, known)
        hint = f"did you mean `{close}`?" if close else f"`logging.info=[{column}]` adds a column from info"
        raise ConfigError([Problem("-y", f"evaluations.csv has no column of numbers `{column}`", hint)])
    if column == "discounted_return_mean" and len({config.algorithm.gamma for config in configs}) > 1:
        raise UsageError("the variants discount with different `algorithm.gamma`", "compare `-y return_mean`")
    return column


def is_complete(config: Config, path: Path) -> bool:
    """Return whether `path` has a run of `config` that finished or diverged."""
    try:
        if read_status(path)["status"] not in ("finished", "diverged"):
            return False
        found = load_config(str(path / "config.yaml"))
    except PgcliError:
        return False
    found = found.model_copy(update={"sampling": config.sampling})  # sampling does not affect results
    return not differences(to_data(found), to_data(config))


def _train(
    comparison: Comparison, missing: list[tuple[Config, Path]], jobs: int, quiet: bool, stack: int | None
) -> list[Failure]:
    from pgcli.environments.registry import spec
    from pgcli.system.streams import results_only

    with results_only():
        spec(missing[0][0].env)  # reports an unknown environment before torch is imported
        _check_deviations(comparison)

        from pgcli.experiment.run import Failure
        from pgcli.report.display import ComparisonView, make_display

        labels = {path: variant.label for variant in comparison.variants for _, path in variant.runs}
        complete = len(comparison.runs) - len(missing)
        view = ComparisonView([labels[path] for _, path in missing], complete)
        with closing(make_display(view, quiet)) as display:
            results = train_runs(missing, jobs, display.show, stack)
    return [result for result in results if isinstance(result, Failure)]


def train_runs(
    runs: Sequence[tuple[Config, Path]],
    jobs: int,
    watch: Callable[[Record, int], None],
    stack: int | None,
    until: int | None = None,
) -> list[Result]:
    """Train or resume the runs of a study, `jobs` at a time.

    Args: until: env steps after which each run pauses.
    Raises: Interrupted, after saving them; RunDirectoryError, UsageError before the first one starts.
    """
    from pgcli.experiment.jobs import run_all
    from pgcli.experiment.run import Request, check_request
    from pgcli.report.logs import logged

    command = without_password(sys.argv[1:])
    requests = [Request(config, path, command, resume=True, until=until) for config, path in runs]
    for request in requests:
        check_request(request)
    try:
        return run_all(requests, jobs, watch, logged, stack)
    except Interrupted as interruption:
        interruption.hint = "run the same command again to continue"
        raise


def without_password(command: Sequence[str]) -> list[str]:
    """Return the words of a command with `***` for the password of a URL."""
    return [re.sub(r"(://[^/:@\s]*):[^/@\s]*@", r"\1:***@", word) for word in command]


def _check_deviations(comparison: Comparison) -> None:
    """Raise UsageError if variants differ only in the deviation of discrete actions."""
    from gymnasium.spaces import Box

    from pgcli.environments.checks import check_environment

    configs, default = [variant.config for variant in comparison.variants], PolicyConfig()
    policies = [config.policy for config in configs]
    keys = ("initial_standard_deviation", "log_std_bounds")
    differing = [key for key in keys if any(getattr(one, key) != getattr(policies[0], key) for one in policies)]
    if not differing:
        return
    space = check_environment(configs[0].env).action_space
    if not isinstance(space, Box):
        words = [f"policy.{key}={shown(getattr(default, key))}" for key in differing]
        same = [override(config, words) for config in configs]
        try:
            check_different([variant.label for variant in comparison.variants], same)
        except UsageError as error:
            error.message += f": `policy.{differing[0]}` has no effect with action space {space}"
            raise
