r"""Text for terminals: control characters are shown as escapes such as `\x1b`, not obeyed.

A name in a spec, a line of a log or an answer of a model may hold what moves the cursor, changes colours or reverses
the direction of writing. Standard library only.
"""

from __future__ import annotations

import re

# C0 without tab and line break, DEL, C1, and the marks that change the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL_OR_BREAK = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Return `text` with its control characters as escapes; tabs and line breaks stay."""
    return _CONTROL.sub(_escape, text)


def printable_line(text: str) -> str:
    """Return `text` as one line: with its control characters, tabs and line breaks as escapes."""
    return _CONTROL_OR_BREAK.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
