"""The live workers, looked up at most once a second, and whether a stage could ever run on one of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mloc_prefect.bridge.hardware import worker_inventory
from mloc_prefect.worker.inventory import misfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.bridge.ports import WorkerRegistry
    from mloc_prefect.plan.model import ResourceRequest
    from mloc_prefect.worker.inventory import Inventory

NO_WORKER = "No suitable IDLE worker; retrying shortly"
"""What the original's records say while nothing fits; ours add the reason. [protocol 2.3]"""

_FRESH_SECONDS = 1.0
_NAMED = 3


class Fleet:
    """What the live workers have.

    Args:
        workers: The registry.
        clock: Seconds, never going back; tests hand in their own.
    """

    def __init__(self, workers: WorkerRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._known: dict[str, Inventory] = {}
        self._originals = False
        self._until = float("-inf")
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Look the workers up again when the last look is more than a second old.

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
        """Whether workers of the original protocol are registered; one that is silent now may come back."""
        return self._originals

    def reason_to_wait(self, request: ResourceRequest) -> str | None:
        """Return why no live worker could ever run `request`, or None when one could."""
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
