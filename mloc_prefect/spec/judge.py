"""Reads each task's spec with the model of its task type and reports what is wrong, where it really stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.spec.model import TaskNode
from mloc_prefect.spec.places import locate
from mloc_prefect.spec.report import shown
from mloc_prefect.tasks.checks import check
from mloc_prefect.tasks.keys import table_of, unknown_keys
from mloc_prefect.tasks.registry import TASK_TYPES, is_known, task_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.spec.expand import Draft
    from mloc_prefect.spec.positions import PathPart, Positions
    from mloc_prefect.spec.report import Report
    from mloc_prefect.tasks.base import Problem, TaskType
    from mloc_prefect.tasks.keys import Table

_Unknown = tuple["Draft", "TaskType", tuple["PathPart", ...], "Table"]


def judge(drafts: Sequence[Draft], document_places: Positions, report: Report) -> tuple[TaskNode, ...]:
    """Return `drafts` with their typed specs; everything that is wrong with them goes into `report`."""
    nodes = []
    unknown: list[_Unknown] = []
    for draft in drafts:
        spec = draft.effective["spec"]
        name = _type_name(spec)
        kind = task_type(name)
        if not is_known(name):
            _report_type(draft, spec, document_places, report)
        checked = check(kind.model, spec)
        for problem in checked.problems:
            _report_problem(problem, draft, document_places, report)
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
        _report_unknown(unknown, drafts, document_places, report)
    return tuple(nodes)


def _type_name(spec: dict[str, Any]) -> str:
    value = spec.get("taskType")
    return "" if value is None or isinstance(value, (dict, list)) else str(value)


def _report_type(draft: Draft, spec: dict[str, Any], places: Positions, report: Report) -> None:
    if "taskType" not in spec or isinstance(spec["taskType"], (dict, list)):
        return  # missing, or reported by the model as not being text
    value = spec["taskType"]
    place, path = locate(draft, places, ("spec", "taskType"))
    names = [kind.name for kind in TASK_TYPES]
    near = did_you_mean(str(value), names) or f"the task types are {', '.join(names[:8])}"
    message = f"Unknown task type {shown(value)}: it runs as inference with transformers, as in MLOC"
    report.warning(
        "unknown-task-type", message, (place.line, place.column), path=path, found=shown(value), suggestion=near
    )


def _report_problem(problem: Problem, draft: Draft, places: Positions, report: Report) -> None:
    full = ("spec", *problem.path)
    there, value = _value(draft.effective, full)
    place, path = locate(draft, places, full)
    at = (place.line, place.column) if there else (place.key_line, place.key_column)
    report.add(
        problem.severity,
        problem.code,
        problem.message,
        at,
        path=path,
        found=shown(value) if there else None,
        suggestion=problem.suggestion or (_slip(value, problem) if there else None),
    )


def _value(value: Any, path: tuple[PathPart, ...]) -> tuple[bool, Any]:
    for part in path:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return False, None
    return True, value


def _slip(value: Any, problem: Problem) -> str | None:
    """Return the usual reason why a value is not what its writer meant."""
    wants_text = "text" in problem.message or "string" in problem.message
    if isinstance(value, bool) and wants_text:
        return "YAML reads yes, no, on, off, true and false as truth values: quote the word"
    if isinstance(value, dict) and len(value) == 1 and wants_text:
        return "quote the text: a ': ' in it makes YAML read a mapping"
    if isinstance(value, (int, float)) and wants_text:
        return f"quote it: '{value}'"
    if isinstance(value, str) and "must be a list" in problem.message:
        return "write it as a list, one '- ' line for each entry"
    return None


def _report_unknown(unknown: list[_Unknown], drafts: Sequence[Draft], places: Positions, report: Report) -> None:
    """Warn of names that no task reads; a field of the base is fine when some stage's task type knows it."""
    from mloc_prefect.spec.unknown import unknown_field_help

    unread = {(draft.origin, path) for draft, _, path, _ in unknown}
    for draft, kind, path, table in unknown:
        full = ("spec", *path)
        where, shown_path = locate(draft, places, full)
        in_base = shown_path == full
        if in_base and any(_value(d.effective, full)[0] and (d.origin, path) not in unread for d in drafts):
            continue
        fix = unknown_field_help(path, table, kind)
        at = (where.key_line, where.key_column)
        report.warning("unknown-field", f"Unknown field '{path[-1]}'", at, path=shown_path, suggestion=fix)
