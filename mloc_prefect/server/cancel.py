"""Cancelling: a journal entry for what runs, a step of the record for what has not started."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge import mapping
from mloc_prefect.bridge.states import Phase, TaskStatus
from mloc_prefect.server.replies import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.bridge.ports import TaskStore
    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.server.context import Endpoint


async def cancel(endpoint: Endpoint, record: TaskRecord, *, whole: bool) -> dict[str, Any]:
    """Cancel a task with all that depends on it, or the whole submission; return the body of the answer.

    The journal entry is written first: it is durable, and whoever reads it ends what runs, Prefect being there or not.

    Raises:
        Problem: 409 when there is nothing left to cancel, or the task is a part of another one.
        StoreError: Redis cannot be reached.
    """
    store = endpoint.stores.tasks
    if record.submission_id is None:
        raise Problem(409, "the task belongs to no submission and can be ended only where it was started")
    siblings = await store.list(submission_id=record.submission_id)
    if whole:
        meant = [r for r in siblings if not r.mark.phase.terminal]
        if not meant and all(r.status is not TaskStatus.CANCELLED for r in siblings):
            raise Problem(409, "all tasks of the submission have ended")
    else:
        if record.status in {TaskStatus.DONE, TaskStatus.FAILED}:
            raise Problem(409, f"the task has ended: it is {record.status}")
        if record.parent_task_id:  # no run of Prefect is found by the id of a part
            raise Problem(409, f"the task is a part of {record.parent_task_id} and ends only with it: cancel that")
        meant = _with_dependants(record, siblings)
    if meant:
        await store.request_cancel(record.submission_id, None if whole else record.task_id)
    cancelled, stopping = [], []
    for one in meant:
        if await _withdraw(store, one):
            cancelled.append(one.task_id)
        elif whole or one.task_id == record.task_id:
            stopping.append(one.task_id)
    return {"ok": True, "submission_id": record.submission_id, "cancelled": cancelled, "stopping": stopping}


def _with_dependants(record: TaskRecord, siblings: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return the task, and when it has not started all that wait for it, in order; none of those that have ended."""
    if record.mark.phase >= Phase.DISPATCHED:
        return [] if record.mark.phase.terminal else [record]
    doomed = {record.task_id}
    found = []
    for one in siblings:  # every task stands after those that it depends on
        if one.task_id in doomed or doomed & {*one.depends_on, one.parent_task_id}:
            doomed.add(one.task_id)
            if not one.mark.phase.terminal:
                found.append(one)
    return found


async def _withdraw(store: TaskStore, record: TaskRecord) -> bool:
    """Move a record that has not started to CANCELLED; False when a worker has it already."""
    current: TaskRecord | None = record
    while current is not None and current.mark.phase < Phase.DISPATCHED:
        step = mapping.cancelled(current, current.mark.attempt, time.time())
        if await store.transition(record.task_id, step.mark, step.changes, step.messages, add=step.add):
            return True
        current = await store.get(record.task_id)  # it moved meanwhile
    return False
