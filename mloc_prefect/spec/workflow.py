"""`Workflow`: a submitted spec, expanded into one effective document per task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.diagnostics.diagnostic import Diagnostic, Severity
    from mloc_prefect.diagnostics.positions import PathPart, Positions
    from mloc_prefect.spec.declared_parameters import SpecParameter
    from mloc_prefect.tasks.base import TaskSpec

WorkflowKind = Literal["single", "stages", "graph"]


@dataclass(frozen=True, slots=True)
class SpecSource:
    """The submitted text and the name under which diagnostics show it.

    Attributes:
        file: The name.
        text: The text.
        overridden: Whether values were set beside the text (`--set`).
    """

    file: str
    text: str
    overridden: bool = False


@dataclass(frozen=True, slots=True)
class TaskNode:
    """One task of a workflow, before the graph is validated.

    Attributes:
        node: Name of the stage or graph node; None for a single task.
        name: `metadata.name` of the effective document (`base:stage`).
        task_type: `spec.taskType` of the effective document, as text.
        effective: The merged document before any coercion, substitution or default [protocol 2.5].
        spec: The typed form of `effective["spec"]`.
        depends_on: Entries of `dependsOn` (trimmed, blanks dropped), or None when the key is absent.
        positions: Positions of all values in `effective`.
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
        source: The submitted text.
        document: The base document as plain data.
        positions: Positions of all values in `document`.
        nodes: Tasks in document order.
        warnings: Problems that do not prevent submission.
        parameters: What its block `params` declares.
    """

    name: str
    kind: WorkflowKind
    source: SpecSource
    document: Mapping[str, Any]
    positions: Positions
    nodes: tuple[TaskNode, ...]
    warnings: tuple[Diagnostic, ...] = field(default=())
    parameters: tuple[SpecParameter, ...] = ()

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
        """Return a diagnostic for `path`, with its position in the submitted text.

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
        from mloc_prefect.diagnostics.diagnostic import Diagnostic
        from mloc_prefect.diagnostics.positions import path_text
        from mloc_prefect.spec.diagnostic_report import OVERRIDE_FILE
        from mloc_prefect.spec.locate import locate

        position, shown = locate(node, self.positions, path) if node else (self.positions.find(path), path)
        line, column = (position.key_line, position.key_column) if at_key else (position.line, position.column)
        file = self.source.file if line else OVERRIDE_FILE
        return Diagnostic(file, line, column, severity, code, message, path_text(shown), found, suggestion)
