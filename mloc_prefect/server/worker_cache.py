"""The live workers, read at most once a second, and whether a stage can ever run on one of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mloc_prefect.hardware.inventory import misfit
from mloc_prefect.store.hardware_report import worker_inventory

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.store.interfaces import WorkerRegistry

NO_WORKER = "No suitable IDLE worker; retrying shortly"
"""The original's text in records while no worker fits; we add the reason. [protocol 2.3]"""

_FRESH_SECONDS = 1.0
_NAMED = 3


class WorkerCache:
    """The hardware of the live workers.

    Args:
        workers: The registry.
        clock: Returns monotonic seconds.
    """

    def __init__(self, workers: WorkerRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._known: dict[str, Inventory] = {}
        self._originals = False
        self._until = float("-inf")
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the workers again if the last read is more than a second old.

        Raises:
            StoreError: Redis cannot be reached.
        """
        async with self._lock:
            if self._clock() < self._until:
                return
            found = await self._workers.list()
            self._known = {w.worker_id: worker_inventory(w) for w in found if not (w.stale or w.elastic_disabled)}
            self._originals = any(w.protocol == "original" for w in found)
            self._until = self._clock() + _FRESH_SECONDS

    @property
    def originals(self) -> bool:
        """Whether MLOC workers are registered, also stale ones, as they may come back."""
        return self._originals

    def reason_to_wait(self, request: ResourceRequest) -> str | None:
        """Return why no live worker can ever run `request`, or None if one can."""
        if not self._known:
            return f"{NO_WORKER} (no live worker is registered)"
        reasons: dict[str, str] = {}
        for worker_id, inventory in self._known.items():
            reason = misfit(request, inventory)
            if reason is None:
                return None
            reasons[worker_id] = reason.replace("this machine", "it")
        shown = "; ".join(f"{worker_id}: {reason}" for worker_id, reason in list(reasons.items())[:_NAMED])
        rest = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        return f"{NO_WORKER} ({shown}{rest})"
