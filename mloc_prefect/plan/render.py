"""A plan for people (table, Mermaid) and for programs (JSON)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.resources import describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.plan.workflow_plan import StagePlan, WorkflowPlan

_COLUMNS = ("stage", "type", "model", "needs", "after")


def stage_dict(stage: StagePlan) -> dict[str, Any]:
    """Return one task as `mloc plan --json` prints it; task ids of other submissions stand last in `depends_on`."""
    return {
        "node": stage.node,
        "name": stage.name,
        "task_type": stage.task_type,
        "depends_on": [*stage.depends_on, *stage.external],
        "effective": stage.effective,
    }


def plan_dict(plan: WorkflowPlan) -> dict[str, Any]:
    """Return the object that `mloc plan --json` prints for one file."""
    return {
        "file": plan.file,
        "name": plan.name,
        "kind": plan.kind,
        "tasks": [stage_dict(stage) for stage in plan.stages],
    }


def table(plan: WorkflowPlan) -> str:
    """Return the plan as a table, its notes and its warnings, as plain text without a final newline."""
    count = len(plan.stages)
    lines = [f"{plan.name} ({plan.kind}, {count} task{'' if count == 1 else 's'})", ""]
    lines += _aligned([_COLUMNS, *(_row(stage) for stage in plan.stages)])
    notes = list(_notes(plan.stages))
    if notes:
        lines += ["", "notes:", *notes]
    if plan.warnings:
        lines += ["", "warnings:", *(str(warning) for warning in plan.warnings)]
    return "\n".join(lines)


def mermaid(plan: WorkflowPlan) -> str:
    """Return a Mermaid flowchart: solid edges for dependencies, dotted ones for execution-only edges."""
    ids = {stage.key: f"n{number}" for number, stage in enumerate(plan.stages)}
    lines = ["flowchart LR"]
    for stage in plan.stages:
        lines.append(f'    {ids[stage.key]}["{_label(stage.key)}<br/>{_label(stage.task_type)}"]')
    for stage in plan.stages:
        lines += [f"    {ids[above]} --> {ids[stage.key]}" for above in stage.depends_on]
        lines += [f"    {ids[above]} -.-> {ids[stage.key]}" for above in stage.waits_for]
        for number, task_id in enumerate(stage.external):
            lines.append(f'    {ids[stage.key]}x{number}(["task {_label(task_id)}"]) --> {ids[stage.key]}')
    return "\n".join(lines)


def _row(stage: StagePlan) -> tuple[str, ...]:
    reads = [f"{key} (reads only)" for key in stage.waits_for if key not in stage.depends_on]
    after = [*stage.depends_on, *reads, *(f"task {task_id}" for task_id in stage.external)]
    return (stage.key, stage.task_type, stage.model or "-", describe(stage.resources), ", ".join(after) or "-")


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    table_rows = [tuple(_one_line(cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in table_rows) for column in range(len(_COLUMNS))]
    table_rows.insert(1, tuple("-" * width for width in widths))
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table_rows]


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _notes(stages: Iterable[StagePlan]) -> Iterable[str]:
    """Yield each note once, with the stages that it is about."""
    about: dict[str, list[str]] = {}
    for stage in stages:
        for note in stage.notes:
            about.setdefault(note, []).append(_one_line(stage.key))
    return (f"  {', '.join(keys)}: {note}" for note, keys in about.items())


def _label(text: str) -> str:
    """Return `text` with the characters that end a Mermaid label written as entities."""
    escaped = "".join(f"#{ord(c)};" if c in '"#<>&[]' else c for c in _one_line(text))
    return escaped or "-"
