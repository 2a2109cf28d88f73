"""`Positions`: the source position of every value of a document.

Positions are merged together with the data, so that effective documents keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PathPart = str | int


@dataclass(slots=True)
class Positions:
    """Source position of one value and of everything inside it.

    Attributes:
        line: Line of the value, from 1.
        column: Column of the value in characters, from 1.
        key_line: Line of the mapping key that holds the value (the value's own line for list items).
        key_column: Column of that key.
        children: Positions of mapping values by key, of list items by index.
    """

    line: int
    column: int
    key_line: int
    key_column: int
    children: dict[PathPart, Positions] = field(default_factory=dict)

    def find(self, path: Iterable[PathPart]) -> Positions:
        """Return the position of the value at `path`, or of its nearest parent that exists."""
        current = self
        for part in path:
            child = current.children.get(part)
            if child is None:
                break
            current = child
        return current


def path_text(path: Iterable[PathPart]) -> str:
    """Return `spec.stages[1].name` for `("spec", "stages", 1, "name")`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else str(part)
    return text
