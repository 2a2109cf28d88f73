"""Collects the diagnostics of one file; each finding is kept once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.diagnostics import Diagnostic
from mloc_prefect.spec.positions import path_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.spec.diagnostics import Severity
    from mloc_prefect.spec.positions import PathPart

OVERRIDE_FILE = "--set"
_SHOWN = 60


class Report:
    """Findings of one file, in the order found.

    The same finding can be met in several effective documents (a fault of the base is in every stage); it is kept
    once, told apart by place, code and message.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[tuple[int, int, str, str], Diagnostic] = {}

    def add(
        self,
        severity: Severity,
        code: str,
        message: str,
        place: tuple[int, int],
        *,
        path: Iterable[PathPart] = (),
        found: str | None = None,
        suggestion: str | None = None,
    ) -> None:
        """Keep one finding.

        Args:
            severity: `error` or `warning`.
            code: Kebab-case name of the rule.
            message: One line.
            place: Line and column, from 1; line 0 stands for a value given with `--set`.
            path: Path in the submitted document.
            found: The value found, shortened.
            suggestion: The fix.
        """
        line, column = place
        file = self.file if line else OVERRIDE_FILE
        shown = path_text(path)
        # Values given with --set have no place of their own, so their path tells them apart.
        key = (line, column, code, message if line else f"{shown}: {message}")
        if key not in self._found:
            self._found[key] = Diagnostic(file, line, column, severity, code, message, shown, found, suggestion)

    def error(self, code: str, message: str, place: tuple[int, int], **details: Any) -> None:
        """Keep one error; see `add`."""
        self.add("error", code, message, place, **details)

    def warning(self, code: str, message: str, place: tuple[int, int], **details: Any) -> None:
        """Keep one warning; see `add`."""
        self.add("warning", code, message, place, **details)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Return everything found, in order of place."""
        return tuple(sorted(self._found.values(), key=lambda d: (d.line, d.column, d.severity, d.code, d.message)))


def shown(value: Any) -> str:
    """Return `value` as a reader would write it, on one line and short."""
    if isinstance(value, dict):
        return "an empty mapping" if not value else f"a mapping with {_names(value)}"
    if isinstance(value, list):
        return "an empty list" if not value else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _names(value: dict[str, Any]) -> str:
    names = ", ".join(str(key) for key in list(value)[:4])
    return f"{names}, ..." if len(value) > 4 else names
