"""State changes of runs that the server sends to a worker: runs to fetch, ends, cancellations.

Events are hints only: they may be lost, come twice, or come before their change is committed. The API decides, and
ordinary polls (of stock Prefect every 10 s) continue.
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

from mloc_prefect.prefect_ext.run_facts import WAITING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from prefect.events import Event

logger = logging.getLogger("prefect.mloc.worker")

_RUN = "prefect.flow-run."
_QUEUE, _POOL = "prefect.work-queue.", "prefect.work-pool."
_SCHEDULED = frozenset({f"{_RUN}Scheduled", f"{_RUN}AwaitingRetry", f"{_RUN}{WAITING}"})
_OTHERS = ("Pending", "Running", "Completed", "Failed", "Crashed", "Cancelled", "Cancelling")
_HEARD = (*sorted(_SCHEDULED), *(f"{_RUN}{state}" for state in _OTHERS))
_RECONNECT_SECONDS = 5.0


@asynccontextmanager
async def hearing(
    listeners: Sequence[Callable[[Event], None]], connected: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """Hand state changes of flow runs to `listeners` until the context ends.

    Args:
        listeners: Called with each event, in order.
        connected: Called whenever there is a connection again: what happened before was not heard.
    """

    async def listen() -> None:
        wanted = EventFilter(event=EventNameFilter(name=list(_HEARD)))
        while True:
            try:
                async with get_events_subscriber(filter=wanted, reconnect_on_clean_close=True) as events:
                    connected()
                    async for event in events:
                        for listener in listeners:
                            listener(event)
            except Exception as error:  # boundary: whatever the socket does, polling continues
                logger.info("no events from the server (%s), polling only", error)
            await asyncio.sleep(_RECONNECT_SECONDS)

    task = asyncio.create_task(listen(), name="hear events")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class EventListener:
    """Calls `poll` as soon as events say that there may be something to fetch.

    Args:
        poll: Fetches what is scheduled; returns the ids of the runs that it took.
        pool_id: Id of the pool, or None while it is not known; events of other pools do not wake.
        serves: Whether runs of a queue (its id) may be for us; None when the queue is not known.
        commit_seconds: How long a run may take to show after its event.
    """

    def __init__(
        self,
        poll: Callable[[], Awaitable[Collection[UUID]]],
        pool_id: Callable[[], UUID | None],
        serves: Callable[[str], bool | None] = lambda _: None,
        *,
        commit_seconds: float = 0.3,
    ) -> None:
        self._poll = poll
        self._pool_id = pool_id
        self._serves = serves
        self._commit_seconds = commit_seconds
        self._wake = asyncio.Event()
        self._named: set[UUID] = set()
        self.new_queue = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll when woken, until the context ends."""
        task = asyncio.create_task(self._poll_when_woken(), name="poll when woken")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def wake(self, after: float = 0.0) -> None:
        """Poll soon, or `after` seconds: there may be room for another run."""
        if after > 0:
            asyncio.get_running_loop().call_later(after, self._wake.set)
        else:
            self._wake.set()

    def notice(self, event: Event) -> None:
        """Poll soon if `event` tells of a run of this pool that may be for us."""
        if event.event not in _SCHEDULED:
            return
        related = {resource.id for resource in event.related}
        pool = self._pool_id()
        if pool is not None and f"{_POOL}{pool}" not in related:
            return
        queue = next((name.removeprefix(_QUEUE) for name in related if name.startswith(_QUEUE)), None)
        serves = self._serves(queue) if queue else None
        if serves is False:
            return
        self.new_queue |= queue is not None and serves is None
        with suppress(ValueError):
            self._named.add(UUID(event.resource.id.removeprefix(_RUN)))
            self._wake.set()

    async def _poll_when_woken(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            named, self._named = self._named, set()
            try:
                taken = await self._poll()
                if named - set(taken):  # told of before it was committed, or due later
                    await asyncio.sleep(self._commit_seconds)
                    await self._poll()
            except httpx.HTTPError as error:
                logger.info("poll after an event failed (%s), the next one follows by itself", error)
            except Exception:  # boundary: without this task nothing would wake the worker any more
                logger.exception("poll after an event failed, the next one follows by itself")
