"""Rules for all tests: slow ones need a reason, and parametrized ones have readable ids."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest

LONGEST = 60  # characters of a value in the name of a test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Reject a slow test without a reason."""
    for item in items:
        for mark in item.iter_markers("slow"):
            if not (len(mark.args) == 1 and isinstance(mark.args[0], str) and mark.args[0]):
                raise pytest.UsageError(f'{item.nodeid}: write @pytest.mark.slow("reason")')


def pytest_make_parametrize_id(val: object) -> str | None:
    """Return a readable id of a list, a dict, a space or a dtype."""
    if isinstance(val, signal.Signals):
        return val.name
    if val is None or callable(val) or isinstance(val, bool | int | float | bytes):
        return None  # pytest's own
    try:
        if isinstance(val, Mapping):
            text = ", ".join(f"{key}: {value}" for key, value in val.items())
        else:
            text = " ".join(map(str, val)) if isinstance(val, list | tuple) else str(val)
    except ValueError:  # an integer of more digits than Python prints
        return None
    text = " ".join(text.split()).encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
