"""Where the fields of `postprocess.jsonl_export` take their values from [protocol 4.2]. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SOURCES = ("prompt", "output", "metadata", "item", "literal")

DEFAULT_RULES = {"prompt": "prompt", "output": "output"}
"""The fields of an export that names none."""

WANTED = "must be prompt, output, metadata.<key>, item.<key>, or a mapping with from and key"

_KEYED = ("metadata", "item")


def rule_fault(rule: object, is_open: Any = lambda _value: False) -> tuple[str, ...] | None:
    """Return the path below `rule` of what names no source, or None when all of it does.

    Args:
        rule: The value of a field.
        is_open: Returns whether a value is not known yet.
    """
    if is_open(rule):
        return None
    text = rule if isinstance(rule, str) else None
    if isinstance(rule, Mapping):
        if "literal" in rule and not (rule.get("from") or rule.get("source")):
            return None
        named = rule.get("from") or rule.get("source")
        if is_open(named):
            return None
        text = str(named)
        below = rule_fault(rule["fallback"], is_open) if isinstance(rule.get("fallback"), Mapping) else None
        if below is not None:
            return ("fallback", *below)
    source, _, key = (text or "").partition(".")
    has_key = bool(key) or (isinstance(rule, Mapping) and rule.get("key") is not None)
    keyed = source in _KEYED
    fits = source in SOURCES and (has_key or not keyed) and (keyed or not key)
    return None if fits else ()


def names_source(text: str) -> bool:
    """Return whether a fallback is a source; any other text stands for itself, as in MLOC."""
    source, _, key = text.partition(".")
    return source in SOURCES and source != "literal" and bool(key) == (source in _KEYED)


def unknown_fields(required: Iterable[str], fields: Mapping[str, Any]) -> list[str]:
    """Return which of the required fields are not written."""
    written = fields or DEFAULT_RULES
    return [name for name in required if name not in written]
