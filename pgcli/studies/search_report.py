"""The results of a search: its trials as a table, the best config, figures, and text for a terminal."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pgcli.config import flat, to_data, to_yaml
from pgcli.errors import PgcliError, counted
from pgcli.report.text import WIDTH, columns, percent, short
from pgcli.runs.files import storage, write_whole
from pgcli.studies.page import as_csv, comparison_text, quantity
from pgcli.studies.search import Search
from pgcli.studies.trials import importances
from pgcli.system.streams import printable

BEST, TABLE = "best.yaml", "trials.csv"
LISTED = 5  # trials in the text
MANY = 50  # complete trials, of which the best tenth has five: fewer give a rough importance
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
Result = dict[str, Any]  # of `write_search`


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the complete trial with the highest value; of equal ones, the first.

    Raises: PgcliError without any.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        reason = next((trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs), "none ended")
        raise PgcliError(
            f"none of {len(trials)} trials is complete: {reason}", "search other values, or begin with `pgcli train`"
        )
    return max(complete, key=lambda trial: trial.value or 0.0)


def write_search(search: Search, trials: Sequence[FrozenTrial], command: Sequence[str]) -> Result:
    """Write trials.csv, best.yaml and the figures into the folder of a search.

    Returns: the object of `pgcli tune --json`. Raises: PgcliError if no trial is complete.
    """
    from pgcli.studies.figures import draw_search  # imports matplotlib

    rows = [_row(search, trial) for trial in trials if trial.state in _STATES]
    with storage(search.folder):
        write_whole(search.folder / TABLE, printable(as_csv(rows)).encode())
    best = best_of(trials)
    config = search.variant(best.params).config
    result = {
        "directory": str(search.folder),
        "name": search.start.name,
        "command": f"pgcli {shlex.join(command)}",
        "env": search.start.evaluation_env.id,
        "column": search.column,
        "seeds": search.seeds,
        "env_steps": search.env_steps,
        "sampler": search.sampler,
        "pruner": search.pruner,
        "spaces": {key: space.text for key, space in search.spaces.items()},
        "trials": rows,
        "best": {"trial": best.number, "value": best.value, "values": best.params, "config": str(search.folder / BEST)},
        "importance": importances(search, trials),
        "confirmation": None,
    }
    before = flat(to_data(search.start))
    head = [
        f"# pgcli train {BEST} trains the best trial of this search, number {best.number}. Changed keys:",
        *(
            f"#   {key}: {json.dumps(before.get(key))} → {json.dumps(value)}"
            for key, value in flat(to_data(config)).items()
            if key in search.spaces
        ),
    ]
    tuned = config.model_copy(update={"name": f"{config.name}-tuned", "seed": search.start.seed})
    with storage(search.folder):
        write_whole(search.folder / BEST, ("\n".join(map(printable, head)) + f"\n{to_yaml(tuned)}").encode())
        draw_search(search.folder, result)
    return result


def _row(search: Search, trial: FrozenTrial) -> Result:
    values = {key: trial.params.get(key) for key in search.spaces}
    runs = search.variant(trial.params).runs[0][1].parent
    return {
        "trial": trial.number,
        "state": _STATES[trial.state],
        "value": None if trial.state == TrialState.FAIL else trial.value,
        **values,
        "reason": trial.user_attrs.get("reason", ""),
        "runs": str(runs.relative_to(search.folder)),
    }


def search_text(result: Result) -> str:
    """Return the best trials, the importance of keys and the confirmation as text, in about 80 columns."""
    rows, keys = result["trials"], list(result["spaces"])
    complete = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["value"])
    shown = [[str(row["trial"]), short(row["value"]), *(str(row[key]) for key in keys)] for row in complete[:LISTED]]
    lines = [result["directory"], *columns([["trial", quantity(result["column"]), *keys], *shown])]
    counts = {state: sum(row["state"] == state for row in rows) for state in _STATES.values()}
    texts = [f"{counted(len(rows), 'trial')}: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n) + "."]
    if result["importance"]:
        shares = sorted(result["importance"].items(), key=lambda one: -one[1])
        rough = "" if counts["complete"] >= MANY else f"; rough, from {counts['complete']} complete trials"
        listed = ", ".join(f"{key} {percent(share)}" for key, share in shares)
        texts.append(f"Importance (PED-ANOVA{rough}): {listed}.")
    best, confirmation = result["best"], result["confirmation"]
    if confirmation is not None:
        mean = next(row["mean"] for row in confirmation["arms"] if row["arm"] == "best")
        texts.append(
            f"Trial {best['trial']} has {quantity(result['column'])} {short(best['value'])} in the search, the highest "
            f"of {len(rows)}. On {len(confirmation['seeds'])} fresh seeds its mean is {short(mean)}."
        )
    for text in texts:
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    lines.append(f"best config: {best['config']}")
    return "\n".join(lines if confirmation is None else [*lines, comparison_text(confirmation)])
