"""Which of our workers has which tasks, and the status that the registry shows of them.

MLOC workers keep their own status, and `MULTI`, the worker of a sharded task, is not a worker.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from mloc_prefect.plan.shard_ranges import MULTI
from mloc_prefect.store import transitions
from mloc_prefect.store.states import TaskStatus

if TYPE_CHECKING:
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.records import TaskRecord


class Assignments:
    """The tasks of each worker.

    Args:
        stores: Records and workers.
    """

    def __init__(self, stores: Stores) -> None:
        self._tasks, self._workers = stores.tasks, stores.workers
        self._tasks_of: defaultdict[str, set[str]] = defaultdict(set)

    async def load(self) -> None:
        """Read the assignments from the records; workers that are shown as RUNNING without a task become IDLE.

        Raises:
            StoreError: The store cannot be reached.
        """
        for record in await self._tasks.page(status=TaskStatus.DISPATCHED, brief=True):
            if (worker := _worker(record)) is not None:
                self._tasks_of[worker].add(record.task_id)
        for registered in await self._workers.list():
            name = registered.worker_id
            if (
                registered.protocol == transitions.ORIGINAL
                or registered.status != "RUNNING"
                or self._tasks_of.get(name)
            ):
                continue
            message = transitions.status(name, "IDLE", time.time(), {})
            await self._workers.set_status(name, "IDLE", messages=[message])

    def has_other_tasks(self, record: TaskRecord) -> bool:
        """Return whether the worker of a record has other tasks."""
        return bool(self._tasks_of.get(record.assigned_worker or "", set()) - {record.task_id})

    async def follow_step(self, before: TaskRecord, after: TaskRecord, *, publish: bool) -> None:
        """Update assignment and worker status after a step of a record.

        Args:
            before: The record before the step.
            after: The record after it.
            publish: Whether to publish the status of a worker that an attempt has left without a failure, which the
                messages of the step do not contain.

        Raises:
            StoreError: The store cannot be reached.
        """
        left, has = _worker(before), _worker(after) if after.status is TaskStatus.DISPATCHED else None
        if left is not None and left != has:
            self._drop(left, after.task_id)
            await self._show_left(left, after.task_id, publish=publish and has is not None)
        if has is not None:
            self._tasks_of[has].add(after.task_id)
            await self._workers.set_status(has, "RUNNING", extra={"task_id": after.task_id})

    async def release_task(self, record: TaskRecord, *, publish: bool) -> None:
        """Release a worker from a task that was ended from outside, e.g. by a posted result.

        Raises:
            StoreError: The store cannot be reached.
        """
        worker = _worker(record)
        if worker is not None and record.task_id in self._tasks_of.get(worker, ()):
            self._drop(worker, record.task_id)
            await self._show_left(worker, record.task_id, publish=publish)

    async def release_ended(self) -> None:
        """Release workers from all tasks that have ended, in case no event reports the end of their runs.

        Raises:
            StoreError: The store cannot be reached.
        """
        held = [(worker, task_id) for worker, tasks in self._tasks_of.items() for task_id in tasks]
        records = await self._tasks.get_many([task_id for _, task_id in held], brief=True) if held else {}
        for worker, task_id in held:
            record = records.get(task_id)
            if record is not None and record.mark.phase.terminal and task_id in self._tasks_of.get(worker, ()):
                self._drop(worker, task_id)
                await self._show_left(worker, task_id, publish=True)

    def _drop(self, worker: str, task_id: str) -> None:
        """Forget that a worker has a task, and a worker without tasks: names of workers may never come back."""
        tasks = self._tasks_of.get(worker, set())
        tasks.discard(task_id)
        if not tasks:
            self._tasks_of.pop(worker, None)

    async def _show_left(self, worker: str, task_id: str, *, publish: bool) -> None:
        status, extra = "RUNNING" if self._tasks_of.get(worker) else "IDLE", {"last_task": task_id}
        messages = [transitions.status(worker, status, time.time(), extra)] if publish else []
        await self._workers.set_status(worker, status, extra=extra, messages=messages)


def _worker(record: TaskRecord) -> str | None:
    """Return the worker of a record, or None when we do not keep its status."""
    if record.protocol == transitions.ORIGINAL or record.assigned_worker == MULTI:
        return None
    return record.assigned_worker
