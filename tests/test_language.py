"""The language of every text that a person reads: plain words, short sentences, short lines."""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODULES = sorted((ROOT / "pgcli").rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
LONGEST_LINE = 100  # of prose
LONGEST_PARAGRAPH = 5  # lines
LONGEST_SUMMARY = 100  # characters of a docstring's first line; write 80

# A turn that sounds translated → what to write instead.
BANNED = {
    r"\b(is|are|was|were|be|being) (told|held|said)\b": "report, check, state",
    r"\btold apart\b": "distinguish, compare",
    r"\b(hold|holds|holding|held) [\w ]{0,30}\b(against|to it)\b": "compare with, test against",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\breckon(s|ed|ing)?\b": "compute",
    r"\b(whatever|whoever|whichever|whosoever)\b": "name the thing",
    r"\bamid(st)?\b": "during",
    r"\bin the place of\b": "instead of",
    r"\bgo(es|ing)? on (with|if|from)\b": "continue",
    r"\bwhat (cannot|can not|is there|is left|goes|does not)\b": "name the thing",
    r"\b(after|every|over|of) so many\b": "after this many, every n",
    r"\bmeets? with\b": "find",
    r"\bto the letter\b": "exactly",
    r"\boracle\b": "gradient check",
    r"\b(arms|crew|ledger)\b": "variants, pool, gradient variance",
    r"\bthat is there\b": "existing",
    r"\bbesides\b": "also",
    r"\bamong them\b": "including",
    r"\bleft aside\b": "not counted",
}


def prose(page: Path) -> list[str]:
    """Return the paragraphs of a page without code, tables, headings, pictures and links' targets."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lines = [
        "" if re.match(r"\s*(\||#|!\[|    )", line) else re.sub(r"^\s*([-*]|\d+\.) ", "\n", line)
        for line in text.splitlines()
    ]
    return [part.strip() for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences; code and links count as their words."""
    text = re.sub(r"\]\([^)]*\)", "", paragraph.replace("[", "").replace("\n", " "))
    return [one for one in re.split(r"(?<=[.!?:;])\s+", text) if len(one.split()) > 1]


def texts(module: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings and comments of a module, with their lines."""
    source = module.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def banned(text: str) -> Iterator[str]:
    for turn, better in BANNED.items():
        for found in re.finditer(turn, text, re.IGNORECASE):
            yield f"{found[0]!r}: write {better}"


def test_pages_use_plain_words() -> None:
    texts = {page.name: re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES}  # with tables
    wrong = [f"{name}: {problem}" for name, text in texts.items() for problem in banned(text)]
    assert not wrong, "\n".join(wrong)


def test_messages_docstrings_and_comments_use_plain_words() -> None:
    wrong = [
        f"{module.relative_to(ROOT)}:{line}: {problem}"
        for module in MODULES
        for line, text in texts(module)
        for problem in banned(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_tests_and_benchmarks_use_plain_words() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in TESTS
        for line, text in texts(path)
        for problem in banned(text)
    ]
    names = [(path.name, name) for path in TESTS for name in re.findall(r"def (\w+)", path.read_text())]
    wrong += [f"{path}: {name}: {problem}" for path, name in names for problem in banned(name.replace("_", " "))]
    assert not wrong, "\n".join(wrong)


def test_the_first_line_of_a_docstring_is_short() -> None:
    long = [
        f"{module.relative_to(ROOT)}:{node.body[0].lineno}: {summary}"
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and not (module.parent.name == "cli" and isinstance(node, ast.FunctionDef))  # the text of --help
        and len(summary := (ast.get_docstring(node) or "").partition("\n")[0]) > LONGEST_SUMMARY
    ]
    assert not long, "\n".join(long)


def test_shipped_configs_use_plain_words() -> None:
    comments = [(path, line.partition("#")[2]) for path in CONFIGS for line in path.read_text().splitlines()]
    wrong = [f"{path.relative_to(ROOT)}: {problem}" for path, text in comments for problem in banned(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_short_sentences_lines_and_paragraphs(page: Path) -> None:
    paragraphs = prose(page)
    lengths = sorted(len(one.split()) for part in paragraphs for one in sentences(part))
    assert statistics.median(lengths) <= 15
    assert lengths[int(0.9 * len(lengths))] <= 28
    long = [line for part in paragraphs for line in part.splitlines() if len(line) > LONGEST_LINE]
    assert not long, "\n".join(long)
    assert not [part for part in paragraphs if len(part.splitlines()) > LONGEST_PARAGRAPH]
    assert not [part for part in paragraphs if re.search(r"\s>$", part, re.MULTILINE)], "a quote that is wrapped badly"
