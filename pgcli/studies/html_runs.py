"""The content of an HTML report about runs: what was trained, why it ended, and how to repeat it."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.config import Config, flat, to_data
from pgcli.config.names import as_text
from pgcli.errors import PgcliError, counted, typed
from pgcli.inspection.explain import checked_text, show, steps_text
from pgcli.report.html.page import MOST_FILM_BYTES, Film, Section, Table, read_film
from pgcli.report.text import duration, percent, short
from pgcli.runs.information import read_information
from pgcli.runs.tables import read_table
from pgcli.studies.comparison import measured_gradients
from pgcli.studies.html_curves import curve_groups, gradient_group
from pgcli.studies.page import gradient_rows
from pgcli.studies.summaries import read_run

MOST_SECTIONS = 50  # runs with a section of their own
MOST_CONFIGS = 10  # with a table of all keys
MOST_ROWS = 25  # of a table of evaluations
PAGE_FILM_BYTES = 4 * MOST_FILM_BYTES
_LEVELS = {"finished": "ok", "failed": "warning", "diverged": "warning"}  # of a status; others are notes
Content = dict[str, Any]
Summary = Content | PgcliError


class Films:
    """Finds the films of runs, and embeds them in a page until their bytes are used up."""

    def __init__(self, page: Path) -> None:
        self._page, self._room = page, PAGE_FILM_BYTES

    def of(self, run: Path, most: int = 2) -> list[Film]:
        """Return the newest films in a run directory."""
        files = [
            file
            for folder in (run / "videos", run)
            for file in folder.glob("*.*")
            if not folder.is_symlink() or folder == run
        ]
        films = [file for file in files if file.suffix.lower() in (".gif", ".mp4") and not file.is_symlink()]
        found: list[Film] = []
        for file in sorted(films, key=lambda file: -file.stat().st_mtime):
            if len(found) == most:
                break
            try:
                film = read_film(file, self._page, self._room)
            except OSError:  # not a regular file, or unreadable
                continue
            if film is not None:
                self._room -= film.bytes if film.source else 0
                found.append(film)
        return found


def runs_content(paths: Sequence[Path], page: Path) -> Content:
    """Return the content of the report about runs.

    A run that cannot be summarized is described by the reason, unless it is the only one.
    Raises: PgcliError.
    """
    results = dict(summaries(paths))
    if len(paths) == 1 and isinstance(error := results[paths[0]], PgcliError):
        raise error
    films, first = Films(page), dict[str, Section]()
    sections = [
        _section(path, title, results[path], films, first)
        for path, title in list(_titles(results).items())[:MOST_SECTIONS]
    ]
    whole = {path: result for path, result in results.items() if isinstance(result, dict)}
    only = next(iter(whole.values())) if len(paths) == 1 else None
    curves = curve_groups(list(paths))
    content: Content = {
        "kind": "Report of a run" if only else "Report of several runs",
        "title": f"{only['name']}, seed {only['seed']}" if only else f"{counted(len(paths), 'run')}{_names(whole)}",
        "lede": _lede(only) if only else _counts(results),
        "tiles": list(_tiles(only)) if only else [],
        "overview": None if only else _overview(results),
        "curves": curves[:1] if only else curves,
        "training": curves[1:] if only else [],
        "gradients": gradients_content(list(whole), {path: result["name"] for path, result in whole.items()}),
        "only": sections[0].content if only else None,
        "runs": [] if only else sections,
        "left_out": "",
        "contents": [],
    }
    if only:
        content["status"] = _badge(only["status"])
        return content
    if len(paths) > MOST_SECTIONS:
        content["left_out"] = f"The first {MOST_SECTIONS} of {len(paths)} runs have a section."
    titles = {"overview": "Runs", "curves": "Learning curves", "gradients": "Gradient variance"}
    parts = [Section(title, "runs" if name == "overview" else name) for name, title in titles.items() if content[name]]
    return content | {"contents": [*parts, *sections]}


def gradients_content(paths: Sequence[Path], labels: dict[Path, str]) -> Content | None:
    """Return the table and the curves of measured gradients; None if no run has measured them."""
    groups: dict[str, list[Any]] = {}
    for path in paths:
        if (path / "gradients.csv").exists():
            groups.setdefault(labels[path], []).append(read_run(path, 0))
    found = list(measured_gradients(groups))
    if not found:
        return None
    rows = gradient_rows(found)
    return {
        "about": "",
        "table": Table.of("Variance of the gradient estimate, over measurements and seeds", rows, (0, 1)),
        "group": gradient_group(paths, labels),
    }


def _names(results: dict[Path, Content]) -> str:
    names = list(dict.fromkeys(result["name"] for result in results.values()))
    return (" of " if names else "") + ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _titles(results: Mapping[Path, Summary]) -> dict[Path, str]:
    """Name each run by its config and seed, or by its path if that is not unique."""
    names = {
        path: "" if isinstance(result, PgcliError) else f"{result['name']}, seed {result['seed']}"
        for path, result in results.items()
    }
    every = list(names.values())
    shared = os.path.commonpath([path.absolute() for path in names]) if len(names) > 1 else ""
    return {
        path: name if name and every.count(name) == 1 else os.path.relpath(path, shared) if shared else str(path)
        for path, name in names.items()
    }


def _badge(status: str) -> tuple[str, str]:
    return _LEVELS.get(status, "note"), status


def _lede(result: Content) -> str:
    """Describe what was trained, and why it ended."""
    time = "" if result["seconds"] is None else f", {duration(result['seconds'])}"
    reason = f": {result['reason']}" if result["reason"] else ""
    trained = f"Trained on {result['env']} with seed {result['seed']}: {steps_text(result)}{time}."
    return f"{trained} {result['status'].capitalize()}{reason}."


def _counts(results: dict[Path, Any]) -> str:
    states = [result["status"] if isinstance(result, dict) else "unreadable" for result in results.values()]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + "."


def _tiles(result: Content) -> Iterator[tuple[str, str, str]]:
    """Yield the main numbers of a run: name, value, and a remark."""
    last, best, first = (result[name] for name in ("evaluation", "best", "untrained"))
    if last is not None:
        yield "Final return", _with_error(last), f"{counted(last['evaluation_episodes'], 'episode')}, {last['mode']}"
        yield (
            *("Best return", short(best["return_mean"])),
            f"after {counted(best['iteration'], 'update')}; untrained {short(first['return_mean'])}",
        )
    yield "Env steps", f"{result['env_steps']:,}", counted(result["iterations"], "iteration")
    if result["seconds"] is not None:
        yield "Time", duration(result["seconds"]), _shares(result)


def _with_error(row: Content) -> str:
    error = "" if row["return_standard_error"] is None else f" ± {row['return_standard_error']:.2g}"
    return f"{short(row['return_mean'])}{error}"


def _shares(result: Content) -> str:
    return ", ".join(f"{name} {percent(share)}" for name, share in result["shares"].items())


def _overview(results: dict[Path, Any]) -> Table:
    rows = []
    for path, result in results.items():
        if isinstance(result, PgcliError):
            rows.append([f"`{path}`", "unreadable", *[""] * 6])
            continue
        last, best = result["evaluation"], result["best"]
        problems = sum(one["level"] in ("warning", "failed") for one in result["findings"])
        rows.append(
            [
                f"`{path}`",
                result["status"],
                *(("", "") if last is None else (_with_error(last), short(best["return_mean"]))),
                f"{result['env_steps']:,}",
                f"{result['iterations']:,}",
                "" if result["seconds"] is None else duration(result["seconds"]),
                str(problems),
            ]
        )
    head = ["run", "status", "final return", "best return", "env steps", "iterations", "time", "warnings"]
    return Table("Runs, with their final evaluations ± standard error", head, rows, texts=(0, 1))


def _section(path: Path, title: str, result: Summary, films: Films, first: dict[str, Section]) -> Section:
    """Return the section of a run.

    `first` has the section of the first run with each config; later ones refer to it.
    """
    anchor = f"run-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if isinstance(result, PgcliError):
        return Section(title, anchor, {"error": str(result), "status": ("warning", "unreadable"), "lede": ""})
    key = json.dumps(result["config"], sort_keys=True)
    section = Section(
        title,
        anchor,
        {
            "error": "",
            "status": _badge(result["status"]),
            "lede": _lede(result),
            "findings": result["findings"],
            "checked": f"Checked: {checked_text(result)}.",
            "evaluations": evaluations_table(path, result),
            "films": films.of(path),
            "config": config_content(result, first.get(key), all_keys=len(first) < MOST_CONFIGS),
            "facts": _facts(path, result),
            "repeat": repeat_command(path),
        },
    )
    if len(first) < MOST_CONFIGS:
        first.setdefault(key, section)
    return section


def evaluations_table(path: Path, result: Content) -> Table:
    """Return the evaluations of a run; of many, an even selection with the best and the last one."""
    names = ("env_steps", "evaluation_episodes", "return_mean", "return_standard_error", "return_standard_deviation")
    whole = result["status"] not in ("running", "killed")
    table = read_table(path / "evaluations.csv", (*names, "mode", "length_mean", "stopped_by"), whole=whole)
    best = int(np.nanargmax(table["return_mean"])) if np.isfinite(table["return_mean"]).any() else -1
    kept = np.arange(table.rows)
    if table.rows > MOST_ROWS:
        kept = np.union1d(np.linspace(0, table.rows - 1, MOST_ROWS).round().astype(int), [best])
    modes, stops = (table.words.get(name, np.full(table.rows, "")) for name in ("mode", "stopped_by"))
    rows = [
        [
            _whole(table["iteration"][k]),
            _whole(table["env_steps"][k]),
            f"{modes[k]}, new episodes" if stops[k] else str(modes[k]),
            _whole(table["evaluation_episodes"][k]),
            _number(table["return_mean"][k]) + _number(table["return_standard_error"][k], " ± {:.2g}"),
            _number(table["return_standard_deviation"][k]),
            _number(table["length_mean"][k]),
        ]
        for k in kept.tolist()
    ]
    head = [
        "updates",
        "env steps",
        "mode",
        "episodes",
        "mean return ± standard error",
        "standard deviation",
        "mean length",
    ]
    note = f"{len(kept)} of {table.rows} evaluations; evaluations.csv has all. " if len(kept) < table.rows else ""
    strong = [at for at, k in enumerate(kept.tolist()) if k == best]
    return Table("Evaluations of the policy; the best is marked", head, rows, (0, 2), strong, note)


def _whole(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else ""


def _number(value: float, form: str = "") -> str:
    return "" if not np.isfinite(value) else form.format(value) if form else short(value)


def config_content(result: Content, first: Section | None = None, *, all_keys: bool = True) -> Content:
    """Return the keys of a run that differ from the defaults, and all keys; `first` has the same config."""
    default = flat(to_data(Config()))
    changed = result["changed"]
    rows = [[f"`{key}`", f"`{as_text(value)}`", f"`{as_text(default.get(key))}`"] for key, value in changed.items()]
    every = [
        [f"`{key}`", f"`{as_text(value)}`", f"`{as_text(default.get(key))}`" if key in changed else ""]
        for key, value in result["config"].items()
    ]
    strong = [at for at, key in enumerate(result["config"]) if key in changed]
    head, texts = ["key", "value", "default"], (0, 1, 2)
    return {
        "changed": Table("Keys that differ from the defaults", head, rows, texts),
        "all": None
        if first or not all_keys
        else Table("All keys; those that differ are marked", head, every, texts, strong),
        "same": first,
    }


def _facts(path: Path, result: Content) -> Table:
    """Return how a run was made: command, versions, machine, the user's code."""
    information = read_information(path)
    machine = information.get("machine")
    command = information.get("command")
    versions = {"pgcli": information.get("pgcli"), **result["versions"]}
    facts = {
        "Run directory": f"`{path}`",
        "Command": f"`pgcli {shlex.join(map(str, command))}`" if isinstance(command, list) and command else "",
        "Tags": ", ".join(information.get("tags", [])),
        "Note": information.get("note", ""),
        "Solved at": _solved(result),
        "Resumed": counted(result["resumes"], "time") if result["resumes"] else "",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Git commit": information.get("git_commit") or "",
        "Machine": ", ".join(f"{name} {x}" for name, x in machine.items()) if isinstance(machine, dict) else "",
        "Your code": ", ".join(f"`{file}` {sha[:12]}" for file, sha in information.get("user_code", {}).items()),
    }
    rows = [[name, text] for name, text in facts.items() if text]
    return Table("How the run was made", ["what", "value"], rows, (0, 1))


def _solved(result: Content) -> str:
    if result["threshold"] is None:
        return ""
    solved = result["solved"]
    when = "not reached" if solved is None else f"first reached after {solved['env_steps']:,} env steps"
    return f"a return of {result['threshold']:g}: {when}"


def repeat_command(path: Path) -> str:
    """Return the command that trains a run again, into another folder."""
    return (
        f"pgcli train {typed(path / 'config.yaml')} --run-dir {typed(path.with_name(f'{path.resolve().name}-again'))}"
    )


def summaries(paths: Sequence[Path]) -> Iterator[tuple[Path, Summary]]:
    """Yield each run with its summary, or with the reason why it has none."""
    for path in paths:
        try:
            yield path, show(path)
        except PgcliError as error:
            yield path, error
