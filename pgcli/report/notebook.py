"""Progress in a Jupyter notebook: one output that is updated."""

from __future__ import annotations

import html
import io
import sys
import time
from typing import Any

from pgcli.records import Record
from pgcli.report.display import BARS, Display, View
from pgcli.system.streams import printable

INTERVAL = 0.5  # seconds between updates
WIDTH = 100  # columns


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return hasattr(shell, "kernel")


class NotebookDisplay(Display):
    """Shows the panel of a live display as an output of the cell."""

    def __init__(self, view: View) -> None:
        from importlib import import_module

        self._view, self._next = view, time.perf_counter() + INTERVAL
        shown: Any = import_module("IPython.display")
        self._html = shown.HTML
        self._handle = shown.display(self._html(self._drawn(closed=False)), display_id=True)

    def show(self, record: Record, run: int = 0) -> None:
        """Add a record, and update the output if it is time."""
        self._view.add(record, run)
        if time.perf_counter() >= self._next:
            self._handle.update(self._html(self._drawn(closed=False)))
            self._next = time.perf_counter() + INTERVAL

    def close(self) -> None:
        """Show the last state."""
        self._handle.update(self._html(self._drawn(closed=True)))

    def _drawn(self, *, closed: bool) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False, legacy_windows=False)
        with console.capture() as drawn:
            for table in self._view.draw(WIDTH, BARS, closed):
                console.print(table)
            for text in self._view.last_notices if closed else ():
                console.print(f"note: {text}", markup=False, highlight=False)
        return f"<pre>{html.escape(printable(drawn.get()))}</pre>"
