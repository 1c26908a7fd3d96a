"""The order of the keys in `kwargs` of environments and wrappers, and comparisons that respect it.

Equal arguments in another order can build a different environment: `**kwargs` and nested mappings keep the order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pgcli.config.load import flat
from pgcli.config.messages import Path_, dotted

Orders = list[list[Any]]  # [path, keys in their order] of each mapping


def mappings(data: Any, path: Path_ = ()) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Yield path and content of every mapping in `kwargs` with at least two keys."""
    items: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if isinstance(data, dict) and len(data) > 1 and "kwargs" in path:
        yield path, data
    for key, value in items:
        yield from mappings(value, (*path, key))


def orders_of(data: Any) -> Orders | None:
    """Return the key order of each unsorted mapping in `kwargs`. None if `kwargs` has no mapping."""
    found = list(mappings(data))
    return [[list(path), list(entry)] for path, entry in found if list(entry) != sorted(entry)] if found else None


def arranged(data: dict[str, Any], orders: Sequence[Any]) -> dict[str, Any]:
    """Return a copy of plain data with mappings in the given orders.

    Sort the other mappings.

    Raises: ValueError: if an order does not fit the data.
    """
    wanted = {tuple(path): list(keys) for path, keys in orders}
    copy: dict[str, Any] = _arranged(data, (), wanted)
    if wanted:
        raise ValueError(f"{dotted(next(iter(wanted)))} has a key order but is not a mapping")
    return copy


def _arranged(data: Any, path: Path_, wanted: dict[Path_, list[str]]) -> Any:
    if isinstance(data, list):
        return [_arranged(item, (*path, at), wanted) for at, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    keys = wanted.pop(path, None) or sorted(data)
    if sorted(keys) != sorted(data):
        raise ValueError(f"the key order of {dotted(path)} does not match its keys")
    return {key: _arranged(data[key], (*path, key), wanted) for key in keys}


def arranged_like(data: dict[str, Any], other: Any) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of plain data in the order of `other`, and the names of mappings missing there."""
    known = dict(mappings(other))
    found = list(mappings(data))
    orders = [[path, list(known[path])] for path, entry in found if known.get(path) == entry]
    return arranged(data, orders), [dotted(path) for path, entry in found if known.get(path) != entry]


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ between two configs, with both values.

    A mapping in `kwargs` with equal entries in another order differs as a whole. 1 and true differ.
    """
    before, after = flat(one), flat(other)
    found = {
        key: (before.get(key), after.get(key))
        for key in {**before, **after}
        if (key in before) != (key in after) or json.dumps(before.get(key)) != json.dumps(after.get(key))
    }
    entries = dict(mappings(other))
    for path, entry in mappings(one):
        twin = entries.get(path, {})
        if sorted(entry) == sorted(twin) and list(entry) != list(twin):
            found[dotted(path)] = (entry, twin)
    return found
