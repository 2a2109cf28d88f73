"""`DiagnosticReport`: collects the diagnostics of one file, each only once."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import MAX_FINDINGS, Diagnostic
from mloc_prefect.diagnostics.positions import path_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.diagnostics.diagnostic import Severity
    from mloc_prefect.diagnostics.positions import PathPart

OVERRIDE_FILE = "--set"
_NOT_IN_NAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # categories of Unicode
_SHOWN_LENGTH = 60
_LONGEST_MESSAGE = 2000  # characters; a field name may be a megabyte long


class DiagnosticReport:
    """Diagnostics of one file, in the order found.

    The same problem can occur in several effective documents (an error of the base is in every stage); it is kept
    once, identified by position, code and message. At most `MAX_FINDINGS` errors and as many warnings are kept; one
    more diagnostic says that there are others.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[tuple[int, int, str, str], Diagnostic] = {}
        self._left: dict[Severity, int] = {"error": MAX_FINDINGS, "warning": MAX_FINDINGS}

    def is_full(self, severity: Severity) -> bool:
        """Whether another finding of `severity` would not be kept: callers can save the work of describing it."""
        return self._left[severity] < 0

    def add(
        self,
        severity: Severity,
        code: str,
        message: str,
        position: tuple[int, int],
        *,
        path: Iterable[PathPart] = (),
        found: str | None = None,
        suggestion: str | None = None,
        missing: str | None = None,
    ) -> None:
        """Add one diagnostic.

        Args:
            severity: `error` or `warning`.
            code: Kebab-case name of the rule.
            message: One line.
            position: Line and column, from 1; line 0 means a value given with `--set`.
            path: Path in the submitted document.
            found: The value found, shortened.
            suggestion: The fix.
            missing: Path of the required field that is not there.
        """
        if self.is_full(severity):
            return
        line, column = position
        message = _shortened(message, _LONGEST_MESSAGE)
        file = self.file if line else OVERRIDE_FILE
        shown = _shortened(path_text(path), _LONGEST_MESSAGE)
        # Values given with --set have no position, so their path identifies them.
        key = (line, column, code, message if line else f"{shown}: {message}")
        if key in self._found:
            return
        self._left[severity] -= 1
        if self.is_full(severity):
            code, found, suggestion, missing = "too-many-findings", None, None, None
            message = f"There are more than {MAX_FINDINGS} {severity}s; the rest is not shown"
        self._found[key] = Diagnostic(file, line, column, severity, code, message, shown, found, suggestion, missing)

    def error(self, code: str, message: str, position: tuple[int, int], **details: Any) -> None:
        """Add an error; see `add`."""
        self.add("error", code, message, position, **details)

    def warning(self, code: str, message: str, position: tuple[int, int], **details: Any) -> None:
        """Add a warning; see `add`."""
        self.add("warning", code, message, position, **details)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Return all diagnostics, sorted by position."""
        return tuple(sorted(self._found.values(), key=lambda d: (d.line, d.column, d.severity, d.code, d.message)))


def shown(value: Any) -> str:
    """Return `value` as short text on one line, for the `found` part of a diagnostic."""
    if isinstance(value, dict):
        return "an empty mapping" if not value else f"a mapping with {_names(value)}"
    if isinstance(value, list):
        return "an empty list" if not value else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _shortened(text, _SHOWN_LENGTH)


def bad_character(name: Any) -> tuple[str, str, str] | None:
    """Return code, description and fix of the first character that a name cannot have, or None.

    Databases refuse NUL, and file names and arguments end there. Other control characters, line breaks among them,
    cannot stand in a header, in which Prefect's client sends the name; half of a surrogate pair is no character.
    """
    text = str(name)
    if "\0" in text:
        return "nul-character", "a NUL character (\\0), which cannot be stored in a name", "remove the \\0"
    found = next((c for c in text if unicodedata.category(c) in _NOT_IN_NAMES), None)
    if found is None:
        return None
    if found in "\n\r\u2028\u2029\x85":
        fix = "write it on one line, without '|' or '>'"
        return "control-character", f"a line break (U+{ord(found):04X}) in it", fix
    kind = "half of a surrogate pair" if unicodedata.category(found) == "Cs" else "a control character"
    return "control-character", f"{kind} (U+{ord(found):04X}) in it", "remove the character"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _names(value: dict[str, Any]) -> str:
    names = ", ".join(_shortened(str(key), _SHOWN_LENGTH) for key in list(value)[:4])
    return f"{names}, ..." if len(value) > 4 else names
