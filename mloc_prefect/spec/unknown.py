"""Fields that nobody reads: accepted as MLOC does, with a warning that names the likely slip."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.keys import Table, table_of
from mloc_prefect.tasks.registry import TASK_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.spec.positions import PathPart
    from mloc_prefect.tasks.base import TaskType


def unknown_field_help(path: tuple[PathPart, ...], table: Table, kind: TaskType) -> str | None:
    """Return the best advice on the unknown field at `path` below `spec`: its right place, or its right name."""
    key = str(path[-1])
    homes = _homes(kind.name).get(key, ())
    if len(homes) == 1:
        return f"'{key}' is a field of {homes[0]}: move it there"
    near = did_you_mean(key, table.names)
    if near:
        return near
    if len(path) == 1:
        owners = [t.name for t in TASK_TYPES if key in table_of(t.model).below]
        if owners:
            return f"task type '{kind.name}' does not read it (it belongs to {', '.join(owners[:3])})"
    return None


def item_field_help(key: str, fields: Iterable[str]) -> str | None:
    """Return advice on an unknown field of a stage or node."""
    if any(key in table_of(kind.model).below for kind in TASK_TYPES):
        return f"move '{key}' under the spec of this entry"
    return did_you_mean(key, fields)


@cache
def _homes(name: str) -> dict[str, tuple[str, ...]]:
    """Return, for each field name, the mappings of a task type that hold a field of that name."""
    from mloc_prefect.tasks.registry import task_type

    found: dict[str, tuple[str, ...]] = {}
    todo = [("spec", table_of(task_type(name).model))]
    while todo:
        path, table = todo.pop()
        for key in table.names:
            found[key] = (*found.get(key, ()), path)
            inner = table.below.get(key)
            if inner is not None:
                todo.append((f"{path}.{key}", inner))
    return found
