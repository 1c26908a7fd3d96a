"""Results as Python objects: the columns of a table, and reports of commands."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgcli.errors import UsageError, closest, counted
from pgcli.runs.tables import Table
from pgcli.system.streams import printable

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]

_WHOLE = ("iteration", "env_steps", "episodes", "episode", "length", "evaluation_episodes")
_FEW = 5  # rows at either end of a table in a notebook


def escaped(text: object) -> str:
    """Return text for HTML; characters that are not printable are written as escapes."""
    return html.escape(printable(str(text)))


class Rows:
    """A table of a run: `rows["return_mean"]` is a column as a numpy array, one value per row.

    Empty cells are nan. Whole numbers are integers, and words are strings.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.columns: list[str] = [name for name in table.header if name in table.numbers or name in table.words]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column. Raises: UsageError if there is none of this name."""
        if name not in self.columns:
            close = closest(str(name), self.columns)
            hint = f"did you mean `{close}`?" if close else f"it has {', '.join(self.columns)}"
            raise UsageError(f"{self._table.path.name} has no column `{name}`", hint)
        if name in self._table.words:
            return self._table.words[name].astype(str)
        column = self._table.numbers[name]
        return column.astype(np.int64) if name in _WHOLE and np.isfinite(column).all() else column.copy()

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._table.rows

    def keys(self) -> list[str]:
        """Return the names of the columns, so that `dict(rows)` has all columns."""
        return list(self.columns)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a data frame. Raises: UsageError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas() needs the package pandas", "pip install pandas") from None
        return pandas.DataFrame({name: self[name] for name in self.columns})

    def __repr__(self) -> str:
        shown = ", ".join(self.columns[:4]) + (", …" if len(self.columns) > 4 else "")
        return (
            f"<{self._table.path.name}: {counted(len(self), 'row')}, {counted(len(self.columns), 'column')}: {shown}>"
        )

    def _repr_html_(self) -> str:
        numbers = range(len(self))
        ends = numbers if len(numbers) <= 2 * _FEW else [*numbers[:_FEW], *numbers[-_FEW:]]
        filled = [name for name in self.columns if name in self._table.words or not np.isnan(self[name]).all()]
        head = "".join(f"<th>{escaped(name)}</th>" for name in filled)
        lines = []
        for at, row in enumerate(ends):
            if at == _FEW and len(ends) < len(numbers):
                lines.append(f'<tr><td colspan="{len(filled)}">…</td></tr>')
            cells = (self[name][row] for name in filled)
            lines.append("<tr>" + "".join(f"<td>{escaped(_cell(cell))}</td>" for cell in cells) + "</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)


class Report(dict[str, Any]):
    """The result of a command: the object of its `--json`; as text, what the command prints.

    `notices` are those that the command prints before it starts.
    """

    def __init__(
        self, result: dict[str, Any], text: Callable[[dict[str, Any]], str], notices: Sequence[str] = ()
    ) -> None:
        super().__init__(result)
        self.notices = list(notices)
        self._text = text

    def __str__(self) -> str:
        return printable(self._text(self))

    def _repr_html_(self) -> str:
        return f"<pre>{escaped(self)}</pre>"
