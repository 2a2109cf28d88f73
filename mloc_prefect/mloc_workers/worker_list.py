"""The MLOC workers in the registry, read rarely whatever the number of waiting tasks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mloc_prefect.mloc_workers.worker_session import works_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.store.interfaces import WorkerRegistry
    from mloc_prefect.store.records import WorkerRecord

_FRESH_SECONDS = 0.2


class WorkerList:
    """Reads MLOC workers from the registry.

    Args:
        registry: The registry.
        grace: Seconds after which a worker that is marked as RUNNING but has no task counts as idle: its dispatcher
            died, and the message was lost.
    """

    def __init__(self, registry: WorkerRegistry, grace: float) -> None:
        self._registry = registry
        self._grace = grace
        self._lock = asyncio.Lock()
        self._cached: tuple[float, tuple[WorkerRecord, ...]] | None = None
        self._running_since: dict[str, float] = {}

    async def workers(self, *, fresh: bool = False) -> Sequence[WorkerRecord]:
        """Return all MLOC workers; with `fresh`, never from memory.

        Raises:
            StoreError: The registry cannot be reached.
        """
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if fresh or self._cached is None or now - self._cached[0] > _FRESH_SECONDS:
                found = [w for w in await self._registry.list() if w.protocol == "original"]
                self._cached = (now, tuple(self._with_effective_status(worker, now) for worker in found))
                self._running_since = {
                    w.worker_id: self._running_since[w.worker_id] for w in found if w.worker_id in self._running_since
                }
            return self._cached[1]

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        """Return one MLOC worker as it is now, or None."""
        found = await self.workers(fresh=True)
        return next((worker for worker in found if worker.worker_id == worker_id), None)

    def _with_effective_status(self, worker: WorkerRecord, now: float) -> WorkerRecord:
        if worker.status != "RUNNING" or works_at(worker):
            self._running_since.pop(worker.worker_id, None)
            return worker
        since = self._running_since.setdefault(worker.worker_id, now)
        return replace(worker, status="IDLE") if now - since >= self._grace else worker
