"""The 400 answer to an invalid spec: MLOC's text if it has one, otherwise message, position and fix. [protocol 1.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.server.responses import ErrorResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.diagnostics.diagnostic import Diagnostic

UNREADABLE = frozenset(
    {
        "bad-character",
        "bad-escape",
        "bad-merge",
        "bad-scalar",
        "bad-utf8",
        "duplicate-anchor",
        "key-not-text",
        "multiple-documents",
        "tab-indentation",
        "unclosed-bracket",
        "unclosed-quote",
        "undefined-alias",
        "unknown-tag",
        "yaml-syntax",
    }
)
"""Codes of texts that are no YAML, of which MLOC says `Invalid YAML: ...`."""
_ORDER = (
    "apiVersion",
    "kind",
    "metadata.name",
    "spec.taskType",
    "spec.resources.replicas",
    "spec.resources.hardware.cpu",
    "spec.resources.hardware.memory",
)
_VERBATIM = frozenset(
    {
        "missing-field",
        "missing-gpu-field",
        "depends-on-not-list",
        "empty-node-name",
        "duplicate-node-name",
        "dependency-cycle",
        "self-dependency",
    }
)


def spec_problem(errors: Sequence[Diagnostic]) -> ErrorResponse:
    """Return the answer to a spec with errors: `detail` is the error that MLOC reports, `diagnostics` are all."""
    return ErrorResponse(400, detail_text(errors), more={"diagnostics": [diagnostic_row(d) for d in errors]})


def detail_text(errors: Sequence[Diagnostic]) -> str:
    """Return the text of the error that MLOC reports first; among errors unknown to MLOC, of the first in the file."""
    first = min(errors, key=_rank)
    if first.code in _VERBATIM:
        return first.message
    more = [text for text in (first.found and f"found {first.found}", first.suggestion) if text]
    tail = f" ({'; '.join(more)})" if more else ""
    text = f"{first.message.rstrip('.')} at line {first.line}, column {first.column}{tail}"
    return f"{text}; {len(errors) - 1} more in 'diagnostics'" if len(errors) > 1 else text


def diagnostic_row(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return the JSON form of a diagnostic, as `mloc validate --json` prints it, with its severity."""
    return {"severity": diagnostic.severity, **diagnostic.to_dict()}


def _rank(diagnostic: Diagnostic) -> tuple[int, int, int, int]:
    kind, within = 3, 0
    if diagnostic.code in UNREADABLE:
        kind = 0
    elif diagnostic.missing is not None:
        kind, within = 1, _ORDER.index(diagnostic.missing) if diagnostic.missing in _ORDER else len(_ORDER)
    elif diagnostic.code == "missing-gpu-field":
        kind = 2
    return kind, within, diagnostic.line, diagnostic.column
