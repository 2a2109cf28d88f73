"""Where references stand: found in an effective document, and placed in the submitted text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.expressions import PLACEHOLDER
from mloc_prefect.plan.graph_template import expression_of
from mloc_prefect.plan.model import Reference
from mloc_prefect.spec.positions import path_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.spec.model import TaskNode, Workflow
    from mloc_prefect.spec.positions import PathPart

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Spot:
    """One reference in an effective document.

    Attributes:
        path: Path of the string in the effective document, `spec` first.
        expression: The expression, trimmed.
        raw: The placeholder as written, `${ x }`; None for a `graph_template` column.
        ordinal: How many `${` stand before it in the same string.
        whole: It is the whole string.
        required: The stage fails when it has no value.
    """

    path: tuple[PathPart, ...]
    expression: str
    raw: str | None
    ordinal: int = 0
    whole: bool = False
    required: bool = False

    @property
    def is_column(self) -> bool:
        """Whether it is an expression of a `graph_template` column."""
        return self.raw is None

    @property
    def shown(self) -> str:
        """The reference as messages show it."""
        return f"column expression '{self.expression}'" if self.raw is None else self.raw

    def reference(self, stage: str | None) -> Reference:
        """Return the reference that the plan keeps."""
        return Reference(path_text(self.path[1:]), self.expression, stage, self.required, self.whole)


def placeholders(spec: Any, required: tuple[str, ...]) -> Iterator[Spot]:
    """Yield every `${...}` in the values of `spec`, in document order; mapping keys are never rewritten.

    Args:
        spec: The `spec` of an effective document.
        required: Paths below `spec` whose placeholders must have a value, e.g. `checkpoint.load.url`.
    """
    for path, text in _strings(spec):
        must = _is_required(path_text(path[1:]), required)
        for match in PLACEHOLDER.finditer(text):
            expression = match[1].strip()
            if expression:
                ordinal = text.count("${", 0, match.start())
                yield Spot(path, expression, match[0], ordinal, whole=match[0] == text, required=must)


def columns(data: Mapping[str, Any]) -> Iterator[Spot]:
    """Yield the expressions of the columns of a `graph_template`; incomplete columns are left to the task's model."""
    template = data.get("template")
    definitions = template.get("columns") if isinstance(template, Mapping) else None
    for index, column in enumerate(definitions if isinstance(definitions, list) else ()):
        expression = expression_of(column) if isinstance(column, Mapping) else None
        if expression is None or "${" in expression:
            continue
        path = ("spec", "data", "template", "columns", index, "expr" if column.get("expr") else "node")
        yield Spot(path, expression, None, whole=True, required="default" not in column)


def place_of(workflow: Workflow, node: TaskNode, spot: Spot) -> tuple[int, int] | None:
    """Return line and column of the `${` itself, or None when the text there does not show it (aliases, escapes)."""
    value = node.positions.find(spot.path)
    if spot.raw is None or value.line < 1:
        return None
    text = workflow.source.text
    at = _offset(text, value.line, value.column)
    if text.startswith(("|", ">"), at):  # a block scalar begins below its header
        header_end = _LINE_BREAK.search(text, at)
        at = header_end.end() if header_end else at
    elif text.startswith("*", at):
        return None
    for _ in range(spot.ordinal + 1):
        at = text.find("${", at) + 1
        if not at:
            return None
    at -= 1
    return _line_column(text, at) if text.startswith(spot.raw, at) else None


def _strings(spec: Any) -> list[tuple[tuple[PathPart, ...], str]]:
    """Return the path and text of every string that has a placeholder."""
    found: list[tuple[tuple[PathPart, ...], str]] = []

    def visit(value: Any, path: tuple[PathPart, ...]) -> None:
        if isinstance(value, str):
            if "${" in value:
                found.append((path, value))
        elif isinstance(value, dict):
            for key, below in value.items():
                visit(below, (*path, key))
        elif isinstance(value, list):
            for index, below in enumerate(value):
                visit(below, (*path, index))

    visit(spec, ("spec",))
    return found


def _is_required(where: str, required: tuple[str, ...]) -> bool:
    return any(where == r or where.startswith((f"{r}.", f"{r}[")) for r in required)


def _offset(text: str, line: int, column: int) -> int:
    at = 0
    for _ in range(line - 1):
        match = _LINE_BREAK.search(text, at)
        if match is None:
            return len(text)
        at = match.end()
    return at + column - 1


def _line_column(text: str, offset: int) -> tuple[int, int]:
    line, start = 1, 0
    for match in _LINE_BREAK.finditer(text, 0, offset):
        line, start = line + 1, match.end()
    return line, offset - start + 1
