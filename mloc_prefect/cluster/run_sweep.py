"""The sweep: finds runs that are held by a process of a worker that is no longer known, and recovers them.

The reaper comes for the runs of a lost worker once, and removes its card. A process that was paused meanwhile may go on
for a moment as what it was, take a run, and be killed before it looks after it. Such a run names a process without a
card: no other look finds it. The looks of one worker after its own runs are in `worker.claims.left_runs`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.cluster.run_recovery import holder_of
from mloc_prefect.errors import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from uuid import UUID

    from mloc_prefect.cluster.cluster_view import ClusterView
    from mloc_prefect.cluster.reaper import Reaper
    from mloc_prefect.cluster.run_recovery import RunRecovery
    from mloc_prefect.settings import MlocSettings

logger = logging.getLogger("prefect.mloc.worker")

_LOOKS = 2.0  # within the patience


class RunSweep:
    """Recovers the runs of processes that have no card; the first of the live workers does it, the bridge without any.

    Args:
        view: All workers; its owner refreshes it.
        recovery: Lists and recovers runs.
        take_lock: Takes a lock that exactly one process gets.
        pool: Name of the pool.
        name: Id of this worker; None for the bridge.
        own: Returns the runs that this worker has in its hands.
        patience: Seconds that such a run is seen in the same state before it is recovered.
        clock: Seconds, never going back.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        view: ClusterView,
        recovery: RunRecovery,
        take_lock: Callable[[str], Awaitable[bool]],
        *,
        pool: str,
        name: str | None,
        patience: float,
        own: Callable[[], Collection[UUID]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._view, self._recovery, self._take_lock = view, recovery, take_lock
        self._pool, self._name, self._patience = pool, name, patience
        self._own, self._clock, self._sleep = own, clock, sleep
        self._treated: set[tuple[str, str]] = set()  # of those: a process of a user's flow may well go on
        self._seen: dict[tuple[str, str], float] = {}  # run and its state -> since when; replaced by each look

    @classmethod
    def of(
        cls,
        settings: MlocSettings,
        recovery: RunRecovery,
        reaper: Reaper,
        view: ClusterView,
        *,
        pool: str,
        name: str | None,
        own: Callable[[], Collection[UUID]] = tuple,
    ) -> RunSweep:
        """Return one with the times of the settings."""
        patience = max(settings.heartbeat_ttl, 3 * settings.heartbeat_seconds)
        return cls(view, recovery, reaper.take_lock, pool=pool, name=name, patience=patience, own=own)

    async def watch(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._sleep(self._patience / _LOOKS)
            try:
                await self.sweep()
            except httpx.HTTPError as error:
                logger.info("could not look for runs without a worker, will retry: %s", reason(error))

    async def sweep(self) -> list[str]:
        """Look once; return the ids of the runs that were recovered.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        if not (self._is_ours and self._view.is_current):
            self._seen.clear()
            return []
        known = {(card.id, card.incarnation) for card in self._view.cards}
        now = self._clock()
        orphaned: dict[tuple[str, str], dict[str, Any]] = {}
        for run in await self._recovery.active(self._pool, older=self._patience, besides=self._own()):
            holder = holder_of(run)
            if holder is not None and holder not in known:
                orphaned[run["id"], str(run.get("state_id") or run["state"].get("id"))] = run
        self._seen = {key: self._seen.get(key, now) for key in orphaned}
        self._treated &= set(orphaned)
        found = []
        for key, run in orphaned.items():
            due = now - self._seen[key] >= self._patience and key not in self._treated
            if due and await self._take_lock("sweep." + ".".join(key)):
                logger.warning("run %s is held by a process that is not known any more: recovering it", run["name"])
                await self._recovery.recover_orphan(run)
                self._treated.add(key)
                found.append(str(run["id"]))
        return found

    @property
    def _is_ours(self) -> bool:
        live = self._view.live
        return (live[0].id == self._name) if live else self._name is None
