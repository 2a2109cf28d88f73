"""Consumes events: applies them in order for each task, and acknowledges each after its steps."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.bridge.event_sources import SeenEvents
from mloc_prefect.bridge.prefect_runs import FINAL
from mloc_prefect.errors import FencedError, StoreError, reason
from mloc_prefect.process.backoff import Backoff
from mloc_prefect.store.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.bridge.event_sources import EventDelivery, EventSource, RunEvent
    from mloc_prefect.bridge.prefect_runs import RunReader, RunView
    from mloc_prefect.bridge.projector import Projector

_log = logging.getLogger(__name__)

WAITS = Backoff(first=0.5, most=5.0)
COMMIT_SECONDS = 2.0
"""An end that the API does not show by then was rolled back, or is left to the reconciler."""

_POLL_SECONDS = 0.004


class EventConsumer:
    """Consumes a source of events.

    Prefect emits an event before it commits the change, so the end of a run is first confirmed in the API.

    Args:
        source: Where events come from.
        projector: Moves the records.
        runs: Prefect's API.
        commit_seconds: See `COMMIT_SECONDS`.
    """

    def __init__(
        self,
        source: EventSource,
        projector: Projector,
        runs: RunReader,
        *,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self._source, self._projector, self._runs = source, projector, runs
        self._commit_seconds = commit_seconds
        self._seen = SeenEvents()
        self._confirmations: set[asyncio.Task[None]] = set()

    async def consume_events(self) -> None:
        """Consume until cancelled; events that could not be applied during an outage come again.

        Raises:
            FencedError: This bridge is no longer the active one.
        """
        waits = iter(WAITS)
        try:
            while True:
                try:
                    async for batch in self._source.batches():
                        await self.handle(batch)
                        waits = iter(WAITS)
                except FencedError:
                    raise
                except (StoreError, httpx.HTTPError) as error:
                    _log.warning("could not consume events, will retry: %s", reason(error))
                except Exception as error:  # boundary: the websocket is opened again after any error
                    _log.warning("the source of events failed, will reconnect: %s: %s", type(error).__name__, error)
                await asyncio.sleep(next(waits))
        finally:
            for task in self._confirmations:
                task.cancel()
            await asyncio.gather(*self._confirmations, return_exceptions=True)

    async def handle(self, batch: Sequence[EventDelivery]) -> None:
        """Apply deliveries in order.

        Raises:
            StoreError: The store cannot be reached; unacknowledged events come again.
            FencedError: This bridge is no longer the active one.
            httpx.HTTPError: The API does not answer.
        """
        ended = {d.event.run_id for d in batch if d.event.type in FINAL and d.event.id not in self._seen}
        # One request for all ends, while the steps before them are applied.
        views = asyncio.ensure_future(self._runs.get(ended))
        try:
            for delivery in batch:
                await self._handle(delivery, views)
        finally:
            views.cancel()

    async def _handle(self, delivery: EventDelivery, views: asyncio.Future[Mapping[str, RunView]]) -> None:
        event, view = delivery.event, None
        if event.id not in self._seen:
            if event.type in FINAL:
                view = (await views).get(event.run_id)
                if view is not None and not view.final and view.since <= event.at:
                    # Other events must not wait for it: after its end, a run only starts again.
                    task = asyncio.create_task(self._confirm(delivery))
                    self._confirmations.add(task)
                    task.add_done_callback(self._confirmations.discard)
                    return
            await self._apply(event, view)
            self._seen.add(event.id)
        await delivery.ack()

    async def _apply(self, event: RunEvent, view: RunView | None) -> None:
        with isolated(str(event)):
            if event.type not in FINAL:
                await self._projector.apply(event)
            elif view is not None and view.final:
                await self._end(view)

    async def _confirm(self, delivery: EventDelivery) -> None:
        """Wait until the API shows the end, then apply it."""
        event = delivery.event
        deadline = asyncio.get_running_loop().time() + self._commit_seconds
        try:
            while asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(_POLL_SECONDS)
                view = (await self._runs.get([event.run_id])).get(event.run_id)
                if view is None or view.final:
                    await self._apply(event, view)
                    break
            self._seen.add(event.id)
            await delivery.ack()
        except (StoreError, FencedError, httpx.HTTPError) as error:
            _log.warning("could not confirm the end of run %s, leaving it to the reconciler: %s", event.run_id, error)

    async def _end(self, view: RunView) -> None:
        if view.tags.is_workflow_run:
            await self._projector.end_workflow_run(view)
        elif view.tags.task_id is not None:
            await self._projector.end_task(view)
