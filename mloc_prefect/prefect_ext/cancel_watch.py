"""Cancellation in Prefect of runs of this process: noticed by events, and by polling in case an event was lost.

A process has one watch. `run_control.RunContext` names it, so that stages and shards put themselves on it too.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client

from mloc_prefect.errors import reason
from mloc_prefect.prefect_ext.requests import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event

logger = logging.getLogger(__name__)

_RUN = "prefect.flow-run."
_EVENTS = frozenset({f"{_RUN}Cancelling", f"{_RUN}Cancelled"})
_CANCELLING = {"state": {"type": {"any_": ["CANCELLING"]}}}
_PAGE = 200


class CancelWatch:
    """Calls back, once, for each watched run that somebody sets to Cancelling or Cancelled.

    Args:
        client: Open client; by default `running` opens one for the API in force.
        poll_seconds: Seconds between polls.
        full_poll_every: Polls of which one names all watched runs. The others ask for all runs of the server that are
            Cancelling, which are few: cheaper for a worker with many runs. A run that somebody sets to Cancelled at
            once, without Cancelling first, is found by full polls only; it leaves no work to a run of a worker.
    """

    def __init__(
        self, client: PrefectClient | None = None, *, poll_seconds: float = 2.0, full_poll_every: int = 1
    ) -> None:
        self._client = client
        self._poll_seconds, self._full_poll_every = poll_seconds, full_poll_every
        self._watched: dict[UUID, Callable[[], None]] = {}

    def add(self, flow_run_id: UUID, cancel: Callable[[], None]) -> None:
        """Watch a run: `cancel` is called as soon as it is found cancelled."""
        self._watched[flow_run_id] = cancel

    def remove(self, flow_run_id: UUID) -> None:
        """Stop watching a run; nothing happens when it is not watched."""
        self._watched.pop(flow_run_id, None)

    def notice(self, event: Event) -> None:
        """Take a state event."""
        if event.event not in _EVENTS:
            return
        try:
            self._cancel(UUID(event.resource.id.removeprefix(_RUN)))
        except ValueError:
            logger.debug("event of no flow run: %s", event.resource.id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CancelWatch]:
        """Poll until the block ends."""
        task = asyncio.create_task(self._poll_repeatedly(), name="poll for cancelled runs")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def poll(self, client: PrefectClient, *, full: bool = True) -> None:
        """Ask the API once.

        Args:
            client: Open client.
            full: See `full_poll_every`.

        Raises:
            httpx.HTTPError: It does not answer.
        """
        if not self._watched:
            return
        if not full:
            await self._ask(client, _CANCELLING)
            return
        watched = [str(flow_run_id) for flow_run_id in self._watched]
        for start in range(0, len(watched), _PAGE):
            ids = {"any_": watched[start : start + _PAGE]}
            await self._ask(client, {"id": ids, "state": {"type": {"any_": ["CANCELLING", "CANCELLED"]}}})

    async def _poll_repeatedly(self) -> None:
        count, client = 0, self._client
        async with AsyncExitStack() as stack:
            while True:
                await asyncio.sleep(self._poll_seconds)
                count += 1
                try:
                    if client is None:
                        client = await stack.enter_async_context(get_client())
                    await self.poll(client, full=count % self._full_poll_every == 0)
                except httpx.HTTPError as error:
                    logger.info("could not check for cancelled runs, will retry: %s", reason(error))

    async def _ask(self, client: PrefectClient, wanted: dict[str, Any]) -> None:
        offset = 0
        while True:  # runs of others may be stuck in Cancelling, more of them than one page has
            body = {"flow_runs": wanted, "limit": _PAGE, "offset": offset, "sort": "ID_DESC"}
            page = await ask(client, "POST", "/flow_runs/filter", body) or ()
            for run in page:
                self._cancel(UUID(run["id"]))
            if len(page) < _PAGE:
                return
            offset += len(page)

    def _cancel(self, flow_run_id: UUID) -> None:
        cancel = self._watched.pop(flow_run_id, None)
        if cancel is not None:
            cancel()
