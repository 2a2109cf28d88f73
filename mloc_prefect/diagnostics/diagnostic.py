"""`Diagnostic`: one error or warning about a spec, with its exact source position."""

from __future__ import annotations

import difflib
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Severity = Literal["error", "warning"]

MAX_FINDINGS = 500
"""Findings of one severity that are kept for a file; more help no reader and cost time with a hostile spec."""

_LONGEST_COMPARED = 64  # characters of a name for which a similar one is searched
_MOST_COMPARED = 200  # names


@dataclass(frozen=True, slots=True, order=True)
class Diagnostic:
    """One error or warning about a spec file.

    Attributes:
        file: Name of the file as the user gave it (`<text>` for text without a file; `--set` for line 0).
        line: Line of the value (or of the key when the key is at fault), from 1; 0 for a value given with `--set`.
        column: Column in characters, from 1.
        severity: `error` stops the submission, `warning` does not (unless strict).
        code: Stable kebab-case name of the rule, e.g. `unknown-field`.
        message: One line; the texts of MLOC's own 400 responses are kept word for word.
        path: Field path in the document, e.g. `spec.stages[1].spec.inference.top_p`.
        found: The value found there, shortened, or None.
        suggestion: A similar name or the fix, or None.
        missing: Path of the required field that is not there, for `missing-field`.
    """

    file: str
    line: int
    column: int
    severity: Severity
    code: str
    message: str
    path: str = ""
    found: str | None = None
    suggestion: str | None = None
    missing: str | None = None

    def __str__(self) -> str:
        position = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = f"{position}: {self.severity}[{self.code}]: {self.message}"
        facts = [f"at {self.path}"] if self.path else []
        if self.found is not None:
            facts.append(f"found {self.found}")
        tail = [f"    {', '.join(facts)}"] if facts else []
        if self.suggestion:
            tail.append(f"    help: {self.suggestion}")
        return "\n".join([head, *tail])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `mloc validate --json` prints."""
        row: dict[str, Any] = {
            "line": self.line,
            "column": self.column,
            "code": self.code,
            "path": self.path,
            "message": self.message,
        }
        if self.found is not None:
            row["found"] = self.found
        if self.suggestion is not None:
            row["suggestion"] = self.suggestion
        return row


def errors(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return the errors among `diagnostics`, sorted by position."""
    return tuple(sorted(d for d in diagnostics if d.severity == "error"))


def warnings(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return the warnings among `diagnostics`, sorted by position."""
    return tuple(sorted(d for d in diagnostics if d.severity == "warning"))


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean 'x'?`` for the most similar of `known`, or None when none is similar.

    Where two names look the same, the character that differs is named: a blank that is not seen, or a wide letter.
    The comparison is quadratic in the length of the names, so only names that a person would type are compared.
    """
    if len(name) > _LONGEST_COMPARED:
        return None
    candidates = sorted({other for other in known if len(other) <= _LONGEST_COMPARED})[:_MOST_COMPARED]
    folded = {_folded(c): c for c in candidates}
    exact = folded.get(_folded(name))
    near = [exact] if exact else difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    if not near or not near[0]:
        return None
    odd = next((c for c in name + near[0] if not c.isascii()), None) if exact else None
    note = f" (one of the two has U+{ord(odd):04X} {unicodedata.name(odd, 'without a name')})" if odd else ""
    return f"did you mean '{near[0]}'{note}?"


def _folded(name: str) -> str:
    """Return a name without what is easily mistyped: case, hyphens, and characters that are not seen or look alike."""
    if not name.isascii():
        wide = unicodedata.normalize("NFKC", name)
        name = "".join(c for c in wide if unicodedata.category(c) != "Cf").strip()
    return name.replace("_", "").replace("-", "").lower()
