"""Validates the spec of each task against the model of its task type, and reports errors at their source position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.spec.diagnostic_report import shown
from mloc_prefect.spec.locate import locate
from mloc_prefect.spec.workflow import TaskNode
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.keys import table_of, unknown_keys
from mloc_prefect.tasks.registry import TASK_TYPES, is_known, task_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.diagnostics.positions import PathPart, Positions
    from mloc_prefect.spec.diagnostic_report import DiagnosticReport
    from mloc_prefect.spec.expand import TaskDraft
    from mloc_prefect.tasks.base import SpecProblem, TaskType
    from mloc_prefect.tasks.keys import FieldNames

_Unknown = tuple["TaskDraft", "TaskType", tuple["PathPart", ...], "FieldNames"]


def validate_tasks(
    drafts: Sequence[TaskDraft], document_positions: Positions, report: DiagnosticReport
) -> tuple[TaskNode, ...]:
    """Return `drafts` with their typed specs; errors and warnings are added to `report`."""
    nodes = []
    unknown: list[_Unknown] = []
    for draft in drafts:
        spec = draft.effective["spec"]
        name = _type_name(spec)
        kind = task_type(name)
        if not is_known(name):
            _report_type(draft, spec, document_positions, report)
        checked = check_spec(kind.model, spec)
        for problem in checked.problems:
            _report_problem(problem, draft, document_positions, report)
        unknown += [(draft, kind, path, table) for path, table in unknown_keys(spec, table_of(kind.model))]
        nodes.append(
            TaskNode(
                node=draft.node,
                name=draft.name,
                task_type=name,
                effective=draft.effective,
                spec=checked.spec,
                depends_on=draft.depends_on,
                positions=draft.positions,
                origin=draft.origin,
            )
        )
    if unknown:
        _report_unknown(unknown, drafts, document_positions, report)
    return tuple(nodes)


def _type_name(spec: dict[str, Any]) -> str:
    value = spec.get("taskType")
    return "" if value is None or isinstance(value, (dict, list)) else str(value)


def _report_type(draft: TaskDraft, spec: dict[str, Any], positions: Positions, report: DiagnosticReport) -> None:
    if "taskType" not in spec or isinstance(spec["taskType"], (dict, list)):
        return  # missing, or the model reports that it is not text
    value = spec["taskType"]
    position, path = locate(draft, positions, ("spec", "taskType"))
    names = [kind.name for kind in TASK_TYPES]
    near = did_you_mean(str(value), names) or f"the task types are {', '.join(names[:8])}"
    message = f"Unknown task type {shown(value)}: it runs as inference with transformers, as in MLOC"
    report.warning(
        "unknown-task-type", message, (position.line, position.column), path=path, found=shown(value), suggestion=near
    )


def _report_problem(problem: SpecProblem, draft: TaskDraft, positions: Positions, report: DiagnosticReport) -> None:
    full = ("spec", *problem.path)
    exists, value = _value_at(draft.effective, full)
    position, path = locate(draft, positions, full)
    at = (position.line, position.column) if exists else (position.key_line, position.key_column)
    report.add(
        problem.severity,
        problem.code,
        problem.message,
        at,
        path=path,
        found=shown(value) if exists else None,
        suggestion=problem.suggestion or (_likely_fix(value, problem) if exists else None),
    )


def _value_at(value: Any, path: tuple[PathPart, ...]) -> tuple[bool, Any]:
    """Return whether there is a value at `path`, and that value."""
    for part in path:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return False, None
    return True, value


def _likely_fix(value: Any, problem: SpecProblem) -> str | None:
    """Return the fix for common reasons why a value is not what its author intended."""
    wants_text = problem.wants == "text"
    if isinstance(value, bool) and wants_text:
        return "YAML reads yes, no, on, off, true and false as booleans: quote the word"
    if isinstance(value, dict) and len(value) == 1 and wants_text:
        return "quote the text: a ': ' in it makes YAML read a mapping"
    if isinstance(value, (int, float)) and wants_text:
        return f"quote it: '{value}'"
    if isinstance(value, str) and problem.wants == "list":
        return "write it as a list, one '- ' line per entry"
    return None


def _report_unknown(
    unknown: list[_Unknown], drafts: Sequence[TaskDraft], positions: Positions, report: DiagnosticReport
) -> None:
    """Warn about names that no task reads; a field of the base is accepted when the type of any stage knows it."""
    from mloc_prefect.spec.unknown_fields import unknown_field_help

    unread = {(draft.origin, path) for draft, _, path, _ in unknown}
    for draft, kind, path, table in unknown:
        if report.is_full("warning"):
            return
        full = ("spec", *path)
        position, shown_path = locate(draft, positions, full)
        in_base = shown_path == full
        if in_base and any(_value_at(d.effective, full)[0] and (d.origin, path) not in unread for d in drafts):
            continue
        fix = unknown_field_help(path, table, kind)
        at = (position.key_line, position.key_column)
        report.warning("unknown-field", f"Unknown field '{path[-1]}'", at, path=shown_path, suggestion=fix)
