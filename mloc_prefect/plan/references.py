"""Checks every `${...}` and every `graph_template` column before anything runs. [decisions: References]."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import MAX_FINDINGS, did_you_mean
from mloc_prefect.plan.edges import SUGGESTION_NAMES
from mloc_prefect.plan.expressions import Expression, ExpressionError, parse, root_of
from mloc_prefect.plan.reference_sites import SourceText, columns, placeholders
from mloc_prefect.tasks.prompts import PromptData

if TYPE_CHECKING:
    from mloc_prefect.diagnostics.diagnostic import Diagnostic, Severity
    from mloc_prefect.plan.edges import TaskEdges
    from mloc_prefect.plan.reference_sites import ReferenceSite
    from mloc_prefect.plan.workflow_plan import Reference
    from mloc_prefect.spec.workflow import TaskNode, Workflow

ROOTS = ("env", "param")


@dataclass(slots=True)
class KnownNames:
    """Names that the roots `env` and `param` may read.

    Attributes:
        env: Names of environment variables, or a function that gives them when one is asked for.
        params: Names of the run's parameters.
        declared: Whether the spec itself says which there are.
    """

    env: Collection[str] | Callable[[], Collection[str]] = ()
    params: Collection[str] = ()
    declared: bool = False

    def below(self, root: str) -> Collection[str]:
        """Return the names that may stand after `root`."""
        if root == "param":
            return self.params
        if callable(self.env):
            self.env = self.env()
        return self.env


@dataclass(slots=True)
class ReferenceCheck:
    """Checks the references of one workflow; adds `waits_for` edges to `edges` and diagnostics to `found`."""

    workflow: Workflow
    edges: TaskEdges
    names: KnownNames
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
        if self._is_full:
            return ()
        spec = node.effective.get("spec")
        references = self._check_sites(node, key, placeholders(spec, required))
        data = spec.get("data") if isinstance(spec, Mapping) else None
        prompts = isinstance(getattr(node.spec, "data", None), PromptData)  # other types give `data` no meaning
        if prompts and isinstance(data, Mapping) and data.get("type") == "graph_template":
            references += self._graph_template(node, key, data)
        return tuple(reference for reference in references if reference is not None)

    @property
    def _is_full(self) -> bool:
        """Whether the plan is refused already, so that the rest need not be checked."""
        return len(self.found) > MAX_FINDINGS

    def _check_sites(self, node: TaskNode, key: str, sites: Iterable[ReferenceSite]) -> list[Reference | None]:
        references = []
        for site in sites:
            if self._is_full:
                break
            references.append(self._check_site(node, key, site))
        return references

    def _check_site(self, node: TaskNode, key: str, site: ReferenceSite) -> Reference | None:
        """Apply the rules in order; return None for text that stays as it is and for errors without a target."""
        root = root_of(site.expression)
        if self.workflow.kind != "single" and root in self.edges.depends_on:
            return self._stage(node, key, site, root)
        if site.doubled and "." in site.expression:
            return None
        if root in ROOTS and "." in site.expression and not site.is_column:
            return self._named(node, site, root)
        if "." not in site.expression and not site.is_column:
            self._literal(node, site)
            return None
        if self.edges.external[key]:
            return self._unchecked(node, site, root)
        self._unknown(node, site, root)
        return None

    def _stage(self, node: TaskNode, key: str, site: ReferenceSite, stage: str) -> Reference | None:
        expression = self._parse(node, site)
        if expression is None:
            return None
        if expression.is_task_id and not site.is_column:
            return site.reference(stage)  # ids are known before anything runs: no edge
        if stage == key:
            self._add(node, site, "error", "self-reference", f"{site.shown} reads the result of its own task")
        elif not self.edges.cyclic and not self._is_above(key, stage):
            self._sideways(node, key, site, stage)
        return site.reference(stage)

    def _is_above(self, key: str, stage: str) -> bool:
        """Whether `stage` stands above `key`; the answer for the last key is kept, as a task has many references."""
        if stage in self.edges.depends_on[key]:
            return True
        if self._above[0] != key:
            self._above = (key, self.edges.above(key))
        return stage in self._above[1]

    def _sideways(self, node: TaskNode, key: str, site: ReferenceSite, stage: str) -> None:
        """Add an execution-only edge to a task that is not upstream."""
        waits = self.edges.waits_for.setdefault(key, [])
        if stage not in waits and key in self.edges.above(stage, execution=True):
            message = f"{site.shown} reads from '{stage}', which itself waits for this task"
            self._add(node, site, "error", "reference-cycle", message, "read from an earlier task")
            return
        if key in self.edges.unresolved:
            return  # the dependency that does not exist is reported already
        if stage not in waits:
            waits.append(stage)
        message = f"{site.shown} reads from '{stage}', which is not upstream; this task will wait for it"
        self._add(node, site, "warning", "not-upstream", message, f"add '{stage}' to dependsOn")

    def _named(self, node: TaskNode, site: ReferenceSite, root: str) -> Reference | None:
        expression = self._parse(node, site)
        if expression is None:
            return None
        name = expression.path[0] if len(expression.path) == 1 else None
        if not isinstance(name, str):
            self._add(node, site, "error", "bad-reference", f"{site.shown} must have the form ${{{root}.NAME}}")
            return None
        allowed = self.names.below(root)
        if name in allowed:
            return site.reference(None)
        if root == "env":
            message = f"{site.shown} reads an environment variable that is not allowed"
            self._add(node, site, "error", "env-not-allowed", message, f"allow it: MLOC_ALLOWED_ENV={name}")
        else:
            how = "declared in params" if self.names.declared else "given"
            message = f"{site.shown} names a parameter that is not {how}"
            give = f'give it: --param {name}=VALUE (over HTTP: "parameters")'
            fix = did_you_mean(name, allowed) or (f"add '{name}:' to params" if self.names.declared else give)
            self._add(node, site, "error", "unknown-parameter", message, fix)
        return None

    def _literal(self, node: TaskNode, site: ReferenceSite) -> None:
        near = did_you_mean(site.expression, self._stage_names())
        name = site.expression
        variable = f"write ${{env.{name}}} for an environment variable (allowed by MLOC_ALLOWED_ENV)"
        message = f"{site.shown} names no stage, so it stays as it is"
        fix = near or (variable if name.isidentifier() else None)
        self._add(node, site, "warning", "literal-placeholder", message, fix)

    def _unchecked(self, node: TaskNode, site: ReferenceSite, root: str) -> Reference | None:
        if self._parse(node, site) is None:
            return None
        message = f"'{root}' is no stage of this submission; it is looked for in the tasks of dependsOn at run time"
        self._add(node, site, "warning", "unchecked-reference", message)
        return site.reference(None)

    def _unknown(self, node: TaskNode, site: ReferenceSite, root: str) -> None:
        names = self._stage_names()
        dotted = next((n for n in names if "." in n and site.expression.startswith(f"{n}.")), None)
        if dotted:
            suggestion = f"'{dotted}' has a dot in its name and cannot be referred to; rename it"
        elif names:
            shown = f"the names are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            suggestion = did_you_mean(root, names) or shown
        else:
            suggestion = "a single task has no stages to read from"
        if site.raw is not None:
            suggestion = f"{suggestion}; for the text itself, write ${site.raw}"
        message = f"{site.shown} reads from '{root}', which is no stage of this workflow"
        self._add(node, site, "error", "unknown-stage", message, suggestion)

    def _graph_template(self, node: TaskNode, key: str, data: Mapping[str, Any]) -> list[Reference | None]:
        """Check the columns, and that there is an upstream task at all."""
        alone = self.workflow.kind == "single" and not self.edges.external[key]
        before = len(self.found)
        references = [] if alone else self._check_sites(node, key, columns(data))
        upstream = self.edges.depends_on[key] or self.edges.external[key] or self.edges.waits_for.get(key)
        if not upstream and key not in self.edges.unresolved and len(self.found) == before:
            path = ("spec", "data", "type")
            message = "No upstream results available for graph template prompts."
            fix = "make it a stage after another one, or a graph node with dependsOn"
            error = self.workflow.diagnostic(
                path, node=node, severity="error", code="no-upstream", message=message, suggestion=fix
            )
            self.found.append(error)
        return references

    def _stage_names(self) -> tuple[str, ...]:
        return () if self.workflow.kind == "single" else self.edges.keys[:SUGGESTION_NAMES]

    def _parse(self, node: TaskNode, site: ReferenceSite) -> Expression | None:
        try:
            return parse(site.expression)
        except ExpressionError as error:
            self._add(node, site, "error", "bad-reference", f"{site.shown} cannot be read: {error}")
            return None

    def _add(
        self,
        node: TaskNode,
        site: ReferenceSite,
        severity: Severity,
        code: str,
        message: str,
        suggestion: str | None = None,
    ) -> None:
        if self._is_full:
            return
        found = self.workflow.diagnostic(
            site.path, node=node, severity=severity, code=code, message=message, suggestion=suggestion
        )
        position = self._source.place_of(node.positions, site)
        if position:
            found = replace(found, line=position[0], column=position[1])
        same = (found.line, found.column, code, message, None if found.line else found.path)
        if same not in self._seen:  # an error in the base document appears in every stage again
            self._seen.add(same)
            self.found.append(found)
