"""Finds where a value of an effective document was written: in the base document or in the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mloc_prefect.diagnostics.positions import PathPart, Positions


class LocatedValue(Protocol):
    """A task with positions: `TaskNode`, or a draft of it."""

    @property
    def positions(self) -> Positions:
        """Positions of its effective document."""

    @property
    def origin(self) -> tuple[PathPart, ...]:
        """Path of its item in the submitted document."""


def locate(
    task: LocatedValue, document: Positions, path: tuple[PathPart, ...]
) -> tuple[Positions, tuple[PathPart, ...]]:
    """Return the position of `path` in a task's effective document, and its path in the submitted document.

    Args:
        task: The task.
        document: Positions of the submitted document.
        path: Path in the effective document; for a missing value the nearest parent is located.
    """
    position = task.positions.find(path)
    if not task.origin or document.find(path) is position:
        return position, path
    return position, (*task.origin, *path)
