"""Plan the runs that a user requests: configs, names, directories.

Reports errors in a config before it imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgcli.config import override
from pgcli.config.load import Origin, read_config
from pgcli.config.names import with_run_name
from pgcli.config.seeds import parse_seeds
from pgcli.errors import UsageError
from pgcli.runs.information import Labels, recorded_start, stored_config

if TYPE_CHECKING:
    from pgcli.experiment.run import Request


def plan_runs(
    config: Origin,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    seeds: str | Collection[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    start: Path | None = None,
    labels: Labels | None = None,
    command: Sequence[str] = (),
) -> list[Request]:
    """Return a request for each seed, all of them checked before the first run starts.

    `run_dir` is by default `runs/NAME/seed-SEED`, where NAME lists the overrides and the start; `seeds` are those of
    `--seeds`, or that of the config. `start` is a run directory or a checkpoint, whose weights and observation
    normalizer the runs start from.
    Raises: ConfigError, UsageError, EnvironmentFailure, RunDirectoryError.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite cannot be combined")
    base = read_config(config, overrides)
    if run_dir is None:
        base = with_run_name(base, config, overrides, start)
    if seeds is not None and any(text.startswith("seed=") for text in overrides):
        raise UsageError("--seeds and seed=… cannot be combined")
    numbers = parse_seeds(seeds) if isinstance(seeds, str) else seeds
    configs = [base] if numbers is None else [override(base, [f"seed={seed}"]) for seed in numbers]

    from pgcli.environments.registry import spec

    spec(base.env)  # reports an unknown environment before torch is imported

    from pgcli.experiment.run import Request, check_request, check_start
    from pgcli.experiment.warm_start import starts_of

    home = run_dir or Path("runs") / base.name
    paths = [home if run_dir and seeds is None else home / f"seed-{one.seed}" for one in configs]
    starts = [None for _ in paths] if start is None else starts_of(paths, start, resume=resume)
    requests = [
        Request(one, path, list(command), resume, overwrite, labels=labels, warm_start=source)
        for one, path, source in zip(configs, paths, starts, strict=True)
    ]
    for request in requests:
        check_request(request)
    check_start(requests)
    return requests


def plan_resume(
    run_dir: Path, overrides: Sequence[str] = (), which: str = "latest", command: Sequence[str] = ()
) -> Request:
    """Return the request that continues the run in `run_dir`. Raises: RunDirectoryError, ConfigError."""
    config = override(stored_config(run_dir), overrides)

    from pgcli.experiment.run import Request

    return Request(config, run_dir, list(command), resume=True, which=which, warm_start=recorded_start(run_dir))
