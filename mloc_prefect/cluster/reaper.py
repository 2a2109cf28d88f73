"""Takeover of the runs of lost workers: workflow runs start again elsewhere, stage runs are marked as lost.

Any worker, and the bridge, may take over; exactly one does, the one that gets the lock named after the lost process.
All steps start from the state of each run as it is, so that another process can continue where the first was lost
itself. A worker that starts under the name of an earlier process takes over from that, unless it lives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from mloc_prefect.cluster.heartbeat import lock_name
from mloc_prefect.cluster.identity import WorkerProcess
from mloc_prefect.cluster.run_recovery import RunRecovery
from mloc_prefect.errors import DispatchError, reason
from mloc_prefect.prefect_ext.retry import until_answered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.cluster.cluster_view import ClusterView
    from mloc_prefect.cluster.worker_card import WorkerCard
    from mloc_prefect.settings import MlocSettings

logger = logging.getLogger("prefect.mloc.worker")

_LOCK_SECONDS = 86_400.0  # by its lock a worker that was paused finds out that it was declared lost
_PREDECESSOR_SECONDS = 0.5
_AWAY_SECONDS = 2.0
_BEATS = 2.5  # within so many heartbeats a process that cannot be seen is heard, if it lives


class Reaper:
    """Takes over the runs of lost workers.

    Args:
        view: All workers.
        recover: Recovers the runs of one of them.
        holder: Name of this process in locks, for people.
        patience: Seconds after which another process that took over and did not finish counts as lost too.
        check_seconds: Seconds between checks for lost workers.
        clock: Seconds, never going back.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        view: ClusterView,
        recover: Callable[[WorkerCard], Any],
        holder: str,
        *,
        patience: float,
        check_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._view, self._recover, self._holder = view, recover, holder
        self._membership = view.membership
        self._patience, self._check_seconds = patience, check_seconds
        self._clock, self._sleep = clock, sleep
        self._refused: dict[str, float] = {}
        self._locks: dict[str, float] = {}

    @classmethod
    def of(cls, settings: MlocSettings, client: PrefectClient, view: ClusterView, holder: str) -> Self:
        """Return one with the times and the budget of retries of the settings."""
        recovery = RunRecovery(client, settings.max_retries)
        return cls(
            view,
            recovery.recover,
            holder,
            patience=2 * settings.heartbeat_ttl,
            check_seconds=settings.heartbeat_seconds,
        )

    async def watch(self) -> None:
        """Check for lost workers, and take over from them, until cancelled."""
        try:
            await self._membership.forget_locks(_LOCK_SECONDS)
        except httpx.HTTPError as error:
            logger.info("old takeover locks stay: %s", reason(error))
        while True:
            try:
                await self.check()
            except httpx.HTTPError as error:
                logger.info("could not check for lost workers, will retry: %s", reason(error))
            await self._sleep(self._check_seconds)

    async def check(self) -> list[str]:
        """Check once; return the workers whose runs this process took over.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        if not await self._view.refresh():
            return []
        await self._drop_old_locks()
        return [card.id for card in self._view.lost if await self.take_over(card)]

    async def take_over(self, card: WorkerCard) -> bool:
        """Recover the runs of a lost worker, unless another process does; returns whether this one did.

        Raises:
            httpx.HTTPError: The server does not answer; the next call continues.
        """
        if not await self.take_lock(lock_name(card)):
            return False
        logger.warning("worker %s is lost, its runs are started again", card.id)
        await self._recover(card)
        await self._membership.remove(card.id)
        return True

    async def claim_name(self, card: WorkerCard) -> None:
        """Take over from an earlier process of this worker, and publish our card: of two that start at once, one does.

        Waits for a Prefect server that is away.

        Args:
            card: Our first card.

        Raises:
            DispatchError: Another process has the name, and lives.
        """
        while True:
            await self.take_over_predecessor(card.id)
            if await until_answered(lambda: self._membership.create(card), f"worker {card.id!r}"):
                return
            found = await self._card_of(card.id)
            if found is not None and found.incarnation == card.incarnation:  # the answer to an earlier try was lost
                return

    async def take_over_predecessor(self, worker: str) -> None:
        """Return when nothing is left to do for an earlier process of this worker, whoever did it.

        Waits for a Prefect server that is away: our card would hide that of the earlier process, and its runs with it.

        Args:
            worker: Id of this worker.

        Raises:
            DispatchError: The earlier process lives.
        """
        before = await self._card_of(worker)
        if before is None:
            return
        if await self._lives(before):
            raise DispatchError(
                f"worker {worker!r} runs already, as process {before.process.pid}",
                hint="give each worker an MLOC_WORKER_ID of its own, or none",
            )
        # The process that takes over removes the card at the end; if it is lost meanwhile, this one continues.
        while (card := await self._card_of(worker)) is not None and not await self._tried_take_over(card):
            await self._sleep(_PREDECESSOR_SECONDS)

    async def _tried_take_over(self, card: WorkerCard) -> bool:
        try:
            return await self.take_over(card)
        except httpx.HTTPError as error:
            logger.warning("the runs of an earlier process are not taken over yet: %s", reason(error))
            return False

    async def _lives(self, card: WorkerCard) -> bool:
        if card.process.where == WorkerProcess.own().where:
            return not card.process.seen_dead()
        await self._sleep(_BEATS * card.heartbeat)  # it cannot be seen from here: its heartbeat must be heard
        now = await self._card_of(card.id)
        return now is not None and (now.incarnation, now.beat) != (card.incarnation, card.beat)

    async def _card_of(self, worker: str) -> WorkerCard | None:
        while True:
            try:
                return next((card for card in await self._membership.read() if card.id == worker), None)
            except httpx.HTTPError as error:
                logger.warning("the worker waits for the Prefect server: %s", reason(error))
                await self._sleep(_AWAY_SECONDS)

    async def take_lock(self, lock: str) -> bool:
        """Take the lock, or the next one when its holder is lost too; our own counts as taken.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        name, number = lock, 1
        while name not in self._locks and not await self._membership.lock(name, self._holder):
            if self._clock() - self._refused.setdefault(name, self._clock()) < self._patience:
                return False
            number += 1
            name = f"{lock}.{number}"
        self._locks[name] = self._clock()
        return True

    async def _drop_old_locks(self) -> None:
        now = self._clock()
        for name in [name for name, since in self._locks.items() if now - since > _LOCK_SECONDS]:
            await self._membership.unlock(name)
            del self._locks[name]
        self._refused = {name: since for name, since in self._refused.items() if now - since <= _LOCK_SECONDS}
