"""Parses bytes or text into one YAML node tree and reports every syntax error as a diagnostic.

The C parser composes the tree; `construct` turns it into data. The parser has no limits of its own, so two things are
checked first: the size, and (only for text that could be nested very deeply) the depth of nesting.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from yaml.cyaml import CParser  # type: ignore[attr-defined]  # PyYAML's stubs do not export its C part
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import CollectionEndEvent, CollectionStartEvent, StreamEndEvent
from yaml.nodes import ScalarNode, SequenceNode
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from mloc_prefect.spec.yaml_errors import explain

if TYPE_CHECKING:
    from yaml.nodes import Node

    from mloc_prefect.spec.diagnostic_report import DiagnosticReport

MAX_SPEC_BYTES = 1 << 20
MAX_DEPTH = 64

# The parser recurses in C: deeper nesting could overflow the stack of the process before our own limit applies.
_DEPTH_SUSPECTED = 1000
_DEEP_INDENT = re.compile(rf"^[ \-?:\t]{{{_DEPTH_SUSPECTED}}}", re.MULTILINE)


_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")
_IMPLICIT = Resolver.yaml_implicit_resolvers
_STR = "tag:yaml.org,2002:str"
_SEQ = "tag:yaml.org,2002:seq"
_MAP = "tag:yaml.org,2002:map"


@lru_cache(4096)
def _plain_tag(text: str) -> str:
    """Return the tag of a plain scalar by PyYAML's own table; cached, since keys and common values recur."""
    for tag, pattern in _IMPLICIT.get(text[:1], ()):
        if pattern.match(text):
            return str(tag)
    return _STR


class _Composer(CParser):
    """PyYAML's C composer with its own resolver rules, cached: reduces the time of composing by a third."""

    def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is ScalarNode:
            if not implicit[0]:
                return _STR
            return _plain_tag(value) if len(value) < 64 else _plain_tag.__wrapped__(value)
        return _SEQ if kind is SequenceNode else _MAP

    def descend_resolver(self, parent: Node, index: Node) -> None:
        """Path resolvers are not used."""

    def ascend_resolver(self) -> None:
        """Path resolvers are not used."""


def decode(data: str | bytes, report: DiagnosticReport, max_bytes: int) -> str | None:
    """Return `data` as text without a byte order mark, or None after reporting why it cannot be decoded."""
    if _size(data, max_bytes) > max_bytes:
        report.error(
            "too-large",
            f"The spec is larger than {max_bytes} bytes",
            (1, 1),
            found=f"{len(data)} {'characters' if isinstance(data, str) else 'bytes'}",
            suggestion="move the data into a file that data.url names, or raise MLOC_MAX_SPEC_BYTES",
        )
        return None
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        _report_bad_bytes(data, error, report)
        return None


def _size(data: str | bytes, max_bytes: int) -> int:
    """Return the size in bytes; a text far below the limit is not encoded only to measure it."""
    if isinstance(data, bytes) or len(data) * 4 <= max_bytes:
        return len(data)
    return len(data.encode("utf-8", "replace"))


def compose(text: str, report: DiagnosticReport) -> Node | None:
    """Return the node tree of the only document in `text`; None for an empty one or after reporting an error."""
    try:
        if _may_be_deep(text) and not _depth_is_allowed(text, report):
            return None
        node: Node | None = _Composer(text).get_single_node()
    except MarkedYAMLError as error:
        joined = _joined_pairs(text)
        if joined is not None:
            return compose(joined, report)
        explain(error, text, report)
        return None
    except ReaderError as error:
        _report_bad_character(text, error.position, str(error.reason), report)
        return None
    except UnicodeEncodeError as error:
        _report_bad_character(text, error.start, "half of a surrogate pair", report)
        return None
    except YAMLError as error:
        report.error("yaml-syntax", f"Invalid YAML: {' '.join(str(error).split())}", (1, 1))
        return None
    return node


def _joined_pairs(text: str) -> str | None:
    """Return a JSON `text` with its escaped surrogate pairs as characters; None when it is not JSON or has none.

    JSON writes an emoji as two escapes, which the C parser refuses. Columns after one on the same line then differ.
    """
    if _PAIR.search(text) is None:
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    joined = _PAIR.sub(lambda match: match[1] + str(json.loads(f'"{match[2]}"')), text)
    return joined if joined != text else None


def _may_be_deep(text: str) -> bool:
    return text.count("[") + text.count("{") > _DEPTH_SUSPECTED or _DEEP_INDENT.search(text) is not None


def _depth_is_allowed(text: str, report: DiagnosticReport) -> bool:
    """Measure nesting by events, which the parser yields without recursion; stop at the first that is too deep."""
    parser: Any = _Composer(text)
    depth = 0
    while True:
        event = parser.get_event()
        if isinstance(event, CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH and event.start_mark is not None:
                report_too_deep(report, (event.start_mark.line + 1, event.start_mark.column + 1))
                return False
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        elif isinstance(event, StreamEndEvent):
            return True


def report_too_deep(report: DiagnosticReport, position: tuple[int, int], path: tuple[str | int, ...] = ()) -> None:
    """Report nesting deeper than `MAX_DEPTH`."""
    report.error(
        "too-deep",
        f"The document nests deeper than {MAX_DEPTH} levels",
        position,
        path=path[:4],
        suggestion="look for brackets that are never closed",
    )


def _report_bad_bytes(data: bytes, error: UnicodeDecodeError, report: DiagnosticReport) -> None:
    valid = data[: error.start].decode("utf-8").removeprefix("\ufeff")
    is_utf16 = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
    report.error(
        "bad-utf8",
        "Invalid YAML: the text is UTF-16, not UTF-8" if is_utf16 else "Invalid YAML: the text is not UTF-8",
        _position_at(valid, len(valid)),
        found=f"byte 0x{data[error.start]:02x}",
        suggestion="save the file as UTF-8",
    )


def _report_bad_character(text: str, position: int, reason: str, report: DiagnosticReport) -> None:
    # The parser counts bytes of its UTF-8 buffer or characters, depending on the character; find the position here.
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff", text)
    index = found.start() if found else min(position, max(len(text) - 1, 0))
    report.error(
        "bad-character",
        f"Invalid YAML: {reason}",
        _position_at(text, index),
        found=f"U+{ord(text[index]):04X}" if text else None,
        suggestion='remove the character, or write it as an escape in "double quotes"',
    )


def _position_at(text: str, index: int) -> tuple[int, int]:
    before = re.split(r"\r\n|\r|\n", text[:index])
    return len(before), len(before[-1]) + 1
