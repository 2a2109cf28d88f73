"""In-memory twins of the bridge's ports: one process, no files, same rules."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge.states import allowed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mloc_prefect.bridge.ports import Message, Publisher
    from mloc_prefect.bridge.records import TaskRecord, WorkerRecord
    from mloc_prefect.bridge.states import Mark


class MemoryPublisher:
    """Keeps what was published and hands it to subscribers at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self._subscribers: list[tuple[str, Callable[[dict[str, Any]], None]]] = []

    def subscribe(self, channel: str, receiver: Callable[[dict[str, Any]], None]) -> None:
        """Call `receiver` with each later message on `channel`."""
        self._subscribers.append((channel, receiver))

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message, through JSON as the wire does; returns how many received it."""
        data = json.loads(json.dumps(message))
        self.sent.append((channel, data))
        receivers = [receiver for name, receiver in self._subscribers if name == channel]
        for receiver in receivers:
            receiver(data)
        return len(receivers)


class MemoryTaskStore:
    """Task records in a dictionary."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._records: dict[str, TaskRecord] = {}

    async def create(self, records: Sequence[TaskRecord]) -> None:
        """Add the records of one submission, all or none; ValueError when an id is taken."""
        ids = [record.task_id for record in records]
        taken = sorted({task_id for task_id in ids if task_id in self._records or ids.count(task_id) > 1})
        if taken:
            raise ValueError(f"task id taken: {', '.join(taken)}")
        self._records |= {record.task_id: record for record in records}

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return one record, or None."""
        return self._records.get(task_id)

    async def list(self, *, submission_id: str | None = None) -> Sequence[TaskRecord]:
        """Return all records, or those of one submission, in order of creation."""
        return [
            record
            for record in self._records.values()
            if submission_id is None or record.submission_id == submission_id
        ]

    async def transition(
        self, task_id: str, mark: Mark, changes: Mapping[str, Any] | None = None, messages: Sequence[Message] = ()
    ) -> TaskRecord | None:
        """Move a record to `mark`, change fields and send messages; None when the step is not allowed."""
        record = self._records.get(task_id)
        if record is None or not allowed(record.mark, mark):
            return None
        # No await between the look and the change: that is what makes it one step here.
        self._records[task_id] = record = replace(record, mark=mark, **(changes or {}))
        for channel, message in messages:
            await self._publisher.publish(channel, message)
        return record


class MemoryWorkerRegistry:
    """Workers in a dictionary.

    Args:
        clock: Seconds, never going back; tests hand in their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._workers: dict[str, tuple[WorkerRecord, float]] = {}

    async def register(self, record: WorkerRecord, *, ttl: float) -> None:
        """Add or replace a worker that lives until `ttl` seconds without a heartbeat have passed."""
        self._workers[record.worker_id] = (replace(record, last_seen=_now()), self._clock() + ttl)

    async def heartbeat(self, worker_id: str, *, ttl: float) -> bool:
        """Renew a worker; returns False when it is not registered."""
        if worker_id not in self._workers:
            return False
        record, _ = self._workers[worker_id]
        self._workers[worker_id] = (replace(record, last_seen=_now()), self._clock() + ttl)
        return True

    async def set_status(self, worker_id: str, status: str) -> bool:
        """Set `status`; returns False when the worker is not registered."""
        if worker_id not in self._workers:
            return False
        record, deadline = self._workers[worker_id]
        self._workers[worker_id] = (replace(record, status=status), deadline)
        return True

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None."""
        if worker_id not in self._workers:
            return None
        record, deadline = self._workers[worker_id]
        return replace(record, stale=self._clock() >= deadline)

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        found = [await self.get(worker_id) for worker_id in sorted(self._workers)]
        return [record for record in found if record is not None]

    async def remove(self, worker_id: str) -> bool:
        """Forget a worker; returns whether it was there."""
        return self._workers.pop(worker_id, None) is not None


def _now() -> str:
    return datetime.now(UTC).isoformat()
