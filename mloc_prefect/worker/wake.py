"""Wakes the worker when a run is scheduled, so that it need not wait for its next poll (10 s in stock Prefect).

Only a hint: events may be lost, come twice, or come before what they tell of is committed. The API decides, and the
worker's ordinary polls go on beside this.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from prefect.events import Event

logger = logging.getLogger("prefect.mloc.worker")

_SCHEDULED = EventFilter(event=EventNameFilter(name=["prefect.flow-run.Scheduled", "prefect.flow-run.AwaitingRetry"]))
_RUN = "prefect.flow-run."
_RECONNECT_SECONDS = 5.0
_COMMIT_SECONDS = 0.3


class Waker:
    """Calls `poll` as soon as events say that there may be something to fetch.

    Args:
        poll: Fetches what is scheduled; returns the ids of the runs that it took.
        pool_id: Id of the pool, or None while it is not known; events of other pools do not wake.
    """

    def __init__(self, poll: Callable[[], Awaitable[Collection[UUID]]], pool_id: Callable[[], UUID | None]) -> None:
        self._poll = poll
        self._pool_id = pool_id
        self._wake = asyncio.Event()
        self._named: set[UUID] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and poll until the context ends."""
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll_when_woken())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Poll soon: there is room for another run."""
        self._wake.set()

    def notice(self, event: Event) -> None:
        """Poll soon if `event` tells of a run of this pool."""
        pool = self._pool_id()
        if pool is not None and f"prefect.work-pool.{pool}" not in {related.id for related in event.related}:
            return
        with suppress(ValueError):
            self._named.add(UUID(event.resource.id.removeprefix(_RUN)))
            self._wake.set()

    async def _listen(self) -> None:
        while True:
            try:
                async with get_events_subscriber(filter=_SCHEDULED, reconnect_on_clean_close=True) as events:
                    async for event in events:
                        self.notice(event)
            except Exception as error:  # boundary: whatever the socket does, polling goes on
                logger.info("no events from the server (%s), polling only", error)
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _poll_when_woken(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            named, self._named = self._named, set()
            try:
                taken = await self._poll()
                if named - set(taken):  # told of before it was committed, or due later
                    await asyncio.sleep(_COMMIT_SECONDS)
                    await self._poll()
            except httpx.HTTPError as error:
                logger.info("poll after an event failed (%s), the next one follows by itself", error)
