"""What a 400 answer says of a spec: MLOC's own text where it has one, else place, fault and fix. [protocol 1.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.server.replies import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.spec.diagnostics import Diagnostic

_MISSING = "Missing required field: "
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


def spec_problem(errors: Sequence[Diagnostic]) -> Problem:
    """Return the answer to a spec with errors: `detail` is the one that MLOC names, `diagnostics` are all."""
    return Problem(400, detail_text(errors), more={"diagnostics": [diagnostic_row(d) for d in errors]})


def detail_text(errors: Sequence[Diagnostic]) -> str:
    """Return the text for the error that MLOC would meet first; of those that only we know, the first in the file."""
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
    if diagnostic.message.startswith("Invalid YAML: "):
        kind = 0
    elif diagnostic.message.startswith(_MISSING):
        path = diagnostic.message.removeprefix(_MISSING)
        kind, within = 1, _ORDER.index(path) if path in _ORDER else len(_ORDER)
    elif diagnostic.code == "missing-gpu-field":
        kind = 2
    return kind, within, diagnostic.line, diagnostic.column
