"""The own machine of a worker as a place for stages: its slots, its leases, and the end of cancelled executors."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
    from mloc_prefect.orchestrate.dispatch import StageJob
    from mloc_prefect.worker.leases import Lease
    from mloc_prefect.worker.place import Place

logger = logging.getLogger("prefect.mloc.worker")

_NO_LIMIT = 10_000
_LEAVE_SECONDS = 2.5  # of the five within which a cancelled executor must be gone


class Slots:
    """The worker's limit of runs (`--limit`); stages that run in place count too, root runs do not.

    Args:
        limiter: Prefect's, or None when there is no limit.
    """

    def __init__(self, limiter: Callable[[], anyio.CapacityLimiter | None]) -> None:
        self._limiter = limiter

    @property
    def free(self) -> int:
        """How many further runs may begin."""
        limiter = self._limiter()
        return _NO_LIMIT if limiter is None else int(limiter.available_tokens)

    def take(self, who: object) -> bool:
        """Take a slot if there is one."""
        limiter = self._limiter()
        try:
            if limiter is not None:
                limiter.acquire_on_behalf_of_nowait(who)
        except anyio.WouldBlock:
            return False
        return True

    def give(self, who: object) -> None:
        """Give a slot back."""
        limiter = self._limiter()
        if limiter is not None:
            limiter.release_on_behalf_of(who)


class Here:
    """A worker's own machine; what `PlacingDispatcher` knows of it, and the worker's claims.

    Args:
        name: Id of the worker.
        place: The machine.
        slots: The worker's limit.
        is_open: Whether it takes further work.
        freed: Called when something ended and there may be room.
    """

    def __init__(
        self, name: str, place: Place, slots: Slots, is_open: Callable[[], bool], freed: Callable[[], None]
    ) -> None:
        self.name = name
        self.place = place
        self.slots = slots
        self._is_open = is_open
        self._freed = freed
        self._in_place: dict[str, object] = {}

    @property
    def open(self) -> bool:
        """Whether it takes further work."""
        return self._is_open()

    async def try_lease(self, job: StageJob) -> Lease | None:
        """Return what `run` needs for a job that is leased, with a slot, or None when there is no room now."""
        token = uuid4()
        if not self.slots.take(token):
            return None
        try:
            lease = await self.place.dispatcher.try_lease(job)
        except BaseException:
            self.slots.give(token)
            raise
        if lease is None:
            self.slots.give(token)
        else:
            self._in_place[lease.id] = token
        return lease

    def try_slot(self) -> object | None:
        """Return a slot for `run` with a job that is not leased, or None when there is none now."""
        token = uuid4()
        return token if self.slots.take(token) else None

    async def run(
        self,
        job: StageJob,
        lease: Lease | None,
        on_event: Callable[[ExecutionEvent], None],
        *,
        slot: object | None = None,
    ) -> ExecutionResult:
        """Run an attempt here and give the lease back, and the slot when it has one.

        When it is cancelled, its executor leaves, with what it holds on the device.

        Args:
            job: The attempt.
            lease: Its lease, of `try_lease` or of the claim of its run; None for light work.
            on_event: Told what happens.
            slot: Of `try_slot`; None for a run of the pool, which has Prefect's.
        """
        try:
            return await self.place.dispatcher.dispatch_leased(job, lease, on_event=on_event)
        except asyncio.CancelledError:
            if lease is not None:
                await asyncio.shield(asyncio.create_task(self._clear(job, lease)))
            raise
        finally:
            token = self._in_place.pop(lease.id, None) if lease is not None else slot
            if token is not None:
                self.slots.give(token)
            self._freed()

    async def _clear(self, job: StageJob, lease: Lease) -> None:
        """Let the executor of a cancelled job leave, unless it has other tasks; end it when it does not within time."""
        key = self.place.dispatcher.host_of(job, lease).key
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self.place.hosts.leave(key)
        except TimeoutError:
            logger.warning("executor %s of %s does not leave, ending it", key, job.title)
            await self.place.hosts.discard(key)
