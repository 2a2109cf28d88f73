"""Finds which task waits for which, and the order of the plan. [protocol 2.5]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import Diagnostic, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.diagnostics.positions import PathPart
    from mloc_prefect.spec.workflow import TaskNode, Workflow

SUGGESTION_NAMES = 100
"""Most names that a suggestion is chosen from."""

_TASK_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(slots=True)
class TaskEdges:
    """The checked dependencies of a workflow.

    Attributes:
        keys: Key of each node, in document order.
        depends_on: Upstream keys of each key, without the unknown ones.
        external: Task ids of other submissions of each key.
        waits_for: Keys that a task only reads from; filled by the reference check.
        unresolved: Keys with a dependency that does not exist; what follows from it is not reported again.
        order: Keys in emission order; tasks in a cycle are missing.
        notes: Sentences about one task's edges, by key.
    """

    keys: tuple[str, ...]
    depends_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    external: dict[str, tuple[str, ...]] = field(default_factory=dict)
    waits_for: dict[str, list[str]] = field(default_factory=dict)
    unresolved: set[str] = field(default_factory=set)
    order: tuple[str, ...] = ()
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def cyclic(self) -> bool:
        """Whether a task waits for itself, directly or not."""
        return len(self.order) < len(self.keys)

    def above(self, start: str, *, execution: bool = False) -> set[str]:
        """Return `start` and everything that it waits for, directly or not; `execution` also follows `waits_for`."""
        seen = {start}
        todo = [start]
        while todo:
            key = todo.pop()
            upstream = (*self.depends_on[key], *(self.waits_for.get(key, ()) if execution else ()))
            fresh = [k for k in upstream if k not in seen]
            seen.update(fresh)
            todo += fresh
        return seen


def is_task_id(text: str) -> bool:
    """Whether `text` looks like the id of a task (a UUID)."""
    return _TASK_ID.fullmatch(text) is not None


def key_of(workflow: Workflow, node: TaskNode) -> str:
    """Return the key of `node` in the plan: its name, or the workflow's for a single task."""
    return workflow.name if node.node is None else node.node


def find_edges(workflow: Workflow) -> tuple[TaskEdges, list[Diagnostic]]:
    """Return the dependencies of `workflow` and what is wrong with them.

    Stages form a chain unless a stage has a `dependsOn` list of its own, which then replaces the implicit edge; graph
    nodes depend only on what they name; a single task depends on task ids of other submissions.
    """
    keys = tuple(key_of(workflow, node) for node in workflow.nodes)
    edges = TaskEdges(tuple(dict.fromkeys(keys)))
    found: list[Diagnostic] = []
    known = frozenset(keys) if workflow.kind != "single" else frozenset()
    for index, node in enumerate(workflow.nodes):
        key = keys[index]
        if key in edges.depends_on:
            continue  # a second node of that name: the loader has reported it
        if node.depends_on is None:
            chained = workflow.kind == "stages" and index > 0
            edges.depends_on[key], edges.external[key] = ((keys[index - 1],) if chained else ()), ()
            continue
        entries = dict.fromkeys(node.depends_on)
        edges.depends_on[key] = tuple(e for e in entries if e in known)
        edges.external[key] = tuple(e for e in entries if e not in known and is_task_id(e))
        unknown = [e for e in entries if e not in known and not is_task_id(e)]
        if unknown:
            edges.unresolved.add(key)
            found += [_unknown(workflow, node, entry, keys) for entry in unknown]
        if workflow.kind == "stages" and index > 0 and edges.external[key] and not edges.depends_on[key]:
            note = f"does not wait for '{keys[index - 1]}': its dependsOn names only tasks of other submissions"
            edges.notes.setdefault(key, []).append(note)
    edges.order = emission_order(edges.keys, edges.depends_on)
    if edges.cyclic:
        found.append(_cycle(workflow, edges))
    found += _ignored_base_list(workflow)
    return edges, found


def emission_order(keys: tuple[str, ...], depends_on: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return keys in the order in which MLOC's repeated passes place them; keys in or below a cycle are missing.

    A key is placed in the pass of its latest dependency, or in the next one when that stands further down. So sorting
    by (pass, place) gives the same order as the passes themselves, in linear time.
    """
    place = {key: n for n, key in enumerate(keys)}
    missing = {key: len(depends_on[key]) for key in keys}
    below: dict[str, list[str]] = {}
    for key in keys:
        for upstream in depends_on[key]:
            below.setdefault(upstream, []).append(key)
    turn = dict.fromkeys(keys, 0)
    ready = [key for key in keys if not missing[key]]
    for key in ready:  # grows while it is read
        for child in below.get(key, ()):
            turn[child] = max(turn[child], turn[key] + (place[key] > place[child]))
            missing[child] -= 1
            if not missing[child]:
                ready.append(child)
    return tuple(sorted(ready, key=lambda key: (turn[key], place[key])))


def list_path(workflow: Workflow, node: TaskNode) -> tuple[PathPart, ...]:
    """Return the path of the `dependsOn` of `node` in the submitted document."""
    return ("spec", "dependsOn") if workflow.kind == "single" else (*node.origin, "dependsOn")


def _unknown(workflow: Workflow, node: TaskNode, entry: str, keys: tuple[str, ...]) -> Diagnostic:
    if workflow.kind == "single":
        message = f"dependsOn names '{entry}', which is not a task id; a single task can wait only for submitted tasks"
        suggestion = None
    else:
        what = "stage" if workflow.kind == "stages" else "node"
        message = f"dependsOn names '{entry}', which is neither a {what} of this workflow nor a task id"
        near = did_you_mean(entry, keys[:SUGGESTION_NAMES])
        suggestion = near or f"the names are: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
    return workflow.diagnostic(
        _entry_path(workflow, node, entry),
        severity="error",
        code="unknown-dependency",
        message=message,
        suggestion=suggestion or "use the task_id that the submission answered with (a UUID)",
    )


def _cycle(workflow: Workflow, edges: TaskEdges) -> Diagnostic:
    """Report a cycle with MLOC's message, at the first entry in the document that is part of it."""
    placed = set(edges.order)
    unplaced = [key for key in edges.keys if key not in placed]
    node, entry = _closing_entry(workflow, edges, unplaced)
    itself = entry == node.node
    again = f"'{entry}' itself waits for '{node.node}'; remove one of the two edges"
    return workflow.diagnostic(
        _entry_path(workflow, node, entry),
        severity="error",
        code="self-dependency" if itself else "dependency-cycle",
        message=f"Graph contains cycles or unresolved deps: {', '.join(unplaced)}",
        suggestion="a task cannot wait for itself" if itself else again,
    )


def _closing_entry(workflow: Workflow, edges: TaskEdges, unplaced: Iterable[str]) -> tuple[TaskNode, str]:
    stuck = set(unplaced)
    for node in workflow.nodes:
        key = key_of(workflow, node)
        for entry in node.depends_on if key in stuck and node.depends_on else ():
            if entry in stuck and key in edges.above(entry):
                return node, entry
    raise AssertionError("a cycle without an explicit edge: implicit edges only lead back")


def _entry_path(workflow: Workflow, node: TaskNode, entry: str) -> tuple[PathPart, ...]:
    """Return the path of `entry` in its list; entries were trimmed, so the raw ones are searched."""
    path = list_path(workflow, node)
    raw = _at(workflow.document, path)
    for index, item in enumerate(raw if isinstance(raw, list) else ()):
        if str(item).strip() == entry:
            return (*path, index)
    return path


def _at(value: Any, path: Iterable[PathPart]) -> Any:
    for part in path:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _ignored_base_list(workflow: Workflow) -> list[Diagnostic]:
    base = _at(workflow.document, ("spec", "dependsOn"))
    if workflow.kind == "single" or base in (None, []):
        return []
    where = "the stages that should wait" if workflow.kind == "stages" else "the nodes that should wait"
    return [
        workflow.diagnostic(
            ("spec", "dependsOn"),
            severity="warning",
            code="ignored-dependson",
            message=f"spec.dependsOn is not used when the spec has {workflow.kind}",
            at_key=True,
            suggestion=f"give {where} a dependsOn of their own",
        )
    ]
