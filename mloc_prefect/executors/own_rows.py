"""The rows of the shard that a task is. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.plan.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")


def own_rows(rows: list[_T], spec: Mapping[str, Any]) -> tuple[list[_T], int]:
    """Return the rows of the shard that the task is, and the number of the first; all rows and 0 when it is none.

    A shard may have no row.

    Raises:
        UserError: `spec.shard` is not understood.
    """
    try:
        shard = Shard.of(spec)
    except ValueError as error:
        raise UserError(str(error)) from None
    if shard is None:
        return rows, 0
    if shard.first is not None:
        return rows, shard.first
    part = shard.rows(len(rows))
    return rows[part.start : part.stop], part.start
