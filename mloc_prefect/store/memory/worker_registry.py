"""Workers in a dictionary: the twin of `store.redis.worker_registry`."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.store.memory.publisher import MemoryPublisher, send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mloc_prefect.store.interfaces import Message, Publisher
    from mloc_prefect.store.records import WorkerRecord


class MemoryWorkerRegistry:
    """Workers in a dictionary.

    Args:
        clock: Monotonic clock, in seconds.
        publisher: Publisher of the messages of each step.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, publisher: Publisher | None = None) -> None:
        self._clock = clock
        self._publisher = publisher or MemoryPublisher()
        self._workers: dict[str, tuple[WorkerRecord, float]] = {}
        self._disabled: set[str] = set()

    async def register(self, record: WorkerRecord, *, ttl: float, messages: Sequence[Message] = ()) -> None:
        """Add or replace a worker, which becomes stale after `ttl` seconds without a heartbeat."""
        self._workers[record.worker_id] = (replace(record, last_seen=_now()), self._clock() + ttl)
        await send_all(self._publisher, messages)

    async def heartbeat(
        self,
        worker_id: str,
        *,
        ttl: float,
        at_work: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Renew a worker, and what it holds and runs if given; False when it is not registered."""
        if worker_id not in self._workers:
            return False
        record, _ = self._workers[worker_id]
        if at_work is not None:
            record = replace(record, at_work=dict(at_work), cached_models=tuple(at_work["models"]))
        self._workers[worker_id] = (replace(record, last_seen=_now()), self._clock() + ttl)
        await send_all(self._publisher, messages)
        return True

    async def set_status(
        self,
        worker_id: str,
        status: str,
        *,
        extra: Mapping[str, str] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Set `status`, and the tasks in `extra`; False when the worker is not registered."""
        if worker_id not in self._workers:
            return False
        record, deadline = self._workers[worker_id]
        tasks = {"task_id": record.running, "last_task": record.last_task, **(extra or {})}
        changed = replace(record, status=status, running=tasks["task_id"], last_task=tasks["last_task"])
        self._workers[worker_id] = (changed, deadline)
        await send_all(self._publisher, messages)
        return True

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None."""
        if worker_id not in self._workers:
            return None
        record, deadline = self._workers[worker_id]
        return replace(record, stale=self._clock() >= deadline, elastic_disabled=worker_id in self._disabled)

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        found = [await self.get(worker_id) for worker_id in sorted(self._workers)]
        return [record for record in found if record is not None]

    async def set_elastic(self, worker_id: str, *, enabled: bool) -> bool:
        """Set whether a worker gets new work; False when it is not registered."""
        if worker_id not in self._workers:
            return False
        (self._disabled.discard if enabled else self._disabled.add)(worker_id)
        return True

    async def remove(self, worker_id: str, *, only_stale: bool = False, messages: Sequence[Message] = ()) -> bool:
        """Remove a worker; return whether it was registered (and stale, with `only_stale`)."""
        record = await self.get(worker_id)
        if record is None or (only_stale and not record.stale):
            return False
        del self._workers[worker_id]
        self._disabled.discard(worker_id)
        await send_all(self._publisher, messages)
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat()
