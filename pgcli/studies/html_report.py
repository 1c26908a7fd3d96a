"""Write the HTML report of runs or of a study, for `pgcli report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgcli.errors import ConfigError, Problem
from pgcli.report.curves import find_runs
from pgcli.report.html.page import render
from pgcli.runs.outputs import check_output, write_output
from pgcli.studies.html_runs import runs_content
from pgcli.studies.html_study import study_content
from pgcli.studies.page import RESULT

NAME = "report.html"


def write_html(folders: Sequence[Path], output: Path | None, *, overwrite: bool = False) -> Path:
    """Write the report of run directories, of folders of them, or of one study; return the file.

    The default `output` is report.html in the only folder given, or in the current folder.
    Raises: ConfigError for another suffix; RunDirectoryError if a file cannot be read or written.
    """
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError([Problem("-o", f"`{output}` is not the name of an HTML file", "use FILE.html")])
    output = output or (folders[0] if len(folders) == 1 else Path()) / NAME
    is_study = len(folders) == 1 and (folders[0] / RESULT).is_file()
    runs = [] if is_study else find_runs(folders)
    check_output(output, overwrite=overwrite)
    if is_study:
        template, content = study_content(folders[0], output)
    else:
        template, content = "runs.html.j2", runs_content(runs, output)
    write_output(output, render(template, content), overwrite=overwrite)
    return output
