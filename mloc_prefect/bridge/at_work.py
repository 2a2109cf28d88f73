"""Which of our workers has which tasks, and what the registry shows of them for that reason.

Workers of the original protocol keep their own status, and `MULTI`, the worker of a divided task, is none.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from mloc_prefect.bridge import mapping
from mloc_prefect.bridge.states import TaskStatus
from mloc_prefect.plan.shards import MULTI

if TYPE_CHECKING:
    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.bridge.stores import Stores


class AtWork:
    """The tasks of each worker.

    Args:
        stores: Records and workers.
    """

    def __init__(self, stores: Stores) -> None:
        self._tasks, self._workers = stores.tasks, stores.workers
        self._of: defaultdict[str, set[str]] = defaultdict(set)

    async def load(self) -> None:
        """Learn from the records who has what; who is shown at work and has nothing let go while no bridge was there.

        Raises:
            StoreError: The store cannot be reached.
        """
        for record in await self._tasks.page(status=TaskStatus.DISPATCHED, brief=True):
            if (worker := _worker(record)) is not None:
                self._of[worker].add(record.task_id)
        for one in await self._workers.list():
            if one.protocol != mapping.ORIGINAL and one.status == "RUNNING" and not self._of.get(one.worker_id):
                message = mapping.status(one.worker_id, "IDLE", time.time(), {})
                await self._workers.set_status(one.worker_id, "IDLE", messages=[message])

    def busy(self, record: TaskRecord) -> bool:
        """Return whether the worker of a record has other tasks too."""
        return bool(self._of.get(record.assigned_worker or "", set()) - {record.task_id})

    async def moved(self, before: TaskRecord, after: TaskRecord, *, tell: bool) -> None:
        """Follow a step of a record.

        Args:
            before: The record before it.
            after: And after it.
            tell: Whether to publish what the messages of the step do not say: that an attempt has left a worker for
                another one without a failure there.

        Raises:
            StoreError: The store cannot be reached.
        """
        left, has = _worker(before), _worker(after) if after.status is TaskStatus.DISPATCHED else None
        if left is not None and left != has:
            self._of[left].discard(after.task_id)
            await self._left(left, after.task_id, tell=tell and has is not None)
        if has is not None:
            self._of[has].add(after.task_id)
            await self._workers.set_status(has, "RUNNING", extra={"task_id": after.task_id})

    async def ended(self, record: TaskRecord, *, tell: bool) -> None:
        """Take a task from its worker whose record somebody else has ended: a result was posted, say.

        Raises:
            StoreError: The store cannot be reached.
        """
        worker = _worker(record)
        if worker is not None and record.task_id in self._of.get(worker, ()):
            self._of[worker].discard(record.task_id)
            await self._left(worker, record.task_id, tell=tell)

    async def compare(self) -> None:
        """Take all tasks from their workers that have ended, for the case that no event tells of their runs.

        Raises:
            StoreError: The store cannot be reached.
        """
        held = [(worker, task_id) for worker, tasks in self._of.items() for task_id in tasks]
        records = await self._tasks.get_many([task_id for _, task_id in held], brief=True) if held else {}
        for worker, task_id in held:
            record = records.get(task_id)
            if record is not None and record.mark.phase.terminal and task_id in self._of[worker]:
                self._of[worker].discard(task_id)
                await self._left(worker, task_id, tell=True)

    async def _left(self, worker: str, task_id: str, *, tell: bool) -> None:
        status, extra = "RUNNING" if self._of[worker] else "IDLE", {"last_task": task_id}
        messages = [mapping.status(worker, status, time.time(), extra)] if tell else []
        await self._workers.set_status(worker, status, extra=extra, messages=messages)


def _worker(record: TaskRecord) -> str | None:
    """Return the worker of a record, when the registry's view of it is ours to keep."""
    if record.protocol == mapping.ORIGINAL or record.assigned_worker == MULTI:
        return None
    return record.assigned_worker
