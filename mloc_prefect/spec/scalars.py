"""Converts YAML scalars by PyYAML's own rules of YAML 1.1, limited to what JSON can express."""

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
_LONGEST_NUMBER = 20_000  # characters; the time to read base 60 grows with the square of the length


def _whole_number(node: ScalarNode) -> int:
    """Return the value of a whole number; raise ValueError when it exceeds Python's limit for conversion to text."""
    if len(node.value) > _LONGEST_NUMBER:
        raise ValueError
    value: int = _RULES.construct_yaml_int(node)
    str(value)  # fails for numbers that no JSON reader accepts
    return value


_READERS = {
    f"{_PREFIX}null": _RULES.construct_yaml_null,
    f"{_PREFIX}bool": _RULES.construct_yaml_bool,
    f"{_PREFIX}int": _whole_number,
    f"{_PREFIX}float": _RULES.construct_yaml_float,
    f"{_PREFIX}timestamp": _RULES.construct_yaml_timestamp,
}
_NAMES = {"bool": "true/false value", "int": "whole number", "float": "number", "timestamp": "date"}
_PLAIN = frozenset({"map", "seq", "str", "null", "bool", "int", "float", "timestamp"})
_NO_JSON = {"binary": "binary data", "set": "a set", "omap": "an ordered mapping", "pairs": "pairs"}


class RefusedError(Exception):
    """The scalar has no JSON value."""

    def __init__(self, code: str, message: str, help_: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help = help_


class Note(NamedTuple):
    """A warning about a value that is legal but rarely intended."""

    code: str
    message: str
    help: str


def scalar_value(node: ScalarNode, *, is_key: bool = False) -> tuple[Any, Note | None]:
    """Return the JSON value of `node`, and a warning about it or None.

    Raises:
        RefusedError: The tag is not a safe one, or JSON cannot express the value.
    """
    tag, text = node.tag, node.value
    if tag == STR:
        return text, None
    reader = _READERS.get(tag)
    if reader is None:
        if is_key and tag == f"{_PREFIX}value":
            return text, None
        raise _refused_tag(tag, text)
    try:
        value = reader(node)
    except (ValueError, KeyError, IndexError, AttributeError, OverflowError, TypeError, ConstructorError):
        # PyYAML's readers raise all of these for text that matches their pattern but is not a valid value.
        name = _NAMES.get(tag.removeprefix(_PREFIX), "value")
        message = f"Invalid YAML: {shortened(text)!r} is not a {name}"
        raise RefusedError("bad-scalar", message, "quote it if it is text") from None
    if type(value) is bool or value is None:
        return value, None
    if type(value) is int:
        return value, _number_note(text, value)
    if type(value) is float:
        if not math.isfinite(value):
            raise RefusedError(
                "non-finite-number",
                "Infinity and not-a-number cannot be used: JSON has no such values",
                "use a finite number, or quote it if it is text",
            )
        return value, _number_note(text, value)
    return _date(cast("datetime.date", value))


def key_text(value: Any) -> str:
    """Return the JSON text of a key that is not text (`True` -> `true`)."""
    return json.dumps(value)


def shortened(text: str) -> str:
    """Return the start of a long text, so that a diagnostic stays on one line."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def foreign_tag(tag: str, kind: str) -> RefusedError:
    """Return the error for `tag` on a node of `kind`: scalar, mapping or list."""
    name = tag.removeprefix(_PREFIX)
    short = shortened(f"!!{name}" if tag != name else tag)
    if name in _NO_JSON and tag != name:
        message = f"The tag {short} is not supported: JSON cannot carry {_NO_JSON[name]}"
        return RefusedError("unsupported-tag", message, "write plain text, lists and mappings")
    if name in _PLAIN and tag != name:
        message = f"Invalid YAML: the tag {short} cannot be used on a {kind}"
        return RefusedError("unknown-tag", message, f"remove {short}")
    fix = "remove the tag; quote text that starts with '!'"
    return RefusedError("unknown-tag", f"Invalid YAML: unknown tag {short}", fix)


def _refused_tag(tag: str, text: str) -> RefusedError:
    if tag in {MERGE, f"{_PREFIX}value"} and text in {"=", "<<"}:
        return RefusedError("unknown-tag", f"Invalid YAML: a bare '{text}' cannot be a value", f"quote it: '{text}'")
    return foreign_tag(tag, "scalar")


def _number_note(text: str, value: float) -> Note | None:
    if ":" in text:
        message = f"{text} is read as the number {value} (base 60)"
        return Note("base-60-number", message, "quote it if it is text or a time")
    digits = text.lstrip("+-")
    if type(value) is int and digits[0] == "0" and digits.isdecimal() and int(digits) != abs(value):
        message = f"{text} is read as the number {value} (base 8)"
        return Note("octal-number", message, "quote it, or remove the leading 0")
    return None


def _date(value: datetime.date) -> tuple[str, Note]:
    text = value.isoformat()
    return text, Note("date-value", f"A date is kept as the text '{text}'", f"quote it: '{text}'")
