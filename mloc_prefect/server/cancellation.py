"""Cancelling tasks: a journal entry for running ones, a step of the record for those that have not started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.layout import MANIFEST, task_dir
from mloc_prefect.server.record_steps import move_record
from mloc_prefect.server.responses import ErrorResponse
from mloc_prefect.store import transitions
from mloc_prefect.store.states import Phase, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.server.dependencies import EndpointContext
    from mloc_prefect.store.records import TaskRecord


async def cancel(endpoint: EndpointContext, record: TaskRecord, *, whole: bool) -> dict[str, Any]:
    """Cancel a task with all tasks that depend on it, or the whole submission; return the body of the answer.

    The journal entry is written first: it is durable, and the bridge stops what runs as soon as Prefect is reachable.

    Raises:
        ErrorResponse: 409 if there is nothing left to cancel, or the task is a shard of another one.
        StoreError: Redis cannot be reached.
    """
    store = endpoint.stores.tasks
    if record.submission_id is None:
        raise ErrorResponse(409, "the task belongs to no submission and can be cancelled only where it was started")
    siblings = await store.list(submission_id=record.submission_id)
    if whole:
        meant = [r for r in siblings if not r.mark.phase.terminal]
        if not meant and all(r.status is not TaskStatus.CANCELLED for r in siblings):
            raise ErrorResponse(409, "all tasks of the submission have ended")
    else:
        if record.status in {TaskStatus.DONE, TaskStatus.FAILED}:
            raise ErrorResponse(409, f"the task has ended: it is {record.status}")
        if record.parent_task_id:  # Prefect has no run with the id of a shard
            raise ErrorResponse(
                409, f"the task is a shard of {record.parent_task_id}, which can be cancelled only as a whole"
            )
        meant = _with_dependants(record, siblings)
    if meant:
        await store.request_cancel(record.submission_id, None if whole else record.task_id)
    cancelled, stopping = [], []
    for one in meant:
        done = await asyncio.to_thread((task_dir(endpoint.settings.results_root, one.task_id) / MANIFEST).exists)
        # A result that is stored stays: its record is about to become DONE.
        if not done and await move_record(store, one, transitions.cancelled, before=Phase.DISPATCHED):
            cancelled.append(one.task_id)
        elif whole or one.task_id == record.task_id:
            stopping.append(one.task_id)
    return {"ok": True, "submission_id": record.submission_id, "cancelled": cancelled, "stopping": stopping}


def _with_dependants(record: TaskRecord, siblings: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return the task and, if it has not started, all tasks that wait for it, in order; without ended ones."""
    if record.mark.phase >= Phase.DISPATCHED:
        return [] if record.mark.phase.terminal else [record]
    cancelled = {record.task_id}
    found = []
    for one in siblings:  # every task comes after its dependencies
        if one.task_id in cancelled or cancelled & {*one.depends_on, one.parent_task_id}:
            cancelled.add(one.task_id)
            if not one.mark.phase.terminal:
                found.append(one)
    return found
