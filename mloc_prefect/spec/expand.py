"""Expands a document into one effective document per task: single, `stages` or `graph` [protocol 2.5]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.positions import Positions
from mloc_prefect.spec.declared_parameters import BLOCK
from mloc_prefect.spec.deep_merge import copied, merged
from mloc_prefect.spec.diagnostic_report import bad_character, shown

if TYPE_CHECKING:
    from mloc_prefect.diagnostics.positions import PathPart
    from mloc_prefect.spec.diagnostic_report import DiagnosticReport
    from mloc_prefect.spec.workflow import WorkflowKind

_ITEM_FIELDS = ("name", "id", "dependsOn", "spec")


@dataclass(frozen=True, slots=True)
class TaskDraft:
    """A task before its spec was validated; the fields are those of `TaskNode`."""

    node: str | None
    name: str
    effective: dict[str, Any]
    positions: Positions
    depends_on: tuple[str, ...] | None
    origin: tuple[PathPart, ...] = ()


MAX_TASKS = 2000
"""Tasks that one submission may have unless a setting says otherwise."""

_MOST_VALUES = 1_000_000  # values that all tasks together may get from the base
_MOST_CHARACTERS = 64 << 20  # characters of them


def expand(
    document: dict[str, Any], positions: Positions, report: DiagnosticReport, max_tasks: int = MAX_TASKS
) -> tuple[WorkflowKind, list[TaskDraft]]:
    """Return how `document` expands, and its tasks in document order.

    A non-empty list `spec.graph.nodes` makes a graph, otherwise a non-empty list `spec.stages` makes stages, otherwise
    the document is a single task. Errors in items are reported, and the rest of the item is still read.
    """
    spec = document["spec"]
    graph = spec.get("graph")
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    stages = spec.get("stages")
    has_graph, has_stages = (isinstance(items, list) and bool(items) for items in (nodes, stages))
    if has_graph and has_stages:
        position = positions.find(("spec", "stages"))
        message = "A spec can have graph.nodes or stages, not both"
        at = (position.key_line, position.key_column)
        report.error("graph-and-stages", message, at, path=("spec", "stages"), suggestion="remove one of the two")
    many = len(nodes or ()) if has_graph else len(stages or ()) if has_stages else 1
    if many > max_tasks:
        position = positions.find(("spec",))
        message = f"{many} tasks are more than the {max_tasks} that one submission may have"
        report.error("too-many-tasks", message, (position.key_line, position.key_column), path=("spec",))
        return ("graph" if has_graph else "stages"), []
    if many > 1 and _is_too_much(spec, many):
        position = positions.find(("spec",))
        message = f"Each of {many} tasks gets a copy of the base, which is too large for that"
        fix = "put large data into the stages that need it, or into a file that data.url names"
        at = (position.key_line, position.key_column)
        report.error("too-large", message, at, path=("spec",), suggestion=fix)
        return ("graph" if has_graph else "stages"), []
    if has_graph:
        return "graph", _items(document, positions, nodes or [], ("spec", "graph", "nodes"), report)
    if has_stages:
        return "stages", _items(document, positions, stages or [], ("spec", "stages"), report)
    _report_unused(spec, positions, report)
    depends_on = _depends_on(spec, ("spec",), positions, "spec.dependsOn must be a list of task_ids", report)
    task = copied({key: value for key, value in document.items() if key != BLOCK})
    return "single", [TaskDraft(None, base_name(document), task, positions, depends_on)]


def _is_too_much(spec: dict[str, Any], tasks: int) -> bool:
    """Return whether so many copies of the base would take more time and memory than a submission may."""
    values = characters = 0
    rest: list[Any] = [value for key, value in spec.items() if key not in {"stages", "graph"}]
    while rest:
        value = rest.pop()
        values += 1
        if isinstance(value, dict):
            rest += value.values()
            characters += sum(map(len, value))
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, str):
            characters += len(value)
    return values * tasks > _MOST_VALUES or characters * tasks > _MOST_CHARACTERS


def base_name(document: dict[str, Any]) -> str:
    """Return `metadata.name` as text."""
    metadata = document.get("metadata")
    return str(metadata.get("name")) if isinstance(metadata, dict) and "name" in metadata else "unnamed"


def _items(
    document: dict[str, Any],
    positions: Positions,
    items: list[Any],
    path: tuple[PathPart, ...],
    report: DiagnosticReport,
) -> list[TaskDraft]:
    is_graph = path[-1] == "nodes"
    spec = {key: value for key, value in document["spec"].items() if key not in {"stages", "graph"}}
    drafts: list[TaskDraft] = []
    lines: dict[str, int] = {}
    for index, item in enumerate(items):
        origin = (*path, index)
        position = positions.find(origin)
        if not isinstance(item, dict):
            kind = "graph node" if is_graph else "stage"
            message = f"Each {kind} must be a mapping"
            report.error(
                "invalid-item",
                message,
                (position.line, position.column),
                path=origin,
                found=shown(item),
                suggestion="write '- name: ...' and 'spec:'",
            )
            continue
        name = _item_name(item, index, origin, position, is_graph, report)
        at = position.children.get("name") or position.children.get("id") or position
        if name in lines:
            code, message = _duplicate(name, is_graph)
            fix = f"it is also the name of the one on line {lines[name]}; names must differ"
            report.error(code, message, (at.line, at.column), path=(*origin, "name"), found=shown(name), suggestion=fix)
        lines.setdefault(name, at.line)
        text = f"Node '{name}' dependsOn must be a list" if is_graph else "stage.dependsOn must be a list"
        depends_on = _depends_on(item, origin, positions, text, report)
        _check_fields(item, origin, position, report)
        drafts.append(_draft(document, positions, spec, item, name, depends_on, origin, report))
    return drafts


def _draft(
    document: dict[str, Any],
    positions: Positions,
    spec: dict[str, Any],
    item: dict[str, Any],
    name: str,
    depends_on: tuple[str, ...] | None,
    origin: tuple[PathPart, ...],
    report: DiagnosticReport,
) -> TaskDraft:
    position = positions.find(origin)
    over = item.get("spec")
    over_position = position.children.get("spec", position)
    if not isinstance(over, dict):
        if over is not None:
            at = (over_position.line, over_position.column)
            report.error("invalid-type", "spec must be a mapping", at, path=(*origin, "spec"), found=shown(over))
        # The item has no spec of its own, so fields that its task lacks are reported at the item.
        over, over_position = {}, Positions(position.line, position.column, position.key_line, position.key_column)
    data, spec_position = merged(spec, positions.find(("spec",)), over, over_position)
    metadata = document.get("metadata")
    full_name = f"{base_name(document)}:{name}"
    effective = {key: copied(value) for key, value in document.items() if key not in {"spec", BLOCK}}
    effective["metadata"] = {**(copied(metadata) if isinstance(metadata, dict) else {}), "name": full_name}
    effective["spec"] = data
    children = {**positions.children, "spec": spec_position}
    root = Positions(positions.line, positions.column, positions.key_line, positions.key_column, children)
    return TaskDraft(name, full_name, effective, root, depends_on, origin)


def _item_name(
    item: dict[str, Any],
    index: int,
    origin: tuple[PathPart, ...],
    position: Positions,
    is_graph: bool,
    report: DiagnosticReport,
) -> str:
    """Return the name of an item: `name`, else `id`, else a name made from its index."""
    default = f"{'node' if is_graph else 'stage'}-{index + 1}"
    key = "name" if item.get("name") else "id"
    value = item.get(key) or default
    if isinstance(value, (dict, list)):
        at = position.find((key,))
        report.error(
            "invalid-type", f"{key} must be text", (at.line, at.column), path=(*origin, key), found=shown(value)
        )
        return default
    name = str(value).strip()
    if (bad := bad_character(name)) is not None:
        at = position.find((key,))
        kind = "graph node" if is_graph else "stage"
        report.error(
            bad[0],
            f"the name of the {kind} has {bad[1]}",
            (at.line, at.column),
            path=(*origin, key),
            found=shown(value),
            suggestion=bad[2],
        )
    if not name:
        at = position.find((key,))
        message = "Each graph node requires a non-empty name" if is_graph else "Each stage requires a non-empty name"
        report.error(
            "empty-node-name",
            message,
            (at.line, at.column),
            path=(*origin, key),
            found=shown(value),
            suggestion="give it a name, or remove the field",
        )
    return name or default


def _duplicate(name: str, is_graph: bool) -> tuple[str, str]:
    if is_graph:
        return "duplicate-node-name", f"Duplicate graph node name '{name}'"
    return "duplicate-stage-name", f"Duplicate stage name '{name}'"


def _depends_on(
    item: dict[str, Any], path: tuple[PathPart, ...], positions: Positions, message: str, report: DiagnosticReport
) -> tuple[str, ...] | None:
    """Return the trimmed entries of `dependsOn` without blanks, or None when it is absent or null."""
    value = item.get("dependsOn")
    if value is None:
        return None
    here = (*path, "dependsOn")
    position = positions.find(here)
    if not isinstance(value, list):
        fix = f"write [{value}]" if isinstance(value, str) else "write a list, e.g. [first, second]"
        report.error(
            "depends-on-not-list",
            message,
            (position.line, position.column),
            path=here,
            found=shown(value),
            suggestion=fix,
        )
        return None
    entries = []
    for index, entry in enumerate(value):
        if isinstance(entry, (dict, list)):
            at = position.find((index,))
            report.error(
                "invalid-type",
                "Each entry of dependsOn must be text",
                (at.line, at.column),
                path=(*here, index),
                found=shown(entry),
            )
        elif entry is not None and str(entry).strip():
            entries.append(str(entry).strip())
    return tuple(entries)


def _check_fields(
    item: dict[str, Any], origin: tuple[PathPart, ...], position: Positions, report: DiagnosticReport
) -> None:
    """Warn about fields of an item other than `spec` that MLOC drops silently."""
    from mloc_prefect.spec.unknown_fields import item_field_help

    for key in item:
        if key not in _ITEM_FIELDS:
            at = position.children[key]
            message = f"Unknown field '{key}': only {', '.join(_ITEM_FIELDS)} are read here"
            fix = item_field_help(key, _ITEM_FIELDS)
            report.warning("unknown-field", message, (at.key_line, at.key_column), path=(*origin, key), suggestion=fix)


def _report_unused(spec: dict[str, Any], positions: Positions, report: DiagnosticReport) -> None:
    """Warn about `stages` or `graph` without a non-empty list: MLOC then runs the document as one task."""
    for key in ("stages", "graph"):
        if spec.get(key) is not None:
            position = positions.find(("spec", key))
            wanted = "a list of stages" if key == "stages" else "a mapping with a list 'nodes'"
            message = f"{key} is not used, as it is not {wanted} with at least one entry; the document is one task"
            at = (position.key_line, position.key_column)
            report.warning(
                "stages-ignored",
                message,
                at,
                path=("spec", key),
                found=shown(spec[key]),
                suggestion="write entries as '- name: ...'",
            )
