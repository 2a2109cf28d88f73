"""The bridge at work: events become steps of records, in order for each task, and are acknowledged after that."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.bridge.events import Seen
from mloc_prefect.bridge.odd import contained
from mloc_prefect.bridge.runs import FINAL
from mloc_prefect.errors import FencedError, StoreError, reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.bridge.events import Delivery, EventSource, RunEvent
    from mloc_prefect.bridge.keeper import Keeper
    from mloc_prefect.bridge.runs import Runs, RunView

_log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
_MOST_SECONDS = 5.0
_COMMIT_SECONDS = 2.0  # an end that the API does not show by then was rolled back, or is the reconciler's
_LOOK_SECONDS = 0.004


class Follower:
    """Follows a source of events.

    Prefect emits an event before it commits what the event tells of, so an end is first looked up in the API.

    Args:
        source: Where events come from.
        keeper: What moves the records.
        runs: Prefect's API.
    """

    def __init__(self, source: EventSource, keeper: Keeper, runs: Runs) -> None:
        self._source, self._keeper, self._runs = source, keeper, runs
        self._seen = Seen()
        self._later: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Follow until cancelled; what fails because something cannot be reached is done again later.

        Raises:
            FencedError: This bridge is not the active one any more.
        """
        pause = AGAIN_SECONDS
        try:
            while True:
                try:
                    async for batch in self._source.batches():
                        await self.handle(batch)
                        pause = AGAIN_SECONDS
                except FencedError:
                    raise
                except (StoreError, httpx.HTTPError) as error:
                    _log.warning("events wait: %s", reason(error))
                except Exception as error:  # boundary: whatever a websocket does, it is opened again
                    _log.warning("events are interrupted: %s: %s", type(error).__name__, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST_SECONDS)
        finally:
            for task in self._later:
                task.cancel()
            await asyncio.gather(*self._later, return_exceptions=True)

    async def handle(self, batch: Sequence[Delivery]) -> None:
        """Handle deliveries in order.

        Raises:
            StoreError: The store cannot be reached; what is not acknowledged comes again.
            FencedError: This bridge is not the active one any more.
            httpx.HTTPError: The API does not answer.
        """
        ended = {d.event.run_id for d in batch if d.event.type in FINAL and d.event.id not in self._seen}
        looking = asyncio.ensure_future(self._runs.get(ended))  # one look for all, beside the steps before them
        try:
            for delivery in batch:
                await self._handle(delivery, looking)
        finally:
            looking.cancel()

    async def _handle(self, delivery: Delivery, looking: asyncio.Future[Mapping[str, RunView]]) -> None:
        event, view = delivery.event, None
        if event.id not in self._seen:
            if event.type in FINAL:
                view = (await looking).get(event.run_id)
                if view is not None and not view.final and view.since <= event.at:
                    # Its neighbours must not wait for it: nothing follows the end of a run but another start of it.
                    task = asyncio.create_task(self._confirm(delivery))
                    self._later.add(task)
                    task.add_done_callback(self._later.discard)
                    return
            await self._one(event, view)
            self._seen.add(event.id)
        await delivery.ack()

    async def _one(self, event: RunEvent, view: RunView | None) -> None:
        with contained(str(event)):
            if event.type not in FINAL:
                await self._keeper.apply(event)
            elif view is not None and view.final:
                await self._end(view)

    async def _confirm(self, delivery: Delivery) -> None:
        """Wait until the API shows the end."""
        event = delivery.event
        deadline = asyncio.get_running_loop().time() + _COMMIT_SECONDS
        try:
            while asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(_LOOK_SECONDS)
                view = (await self._runs.get([event.run_id])).get(event.run_id)
                if view is None or view.final:
                    await self._one(event, view)
                    break
            self._seen.add(event.id)
            await delivery.ack()
        except (StoreError, FencedError, httpx.HTTPError) as error:
            _log.warning("the end of run %s is left to the reconciler: %s", event.run_id, error)

    async def _end(self, view: RunView) -> None:
        if view.tags.root:
            await self._keeper.end_root(view)
        elif view.tags.task_id is not None:
            await self._keeper.end(view)
