"""Publishes the records and messages of a run of `mloc run` on a site with a Redis, for as long as the run lasts.

Another bridge may follow the same server; both then make the same steps, and each step takes effect once. A bridge on
another server does not know the run, and leaves its records alone while this process keeps marking it as attended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client

from mloc_prefect.bridge.event_consumer import EventConsumer
from mloc_prefect.bridge.event_sources import SocketSource
from mloc_prefect.bridge.prefect_runs import PrefectRuns, RunTags
from mloc_prefect.bridge.projector import Projector
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.bridge.reconcile import Reconciler
from mloc_prefect.errors import StoreError, reason
from mloc_prefect.store.backends import open_stores
from mloc_prefect.store.task_watch import StoreWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pydantic import SecretStr

    from mloc_prefect.bridge.event_sources import EventDelivery, EventSource
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.interfaces import TaskStore

_log = logging.getLogger(__name__)

_CATCH_UP_SECONDS = 3.0
_POLL_SECONDS = 0.05
ATTENDED_SECONDS = 300.0
"""How long a process counts as alive after its last sign of life; covers an outage of Redis or of the machine."""

_ATTEND_SECONDS = 20.0


class LocalRunEvents:
    """Filters the events of one workflow run and its stages out of a source of all events.

    Args:
        source: The source.
        run_id: Returns the id of the workflow run, or None while it is unknown.
        submission_id: Returns its submission, or None while it is unknown.
    """

    def __init__(
        self, source: EventSource, run_id: Callable[[], str | None], submission_id: Callable[[], str | None]
    ) -> None:
        self._source, self._run_id, self._submission_id = source, run_id, submission_id

    async def batches(self) -> AsyncIterator[Sequence[EventDelivery]]:
        """See `EventSource`."""
        async for batch in self._source.batches():
            yield [delivery for delivery in batch if self._is_ours(delivery)]

    def _is_ours(self, delivery: EventDelivery) -> bool:
        event = delivery.event
        if event.run_id == self._run_id():
            return True
        submission_id = RunTags.of(event.tags).submission_id
        return submission_id is not None and submission_id == self._submission_id()


class LocalRunRecords:
    """The records of the run of this process.

    Args:
        tasks: The records.
        reconciler: Repairs what no event reported.

    Attributes:
        watch: Waits for results and cancellations from outside.
    """

    def __init__(self, tasks: TaskStore, reconciler: Reconciler, watch: StoreWatch) -> None:
        self._tasks, self._reconciler, self.watch = tasks, reconciler, watch

    async def settle(self, submission_id: str) -> None:
        """Return when the records show the end of the run, or after a few seconds; another bridge repairs the rest."""
        deadline = asyncio.get_running_loop().time() + _CATCH_UP_SECONDS
        try:
            while asyncio.get_running_loop().time() < deadline:
                records = await self._tasks.page(submission_id=submission_id, brief=True)
                if records and all(record.mark.phase.terminal for record in records):
                    return
                await asyncio.sleep(_POLL_SECONDS)
            await self._reconciler.finish(submission_id)
        except (StoreError, httpx.HTTPError) as error:
            _log.warning("the records of this run are incomplete: %s", reason(error))


@asynccontextmanager
async def publish_local_run(
    settings: MlocSettings, url: SecretStr, run_id: Callable[[], str | None], submission_id: Callable[[], str | None]
) -> AsyncIterator[LocalRunRecords]:
    """Follow one run of the configured API until the block ends; for the arguments see `LocalRunEvents`.

    Raises:
        StoreError: Redis cannot be reached.
        MissingExtraError: Its client is not installed.
    """
    stores = open_stores(url)
    try:
        await stores.check()
        async with get_client() as client, StoreWatch(stores.tasks) as watch:
            runs = PrefectRuns(client)
            projector = Projector(stores, runs, Rebuilder(stores.tasks, settings, attended_until=_attended_until))
            consumer = EventConsumer(LocalRunEvents(SocketSource(), run_id, submission_id), projector, runs)
            services = [
                asyncio.create_task(consumer.consume_events(), name="publish local run"),
                asyncio.create_task(attend(stores.tasks, submission_id), name="attend"),
            ]
            try:
                yield LocalRunRecords(stores.tasks, Reconciler(stores.tasks, projector, runs), watch)
            finally:
                for task in services:
                    task.cancel()
                await asyncio.gather(*services, return_exceptions=True)
    finally:
        await stores.close()


async def attend(tasks: TaskStore, submission_id: Callable[[], str | None], every: float = _ATTEND_SECONDS) -> None:
    """Mark the run as attended until cancelled; `submission_id` as in `LocalRunEvents`."""
    while True:
        name = submission_id()
        try:
            if name is not None:
                await tasks.attend(name, _attended_until())
        except StoreError as error:
            _log.info("could not mark the run as attended, will retry: %s", error.message)
        await asyncio.sleep(every)


def _attended_until() -> float:
    return time.time() + ATTENDED_SECONDS
