"""Results as text: tables in 80 columns, numbers, `--seeds`."""

from __future__ import annotations

import re
import sys

import pytest

from pgcli.config.seeds import parse_seeds
from pgcli.errors import UsageError
from pgcli.records import Sample
from pgcli.report.text import Finding, columns, duration, mean_and_error, percent, short, table


def test_a_table_wraps_its_texts_beside_their_labels() -> None:
    rows = [("policy", "ab " * 40), ("", "under it"), ("empty", "")]
    first, second, third, fourth = table(rows, start=10, indent=2)
    assert (first[:14], len(first)) == ("  policy  ab a", 78)
    assert (second[:12], len(second)) == (" " * 10 + "ab", 60)
    assert (third, fourth) == ("          under it", "  empty")


def test_a_table_breaks_lines_at_allowed_places() -> None:
    rows = [("at", "x" * 69 + " reward-to-go")]
    assert table(rows, start=3) == ["at " + "x" * 69 + " reward-", "   to-go"]
    assert table(rows, start=3, break_on_hyphens=False) == ["at " + "x" * 69, "   reward-to-go"]
    assert table(rows, start=3, width=None) == ["at " + rows[0][1]]


def test_texts_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("at", "word " * 30)]
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, table(rows, start=3))) > 75, "stdout is not a terminal"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert 45 < max(map(len, table(rows, start=3))) <= 50
    assert max(map(len, table(rows, start=3, width=40))) <= 40
    assert max(map(len, table(rows, start=60))) <= 80, "a text beside its label has 20 columns"
    assert max(map(len, table(rows, start=3, width=None))) > 100
    monkeypatch.setenv("COLUMNS", "30")
    wide = columns([("problem", "verdict"), ("bandit " * 4, "biased by design")], {})
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in wide) <= 30
    assert "design" in "".join(wide)


def test_columns_are_aligned_and_coloured_on_a_terminal_alone() -> None:
    rows = [("problem", "verdict"), ("bandit", "wrong"), ("a", "unknown")]
    assert columns(rows) == ["problem  verdict", "bandit   wrong", "a        unknown"]
    coloured = columns(rows, {"wrong": "red"})
    assert "\x1b[31mwrong" in coloured[1]
    assert "\x1b" not in coloured[2]


def test_a_finding_becomes_an_object_with_its_fields() -> None:
    assert list(Finding("note", "slow", key="x=1").select("key", "level").items()) == [
        ("key", "x=1"),
        ("level", "note"),
    ]


def test_numbers_are_printed_readably() -> None:
    assert [duration(x) for x in (None, 3.4, 187, 7500)] == ["…", "3 s", "3:07 min", "2:05:00 h"]
    assert [short(x) for x in (1.5, -1.99, 2, 200.04)] == ["1.500", "-1.990", "2.0", "200.0"]
    assert [percent(x) for x in (0, 0.276, 1)] == ["0 %", "28 %", "100 %"]
    written = [
        mean_and_error(Sample(9, mean, error, None, 0, 0, 0)) for mean, error in ((5, 0.05), (5, 0.5), (5, None))
    ]
    assert written == ["5.000 ± 0.050", "5.0 ± 0.5", "5.0"]


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0-2", [0, 1, 2]), ("5, 0-1,9", [5, 0, 1, 9])])
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "a", "1-", "-1", "2-1", "0-10000", "1,0-2", "1.5", "9" * 21])
def test_an_invalid_list_of_seeds_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)
