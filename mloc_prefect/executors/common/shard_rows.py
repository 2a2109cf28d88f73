"""Selects the rows of a shard. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.plan.shard_ranges import ShardRange

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")


def rows_of_shard(rows: list[_T], spec: Mapping[str, Any]) -> tuple[list[_T], int]:
    """Return the rows of the shard that the task is, and the index of the first; all rows and 0 when it is not one.

    A shard may be empty.

    Raises:
        UserError: `spec.shard` is invalid.
    """
    try:
        shard = ShardRange.of(spec)
    except ValueError as error:
        raise UserError(str(error)) from None
    if shard is None:
        return rows, 0
    if shard.first is not None:
        return rows, shard.first
    part = shard.rows(len(rows))
    return rows[part.start : part.stop], part.start
