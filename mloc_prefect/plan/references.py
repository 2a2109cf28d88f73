"""The check of every `${...}` and every `graph_template` column before anything runs. [architecture: References]."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.edges import SUGGESTION_NAMES
from mloc_prefect.plan.expressions import Expression, ExpressionError, parse, root_of
from mloc_prefect.plan.spots import SourceText, columns, placeholders
from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.prompts import PromptData

if TYPE_CHECKING:
    from mloc_prefect.plan.edges import Edges
    from mloc_prefect.plan.model import Reference
    from mloc_prefect.plan.spots import Spot
    from mloc_prefect.spec.diagnostics import Diagnostic, Severity
    from mloc_prefect.spec.model import TaskNode, Workflow

ROOTS = ("env", "param")
MAX_FOUND = 500
"""Nobody reads more; keeps the cost of a hostile spec bounded. The plan is refused with the 501st."""


@dataclass(slots=True)
class Names:
    """Names that the roots `env` and `param` may read.

    Attributes:
        env: Names of environment variables, or a function that gives them when one is asked for.
        params: Names of the run's parameters.
    """

    env: Collection[str] | Callable[[], Collection[str]] = ()
    params: Collection[str] = ()

    def below(self, root: str) -> Collection[str]:
        """Return the names that may stand after `root`."""
        if root == "param":
            return self.params
        if callable(self.env):
            self.env = self.env()
        return self.env


@dataclass(slots=True)
class ReferenceCheck:
    """Judges the references of the tasks of one workflow; adds `waits_for` edges to `edges`, faults to `found`."""

    workflow: Workflow
    edges: Edges
    names: Names
    found: list[Diagnostic] = field(default_factory=list)
    _source: SourceText = field(init=False)
    _above: tuple[str, set[str]] = ("", set())
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._source = SourceText(self.workflow.source.text)

    def check(self, node: TaskNode, key: str, required: tuple[str, ...]) -> tuple[Reference, ...]:
        """Return the references of one task.

        Args:
            node: The task.
            key: Its key in the plan.
            required: Paths below `spec` where a missing value fails the stage.
        """
        if len(self.found) > MAX_FOUND:
            return ()
        spec = node.effective.get("spec")
        judged = [self._judge(node, key, spot) for spot in placeholders(spec, required)]
        data = spec.get("data") if isinstance(spec, Mapping) else None
        prompts = isinstance(getattr(node.spec, "data", None), PromptData)  # elsewhere `data` is free of meaning
        if prompts and isinstance(data, Mapping) and data.get("type") == "graph_template":
            judged += self._graph_template(node, key, data)
        return tuple(reference for reference in judged if reference is not None)

    def _judge(self, node: TaskNode, key: str, spot: Spot) -> Reference | None:
        """Apply the rules in their order; None for text that stays as it is and for faults without a target."""
        root = root_of(spot.expression)
        if self.workflow.kind != "single" and root in self.edges.depends_on:
            return self._stage(node, key, spot, root)
        if root in ROOTS and "." in spot.expression and not spot.is_column:
            return self._named(node, spot, root)
        if "." not in spot.expression and not spot.is_column:
            self._literal(node, spot)
            return None
        if self.edges.external[key]:
            return self._unchecked(node, spot, root)
        self._unknown(node, spot, root)
        return None

    def _stage(self, node: TaskNode, key: str, spot: Spot, stage: str) -> Reference | None:
        expression = self._parse(node, spot)
        if expression is None:
            return None
        if expression.is_task_id and not spot.is_column:
            return spot.reference(stage)  # ids are known before anything runs: no edge
        if stage == key:
            self._add(node, spot, "error", "self-reference", f"{spot.shown} reads the result of its own task")
        elif not self.edges.cyclic and not self._is_above(key, stage):
            self._sideways(node, key, spot, stage)
        return spot.reference(stage)

    def _is_above(self, key: str, stage: str) -> bool:
        """Whether `stage` stands above `key`; the answer for the last key is kept, as a task has many references."""
        if stage in self.edges.depends_on[key]:
            return True
        if self._above[0] != key:
            self._above = (key, self.edges.above(key))
        return stage in self._above[1]

    def _sideways(self, node: TaskNode, key: str, spot: Spot, stage: str) -> None:
        """Add an execution-only edge to a task that is not upstream."""
        waits = self.edges.waits_for.setdefault(key, [])
        if stage not in waits and key in self.edges.above(stage, execution=True):
            message = f"{spot.shown} reads from '{stage}', which itself waits for this task"
            self._add(node, spot, "error", "reference-cycle", message, "read from an earlier task")
            return
        if key in self.edges.unresolved:
            return  # it follows from the dependency that does not exist
        if stage not in waits:
            waits.append(stage)
        message = f"{spot.shown} reads from '{stage}', which is not upstream; this task will wait for it"
        self._add(node, spot, "warning", "not-upstream", message, f"add '{stage}' to dependsOn")

    def _named(self, node: TaskNode, spot: Spot, root: str) -> Reference | None:
        expression = self._parse(node, spot)
        if expression is None:
            return None
        name = expression.path[0] if len(expression.path) == 1 else None
        if not isinstance(name, str):
            self._add(node, spot, "error", "bad-reference", f"{spot.shown} must have the form ${{{root}.NAME}}")
            return None
        allowed = self.names.below(root)
        if name in allowed:
            return spot.reference(None)
        if root == "env":
            message = f"{spot.shown} reads an environment variable that is not allowed"
            self._add(node, spot, "error", "env-not-allowed", message, f"allow it: MLOC_ALLOWED_ENV={name}")
        else:
            message = f"{spot.shown} names a parameter that is not given"
            fix = did_you_mean(name, allowed) or f'give it: --param {name}=VALUE (over HTTP: "parameters")'
            self._add(node, spot, "error", "unknown-parameter", message, fix)
        return None

    def _literal(self, node: TaskNode, spot: Spot) -> None:
        near = did_you_mean(spot.expression, self._stage_names())
        name = spot.expression
        variable = f"write ${{env.{name}}} for an environment variable (allowed by MLOC_ALLOWED_ENV)"
        message = f"{spot.shown} names no stage, so it stays as it is"
        fix = near or (variable if name.isidentifier() else None)
        self._add(node, spot, "warning", "literal-placeholder", message, fix)

    def _unchecked(self, node: TaskNode, spot: Spot, root: str) -> Reference | None:
        if self._parse(node, spot) is None:
            return None
        message = f"'{root}' is no stage of this submission; it is looked for in the tasks of dependsOn at run time"
        self._add(node, spot, "warning", "unchecked-reference", message)
        return spot.reference(None)

    def _unknown(self, node: TaskNode, spot: Spot, root: str) -> None:
        names = self._stage_names()
        dotted = next((n for n in names if "." in n and spot.expression.startswith(f"{n}.")), None)
        if dotted:
            suggestion = f"'{dotted}' has a dot in its name and cannot be referred to; rename it"
        elif names:
            shown = f"the names are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            suggestion = did_you_mean(root, names) or shown
        else:
            suggestion = "a single task has no stages to read from"
        message = f"{spot.shown} reads from '{root}', which is no stage of this workflow"
        self._add(node, spot, "error", "unknown-stage", message, suggestion)

    def _graph_template(self, node: TaskNode, key: str, data: Mapping[str, Any]) -> list[Reference | None]:
        """Check the columns, and that there is anything upstream at all."""
        alone = self.workflow.kind == "single" and not self.edges.external[key]
        before = len(self.found)
        judged = [] if alone else [self._judge(node, key, spot) for spot in columns(data)]
        upstream = self.edges.depends_on[key] or self.edges.external[key] or self.edges.waits_for.get(key)
        if not upstream and key not in self.edges.unresolved and len(self.found) == before:
            path = ("spec", "data", "type")
            message = "No upstream results available for graph template prompts."
            fix = "make it a stage after another one, or a graph node with dependsOn"
            error = self.workflow.diagnostic(
                path, node=node, severity="error", code="no-upstream", message=message, suggestion=fix
            )
            self.found.append(error)
        return judged

    def _stage_names(self) -> tuple[str, ...]:
        return () if self.workflow.kind == "single" else self.edges.keys[:SUGGESTION_NAMES]

    def _parse(self, node: TaskNode, spot: Spot) -> Expression | None:
        try:
            return parse(spot.expression)
        except ExpressionError as error:
            self._add(node, spot, "error", "bad-reference", f"{spot.shown} cannot be read: {error}")
            return None

    def _add(
        self, node: TaskNode, spot: Spot, severity: Severity, code: str, message: str, suggestion: str | None = None
    ) -> None:
        if len(self.found) > MAX_FOUND:
            return
        found = self.workflow.diagnostic(
            spot.path, node=node, severity=severity, code=code, message=message, suggestion=suggestion
        )
        place = self._source.place_of(node.positions, spot)
        if place:
            found = replace(found, line=place[0], column=place[1])
        same = (found.line, found.column, code, message, None if found.line else found.path)
        if same not in self._seen:  # a fault of the base is met again in every stage
            self._seen.add(same)
            self.found.append(found)
