"""Compiles a `Workflow` to a `WorkflowPlan`: decides edges, references, resources and executors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import MAX_FINDINGS, Diagnostic, errors, warnings
from mloc_prefect.errors import SpecError
from mloc_prefect.plan.edges import find_edges, key_of
from mloc_prefect.plan.given_parameters import has_block, parameter_faults
from mloc_prefect.plan.references import KnownNames, ReferenceCheck
from mloc_prefect.plan.resources import mapping_of, request_of
from mloc_prefect.plan.shard_ranges import ShardRequest
from mloc_prefect.plan.workflow_plan import StagePlan, WorkflowPlan
from mloc_prefect.spec.declared_parameters import BLOCK
from mloc_prefect.spec.expand import MAX_TASKS
from mloc_prefect.spec.loader import read_spec
from mloc_prefect.spec.secrets import mask_diagnostics
from mloc_prefect.spec.syntax import MAX_SPEC_BYTES
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from mloc_prefect.plan.edges import TaskEdges
    from mloc_prefect.plan.workflow_plan import Reference
    from mloc_prefect.spec.workflow import TaskNode, Workflow
    from mloc_prefect.tasks.base import SpecProblem, TaskType

    Judge = Callable[[Mapping[str, Any]], Iterable[SpecProblem]]


def plan_workflow(
    workflow: Workflow,
    *,
    strict: bool = False,
    allowed_env: Collection[str] | None = None,
    params: Collection[str] = (),
) -> WorkflowPlan:
    """Return the plan of a valid workflow; nothing is started, read or imported for it.

    Args:
        workflow: What `spec.load` returned.
        strict: Treat warnings as errors.
        allowed_env: Names that `${env.NAME}` may read; None = the setting `MLOC_ALLOWED_ENV`.
        params: Names of the parameters that the run will have, for `${param.NAME}`; a mapping says their values, too,
            which are then checked against the block `params` of the spec.

    Raises:
        SpecError: With every fault of the graph and of the references.
    """
    plan, found = _compile(workflow, allowed_env, params, faulty=False)
    judged = _judged((*workflow.warnings, *mask_diagnostics(found, workflow.source.text)), strict)
    bad = errors(judged)
    if bad or plan is None:
        raise SpecError(bad)
    return replace(plan, warnings=warnings(judged))


def check(
    text: str | bytes,
    file: str = "<text>",
    *,
    strict: bool = False,
    overrides: Sequence[str] = (),
    max_bytes: int = MAX_SPEC_BYTES,
    max_tasks: int = MAX_TASKS,
    allowed_env: Collection[str] | None = None,
    params: Collection[str] = (),
    judge: Judge | None = None,
) -> tuple[WorkflowPlan | None, tuple[Diagnostic, ...]]:
    """Read and plan `text`: the plan (None when there is an error) and all diagnostics, sorted, each once.

    Args:
        text: The spec.
        file: Name that diagnostics show.
        strict: Treat warnings as errors.
        overrides: `path=value` texts, as `mloc run --set` takes them.
        max_bytes: Largest accepted size (the setting `MLOC_MAX_SPEC_BYTES`).
        max_tasks: Tasks that it may have (the setting `MLOC_MAX_TASKS`).
        allowed_env: Names that `${env.NAME}` may read; None = the setting `MLOC_ALLOWED_ENV`.
        params: Names of the parameters that the run will have, for `${param.NAME}`; a mapping says their values, too,
            which are then checked against the block `params` of the spec.
        judge: Returns what the settings refuse in the `spec` of a task (`artifacts.spec_rules`); None: nothing.
    """
    workflow, found = read_spec(text, file, overrides=overrides, max_bytes=max_bytes, max_tasks=max_tasks)
    if workflow is None or not workflow.nodes:
        return None, _judged(found, strict)
    plan, more = _compile(workflow, allowed_env, params, faulty=bool(errors(found)))
    judged = _judged((*found, *mask_diagnostics(more, workflow.source.text)), strict)
    if plan is None or errors(judged):
        return None, judged
    refused = _refused(workflow, judge) if judge is not None else []
    if refused:
        return None, _judged((*found, *more, *refused), strict)
    return replace(plan, warnings=warnings(judged)), judged


def _compile(
    workflow: Workflow, allowed_env: Collection[str] | None, params: Collection[str], *, faulty: bool
) -> tuple[WorkflowPlan | None, list[Diagnostic]]:
    """Return the plan, or None, and what was found; of a `faulty` workflow only the graph and references are judged."""
    names = _names(workflow, allowed_env, params)
    edges, found = find_edges(workflow)
    found += parameter_faults(workflow, params)
    checker = ReferenceCheck(workflow, edges, names, found)
    references = {}
    for node in workflow.nodes:
        key = key_of(workflow, node)
        references[key] = checker.check(node, key, task_type(node.task_type).required_references)
    if len(found) > MAX_FINDINGS:
        message = f"There are more than {MAX_FINDINGS} findings; the rest is not shown"
        found.append(workflow.diagnostic(("spec",), severity="error", code="too-many-findings", message=message))
    if faulty or errors(found):
        return None, found
    nodes = {key_of(workflow, node): node for node in workflow.nodes}
    stages = tuple(_stage(nodes[key], key, edges, references[key]) for key in edges.order)
    digest = hashlib.sha256(workflow.source.text.encode()).hexdigest()
    plan = WorkflowPlan(
        workflow.name,
        workflow.kind,
        workflow.source.file,
        digest,
        stages,
        parameters=workflow.parameters,
        source_text=None if workflow.source.overridden else workflow.source.text,
    )
    return plan, found


def _refused(workflow: Workflow, judge: Judge) -> list[Diagnostic]:
    """Return what the settings refuse, with its positions."""
    problems = ((node, p) for node in workflow.nodes for p in judge(mapping_of(node.effective.get("spec"))))
    return [
        workflow.diagnostic(
            ("spec", *p.path), node=node, severity=p.severity, code=p.code, message=p.message, suggestion=p.suggestion
        )
        for node, p in islice(problems, MAX_FINDINGS)
    ]


def _stage(node: TaskNode, key: str, edges: TaskEdges, references: tuple[Reference, ...]) -> StagePlan:
    kind = task_type(node.task_type)
    executor = kind.executor(node.spec)
    spec = mapping_of(node.effective.get("spec"))
    common = node.spec if isinstance(node.spec, CommonSpec) else CommonSpec()
    shards = _max_shards(kind, common, spec)
    notes = list(edges.notes.get(key, ()))
    if shards > 1:
        notes.append(f"data-parallel: up to {shards} shards when that many machines are free")
    return StagePlan(
        key=key,
        node=node.node,
        name=node.name,
        task_type=node.task_type,
        depends_on=edges.depends_on[key],
        waits_for=tuple(edges.waits_for.get(key, ())),
        external=edges.external[key],
        effective=node.effective,
        resources=request_of(kind, spec),
        executor=executor,
        model=kind.model_identifier(node.spec),
        references=references,
        timeout_seconds=common.timeout_sec,
        priority=common.priority,
        max_shards=shards,
        notes=tuple(notes),
    )


def _max_shards(kind: TaskType, common: CommonSpec, spec: Mapping[str, Any]) -> int:
    """Return the bound on data-parallel shards. [protocol 2.7]."""
    wish = ShardRequest.of(kind, spec, default_most=common.parallel.max_shards)
    return wish.most if wish is not None else 1


def _judged(found: Iterable[Diagnostic], strict: bool) -> tuple[Diagnostic, ...]:
    """Return diagnostics sorted by place, each once (a fault in the base is found again in every stage)."""
    first: dict[tuple[object, ...], Diagnostic] = {}
    for one in sorted(found, key=lambda d: (d.line, d.column, d.severity, d.code, d.message)):
        shown = replace(one, severity="error") if strict and one.severity == "warning" else one
        path = None if one.line else one.path  # values given with --set have no other place
        first.setdefault((one.line, one.column, one.code, one.message, path), shown)
    return tuple(first.values())


def _names(workflow: Workflow, allowed_env: Collection[str] | None, params: Collection[str]) -> KnownNames:
    declared = has_block(workflow)
    known = workflow.document[BLOCK] if declared else params
    return KnownNames(_allowed_by_settings if allowed_env is None else allowed_env, known, declared)


def _allowed_by_settings() -> Collection[str]:
    """Return the names in `MLOC_ALLOWED_ENV`; the settings are loaded only when a spec asks for a variable."""
    from mloc_prefect.settings import get_settings

    return frozenset(name.strip() for name in get_settings().allowed_env.split(",") if name.strip())
