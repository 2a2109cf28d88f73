"""One document to one effective document for each task: single, `stages` or `graph` [protocol 2.5]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.merge import copied, merged
from mloc_prefect.spec.positions import Positions
from mloc_prefect.spec.report import shown

if TYPE_CHECKING:
    from mloc_prefect.spec.model import WorkflowKind
    from mloc_prefect.spec.positions import PathPart
    from mloc_prefect.spec.report import Report

_ITEM_FIELDS = ("name", "id", "dependsOn", "spec")


@dataclass(frozen=True, slots=True)
class Draft:
    """A task before its spec was judged; the fields are those of `TaskNode`."""

    node: str | None
    name: str
    effective: dict[str, Any]
    positions: Positions
    depends_on: tuple[str, ...] | None
    origin: tuple[PathPart, ...] = ()


def expand(document: dict[str, Any], places: Positions, report: Report) -> tuple[WorkflowKind, list[Draft]]:
    """Return how `document` expands, and its tasks in document order.

    A non-empty list `spec.graph.nodes` makes a graph, else a non-empty list `spec.stages` makes stages, else it is one
    task. Faults of items are reported; the item is then read as well as it can be.
    """
    spec = document["spec"]
    graph = spec.get("graph")
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    stages = spec.get("stages")
    has_graph, has_stages = (isinstance(items, list) and bool(items) for items in (nodes, stages))
    if has_graph and has_stages:
        place = places.find(("spec", "stages"))
        message = "A spec can have graph.nodes or stages, not both"
        at = (place.key_line, place.key_column)
        report.error("graph-and-stages", message, at, path=("spec", "stages"), suggestion="remove one of the two")
    if has_graph:
        return "graph", _items(document, places, nodes or [], ("spec", "graph", "nodes"), report)
    if has_stages:
        return "stages", _items(document, places, stages or [], ("spec", "stages"), report)
    _report_unused(spec, places, report)
    depends_on = _depends_on(spec, ("spec",), places, "spec.dependsOn must be a list of task_ids", report)
    return "single", [Draft(None, base_name(document), copied(document), places, depends_on)]


def base_name(document: dict[str, Any]) -> str:
    """Return `metadata.name` as text."""
    metadata = document.get("metadata")
    return str(metadata.get("name")) if isinstance(metadata, dict) and "name" in metadata else "unnamed"


def _items(
    document: dict[str, Any], places: Positions, items: list[Any], path: tuple[PathPart, ...], report: Report
) -> list[Draft]:
    is_graph = path[-1] == "nodes"
    spec = {key: value for key, value in document["spec"].items() if key not in {"stages", "graph"}}
    drafts: list[Draft] = []
    lines: dict[str, int] = {}
    for index, item in enumerate(items):
        origin = (*path, index)
        place = places.find(origin)
        if not isinstance(item, dict):
            kind = "graph node" if is_graph else "stage"
            message = f"Each {kind} must be a mapping"
            report.error(
                "invalid-item",
                message,
                (place.line, place.column),
                path=origin,
                found=shown(item),
                suggestion="write '- name: ...' and 'spec:'",
            )
            continue
        name = _item_name(item, index, origin, place, is_graph, report)
        at = place.children.get("name") or place.children.get("id") or place
        if name in lines:
            code, message = _duplicate(name, is_graph)
            fix = f"it is also the name of the one on line {lines[name]}; names must differ"
            report.error(code, message, (at.line, at.column), path=(*origin, "name"), found=shown(name), suggestion=fix)
        lines.setdefault(name, at.line)
        text = f"Node '{name}' dependsOn must be a list" if is_graph else "stage.dependsOn must be a list"
        depends_on = _depends_on(item, origin, places, text, report)
        _check_fields(item, origin, place, report)
        drafts.append(_draft(document, places, spec, item, name, depends_on, origin, report))
    return drafts


def _draft(
    document: dict[str, Any],
    places: Positions,
    spec: dict[str, Any],
    item: dict[str, Any],
    name: str,
    depends_on: tuple[str, ...] | None,
    origin: tuple[PathPart, ...],
    report: Report,
) -> Draft:
    place = places.find(origin)
    over = item.get("spec")
    over_place = place.children.get("spec", place)
    if not isinstance(over, dict):
        if over is not None:
            at = (over_place.line, over_place.column)
            report.error("invalid-type", "spec must be a mapping", at, path=(*origin, "spec"), found=shown(over))
        # No spec of its own: what is missing in the task is shown at the item.
        over, over_place = {}, Positions(place.line, place.column, place.key_line, place.key_column)
    data, spec_place = merged(spec, places.find(("spec",)), over, over_place)
    metadata = document.get("metadata")
    full_name = f"{base_name(document)}:{name}"
    effective = {key: copied(value) for key, value in document.items() if key != "spec"}
    effective["metadata"] = {**(copied(metadata) if isinstance(metadata, dict) else {}), "name": full_name}
    effective["spec"] = data
    children = {**places.children, "spec": spec_place}
    root = Positions(places.line, places.column, places.key_line, places.key_column, children)
    return Draft(name, full_name, effective, root, depends_on, origin)


def _item_name(
    item: dict[str, Any], index: int, origin: tuple[PathPart, ...], place: Positions, is_graph: bool, report: Report
) -> str:
    """Return the name of an item: `name`, else `id`, else its number."""
    default = f"{'node' if is_graph else 'stage'}-{index + 1}"
    key = "name" if item.get("name") else "id"
    value = item.get(key) or default
    if isinstance(value, (dict, list)):
        at = place.find((key,))
        report.error(
            "invalid-type", f"{key} must be text", (at.line, at.column), path=(*origin, key), found=shown(value)
        )
        return default
    name = str(value).strip()
    if not name:
        at = place.find((key,))
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
    item: dict[str, Any], path: tuple[PathPart, ...], places: Positions, message: str, report: Report
) -> tuple[str, ...] | None:
    """Return the trimmed entries of `dependsOn` without blanks, or None when it is absent or null."""
    value = item.get("dependsOn")
    if value is None:
        return None
    here = (*path, "dependsOn")
    place = places.find(here)
    if not isinstance(value, list):
        fix = f"write [{value}]" if isinstance(value, str) else "write a list, e.g. [first, second]"
        report.error(
            "depends-on-not-list", message, (place.line, place.column), path=here, found=shown(value), suggestion=fix
        )
        return None
    entries = []
    for index, entry in enumerate(value):
        if isinstance(entry, (dict, list)):
            at = place.find((index,))
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


def _check_fields(item: dict[str, Any], origin: tuple[PathPart, ...], place: Positions, report: Report) -> None:
    """Warn of fields beside `spec` that MLOC drops without a word."""
    from mloc_prefect.spec.unknown import item_field_help

    for key in item:
        if key not in _ITEM_FIELDS:
            at = place.children[key]
            message = f"Unknown field '{key}': only {', '.join(_ITEM_FIELDS)} are read here"
            fix = item_field_help(key, _ITEM_FIELDS)
            report.warning("unknown-field", message, (at.key_line, at.key_column), path=(*origin, key), suggestion=fix)


def _report_unused(spec: dict[str, Any], places: Positions, report: Report) -> None:
    """Warn of `stages` or `graph` that hold no list, or an empty one: MLOC then runs the document as one task."""
    for key in ("stages", "graph"):
        if spec.get(key) is not None:
            place = places.find(("spec", key))
            wanted = "a list of stages" if key == "stages" else "a mapping with a list 'nodes'"
            message = f"{key} is not used, as it is not {wanted} with at least one entry; the document is one task"
            at = (place.key_line, place.key_column)
            report.warning(
                "stages-ignored",
                message,
                at,
                path=("spec", key),
                found=shown(spec[key]),
                suggestion="write entries as '- name: ...'",
            )
