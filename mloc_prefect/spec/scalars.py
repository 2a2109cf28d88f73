"""Scalars: PyYAML's own rules of YAML 1.1, then what JSON can carry."""

from __future__ import annotations

import datetime
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from yaml.constructor import ConstructorError, SafeConstructor

if TYPE_CHECKING:
    from yaml.nodes import ScalarNode

_PREFIX = "tag:yaml.org,2002:"
STR = f"{_PREFIX}str"
MERGE = f"{_PREFIX}merge"

_RULES = SafeConstructor()
_READERS = {
    f"{_PREFIX}null": _RULES.construct_yaml_null,
    f"{_PREFIX}bool": _RULES.construct_yaml_bool,
    f"{_PREFIX}int": _RULES.construct_yaml_int,
    f"{_PREFIX}float": _RULES.construct_yaml_float,
    f"{_PREFIX}timestamp": _RULES.construct_yaml_timestamp,
}
_NAMES = {"bool": "true/false value", "int": "whole number", "float": "number", "timestamp": "date"}
_NO_JSON = {"binary": "binary data", "set": "a set", "omap": "an ordered mapping", "pairs": "pairs"}


class RefusedError(Exception):
    """The scalar has no JSON value."""

    def __init__(self, code: str, message: str, help_: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help = help_


class Note(NamedTuple):
    """Something that is legal but rarely meant."""

    code: str
    message: str
    help: str


def scalar_value(node: ScalarNode, *, is_key: bool = False) -> tuple[Any, Note | None]:
    """Return the JSON value of `node`, and a warning about it or None.

    Raises:
        RefusedError: The tag is not one of the safe ones, or the value cannot be JSON.
    """
    tag, text = node.tag, node.value
    if tag == STR:
        return text, None
    reader = _READERS.get(tag)
    if reader is None:
        if is_key and tag == f"{_PREFIX}value":
            return text, None
        raise _foreign(tag, text)
    try:
        value = reader(node)
    except (ValueError, KeyError, IndexError, AttributeError, OverflowError, TypeError, ConstructorError):
        # PyYAML's readers fail in all these ways on text that fits their pattern but is no such value.
        name = _NAMES.get(tag.removeprefix(_PREFIX), "value")
        raise RefusedError(
            "bad-scalar", f"Invalid YAML: {text!r} is not a {name}", "quote it if text is meant"
        ) from None
    if type(value) is bool or value is None:
        return value, None
    if type(value) is int:
        return value, _number_note(text, value)
    if type(value) is float:
        if not math.isfinite(value):
            raise RefusedError(
                "non-finite-number",
                "Infinity and not-a-number cannot be used: JSON has no such values",
                "use a finite number, or quote it if text is meant",
            )
        return value, _number_note(text, value)
    return _date(cast("datetime.date", value))


def key_text(value: Any) -> str:
    """Return the text that JSON gives a key that is not text (`True` -> `true`)."""
    return json.dumps(value)


def short_tag(tag: str) -> str:
    """Return `!!set` for `tag:yaml.org,2002:set`; other tags as they are."""
    return f"!!{tag.removeprefix(_PREFIX)}" if tag.startswith(_PREFIX) else tag


def _foreign(tag: str, text: str) -> RefusedError:
    short = short_tag(tag)
    name = tag.removeprefix(_PREFIX)
    if name in {"value", "merge"} and text in {"=", "<<"}:
        return RefusedError("unknown-tag", f"Invalid YAML: a bare '{text}' cannot be a value", f"quote it: '{text}'")
    if name in _NO_JSON:
        return RefusedError(
            "unsupported-tag",
            f"The tag {short} is not supported: JSON cannot carry {_NO_JSON[name]}",
            "write it as text",
        )
    if name in {"map", "seq"}:
        return RefusedError(
            "unknown-tag", f"Invalid YAML: the tag {short} cannot be used on a scalar", f"remove {short}"
        )
    return RefusedError(
        "unknown-tag", f"Invalid YAML: unknown tag {short}", "remove the tag; quote a text that starts with '!'"
    )


def _number_note(text: str, value: float) -> Note | None:
    if text[0].isdecimal() and text[-1] != ":" and ":" not in text and not (text[0] == "0" and text[1:2].isdecimal()):
        return None
    if ":" in text:
        return Note(
            "base-60-number", f"{text} is read as the number {value} (base 60)", "quote it if text or a time is meant"
        )
    if text.lstrip("+-")[:1] == "0" and text.lstrip("+-")[1:2].isdecimal() and type(value) is int:
        return Note(
            "octal-number", f"{text} is read as the number {value} (base 8)", "quote it, or remove the leading 0"
        )
    return None


def _date(value: datetime.date) -> tuple[str, Note]:
    text = value.isoformat()
    return text, Note("date-value", f"A date is kept as the text '{text}'", f"quote it: '{text}'")
