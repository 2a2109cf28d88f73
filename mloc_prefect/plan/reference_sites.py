"""Finds references in an effective document, and their positions in the submitted text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.positions import path_text
from mloc_prefect.plan.expressions import PLACEHOLDER, complete, is_doubled
from mloc_prefect.plan.graph_template import expression_of
from mloc_prefect.plan.workflow_plan import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.diagnostics.positions import PathPart, Positions

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_BLOCK_SCALAR = re.compile(r"(?:[&!]\S*[ \t]+)*[|>]")


@dataclass(frozen=True, slots=True)
class ReferenceSite:
    """One reference in an effective document.

    Attributes:
        path: Path of the string in the effective document, `spec` first.
        expression: The expression, trimmed.
        raw: The placeholder as written, `${ x }`; None for a `graph_template` column.
        ordinal: How many `${` stand before it in the same string.
        whole: It is the whole string.
        required: The stage fails when it has no value.
        doubled: A dollar sign stands before it, `$${x.y}`.
    """

    path: tuple[PathPart, ...]
    expression: str
    raw: str | None
    ordinal: int = 0
    whole: bool = False
    required: bool = False
    doubled: bool = False

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


def placeholders(spec: Any, required: tuple[str, ...]) -> Iterator[ReferenceSite]:
    """Yield every `${...}` in the values of `spec`, in document order; mapping keys are never rewritten.

    Args:
        spec: The `spec` of an effective document.
        required: Paths below `spec` whose placeholders must have a value, e.g. `checkpoint.load.url`.
    """
    for path, text in _strings(spec):
        must = _is_required(path_text(path[1:]), required)
        ordinal = last = 0
        for match in PLACEHOLDER.finditer(text, 0, complete(text)):
            ordinal += text.count("${", last, match.start())
            last = match.start()
            expression = match[1].strip()
            if expression:
                whole, doubled = match[0] == text, is_doubled(text, match.start())
                yield ReferenceSite(path, expression, match[0], ordinal, whole=whole, required=must, doubled=doubled)


def columns(data: Mapping[str, Any]) -> Iterator[ReferenceSite]:
    """Yield the expressions of the columns of a `graph_template`; incomplete columns are left to the task's model."""
    template = data.get("template")
    definitions = template.get("columns") if isinstance(template, Mapping) else None
    for index, column in enumerate(definitions if isinstance(definitions, list) else ()):
        expression = expression_of(column) if isinstance(column, Mapping) else None
        if expression is None or "${" in expression:
            continue
        path = ("spec", "data", "template", "columns", index, "expr" if column.get("expr") else "node")
        yield ReferenceSite(path, expression, None, whole=True, required="default" not in column)


class SourceText:
    """The submitted text, with the start of each line looked up once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts: list[int] = []

    def place_of(self, positions: Positions, site: ReferenceSite) -> tuple[int, int] | None:
        """Return line and column of the `${` of `site`, or None when the text there does not show it.

        That is so for escapes, for values given with `--set`, and for columns of a template, which are whole values.
        """
        value = positions.find(site.path)
        if site.raw is None or value.line < 1:
            return None
        at = self._offset(value.line, value.column)
        if _BLOCK_SCALAR.match(self.text, at):  # its text begins below the header
            at = self._offset(value.line + 1, 1)
        for _ in range(site.ordinal + 1):
            at = self.text.find("${", at) + 1
            if not at:
                return None
        return self._place(at - 1) if self.text.startswith(site.raw, at - 1) else None

    def _offset(self, line: int, column: int) -> int:
        starts = self._lines()
        return starts[min(line, len(starts)) - 1] + column - 1

    def _place(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._lines(), offset)
        return line, offset - self._starts[line - 1] + 1

    def _lines(self) -> list[int]:
        if not self._starts:
            self._starts = [0, *(match.end() for match in _LINE_BREAK.finditer(self.text))]
        return self._starts


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
