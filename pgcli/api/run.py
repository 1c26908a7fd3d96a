"""A run directory as an object."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgcli.api.results import Rows, escaped
from pgcli.api.session import session
from pgcli.config import Config, flat, to_data
from pgcli.config.names import as_text
from pgcli.errors import PgcliError, RunDirectoryError, counted
from pgcli.report.text import Finding
from pgcli.runs.directory import find_checkpoint, is_run
from pgcli.runs.files import storage
from pgcli.runs.information import config_of_run, find_run_hint, read_information, read_status
from pgcli.runs.tables import read_table

if TYPE_CHECKING:
    from pgcli.experiment.load import Agent


class Run:
    """A run directory. Files are read when an attribute is used, so a running run shows its latest rows.

    `run.metrics["return_mean"]`, `run.evaluations[…]`, `run.episodes[…]`, `run.timing[…]` and `run.gradients[…]` are
    columns as numpy arrays.
    """

    def __init__(self, path: str | Path, *, notices: Sequence[str] = (), trusted: bool = False) -> None:
        """Open the run in `path`.

        Args: notices: those of the call that trained it; trusted: its own modules were imported already.
        Raises: RunDirectoryError if there is no run.
        """
        self.path = Path(path)
        self.notices = list(notices)
        self.trusted = trusted
        with storage(self.path):
            if not is_run(self.path):
                raise RunDirectoryError(f"{path}: not a run directory", find_run_hint(self.path))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Config:
        """The config of the run: `run.config.algorithm.gamma`."""
        return config_of_run(self.path)

    @property
    def status(self) -> str:
        """The state in status.json: running, finished, interrupted, diverged or failed."""
        return str(read_status(self.path)["status"])

    @property
    def information(self) -> dict[str, Any]:
        """The content of run.json: versions, command, resumes, tags, note."""
        return read_information(self.path)

    @property
    def metrics(self) -> Rows:
        """One row per iteration."""
        return self._rows("metrics")

    @property
    def evaluations(self) -> Rows:
        """One row per evaluation."""
        return self._rows("evaluations")

    @property
    def episodes(self) -> Rows:
        """One row per training episode."""
        return self._rows("episodes")

    @property
    def timing(self) -> Rows:
        """The seconds of each iteration."""
        return self._rows("timing")

    @property
    def gradients(self) -> Rows:
        """The gradient variance, if `diagnostics.every` is set. Raises: RunDirectoryError if not."""
        return self._rows("gradients")

    def _rows(self, name: str) -> Rows:
        return Rows(read_table(self.path / f"{name}.csv", None))

    @property
    def findings(self) -> list[Finding]:
        """What `pgcli show` reports: evidence, iteration, and the key to change."""
        from pgcli.inspection.explain import show

        return [Finding(**one) for one in show(self.path)["findings"]]

    def checkpoint(self, which: str | int = "latest") -> Path:
        """Return a checkpoint: latest, best, or that of an iteration. Raises: CheckpointError."""
        return find_checkpoint(self.path, str(which))

    def agent(self, which: str | int = "latest", *, seed: int = 0) -> Agent:
        """Return the trained agent, as `pgcli.load`."""
        from pgcli.experiment.load import load

        with session():
            return load(self.path, str(which), seed=seed, trust=self.trusted)

    def resume(self, overrides: Mapping[str, Any] | Sequence[str] = (), which: str | int = "latest") -> Run:
        """Continue the run, as `pgcli resume`; overrides may extend its budget. Return it."""
        from pgcli.api.commands import resume

        return resume(self, overrides, which=which)

    def __repr__(self) -> str:
        try:
            status, rows, evaluations = self.status, len(self.metrics), self.evaluations
        except PgcliError:
            return f"<Run {self.path}: unreadable>"
        last = f", return {evaluations['return_mean'][-1]:.4g}" if len(evaluations) else ""
        return f"<Run {self.path}: {status}, {counted(rows, 'iteration')}{last}>"

    def _repr_html_(self) -> str:
        """Return a small table with the learning curve. All text is escaped."""
        try:
            rows = self._summary()
        except PgcliError:
            return f"<pre>{escaped(repr(self))}</pre>"
        lines = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(text)}</td></tr>" for name, text in rows)
        return f"<div><table>{lines}</table>{self._curve()}</div>"

    def _summary(self) -> list[tuple[str, str]]:
        config, evaluations = self.config, self.evaluations
        settings, default = (flat(to_data(one)) for one in (config, Config()))
        changed = [
            f"{key}={as_text(value)}"
            for key, value in settings.items()
            if value != default.get(key) and key not in ("name", "seed", "env.id")
        ]
        rows = [
            ("run", str(self.path)),
            ("status", f"{self.status}, {counted(len(self.metrics), 'iteration')}"),
            ("trained", f"{config.name} on {config.env.id}, seed {config.seed}"),
            ("config", ", ".join(changed) or "all defaults"),
        ]
        if len(evaluations):
            returns, at = evaluations["return_mean"], evaluations["iteration"]
            best = int(returns.argmax())
            rows.append(
                ("return", f"{returns[-1]:.4g} after {at[-1]} updates; best {returns[best]:.4g} after {at[best]}")
            )
        with suppress(PgcliError):
            rows += [(one.level, one.text) for one in self.findings]
        return rows

    def _curve(self) -> str:
        """Return the learning curve as an inline image, or "" if there is nothing to draw."""
        from pgcli.report.plots import figure

        try:
            with session():
                image = figure([self.path], "env_steps", "evaluation.return_mean", "svg")
        except PgcliError:
            return ""
        data = base64.b64encode(image).decode()  # an image: scripts in it would not run
        return f'<img alt="learning curve" width="480" src="data:image/svg+xml;base64,{data}">'
