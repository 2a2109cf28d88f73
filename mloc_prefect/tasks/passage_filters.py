"""What `search.filter` of a rag task may hold: conditions on the fields of passages."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

_NATIVE = frozenset({"must", "must_not", "should", "min_should"})
_BOUNDS = frozenset({"gt", "gte", "lt", "lte"})


def is_native(wanted: Mapping[str, Any]) -> bool:
    """Return whether a filter is written in Qdrant's own form: `must`, `should`, `must_not`, `min_should`."""
    return bool(wanted) and wanted.keys() <= _NATIVE


def filter_fault(wanted: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """Return what is wrong with a filter, as its path below the filter and one line; None for a valid one.

    A filter has one entry for each field: a value, a list of which one must match, bounds (`gt`, `gte`, `lt`, `lte`),
    or `not` with a value or a list. Filters in Qdrant's own form are judged by its client.
    """
    if is_native(wanted):
        return None
    for name, value in wanted.items():
        if isinstance(value, Mapping):
            if found := _mapping_fault(value):
                return (str(name), *found[0]), found[1]
        elif found_text := _value_fault(value):
            return (str(name),), found_text
    return None


def _mapping_fault(value: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    if set(value) == {"not"}:
        text = _value_fault(value["not"])
        return (("not",), text) if text else None
    unknown = next((key for key in value if key not in _BOUNDS), None)
    if unknown is not None or not value:
        return (() if unknown is None else (str(unknown),)), "must be bounds (gt, gte, lt, lte), or not"
    kinds = {isinstance(bound, str) for bound in value.values()}
    for key, bound in value.items():
        if len(kinds) > 1 or not _is_bound(bound):
            return (str(key),), "must be a number, or a date such as 2024-01-31 where all bounds are dates"
    return None


def _value_fault(value: Any) -> str | None:
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        if kinds in ({str}, {int}):
            return None
        return "must be a list of texts or of whole numbers, at least one"
    if isinstance(value, (str, bool, int, float)):
        return None
    return "must be a value, a list of values, bounds (gt, gte, lt, lte), or not"


def _is_bound(value: Any) -> bool:
    if isinstance(value, str):
        try:
            dt.datetime.fromisoformat(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool)
