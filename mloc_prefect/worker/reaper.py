"""What becomes of the runs of a worker that is gone: root runs start again elsewhere, stage runs are marked as lost.

Any worker, and the bridge, may do it; exactly one does: whoever takes the lock that is named after the dead process.
All steps look at the run as it is, so that another one may go on where the first one was lost itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from mloc_prefect.worker.heartbeat import lock_name
from mloc_prefect.worker.recovery import Recovery

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.directory import Directory
    from mloc_prefect.worker.view import WorkersView

logger = logging.getLogger("prefect.mloc.worker")

_LOCK_SECONDS = 86_400.0  # by its lock a worker that was paused finds out that it was given up


class Reaper:
    """Looks for workers that are gone and takes over for them.

    Args:
        view: All workers.
        recover: Takes care of the runs of one of them.
        name: Who we are, for people.
        patience: Seconds after which one who took over and did not end it counts as gone too.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        view: WorkersView,
        recover: Callable[[WorkerCard], Any],
        name: str,
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._recover, self._name = view, recover, name
        self._patience, self._clock = patience, clock
        self._refused: dict[str, float] = {}
        self._locks: dict[str, float] = {}

    @classmethod
    def of(cls, settings: MlocSettings, client: PrefectClient, view: WorkersView, name: str) -> Self:
        """Return one whose times and budget of retries are those of the settings."""
        recovery = Recovery(client, settings.max_retries)
        return cls(view, recovery.recover, name, patience=2 * settings.heartbeat_ttl)

    async def watch(self, every: float) -> None:
        """Look and act every so many seconds until cancelled."""
        while True:
            try:
                await self.look()
            except httpx.HTTPError as error:
                logger.info("no look for lost workers this time: %s", str(error) or type(error).__name__)
            await asyncio.sleep(every)

    async def look(self) -> list[str]:
        """Look once; return the workers for which we took over.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        if not await self._view.look():
            return []
        await self._drop_old_locks()
        return [card.id for card in self._view.dead if await self.take_over(card)]

    async def take_over(self, card: WorkerCard) -> bool:
        """Take care of the runs of a worker that is gone, unless somebody else does; returns whether we did.

        Raises:
            httpx.HTTPError: The server does not answer; the next look goes on.
        """
        directory = self._view.directory
        if not await self._locked(directory, lock_name(card)):
            return False
        logger.warning("worker %s is gone, what it ran is started again", card.id)
        await self._recover(card)
        await directory.remove(card.id)
        return True

    async def _locked(self, directory: Directory, lock: str) -> bool:
        """Take the lock, or the next one when its holder is gone too; ours already counts as taken."""
        name, number = lock, 1
        while name not in self._locks and not await directory.lock(name, self._name):
            if self._clock() - self._refused.setdefault(name, self._clock()) < self._patience:
                return False
            number += 1
            name = f"{lock}.{number}"
        self._locks[name] = self._clock()
        return True

    async def _drop_old_locks(self) -> None:
        now = self._clock()
        for name in [name for name, since in self._locks.items() if now - since > _LOCK_SECONDS]:
            await self._view.directory.unlock(name)
            del self._locks[name]


async def reap_for_ever(settings: MlocSettings, client: PrefectClient, view: WorkersView, name: str) -> None:
    """Look for workers that are gone, and take over for them, until cancelled.

    Args:
        settings: For times and the budget of retries.
        client: Open client.
        view: All workers.
        name: Who we are, for people.
    """
    try:
        await view.directory.forget_locks(_LOCK_SECONDS)
    except httpx.HTTPError as error:
        logger.info("old locks stay: %s", str(error) or type(error).__name__)
    await Reaper.of(settings, client, view, name).watch(settings.heartbeat_seconds)
