"""The appearance of a plot: labels, title, size, caption, threshold and the scale of the y axis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgcli.errors import ConfigError, Problem

SMALLEST, LARGEST = 2.0, 40.0  # inches
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*[x×]\s*(\d+\.?\d*|\.\d+)\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Appearance:
    """How a plot looks; the numbers do not depend on it."""

    labels: Sequence[str] = ()  # one per line; empty: the names of the runs and the keys that differ
    title: str | None = None  # None: the label of a single line
    size: tuple[float, float] | None = None  # width and height in inches
    caption: bool = True
    threshold: bool = True  # draw the return at which the environment counts as solved
    log: bool | None = None  # None: logarithmic for columns that span powers of ten

    def has_legend(self, lines: int) -> bool:
        """Return whether a legend names this number of lines. A single line is named in the title."""
        return lines > 1 or (self.title is not None and len(self.labels) > 0)


def parse_size(text: str) -> tuple[float, float]:
    """Parse WIDTHxHEIGHT in inches. Raises: ConfigError."""
    match = _SIZE.fullmatch(text)
    size = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not all(SMALLEST <= side <= LARGEST for side in size):
        rule = f"`{text}` is not WIDTHxHEIGHT in inches, each from {SMALLEST:g} to {LARGEST:g}"
        raise ConfigError([Problem("--size", rule, "such as --size 3.3x2.5 for one column of a paper")])
    return size


def check_effects(appearance: Appearance, output: Path | None, show: bool) -> None:
    """Raise ConfigError for options that have no effect on a CSV file, or on a plot in the terminal."""
    csv = output is not None and output.suffix.lower() == ".csv"
    if not (csv or (show and output is None)):
        return
    terminal, figure = "a plot in the terminal", "a figure: -o FILE.png, .svg or .pdf"
    given = {
        "--title": (appearance.title is not None, show),
        "--no-caption": (not appearance.caption, show),
        "--log": (appearance.log is not None, show),
        "--size": (appearance.size is not None, False),
        "--no-threshold": (not appearance.threshold, False),
    }
    target = f"{terminal} or a CSV file" if csv and show else "a CSV file" if csv else terminal
    problems = [
        Problem(option, f"has no effect on {target}", f"leave it out, or write {figure}")
        for option, (is_given, has_effect) in given.items()
        if is_given and not has_effect
    ]
    if problems:
        raise ConfigError(problems)
