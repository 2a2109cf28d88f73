"""Where each value of a document stands; merged along with the data, so that effective documents keep their places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PathPart = str | int


@dataclass(slots=True)
class Positions:
    """Place of one value and of everything inside it.

    Attributes:
        line: Line of the value, from 1.
        column: Column of the value in characters, from 1.
        key_line: Line of the mapping key that holds the value (the value's own line for list items).
        key_column: Column of that key.
        children: Places of mapping values by key, of list items by index.
    """

    line: int
    column: int
    key_line: int
    key_column: int
    children: dict[PathPart, Positions] = field(default_factory=dict)

    def find(self, path: Iterable[PathPart]) -> Positions:
        """Return the place of the value at `path`, or of the nearest parent that exists."""
        here = self
        for part in path:
            below = here.children.get(part)
            if below is None:
                return here
            here = below
        return here


def path_text(path: Iterable[PathPart]) -> str:
    """Return `spec.stages[1].name` for `("spec", "stages", 1, "name")`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else str(part)
    return text
