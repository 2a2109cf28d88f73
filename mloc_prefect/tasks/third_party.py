"""Task types of other distributions, found by their entry points in the group `mloc_prefect.task_types`.

    [project.entry-points."mloc_prefect.task_types"]
    shout = "mloc_shout:SHOUT"

The name of the entry point is that of the task type. One that cannot be used hides nothing else: it is refused where a
spec names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from mloc_prefect.tasks.base import TaskType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

GROUP = "mloc_prefect.task_types"


@dataclass(frozen=True, slots=True)
class ThirdPartyTypes:
    """What the installed distributions add.

    Attributes:
        types: Task types that can be used.
        sources: Name of a task type -> distribution and version.
        faults: Name of an entry point that cannot be used -> why, in one line.
    """

    types: tuple[TaskType, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def third_party_types(taken: Collection[str], points: Iterable[metadata.EntryPoint] | None = None) -> ThirdPartyTypes:
    """Return the task types of other distributions.

    Args:
        taken: Names of our own task types, which stay ours.
        points: Their entry points; None for those that are installed.
    """
    found: dict[str, TaskType] = {}
    sources: dict[str, str] = {}
    faults: dict[str, str] = {}
    for point in sorted(metadata.entry_points(group=GROUP) if points is None else points):
        source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        loaded = _load(point)
        if isinstance(loaded, str):
            faults[point.name] = f"task type {point.name!r} of {source} cannot be loaded: {loaded}"
        elif point.name in taken:
            faults[point.name] = f"task type {point.name!r} of {source} is not used: mloc-prefect has one of that name"
        elif point.name in found:
            also = sources[point.name]
            faults[point.name] = f"task type {point.name!r} is in {also} and in {source}: uninstall one of them"
        else:
            found[point.name], sources[point.name] = loaded, source
    return ThirdPartyTypes(tuple(found[name] for name in found if name not in faults), sources, faults)


def _load(point: metadata.EntryPoint) -> TaskType | str:
    """Return the task type, or why there is none."""
    try:
        loaded = point.load()
    except Exception as error:  # a boundary: it is other people's code, and must not stop ours
        return f"{type(error).__name__}: {error}"
    if not isinstance(loaded, TaskType):
        return f"{point.value} is no TaskType"
    if loaded.name != point.name:
        return f"{point.value} is the task type {loaded.name!r}"
    if needed := [name for name, one in loaded.model.model_fields.items() if one.is_required()]:
        return (
            f"its spec needs {', '.join(needed)}: give every field a default, and report what is missing in problems()"
        )
    return loaded
