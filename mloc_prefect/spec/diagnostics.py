"""Diagnostics: what is wrong in a spec, and exactly where."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, order=True)
class Diagnostic:
    """One finding in a spec file.

    Attributes:
        file: Name of the file as the user gave it (`<text>` for text without a file; `--set` for line 0).
        line: Line of the value (or of the key when the key is at fault), from 1; 0 for a value given with `--set`.
        column: Column in characters, from 1.
        severity: `error` stops the submission, `warning` does not (unless strict).
        code: Stable kebab-case name of the rule, e.g. `unknown-field`.
        message: One line; texts of MLOC's own 400 answers are kept word for word.
        path: Field path in the document, e.g. `spec.stages[1].spec.inference.top_p`.
        found: The value found there, shortened, or None.
        suggestion: A near name or the fix, or None.
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

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = f"{place}: {self.severity}[{self.code}]: {self.message}"
        where = [f"at {self.path}"] if self.path else []
        if self.found is not None:
            where.append(f"found {self.found}")
        tail = [f"    {', '.join(where)}"] if where else []
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
    """Return the errors among `diagnostics`, in order of place."""
    return tuple(sorted(d for d in diagnostics if d.severity == "error"))


def warnings(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return the warnings among `diagnostics`, in order of place."""
    return tuple(sorted(d for d in diagnostics if d.severity == "warning"))


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean 'x'?`` for the nearest of `known`, or None when nothing is near."""
    candidates = sorted(set(known))
    folded = {c.replace("_", "").replace("-", "").lower(): c for c in candidates}
    exact = folded.get(name.replace("_", "").replace("-", "").lower())
    near = [exact] if exact else difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    return f"did you mean '{near[0]}'?" if near and near[0] else None
