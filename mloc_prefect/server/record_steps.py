"""Moving a record that a bridge or another endpoint may move at the same time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.store.interfaces import TaskStore
    from mloc_prefect.store.records import TaskRecord
    from mloc_prefect.store.states import Phase
    from mloc_prefect.store.transitions import RecordStep


async def move_record(
    tasks: TaskStore, record: TaskRecord, step_of: Callable[[TaskRecord, int, float], RecordStep], *, before: Phase
) -> bool:
    """Apply a step to a record; read it again and retry for as long as it is in an earlier phase than `before`.

    Args:
        tasks: The store.
        record: The record as last read.
        step_of: Returns the step, from the record, its attempt and the time.
        before: The phase from which on the step no longer applies.

    Returns:
        Whether the step was applied.

    Raises:
        StoreError: Redis cannot be reached.
    """
    current: TaskRecord | None = record
    while current is not None and current.mark.phase < before:
        step = step_of(current, current.mark.attempt, time.time())
        if await tasks.transition(current.task_id, step.mark, step.changes, step.messages, add=step.add):
            return True
        current = await tasks.get(current.task_id)  # somebody else has moved it
    return False
