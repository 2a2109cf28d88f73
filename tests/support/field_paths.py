"""The fields of specs, for tests of lists that must be complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.keys import FieldNames


def field_paths(table: FieldNames, before: str = "") -> Iterator[str]:
    """Yield the dotted path of each field of a table, those of blocks after the block."""
    for name, below in table.below.items():
        yield f"{before}{name}"
        if below is not None:
            yield from field_paths(below, f"{before}{name}.")
