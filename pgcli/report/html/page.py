"""Render HTML pages: one file each, without external resources, and with all text escaped."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pgcli import __version__
from pgcli.report import appearance
from pgcli.report.html.charts import Chart
from pgcli.runs.files import open_file
from pgcli.system.streams import printable

MOST_FILM_BYTES = 3 * 2**20  # of a film in a page; a link names a larger one
_MAGIC = 16  # bytes that identify a film
_FILMS = {b"GIF8": "image/gif", b"ftyp": "video/mp4"}  # by their first bytes
_INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*")
_TAGS = ("code", "strong", "em")


@dataclass(frozen=True)
class Table:
    """A table: its caption, the head, rows of cells, and the numbers of rows to emphasise.

    Cells may contain `code`, **strong** and *emphasised* text. `texts` are the columns aligned to the left.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = (0,)
    strong: Sequence[int] = ()
    note: str = ""

    @classmethod
    def of(cls, caption: str, rows: Sequence[Sequence[str]], texts: Sequence[int] = (0,)) -> Table:
        """Return a table whose first row is the head."""
        return cls(caption, rows[0], rows[1:], texts)


@dataclass(frozen=True)
class Group:
    """Charts with one legend, whose entries switch a series on and off in all of them.

    `legend` has the number and label of each series; `main` are wide charts, `more` small ones.
    """

    legend: Sequence[tuple[int, str]]
    main: Sequence[Chart]
    more: Sequence[Chart] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Film:
    """A film of an agent: its content as a data URI, or None if it is too large; and a link to its file."""

    name: str
    kind: str
    source: str | None
    link: str
    bytes: int

    @property
    def size(self) -> str:
        """The size of the file."""
        return f"{self.bytes / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Section:
    """A part of a page with a title, in the list of contents; `content` is for the template."""

    title: str
    anchor: str
    content: Mapping[str, Any] = field(default_factory=dict)


def render(template: str, content: Mapping[str, Any]) -> bytes:
    """Return the page of a template as UTF-8.

    Its content security policy allows no external resource, and only the style and the script of the page itself.
    """
    environment = _environment()
    style = environment.get_template("style.css.j2").render(appearance=appearance)
    script = (Path(__file__).parent / "templates" / "script.js").read_text(encoding="utf-8")
    texts = {"style": Markup(style), "script": Markup(script)}  # pgcli's own
    digests = {f"{name}_digest": _digest(text) for name, text in texts.items()}
    page = environment.get_template(template).render(**content, **texts, **digests, version=__version__)
    return page.encode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control_characters,
    )
    environment.filters["inline"] = inline
    return environment


def _without_control_characters(value: Any) -> Any:
    """Escape the characters of a text that hide or reorder others; templates apply it to each value."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def inline(text: str) -> Markup:
    """Return a text of a report as HTML: `code`, **strong** and *emphasised* parts are marked up."""

    def marked_up(found: re.Match[str]) -> str:
        at = found.lastindex or 1
        return f"<{_TAGS[at - 1]}>{found[at]}</{_TAGS[at - 1]}>"

    return Markup(_INLINE.sub(marked_up, str(escape(printable(str(text))))))


def read_film(path: Path, page: Path, room: int) -> Film | None:
    """Return a film for a page at `page`, or None if the file is no film.

    It is embedded if it has at most `room` bytes.

    Raises: OSError.
    """
    most = min(room, MOST_FILM_BYTES)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most if size <= most else _MAGIC)
    kind = _FILMS.get(content[:4]) or _FILMS.get(content[4:8])
    if kind is None:
        return None
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}" if size <= most else None
    link = quote(os.fsencode(Path(os.path.relpath(path, page.parent)).as_posix()))
    return Film(path.name, kind, source, f"./{link}", size)
