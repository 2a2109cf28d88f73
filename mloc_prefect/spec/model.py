"""`Workflow`: what the user wrote, expanded into one effective document for each task, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.spec.diagnostics import Diagnostic, Severity
    from mloc_prefect.spec.positions import PathPart, Positions
    from mloc_prefect.tasks.base import TaskSpec

WorkflowKind = Literal["single", "stages", "graph"]


@dataclass(frozen=True, slots=True)
class Source:
    """The submitted text and the name under which diagnostics show it."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class TaskNode:
    """One task of a workflow, before the graph is judged.

    Attributes:
        node: Name of the stage or graph node; None for a single task.
        name: `metadata.name` of the effective document (`base:stage`).
        task_type: `spec.taskType` of the effective document, as text.
        effective: The merged document before any coercion, substitution or default [protocol 2.5].
        spec: The typed reading of `effective["spec"]`.
        depends_on: Entries of `dependsOn` (trimmed, blanks dropped), or None when the key is absent.
        positions: Places of everything in `effective`.
        origin: Path of this node in the submitted document, e.g. `("spec", "stages", 1)`; `()` for a single task.
    """

    node: str | None
    name: str
    task_type: str
    effective: Mapping[str, Any]
    spec: TaskSpec
    depends_on: tuple[str, ...] | None
    positions: Positions
    origin: tuple[PathPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Workflow:
    """A valid spec.

    Attributes:
        name: `metadata.name` of the base document.
        kind: How the document expands [protocol 2.5].
        source: The text it came from.
        document: The base document as plain data.
        positions: Places of everything in `document`.
        nodes: Tasks in document order.
        warnings: What was noticed and does not stop the submission.
    """

    name: str
    kind: WorkflowKind
    source: Source
    document: Mapping[str, Any]
    positions: Positions
    nodes: tuple[TaskNode, ...]
    warnings: tuple[Diagnostic, ...] = field(default=())

    def diagnostic(
        self,
        path: tuple[PathPart, ...],
        *,
        severity: Severity,
        code: str,
        message: str,
        at_key: bool = False,
        node: TaskNode | None = None,
        found: str | None = None,
        suggestion: str | None = None,
    ) -> Diagnostic:
        """Return a diagnostic for `path`, placed by the submitted text.

        Args:
            path: Path in `document`, or in `node.effective` when `node` is given.
            severity: `error` or `warning`.
            code: Kebab-case name of the rule.
            message: One line.
            at_key: Point at the key instead of the value.
            node: The task whose effective document `path` belongs to.
            found: The value found, shortened.
            suggestion: The fix.
        """
        from mloc_prefect.spec.diagnostics import Diagnostic
        from mloc_prefect.spec.places import locate
        from mloc_prefect.spec.positions import path_text
        from mloc_prefect.spec.report import OVERRIDE_FILE

        place, shown = locate(node, self.positions, path) if node else (self.positions.find(path), path)
        line, column = (place.key_line, place.key_column) if at_key else (place.line, place.column)
        file = self.source.file if line else OVERRIDE_FILE
        return Diagnostic(file, line, column, severity, code, message, path_text(shown), found, suggestion)
