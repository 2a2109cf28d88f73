"""The workers of the original protocol as dispatchers see them: read seldom, whatever the number of waiting tasks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mloc_prefect.bridge.original_claim import works_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.bridge.ports import WorkerRegistry
    from mloc_prefect.bridge.records import WorkerRecord

_FRESH_SECONDS = 0.2


class Roster:
    """What the registry says of workers of the original protocol.

    Args:
        registry: The registry.
        patience: Seconds after which a worker counts as idle that was told of a task, but is not at work: whoever told
            it has died, and the message was lost.
    """

    def __init__(self, registry: WorkerRegistry, patience: float) -> None:
        self._registry = registry
        self._patience = patience
        self._lock = asyncio.Lock()
        self._read: tuple[float, tuple[WorkerRecord, ...]] | None = None
        self._told: dict[str, float] = {}

    async def workers(self, *, fresh: bool = False) -> Sequence[WorkerRecord]:
        """Return them; with `fresh`, never from memory.

        Raises:
            StoreError: The registry cannot be reached.
        """
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if fresh or self._read is None or now - self._read[0] > _FRESH_SECONDS:
                found = [w for w in await self._registry.list() if w.protocol == "original"]
                self._read = (now, tuple(self._judged(worker, now) for worker in found))
                self._told = {w.worker_id: self._told[w.worker_id] for w in found if w.worker_id in self._told}
            return self._read[1]

    async def worker(self, worker_id: str) -> WorkerRecord | None:
        """Return one of them as it is now, or None."""
        found = await self.workers(fresh=True)
        return next((worker for worker in found if worker.worker_id == worker_id), None)

    def _judged(self, worker: WorkerRecord, now: float) -> WorkerRecord:
        if worker.status != "RUNNING" or works_at(worker):
            self._told.pop(worker.worker_id, None)
            return worker
        since = self._told.setdefault(worker.worker_id, now)
        return replace(worker, status="IDLE") if now - since >= self._patience else worker
