"""Runs of this process that somebody cancels: heard of by events, and looked for now and then in case one was lost."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from mloc_prefect.orchestrate.api import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event

logger = logging.getLogger("prefect.mloc.worker")

_RUN = "prefect.flow-run."
_HEARD = frozenset({f"{_RUN}Cancelling", f"{_RUN}Cancelled"})
_POLL_SECONDS = 2.0
_ENDED_EVERY = 5  # polls; who sets Cancelled by hand leaves no work to the run, so this is rare
_PAGE = 200


class CancelWatch:
    """A `CancelBoard` for all runs and stages of this process.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._watched: dict[UUID, Callable[[], None]] = {}

    def add(self, flow_run_id: UUID, cancel: Callable[[], None]) -> None:
        """Call `cancel` once as soon as somebody has set the run to Cancelling or Cancelled."""
        self._watched[flow_run_id] = cancel

    def remove(self, flow_run_id: UUID) -> None:
        """Watch it no longer; nothing happens when it is not watched."""
        self._watched.pop(flow_run_id, None)

    def notice(self, event: Event) -> None:
        """Take a state event."""
        if event.event not in _HEARD:
            return
        try:
            self._cancel(UUID(event.resource.id.removeprefix(_RUN)))
        except ValueError:
            logger.debug("event of no flow run: %s", event.resource.id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look for what was not heard, until the block ends."""

        async def look_for_ever() -> None:
            count = 0
            while True:
                await asyncio.sleep(_POLL_SECONDS)
                count += 1
                try:
                    await self.look(ended_too=count % _ENDED_EVERY == 0)
                except httpx.HTTPError as error:
                    logger.info("no look for cancelled runs this time: %s", str(error) or type(error).__name__)

        task = asyncio.create_task(look_for_ever(), name="look for cancelled runs")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self, *, ended_too: bool = True) -> None:
        """Ask the API once.

        Args:
            ended_too: Also for runs that were set to Cancelled; else only for those that are Cancelling.

        Raises:
            httpx.HTTPError: It does not answer.
        """
        if not self._watched:
            return
        # Of the whole server, as there are few or none: cheaper than to name all that are watched every two seconds.
        await self._ask({"state": {"type": {"any_": ["CANCELLING"]}}})
        watched = [str(flow_run_id) for flow_run_id in self._watched] if ended_too else []
        for start in range(0, len(watched), _PAGE):
            part = {"any_": watched[start : start + _PAGE]}
            await self._ask({"id": part, "state": {"type": {"any_": ["CANCELLED"]}}})

    async def _ask(self, wanted: dict[str, Any]) -> None:
        offset = 0
        while True:  # somebody else's may be stuck in Cancelling for ever, more of them than one page has
            body = {"flow_runs": wanted, "limit": _PAGE, "offset": offset, "sort": "ID_DESC"}
            page = await ask(self._client, "POST", "/flow_runs/filter", body) or ()
            for run in page:
                self._cancel(UUID(run["id"]))
            if len(page) < _PAGE:
                return
            offset += len(page)

    def _cancel(self, flow_run_id: UUID) -> None:
        cancel = self._watched.pop(flow_run_id, None)
        if cancel is not None:
            cancel()
