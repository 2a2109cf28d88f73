"""Finds where a value of an effective document was written: in the base, or in the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mloc_prefect.spec.positions import PathPart, Positions


class Placed(Protocol):
    """A task with places: `TaskNode`, or the draft of one."""

    @property
    def positions(self) -> Positions:
        """Places of its effective document."""

    @property
    def origin(self) -> tuple[PathPart, ...]:
        """Path of its item in the submitted document."""


def locate(task: Placed, document: Positions, path: tuple[PathPart, ...]) -> tuple[Positions, tuple[PathPart, ...]]:
    """Return the place of `path` in a task's effective document, and the path by which the submitted text has it.

    Args:
        task: The task.
        document: Places of the submitted document.
        path: Path in the effective document; of what is missing there, the nearest parent is found.
    """
    place = task.positions.find(path)
    if not task.origin or document.find(path) is place:
        return place, path
    return place, (*task.origin, *path)
